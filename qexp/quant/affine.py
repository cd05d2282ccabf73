"""The affine quantizer: one rounding-explicit function under fake quantization, training and export.

Rounding and order, which is where libraries differ: x is scaled, *then rounded, then* the zero point is added, then the code is
clamped. torchao and torch do so; brevitas rounds the sum `x / scale + zero_point`, which differs by one code at ties with an odd
zero point. The scaling itself has two named arithmetics:

- `reciprocal`: v = x * (1 / scale), with 1 / scale rounded to float32; bit for bit `torch.fake_quantize_per_*_affine`.
- `divide`: v = x / scale; bit for bit ONNX `QuantizeLinear`.

They differ by one code at some exact ties and practically nowhere else. All arithmetic is float32.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import overload

import torch
from torch import Tensor

from qexp.base.errors import choose
from qexp.base.types import QParams
from qexp.quant.rounding import ROUNDINGS

ARITHMETICS = ("reciprocal", "divide")

Operation = Callable[..., Tensor]  # elementwise, with `out=`


def quantize_affine(
    x: Tensor, qparams: QParams, *, rounding: str | None = "half_even", arithmetic: str = "reciprocal", out: Tensor | None = None
) -> Tensor:
    """Values -> codes.

    code = clamp(R(x * (1/scale)) + zero_point, quant_min, quant_max)    (`divide`: R(x / scale))

    Args:
        x: any shape; half precision is computed in float32.
        qparams: scale and zero point, per tensor or along an axis.
        rounding: R, a name in `ROUNDINGS`, or None for codes that are clamped but not rounded.
        arithmetic: `reciprocal` (torch) or `divide` (ONNX).
        out: float32, where to write; may be x.

    Returns:
        float32 codes, integral unless `rounding` is None.

    Source: Jacob et al. 2018, arXiv:1712.05877, eq. 1; torch `fake_quantize_per_tensor_affine`; ONNX `QuantizeLinear`.

    >>> from qexp.quant.qparams import choose_qparams
    >>> x = torch.tensor([-1.0, 0.0, 2.0])
    >>> quantize_affine(x, choose_qparams(x.min(), x.max(), bits=2))
    tensor([-2., -1.,  1.])
    """
    scale, zero_point = expand(qparams.scale, qparams.axis, x), expand(qparams.zero_point, qparams.axis, x)
    steps = count_steps(x.float(), *scaling(scale, arithmetic), rounding_of(rounding), out=out)
    return torch.clamp(torch.add(steps, zero_point, out=out), qparams.quant_min, qparams.quant_max, out=out)


def dequantize_affine(codes: Tensor, qparams: QParams, out: Tensor | None = None) -> Tensor:
    """Codes -> values: x = (code - zero_point) * scale, float32.

    Args:
        codes: any shape and dtype.
        qparams: as for `quantize_affine`.
        out: float32, where to write; may be codes.
    """
    scale, zero_point = expand(qparams.scale, qparams.axis, codes), expand(qparams.zero_point, qparams.axis, codes)
    return torch.mul(torch.sub(codes.float(), zero_point, out=out), scale, out=out)


def fake_quantize_affine(
    x: Tensor, qparams: QParams, *, rounding: str | None = "half_even", arithmetic: str = "reciprocal", out: Tensor | None = None
) -> Tensor:
    """Values -> the values their codes stand for; arguments as for `quantize_affine`.

    x^ = clamp(R(x * (1/scale)), quant_min - zero_point, quant_max - zero_point) * scale

    With rounding this equals `dequantize_affine(quantize_affine(x))`: between integers the zero point cancels exactly. Without,
    it is the same map and clamp, free of the error that adding and subtracting a zero point would leave. A negative value that
    rounds to zero comes out as -0.0.
    """
    scale = expand(qparams.scale, qparams.axis, x)
    low, high = (expand(limit, qparams.axis, x) for limit in step_limits(qparams))
    operation, operand = scaling(scale, arithmetic)
    return fake_quantize_steps(x.float(), operation, operand, rounding_of(rounding), low, high, scale, out=out)


def fake_quantize_steps(
    x: Tensor,
    operation: Operation,
    operand: Tensor,
    rounding: Operation | None,
    low: Tensor | float,
    high: Tensor | float,
    scale: Tensor,
    out: Tensor | None = None,
) -> Tensor:
    """`fake_quantize_affine` on float32 x, with its parts looked up; tensors broadcast to x, out may be x."""
    steps = count_steps(x, operation, operand, rounding, out=out)
    return torch.mul(clamp_steps(steps, low, high, out=out), scale, out=out)


def clamp_steps(steps: Tensor, low: Tensor | float, high: Tensor | float, out: Tensor | None = None) -> Tensor:
    """Steps brought between limits that are both numbers or both tensors, as `step_limits` gives them."""
    if isinstance(low, Tensor) and isinstance(high, Tensor):
        # torch.clamp with tensor limits is not vectorized on the CPU: it takes three times as long as these two.
        return torch.minimum(torch.maximum(steps, low, out=out), high, out=out)
    assert not isinstance(low, Tensor) and not isinstance(high, Tensor)
    return torch.clamp(steps, low, high, out=out)


def count_steps(
    x: Tensor, operation: Operation, operand: Tensor, rounding: Operation | None, out: Tensor | None = None
) -> Tensor:
    """R(x * (1/scale)) or R(x / scale): the number of steps from zero, unclamped."""
    steps = operation(x, operand, out=out)
    return steps if rounding is None else rounding(steps, out=out)


def scaling(scale: Tensor, arithmetic: str) -> tuple[Operation, Tensor]:
    """How x is brought to steps: (torch.mul, 1/scale) for `reciprocal`, (torch.div, scale) for `divide`."""
    choose("quant.weight.arithmetic", arithmetic, ARITHMETICS)
    return (torch.mul, scale.reciprocal()) if arithmetic == "reciprocal" else (torch.div, scale)


def rounding_of(name: str | None, seed: int = 0) -> Operation | None:
    """The rounding of that name, `stochastic` with a generator of that seed; None stays None."""
    if name is None:
        return None
    operation = ROUNDINGS[choose("quant.weight.rounding", name, ROUNDINGS)]
    return partial(operation, generator=torch.Generator().manual_seed(seed)) if name == "stochastic" else operation


def step_limits(qparams: QParams) -> tuple[Tensor | float, Tensor | float]:
    """Smallest and largest number of steps from zero, quant_min - zero_point and quant_max - zero_point.

    Numbers where all channels share them, else tensors [channels].
    """
    if qparams.quant_min == -qparams.quant_max:
        return float(qparams.quant_min), float(qparams.quant_max)
    if qparams.zero_point.dim() == 0 or not qparams.zero_point.any():
        zero_point = float(qparams.zero_point) if qparams.zero_point.dim() == 0 else 0.0
        return qparams.quant_min - zero_point, qparams.quant_max - zero_point
    return qparams.quant_min - qparams.zero_point, qparams.quant_max - qparams.zero_point


@overload
def expand(value: Tensor, axis: int | None, x: Tensor) -> Tensor: ...
@overload
def expand(value: float, axis: int | None, x: Tensor) -> float: ...
def expand(value: Tensor | float, axis: int | None, x: Tensor) -> Tensor | float:
    """A per-channel tensor shaped to broadcast against x along the axis; numbers and 0-d tensors as they are."""
    if axis is None or x.dim() == 0 or not isinstance(value, Tensor):
        return value
    shape = [1] * x.dim()
    shape[axis] = -1
    return value.reshape(shape)
