"""Rows of metrics: ours pass the trial that a user's must pass, and sums do not hang on order."""

import math
from dataclasses import replace

import pytest
import torch

from qexp.base.errors import UserError
from qexp.config.metrics import ALWAYS, METRICS, asked, described, restored
from qexp.engine.measures import measure, measures
from qexp.engine.metrics import check_metric, decibels

MEASURED = [row for row in METRICS.values() if row.in_record]
KL = METRICS["kl"]


@pytest.mark.parametrize("row", MEASURED, ids=lambda row: row.name)
@pytest.mark.parametrize("class_count", [2, 10])
def test_ours_pass_the_trial_of_a_users_own(row, class_count):
    check_metric(row, class_count=class_count)


@pytest.mark.parametrize("row", METRICS.values(), ids=lambda row: row.name)
def test_a_row_names_code_that_there_is_and_is_known_from_what_is_written_down(row):
    assert callable(METRICS.load(row.name))
    (again,) = restored(described([row]))
    assert replace(again, code=row.code, finish=row.finish) == row


@pytest.mark.parametrize(
    ("code", "said"),
    [
        (lambda logits, labels, reference: logits.sum(1, keepdim=True), r"shape \[8, 1\]"),
        (lambda logits, labels, reference: logits.argmax(1), "torch.int64"),
        (lambda logits, labels, reference: logits.sum(1) / 0, "not finite"),
        (lambda logits, labels, reference: logits.sum(1) * torch.rand(()), "other values for the same logits"),
        (lambda logits, labels, reference: (logits - logits.mean()).sum(1), "others of its batch"),
        (lambda logits, labels, reference: logits.mul_(2).sum(1), "other values|changed the logits"),
        (lambda logits, labels, reference: (logits.sum(1), logits.sum(1)), "2 values an image"),
        (lambda logits, labels: logits.sum(1), "TypeError"),
        (lambda logits, labels, reference: 3.0, "type float"),
    ],
)
def test_what_gives_no_value_per_image_is_refused(code, said):
    with pytest.raises(UserError, match=said):
        check_metric(replace(KL, name="mine", code=code))


def test_the_reference_is_given_to_what_needs_it_alone():
    given = []
    code = lambda logits, labels, reference: given.append(reference) or logits.sum(1)  # noqa: E731
    check_metric(replace(KL, code=code, needs_reference=False))
    assert given and all(one is None for one in given)


def test_sums_do_not_hang_on_order_and_survive_infinities():
    one = measure(replace(KL, code=lambda logits, labels, reference: logits))
    values = torch.tensor([1e16, 1.0, -1e16, 3.0], dtype=torch.float64)
    assert {one.total([values[order]]) for order in ([0, 1, 2, 3], [3, 2, 1, 0], [0, 2, 1, 3])} == {1.0}
    assert math.isnan(one.total([torch.tensor([math.inf, -math.inf])])) and one.total([torch.tensor([math.inf, 1.0])]) == math.inf


def test_decibels():
    assert decibels((100.0, 1.0), 5) == 20 and decibels((1.0, 0.0), 5) is None
    assert decibels((0.0, 1.0), 5) == -math.inf and math.isnan(decibels((math.nan, 1.0), 5))


def test_every_evaluation_has_the_same_and_what_is_asked_for_comes_behind():
    assert tuple(one.row for one in measures()) == ALWAYS == tuple(one.row for one in measures(["per_class"]))
    assert [row.name for row in asked(["per_class", "confusion"])] == ["per_class", "confusion"]
    for names in (["per_class", "per_class"], ["prec1"], ["worst_class"]):
        with pytest.raises(UserError, match="evaluate.metrics"):
            asked(names)
