"""`evaluate.until=decided` on a small network: it stops where its test does, says so, and mixes with nothing."""

from pathlib import Path

import pandas as pd
import pytest

from qexp.base import dist
from qexp.base.errors import UserError, UserErrors
from qexp.config.train import EvaluateSettings
from qexp.data.splits import permuted
from qexp.experiment import racing
from qexp.experiment.data_checks import check_evaluation
from qexp.reporting.frames.predictions import load_predictions
from qexp.reporting.notebook import load
from qexp.reporting.report import write_report
from qexp.reporting.statistics.paired import wilson_ends
from qexp.reporting.statistics.verify import verify_tables
from qexp.stats.noninferiority import MARGIN
from qexp.stats.sequential import Sequential, different, non_inferior
from qexp.sweep.check import check

BLOCK = 20


def table(name):
    return pd.read_csv(f"results/{name}/table.csv").set_index("bits")


@pytest.fixture(scope="module")
def place(tmp_path_factory, cli, tiny):
    """A folder with a trained network, its copies on all images (`full`), and until decided (`raced`)."""
    folder = tmp_path_factory.mktemp("raced")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert cli(*tiny, "name=start", "float_only=true").code == 0
        (checkpoint,) = Path("runs/trainings").glob("*/epochs/*.safetensors")
        command = (*(text for text in tiny if not text.startswith("train=")), f"checkpoint={checkpoint}", "bits=1,2,8", "-m")
        command = (*command, f"evaluate.batch_size={BLOCK}")
        assert cli(*command, "name=full", verb="evaluate").code == 0
        done = cli(*command, "name=raced", "evaluate.until=decided", "evaluate.margin=5", verb="evaluate")
        assert done.code == 0, done.out + done.err
    return folder, command


@pytest.fixture(autouse=True)
def _there(place, monkeypatch):
    monkeypatch.chdir(place[0])


def counts(name, bits):
    """(n10, n01, n) of each block of the full evaluation, in the order in which a race takes them."""
    records = load(name)
    stored = load_predictions(records, "runs")
    right = {row.bits: stored.by_key[key].right for row, key in zip(records.itertuples(), stored.by_key, strict=True)}
    order = permuted(len(right[32]), racing.DRAW).numpy()
    before, after = right[32][order], right[bits][order]
    for first in range(0, len(order), BLOCK):
        a, b = before[first : first + BLOCK], after[first : first + BLOCK]
        yield int((a & ~b).sum()), int((~a & b).sum()), len(a)


@pytest.mark.parametrize("bits", [1, 2, 8])
def test_it_stops_where_the_test_does_on_the_same_images(bits):
    raced, size = table("raced").loc[bits], int(table("full").loc[bits, "n"])
    seen = non_inferior(5.0).run(counts("full", bits))
    assert (raced["n"], raced["num_planned"], raced["until"]) == (seen.n, size, "loss of 5 points")
    assert raced["decided"] == racing.sentence(EvaluateSettings(until="decided", margin=5.0), seen, size)
    assert raced["delta_prec1"] == pytest.approx(seen.difference)
    assert raced["variant"].endswith(racing.WORD) and raced["decided"] in raced["notes"]


def test_some_stop_early_and_the_float_network_does_not():
    raced, full = table("raced"), table("full")
    assert raced.loc[1, "n"] < raced.loc[32, "n"] == full.loc[32, "n"]
    assert raced.loc[1, "decided"].startswith("loses more than 5 points, after ")
    assert raced.loc[32, "prec1"] == full.loc[32, "prec1"] and pd.isna(raced.loc[32, "decided"])
    assert not {*raced["variant_key"]} & {*full["variant_key"]}


def test_no_test_of_a_fixed_number_of_images_is_made_of_them():
    raced = table("raced").drop(index=32)
    assert raced[["p_value", "ci_low", "prec1_low", "p_loss", "non_inferior"]].isna().all(axis=None)
    ends = wilson_ends(load("raced").set_index("bits"))
    assert (ends["low"] < ends["high"]).to_dict() == {1: False, 2: False, 8: False, 32: True}
    text = Path("results/raced/table.md").read_text()
    assert "a test stopped its evaluation" in text and "loses more than 5 points" in text
    assert table("full").drop(index=32)["p_value"].notna().all()


def test_asked_again_nothing_is_scored(place, cli):
    before = {path: path.read_bytes() for path in Path("runs/checkpoints").rglob("*.jsonl")}
    done = cli(*place[1], "name=raced", "evaluate.until=decided", "evaluate.margin=5", verb="evaluate")
    assert done.code == 0 and "nothing to do" in done.out
    assert {path: path.read_bytes() for path in Path("runs/checkpoints").rglob("*.jsonl")} == before


def test_full_rows_and_stopped_ones_share_no_table(place, cli):
    command = [text for text in place[1] if not text.startswith("bits=")]
    done = cli(*command, "bits=4", "name=both", verb="evaluate")
    assert done.code == 0
    done = cli(*command, "bits=2", "name=both", "evaluate.until=decided", "evaluate.margin=null", verb="evaluate")
    assert "no comparison" in done.out and "until difference" in done.out
    write_report("both", runs_dir="runs", results_dir="results", mixed=True)
    assert len({*table("both")["protocol"]}) == 2


def test_the_words():
    def said(margin, verdict, n):
        seen = Sequential(verdict=verdict, n=n, n10=3, n01=1, p_above=1.0, p_below=1.0)
        return racing.sentence(EvaluateSettings(until="decided", margin=margin), seen, 100).partition(",")[0]

    assert said(0.5, "above", 40) == "loses less than 0.5 points" and said(None, "below", 40) == "worse than the float network"
    assert said(None, "open", 100) == "undecided"
    assert racing.test_of(EvaluateSettings(until="decided", margin=None)) == different()
    assert racing.test_of(EvaluateSettings(until="decided")) == non_inferior(MARGIN)


def test_refused_where_it_means_nothing(job, prepared, monkeypatch):
    with pytest.raises(UserErrors, match=r"null in qexp\.train"):
        check([job({"evaluate.until": "decided"})], "train")
    with pytest.raises(UserError, match="image by image"):
        EvaluateSettings(until="decided", across="preprocessing")
    monkeypatch.setattr(dist, "world_size", lambda: 2)
    config = job({"evaluate.until": "decided"})
    merged = prepared()
    object.__setattr__(merged.config, "evaluate", EvaluateSettings(**config["evaluate"]))
    with pytest.raises(UserError, match="several processes"):
        check_evaluation(merged.config, merged.bundle)


def test_what_was_written_is_what_a_check_finds():
    checked = verify_tables("raced", runs_dir="runs", results_dir="results")
    assert not checked.wrong
