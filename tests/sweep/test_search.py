"""`hydra/sweeper=optuna`: trials are jobs, a study goes on where it stopped, and what it cannot be asked for is refused."""

import csv
from pathlib import Path

import pytest

from qexp.config.sweeper import search_settings
from qexp.tracking.journal import Journal

pytest.importorskip("optuna", reason="needs optuna: pip install 'qexp[search]'")
SELECT = ("-m", "hydra/sweeper=optuna", "data.num_select=300", "evaluate.split=select")
SPACE = ("bits=2,3,4,6,8", "quant.weight.granularity=per_tensor,per_channel")


@pytest.fixture
def search(cli, tiny):
    """Run a search; returns its output and the lines of `search.csv`."""

    def run(*words, runs="runs"):
        done = cli(*tiny, *SELECT, *SPACE, "draw_figures=false", "tracking.enabled=false", f"runs_dir={runs}", *words)
        assert done.code == 0, done.err
        return done.out, list(csv.DictReader(Path("results/digits/search.csv").read_text().splitlines()))

    return run


def test_trials_are_jobs_and_those_that_none_beats_are_listed(search):
    out, lines = search("hydra.sweeper.trials=6", "hydra.sweeper.batch=3")
    assert len(lines) == 6 and "6 trials; of prec1 and size_bytes on split select no other beats:" in out
    points = [(float(line["prec1"]), int(float(line["size_bytes"]))) for line in lines]
    for line, (prec1, size) in zip(lines, points, strict=True):
        beaten = any(p >= prec1 and s <= size and (p, s) != (prec1, size) for p, s in points)
        assert (line["best"] == "False") == beaten, line
        assert line["variant"].startswith(f"W{line['bits']} int") and line["n"] == "300"
    records = {row["variant_key"]: row for row in Journal(Path("runs/journal/digits.jsonl")).rows() if row["kind"] == "record"}
    for line in lines:
        assert records[line["variant_key"]]["prec1"] == float(line["prec1"])
    assert len(list(Path("runs/trainings").iterdir())) == 1, "one training serves all trials"


def test_a_search_goes_on_as_an_undisturbed_one(search):
    import optuna

    words = ("hydra.sweeper.batch=2", "hydra.sweeper.seed=3")
    _, whole = search("hydra.sweeper.trials=4", *words, runs="whole")
    search("hydra.sweeper.trials=2", *words)
    _, resumed = search("hydra.sweeper.trials=4", *words)
    picked = [[(line["bits"], line["quant.weight.granularity"], line["prec1"]) for line in lines] for lines in (whole, resumed)]
    assert sorted(picked[0]) == sorted(picked[1])
    # A process that was killed leaves a trial open: it counts for nothing, and another takes its place.
    (name,) = optuna.get_all_study_names("sqlite:///runs/optuna.db")
    optuna.load_study(study_name=name, storage="sqlite:///runs/optuna.db").ask()
    _, more = search("hydra.sweeper.trials=5", *words)
    states = [trial.state.name for trial in optuna.load_study(study_name=name, storage="sqlite:///runs/optuna.db").trials]
    assert len(more) == 5 and sorted(states) == ["COMPLETE"] * 5 + ["FAIL"]


def test_a_combination_that_is_not_possible_fails_alone(cli, tiny):
    words = ("train.epochs=2,1", "train.warmup_epochs=0,2", "hydra.sweeper.trials=3", "hydra.sweeper.batch=2")
    done = cli(
        *tiny, *SELECT, *words, "train.schedule=constant", "draw_figures=false", "tracking.enabled=false", "hydra.sweeper.seed=1"
    )
    assert done.code == 1 and "is not possible: train.warmup_epochs=2" in done.err
    lines = list(csv.DictReader(Path("results/digits/search.csv").read_text().splitlines()))
    assert len(lines) == 3 and ("1", "2") not in {(line["train.epochs"], line["train.warmup_epochs"]) for line in lines}
    assert all(line["epoch"] == line["train.epochs"] for line in lines), "the last epoch counts"


REFUSED = [
    (("bits=2,4", "evaluate.split=test"), ["evaluate.split=test", "confirm on test"]),
    (("bits=4",), ["hydra/sweeper=optuna", "no key has several values"]),
    (("bits=2,17",), ["bits=17", "an integer from 1 to 16"]),
    (("bits=2,4", "hydra.sweeper.trails=3"), ["hydra.sweeper.trails=3", "Did you mean trials?"]),
    (("bits=2,4", "hydra.sweeper.objectives=[prec2]"), ["hydra.sweeper.objectives=prec2", "prec1"]),
    (("bits=2,4", "cases=[['mode=int']]"), ["cases", "null with hydra/sweeper=optuna"]),
    (("bits=2,4", "fresh=true"), ["fresh", "false with hydra/sweeper=optuna"]),
    (("bits=2,4", "hydra.sweeper.objectives=prec1,loss"), ["hydra.sweeper.objectives", "a list: [prec1,loss]"]),
    (("experiment=document_002_small", "seed=0,1"), ["hydra.sweeper.params", "Type it: bits="]),
]


@pytest.mark.parametrize("words, parts", REFUSED, ids=[" ".join(words) for words, _ in REFUSED])
def test_what_cannot_be_searched_is_refused(cli, tiny, words, parts):
    done = cli(*tiny, *SELECT, *words)
    assert done.code == 2 and all(part in done.err for part in parts), done.err
    assert not Path("runs/optuna.db").exists() and not Path("runs/trainings").exists()


def test_other_commands_have_no_trials(cli, tiny):
    done = cli(*tiny, *SELECT, "task=profile", "bits=2,4", verb="analyze")
    assert done.code == 2 and "basic in qexp.analyze and qexp.export" in done.err


def test_directions_are_of_the_objectives():
    assert search_settings({"name": "optuna", "objectives": ["kl", "prec5"]}).directions == ["minimize", "maximize"]
