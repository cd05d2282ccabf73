"""`evaluate.precision=bf16`: another arithmetic, numbers of their own, and refused where it contradicts."""

import json
from pathlib import Path

import pandas as pd
import pytest
import torch

from qexp.base.errors import UserError, UserErrors
from qexp.engine.precision import lacks_bf16
from qexp.experiment.evaluator import Evaluator
from qexp.experiment.variants import FLOAT, IN_BF16, converted_variants
from qexp.qat.convert import load_converted
from qexp.reporting.report import write_report
from qexp.sweep.check import check

CPU = torch.device("cpu")


def scored(prepared, changes):
    merged = prepared({"bits": 4, **changes}, {"mode": "float", **changes})
    evaluator = Evaluator(merged, CPU)
    return evaluator.score(prepared().network().state_dict(), merged.variants, {})


def test_logits_are_those_of_autocast_and_keys_and_labels_their_own(prepared):
    fp32, bf16 = (scored(prepared, {"evaluate.precision": name}) for name in ("fp32", "bf16"))
    for item, exact in zip(bf16, fp32, strict=True):
        assert item.variant.key != exact.variant.key and item.evaluation.digest != exact.evaluation.digest
        assert item.evaluation.metrics.loss == pytest.approx(exact.evaluation.metrics.loss, rel=0.05)
        assert (item.computed_by, exact.computed_by) == ("bf16 by torch.autocast", "")
        assert IN_BF16 not in exact.variant.label
    assert bf16[0].variant.named == FLOAT and all(IN_BF16 in item.variant.label for item in bf16[1:])
    assert not any("not in use" in alarm for item in bf16 for alarm in item.alarms)

    merged = prepared({"evaluate.precision": "bf16"})
    network = merged.network().eval().to(memory_format=torch.channels_last)
    images = next(merged.bundle.eval_batches("test", batch_size=100, device=CPU)).images
    with torch.inference_mode(), torch.autocast("cpu", dtype=torch.bfloat16):
        expected = network(images).float()
    predictions = bf16[0].evaluation.predictions
    assert torch.equal(predictions.top5[: len(images), 0], expected.topk(5).indices[:, 0].to(predictions.top5.dtype))
    with torch.inference_mode():
        assert not torch.equal(network(images), expected)


def test_the_note_where_bf16_is_emulated(prepared, monkeypatch, capsys):
    for has, noted in ((False, 1), (True, 0)):
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda has=has: {"avx2": True, "avx512_bf16": False, "amx_bf16": has})
        assert lacks_bf16(CPU) is not has and not lacks_bf16(torch.device("cuda"))
        Evaluator(prepared({"evaluate.precision": "bf16"}), CPU)
        assert capsys.readouterr().out.count("no instructions for bf16") == noted
    Evaluator(prepared({}), CPU)
    assert "bf16" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("changes", "verb", "message"),
    [
        ({"quant.activation.bits": 8}, "train", "codes of activations"),
        ({"mode": "half"}, "train", "rounded to fp16"),
        ({"evaluate.engine": "auto"}, "train", "eager with evaluate.precision=bf16"),
        ({}, "export", "fp32 in qexp.export"),
        ({}, "analyze", "fp32 in qexp.analyze"),
    ],
)
def test_refused_where_it_contradicts(changes, verb, message, job):
    with pytest.raises(UserErrors, match=message):
        check([job({"evaluate.precision": "bf16", **changes})], verb)


def test_refused_of_a_file_that_quantizes_activations_itself(job):
    (path,) = (Path(__file__).parents[1] / "stored_runs" / "v1").rglob("converted.safetensors")
    converted = load_converted(str(path))
    assert converted is not None and converted.activations
    (config,) = check([job({"evaluate.precision": "bf16"})], "train")
    with pytest.raises(UserError, match="evaluate.precision=bf16"):
        converted_variants([config], converted, (), lambda layers_only: ())


def test_a_report_marks_them_and_a_store_keeps_both(cli, tiny):
    command = (*tiny, "bits=4")
    assert cli(*command, "name=both").code == 0
    mixed = cli(*command, "name=both", "evaluate.precision=bf16")
    assert "engine eager bf16" in mixed.out and "no comparison" in mixed.out
    write_report("both", runs_dir="runs", results_dir="results", mixed=True)
    table = pd.read_csv("results/both/table.csv")
    assert sorted(table["engine"].fillna("")) == ["", "", "eager bf16", "eager bf16"] and len(set(table["protocol"])) == 2
    (training,) = Path("runs/trainings").iterdir()
    rows = [json.loads(line) for path in (training / "variants").glob("*.jsonl") for line in path.read_text().splitlines()]
    assert len(rows) == 4 and {row["computed"].get("engine", "") for row in rows} == {"", "eager bf16"}
    again = cli(*command, "name=both", "evaluate.precision=bf16")
    assert sum(len(path.read_text().splitlines()) for path in (training / "variants").glob("*.jsonl")) == 4, again.out
