"""Weights with a scale for each group, as the codes and scales of blocks that an ONNX file holds.

ONNX's blocks lie along one axis, all of one size; a group of qexp is `group_size` consecutive elements of an output channel,
across input channels and kernel positions. So a weight is written as a matrix [channels, elements of a channel], whose second
axis the blocks lie along, and gets its shape behind DequantizeLinear: the groups are qexp's own in every layer. The last group of
a channel may be smaller; it is filled to a whole block, since OpenVINO loads no other, and cut off again.

Rejected: blocks along the input channels of the weight as it is, which are qexp's groups in linear layers and 1x1 convolutions.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from qexp.base.types import QParams, QuantSpec
from qexp.deploy.weight_codes import codes_of
from qexp.quant.encoding import encode
from qexp.quant.layout import Layout
from qexp.quant.scheme_table import SCHEMES
from qexp.quant.schemes import Limits


@dataclass(frozen=True, eq=False)
class GroupedWeight:
    """A weight with a grid for each group: value = (code - zero_point) * scale.

    Args:
        codes: int32, of the weight's shape.
        qparams: scale and zero point [channels, groups of a channel], with the ends of the codes.
        layout: which elements a group has.
        values: float32, what the codes stand for.
    """

    codes: Tensor
    qparams: QParams
    layout: Layout
    values: Tensor

    @property
    def bits(self) -> int:
        """Of the codes; a grid without its lowest code has as many."""
        return (self.qparams.quant_max - self.qparams.quant_min).bit_length()

    @property
    def blocks(self) -> Tensor:
        """The codes as int32 [channels, groups of a channel * group size], zeros behind the last group."""
        order = self.layout.order
        rows = (self.codes if order is None else self.codes.permute(order)).reshape(self.layout.channels, self.layout.size)
        return F.pad(rows, (0, self.qparams.scale.shape[1] * self.layout.group - self.layout.size))


def has_groups(spec: QuantSpec) -> bool:
    """True where ONNX can hold a weight's codes in blocks: a uniform grid that holds zero, per group.

    Args:
        spec: of the weight.
    """
    return spec.mode == "int" and spec.granularity == "per_group" and SCHEMES[spec.scheme].onnx


@torch.no_grad()
def grouped_weight(name: str, values: Tensor, source: Tensor, spec: QuantSpec, limits: Limits | None = None) -> GroupedWeight:
    """The codes of a weight that was quantized, and the grid of each group.

    Args:
        name: for the message.
        values: float32, quantized.
        source: the float weight, from which the grids follow.
        spec: for which `has_groups` is true.
        limits: as for `quantize_`.

    Raises:
        UserError: a value is not on its grid; as `encode`.

    >>> weight = torch.tensor([[-7.0, 1.0, 14.0, 4.0]])
    >>> spec = QuantSpec(scheme="symmetric_restricted", bits=4, granularity="per_group", group_size=2)
    >>> coded = grouped_weight("w", weight, weight, spec)
    >>> coded.codes, coded.qparams.scale
    (tensor([[-7,  1,  7,  2]], dtype=torch.int32), tensor([[1., 2.]]))
    """
    assert has_groups(spec), spec
    encoded = encode(source, spec, limits)
    layout = encoded.fitted.layout
    scale = encoded.params["scale"].float()
    zero_point = encoded.params.get("zero_point", torch.zeros_like(scale)).float().expand_as(scale)
    scales, zero_points = (_of_elements(param, layout, values) for param in (scale, zero_point))
    coded = codes_of(name, values.float(), QParams(scales, zero_points, *encoded.code_range))
    shape = (layout.channels, layout.full + bool(layout.tail))
    qparams = QParams(scale.reshape(shape), zero_point.reshape(shape), *encoded.code_range)
    return GroupedWeight(coded.codes, qparams, layout, coded.values)


def _of_elements(param: Tensor, layout: Layout, values: Tensor) -> Tensor:
    """A parameter of each group, [num_groups], for each element of a weight."""
    pairs = zip(layout.cut(param), layout.rows(values), strict=True)
    return layout.fold([one[:, None].expand(rows.shape) for one, rows in pairs])
