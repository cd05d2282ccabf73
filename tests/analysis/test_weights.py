"""Profiles of weights and scores, against their definitions."""

import math

import pytest
import torch

from qexp.analysis.scores import class_scores
from qexp.analysis.weights import profile_weights
from qexp.base.types import Plan, PlanRow, QuantSpec, TensorInfo


def row(name, shape, spec, order=0):
    info = TensorInfo(
        name=name, module=name, module_type="Linear", kind="linear", role="weight", shape=shape, dtype="float32", order=order
    )
    return PlanRow(info, spec, "some rule")


def test_a_tensor_quantized_by_hand():
    """[-1, 2] at two bits has the levels -1, 0, 1, 2: 0.4 becomes 0 and 1.2 becomes 1, errors 0.16 and 0.04."""
    spec = QuantSpec(scheme="affine", bits=2)
    plan = Plan(rows=(row("a", (4,), spec), row("b", (1,), None)))
    before, after = torch.tensor([-1.0, 0.4, 1.2, 2.0]), torch.tensor([-1.0, 0.0, 1.0, 2.0])
    (tensor,) = profile_weights({"a": before}, {"a": after}, plan, {}, ranges="minmax", sizes={"a": 9}, size_bytes=36)
    assert tensor.loss == pytest.approx(0.2) and tensor.mse == pytest.approx(0.05)
    assert tensor.sqnr_db == pytest.approx(10 * math.log10((1 + 0.16 + 1.44 + 4) / 0.2), abs=1e-5)
    assert (tensor.minimum, tensor.maximum) == (-1.0, 2.0)
    assert (tensor.grid_min, tensor.grid_max, tensor.scale_min, tensor.scale_max) == (-1.0, 2.0, 1.0, 1.0)
    assert tensor.saturation == 0.0 and tensor.size_share == 0.25
    assert tensor.histogram.levels == (-1.0, 0.0, 1.0, 2.0)
    assert (tensor.rule, tensor.ranges) == ("some rule", "minmax")


def test_clipped_weights_are_counted():
    x = torch.cat([torch.zeros(98), torch.tensor([-10.0, 10.0])])
    spec = QuantSpec(scheme="affine", bits=8)
    limits = {"a": (torch.tensor(-1.0), torch.tensor(1.0))}
    (tensor,) = profile_weights(
        {"a": x}, {"a": x.clamp(-1, 1)}, Plan(rows=(row("a", (100,), spec),)), limits, ranges="mse", sizes={"a": 1}, size_bytes=1
    )
    assert tensor.saturation == pytest.approx(0.02) and tensor.zero_share == pytest.approx(0.98)


def test_a_constant_tensor_says_so():
    x = torch.full((3,), 0.5)
    plan = Plan(rows=(row("a", (3,), QuantSpec(scheme="linear", bits=4)),))
    (tensor,) = profile_weights({"a": x}, {"a": x}, plan, {}, ranges="minmax", sizes={"a": 1}, size_bytes=1)
    assert tensor.note == "constant, left unquantized"
    assert tensor.sqnr_db is None and tensor.saturation is None and tensor.loss == 0.0


def test_tensors_come_in_the_order_of_the_network():
    spec = QuantSpec(scheme="affine", bits=4)
    plan = Plan(rows=(row("late", (2,), spec, order=5), row("early", (2,), spec, order=1)))
    x = {"late": torch.tensor([0.0, 1.0]), "early": torch.tensor([0.0, 2.0])}
    profiles = profile_weights(x, x, plan, {}, ranges="minmax", sizes={"late": 1, "early": 1}, size_bytes=2)
    assert [tensor.name for tensor in profiles] == ["early", "late"]


def test_scores_list_the_first_of_both():
    before, after = torch.tensor([4.0, 3, 2, 1, 0, -1, -2]), torch.tensor([0.0, 3, 2, 1, -9, -1, 5])
    scores = class_scores(before, after, list("abcdef"))
    assert [score.name for score in scores] == ["a", "b", "c", "d", "e", "6"]
    assert [(score.rank_before, score.rank_after) for score in scores] == [(1, 5), (2, 2), (3, 3), (4, 4), (5, 7), (7, 1)]
    assert scores[0].before == pytest.approx(math.exp(4) / sum(math.exp(x) for x in before.tolist()))
    assert sum(score.before for score in class_scores(before, after, [], count=7)) == pytest.approx(1.0)
