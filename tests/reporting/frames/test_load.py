import pandas as pd
import pytest

from qexp.base.errors import UserError
from qexp.base.label import Label
from qexp.reporting.frames.jobs import load_jobs
from qexp.reporting.frames.load import _labelled_data, load_records, load_sweeps, training_labels
from qexp.tracking.journal import journal_path


def test_one_row_per_variant_and_epoch(write, training):
    rows = training(["W8 int", "W4 int"])
    frame = load_records("exp", write(rows, rows))
    assert len(frame) == 3 * 8
    assert not frame.duplicated(["run", "epoch"]).any()
    assert set(frame["data"]) == {"mnist5k"} and set(frame["model"]) == {"resnet20"}
    assert list(frame["planned_epochs"].unique()) == [8]


def test_the_last_row_wins_but_a_reused_one_keeps_the_time(write, record):
    first = record(prec1=90.0, time_ms=5)
    again = record(prec1=91.0, time_ms=9)
    reused = record(prec1=91.0, time_ms=99, reused=True)
    frame = load_records("exp", write([first, again, reused]))
    assert frame[["prec1", "time_ms", "reused"]].values.tolist() == [[91.0, 9, True]]
    frame = load_records("exp", write([record(time_ms=7, reused=True)]))
    assert frame["time_ms"].tolist() == [7]


def test_other_splits_and_sizes_are_other_measurements(write, record):
    rows = [record("fp32"), record("fp32", split="select"), record("fp32", n=500)]
    assert len(load_records("exp", write(rows))) == 3


def test_a_later_version_of_the_evaluator_replaces_an_earlier_one(write, record):
    old = [record(epoch=epoch, variant_key="old", prec1=50.0) for epoch in (1, 2)]
    new = [record(epoch=epoch, variant_key="new", prec1=97.0) for epoch in (1, 2)]
    frame = load_records("exp", write(old, new))
    assert frame["prec1"].tolist() == [97.0, 97.0]


def test_two_plans_under_one_label_are_told_apart(write, record):
    frame = load_records("exp", write([record(plan_hash="abcdef99"), record(variant_key="other", plan_hash="123456ff")]))
    assert frame["variant"].tolist() == ["W8 int #abcdef", "W8 int #123456"]


def test_differing_params_are_columns(write, training):
    slow = training(["W8 int"], training="bb" * 8, params={"train.lr": 0.01, "data.root": "/elsewhere"})
    frame = load_records("exp", write(training(["W8 int"], params={"policy.edge_bits": 8}), slow))
    assert {column for column in frame if column.startswith("param.")} == {"param.train.lr", "param.data.root"}
    assert dict(zip(frame["label"], frame["param.train.lr"], strict=True)) == {"lr=0.1": 0.1, "lr=0.01": 0.01}


def test_a_variant_without_its_run_row_still_loads(write, record):
    frame = load_records("exp", write([record()]))
    assert frame["label"].tolist() == ["a1b2c3"] and frame["planned_epochs"].isna().all()


def test_non_finite_losses_survive(write, record):
    frame = load_records("exp", write([record(loss=float("nan"), kl=float("inf"))]))
    assert frame["loss"].isna().all() and frame["kl"].tolist() == [float("inf")]


@pytest.mark.parametrize(
    ("params", "labels"),
    [
        ([{"seed": 0}], [("aa0000", "aa0000")]),
        ([{"seed": 0}, {"seed": 1}], [("seed=0", ""), ("seed=1", "")]),
        ([{"seed": 0, "train.lr": 0.1}, {"seed": 1, "train.lr": 0.1}, {"seed": 0, "train.lr": 0.01}],
         [("lr=0.1 seed=0", "lr=0.1"), ("lr=0.1 seed=1", "lr=0.1"), ("lr=0.01 seed=0", "lr=0.01")]),
        ([{"model.name": "resnet20"}, {"model.name": "resnet32"}], [("model=resnet20",) * 2, ("model=resnet32",) * 2]),
        ([{"data.name": "a", "data.std": 1}, {"data.name": "b", "data.std": 2}], [("data=a", "data=a"), ("data=b", "data=b")]),
        ([{"bits": 4, "data.root": "/x"}, {"bits": 8, "data.root": "/y"}], [("aa0000", "aa0000"), ("bb1111", "bb1111")]),
        ([{"train.nesterov": True}, {"train.nesterov": False}], [("nesterov=true",) * 2, ("nesterov=false",) * 2]),
        ([{"model.weights": "/a/b.pt"}, {"model.weights": None}], [("weights=b.pt",) * 2, ("weights=null",) * 2]),
        ([{"train.size": 1, "data.size": 1}, {"train.size": 2, "data.size": 2}],
         [("data.size=1 train.size=1",) * 2, ("data.size=2 train.size=2",) * 2]),
    ],
)  # fmt: skip
def test_labels(params, labels):
    hashes = ["aa0000ffff", "bb1111ffff", "cc2222ffff"]
    assert list(training_labels(dict(zip(hashes, params, strict=False))).values()) == labels


def test_sweeps_are_listed_once(write, training):
    runs_dir = write(training(["W8 int"]))
    assert [sweep["sweep"] for sweep in load_sweeps("exp", runs_dir)] == ["s1"]


def test_unknown_name(write, training):
    runs_dir = write(training(["W8 int"]), name="mnist5k")
    with pytest.raises(UserError, match=r"name=mnist: allowed is one of mnist5k. Did you mean mnist5k\?"):
        load_records("mnist", runs_dir)


def test_nothing_evaluated(write):
    frame = load_records("exp", write([]))
    assert frame.empty and "prec1" in frame


def test_a_label_is_what_was_stored_in_parts_and_of_old_rows_what_its_text_says(write, record):
    parts = {"way": "lsq", "weights": [4], "activations": [8], "words": ["e8"]}
    frame = load_records("exp", write([record(), record("W4 int", named=parts), record("W2 int")]))
    assert list(frame["named"]) == [Label("int", (8,)), Label("lsq", (4,), (8,), ("e8",)), Label("int", (2,))]


def test_a_variant_is_called_by_what_was_done_in_its_last_epoch(write, record):
    told = ((2, "W8 int absorb_bias"), (1, "W8 int a1b2"))
    rows = [record(label, epoch, run="a1b2c3/key", variant_key="key", plan_hash="p") for epoch, label in told]
    frame = load_records("exp", write(rows))
    assert frame["variant"].tolist() == ["W8 int absorb_bias"] * 2


def test_damaged_rows_are_left_out_of_a_report(write, training):
    runs_dir = write(training(["W8 int"], epochs=1))
    path = journal_path(runs_dir, "exp")
    before = load_records("exp", runs_dir)
    with path.open("a") as handle:
        handle.write("".join(f"{text}\n" for text in ("{}", '{"run": "a"}', "[]", '{"kind": null}', '{"kind": "end"}')))
    assert load_records("exp", runs_dir).equals(before) and len(load_jobs("exp", runs_dir)) == 0
    assert len(load_sweeps("exp", runs_dir)) == 1


def test_data_sets_of_one_label_have_their_names_too():
    frame = pd.DataFrame({"training": ["a", "b", "c", "d"], "data": ["digits", "mnist", "mnist5k", "fake"]})
    runs = {"a": {"data_label": "ours"}, "b": {"data_label": "ours"}, "c": {"data_label": "mine"}, "d": {}}
    assert _labelled_data(frame, runs) == ["ours (digits)", "ours (mnist)", "mine", "fake"]
