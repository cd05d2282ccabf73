"""The grid of one weight, column by column: what the corrections ask that settle one input after another.

Every element keeps the parameters of the group that the plan put it in, whatever the granularity and the order of the columns, so
that a value is rounded as `quantize_` would round it there.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from qexp.base.types import QuantSpec
from qexp.nn.channels import Layer
from qexp.ptq.adaround_loss import kernel_rows
from qexp.quant.affine import rounding_of
from qexp.quant.quantizer import Params
from qexp.quant.scheme_table import SCHEMES, scheme_name
from qexp.quant.schemes import Fitted, Limits, decode_rows, encode_rows, fit, quantizer_of


def why_no_grid(spec: QuantSpec) -> str:
    """Why a spec has no grid to round a moved value on; empty where it has one."""
    if spec.mode != "int":
        return f"mode {spec.mode}"
    return "" if SCHEMES[spec.scheme].dequantizes else f"scheme {scheme_name(spec.scheme)}, whose copy holds codes"


@dataclass(frozen=True)
class ElementGrid:
    """The fitted grid of a weight; columns are those of `kernel_rows`, [G, O] each.

    Args:
        layer: whose weight it is.
        weight: unrounded, float32, as the layer stores it.
        spec: rounds to nearest.
        fitted: the parameters of its groups.
        group: the group of every element, [G, O, K].
    """

    layer: Layer
    weight: Tensor
    spec: QuantSpec
    fitted: Fitted
    group: Tensor

    @classmethod
    def of(cls, layer: Layer, weight: Tensor, spec: QuantSpec, limits: Limits | None) -> ElementGrid:
        """Fit the grid as `quantize_` does.

        Args:
            layer: of the weight.
            weight: unrounded.
            spec: its quantizer, for which there is no `why_no_grid`.
            limits: to use instead of its own range.

        Raises:
            ConstantTensorError: it has no range.
        """
        weight, spec = weight.float(), replace(spec, rounding="half_even")
        fitted = fit(weight, spec, limits)
        layout = fitted.layout
        numbers = layout.cut(torch.arange(layout.num_groups, device=weight.device))
        parts = [number[:, None].expand_as(rows) for number, rows in zip(numbers, layout.rows(weight), strict=True)]
        return cls(layer, weight, spec, fitted, kernel_rows(layer, layout.fold(parts)))

    def encode(self, values: Tensor, group: Tensor) -> tuple[Tensor, Tensor]:
        """The nearest codes and what they stand for.

        Args:
            values: float32, any shape.
            group: of each of them.

        Returns:
            Codes and values, float32 of that shape.
        """
        if self.fitted.layout.num_groups == 1:
            params, x = self.fitted.params, values.reshape(1, -1)
        else:
            params, x = self.params_of(group.reshape(-1)), values.reshape(-1, 1)
        quantizer = quantizer_of(self.spec)
        codes = quantizer.encode(x, params, self.spec, rounding_of(self.spec.rounding))
        return codes.reshape(values.shape), quantizer.decode(codes, params, self.spec).reshape(values.shape)

    def params_of(self, group: Tensor) -> Params:
        """The parameters of these groups; what all groups share stays 0-d."""
        return {name: param[group] if param.dim() else param for name, param in self.fitted.params.items()}

    def nearest(self) -> Tensor:
        """The codes of the unrounded weight, [G, O, K]."""
        return kernel_rows(self.layer, self.fitted.layout.fold(encode_rows(self.weight, self.spec, self.fitted)))

    def values(self, codes: Tensor) -> Tensor:
        """Codes [G, O, K] -> the weight, as the layer stores it and as `quantize_` would give it."""
        # In groups of channels, [G, O, K] is the weight's own order but for a transposed convolution, which has no form here.
        layout = self.fitted.layout
        return layout.fold(decode_rows(layout.rows(codes.reshape(self.weight.shape)), self.spec, self.fitted))

    @property
    def keeps_its_values(self) -> bool:
        """True where every value of the copy is its own nearest: the steps of a correction are wrong on any other grid."""
        values = self.values(self.nearest())
        again = layout_fold(self, values)
        return bool(torch.isclose(again, values, rtol=1e-4, atol=1e-9).all())


def layout_fold(grid: ElementGrid, values: Tensor) -> Tensor:
    """The quantized copy of values, on a grid that was fitted to others."""
    layout = grid.fitted.layout
    return layout.fold(decode_rows(encode_rows(values, grid.spec, grid.fitted), grid.spec, grid.fitted))
