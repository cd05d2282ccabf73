"""`python -m qexp.export export.runtime=litert`, from the command line to its file and tables."""

import csv
import runpy
from pathlib import Path

import pytest
import torch

from qexp.deploy import export, files, runtimes

for library in ("onnx", "ai_edge_litert"):
    pytest.importorskip(library, reason=f"needs {library}: pip install 'qexp[deploy]'")

NETWORKS = Path(__file__).parents[2] / "networks.py"
FOLDER = Path("runs/exports/digits/W8A8_int_symmetric_restricted_per_channel_fold_bn")


@pytest.fixture
def run(cli, tiny):
    """Run the command on a small network."""
    torch.manual_seed(0)
    network = runpy.run_path(str(NETWORKS))["tiny"](10, 1)
    network[1].running_var.uniform_(0.5, 2)
    torch.save(network.state_dict(), "checkpoint.pt")
    return lambda *overrides: cli("checkpoint=checkpoint.pt", *tiny, "export.runtime=litert", *overrides, verb="export")


def table(name):
    with open(Path("results/digits") / name) as handle:
        return list(csv.DictReader(handle))


@pytest.mark.alone
def test_stages_sizes_and_cost(run):
    done = run("export.batch_sizes=[2]", "export.repeats=2", "export.warmup=0", "export.threads=1")
    assert done.code == 0, done.err
    stages = {row["name"]: row for row in table("stages.csv")}
    assert stages["litert"]["passed"] == "True" and float(stages["litert"]["agreement"]) > 0.98
    assert (stages["litert"]["num_integer"], stages["litert"]["num_planned"]) == ("2", "2")
    costs = {row["network"]: row for row in table("cost.csv")}
    for network, column, folder in (("quantized", "tflite_bytes", FOLDER), ("fp32", "fp32_tflite_bytes", FOLDER.parent / "fp32")):
        assert int(costs[network][column]) == (folder / "network.tflite").stat().st_size
        assert float(costs[network]["median_ms"]) > 0 and int(costs[network]["peak_bytes"]) > 0
    assert ", TFLite " in Path("results/digits/stages.md").read_text()
    again = run("export.batch_sizes=[2]", "export.repeats=2", "export.warmup=0")
    assert "exported and measured before" in again.out


def test_what_it_cannot_hold_starts_nothing(run, monkeypatch):
    done = run("quant=symmetric")
    assert done.code == 2 and "codes from -128 to 127: allowed is weights from -127 to 127" in done.err
    assert not list(Path().rglob("*.tflite")) and not Path("runs/journal").exists()
    monkeypatch.setattr(runtimes, "installed_runtimes", lambda: ("onnxruntime",))
    monkeypatch.setitem(__import__("sys").modules, "ai_edge_litert", None)
    done = run()
    assert done.code == 2 and "pip install 'qexp[deploy]'" in done.err


@pytest.mark.slow
@pytest.mark.alone
def test_a_file_of_another_network_is_not_taken_for_the_one_that_was_measured(run, monkeypatch):
    """Each file by its hash: one cut short is written again, and nothing is measured."""
    few = ("evaluate.num_images=20", "export.cost=false", "export.torch_export=true")
    assert run(*few).code == 0
    paths = {name: FOLDER / name for name in ("network.tflite", "network.pt2", "network.onnx", "example.npz")}
    content = {name: path.read_bytes() for name, path in paths.items()}
    with monkeypatch.context() as patch:
        patch.setattr(export._ExportJob, "measure", lambda self: pytest.fail("measured again"))
        for name, path in paths.items():
            path.write_bytes(content[name][:-100])
            assert run(*few).code == 0
            assert name == "network.pt2" or path.read_bytes() == content[name]
            assert path.stat().st_size == pytest.approx(len(content[name]), abs=50)
        written = [path.stat().st_mtime_ns for path in paths.values()]
        assert run(*few).code == 0 and [path.stat().st_mtime_ns for path in paths.values()] == written


@pytest.mark.alone
def test_a_file_that_comes_to_be_written_otherwise_is_measured_anew(run, monkeypatch):
    """Here with another largest logit, and so another step of the logits; the ONNX file stays as it was."""
    few = ("evaluate.num_images=20", "export.cost=false")
    assert run(*few).code == 0
    before = [(FOLDER / name).read_bytes() for name in ("network.onnx", "network.tflite")]
    monkeypatch.setattr(files, "largest_logit", lambda *_: 1000.0)
    (FOLDER / "network.tflite").unlink()
    again = run(*few)
    assert again.code == 0 and "measured before" not in again.out
    after = [(FOLDER / name).read_bytes() for name in ("network.onnx", "network.tflite")]
    assert after[0] == before[0] and after[1] != before[1]
