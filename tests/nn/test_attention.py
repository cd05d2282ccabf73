"""Attention taken apart: the numbers of torch's and torchvision's own calls, and what is left as it is."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from qexp.base.torchvision_compat import torchvision
from qexp.nn.activation_points import activations
from qexp.nn.graph import trace

EMBED = 8


class Attends(nn.Module):
    """A call of attention between a layer before it and one behind; images are [N, 1, L, E]."""

    def __init__(self, call, **options):
        super().__init__()
        self.attention = nn.MultiheadAttention(EMBED, 2, **options)
        self.mask = nn.Parameter(torch.randn(5, 5))
        self.call, self.head = call, nn.Linear(EMBED, EMBED)

    def forward(self, images, hint=None, scale=2.0):
        x = images[:, 0]
        if hint is not None:
            x = x + hint
        return self.head(CALLS[self.call](self, x * scale))


CALLS = {
    "module": lambda net, x: net.attention(x, x, x, need_weights=False)[0],
    "module_unpacked": lambda net, x: net.attention(x, x, x)[0],
    "function": lambda net, x: F.scaled_dot_product_attention(x, x.flip(1), x),
    "function_scale": lambda net, x: F.scaled_dot_product_attention(query=x, key=x, value=x, scale=0.3),
    "function_mask": lambda net, x: F.scaled_dot_product_attention(x, x, x, net.mask),
    # left as they are
    "function_bools": lambda net, x: F.scaled_dot_product_attention(x, x, x, net.mask > 0),
    "function_causal": lambda net, x: F.scaled_dot_product_attention(x, x, x, is_causal=True),
    "module_cross": lambda net, x: net.attention(x, x.flip(1), x.flip(1), need_weights=False)[0],
    "module_weights": lambda net, x: net.attention(x, x, x)[1] @ x,
    "module_mask": lambda net, x: net.attention(x, x, x, attn_mask=net.mask, need_weights=False)[0],
}
ENTERED = ("module", "module_unpacked", "function", "function_scale", "function_mask")


@torch.no_grad()
@pytest.mark.parametrize("call", CALLS)
def test_calls(call):
    torch.manual_seed(0)
    net, images = Attends(call, batch_first=True).eval(), torch.randn(3, 1, 5, EMBED)
    traced = trace(net, images[:1])
    infos = activations(traced)
    assert all(info.entered for info in infos) == (call in ENTERED)
    assert torch.allclose(traced.build()(images), net(images), atol=1e-5)
    if call in ENTERED:
        products = [info for info in infos if "matmul" in info.kinds]
        softmax = next(info for info in products if info.operator.endswith("softmax"))
        assert softmax.non_negative and len({reader for info in products for reader in info.consumers}) == 2


@torch.no_grad()
def test_weights_of_the_module_are_read_by_their_names():
    net, images = Attends("module", batch_first=True, bias=False).eval(), torch.randn(2, 1, 5, EMBED)
    layers = {layer for info in activations(trace(net, images)) for layer in info.layers}
    assert layers == {"attention.in_proj_weight", "attention.out_proj.weight", "head.weight"}


@torch.no_grad()
@pytest.mark.parametrize(
    "options", [{"batch_first": False}, {"add_zero_attn": True}, {"add_bias_kv": True}, {"kdim": 8, "vdim": 8}]
)
def test_other_modules(options):
    """With the batch behind the tokens, with keys that are added: one operator, as before."""
    options = {"batch_first": True} | options
    net, images = Attends("module", **options).eval(), torch.randn(2, 1, 5, EMBED)
    traced = trace(net, images)
    is_plain = "kdim" in options  # of the same size as all else, which torch holds as one matrix
    assert all(info.entered for info in activations(traced)) == is_plain
    assert torch.allclose(traced.build()(images), net(images), atol=1e-5)


@torch.no_grad()
def test_the_layers_of_a_transformer_are_named():
    layer = nn.TransformerEncoderLayer(EMBED, 2, 12, batch_first=True)
    net = nn.Sequential(nn.Flatten(1, 2), layer, nn.Linear(EMBED, 3)).eval()
    (inside,) = (info for info in activations(trace(net, torch.randn(2, 1, 5, EMBED))) if not info.entered)
    weights = ("self_attn.in_proj_weight", "self_attn.out_proj.weight", "linear1.weight", "linear2.weight")
    assert (inside.name, inside.layers) == ("1.*", tuple(f"1.{name}" for name in weights))


@torch.no_grad()
def test_a_module_with_a_hook_is_called():
    net, images, called = Attends("module", batch_first=True).eval(), torch.randn(2, 1, 5, EMBED), []
    net.attention.register_forward_hook(lambda *_: called.append(True))
    traced = trace(net, images)
    called.clear()
    traced.build()(images)
    assert called and not all(info.entered for info in activations(traced))


@torch.no_grad()
def test_a_network_that_returns_the_tuple_of_attention_keeps_it():
    class Both(Attends):
        def forward(self, images):
            x = self.head(images[:, 0])
            return self.attention(x, x, x)

    net, images = Both("module", batch_first=True).eval(), torch.randn(2, 1, 5, EMBED)
    for value, expected in zip(trace(net, images).build()(images), net(images), strict=True):
        assert torch.equal(value, expected)


@torch.no_grad()
@pytest.mark.parametrize(("size", "window"), [((36, 44), (4, 4)), ((8, 8), (4, 4))])
def test_windows_of_swin(size, window):
    """Feature maps that are no multiple of the windows, and odd ones to be merged; windows larger than the map."""
    torch.manual_seed(0)
    net = torchvision().models.SwinTransformer([4, 4], 8, [2, 2], [2, 2], list(window), num_classes=3).eval()
    for parameter in net.parameters():
        parameter.normal_(std=0.3)
    images = torch.randn(3, 3, *size)
    traced = trace(net, images[:1])
    infos = activations(traced)
    assert all(info.entered for info in infos) and sum("matmul" in info.kinds for info in infos) == 2 * 4
    expected = net(images)
    assert torch.allclose(traced.build()(images), expected, atol=1e-5 * float(expected.abs().max()))
    assert traced.build().state_dict().keys() == net.state_dict().keys()
