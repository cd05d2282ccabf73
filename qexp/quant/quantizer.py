"""What a quantizer defines: its three steps on rows of a tensor, and two more where it has them.

Rows are [G, N], float32; parameters are 0-d, [G], or [G, levels].
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence

from torch import Tensor

from qexp.base.types import QuantSpec
from qexp.quant.affine import Operation

Params = Mapping[str, Tensor]
Rows = Sequence[Tensor]
Kernel = Callable[..., None]  # (x, out, *params): float32 blocks, params broadcast along the channels
KernelParams = tuple[Tensor | float, ...]


def column(param: Tensor) -> Tensor:
    """One number for each row, broadcastable to [G, N]; a 0-d tensor as it is."""
    return param.reshape(-1, 1) if param.dim() else param


class Quantizer(ABC):
    """Fit, encode and decode, static or of the class; what else there is to know of them stands in the scheme's row."""

    @staticmethod
    @abstractmethod
    def fit(rows: Rows, minimum: Tensor, maximum: Tensor, spec: QuantSpec) -> Params:
        """The parameters of all groups, from their ranges, or from the rows where the ranges do not say enough."""
        ...

    @staticmethod
    @abstractmethod
    def encode(x: Tensor, params: Params, spec: QuantSpec, rounding: Operation | None) -> Tensor:
        """Values -> float32 codes, integral, and unrounded where no rounding is given and the scheme has such a control."""
        ...

    @staticmethod
    @abstractmethod
    def decode(codes: Tensor, params: Params, spec: QuantSpec) -> Tensor:
        """Codes -> values."""
        ...


class FusedQuantizer(Quantizer):
    """One whose steps run in place over blocks that stay in cache; without rounding they are the control of mode `float`."""

    @staticmethod
    @abstractmethod
    def kernel(params: Params, spec: QuantSpec, rounding: Operation | None, clipped: bool) -> tuple[Kernel, KernelParams]:
        """The steps in place, and their parameters; `clipped` where the range is not the tensor's own."""
        ...


class ControlQuantizer(Quantizer):
    """One without a kernel that can do without its rounding: the control of mode `float`."""

    @staticmethod
    @abstractmethod
    def control(x: Tensor, params: Params, spec: QuantSpec) -> Tensor:
        """The map without its rounding."""
        ...
