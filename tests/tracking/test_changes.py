import json
from dataclasses import replace

from qexp.base.text import Note
from qexp.config.outcome import Outcome
from qexp.tracking import rows
from qexp.tracking.changes import ChangeTracker, Point


def _names(points):
    return [(point.name, point.step, point.value) for point in points]


def test_metrics_of_a_record(record):
    changes = ChangeTracker().take([rows.record_row(record("W8", 3))])
    ((run, points),) = changes.points.items()
    assert run == "a1b2c3d4/keyW8"
    assert points[0] == Point("prec1", 83.0, 3, 1_000_003)
    assert [point.name for point in points] == ["prec1", "prec5", "loss", "delta_prec1", "kl", "logit_sqnr_db"]


def test_float_rows_belong_to_the_training(record):
    changes = ChangeTracker().take([rows.record_row(record("fp32", 1))])
    assert list(changes.points) == ["a1b2c3d4"]
    assert "kl" not in [point.name for point in changes.points["a1b2c3d4"]]


def test_a_reused_record_changes_nothing(record):
    tracker = ChangeTracker()
    first = record()
    assert tracker.take([rows.record_row(first)]).points
    assert not tracker.take([rows.record_row(replace(first, reused=True, time_ms=9_999_999))]).points


def test_new_values_are_added_at_their_time_and_old_ones_come_back(record):
    tracker = ChangeTracker()
    tracker.take([rows.record_row(record())])
    again = tracker.take([rows.record_row(record(prec1=50.0, time_ms=7))]).points["a1b2c3d4/keyW8"]
    assert again == [Point("prec1", 50.0, 1, 7)]
    back = tracker.take([rows.record_row(record(time_ms=8))]).points["a1b2c3d4/keyW8"]
    assert back == [Point("prec1", 81.0, 1, 8)]


def test_other_splits_have_their_own_names(record):
    points = ChangeTracker().take([rows.record_row(record("fp32", 1, split="select"))]).points["a1b2c3d4"]
    assert points[0].name == "select/prec1"


def test_non_finite_values_are_left_to_the_alarm(record):
    bad = record(loss=float("nan"), kl=float("inf"), alarms=("logits are not finite",))
    changes = ChangeTracker().take([rows.record_row(bad)])
    assert _names(changes.points["a1b2c3d4/keyW8"])[:2] == [("prec1", 1, 81.0), ("prec5", 1, 99.0)]
    assert {"loss", "kl"}.isdisjoint(point.name for point in changes.points["a1b2c3d4/keyW8"])
    assert changes.tags == {"a1b2c3d4/keyW8": {"qexp.alarms": "logits are not finite"}}


def test_what_corrections_did_is_a_tag(record):
    corrected = {"fold_bn": Outcome.of(1, [Note("bn2", "it is alone")])}
    changes = ChangeTracker().take([json.loads(json.dumps(rows.record_row(record(corrected=corrected))))])
    assert changes.tags == {"a1b2c3d4/keyW8": {"qexp.corrected": "fold_bn folded 1 of 2 batch norms: it is alone (bn2)"}}


def test_a_run_opened_after_its_end_stays_open(sweep):
    changes = ChangeTracker().take(sweep() + sweep(end=False))
    assert changes.ends == {}
    assert ChangeTracker().take(sweep()).ends.keys() == {"a1b2c3d4", "a1b2c3d4/keyW8", "a1b2c3d4/keyW4"}


def test_a_repeat_lasts_no_longer(record):
    def end(time_ms):
        return {"kind": "end", "run": "a1b2c3d4", "status": "FINISHED", "time_ms": time_ms}

    tracker = ChangeTracker()
    first = record("fp32", 1)
    assert tracker.take([rows.record_row(first), end(2_000)]).ends["a1b2c3d4"]["time_ms"] == 2_000
    repeated = replace(first, reused=True, time_ms=9_000)
    assert tracker.take([rows.record_row(repeated), end(9_001)]).ends["a1b2c3d4"]["time_ms"] == 2_000
    assert tracker.take([rows.record_row(record("fp32", 2)), end(9_500)]).ends["a1b2c3d4"]["time_ms"] == 9_500


def test_texts_are_sent_when_they_change(sweep):
    tracker = ChangeTracker()
    assert tracker.take(sweep()).texts == {"a1b2c3d4": {"config.yaml": "seed: 0\n"}}
    assert tracker.take(sweep()).texts == {}


def test_files_without_a_run_go_to_every_training(sweep):
    tracker = ChangeTracker()
    tracker.take(sweep() + sweep(training="ffff"))
    changes = tracker.take([rows.files_row(None, ["/a.png"]), rows.files_row("ffff", ["/b.png"])])
    assert changes.files == {"a1b2c3d4": ["/a.png"], "ffff": ["/b.png"]}


def test_the_same_rows_in_parts_give_the_same_points(sweep):
    everything = sweep(epochs=3) + sweep(epochs=3)
    whole = ChangeTracker().take(everything).points
    tracker, parts = ChangeTracker(), {}
    for row in everything:
        for run, points in tracker.take([row]).points.items():
            parts.setdefault(run, []).extend(points)
    assert parts == whole


def test_the_states_of_jobs_mean_nothing_to_mlflow(sweep):
    job = rows.job_row("s1", "key", "failed", reason="no", time_ms=99)
    tracker = ChangeTracker()
    assert tracker.take([job]) == ChangeTracker().take([])
    tracker.take([*sweep(), job])
    assert 99 not in tracker.last_ms.values()
