"""What is measured is kept: a sweep of many variants that stops half-way has lost a few of them."""

import csv
from pathlib import Path

from qexp.experiment import training
from qexp.experiment.evaluator import Evaluator
from qexp.sweep.run import failure


def test_a_sweep_that_dies_keeps_what_it_measured(cli, tiny, monkeypatch):
    monkeypatch.setattr(training, "WRITE_EVERY", 2)
    command = (*tiny, "bits=2,4,8", "-m")
    whole, scored = Evaluator.score, []

    def dies_later(self, state, wanted, *more):
        if scored:
            raise RuntimeError("out of memory, say")
        scored.extend(wanted)
        return whole(self, state, wanted, *more)

    monkeypatch.setattr(Evaluator, "score", dies_later)
    assert cli(*command).code == 1
    assert [variant.label for variant in scored] == ["fp32", "W2 int"]
    (folder,) = Path("runs/trainings").iterdir()
    kept = {path.stem: path.read_text() for path in folder.glob("variants/*.jsonl")}
    assert sorted(kept) == sorted(variant.key for variant in scored)

    calls = []

    def notes(self, state, wanted, known, float_network=None, *more):
        calls.append((len(wanted), float_network is None))
        return whole(self, state, wanted, known, float_network, *more)

    monkeypatch.setattr(Evaluator, "score", notes)
    done = cli(*command)
    assert done.code == 0, done.err
    assert calls == [(2, True)]
    assert all((folder / f"variants/{key}.jsonl").read_text() == text for key, text in kept.items())
    with open("results/digits/table.csv") as handle:
        assert len({row["variant"] for row in csv.DictReader(handle)}) == 4


def test_the_float_network_is_evaluated_once_for_all(cli, tiny, monkeypatch):
    monkeypatch.setattr(training, "WRITE_EVERY", 2)
    whole, calls = Evaluator.score, []

    def notes(self, state, wanted, known, float_network=None, *more):
        calls.append(float_network is None)
        return whole(self, state, wanted, known, float_network, *more)

    monkeypatch.setattr(Evaluator, "score", notes)
    assert cli(*tiny, "bits=2,4,8", "-m").code == 0
    assert calls == [True, False]


def test_a_failure_leaves_its_traceback_in_a_file(prepared, capsys):
    one = prepared({})
    try:
        raise OSError("no space left")
    except OSError as error:
        failure(one, error)
    err = capsys.readouterr().err
    assert f"training {one.training} failed: OSError: no space left" in err and "Traceback" not in err
    assert "Traceback" in (one.folder / "traceback.txt").read_text()
