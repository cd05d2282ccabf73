import json
import math
from dataclasses import replace

import pytest
import torch

from qexp.engine import predictions
from qexp.experiment.evaluator import Evaluator
from qexp.experiment.recorder import Recorder
from qexp.sweep.jobs import JobLog, ask_for


@pytest.fixture
def merged(prepared):
    return prepared({"bits": 4}, {"bits": 8})


@pytest.fixture
def scored(merged):
    return Evaluator(merged, torch.device("cpu")).score(merged.network().state_dict(), merged.variants, {})


@pytest.fixture
def open_recorder(sweep):
    def make(merged, notify=lambda: None):
        recorder = Recorder(merged, sweep, "cpu", notify)
        recorder.begin()
        return recorder

    return make


def kinds(recorder):
    return [row["kind"] for row in recorder.journal.rows()]


def test_a_new_sweep_opens_a_run_per_variant(merged, open_recorder):
    recorder = open_recorder(merged)
    sweep, *runs = recorder.journal.rows()
    assert (sweep["kind"], sweep["sweep"]) == ("sweep", "s1")
    assert [row["run"] for row in runs] == [merged.training, *(f"{merged.training}/{v.key}" for v in merged.variants[1:])]
    assert [row["parent"] for row in runs] == [None, merged.training, merged.training]
    assert [row["name"] for row in runs][1:] == ["W4 int", "W8 int"]
    parent, nested = runs[0], runs[1]
    assert parent["params"].items() <= {**nested["params"]}.items()
    assert (
        nested["params"]["bits"] == 4
        and nested["params"]["train.lr"] == 0.05
        and nested["params"]["quant.weight.rounding"] == "half_even"
    )
    assert "bits" not in parent["params"]
    assert nested["planned_epochs"] == 1
    for tag in (
        "qexp.sweep",
        "qexp.command",
        "qexp.data_hash",
        "qexp.plan_hash",
        "qexp.device",
        "qexp.host",
        "qexp.git",
        "qexp.version.torch",
    ):
        assert nested["tags"][tag]
    assert len(json.loads(nested["artifacts"]["plan.json"])) == len(merged.tensors)
    assert json.loads(parent["artifacts"]["config.json"])["data"]["name"] == "digits"


def test_records_are_written_once_and_told(merged, open_recorder, scored):
    calls = []
    recorder = open_recorder(merged, lambda: calls.append(1))
    assert recorder.missing(1) == list(merged.variants)
    records = recorder.write(1, scored, last=True)
    assert calls == [1] and recorder.missing(1) == []
    assert recorder.missing(2) == list(merged.variants)
    assert [record.variant for record in records] == ["fp32", "W4 int", "W8 int"]
    assert [record.bits for record in records] == [32, 4, 8]
    assert records[0].delta_prec1 == 0 and records[0].kl is None
    assert records[1].delta_prec1 == pytest.approx(records[1].prec1 - records[0].prec1)
    assert records[1].plan_hash == merged.variants[1].plan.hash
    assert recorder.digests(1) == {item.variant.key: item.evaluation.digest for item in scored}
    recorder.write(1, scored, last=True)
    assert kinds(recorder).count("record") == 3


def test_what_is_stored_is_brought_in_once(merged, open_recorder, scored):
    open_recorder(merged).write(1, scored, last=True)
    again = open_recorder(merged)
    assert again.missing(1) == []
    assert kinds(again).count("record") == 3
    other = Recorder(replace(merged, config=replace(merged.config, name="other")), again.sweep, "cpu")
    for _ in range(2):
        other.begin()
        records = [row for row in other.journal.rows() if row["kind"] == "record"]
        assert len(records) == 3
    assert all(row["reused"] and row["experiment"] == "other" for row in records)
    mine = [row for row in again.journal.rows() if row["kind"] == "record"]
    assert [row["prec1"] for row in records] == [row["prec1"] for row in mine]
    assert [row["time_ms"] for row in records] == [row["time_ms"] for row in mine]


def test_evaluations_of_another_size_do_not_hide_each_other(prepared, open_recorder, scored, merged):
    small = prepared({"bits": 4, "evaluate.num_images": 50}, {"bits": 8, "evaluate.num_images": 50})
    assert small.training == merged.training
    few = Evaluator(small, torch.device("cpu")).score(small.network().state_dict(), small.variants, {})
    elsewhere = replace(merged, config=replace(merged.config, name="elsewhere"))
    open_recorder(elsewhere).write(1, scored, last=True)
    open_recorder(small).write(1, few, last=True)
    recorder = open_recorder(merged)
    rows = [row for row in recorder.journal.rows() if row["kind"] == "record"]
    assert sorted(row["n"] for row in rows) == [50, 50, 50, 360, 360, 360]


def test_a_training_done_afresh_elsewhere_replaces_its_numbers(merged, open_recorder, scored, monkeypatch):
    open_recorder(merged).write(1, scored, last=True)
    for file in (merged.folder / "variants").glob("*.jsonl"):
        row = json.loads(file.read_text())
        file.write_text(json.dumps({**row, "prec1": 12.5, "time_ms": row["time_ms"] + 5}) + "\n")
    last = [row for row in open_recorder(merged).journal.rows() if row["kind"] == "record"][-3:]
    assert [row["prec1"] for row in last] == [12.5] * 3


@pytest.mark.parametrize("keep, kept", [("none", (False, False)), ("last", (False, True)), ("all", (True, True))])
def test_predictions_are_kept_as_asked(prepared, open_recorder, keep, kept):
    merged = prepared({"evaluate.keep": keep})
    scored = Evaluator(merged, torch.device("cpu")).score(merged.network().state_dict(), merged.variants, {})
    recorder = open_recorder(merged)
    for epoch, expected in enumerate(kept, 1):
        for record in recorder.write(epoch, scored, last=epoch == 2):
            assert (record.predictions is not None) == expected
            if expected:
                found = predictions.load(merged.folder / record.predictions)
                assert 100 * found.right.double().mean() == pytest.approx(record.prec1)


def test_numbers_that_are_not_finite_survive(prepared, open_recorder):
    merged = prepared({})
    state = merged.network().state_dict()
    state["5.bias"][0] = math.nan
    scored = Evaluator(merged, torch.device("cpu")).score(state, merged.variants, {})
    open_recorder(merged).write(1, scored, last=False)
    again = open_recorder(merged)
    assert again.missing(1) == []
    record = next(row for row in again.journal.rows() if row["kind"] == "record")
    assert math.isnan(record["loss"]) and record["alarms"] == ["non-finite logits"]


def test_added_alarms_replace_each_other_and_leave_those_of_the_evaluation(prepared, open_recorder):
    merged = prepared({})
    scored = Evaluator(merged, torch.device("cpu")).score(merged.network().state_dict(), merged.variants, {})
    own, variant = "export: a word that an alarm may begin with", merged.variants[0]
    open_recorder(merged).write(1, [replace(scored[0], alarms=(own,)), *scored[1:]], last=False)
    for added in (["export: one", "export: two"], ["export: three"], ["export: three"], []):
        recorder = open_recorder(merged)
        recorder.add_alarms(variant, 1, added)
        assert recorder.stored(variant, 1)["alarms"] == [own, *added]
    last = [row for row in recorder.journal.rows() if row["kind"] == "record" and row["variant_key"] == variant.key][-1]
    assert last["alarms"] == [own]
    assert len((merged.folder / "variants" / f"{variant.key}.jsonl").read_text().splitlines()) == 4  # one was there already


def test_runs_end(merged, open_recorder):
    recorder = open_recorder(merged)
    recorder.training_metrics(1, {"train_loss": 2.0})
    recorder.end("FAILED")
    metrics, *ends = list(recorder.journal.rows())[-4:]
    assert metrics["run"] == merged.training and metrics["values"] == {"train_loss": 2.0}
    assert [row["status"] for row in ends] == ["FAILED"] * 3


@pytest.mark.parametrize(
    "status, state, known",
    [
        ("FINISHED", "done", "FINISHED"),
        ("FAILED", "failed", "FAILED"),
        ("KILLED", "killed", "KILLED"),
        ("PREEMPTED", "preempted", "KILLED"),
    ],
)
def test_jobs_end_as_their_runs_do(merged, job, sweep, status, state, known):
    recorder = Recorder(merged, sweep, "cpu", note_jobs=JobLog(ask_for([job({"bits": 4}), job({"bits": 8})]), sweep).note)
    recorder.begin()
    recorder.end(status, OSError("no space"))
    rows = list(recorder.journal.rows())
    assert [row["status"] for row in rows if row["kind"] == "end"] == [known] * 3
    reason = "OSError: no space" if status == "FAILED" else None
    told = [(row["state"], row["reason"]) for row in rows if row["kind"] == "job"]
    assert told == [("running", None)] * 2 + [(state, reason)] * 2
