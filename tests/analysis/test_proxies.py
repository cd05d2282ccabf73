"""Cheap measures against what they stand for: gradients and Hessians written out, layers run with their error."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from qexp.analysis import proxies
from qexp.base.types import Batch


def batches(shape, classes, sizes=(3, 2)):
    generator = torch.Generator().manual_seed(0)
    start = 0
    for size in sizes:
        images = torch.randn(size, *shape, generator=generator)
        labels = torch.randint(0, classes, (size,), generator=generator)
        yield Batch(images, labels, torch.arange(start, start + size), size)
        start += size


def everything(loaded):
    images, labels = zip(*((batch.images, batch.labels) for batch in loaded), strict=True)
    return torch.cat(images), torch.cat(labels)


@pytest.fixture
def network():
    return nn.Sequential(nn.Flatten(), nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 3), nn.Dropout(0.5)).train()


def loss_of(network, images, labels, weight, name):
    logits = torch.func.functional_call(network, {name: weight}, (images,))
    return F.cross_entropy(logits, labels)


@pytest.mark.parametrize("name", ["1.weight", "3.weight"])
def test_fisher_is_the_mean_of_squared_gradients_of_single_images(network, name):
    fisher = proxies.fisher_diagonal(network, ["1.weight", "3.weight"], batches((1, 2, 2), 3))[name]
    network.eval()
    weight = dict(network.named_parameters())[name]
    images, labels = everything(batches((1, 2, 2), 3))
    gradients = [
        torch.autograd.grad(loss_of(network, images[k : k + 1], labels[k : k + 1], weight, name), weight)[0] for k in range(5)
    ]
    torch.testing.assert_close(fisher, torch.stack(gradients).square().mean(0))


def test_traces_come_near_the_whole_hessian_s(network):
    names = ["1.weight", "3.weight"]
    traces = proxies.hessian_traces(network, names, batches((1, 2, 2), 3), probes=1000, seed=1)
    assert network.training  # as it was
    assert all(parameter.requires_grad for parameter in network.parameters()) and network[1].weight.grad is None
    network.eval()
    images, labels = everything(batches((1, 2, 2), 3))
    for name in names:
        weight = dict(network.named_parameters())[name].detach()
        hessian = torch.autograd.functional.hessian(lambda w, name=name: loss_of(network, images, labels, w, name), weight)
        trace = float(hessian.reshape(weight.numel(), -1).diagonal().sum())
        mean, error = traces[name]
        assert 0 < error < 0.25 * abs(trace)
        assert abs(mean - trace) < 4 * error
    assert traces == proxies.hessian_traces(network, names, batches((1, 2, 2), 3), probes=1000, seed=1)


def test_a_weight_without_curvature_or_without_use_has_none():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.used, self.idle = nn.Linear(4, 3), nn.Linear(2, 2)

        def forward(self, images):
            return self.used(images.flatten(1))

    traces = proxies.hessian_traces(Net(), ["used.weight", "idle.weight"], batches((1, 2, 2), 3), probes=2, seed=0)
    assert traces["idle.weight"] == (0.0, 0.0) and traces["used.weight"][0] > 0
    assert not proxies.fisher_diagonal(Net(), ["idle.weight"], batches((1, 2, 2), 3))["idle.weight"].any()


LAYERS = {
    "linear": (nn.Linear(6, 5, bias=False), (6,)),
    "grouped": (nn.Conv2d(6, 4, 3, groups=2, padding=1, bias=False), (6, 8, 8)),
    "depthwise": (nn.Conv2d(6, 12, 1, groups=6, bias=False), (6, 8, 8)),
    "transposed": (nn.ConvTranspose2d(6, 4, 2, stride=2, bias=False), (6, 8, 8)),
}


@pytest.mark.parametrize(("layer", "shape"), LAYERS.values(), ids=LAYERS)
def test_weighted_error_is_the_error_of_the_output_for_independent_inputs(layer, shape):
    generator = torch.Generator().manual_seed(0)
    spread = torch.tensor([0.1, 0.5, 1.0, 2.0, 3.0, 4.0]).view(-1, *[1] * (len(shape) - 1))
    images = torch.randn(4000, *shape, generator=generator) * spread
    copied = layer.weight.detach() + 0.1 * torch.randn(layer.weight.shape, generator=generator)
    network = nn.Sequential(layer)
    power = proxies.input_power(network, ["0"], [Batch(images, torch.zeros(4000), torch.arange(4000), 4000)])["0"]
    torch.testing.assert_close(power.float(), spread.flatten().square(), rtol=0.1, atol=0)
    weighted = proxies.weighted_error(layer, layer.weight.detach(), copied, power)
    error = torch.func.functional_call(layer, {"weight": copied - layer.weight.detach()}, (images[:500],)).detach()
    inner = error[..., 1:-1, 1:-1] if error.dim() == 4 else error  # at the padded edge fewer inputs meet the kernel
    per_output = inner.square().movedim(1, 0).flatten(1).mean(1).sum()
    # Strided and transposed, each output value meets one of the kernel's positions: a quarter of its weights.
    expected = 4 * float(per_output) if isinstance(layer, nn.ConvTranspose2d) else float(per_output)
    assert weighted == pytest.approx(expected, rel=0.15)


def test_errors_by_hand():
    source, copied = torch.tensor([[1.0, -2.0]]), torch.tensor([[1.5, -2.0]])
    errors = proxies.weight_errors(source, copied)
    assert errors["noise_to_signal"] == 0.05 and errors["mse"] == 0.125
    assert errors["sqnr_db"] == pytest.approx(13.0103, abs=1e-4)
    assert proxies.weight_errors(source, source) == {"sqnr_db": None, "noise_to_signal": 0.0, "mse": 0.0}
    assert proxies.fisher_error(source, copied, torch.tensor([[4.0, 9.0]])) == 0.5
    assert proxies.hessian_error(source, copied, 6.0) == 0.5 * 6 / 2 * 0.25
