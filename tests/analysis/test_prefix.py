"""Networks that start from kept float activations have the logits of whole runs, bit by bit."""

import copy

import pytest
import torch
from torch import nn

from qexp.analysis.prefix import Prefix
from qexp.config.model import ModelSettings
from qexp.models.build import build_model

BATCHES = [torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(seed)) for seed in range(3)]


class Skips(nn.Module):
    """Depthwise layers whose input is read again later, and overwritten in place."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.deep = nn.ModuleList(nn.Conv2d(8, 8, 3, padding=1, groups=8) for _ in range(3))
        self.head = nn.Linear(8, 10)

    def forward(self, x):
        x = self.stem(x)
        for layer in self.deep:
            y = layer(x)
            x = x.relu_() + y
        return self.head(x.mean((2, 3)))


class Untraceable(Skips):
    def forward(self, x):
        return super().forward(x if x.sum() > 0 else -x)


def with_changed(network, name, factor):
    copied = copy.deepcopy(network)
    with torch.no_grad():
        copied.get_submodule(name).weight.mul_(factor)
    return copied


def logits(run):
    with torch.inference_mode():
        return [run(images) for images in BATCHES]


def resnet():
    return build_model(ModelSettings(name="resnet20"), num_classes=10, image_shape=(3, 32, 32), seed=0)


@pytest.mark.parametrize("make", [resnet, Skips])
@pytest.mark.parametrize("budget", [64, 1, 0])
def test_logits_are_those_of_whole_runs(make, budget, capsys):
    """Budgets of 64, of 1 MiB, which not every batch's cuts fit, and none; layers forwards, and one out of order."""
    network = make().eval()
    prefix = Prefix(network, BATCHES[0][:1], budget)
    names = [name for name, module in network.named_modules() if isinstance(module, nn.Conv2d | nn.Linear)]
    for name in [*names, names[1]]:
        for factor in (0.5, -2):
            model = with_changed(network, name, factor)
            reused, whole = logits(prefix.run_of(model)), logits(model)
            assert all(torch.equal(one, other) for one, other in zip(reused, whole, strict=True)), name
            assert prefix.size <= budget * 2**20
    assert capsys.readouterr().out == ""


def test_layers_before_the_difference_are_not_run_again(monkeypatch):
    network = Skips().eval()
    prefix = Prefix(network, BATCHES[0][:1], 64)
    logits(prefix.run_of(with_changed(network, "head", 2.0)))
    model, whole = with_changed(network, "head", 3.0), nn.Conv2d.forward
    ran = []
    monkeypatch.setattr(nn.Conv2d, "forward", lambda self, x: ran.append(self) or whole(self, x))
    logits(prefix.run_of(model))
    assert prefix.size and not ran


def test_what_cannot_be_cut_runs_whole(capsys):
    network = Untraceable().eval()
    model = with_changed(network, "head", 2.0)
    prefix = Prefix(network, BATCHES[0][:1], 64)
    assert prefix.run_of(model) is model and prefix.size == 0
    assert capsys.readouterr().out.count("every network runs whole") == 1
    plain = Skips().eval()
    prefix = Prefix(plain, BATCHES[0][:1], 64)
    hooked = with_changed(plain, "head", 2.0)
    hooked.stem.register_forward_hook(lambda *_: None)
    first = with_changed(plain, "stem", 2.0)
    assert prefix.run_of(plain) is plain and prefix.run_of(hooked) is hooked and prefix.run_of(first) is first
    assert prefix.run_of(hooked) is hooked and capsys.readouterr().out.count("other modules") == 1


def test_other_logits_switch_it_off(capsys):
    """A network that does something else than its tensors say, behind the structure that is compared."""
    network = Skips().eval()
    prefix = Prefix(network, BATCHES[0][:1], 64)
    model = with_changed(network, "head", 2.0)
    model.forward = lambda x: Skips.forward(model, x) + 1
    reused, whole = logits(prefix.run_of(model)), logits(model)
    assert all(torch.equal(one, other) for one, other in zip(reused, whole, strict=True))
    assert "the first batch has other logits" in capsys.readouterr().out and prefix.size == 0
