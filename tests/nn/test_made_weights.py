"""Weights that hooks and parametrizations make: they become parameters, and the network computes the same."""

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, parametrize, prune

from qexp.base.errors import UserError
from qexp.nn.fold import fold_batch_norm
from qexp.nn.inventory import inventory
from qexp.nn.made_weights import bake_weights_, made_weights


def plain() -> nn.Sequential:
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(1, 4, 3, bias=False), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.Flatten(), nn.Linear(16, 3)
    )
    nn.init.uniform_(net[1].weight, 0.5, 2.0)
    net[1].running_mean.uniform_(-1, 1)
    return net.eval()


def pruned_twice(layer):
    prune.l1_unstructured(layer, "weight", amount=0.3)
    prune.random_structured(layer, "weight", amount=1, dim=0)


def frozen(layer):
    layer.requires_grad_(False)
    parametrize.register_parametrization(layer, "weight", nn.Tanh())


KINDS = {
    "pruned": lambda layer: prune.l1_unstructured(layer, "weight", amount=0.3),
    "pruned twice": pruned_twice,
    "weight norm": nn.utils.weight_norm,
    "spectral norm": nn.utils.spectral_norm,
    "weight norm, parametrized": parametrizations.weight_norm,
    "spectral norm, parametrized": parametrizations.spectral_norm,
    "orthogonal": parametrizations.orthogonal,
    "frozen": frozen,
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.filterwarnings("ignore:.*weight_norm.*is deprecated:FutureWarning")
def test_they_become_parameters_of_the_same_network(kind):
    hooked, images = plain(), torch.randn(2, 1, 6, 6)
    for place in (0, 5):
        KINDS[kind](hooked[place])
    expected = hooked(images)
    assert made_weights(hooked) == bake_weights_(hooked, images[:1]) == ("0.weight", "5.weight")
    assert made_weights(hooked) == ()
    torch.testing.assert_close(hooked(images), expected)
    assert hooked.state_dict().keys() == plain().state_dict().keys()
    assert {info.name for info in inventory(hooked, images) if info.role == "weight" and info.order >= 0} >= {
        "0.weight",
        "5.weight",
    }
    with torch.no_grad():
        hooked[5].weight.zero_()
        assert torch.equal(hooked(images), hooked[5].bias.expand(2, 3))  # what is written is what runs
    hooked.load_state_dict(plain().state_dict())
    torch.testing.assert_close(hooked(images), plain()(images))


def test_a_hook_of_an_unknown_kind_is_refused():
    net = plain()
    weight = nn.Parameter(net[0].weight.detach().clone())
    del net[0].weight
    net[0].register_parameter("raw", weight)
    net[0].weight = weight * 2
    net[0].register_forward_pre_hook(lambda module, _: setattr(module, "weight", module.raw * 2))
    with pytest.raises(UserError, match=r"model=0.weight, which a hook makes: .* torch.nn.utils.parametrize"):
        bake_weights_(net, torch.zeros(1, 1, 6, 6))


def test_a_folded_network_that_computes_something_else_is_refused():
    net, images = plain(), torch.zeros(1, 1, 6, 6)
    assert fold_batch_norm(net, images).layers == {"1": "0"}
    with pytest.raises(UserError, match="model=correct.fold_bn: allowed is a network that computes the same"):
        fold_batch_norm(Switching().eval(), images)


def test_a_layer_with_a_hook_keeps_its_batch_norm():
    net = plain()
    net[0].register_forward_hook(lambda module, values, output: output * 2)
    assert fold_batch_norm(net).notes == ("1: not folded, a hook of it or of 0 may change what they compute",)


class Switching(nn.Module):
    """Adds ten where its convolution has no bias, which folding gives it."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(1, 2, 3, bias=False), nn.BatchNorm2d(2)

    def forward(self, x):
        return self.norm(self.conv(x)) + (10 if self.conv.bias is None else 0)
