"""Fake quantization of activations: torch's values bit for bit, in place and not, and a network that computes with them alone."""

import copy

import pytest
import torch

from qexp.base.errors import UserError
from qexp.base.types import QParams, QuantSpec
from qexp.nn.activation_points import activations
from qexp.nn.fake_quant import CONTAINER, Observed, fake_quants, insert, observed, observing
from qexp.nn.fake_quantize import FakeQuantize, range_qparams
from qexp.nn.graph import trace
from qexp.nn.shadow import Shadow
from qexp.quant.affine import fake_quantize_affine


def spec(**fields):
    return QuantSpec(**{"scheme": "affine", "bits": 8, **fields})


def module(low, high, **fields):
    fake_quant = FakeQuantize("point", spec(**fields), None)
    fake_quant.set_range(low, high)
    return fake_quant


def values(seed=0, shape=(3, 4, 7, 5)):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * 3


@pytest.mark.parametrize("bits", [2, 4, 8, 16])
@pytest.mark.parametrize("scheme", ["affine", "symmetric", "symmetric_restricted", "unsigned_symmetric"])
def test_torchs_values_bit_for_bit(bits, scheme):
    x = values()
    fake_quant = module(-2.5, 4.0, bits=bits, scheme=scheme)
    # Ties among them: exact multiples of half a step.
    x = torch.cat([x.flatten(), fake_quant.scale * (torch.arange(-600, 600) / 2)])
    limits = (fake_quant.quant_min, fake_quant.quant_max)
    expected = torch.fake_quantize_per_tensor_affine(x, float(fake_quant.scale), int(fake_quant.zero_point), *limits)
    assert torch.equal(fake_quant(x), expected)


def test_per_channel_is_torchs_too():
    x = values()
    fake_quant = FakeQuantize("point", spec(granularity="per_channel", axis=1), 4)
    fake_quant.set_range(x.amin((0, 2, 3)), x.amax((0, 2, 3)))
    expected = torch.fake_quantize_per_channel_affine(x, fake_quant.scale, fake_quant.zero_point.int(), 1, -128, 127)
    for form in (torch.contiguous_format, torch.channels_last):
        assert torch.equal(fake_quant(x.contiguous(memory_format=form)), expected)


@pytest.mark.parametrize("fields", [{"arithmetic": "divide"}, {"rounding": "floor"}, {"mode": "float"}], ids=str)
def test_the_named_steps_are_affines(fields):
    x, fake_quant = values(), module(-2.5, 4.0, **fields)
    rounding = None if fields.get("mode") == "float" else fields.get("rounding", "half_even")
    arithmetic = fields.get("arithmetic", "reciprocal")
    assert torch.equal(fake_quant(x), fake_quantize_affine(x, fake_quant.qparams, rounding=rounding, arithmetic=arithmetic))


def test_in_place_or_not_is_the_same_and_keeps_the_format():
    x, fake_quant = values().to(memory_format=torch.channels_last), module(-2.0, 3.0)
    kept = x.clone()
    fresh = fake_quant(x)
    assert torch.equal(x, kept) and fresh.is_contiguous(memory_format=torch.channels_last)
    written = fake_quant(x, overwrite=True)
    assert written is x and torch.equal(x, fresh)
    assert torch.equal(fake_quant(fresh), fresh)


@pytest.mark.parametrize("granularity", ["per_tensor", "per_channel"])
def test_dynamic_is_static_with_the_batchs_range(granularity):
    fields = {"granularity": granularity, "axis": 1 if granularity == "per_channel" else 0}
    dynamic = FakeQuantize("point", spec(dynamic=True, **fields), 4)
    for seed in (0, 1):
        x = values(seed)
        static = FakeQuantize("point", spec(**fields), 4)
        ends = (x.min(), x.max()) if granularity == "per_tensor" else (x.amin((0, 2, 3)), x.amax((0, 2, 3)))
        static.set_range(*ends)
        assert torch.equal(dynamic(x), static(x))
        assert torch.equal(dynamic(x.to(memory_format=torch.channels_last)), static(x))
    assert not dynamic.state_dict()


def test_what_has_no_range_passes():
    dynamic = FakeQuantize("point", spec(dynamic=True))
    for x in (torch.zeros(3), torch.tensor([1.0, torch.nan]), torch.tensor([1.0, torch.inf])):
        assert torch.equal(dynamic(x.clone()).nan_to_num(7), x.nan_to_num(7))
    static = module(0.0, 0.0)
    assert torch.equal(static(torch.zeros(3)), torch.zeros(3))
    assert module(-1.0, 1.0)(torch.tensor([torch.nan, 0.5])).isnan().tolist() == [True, False]


def test_before_calibration_and_for_a_gradient_it_refuses():
    with pytest.raises(RuntimeError, match="point was not calibrated"):
        FakeQuantize("point", spec())(values())
    with pytest.raises(RuntimeError, match="no gradient"):
        module(-1.0, 1.0)(values().requires_grad_())


def test_qparams_come_back_with_the_state_dict():
    fake_quant = module(-2.0, 3.0)
    other = FakeQuantize("point", spec())
    other.load_state_dict(fake_quant.state_dict())
    assert torch.equal(other(values()), fake_quant(values()))
    qparams = range_qparams(torch.tensor(-2.0), torch.tensor(3.0), spec())
    assert isinstance(qparams, QParams) and torch.equal(qparams.scale, fake_quant.scale)


@pytest.fixture(params=["Residual", "Inception", "Functional"])
def net(request, graphs):
    torch.manual_seed(0)
    return getattr(graphs, request.param)().eval()


@torch.no_grad()
def test_sixteen_bits_are_nearly_float_and_names_stay(net, graphs):
    traced, x = trace(net, graphs.images(1)), graphs.images()
    network = graphs.calibrated(traced, graphs.plan_for(net, traced, bits=16), x)
    assert graphs.sqnr_db(net(x), network(x)) > 70
    mine = {name: value for name, value in network.state_dict().items() if not name.startswith(CONTAINER)}
    assert list(mine) == list(net.state_dict())
    assert all(mine[name].data_ptr() == value.data_ptr() for name, value in net.state_dict().items())
    assert not any(name.startswith(CONTAINER) for name in net.state_dict())


@torch.no_grad()
@pytest.mark.parametrize("dynamic", [False, True])
def test_layers_read_codes_and_nothing_else(net, graphs, dynamic):
    traced, x = trace(net, graphs.images(1)), graphs.images()
    network = graphs.calibrated(traced, graphs.plan_for(net, traced, bits=3, dynamic=dynamic), x)
    with graphs.GridCheck(net.parameters()) as check:
        network(x)
    many = [count for counts in check.counts.values() for count in counts if count > 8]
    assert not many and check.counts["convolution"]
    with graphs.GridCheck(net.parameters()) as check:
        net(x)
    assert len([count for counts in check.counts.values() for count in counts if count > 8]) > len(many)


@torch.no_grad()
def test_overwriting_changes_no_number(net, graphs):
    traced, x = trace(net, graphs.images(1)), graphs.images()
    network = graphs.calibrated(traced, graphs.plan_for(net, traced, bits=4), x)
    careful = copy.deepcopy(network)
    calls = [node for node in careful.graph.nodes if node.kwargs.get("overwrite")]
    assert calls
    for node in calls:
        node.kwargs = {}
    careful.recompile()
    kept = x.clone()
    assert torch.equal(network(x), careful(x)) and torch.equal(x, kept)


@torch.no_grad()
def test_a_copy_is_its_own(net, graphs):
    traced, x = trace(net, graphs.images(1)), graphs.images()
    network = graphs.calibrated(traced, graphs.plan_for(net, traced, bits=4), x)
    twin = copy.deepcopy(network)
    before = network(x)
    assert torch.equal(twin(x), before)
    for fake_quant in fake_quants(twin).values():
        fake_quant.set_range(-0.5, 0.5)
    assert not torch.equal(twin(x), before) and torch.equal(network(x), before)


@torch.no_grad()
def test_the_weights_of_a_shadow(graphs):
    net = graphs.Residual().eval()
    traced, x = trace(net, graphs.images(1)), graphs.images()
    plan, shadow = graphs.plan_for(net, traced), Shadow(net)
    network = graphs.calibrated(traced, plan, x, shadow.module)
    before = network(x)
    assert torch.equal(before, graphs.calibrated(traced, plan, x)(x))
    shadow.load({name: value * 2 if value.dim() > 1 else value for name, value in net.state_dict().items()}, plan)
    assert not torch.equal(network(x), before)
    assert network.get_parameter("conv1.weight").data_ptr() == shadow.module.conv1.weight.data_ptr()


def test_a_place_of_another_network_is_named(graphs):
    plan = graphs.plan_for(graphs.Residual().eval(), trace(graphs.Residual().eval(), graphs.images(1)))
    with pytest.raises(UserError, match="activation=bn2"):
        insert(trace(graphs.Inception().eval(), graphs.images(1)), plan)


@torch.no_grad()
def test_observing_sees_every_place_and_ends(net, graphs):
    traced, x = trace(net, graphs.images(1)), graphs.images()
    network, seen = observed(traced), set()
    with observing(network, lambda name, value: seen.add(name)):
        assert torch.equal(network(x), net(x))
    assert seen == set(graphs.plan_for(net, traced).quantized_activations)
    seen.clear()
    network(x)
    assert not seen and any(isinstance(item, Observed) for item in network.modules())


@torch.no_grad()
def test_what_is_joined_shares_one_scale(graphs):
    net = graphs.Inception().eval()
    traced, x = trace(net, graphs.images(1)), graphs.images()
    network = graphs.calibrated(traced, graphs.plan_for(net, traced, bits=4), x)
    calls = [node.target for node in network.graph.nodes if node.op == "call_module" and str(node.target).startswith(CONTAINER)]
    assert calls.count(f"{CONTAINER}.cat") == 3
    joined = torch.cat([value.flatten() for value in graphs.values_at(traced, x)["cat"]])
    fake_quant = fake_quants(network)["cat"]
    assert torch.equal(fake_quant.scale, range_qparams(joined.min(), joined.max(), fake_quant.spec).scale)


@pytest.mark.gpu
@pytest.mark.parametrize("granularity", ["per_tensor", "per_channel"])
def test_a_gpu_gives_the_same_values(granularity):
    fields = {"granularity": granularity, "axis": 1 if granularity == "per_channel" else 0}
    x = values()
    for dynamic in (False, True):
        fake_quant = FakeQuantize("point", spec(dynamic=dynamic, **fields), 4)
        if not dynamic:
            ends = (x.min(), x.max()) if granularity == "per_tensor" else (x.amin((0, 2, 3)), x.amax((0, 2, 3)))
            fake_quant.set_range(*ends)
        expected = fake_quant(x)
        assert torch.equal(fake_quant.cuda()(x.cuda()).cpu(), expected)


def test_static_places_at_layers_leave_adds_float(graphs):
    net, x = graphs.Residual().eval(), graphs.images()
    traced = trace(net, x)
    plan = graphs.plan_for(net, traced, bits=3, places="layers")
    assert {row.info.name for row in plan.activations} == {info.name for info in activations(traced, layers_only=True)}
    assert all(spec.layers_only and not spec.dynamic for spec in plan.quantized_activations.values())
    network = graphs.calibrated(traced, plan, x)
    static = graphs.calibrated(traced, graphs.plan_for(net, traced, bits=3), x)
    assert len(fake_quants(network)) < len(fake_quants(static))
    with torch.no_grad():
        assert not torch.equal(network(x), static(x))
