"""What quantizes an activation point in a file: what no file holds, and floats of 8 bits; codes are written by `qdq`.

ONNX Runtime (1.31) treats QuantizeLinear and DequantizeLinear as those of integers whatever their types: of a layer between them
it makes a `QLinearConv` of floats, which it does not load, and it moves them over a slice, which has no kernel for such floats.
So the maximum with the lower end of the grid, which changes no number, stands before QuantizeLinear, and behind DequantizeLinear
where others than layers read it. Layers read DequantizeLinear itself, as kernels for these floats look for it.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch

from qexp.base.errors import UserError
from qexp.config.export import FILE_FLOATS, float8_type
from qexp.deploy.float8 import overflow_of
from qexp.deploy.onnx.layers import conv, conv_transpose, linear, product
from qexp.deploy.onnx.node import OnnxNode, Value
from qexp.deploy.onnx.operators import Handler
from qexp.nn.fake_quantize import FakeQuantize, FloatFakeQuantize
from qexp.quant.float_quantizers import Minifloat

_LAYERS: frozenset[Handler | None] = frozenset((conv, conv_transpose, linear, product))


def check_point(module: FakeQuantize) -> None:
    """Raise UserError for what a file cannot hold.

    Args:
        module: of the point.
    """
    spec, name = module.spec, module.name
    wanted: dict[str, object] = {"mode": "int", "rounding": "half_even"}
    if isinstance(module, FloatFakeQuantize):
        wanted |= {"scheme": "minifloat"} | ({"dynamic": False} if spec.scaled else {})
    elif spec.dynamic:
        wanted |= {"scheme": "affine", "bits": 8, "granularity": "per_tensor"}
    for key, value in wanted.items():
        if getattr(spec, key) != value:
            is_codes = spec.dynamic and not isinstance(module, FloatFakeQuantize)
            where = "DynamicQuantizeLinear" if is_codes else "QuantizeLinear"
            raise UserError(f"{name}.{key}", getattr(spec, key), allowed=f"{value} in {where}")


def quantize_to_float8(node: OnnxNode, module: FloatFakeQuantize, name: str, readers: Iterable[Handler | None]) -> Value:
    """QuantizeLinear to a float of 8 bits, and DequantizeLinear: x -> s R(x / s), saturating as the quantizer does.

    Args:
        node: that quantizes.
        module: of the point.
        name: of the point.
        readers: what writes the calls that read the point.

    Raises:
        UserError: a format without a type in ONNX.
    """
    check_point(module)
    spec, x, writer = module.spec, node.activation(), node.context.writer
    element = Minifloat.element(spec)
    dtype = float8_type(element)
    if dtype is None:
        raise UserError(f"{module.name}.format", element.name, allowed=f"{' or '.join(FILE_FLOATS)} in QuantizeLinear")
    if spec.scaled and bool(module.scale.isnan().any()):
        raise RuntimeError(f"fake quantization at {module.name} was not calibrated: call set_range")
    scale = module.scale.float() if spec.scaled else torch.tensor(1.0)
    grid = [writer.tensor(f"{name}.scale", scale), writer.float8(f"{name}.zero_point", torch.zeros_like(scale), dtype)]
    axis = {} if scale.dim() == 0 else {"axis": spec.axis}
    saturates = overflow_of(spec) == "sat"
    # The maximum with the grid's lower end changes no number of it.
    low = node.number(-element.max_value * float(scale.max()) if saturates else -torch.inf)
    operand = node.emit("Max", x.name, low)
    codes = writer.node("QuantizeLinear", [operand, *grid], f"{name}.codes", saturate=int(saturates), **axis)[0]
    values = writer.node("DequantizeLinear", [codes, *grid], f"{name}.codes.values", **axis)[0]
    return Value(values if set(readers) <= _LAYERS else node.emit("Max", values, low), x.shape)
