"""What an inventory says of real networks and of odd ones."""

import torch
import torch.nn.functional as F
from torch import nn

from qexp.base.torchvision_compat import torchvision
from qexp.nn.inventory import as_trained, inventory, is_constant

IMAGE = torch.randn(1, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def by_name(model, example=IMAGE):
    return {info.name: info for info in inventory(model, example)}


def layers_in_order(infos):
    layers = [info for info in infos.values() if info.kind in ("conv", "linear") and info.role == "weight" and info.order >= 0]
    return [info.name for info in sorted(layers, key=lambda info: info.order)]


class Functional(nn.Module):
    """Reads weights without calling their modules, and holds some that nothing reads."""

    def __init__(self):
        super().__init__()
        self.head = nn.Linear(4, 10)  # defined first, executed last
        self.conv = nn.Conv2d(3, 4, 3)
        self.unused = nn.Linear(4, 4)
        self.kernel = nn.Parameter(torch.randn(4, 4, 1, 1))
        self.my_bias = nn.Parameter(torch.randn(4))
        self.gain = nn.Parameter(torch.tensor(2.0))
        self.register_buffer("table", torch.randn(4))
        self.register_buffer("steps", torch.tensor(0))
        self.register_buffer("hidden", torch.randn(4), persistent=False)

    def forward(self, x):
        self.steps += 1
        self.table = self.table * 1.5
        out = F.conv2d(x, self.conv.weight, self.conv.bias)
        out = F.conv2d(out, self.kernel, self.my_bias) * self.gain
        return F.dropout(F.linear(out.mean((2, 3)) + self.table, self.head.weight, self.head.bias))


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.attend = nn.MultiheadAttention(8, 2, batch_first=True)

    def forward(self, x):
        return self.attend(x, x, x)[0]


def test_resnet_in_order_of_the_state_dict():
    model = torchvision().models.resnet18(num_classes=10)
    infos = by_name(model)
    assert list(infos) == list(model.state_dict())
    kinds = [(info.kind, info.role) for info in infos.values()]
    assert kinds.count(("conv", "weight")) == 20 and kinds.count(("linear", "weight")) == 1
    assert kinds.count(("norm", "statistic")) == 40 and kinds.count(("norm", "counter")) == 20
    assert kinds.count(("norm", "weight")) == kinds.count(("norm", "bias")) == 20
    order = layers_in_order(infos)
    assert (order[0], order[-1]) == ("conv1.weight", "fc.weight")
    assert order.index("layer2.0.conv1.weight") < order.index("layer2.0.downsample.0.weight")
    first = infos["conv1.weight"]
    assert (first.module, first.module_type, first.shape, first.dtype) == ("conv1", "Conv2d", (64, 3, 7, 7), "float32")
    assert infos["bn1.num_batches_tracked"].order == infos["bn1.weight"].order == 1
    assert infos["bn1.weight"].constant and not first.constant


def test_auxiliary_heads_are_not_executed():
    model = torchvision().models.googlenet(num_classes=10, init_weights=False)
    infos = by_name(model, torch.randn(1, 3, 64, 64))
    idle = {info.name for info in infos.values() if info.order < 0}
    assert idle == {name for name in infos if name.startswith("aux")}
    assert len(idle) > 10


def test_attention_is_executed_and_linear():
    infos = by_name(Attention(), torch.randn(1, 5, 8))
    assert all(info.order >= 0 for info in infos.values())
    assert infos["attend.in_proj_weight"].kind == "linear" and infos["attend.in_proj_weight"].role == "weight"
    assert infos["attend.in_proj_bias"].role == "bias"
    assert infos["attend.out_proj.weight"].kind == "linear"


def test_functional_weights_count_as_executed():
    infos = by_name(Functional())
    assert layers_in_order(infos) == ["conv.weight", "head.weight"]
    assert infos["conv.weight"].order == infos["conv.bias"].order
    assert [name for name, info in infos.items() if info.order < 0] == ["unused.weight", "unused.bias"]
    roles = {name: infos[name].role for name in ("kernel", "my_bias", "gain", "table", "steps")}
    assert roles == {"kernel": "weight", "my_bias": "bias", "gain": "other", "table": "other", "steps": "counter"}
    assert infos["kernel"].kind == "other" and infos["kernel"].module == ""
    assert "hidden" not in infos
    assert infos["gain"].constant and infos["gain"].num_elements == 1


def test_nothing_is_disturbed():
    model = Functional()
    model.conv.eval()
    table, generator = model.table, torch.get_rng_state()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    modes = [module.training for module in model.modules()]
    infos = inventory(model, IMAGE)
    assert infos == inventory(model, IMAGE)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert model.table is table
    assert [module.training for module in model.modules()] == modes
    assert torch.equal(torch.get_rng_state(), generator)
    assert not any(module._forward_hooks for module in model.modules())


def test_modes_and_buffers_return_after_an_error():
    class Breaks(Functional):
        def forward(self, x):
            super().forward(x)
            raise KeyError("lost")

    model = Breaks()
    try:
        inventory(model, IMAGE)
    except KeyError:
        pass
    assert model.training and model.steps == 0


def test_transposed_convolution_has_its_channels_on_axis_one():
    model = nn.Sequential(nn.ConvTranspose2d(3, 6, 3), nn.InstanceNorm2d(6, affine=True), nn.Conv2d(6, 2, 1), nn.GroupNorm(2, 2))
    infos = by_name(model)
    assert infos["0.weight"].kind == "conv" and infos["0.weight"].shape == (3, 6, 3, 3)
    assert [infos[name].channel_axis for name in ("0.weight", "0.bias", "2.weight")] == [1, 0, 0]
    assert infos["1.weight"].kind == infos["3.weight"].kind == "norm"


def test_tied_weights_are_listed_under_both_names():
    model = nn.Sequential(nn.Flatten(), nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4))
    model[3].weight = model[1].weight
    infos = by_name(model, torch.randn(1, 4))
    assert infos["3.weight"].tied_to == "1.weight"
    assert infos["1.weight"].tied_to is None
    assert infos["3.weight"].order == infos["1.weight"].order >= 0
    assert infos["3.bias"].tied_to is None
    shared = nn.Sequential(block := nn.Linear(4, 4), nn.ReLU(), block)
    assert [info.tied_to for info in inventory(shared, torch.randn(1, 4))] == [None, None, "0.weight", "0.bias"]


def test_views_of_one_buffer_are_told_apart():
    """Weights that lie in one flat storage, as some optimizers and wrappers keep them."""
    model = nn.Sequential(nn.Linear(2, 2, bias=False), nn.Linear(2, 2, bias=False))
    flat = torch.randn(8)
    model[0].weight.data, model[1].weight.data = flat[:4].view(2, 2), flat[4:].view(2, 2)
    model.forward = lambda x: nn.Sequential.forward(model[:1], x)
    infos = by_name(model, torch.randn(1, 2))
    assert infos["0.weight"].order == 0 and infos["1.weight"].order == -1
    assert infos["1.weight"].tied_to is None


def test_half_and_empty_tensors():
    model = nn.Sequential(nn.Flatten(), nn.Linear(4, 4)).to(torch.bfloat16)
    model.register_buffer("empty", torch.zeros(0))
    infos = by_name(model, torch.randn(1, 4, dtype=torch.bfloat16))
    assert infos["1.weight"].dtype == "bfloat16"
    assert not infos["empty"].constant and infos["empty"].order == -1


def test_constant():
    assert is_constant(torch.zeros(3)) and is_constant(torch.tensor(5)) and is_constant(torch.ones(2, 2).t())
    assert not is_constant(torch.tensor([1.0, 1.0, 1.0000001]))
    assert not is_constant(torch.full((2,), float("nan")))
    assert not is_constant(torch.zeros(0))


def test_a_fresh_network_as_it_will_be():
    model = nn.Sequential(nn.Conv2d(3, 2, 1), nn.BatchNorm2d(2), nn.Linear(32, 1))
    nn.init.zeros_(model[2].weight)
    model.register_buffer("mask", torch.ones(3))
    constant = [info.name for info in as_trained(inventory(model, IMAGE)) if info.constant]
    assert constant == ["mask", "1.running_mean", "1.running_var", "1.num_batches_tracked", "2.bias"]
