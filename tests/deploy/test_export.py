"""`python -m qexp.export` from the command line to its files, on a network of a few hundred weights."""

import csv
import json
import runpy
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from qexp.base.files import hash_file
from qexp.deploy import export, fidelity, measured

for library in ("onnx", "onnxruntime"):
    pytest.importorskip(library, reason=f"needs {library}: pip install 'qexp[deploy]'")

NETWORKS = Path(__file__).parents[1] / "networks.py"
LABEL = "W8A8 int symmetric_restricted per_channel fold_bn"
FEW = ("evaluate.num_images=20",)
FOLDER = Path("runs/exports/digits") / LABEL.replace(" ", "_")


@pytest.fixture
def checkpoint():
    torch.manual_seed(0)
    network = runpy.run_path(str(NETWORKS))["tiny"](10, 1)
    network[1].running_mean.uniform_(-0.2, 0.2)
    network[1].running_var.uniform_(0.5, 2)
    torch.save(network.state_dict(), "checkpoint.pt")


@pytest.fixture
def run(cli, tiny, checkpoint):
    """Run the command on the checkpoint, without timing it."""
    return lambda *overrides: cli("checkpoint=checkpoint.pt", *tiny, "export.cost=false", *overrides, verb="export")


def table(name):
    with open(Path("results/digits") / name) as handle:
        return list(csv.DictReader(handle))


def journal(kind):
    rows = [json.loads(line) for line in Path("runs/journal/digits.jsonl").read_text().splitlines()]
    return [row for row in rows if row["kind"] == kind]


def test_the_stages_hold_what_the_evaluation_says(run):
    done = run()
    assert done.code == 0, done.err
    stages = {row["name"]: row for row in table("stages.csv")}
    assert list(stages) == ["fp32", "simulated", "evaluated", "integer", "onnxruntime"]
    scored = {row["variant"]: row for row in table("table.csv")}
    for stage, variant in (("fp32", "fp32"), ("evaluated", LABEL)):
        assert (stages[stage]["prec1"], stages[stage]["prec5"]) == (scored[variant]["prec1"], scored[variant]["prec5"])
        assert stages[stage]["n"] == scored[variant]["n"] == "360"
    for stage in ("integer", "onnxruntime"):
        assert stages[stage]["passed"] == "True" and int(stages[stage]["layer_steps"]) <= 1
        assert (stages[stage]["num_integer"], stages[stage]["num_planned"]) == ("2", "2")
        assert int(stages[stage]["n_codes"]) == 360 and float(stages[stage]["agreement"]) > 0.98
    page = Path("results/digits/report.html").read_text(encoding="utf-8")
    points = [row for row in table("points.csv") if row["stage"] == "onnxruntime"]
    assert page.count('<td class="left">onnxruntime</td>') == 1 + len(points) and page.count('<td class="left">pass</td>') == 2
    assert scored[LABEL]["alarms"] == "" and "ALARM" not in done.out
    assert sorted(path.name for path in FOLDER.iterdir()) == ["example.npz", "network.onnx"]
    assert [path.name for path in (FOLDER.parent / "fp32").iterdir()] == ["network.onnx"]
    assert "onnxruntime" in done.out and "n = 360 (test)" in Path("results/digits/stages.md").read_text()
    layers = {row["layer"]: row for row in table("layers.csv")}
    assert [(layers[name]["weight_bits"], layers[name]["act_bits"]) for name in ("0", "5")] == [("8", "8")] * 2
    assert layers["5"]["macs"] == "320" and layers["5"]["bops"] == str(320 * 64)
    (metrics,) = (row["values"] for row in journal("metrics"))
    assert metrics["onnxruntime/prec1"] == pytest.approx(float(stages["onnxruntime"]["prec1"]))
    assert metrics["file_bytes"] == (FOLDER / "network.onnx").stat().st_size


def test_few_images_at_a_time_give_the_same_numbers(run, monkeypatch):
    """Whole batches where memory allows, three images where it does not; codes are compared of as many as asked."""
    rows = []
    for at_once in (100, 3):
        monkeypatch.setattr(fidelity, "images_at_once", lambda *_, at_once=at_once: at_once)
        assert run("evaluate.num_images=20", "export.num_compared=6", "fresh=true").code == 0
        rows.append(table("stages.csv"))
    whole, parts = rows
    assert [row["n_codes"] for row in whole[-2:]] == ["20", "20"] and [row["n_codes"] for row in parts[-2:]] == ["6", "6"]
    for one, other in zip(whole, parts, strict=True):
        assert one["passed"] == other["passed"] and float(other["layer_steps"] or 0) <= float(one["layer_steps"] or 0)
        for key in ("prec1", "prec5", "n", "agreement", "num_integer", "float_layers"):
            assert one[key] == other[key]
        assert float(one["logit_sqnr_db"]) == pytest.approx(float(other["logit_sqnr_db"]), abs=0.01)


def test_a_repeated_command_measures_nothing(run, monkeypatch):
    assert run("evaluate.num_images=20").code == 0
    digest = hash_file(FOLDER / "network.onnx")
    counts = {kind: len(journal(kind)) for kind in ("export", "metrics", "record", "model")}
    with monkeypatch.context() as patch:
        patch.setattr(export._ExportJob, "measure", lambda self: pytest.fail("measured again"))
        again = run("evaluate.num_images=20")
        assert again.code == 0 and "measured before" in again.out and "nothing to do" in again.out
    assert counts == {kind: len(journal(kind)) for kind in counts} and counts["export"] == 1
    with monkeypatch.context() as patch:  # nor under another label, and again under the first
        patch.setattr(export._ExportJob, "measure", lambda self: pytest.fail("measured again"))
        for label, name in (("label=ours", "ours"), ("label=null", LABEL)):
            assert run("evaluate.num_images=20", label).code == 0
            assert {row["variant"] for row in table("stages.csv")} == {name} == {table("table.csv")[-1]["variant"]}
    assert hash_file(FOLDER / "network.onnx") == digest
    (FOLDER / "network.onnx").unlink()
    assert run("evaluate.num_images=20").code == 0
    assert hash_file(FOLDER / "network.onnx") == digest


def test_a_failed_stage_is_an_alarm_of_the_record(run, monkeypatch):
    outcome = fidelity.Runtime.outcome

    def wrong(self, images, *, with_codes):
        result = outcome(self, images, with_codes=with_codes)
        return replace(result, codes={point: codes + 2 * (point == "3") for point, codes in result.codes.items()})

    with monkeypatch.context() as patch:
        patch.setattr(fidelity.Runtime, "outcome", wrong)
        done = run("evaluate.num_images=20")
    assert done.code == 0, done.err
    (alarm,) = [row["alarms"] for row in table("table.csv") if row["variant"] == LABEL]
    assert alarm == "export: onnxruntime, first at 3: at most 2 steps from integers, 1 is allowed"
    assert f"ALARM: {alarm}" in Path("results/digits/table.md").read_text() and "FAIL 3" in done.out
    assert run("evaluate.num_images=20", "fresh=true").code == 0
    assert not any(row["alarms"] for row in table("table.csv"))


def test_a_copy_that_scores_otherwise_than_it_was_evaluated_is_an_alarm(run, monkeypatch):
    lower = export.lower

    def other(prepared, variant):
        lowered = lower(prepared, variant)
        with torch.no_grad():
            lowered.network.get_parameter("5.bias").copy_(torch.arange(10) * 100.0)
        return lowered

    monkeypatch.setattr(export, "lower", other)
    assert run("evaluate.num_images=20", "export.runtime=[]").code == 0
    (alarms,) = [row["alarms"] for row in table("table.csv") if row["variant"] == LABEL]
    assert "export: evaluated scores" in alarms


def test_widths_and_the_fast_simulation(run):
    done = run(
        "evaluate.num_images=20", "bits=4,8", "quant.activation.bits=8", "export.simulate=fast", "export.pack_int4=true", "-m"
    )
    assert done.code == 0, done.err
    stages = table("stages.csv")
    assert [row["name"] for row in stages] == ["fp32", "simulated", "integer", "onnxruntime"] * 2
    sizes = {path.parent.name[:4]: path.stat().st_size for path in Path("runs/exports/digits").glob("W*_int4/*.onnx")}
    assert sizes["W4A8"] < sizes["W8A8"]
    scored = {row["variant"]: row["prec1"] for row in table("table.csv")}
    for row in stages:
        if row["name"] == "simulated":
            assert row["prec1"] == scored[row["variant"]]
    packed = "2 weights packed in 4 bits, computed with in float by onnxruntime"
    plan, evaluated, measured_after = done.out.partition("epoch 0")
    assert evaluated and f"note: [{LABEL.replace('W8', 'W4')}] {packed}" in plan and f"note: {packed}" in measured_after
    assert f"note: [{LABEL}] export.pack_int4=true packs nothing, as" in plan
    ran = [(row["variant"][:4], row["passed"], row["float_layers"]) for row in stages if row["name"] == "onnxruntime"]
    assert sorted(ran) == [("W4A8", "False", "0, 5"), ("W8A8", "True", "")], "INT4 is computed with in float"


@pytest.mark.parametrize("act_bits", ["null", "8"])
def test_weights_with_a_scale_for_each_group(run, act_bits):
    """Packed, in blocks: runtimes compute with them in float, beside float activations and beside codes."""
    groups = ("bits=4", "quant.weight.granularity=per_group", "quant.weight.group_size=8", "export.pack_int4=true")
    done = run(*FEW, *groups, f"quant.activation.bits={act_bits}")
    assert done.code == 0, done.err
    stages = {row["name"]: row for row in table("stages.csv")}
    assert stages["onnxruntime"]["agreement"] == "1" and float(stages["onnxruntime"]["logit_sqnr_db"]) > 60
    notes = Path("results/digits/stages.md").read_text()
    said = "2 weights packed in 4 bits with a scale for each group, computed with in float by onnxruntime"
    assert said in notes and said in done.out.partition("epoch 0")[0]
    if act_bits == "8":
        assert int(stages["onnxruntime"]["layer_steps"]) <= 1 and stages["onnxruntime"]["num_integer"] == "0"


@pytest.mark.parametrize(
    ("override", "num_stages", "note", "in_float"),
    [
        ("quant.activation.dynamic=true", 4, "computed in float, on codes with each batch's range (0)", {"onnxruntime": "0"}),
        ("quant.activation.bits=null", 3, "since activations are float", {}),
    ],
)
def test_what_runs_in_float_where_the_plan_has_integers_fails_and_is_named(run, override, num_stages, note, in_float):
    """Ranges of each batch, and weights alone: the codes agree everywhere, and prove little."""
    done = run(*FEW, override)
    assert done.code == 0, done.err
    stages = {row["name"]: row for row in table("stages.csv")}
    assert len(stages) == num_stages and all(row["agreement"] == "1" for row in stages.values())
    assert {name: row["float_layers"] for name, row in stages.items() if row.get("passed") == "False"} == in_float
    assert note in Path("results/digits/stages.md").read_text()
    alarms = "".join(row["alarms"] for row in table("table.csv"))
    assert all(
        f"{name}: {1 - names.count(',')} of 2 planned layers ran in integers" in alarms for name, names in in_float.items()
    )
    assert bool(alarms) is bool(in_float)


def test_the_float_network(run):
    done = run("float_only=true")
    assert done.code == 0, done.err
    stages = {row["name"]: row for row in table("stages.csv")}
    assert list(stages) == ["fp32", "onnxruntime"]
    assert (
        stages["onnxruntime"]["prec1"] == table("table.csv")[0]["prec1"] and float(stages["onnxruntime"]["logit_sqnr_db"]) > 100
    )


def test_a_network_that_was_trained_with_its_quantization(cli, tiny):
    assert cli(*tiny, "qat=lsq", "bits=4", "label=ours").code == 0
    (file,) = Path("runs/trainings").glob("*/converted.safetensors")
    done = cli(*tiny, f"checkpoint={file}", "name=out", "export.cost=false", verb="export")
    assert done.code == 0, done.err
    with open("results/out/stages.csv") as handle:
        stages = {row["name"]: row for row in csv.DictReader(handle)}
    trained = {row["variant"]: row for row in table("table.csv")}
    assert stages["evaluated"]["prec1"] == trained["ours"]["prec1"] and stages["evaluated"]["variant"] == "W4A4 lsq"
    assert stages["integer"]["passed"] == "True" and stages["onnxruntime"]["failed_layer"] == ""
    assert stages["onnxruntime"]["float_layers"] == "0", "its batch norm is not folded, and comes before the next codes"


def test_costs(run, monkeypatch):
    asked = []
    monkeypatch.setattr(measured, "peak_memory_bytes", lambda *args, **options: asked.append((args, options)) or 3 * 2**20)
    done = run("evaluate.num_images=20", "export.cost=true", "export.repeats=2", "export.warmup=0", "export.batch_sizes=[1,4]")
    assert done.code == 0, done.err
    lines = table("cost.csv")
    assert [(row["network"], row["batch"]) for row in lines] == [(n, b) for n in ("fp32", "quantized") for b in ("1", "4")]
    for row in lines:
        assert 0 < float(row["low_ms"]) <= float(row["median_ms"]) <= float(row["high_ms"])
        assert float(row["images_per_s"]) == pytest.approx(1e3 * int(row["batch"]) / float(row["median_ms"]))
        assert row["threads"] == "1" and row["repeats"] == "2" and row["cpu"]
    assert [row["peak_bytes"] for row in lines] == ["", str(3 * 2**20)] * 2
    assert [shape for (_, _, shape), _ in asked] == [(4, 1, 8, 8)] * 2
    (metrics,) = (row["values"] for row in journal("metrics"))
    assert metrics["onnxruntime/quantized_b4_median_ms"] == pytest.approx(float(lines[3]["median_ms"]))
