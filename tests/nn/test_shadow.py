"""The shadow computes with the quantized copies, with nothing else, and never touches the network."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from qexp.base.errors import UserError
from qexp.base.types import Plan, PlanRow, QuantSpec, TensorInfo
from qexp.nn.shadow import Shadow
from qexp.quant.schemes import quantize_

LINEAR4 = QuantSpec(scheme="linear", bits=4)
HALF = QuantSpec(scheme="half", bits=16, mode="half")


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(8)
        self.skip = nn.Conv2d(8, 8, 3, padding=1)
        self.head = nn.Linear(8, 5)
        self.register_buffer("shift", torch.full((1,), 1 / 3), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.norm(self.conv(x)))
        x = x + self.skip(x) + self.shift
        return self.head(x.mean((2, 3)))


@pytest.fixture
def net():
    torch.manual_seed(0)
    net = Net().train()
    with torch.no_grad():
        for _ in range(3):
            net(torch.randn(8, 3, 6, 6))
    return net


@pytest.fixture
def images():
    return torch.randn(4, 3, 6, 6, generator=torch.Generator().manual_seed(1))


def plan_for(model: nn.Module, specs: dict[str, QuantSpec], **kwargs) -> Plan:
    rows = []
    for name, tensor in model.state_dict().items():
        info = TensorInfo(
            name=name, module=name, module_type="", kind="other", role="other", shape=tuple(tensor.shape), dtype=str(tensor.dtype)
        )
        rows.append(PlanRow(info, specs.get(name), "test"))
    return Plan(rows=tuple(rows), **kwargs)


def memory(model: nn.Module) -> set[int]:
    return {tensor.untyped_storage().data_ptr() for tensor in (*model.parameters(), *model.buffers())}


def logits_of(model: nn.Module, images: Tensor) -> Tensor:
    was_training = model.training
    with torch.no_grad():
        logits = model.eval()(images)
    model.train(was_training)
    return logits


@pytest.mark.parametrize("channels_last", [False, True])
def test_an_empty_plan_is_the_network(net, images, channels_last):
    shadow = Shadow(net, channels_last=channels_last)
    shadow.load(net.state_dict(), plan_for(net, {}))
    torch.testing.assert_close(shadow.module(images), logits_of(net, images), rtol=1e-5, atol=1e-6)
    assert list(shadow.module.state_dict()) == list(net.state_dict())
    assert shadow.module.conv.weight.is_contiguous(memory_format=torch.channels_last) == channels_last


@pytest.mark.parametrize("channels_last", [False, True])
def test_the_planned_tensors_and_only_those_are_quantized(net, channels_last):
    specs = {"conv.weight": LINEAR4, "head.weight": QuantSpec(scheme="symmetric", bits=3, granularity="per_channel")}
    shadow, state = Shadow(net, channels_last=channels_last), net.state_dict()
    shadow.load(state, plan_for(net, specs))
    for name, tensor in shadow.module.state_dict().items():
        expected = quantize_(torch.empty_like(state[name]), state[name], specs[name]) if name in specs else state[name]
        assert torch.equal(tensor, expected), name
        assert torch.equal(tensor, state[name]) != (name in specs)


def test_loading_again_overwrites_everything_in_place(net, images):
    shadow = Shadow(net)
    pointers = {name: tensor.data_ptr() for name, tensor in shadow.module.state_dict().items()}
    shadow.load(net.state_dict(), plan_for(net, {"conv.weight": LINEAR4, "skip.weight": LINEAR4}))
    state = {name: tensor + 1 for name, tensor in net.state_dict().items()}
    shadow.load(state, plan_for(net, {}))
    assert all(torch.equal(tensor, state[name]) for name, tensor in shadow.module.state_dict().items())
    assert pointers == {name: tensor.data_ptr() for name, tensor in shadow.module.state_dict().items()}


@pytest.mark.parametrize("half", [False, True])
def test_no_memory_is_shared(net, images, half):
    shadow = Shadow(net, half=half)
    plan = plan_for(net, {"conv.weight": HALF} if half else {"conv.weight": LINEAR4}, mode="half" if half else "int")
    state = net.state_dict()
    shadow.load(state, plan)
    second = Shadow(net, half=half)
    assert not memory(net) & memory(shadow.module) and not memory(second.module) & memory(shadow.module)
    logits, before = shadow.module(images), {name: tensor.clone() for name, tensor in state.items()}
    with torch.no_grad():
        for tensor in net.parameters():
            tensor.add_(1)
    assert torch.equal(shadow.module(images), logits), "the copy does not follow the network"
    for tensor in shadow.module.parameters():
        tensor.mul_(3)
    assert not torch.equal(shadow.module(images), logits), "the copy follows its own weights"
    assert all(torch.equal(tensor, before[name] + (name in dict(net.named_parameters()))) for name, tensor in state.items())


def test_the_copy_is_in_eval_mode_without_gradients_and_keeps_its_buffers(net, images):
    shadow = Shadow(net)
    shadow.load(net.state_dict(), plan_for(net, {}))
    assert net.training and not any(module.training for module in shadow.module.modules())
    assert not any(parameter.requires_grad for parameter in shadow.module.parameters())
    before = {name: tensor.clone() for name, tensor in shadow.module.state_dict().items()}
    shadow.module(images)
    assert all(torch.equal(tensor, before[name]) for name, tensor in shadow.module.state_dict().items())


@pytest.mark.parametrize(("name", "quantize"), [("int", lambda x: x.int().float()), ("round", torch.round)])
def test_input_quantization(net, images, name, quantize):
    shadow = Shadow(net, input_quant=name)
    shadow.load(net.state_dict(), plan_for(net, {}, input_quant=name))
    before = images.clone()
    assert torch.equal(shadow.module(images), logits_of(net, quantize(images)))
    assert torch.equal(images, before) and not torch.equal(quantize(images), images)


def test_unknown_input_quantization_lists_the_choices(net):
    with pytest.raises(UserError, match="one of int, none, round"):
        Shadow(net, input_quant="trunc")


@pytest.mark.parametrize("channels_last", [False, True])
def test_half_is_fp16(net, images, channels_last):
    """The emulation on the CPU against torch's own fp16 kernels, whose order of summation differs."""
    shadow = Shadow(net, half=True, channels_last=channels_last)
    specs = {name: HALF for name in ("conv.weight", "skip.weight", "head.weight")}
    shadow.load(net.state_dict(), plan_for(net, specs, mode="half"))
    before = images.clone()
    logits = shadow.module(images)
    exact = logits_of(net, images)
    native = Net()
    native.load_state_dict(net.state_dict())
    native = logits_of(native.half(), images.half()).float()
    assert logits.dtype == torch.float32 and torch.equal(images, before)
    assert torch.equal(logits, logits.half().float()) and not torch.equal(logits, exact)
    error, noise = (logits - native).abs().max(), (native - exact).abs().max()
    assert error <= 2 * 2.0**-11 * native.abs().max() and 0 < noise < 0.01
    for name, tensor in (*shadow.module.named_parameters(), *shadow.module.named_buffers()):
        assert not tensor.is_floating_point() or torch.equal(tensor, tensor.half().float()), name


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_half_on_a_gpu_is_true_half(net, images):
    net, images = net.cuda(), images.cuda()
    shadow = Shadow(net, half=True)
    shadow.load(net.state_dict(), plan_for(net, {"conv.weight": HALF}, mode="half"))
    assert all(p.dtype == torch.float16 for p in shadow.module.parameters())
    logits = shadow.module(images)
    assert logits.dtype == torch.float32
    torch.testing.assert_close(logits, logits_of(net, images), rtol=0.02, atol=0.02)


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.encode, self.decode = nn.Linear(6, 6, bias=False), nn.Linear(6, 6, bias=False)
        self.decode.weight = self.encode.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.decode(self.encode(x))


@pytest.mark.parametrize("specs", [{"encode.weight": LINEAR4}, {"decode.weight": LINEAR4}])
def test_tied_parameters_stay_tied_and_are_quantized_once(specs):
    torch.manual_seed(0)
    model = Tied()
    shadow = Shadow(model)
    shadow.load(model.state_dict(), plan_for(model, specs))
    weight = model.encode.weight.detach()
    expected = quantize_(torch.empty_like(weight), weight, LINEAR4)
    assert shadow.module.encode.weight is shadow.module.decode.weight
    assert torch.equal(shadow.module.encode.weight, expected)


def test_tied_parameters_take_the_first_quantizer():
    model = Tied()
    shadow = Shadow(model)
    shadow.load(
        model.state_dict(), plan_for(model, {"encode.weight": LINEAR4, "decode.weight": QuantSpec(scheme="affine", bits=2)})
    )
    weight = model.encode.weight.detach()
    assert torch.equal(shadow.module.decode.weight, quantize_(torch.empty_like(weight), weight, LINEAR4))


@pytest.mark.parametrize("where", ["", "conv"])
def test_a_forward_on_the_instance_is_refused(net, where):
    """As apex's amp left it: `deepcopy` would keep a reference to the original's forward."""
    module = net.get_submodule(where)
    original = module.forward
    module.forward = lambda *args: original(*args)
    with pytest.raises(UserError, match="go on running the original"):
        Shadow(net)


def test_errors_name_the_tensor(net):
    shadow, plan, state = Shadow(net), plan_for(net, {"conv.weight": LINEAR4}), net.state_dict()
    for change, words in (
        ({"conv.weight": torch.full_like(state["conv.weight"], math.nan)}, "conv.weight=holds NaN"),
        ({"head.weight": torch.ones(3, 3)}, "head.weight=.*3, 3"),
        ({"extra": torch.ones(1)}, "extra"),
    ):
        with pytest.raises(UserError, match=words):
            shadow.load({**state, **change}, plan)
    with pytest.raises(UserError, match="skip.bias"):
        shadow.load({name: tensor for name, tensor in state.items() if name != "skip.bias"}, plan)


def test_a_constant_tensor_is_left_as_it_is_and_named(net):
    """A plan is made before training; a tensor may be constant when its turn comes."""
    shadow, plan, state = Shadow(net), plan_for(net, {"conv.weight": LINEAR4}), net.state_dict()
    assert shadow.load(state, plan) == ()
    constant = torch.full_like(state["conv.weight"], 0.3)
    assert shadow.load({**state, "conv.weight": constant}, plan) == ("conv.weight",)
    assert torch.equal(shadow.module.state_dict()["conv.weight"], constant)


def test_a_plan_of_another_structure_is_our_own_mistake(net):
    with pytest.raises(AssertionError, match="input"):
        Shadow(net).load(net.state_dict(), plan_for(net, {}, input_quant="int"))
    with pytest.raises(AssertionError, match="half"):
        Shadow(net).load(net.state_dict(), plan_for(net, {}, mode="half"))


def test_a_network_that_returns_a_mapping(images):
    class Mapping(Net):
        def forward(self, x: Tensor) -> dict[str, Tensor]:
            return {"logits": super().forward(x)}

    model = Mapping()
    shadow = Shadow(model, half=True)
    shadow.load(model.state_dict(), plan_for(model, {}, mode="half"))
    assert shadow.module(images)["logits"].dtype == torch.float32
