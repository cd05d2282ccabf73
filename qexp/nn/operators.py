"""What an operator of a traced network does to the values it reads: which of them an integer runtime multiplies, adds or keeps.

The kinds are those of int8 runtimes. `conv`, `linear` and `matmul` read codes and accumulate in integers; `add`, `multiply`,
`concat` and `pool` (averages, interpolation) also read and write codes; `keep` gives back values it was given (max pooling,
reshaping, dropout in eval mode), so codes pass it as they are; `relu` does so where its input has codes already. `attention` is a
call that multiplies inside, with weights of its own, where the trace does not enter. All else is computed in float: `norm`, and
`other` (SiLU, sigmoid, softmax, constants added), which oneDNN, OpenVINO and TensorRT run on the accumulator of the layer before.
"""

from __future__ import annotations

import operator
from collections.abc import Iterable

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torch.utils._pytree import tree_iter

MATRIX = ("conv", "linear", "matmul", "attention")
INTEGER = (*MATRIX, "add", "multiply", "concat", "pool")
POSITIVE = ("relu", "relu6", "sigmoid", "hardsigmoid", "softmax", "abs", "square", "exp", "softplus")

_DROPOUT = nn.modules.dropout._DropoutNd
_TRANSFORMERS = (
    *(nn.Transformer, nn.TransformerEncoder, nn.TransformerDecoder),
    *(nn.TransformerEncoderLayer, nn.TransformerDecoderLayer),
)
_MODULES: tuple[tuple[tuple[type, ...], str], ...] = (
    ((nn.modules.conv._ConvNd,), "conv"),
    ((nn.Linear,), "linear"),
    ((nn.Bilinear,), "matmul"),
    ((nn.MultiheadAttention, nn.RNNBase, nn.RNNCellBase, *_TRANSFORMERS), "attention"),
    ((nn.modules.batchnorm._NormBase, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm), "norm"),
    ((nn.ReLU,), "relu"),
    (
        (
            nn.modules.pooling._MaxPoolNd,
            nn.modules.pooling._AdaptiveMaxPoolNd,
            nn.FractionalMaxPool2d,
            nn.Flatten,
            nn.Unflatten,
            nn.Identity,
            _DROPOUT,
            nn.ChannelShuffle,
            nn.PixelShuffle,
            nn.PixelUnshuffle,
            nn.Unfold,
            nn.ZeroPad1d,
            nn.ZeroPad2d,
            nn.ZeroPad3d,
            nn.modules.padding._ReflectionPadNd,
            nn.modules.padding._ReplicationPadNd,
            nn.modules.padding._CircularPadNd,
        ),
        "keep",
    ),
    ((nn.modules.pooling._AvgPoolNd, nn.modules.pooling._AdaptiveAvgPoolNd), "pool"),
)
_MATMULS = (torch.matmul, operator.matmul, torch.bmm, torch.mm, torch.mv, torch.einsum, F.bilinear, torch.tensordot)
_CONVS = (
    *(F.conv1d, F.conv2d, F.conv3d, F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d),
    *(torch.conv1d, torch.conv2d, torch.conv3d, torch.conv_transpose1d, torch.conv_transpose2d, torch.conv_transpose3d),
)
_POOLS = (
    *(F.avg_pool1d, F.avg_pool2d, F.avg_pool3d, F.adaptive_avg_pool1d, F.adaptive_avg_pool2d, F.adaptive_avg_pool3d),
    *(torch.mean, torch.sum),
)
_KEEPS = (
    *(F.max_pool1d, F.max_pool2d, F.max_pool3d, F.adaptive_max_pool1d, F.adaptive_max_pool2d, F.adaptive_max_pool3d),
    *(torch.max_pool1d, torch.max_pool2d, torch.max_pool3d, torch.amax, torch.flatten, torch.unflatten, torch.reshape),
    *(torch.permute, torch.transpose, torch.swapaxes, torch.movedim, torch.squeeze, torch.unsqueeze, torch.t, torch.narrow),
    *(torch.select, torch.chunk, torch.split, torch.tensor_split, torch.unbind, torch.roll, torch.flip, torch.clone),
    *(torch.tile, F.dropout1d, F.dropout2d, F.dropout3d, F.alpha_dropout, F.feature_alpha_dropout, F.dropout, torch.dropout),
    *(
        F.pixel_shuffle,
        F.pixel_unshuffle,
        F.unfold,
        torch.channel_shuffle,
        F.channel_shuffle,
        torch.detach,
        torch.rot90,
        torch.index_select,
    ),
)
_FUNCTIONS: dict[object, str] = {
    **dict.fromkeys(_CONVS, "conv"),
    F.linear: "linear",
    **dict.fromkeys(_MATMULS, "matmul"),
    F.scaled_dot_product_attention: "attention",
    F.multi_head_attention_forward: "attention",
    **dict.fromkeys((operator.add, operator.iadd, torch.add, operator.sub, operator.isub, torch.sub), "add"),
    **dict.fromkeys((operator.mul, operator.imul, torch.mul, operator.truediv, operator.itruediv, torch.div), "multiply"),
    **dict.fromkeys((torch.cat, torch.concat, torch.concatenate, torch.stack, torch.hstack, torch.vstack), "concat"),
    **dict.fromkeys(_POOLS, "pool"),
    **dict.fromkeys((F.relu, F.relu_, torch.relu, torch.relu_), "relu"),
    **dict.fromkeys((F.batch_norm, F.layer_norm, F.group_norm, F.instance_norm, F.rms_norm), "norm"),
    **dict.fromkeys(_KEEPS, "keep"),
    operator.getitem: "keep",
}
_METHODS: dict[str, str] = {
    **dict.fromkeys(("matmul", "bmm", "mm", "mv", "__matmul__", "__rmatmul__"), "matmul"),
    **dict.fromkeys(("add", "add_", "sub", "sub_", "__add__", "__radd__", "__iadd__"), "add"),
    **dict.fromkeys(("mul", "mul_", "div", "div_", "__mul__", "__rmul__", "__imul__"), "multiply"),
    **dict.fromkeys(("mean", "sum"), "pool"),
    **dict.fromkeys(("relu", "relu_"), "relu"),
    **dict.fromkeys(
        (
            *("view", "reshape", "reshape_as", "view_as", "flatten", "unflatten", "permute", "transpose", "swapaxes", "movedim"),
            *("squeeze", "unsqueeze", "t", "contiguous", "clone", "detach", "expand", "expand_as", "repeat", "tile", "narrow"),
            *(
                "select",
                "chunk",
                "split",
                "tensor_split",
                "unbind",
                "roll",
                "flip",
                "amax",
                "to",
                "float",
                "unfold",
                "index_select",
            ),
        ),
        "keep",
    ),
}


def operator_of(node: fx.Node, module: nn.Module | None) -> str:
    """The kind of a node, by the module, function or method that it calls; operands are looked at by the caller.

    Args:
        node: of a graph traced in eval mode.
        module: what a `call_module` node calls.
    """
    if node.op == "placeholder":
        return "image"
    if module is not None:
        if isinstance(module, nn.Upsample):
            return "keep" if module.mode.startswith("nearest") else "pool"
        if isinstance(module, nn.modules.padding._ConstantPadNd):
            return "keep" if module.value == 0 else "other"
        return next((kind for types, kind in _MODULES if isinstance(module, types)), "other")
    if node.op == "call_method":
        return _METHODS.get(str(node.target), "other")
    if node.target is F.interpolate:
        return "keep" if str(_argument(node, 3, "mode", "nearest")).startswith("nearest") else "pool"
    if node.target in (F.pad, torch.constant_pad_nd):
        constant = node.target is torch.constant_pad_nd or _argument(node, 2, "mode", "constant") == "constant"
        value = _argument(node, *((2, "value") if node.target is torch.constant_pad_nd else (3, "value")), None)
        return "other" if constant and value not in (None, 0, 0.0) else "keep"
    if getattr(node.target, "__name__", "") == "stochastic_depth":  # torchvision's; the identity in eval mode
        return "keep"
    try:
        return _FUNCTIONS.get(node.target, "other")
    except TypeError:  # a callable without a hash
        return "other"


def operator_name(node: fx.Node, module: nn.Module | None) -> str:
    """What a reader calls the operator: its kind, or for `other` the name of the module's class or of the function.

    Args:
        node: of a graph traced in eval mode.
        module: what a `call_module` node calls.
    """
    kind = operator_of(node, module)
    if module is not None and kind == "other":
        return type(module).__name__.lower()
    return function_name(node) if kind == "other" else kind


def function_name(node: fx.Node) -> str:
    """The name of the function or method that a node calls."""
    return str(node.target) if isinstance(node.target, str) else getattr(node.target, "__name__", "call").strip("_")


def tensors_of(value: object) -> Iterable[Tensor]:
    """The floating-point tensors in a value: itself, or those of a list, tuple or mapping."""
    return [leaf for leaf in tree_iter(value) if isinstance(leaf, Tensor) and leaf.is_floating_point()]


def _argument(node: fx.Node, position: int, name: str, default: object) -> object:
    """An argument given by position or by name."""
    return node.args[position] if len(node.args) > position else node.kwargs.get(name, default)
