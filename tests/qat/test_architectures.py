"""Networks as torchvision has them go through prepare, two steps, convert and evaluate, without a special case for any."""

import copy
import inspect
from functools import cache

import pytest
import torch
from torch import nn

from qexp.base.torchvision_compat import torchvision
from qexp.nn.inventory import inventory

NAMES = ("resnet18", "mobilenet_v2", "googlenet", "densenet121", "efficientnet_b0")
NORMS = nn.modules.batchnorm._BatchNorm


def images(name=""):
    size = 48 if name in ("mobilenet_v2", "efficientnet_b0") else 32  # on smaller ones some of their layers answer zero alone
    return torch.randn(4, 3, size, size, generator=torch.Generator().manual_seed(0))


def network(name):
    return copy.deepcopy(_network(name))


@cache
@torch.no_grad()
def _network(name):
    """With random weights, its batch norm estimated on the images; in eval mode."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        options = {"init_weights": False} if name == "googlenet" else {}
        model = getattr(torchvision().models, name)(num_classes=10, **options)
        for module in model.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                nn.init.kaiming_normal_(module.weight)
            if isinstance(module, NORMS):
                module.momentum = None
        model.train()(images(name))
    return model.eval()


def goes_through(case):
    """Two steps, and the converted network is the trained one; every weight of a layer that runs is quantized."""
    classes = {name: type(module) for name, module in case.network.named_modules()}
    sources = {kind: inspect.getsource(kind.forward) for kind in set(classes.values())}
    before = copy.deepcopy(case.network.state_dict())
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)  # for networks with dropout
        case.train(2, lr=1e-3)
    assert case.qat.masters().keys() == before.keys()
    trained = [name for name, info in case.qat.masters().items() if not torch.equal(info, before[name])]
    converted, logits = case.convert(), case.logits()
    converted_logits = case.assembled(converted)
    assert bool(logits.isfinite().all()) and float(logits.std(0).mean()) > 1e-3, "a constant answer shows nothing"
    rows = inventory(case.network, case.images[:1])
    layers = {row.name for row in rows if row.kind in ("conv", "linear") and row.role == "weight" and row.order >= 0}
    assert set(converted.weights) == layers and layers <= set(trained)
    assert all(converted.state[name].flatten()[:4096].unique().numel() <= 16 for name in layers)
    assert classes == {name: type(module) for name, module in case.network.named_modules()}
    assert all(inspect.getsource(kind.forward) == source for kind, source in sources.items())
    assert all(torch.equal(value, before[name]) for name, value in case.network.state_dict().items())
    return converted, logits, converted_logits


def slowly(*names):
    """NAMES, of which these take seconds more than the others."""
    return [pytest.param(name, marks=[pytest.mark.slow] * (name in names)) for name in NAMES]


@pytest.mark.parametrize("name", slowly("densenet121"))
def test_lsq_at_four_bits(name, kit):
    converted, logits, converted_logits = goes_through(kit.prepared(network(name), images(name)))
    assert not converted.folded and torch.equal(converted_logits, logits)


@pytest.mark.parametrize("name", slowly("densenet121", "efficientnet_b0"))
def test_lsq_at_four_bits_with_batch_norm_folded(name, kit):
    """In float64: in float32 what folding rounds otherwise now and then moves a code across a tie, and later layers enlarge it.

    The converted network's folded weights are float32, hence the tolerance, and among DenseNet's millions of values some image
    may still cross a tie; a fold that is wrong is wrong for all of them. Its batch norms stand before their layers; those behind
    one are folded.
    """
    case = kit.prepared(network(name).double(), images(name).double(), batch_norm="folded")
    converted, logits, converted_logits = goes_through(case)
    assert converted.folded and len(case.qat.norms) > 19
    is_equal = (converted_logits - logits).abs().amax(1) <= 1e-5
    assert is_equal.sum() >= (2 if name == "densenet121" else len(is_equal))


@pytest.mark.parametrize(("name", "method"), [("mobilenet_v2", "ste"), ("resnet18", "pact"), ("resnet18", "every_step")])
def test_other_methods(name, method, kit):
    converted, logits, converted_logits = goes_through(kit.prepared(network(name), images(name), name=method))
    assert torch.equal(converted_logits, logits) and converted.about == {}


@pytest.mark.parametrize("method", ["lsq", "lsq_plus"])
def test_a_vision_transformer(method, kit):
    """vit_b_16's class and blocks at a small size: attention's matrices are parameters that a function reads."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        sizes = {"image_size": 32, "patch_size": 8, "num_layers": 2, "num_heads": 2, "hidden_dim": 16, "mlp_dim": 32}
        model = torchvision().models.VisionTransformer(num_classes=10, **sizes).eval()
        nn.init.normal_(model.heads.head.weight)  # zero otherwise, and so are all logits
        nn.init.normal_(model.conv_proj.weight, std=0.1)
    converted, logits, converted_logits = goes_through(kit.prepared(model, images(), name=method))
    assert torch.equal(converted_logits, logits)
    assert "encoder.layers.encoder_layer_0.self_attention.in_proj_weight" in converted.weights
