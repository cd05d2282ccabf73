import copy
import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from qexp.base.errors import UserError
from qexp.config.policy import PolicySettings, RuleSettings
from qexp.config.qat import QatSettings
from qexp.qat.folded_weight import FoldedWeight
from qexp.qat.prepare import prepare
from qexp.qat.quantizers import ClippedRange, LearnedStep, ObservedRange
from qexp.quant.schemes import quantize_


def rules(*names):
    return PolicySettings(name="rules", rules=[RuleSettings(match=name, role="any") for name in names])


def test_the_states_names_are_the_networks_own_with_quantizers_beside_them(graphs, kit):
    case = kit.prepared(graphs.Residual(), graphs.images())
    names, plain = set(case.qat.module.state_dict()), set(case.network.state_dict())
    layers = ("conv1", "conv2", "head")
    originals = {f"{layer}.parametrizations.weight.original" for layer in layers}
    scales = {f"{layer}.parametrizations.weight.0.scale" for layer in layers}
    scales |= {f"activation_fake_quant.{place}.scale" for place in ("input", "pool", "dropout")}
    assert names == plain - {f"{layer}.weight" for layer in layers} | originals | scales
    masters = case.qat.masters()
    assert set(masters) == plain and all(torch.equal(masters[name], value) for name, value in case.network.state_dict().items())
    assert case.qat.masters()["conv1.weight"] is not None and not torch.equal(
        case.qat.network.conv1.weight, masters["conv1.weight"]
    )


def test_what_is_learned_has_the_size_of_what_it_scales(graphs, kit):
    """N of the gradient's factor: weights of a step, values of one image; p: 7 for weights and images, 15 behind a ReLU."""
    case = kit.prepared(graphs.Residual(), graphs.images(), granularity="per_channel")
    weight, activations = case.qat.weights["conv2.weight"], case.qat.activations
    assert weight.scale.shape == (8,) and weight.factor == 1 / math.sqrt(8 * 9 * 7)
    assert activations["input"].factor == 1 / math.sqrt(3 * 16 * 16 * 7)
    assert activations["pool"].factor == 1 / math.sqrt(8 * 8 * 8 * 15)


@pytest.mark.parametrize(
    ("name", "kind"), [("ste", ObservedRange), ("every_step", ObservedRange), ("pact", ClippedRange), ("lsq", LearnedStep)]
)
def test_methods_by_their_quantizers_of_activations(graphs, kit, name, kind):
    case = kit.prepared(graphs.Residual(), graphs.images(), name=name, ready=False)
    assert all(isinstance(quantizer, kind) for quantizer in case.qat.activations.values())
    assert bool(case.qat.weights) == (name != "every_step")
    assert {path for path, _ in case.qat.quantizers()} >= {f"activation_fake_quant.{place}" for place in case.qat.activations}


def test_dorefa_clips_at_one_but_for_the_images(graphs, kit):
    case = kit.prepared(graphs.Residual(), graphs.images(), name="dorefa")
    ends = {name: float(each.alpha) for name, each in case.qat.activations.items()}
    assert ends.pop("input") == pytest.approx(float(graphs.images().abs().max())) and set(ends.values()) == {1.0}


@torch.no_grad()
def test_the_module_computes_with_quantized_weights_and_activations(graphs, kit):
    case = kit.prepared(graphs.Residual(), graphs.images())
    with graphs.GridCheck([]) as check:
        case.logits()
    assert all(count <= 16 for counts in check.counts.values() for count in counts) and len(check.counts["convolution"]) == 4


def test_weights_that_functions_read_are_quantized(graphs, kit):
    images = graphs.images()
    read = {"kernel", "weight", "position", "attention.in_proj_weight", "attention.out_proj.weight"}
    case = kit.prepared(graphs.Functional(), images, policy=rules(*read)).train()
    assert set(case.qat.weights) == read
    for name in read:
        assert f"weight_fake_quant.{name}.scale" in case.qat.module.state_dict()
    masters = case.qat.masters()
    assert set(masters) == set(case.network.state_dict()) and masters["kernel"].unique().numel() > 16
    converted = case.convert()
    for name in read:
        assert torch.equal(converted.state[name], case.qat.weights[name](masters[name]).detach().cpu())
    assert torch.equal(case.assembled(converted), case.logits())


@pytest.mark.parametrize("name", ["lsq", "ste", "dorefa", "every_step"])
def test_shared_modules_and_parameters_have_one_quantizer_and_stay_one(graphs, kit, name):
    case = kit.prepared(kit.Shared(), graphs.images(), name=name, ready=False)
    if name != "every_step":
        weights = case.qat.weights
        assert weights["first.weight"] is weights["second.weight"] and weights["one.weight"] is weights["two.weight"]
        for layer in (case.qat.network.first, case.qat.network.two, case.qat.network.both):
            assert len(layer.parametrizations.weight) == 1
    case = kit.prepared(kit.Shared(), graphs.images(), name=name).train(3)
    masters = case.qat.masters()
    assert set(masters) == set(case.network.state_dict())
    for one, other in (("first", "second"), ("one", "two"), ("one", "unused")):
        assert masters[f"{one}.weight"].data_ptr() == masters[f"{other}.weight"].data_ptr()
    assert not torch.equal(masters["one.weight"], case.network.one.weight)
    converted = case.convert()
    assert converted.state["both.weight"].unique().numel() <= 16
    assert torch.equal(case.assembled(converted), case.logits())


@pytest.mark.parametrize("granularity", ["per_tensor", "per_channel"])
@pytest.mark.parametrize("groups", [1, 2])
def test_folding_before_transposed_depthwise_and_linear_layers(graphs, kit, groups, granularity):
    """Frozen, both together are the folded layer; what is converted has no batch norm."""
    images = graphs.images(8)
    network = kit.estimated(kit.Turned(groups), images)
    case = kit.prepared(network, images, granularity=granularity, batch_norm="folded").train()
    folded = {name for name, each in case.qat.weights.items() if isinstance(each, FoldedWeight)}
    assert folded == {"turned.weight", "depthwise.weight", "linear.weight"}
    assert all(module.norm1.weight.grad.any() for module in (case.qat.network,))
    converted = case.convert()
    assert converted.folded and not any("norm" in name for name in converted.state)
    trained, converted_logits = case.logits(), case.assembled(converted)
    torch.testing.assert_close(converted_logits, trained, rtol=1e-3, atol=1e-3 * float(trained.abs().max()))
    assert torch.equal(converted_logits.argmax(1), trained.argmax(1)) and float(trained.std(0).mean()) > 0.01


def test_batch_norm_is_not_folded_where_it_cannot_be(graphs, kit):
    case = kit.prepared(graphs.Inception(), graphs.images(), batch_norm="folded")
    assert not case.qat.norms and not case.convert().folded


def test_what_does_not_run_is_frozen(graphs, kit):
    case = kit.prepared(graphs.Residual(), graphs.images())
    frozen = {name for name, each in case.qat.module.named_parameters() if not each.requires_grad}
    assert frozen == {"unused.weight", "unused.bias"}
    shared = kit.prepared(kit.Shared(), graphs.images())
    frozen = {name for name, each in shared.qat.module.named_parameters() if not each.requires_grad}
    assert frozen == {"unused.bias"}, "its weight is that of layers that run"
    assert "unused.weight" in case.convert().state and "unused.weight" not in case.convert().weights


def test_every_step_overwrites_the_stored_weights(graphs, kit):
    case = kit.prepared(graphs.Residual(), graphs.images(), name="every_step", granularity="per_channel").train(3)
    for name, spec in case.qat.plan.quantized.items():
        stored = case.qat.network.get_parameter(name).detach()
        assert all(row.unique().numel() <= 16 for row in stored.flatten(1))
        before = stored.clone()
        with torch.no_grad():
            case.qat.network.get_parameter(name).add_(torch.linspace(0, 0.01, stored.numel()).view_as(stored))
        again = torch.empty_like(stored)
        quantize_(again, case.qat.network.get_parameter(name).detach(), spec)
        case.qat.overwrite_weights()
        assert torch.equal(stored, again) and not torch.equal(stored, before)
    with torch.no_grad():
        case.qat.network.head.weight.fill_(0.5)
    case.qat.overwrite_weights()
    assert bool((case.qat.network.head.weight == 0.5).all()), "a constant has no range, and is left alone"


@pytest.mark.parametrize("name", ["lsq", "every_step"])
def test_a_planned_tensor_that_is_no_parameter_is_refused(graphs, kit, name):
    class Buffered(nn.Module):
        def __init__(self):
            super().__init__()
            self.register_buffer("kernel", torch.randn(4, 3, 3, 3))
            self.head = nn.Linear(4, 3)

        def forward(self, x):
            return self.head(F.conv2d(x, self.kernel).mean((2, 3)))

    network, settings, x = Buffered(), QatSettings(name=name), graphs.images()
    plan = kit.plan_of(network, x[:1], settings, policy=rules("kernel"))
    with pytest.raises(UserError, match=f"policy.rules=kernel: allowed is a parameter, with qat={name}"):
        prepare(network, plan, settings, x[:1])


def test_a_copy_of_the_module_shares_nothing(graphs, kit):
    images = graphs.images(8)
    for name, settings in (("lsq", {"batch_norm": "folded"}), ("ste", {}), ("dorefa", {})):
        case = kit.prepared(kit.estimated(graphs.Residual(), images), images, name=name, **settings)
        twin = copy.deepcopy(case.qat.module)
        before, logits = copy.deepcopy(twin.state_dict()), case.logits()
        assert torch.equal(case.logits(twin), logits) and list(before) == list(case.qat.module.state_dict())
        if settings:
            assert twin.conv1.parametrizations.weight[0].norms[0] is twin.bn1
        case.train(2)
        assert not torch.equal(case.logits(), logits) and torch.equal(case.logits(twin), logits)
        assert all(torch.equal(value, before[key]) for key, value in twin.state_dict().items())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", ["ste", "lsq", "lsq_plus", "pact", "dorefa"])
def test_a_step_under_autocast(graphs, kit, name, dtype):
    images = graphs.images()
    case = kit.prepared(graphs.Residual(), images, name=name)
    with torch.autocast("cpu", dtype=dtype):
        logits = case.qat.module.train()(images)
        loss = F.cross_entropy(logits, torch.arange(4))
    loss.backward()
    assert logits.dtype == dtype
    for key, parameter in case.qat.module.named_parameters():
        if parameter.requires_grad:
            assert parameter.grad.dtype == torch.float32 and bool(parameter.grad.isfinite().all()), key
