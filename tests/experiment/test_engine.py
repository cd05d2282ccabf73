"""What `evaluate.engine` chooses, on a network of a few hundred weights; tests/engine/test_compiled.py has the programs."""

from pathlib import Path

import pandas as pd
import pytest
import torch

from qexp.base.compiler import cxx_compiler
from qexp.base.errors import UserErrors
from qexp.experiment import engine as module
from qexp.experiment.evaluator import Evaluator
from qexp.reporting.report import write_report
from qexp.sweep.check import check

CPU = torch.device("cpu")
compiles = pytest.mark.skipif(cxx_compiler() is None, reason="a program needs a C++ compiler")
DIALS = ({"bits": 4}, {"bits": 8, "quant.activation.bits": 8}, {"mode": "half"})


def scored(prepared, engine, *dials):
    merged = prepared(*({**dial, "evaluate.engine": engine} for dial in dials))
    state = prepared(*dials).network().state_dict()
    for number, value in enumerate(state.values()):
        if value.is_floating_point():
            value.add_(0.1 * torch.rand(value.shape, generator=torch.Generator().manual_seed(number)))
    return Evaluator(merged, CPU).score(state, merged.variants, {})


@pytest.fixture
def eager(prepared):
    return scored(prepared, "eager", *DIALS)


@compiles
def test_compiled_numbers_have_keys_of_their_own_and_the_same_predictions(prepared, eager):
    compiled = scored(prepared, "compiled", *DIALS[:2])
    assert [item.computed_by for item in compiled] == ["compiled"] * 3
    for item, exact in zip(compiled, eager, strict=False):
        assert item.variant.label == exact.variant.label and item.variant.key != exact.variant.key
        assert item.evaluation.metrics.loss == pytest.approx(exact.evaluation.metrics.loss, rel=1e-4)
        assert (item.evaluation.predictions.top5[:, 0] == exact.evaluation.predictions.top5[:, 0]).float().mean() > 0.99
        assert exact.computed_by == ""
    assert not any("not in use" in alarm for item in compiled for alarm in item.alarms)


def test_auto_runs_networks_as_they_are_where_few_images_are_scored(prepared, eager):
    auto = scored(prepared, "auto", *DIALS)
    assert [item.evaluation.digest for item in auto] == [item.evaluation.digest for item in eager]
    assert all(item.computed_by.startswith("eager: ") for item in auto)
    if cxx_compiler() is not None:
        assert all("evaluation" in item.computed_by and " s where " in item.computed_by for item in auto)


@compiles
def test_auto_compiles_what_it_can_where_it_pays(prepared, eager, monkeypatch, capsys):
    monkeypatch.setattr(module, "COMPILE_S", 0.0)
    monkeypatch.setattr(module, "WORTH", float("inf"))
    of_float, weights, activations, half = scored(prepared, "auto", *DIALS)
    for item in (of_float, weights, activations):
        assert item.computed_by.startswith("compiled: its program takes ")
    assert half.computed_by == f"eager: {module.HALF}."
    assert half.evaluation.digest == eager[3].evaluation.digest
    assert capsys.readouterr().out.count("evaluate.engine=auto: eager") == 1
    monkeypatch.setattr(module, "WORTH", 0.0)
    slow = scored(prepared, "auto", DIALS[0])
    assert slow[1].computed_by.startswith("eager: its program takes ")
    assert slow[1].evaluation.digest == eager[1].evaluation.digest


@compiles
def test_a_program_that_computes_something_else_is_refused_or_left(prepared, eager, monkeypatch):
    run_of = module.Programs.run_of

    def wrong(programs, model, images):
        run = run_of(programs, model, images)
        run.program = lambda *arguments: (torch.zeros(len(images), 10),)
        return run

    monkeypatch.setattr(module.Programs, "run_of", wrong)
    monkeypatch.setattr(module, "COMPILE_S", 0.0)
    auto = scored(prepared, "auto", DIALS[0])
    assert [item.evaluation.digest for item in auto] == [item.evaluation.digest for item in eager[:2]]
    with pytest.raises(module.UserError, match="of the largest.*engine=auto"):
        scored(prepared, "compiled", DIALS[0])


def test_refused_before_anything_starts(job, monkeypatch):
    def refusal(changes, verb="train"):
        with pytest.raises(UserErrors) as refused:
            check([job(changes)], verb)
        return str(refused.value)

    monkeypatch.setattr("qexp.sweep.check.cxx_compiler", lambda: None)
    assert "apt install g++" in refusal({"evaluate.engine": "compiled"})
    assert "auto runs it" in refusal({"evaluate.engine": "compiled", "mode": "half"})
    assert "eager in qexp.export" in refusal({"evaluate.engine": "auto"}, "export")
    check([job({"evaluate.engine": "auto"})], "train")


def test_a_report_marks_them_and_mixes_none(cli, tiny):
    command = (*tiny, "name=engines", "train.epochs=1")
    assert cli(*command, "bits=4").code == 0
    assert "engine" not in pd.read_csv("results/engines/table.csv")
    assert cli(*command, "bits=8", "evaluate.engine=auto", "name=other").code == 0
    table = pd.read_csv("results/other/table.csv")
    assert set(table["engine"]) == {"auto"} and table["computed_by"].str.startswith("eager: ").all()
    assert "engine auto" in Path("results/other/table.md").read_text()
    mixed = cli(*command, "bits=8", "evaluate.engine=auto")
    assert "engine eager" in mixed.out and "engine auto" in mixed.out
    assert "no comparison" in mixed.out
    write_report("engines", runs_dir="runs", results_dir="results", mixed=True)
    assert len(set(pd.read_csv("results/engines/table.csv")["protocol"])) == 2
    # The same copy by both: neither takes the other's place.
    assert "engine eager" in cli(*command, "bits=4", "evaluate.engine=auto").out
    write_report("engines", runs_dir="runs", results_dir="results", mixed=True)
    table = pd.read_csv("results/engines/table.csv")
    assert sorted(table["engine"].fillna("").where(table["bits"] == 4, "-")) == sorted(["", "auto", *["-"] * (len(table) - 2)])


@compiles
def test_a_program_is_compared_with_the_first_two_networks_of_each_state(prepared, monkeypatch):
    compared, check_alike = [], module.check_alike
    monkeypatch.setattr(module, "check_alike", lambda *args, **how: (compared.append(args), check_alike(*args, **how)))
    merged = prepared(*({"bits": bits, "evaluate.engine": "compiled"} for bits in (2, 3, 4, 6, 8)))
    evaluator, state = Evaluator(merged, CPU), merged.network().state_dict()
    for _ in range(2):
        scored_now = evaluator.score(state, merged.variants, {})
    assert len(scored_now) == 6 and len(compared) == 4


@compiles
def test_a_program_that_keeps_weights_is_found_by_the_second_network(prepared, monkeypatch):
    run_of = module.Programs.run_of

    def stale(programs, model, images):
        run = run_of(programs, model, images)
        run._tensors = tuple(tensor.clone() for tensor in run._tensors)
        return run

    monkeypatch.setattr(module.Programs, "run_of", stale)
    monkeypatch.setattr(module, "COMPILE_S", 0.0)
    monkeypatch.setattr(module, "WORTH", float("inf"))
    of_float, *copies = scored(prepared, "auto", {"bits": 2}, {"bits": 3})
    assert of_float.computed_by.startswith("compiled")
    assert all("logits differ" in item.computed_by for item in copies)
