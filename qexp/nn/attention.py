"""Attention taken apart into the layers and products of activations that it computes, so that each of them has codes.

torch and torchvision compute attention in one call, with weights of its own or without: `nn.MultiheadAttention`,
`scaled_dot_product_attention`, Swin's shifted windows. A trace does not enter these, so that only what goes in and comes out
could be quantized. Here the call becomes the operators that its definition names: linear layers with the module's own
parameters, q k^T, softmax, and its product with v. The products are of two activations. The scale of q k^T is applied to the
product, on its accumulator, and not to q, which so is quantized once. Sums are in another order than in torch's fused kernels:
the same numbers up to the last digits of float32.

What is not taken apart stays one operator: attention between two sequences, with masks that are no constants to add, with keys or
values of other sizes, torch's modules whose batch comes second, that have hooks or whose weights or tuple are read, and its
`nn.Transformer` layers.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torch.fx.proxy import GraphAppendingTracer

from qexp.nn.operators import function_name

Shapes = Mapping[fx.Node, tuple[int, ...] | None]
_MASKED = -100.0  # torchvision's, between pixels of windows that were not neighbours


def enter_attention(root: nn.Module, graph: fx.Graph, shapes: Shapes, device: torch.device) -> bool:
    """Replace calls of attention by what they compute; False where there are none that can be.

    Args:
        root: holds the modules that the graph calls, and gets the tensors that the new operators read.
        graph: of a network in eval mode, changed in place.
        shapes: node -> shape of its value on the example.
        device: of these tensors.
    """
    constants: dict[str, Tensor] = {}
    entered = False
    for node in list(graph.nodes):
        parts = _parts_of(root, node)
        if parts is None:
            continue
        before = set(graph.nodes)
        with graph.inserting_before(node):
            result = parts(_Entry(root, node, GraphAppendingTracer(graph), shapes, constants, device))
        if result is None:
            continue
        for new in set(graph.nodes) - before:
            new.meta = {"nn_module_stack": node.meta.get("nn_module_stack")}
        if isinstance(_module_at(root, node), nn.MultiheadAttention):
            for reader in list(node.users):  # `values, weights = attention(...)`
                reader.replace_all_uses_with(result.node)  # the weights have no readers
                graph.erase_node(reader)
        node.replace_all_uses_with(result.node)
        graph.erase_node(node)
        entered = True
    return entered


@dataclass(frozen=True)
class _Entry:
    """A call that is being taken apart; what is asked of its proxies is written before it."""

    root: nn.Module
    node: fx.Node
    tracer: GraphAppendingTracer
    shapes: Shapes
    constants: dict[str, Tensor]
    device: torch.device

    def proxy(self, value: object) -> Any:
        """A value to compute with."""
        return fx.Proxy(value, self.tracer) if isinstance(value, fx.Node) else value

    def parameter(self, name: str) -> Any:
        """A parameter of the module that the node calls; None where it has none."""
        value = self.root.get_submodule(str(self.node.target))
        for part in name.split("."):
            value = getattr(value, part)
        return None if value is None else self.proxy(self.node.graph.get_attr(f"{self.node.target}.{name}"))

    def constant(self, value: Tensor) -> Any:
        """A tensor as an attribute of the network's graph, by a name that torch.fx gives such; equal ones are one."""
        same = (name for name, other in self.constants.items() if other.dtype == value.dtype and torch.equal(other, value))
        name = next(same, f"_tensor_constant_attention{len(self.constants)}")
        if name not in self.constants:
            self.constants[name] = value
            setattr(self.root, name, value.to(self.device))
        return self.proxy(self.node.graph.get_attr(name))

    def arguments(self) -> dict[str, Any]:
        """The function's arguments by name, defaults filled in."""
        function = self.node.target
        names = inspect.signature(function) if inspect.isfunction(function) else _SDPA
        bound = names.bind(*self.node.args, **self.node.kwargs)
        bound.apply_defaults()
        return dict(bound.arguments)

    def shape(self, value: fx.Node) -> tuple[int, ...]:
        """Of a value on the example."""
        shape = self.shapes[value]
        assert shape is not None, value
        return shape


_SDPA = inspect.signature(  # of `scaled_dot_product_attention`, which is a built-in
    lambda query, key, value, attn_mask=None, dropout_p=0.0, is_causal=False, scale=None, enable_gqa=False: None
)


def _parts_of(root: nn.Module, node: fx.Node) -> Callable[[_Entry], Any] | None:
    """What takes a call apart; None where it is none of attention."""
    module = _module_at(root, node)
    if isinstance(module, nn.MultiheadAttention):
        # What a hook does or notes happens at the module's call.
        return None if module._forward_hooks or module._forward_pre_hooks else _multihead
    if node.op != "call_function":
        return None
    if node.target is F.scaled_dot_product_attention:
        return _scaled_product
    if getattr(node.target, "__module__", "") == "torchvision.models.swin_transformer":
        return {"shifted_window_attention": _windows, "patch_merging_pad": _merge_patches}.get(function_name(node))
    return None


def _module_at(root: nn.Module, node: fx.Node) -> nn.Module | None:
    return root.get_submodule(str(node.target)) if node.op == "call_module" else None


def _attend(qkv: Any, num_heads: int, dim: int, masked: Callable[[Any], Any] | None = None) -> Any:
    """softmax(q k^T / sqrt(dim)) v of all heads, side by side; [N, L, 3 E] -> [N, L, E], E = num_heads dim.

    Args:
        qkv: queries, keys and values side by side.
        num_heads: each with its part of E.
        dim: of a head.
        masked: what is done to the scaled products before their softmax.
    """
    parts = qkv.chunk(3, -1)
    query, key, value = (parts[number].unflatten(-1, (num_heads, dim)) for number in range(3))
    scores = torch.matmul(query.permute(0, 2, 1, 3), key.permute(0, 2, 3, 1)) * dim**-0.5
    scores = scores if masked is None else masked(scores)
    return torch.matmul(torch.softmax(scores, -1), value.permute(0, 2, 1, 3)).permute(0, 2, 1, 3).flatten(2)


def _multihead(entry: _Entry) -> Any:
    """Self-attention of `nn.MultiheadAttention` on [N, L, E] whose weights nobody reads."""
    module, node = _module_at(entry.root, entry.node), entry.node
    assert isinstance(module, nn.MultiheadAttention)
    names = ("query", "key", "value", "key_padding_mask", "need_weights", "attn_mask")
    given = dict(zip(names, node.args, strict=False)) | dict(node.kwargs)
    source = given["query"]
    assert isinstance(source, fx.Node)
    masked = any(given.get(name) is not None for name in ("key_padding_mask", "attn_mask")) or given.get("is_causal")
    first = all(function_name(reader) == "getitem" and (reader.args[1:] == (0,) or not reader.users) for reader in node.users)
    if not (module.batch_first and module._qkv_same_embed_dim and first) or masked or module.bias_k is not None:
        return None
    if module.add_zero_attn or not (given["key"] is source and given["value"] is source) or len(entry.shape(source)) != 3:
        return None
    qkv = F.linear(entry.proxy(source), entry.parameter("in_proj_weight"), entry.parameter("in_proj_bias"))
    values = _attend(qkv, module.num_heads, module.head_dim)
    return F.linear(values, entry.parameter("out_proj.weight"), entry.parameter("out_proj.bias"))


def _scaled_product(entry: _Entry) -> Any:
    """`scaled_dot_product_attention` of [N, ..., L, E], with a mask that is added or none."""
    given = entry.arguments()
    query, key, value, mask = (given[name] for name in ("query", "key", "value", "attn_mask"))
    is_added = mask is None or (isinstance(mask, fx.Node) and entry.shapes.get(mask) is not None)  # others are of bools
    if given["is_causal"] or given["enable_gqa"] or not is_added:
        return None
    scale = given["scale"] if given["scale"] is not None else entry.shape(query)[-1] ** -0.5
    scores = torch.matmul(entry.proxy(query), entry.proxy(key).transpose(-2, -1)) * entry.proxy(scale)
    scores = scores if mask is None else scores + entry.proxy(mask)
    return torch.matmul(torch.softmax(scores, -1), entry.proxy(value))


def _windows(entry: _Entry) -> Any:
    """Torchvision's `shifted_window_attention`: the pixels of each window are gathered, attend to each other, and go back."""
    given = entry.arguments()
    height, width, channels = entry.shape(given["input"])[1:]
    window, shifts = list(given["window_size"]), list(given["shift_size"])
    if given.get("logit_scale") is not None:  # Swin V2's cosines
        return None
    padded = [-(-size // side) * side for size, side in zip((height, width), window, strict=True)]
    shifts = [0 if side >= size else shift for side, size, shift in zip(window, padded, shifts, strict=True)]
    order = _window_order(padded, window, shifts)  # [windows, pixels of one], places in the padded image
    num_windows, num_pixels = order.shape
    x = F.pad(entry.proxy(given["input"]), (0, 0, 0, padded[1] - width, 0, padded[0] - height))
    x = torch.index_select(x.flatten(1, 2), 1, entry.constant(order.flatten())).unflatten(1, (num_windows, num_pixels))
    qkv = F.linear(x.flatten(0, 1), entry.proxy(given["qkv_weight"]), entry.proxy(given["qkv_bias"]))
    heads, bias = given["num_heads"], entry.proxy(given["relative_position_bias"])
    mask = entry.constant(_shifted_mask(order, padded, window, shifts)) if sum(shifts) else None

    def masked(scores: Any) -> Any:
        scores = scores + bias
        return scores if mask is None else (scores.unflatten(0, (-1, num_windows)) + mask).flatten(0, 1)

    values = _attend(qkv, heads, channels // heads, masked)
    x = F.linear(values, entry.proxy(given["proj_weight"]), entry.proxy(given["proj_bias"]))
    back = torch.argsort(order.flatten()).unflatten(0, (padded[0], padded[1]))[:height, :width].flatten()
    x = x.unflatten(0, (-1, num_windows)).flatten(1, 2)
    return torch.index_select(x, 1, entry.constant(back)).unflatten(1, (height, width))


def _window_order(size: Sequence[int], window: Sequence[int], shifts: Sequence[int]) -> Tensor:
    """Places of the pixels of each window of an image that was rolled by -shifts, [windows, pixels]."""
    places = torch.arange(size[0] * size[1]).unflatten(0, (size[0], size[1])).roll((-shifts[0], -shifts[1]), (0, 1))
    return places.unfold(0, window[0], window[0]).unfold(1, window[1], window[1]).flatten(2).flatten(0, 1)


def _shifted_mask(order: Tensor, size: Sequence[int], window: Sequence[int], shifts: Sequence[int]) -> Tensor:
    """What keeps pixels of a window apart that rolling brought together from two ends, [windows, 1, pixels, pixels]."""
    ends = [torch.bucketize(torch.arange(side), torch.tensor([side - one, side - shift]), right=True) for side, one, shift in
            zip(size, window, shifts, strict=True)]  # fmt: skip
    regions = (3 * ends[0][:, None] + ends[1]).unfold(0, window[0], window[0]).unfold(1, window[1], window[1])
    regions = regions.reshape(order.shape)
    apart = regions[:, None, :] != regions[:, :, None]
    return torch.where(apart, _MASKED, 0.0).unsqueeze(1)


def _merge_patches(entry: _Entry) -> Any:
    """Torchvision's `_patch_merging_pad`: two by two pixels side by side, [N, H, W, C] -> [N, H/2, W/2, 4 C]."""
    (source,) = entry.node.all_input_nodes
    height, width, channels = entry.shape(source)[1:]
    x = F.pad(entry.proxy(source), (0, 0, 0, width % 2, 0, height % 2))
    x = x.unflatten(2, (-1, 2)).unflatten(1, (-1, 2))  # [N, H/2, 2, W/2, 2, C]
    return x.permute(0, 1, 3, 4, 2, 5).flatten(3)
