"""Classes one by one, and what is predicted in place of what the float network says, against counting by hand."""

import numpy as np
import pytest

from qexp.reporting.frames.compared import Compared
from qexp.reporting.frames.predictions import Predictions
from qexp.reporting.statistics import classes as module
from qexp.reporting.statistics.classes import confusion, lost_most, per_class, worst_class, worst_delta
from qexp.stats.score import score_interval

LABEL = np.repeat([0, 1, 2], 20)


def network(variant, top1, reference=None, *, is_control=False):
    """A network that predicts these classes."""
    this, that = (None if top is None else Predictions(np.arange(60), LABEL, top, top == LABEL) for top in (top1, reference))
    named = {"training": "t", "label": "", "variant": variant, "variant_key": variant, "split": "test", "epoch": 1}
    return Compared(named, variant, this, that, is_control)


@pytest.fixture
def pair():
    """A float network that is wrong on half of class 0, and a copy that loses six images of class 2 to class 1 and gains one."""
    before = LABEL.copy()
    before[:10] = 1
    after = before.copy()
    after[40:46], after[0] = 1, 0
    return [network("fp32", before), network("W4 int", after, before)]


def test_each_class_by_hand_and_intervals_for_all_at_once(pair):
    frame = per_class(pair, ["cat", "dog"])
    assert len(frame) == 6
    copy = frame[frame["variant"] == "W4 int"].set_index("name")
    assert list(copy.index) == ["2", "dog", "cat"]  # by what they lost
    assert copy["prec1"].to_dict() == {"2": 70.0, "dog": 100.0, "cat": 55.0}
    assert copy["float_prec1"].to_dict() == {"2": 100.0, "dog": 100.0, "cat": 50.0}
    assert copy["delta_prec1"].to_dict() == {"2": -30.0, "dog": 0.0, "cat": 5.0}
    interval, alone = score_interval(6, 0, 20, level=1 - 0.05 / 3), score_interval(6, 0, 20)
    assert (copy.loc["2", "low"], copy.loc["2", "high"]) == pytest.approx((interval.low, interval.high))
    assert interval.low < alone.low and interval.high > alone.high


def test_the_worst_class_need_not_be_the_one_that_lost_most(pair):
    frame = per_class(pair, ["cat", "dog"])
    copy, of_float = (frame[frame["variant"] == name] for name in ("W4 int", "fp32"))
    assert (worst_class(copy), lost_most(copy), worst_delta(copy)) == ("cat", "2", -30.0)
    assert worst_class(of_float) == "cat" and lost_most(of_float) is None and np.isnan(worst_delta(of_float))


def test_confusion_counts_what_is_said_instead(pair):
    control = network("W4 float", np.zeros(60, dtype=int), pair[0].this.top1, is_control=True)
    matrix = confusion([*pair, control], ["cat", "dog"])
    assert matrix.counts.to_numpy().tolist() == [[10, 0, 0], [1, 29, 0], [0, 6, 14]]
    assert list(matrix.counts) == ["cat", "dog", "2"] and matrix.heading == "W4 int: 7 of 60 images are predicted otherwise"
    assert confusion(pair[:1], []) is None


def test_of_many_classes_those_with_most_changes_are_shown(pair, monkeypatch):
    monkeypatch.setattr(module, "MAX_CLASSES", 2)
    matrix = confusion(pair, [])
    assert list(matrix.counts) == ["1", "2"] and "the 2 of 3 classes" in matrix.heading


def test_a_nan_is_a_prediction_of_its_own(pair):
    lost = pair[1].this.top1.copy()
    lost[59] = -1
    assert list(confusion([network("W2 int", lost, pair[0].this.top1)], []).counts) == ["NaN", "0", "1", "2"]
