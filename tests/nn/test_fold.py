"""Folding batch norm, and which layer feeds which."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from qexp.base.errors import UserError
from qexp.base.torchvision_compat import torchvision
from qexp.models.cifar_resnet import CifarResNet
from qexp.nn.channels import by_channel, input_ranges, mean_response, output_ranges
from qexp.nn.fold import fold_batch_norm
from qexp.nn.layer_pairs import activations_after, find_layer_pairs
from qexp.ptq.equalization import equalize

models = torchvision().models
NETWORKS = {  # constructor, folded batch norms, those that stay, equalized pairs
    "resnet20": (lambda: CifarResNet(20), 19, 0, 9),
    "mobilenet_v2": (lambda: models.mobilenet_v2(num_classes=10), 52, 0, 36),
    "densenet121": (lambda: models.densenet121(num_classes=10), 59, 62, 58),
    "googlenet": (lambda: models.googlenet(num_classes=10, init_weights=False), 57, 2, 20),
}


def with_statistics(model, images):
    """The network in eval mode with the batch norm statistics of these images, and scales and shifts away from 1 and 0."""
    generator = torch.Generator().manual_seed(0)
    norms = [module for module in model.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
    for norm in norms:
        nn.init.uniform_(norm.weight, -0.2, 1.5, generator=generator)  # negative scales too
        nn.init.normal_(norm.bias, 0.0, 0.3, generator=generator)
        norm.momentum = None
    model.eval()
    for norm in norms:
        norm.train()
    with torch.no_grad():
        model(images)
    return model.eval()


def distance(actual, expected):
    return float((actual - expected).norm() / expected.norm())


@pytest.mark.parametrize("name", NETWORKS)
@torch.no_grad()
def test_fold_and_equalize_preserve_logits(name):
    make, num_folded, num_kept, num_pairs = NETWORKS[name]
    generator = torch.Generator().manual_seed(1)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = make().double()  # in float32 deep random networks differ by what a CPU's kernels round
    images = torch.randn(4, 3, 32, 32, generator=generator, dtype=torch.float64)
    expected = with_statistics(model, images)(images)
    state = {key: value.clone() for key, value in model.state_dict().items()}
    folded = fold_batch_norm(model)
    assert (len(folded.layers), len(folded.notes)) == (num_folded, num_kept)
    assert distance(folded.model(images), expected) < 1e-9
    kept = {name for name in state if name.rpartition(".")[0] not in folded.layers}
    assert set(folded.model.state_dict()) == kept | {f"{layer}.bias" for layer in folded.layers.values()}
    equalized = equalize(folded.model, folded.statistics)
    assert len(equalized.pairs) == num_pairs and not equalized.notes
    assert distance(equalized.model(images), expected) < 1e-9
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())


@pytest.mark.parametrize(
    ("layer", "norm", "shape"),
    [
        (nn.Conv2d(4, 6, 3, groups=2, bias=True), nn.BatchNorm2d(6), (2, 4, 5, 5)),
        (nn.ConvTranspose2d(4, 6, 3, stride=2, groups=2, bias=False), nn.BatchNorm2d(6, affine=False), (2, 4, 5, 5)),
        (nn.Conv1d(4, 6, 3), nn.BatchNorm1d(6), (2, 4, 7)),
        (nn.Linear(4, 6), nn.BatchNorm1d(6), (5, 4)),
        (nn.Conv2d(4, 6, 3).to(memory_format=torch.channels_last), nn.BatchNorm2d(6), (2, 4, 5, 5)),
    ],
    ids=["grouped", "transposed", "conv1d", "linear", "channels_last"],
)
@torch.no_grad()
def test_every_kind_of_layer(layer, norm, shape):
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    net = nn.Sequential(layer, norm)
    norm.running_mean.uniform_(-1, 1, generator=torch.Generator().manual_seed(1))
    norm.running_var.uniform_(0.5, 2, generator=torch.Generator().manual_seed(2))
    net.eval()
    folded = fold_batch_norm(net)
    assert folded.layers == {"1": "0"} and type(folded.model[1]) is nn.Identity
    assert distance(folded.model(x), net(x)) < 1e-5


def test_formula_and_statistics():
    net = nn.Sequential(nn.Conv2d(1, 1, 1, bias=False), nn.BatchNorm2d(1, eps=0.0)).eval()
    with torch.no_grad():
        net[0].weight.fill_(3.0)
        for value, number in zip(
            (net[1].weight, net[1].bias, net[1].running_mean, net[1].running_var), (-2, 5, 7, 4), strict=True
        ):
            value.fill_(number)
    folded = fold_batch_norm(net)
    assert folded.model[0].weight.item() == 3 * -2 / 2 and folded.model[0].bias.item() == 5 - 7 * -2 / 2
    assert folded.statistics["0"].mean.item() == 5 and folded.statistics["0"].std.item() == 2
    assert list(folded.model.state_dict()) == ["0.weight", "0.bias"]


class Odd(nn.Module):
    """Batch norms that cannot be folded, each for its own reason."""

    def __init__(self):
        super().__init__()
        self.read, self.read_norm = nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)
        self.twice, self.twice_norm = nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)
        self.tied, self.tied_norm = nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)
        self.fresh, self.fresh_norm = nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3, track_running_stats=False)
        self.peek, self.peek_norm = nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)
        self.first_norm, self.idle_norm = nn.BatchNorm2d(3), nn.BatchNorm2d(3)
        self.twin = nn.Conv2d(3, 3, 1)
        self.twin.weight = self.tied.weight

    def forward(self, x):
        x = self.read(self.first_norm(x))
        x = self.read_norm(x) + x
        x = self.twice_norm(self.twice(self.twice(x)))
        x = self.fresh_norm(self.fresh(self.twin(self.tied_norm(self.tied(x)))))
        return self.peek_norm(self.peek(x)) * self.peek.weight.mean()


@torch.no_grad()
def test_what_cannot_be_folded_stays_and_is_named():
    net = with_statistics(Odd(), torch.randn(4, 3, 4, 4, generator=torch.Generator().manual_seed(0)))
    folded = fold_batch_norm(net)
    assert not folded.layers and len(folded.notes) == 7
    x = torch.ones(1, 3, 4, 4)
    assert torch.equal(folded.model(x), net(x))


def test_refusals():
    with pytest.raises(UserError, match="training mode"):
        fold_batch_norm(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)))

    class Branching(nn.Module):
        def forward(self, x):
            return x if x.sum() > 0 else -x

    with pytest.raises(UserError, match=r"torch\.fx can trace\. Tracing stopped in module 1:"):
        fold_batch_norm(nn.Sequential(nn.Conv2d(3, 4, 3), Branching()).eval())
    patched = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)).eval()
    patched.forward = lambda x: x
    with pytest.raises(UserError, match="forward"):
        fold_batch_norm(patched)


def test_the_network_is_left_as_it_was():
    class Shifted(nn.Sequential):
        def forward(self, x):
            return super().forward(x + torch.tensor(1.0))

    net = Shifted(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)).eval()
    names = set(net.__dict__)
    folded = fold_batch_norm(net)
    assert folded.layers == {"1": "0"} and set(net.__dict__) == set(folded.model.__dict__) == names


class Ways(nn.Module):
    """One way after another between two layers."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.c, self.d = (nn.Conv2d(3, 3, 3, padding=1) for _ in range(4))
        self.e, self.f, self.act = nn.Linear(12, 6), nn.Linear(6, 2), nn.PReLU(3)

    def forward(self, x):
        x = self.b(F.max_pool2d(F.relu(self.a(x)), 2))  # one way
        y = self.c(self.act(x))  # x is read twice
        x = self.d(torch.sigmoid(y)) + x
        x = F.adaptive_avg_pool2d(self.d_again(x), 2)
        return self.f(F.relu(self.e(x.view(x.size(0), -1))))

    def d_again(self, x):
        return F.relu(x)


def test_links():
    pairs = {(pair.source, pair.target): pair for pair in find_layer_pairs(Ways().eval())}
    assert set(pairs) == {("a", "b"), ("b", "c"), ("e", "f")}  # not through the sigmoid, nor through the sum
    assert pairs["a", "b"].exclusive and pairs["a", "b"].max_pooled and pairs["a", "b"].activation == "relu"
    assert not pairs["b", "c"].exclusive and pairs["b", "c"].activation_module == "act"
    flat = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU6(), nn.Linear(4, 4)).eval()  # a linear layer over width, not over channels
    assert find_layer_pairs(flat) == ()
    assert activations_after(Ways().eval()) == {"a": "relu", "e": "relu"}


def test_channels_of_a_grouped_transposed_layer():
    layer = nn.ConvTranspose2d(4, 6, 2, stride=2, groups=2, bias=False)
    x = torch.ones(1, 4, 3, 3) * torch.tensor([1.0, 2.0, 3.0, 4.0]).reshape(1, 4, 1, 1)
    with torch.no_grad():
        mean = layer(x).mean((0, 2, 3))
        assert torch.allclose(mean_response(layer, layer.weight.double(), x[0, :, 0, 0]).float(), mean, atol=1e-6)
        size = layer.weight.abs()
        assert output_ranges(layer, size)[4] == size[2:, 1].max() and input_ranges(layer, size)[1] == size[1].max()
    assert by_channel(layer, layer.weight).data_ptr() == layer.weight.data_ptr()
