"""Profiles of activations, on values that are put in by hand."""

import math

import pytest
import torch
from torch import nn

from qexp.analysis.activations import profile_activations
from qexp.base.types import Plan, QuantSpec
from qexp.config.policy import PolicySettings
from qexp.config.quant import ActivationQuantSettings, QuantSettings
from qexp.nn.activation_points import activations
from qexp.nn.fake_quant import fake_quants, insert, observed
from qexp.nn.graph import trace
from qexp.nn.inventory import inventory
from qexp.policy.plan import make_plan

IMAGES = torch.tensor([-1.0, 0.4, 1.2, 2.0]).reshape(1, 1, 2, 2)


@pytest.fixture(scope="module")
def network():
    return nn.Sequential(nn.Flatten(), nn.Linear(4, 3)).eval()


def plan_of(network, **activation) -> Plan:
    points = activations(trace(network, IMAGES), layers_only=activation.get("dynamic", False))
    quant = QuantSettings(name="affine", activation=ActivationQuantSettings(bits=2, **activation))
    return make_plan(inventory(network, IMAGES), policy=PolicySettings(), quant=quant, bits=8, mode="int", activations=points)


def profiled(network, plan, ends=None):
    traced = trace(network, IMAGES)
    quantizers = fake_quants(insert(traced, plan))
    for quantizer in quantizers.values():
        if ends is not None:
            quantizer.set_range(*ends)
    dynamic = any(spec.dynamic for spec in plan.quantized_activations.values())
    ranges = dict.fromkeys(quantizers, "by hand")
    profiles = profile_activations(
        observed(traced, layers_only=dynamic), lambda: [IMAGES, IMAGES], plan.activations, quantizers, ranges
    )
    return profiles[0]


def test_an_activation_point_quantized_by_hand(network):
    """[-1, 2] at two bits has the levels -1, 0, 1, 2: errors 0.4 and 0.2."""
    tensor = profiled(network, plan_of(network), (-1.0, 2.0))
    assert tensor.num_values == 8 and tensor.is_activation and tensor.loss is None
    assert tensor.sqnr_db == pytest.approx(10 * math.log10((1 + 0.16 + 1.44 + 4) / 0.2), abs=1e-5)
    assert tensor.mse == pytest.approx(0.05)
    assert tensor.histogram.levels == (-1.0, 0.0, 1.0, 2.0)
    assert (tensor.grid_min, tensor.grid_max, tensor.saturation, tensor.ranges) == (-1.0, 2.0, 0.0, "by hand")


def test_values_beyond_the_range_are_counted(network):
    """Levels -1/3 to 2/3 in thirds: -1, 1.2 and 2 lie more than a sixth beyond, 0.4 within."""
    tensor = profiled(network, plan_of(network), (-1 / 3, 2 / 3))
    assert tensor.saturation == 0.75
    assert tensor.suggestion


def test_dynamic_ranges_hold_each_batch(network):
    tensor = profiled(network, plan_of(network, dynamic=True))
    assert tensor.saturation == 0.0 and tensor.grid_min is None and tensor.suggestion == ""
    assert tensor.mse == pytest.approx(0.05)


def test_the_spec_says_what_was_asked(network):
    assert plan_of(network).quantized_activations["input"] == QuantSpec(scheme="affine", bits=2)


def test_the_grid_of_a_minifloat_is_drawn(network):
    """[-1, 2] in e2m1: the scale is a third, the numbers 0, 0.5, 1, 1.5, 2, 3, 4, 6 of either sign."""
    settings = ActivationQuantSettings(scheme="minifloat", format="e2m1")
    quant = QuantSettings(name="affine", activation=settings)
    points = activations(trace(network, IMAGES))
    plan = make_plan(inventory(network, IMAGES), policy=PolicySettings(), quant=quant, bits=8, mode="int", activations=points)
    tensor = profiled(network, plan, (-1.0, 2.0))
    halves = [0, 0.5, 1, 1.5, 2, 3, 4, 6]
    assert tensor.histogram.levels == pytest.approx([*(-x / 3 for x in halves[:0:-1]), *(x / 3 for x in halves)])
    assert (tensor.grid_max, tensor.saturation, tensor.scheme) == (pytest.approx(2), 0.0, "minifloat e2m1")
    assert "closed form" in tensor.suggestion or tensor.suggestion.startswith("minmax")
    assert profiled(network, plan, (-0.5, 1.0)).saturation == 0.5  # 1.2 lies within half a step of 1
