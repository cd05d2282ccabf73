import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from qexp.config.calibrate import CalibrateSettings
from qexp.config.qat_methods import QAT_METHODS
from qexp.qat.initialise import initialise


class Plain(nn.Module):
    """Two convolutions without batch norm, whose activations are computed by hand."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two, self.head = nn.Conv2d(3, 6, 3), nn.Conv2d(6, 6, 3), nn.Linear(6, 3)

    def forward(self, x):
        return self.head(F.relu(self.two(F.relu(self.one(x)))).mean((2, 3)))


@torch.no_grad()
def test_lsq_begins_at_twice_the_mean_magnitude_over_the_root_of_p(graphs, kit):
    """Activations as quantized weights and float activations make them, over all images."""
    x = graphs.images(6)
    case = kit.prepared(Plain(), x)
    net, scales = case.network, {name: each.scale for name, each in case.qat.activations.items()}
    weights = {name: case.qat.weights[name](net.get_parameter(name)) for name in ("one.weight", "two.weight")}
    for name, weight in net.named_parameters():
        if name.endswith("weight"):
            scale = case.qat.weights[name].scale
            torch.testing.assert_close(scale, 2 * weight.abs().mean() / math.sqrt(7))
    torch.testing.assert_close(scales["input"], 2 * x.abs().mean() / math.sqrt(7))
    hidden = F.relu(F.conv2d(x, weights["one.weight"], net.one.bias))
    torch.testing.assert_close(scales["relu"], 2 * hidden.mean() / math.sqrt(15))
    pooled = F.relu(F.conv2d(hidden, weights["two.weight"], net.two.bias)).mean((2, 3))
    torch.testing.assert_close(scales["mean"], 2 * pooled.mean() / math.sqrt(15))


@pytest.mark.parametrize(("granularity", "batch_norm"), [("per_tensor", "unfolded"), ("per_channel", "folded")])
def test_lsq_begins_with_calibrated_ranges_where_asked(graphs, kit, granularity, batch_norm):
    """With min-max ranges nothing is clipped; the best clipping in the mean square lies below them."""
    x = graphs.images(6)
    options = {"granularity": granularity, "batch_norm": batch_norm, "first_step": "calibrated", "ready": False}
    case = kit.prepared(kit.estimated(graphs.Residual(), x), x, **options)
    scales = {}
    for method in ("minmax", "mse"):
        initialise(case.qat, lambda: kit.batches(x), CalibrateSettings(name=method, weights=method))
        weights = {name: getattr(module, "quantizer", module) for name, module in case.qat.weights.items()}
        scales[method] = {name: module.scale.detach().clone() for name, module in (weights | case.qat.activations).items()}
    name, module = next(iter(case.qat.weights.items()))
    weight = (
        case.network.get_parameter(name).detach()
        if batch_norm == "unfolded"
        else module.folded(case.qat.masters()[name]).detach()
    )
    axes = tuple(range(weight.dim())) if granularity == "per_tensor" else tuple(range(1, weight.dim()))
    quantizer = getattr(module, "quantizer", module)
    span = (quantizer.quant_max - quantizer.quant_min) / 2
    torch.testing.assert_close(scales["minmax"][name], weight.abs().amax(axes) / span)
    assert all(bool((scales["mse"][name] <= scales["minmax"][name] * 1.0001).all()) for name in scales["mse"])
    assert any(bool((scales["mse"][name] < scales["minmax"][name]).any()) for name in case.qat.weights)
    assert any(bool((scales["mse"][name] < scales["minmax"][name]).any()) for name in case.qat.activations)


@pytest.mark.parametrize(
    ("name", "batch_norm"),
    [(name, way) for name, row in QAT_METHODS.items() for way in ("unfolded", *["folded"] * (not row.why_unfolded))],
)
def test_every_method_has_no_value_before_and_all_after(graphs, kit, name, batch_norm):
    x = graphs.images()
    case = kit.prepared(kit.estimated(graphs.Residual(), x), x, name=name, batch_norm=batch_norm, ready=False)
    state = case.qat.module.state_dict()
    blank = {key for key, value in state.items() if value.is_floating_point() and value.isnan().any()}
    assert blank and all("fake_quant" in key or "parametrizations" in key for key in blank)
    modes = [module.training for module in case.qat.module.modules()]
    initialise(case.qat, lambda: kit.batches(x), CalibrateSettings())
    assert modes == [module.training for module in case.qat.module.modules()]
    assert all(bool(value.isfinite().all()) for value in case.qat.module.state_dict().values())
    assert all(bool(quantizer.qparams.scale > 0) for quantizer in case.qat.activations.values())
    assert bool(case.logits().std(0).mean() > 0.01)


def test_folded_weights_begin_as_they_are_once_folded(graphs, kit):
    x = graphs.images(8)
    case = kit.prepared(kit.estimated(graphs.Residual(), x), x, batch_norm="folded")
    net = case.network
    gain = net.bn1.weight / torch.sqrt(net.bn1.running_var + net.bn1.eps)
    expected = 2 * (net.conv1.weight * gain.view(-1, 1, 1, 1)).abs().mean() / math.sqrt(7)
    torch.testing.assert_close(case.qat.weights["conv1.weight"].quantizer.scale.detach(), expected.detach())


@pytest.mark.parametrize("way", ["ranges", "magnitudes"])
def test_only_the_calibration_images_are_seen(graphs, kit, way):
    """Method `percentile` reads them twice, each time anew; nothing that is not among them has a part."""
    x, served = graphs.images(6), []
    case = kit.prepared(Plain(), x, name="ste" if way == "ranges" else "lsq", ready=False)

    def calibration():
        for batch in kit.batches(x[:2], 1):
            served.append(batch)
            yield batch

    initialise(case.qat, calibration, CalibrateSettings(name="percentile", percentile=99.0))
    assert served and sum(len(batch.images) for batch in served) % 2 == 0
    quantizer = case.qat.activations["input"]
    if way == "magnitudes":
        torch.testing.assert_close(quantizer.scale.detach(), 2 * x[:2].abs().mean() / math.sqrt(7))
    else:
        assert x[:2].min() < quantizer.minimum < x[:2].quantile(0.05) and x[:2].quantile(0.95) < quantizer.maximum < x[:2].max()


@pytest.mark.parametrize("name", ["pact", "ste", "lsq_plus"])
def test_calibration_says_where_ranges_begin(graphs, kit, name):
    x = graphs.images()
    case = kit.prepared(Plain(), x, name=name)
    low, high = float(x.min()), float(x.max())
    quantizer = case.qat.activations["input"]
    if name == "pact":
        assert float(quantizer.alpha.detach()) == pytest.approx(max(-low, high))
    elif name == "ste":
        assert (float(quantizer.minimum), float(quantizer.maximum)) == pytest.approx((low, high))
    else:
        assert float(quantizer.scale.detach()) == pytest.approx((high - low) / 15)


@torch.no_grad()
@pytest.mark.parametrize("batch_norm", ["unfolded", "folded"])
def test_activations_are_seen_as_the_batches_statistics_normalize_them(graphs, kit, batch_norm):
    """Running statistics that fit other weights would begin with steps of another size than training has."""
    x = graphs.images(8)
    network = kit.estimated(graphs.Residual(), x)
    network.bn1.running_var.mul_(100)
    case = kit.prepared(network, x, batch_norm=batch_norm)
    seen = {}
    case.qat.activations["pool"].register_forward_hook(lambda module, args, result: seen.setdefault("pool", args[0]))
    before = {name: value.clone() for name, value in case.network.state_dict().items() if "running" in name}
    assert all(torch.equal(case.qat.masters()[name], value) for name, value in before.items()), "they are as before"
    case.qat.module.train()(x)
    expected = 2 * seen["pool"].abs().mean() / math.sqrt(15)
    torch.testing.assert_close(case.qat.activations["pool"].scale, expected, rtol=0.1, atol=0)
    frozen = kit.prepared(case.network, x, batch_norm=batch_norm, freeze_bn_epoch=1)
    assert frozen.qat.activations["pool"].scale < 0.5 * expected, "it trains with the running statistics"


def test_squashed_weights_take_batch_norms_statistics_along(graphs, kit):
    x = graphs.images(8)
    network = kit.estimated(graphs.Residual(), x)
    case = kit.prepared(network, x, name="dorefa")
    before, after = case.network.bn2.running_var, case.qat.masters()["bn2.running_var"]
    assert not torch.allclose(before, after, rtol=0.5) and case.qat.masters()["bn2.num_batches_tracked"] == 1
