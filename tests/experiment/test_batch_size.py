"""`evaluate.batch_size=null`: the size of batches is measured, recorded, and part of no key."""

import json
from pathlib import Path

import pytest
import torch

from qexp.base.compiler import cxx_compiler
from qexp.base.errors import UserErrors
from qexp.experiment import engine as module
from qexp.experiment.batch_size import fastest
from qexp.experiment.evaluator import Evaluator
from qexp.experiment.memory import fitting
from qexp.sweep.check import check

CPU = torch.device("cpu")


def prefer(monkeypatch, images):
    """Let batches of so many images be the fastest, and note which were tried."""
    tried = []

    def seconds_of(run, batch, times=3):
        tried.append(len(batch))
        return len(batch) * (1e-3 if len(batch) == images else 2e-3)

    monkeypatch.setattr(module, "seconds_of", seconds_of)
    return tried


def scored(prepared, changes):
    merged = prepared({"bits": 4, **changes}, {"bits": 8, "quant.activation.bits": 8, **changes})
    evaluator = Evaluator(merged, CPU)
    return evaluator, evaluator.score(prepared().network().state_dict(), merged.variants, {})


def test_a_size_without_memory_for_it_is_no_candidate():
    def seconds(size):
        if size == 250:
            raise torch.OutOfMemoryError
        return size * 0.001

    assert fastest([50, 100, 250], seconds).images == 50
    network = torch.nn.Conv2d(3, 8, 3)
    assert fitting([50, 100, 10**12], network, (3, 8, 8)) == [50, 100]


@pytest.mark.parametrize("images", [50, 250])
def test_the_fastest_is_used_and_recorded_and_changes_no_number(images, prepared, monkeypatch, capsys):
    tried = prefer(monkeypatch, images)
    evaluator, measured = scored(prepared, {"evaluate.batch_size": None})
    assert tried == [50, 100, 250]
    assert evaluator._engine.batch_size.images == images
    words = f"batches of {images}: 1.00 ms an image, 2.00 in batches of "
    assert all(item.computed_by.startswith(words) and item.batch_size == images for item in measured)
    assert capsys.readouterr().out.count(f"evaluate.batch_size=null: {words}") == 1
    _, fixed = scored(prepared, {"evaluate.batch_size": images})
    assert [(item.variant.key, item.evaluation.digest) for item in measured] == [
        (item.variant.key, item.evaluation.digest) for item in fixed
    ]
    assert all(item.computed_by == "" for item in fixed)
    _, whole = scored(prepared, {"evaluate.batch_size": 100})
    for item, other in zip(measured, whole, strict=True):
        assert item.evaluation.metrics.loss == pytest.approx(other.evaluation.metrics.loss, rel=1e-5)


def test_few_images_are_not_measured(prepared, monkeypatch):
    tried = prefer(monkeypatch, 50)
    _, scores = scored(prepared, {"evaluate.batch_size": None, "evaluate.num_images": 60})
    assert not tried and "no larger ones are tried here" in scores[0].computed_by


@pytest.mark.slow  # three programs
@pytest.mark.skipif(cxx_compiler() is None, reason="a program needs a C++ compiler")
def test_compiled_programs_are_measured_themselves(prepared, monkeypatch):
    shapes, run_of = [], module.Programs.run_of
    monkeypatch.setattr(
        module.Programs, "run_of", lambda self, model, images: shapes.append(len(images)) or run_of(self, model, images)
    )
    prefer(monkeypatch, 250)
    changes = {"evaluate.batch_size": None, "evaluate.engine": "compiled", "evaluate.num_images": 250}
    merged = prepared({"bits": 4, **changes})
    scores = Evaluator(merged, CPU).score(prepared().network().state_dict(), merged.variants, {})
    assert shapes[:3] == [50, 100, 250] and set(shapes[3:]) == {250}
    assert all(item.computed_by.startswith("compiled; batches of 250: ") for item in scores)


def test_another_measurement_evaluates_nothing_again(cli, tiny, monkeypatch):
    command = (*tiny, "name=sizes", "bits=4", "evaluate.batch_size=null")
    prefer(monkeypatch, 50)
    assert cli(*command).code == 0
    (training,) = Path("runs/trainings").iterdir()
    stored = {path.name: path.read_bytes() for path in (training / "variants").glob("*.jsonl")}
    rows = [json.loads(text.splitlines()[-1]) for text in stored.values()]
    assert {row["computed"]["batch_size"] for row in rows} == {50}
    assert all(row["computed_by"].startswith("batches of 50: ") for row in rows)
    assert "batches of 50" in Path("results/sizes/table.csv").read_text()
    assert "engine" not in Path("results/sizes/table.md").read_text()
    tried = prefer(monkeypatch, 250)
    assert cli(*command).code == 0 and not tried
    assert {path.name: path.read_bytes() for path in (training / "variants").glob("*.jsonl")} == stored
    assert cli(*command, "bits=8").code == 0 and tried  # the stored float network is compared but for rounding
    assert {path.name for path in (training / "variants").glob("*.jsonl")} > {*stored}


@pytest.mark.parametrize(
    ("changes", "verb", "message"),
    [
        ({}, "export", "an integer in qexp.export"),
        ({}, "analyze", "an integer in qexp.analyze"),
        ({"evaluate.until": "decided"}, "evaluate", "an integer with evaluate.until"),
        ({"evaluate.batch_size": 0}, "train", "at least 1"),
    ],
)
def test_refused_before_anything_starts(changes, verb, message, job):
    with pytest.raises(UserErrors, match=message):
        check([job({"evaluate.batch_size": None, **changes})], verb)
