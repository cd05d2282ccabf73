"""Distances between a tensor and its quantized copy, its histogram, and the grid that lies under both."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from qexp.analysis.profile_results import Histogram
from qexp.base.types import ActivationRow, PlanRow, QuantSpec
from qexp.quant.scheme_table import SCHEMES, grid_name
from qexp.quant.schemes import Limits, decode_rows, fit, quantizer_of

NUM_BINS = 128
DRAWN_BITS = 8  # up to this width a grid's levels are listed
_TOLERANCE = 1e-6  # of the outermost level: the end of a range may lie half a step beyond it, up to float32's rounding


def sqnr_db(signal: float, noise: float) -> float | None:
    """Signal to quantization noise, 10 log10(signal / noise), dB; None where there is no noise (or no signal).

    Args:
        signal: sum of the squared values.
        noise: sum of the squared errors.

    >>> sqnr_db(5.0, 0.05)
    20.0
    """
    return 10 * math.log10(signal / noise) if signal > 0 and noise > 0 else None


class Errors:
    """Sums over pairs of values and their copies, float64."""

    def __init__(self) -> None:
        self.n, self.signal, self.noise, self.clipped = 0, 0.0, 0.0, 0

    def add(self, values: Tensor, copies: Tensor, clipped: int = 0) -> None:
        """Add pairs to the sums.

        Args:
            values: any shape.
            copies: what quantization makes of them.
            clipped: how many of them lie beyond their grid.
        """
        self.n += values.numel()
        self.signal += float(values.double().square().sum())
        self.noise += float((copies.double() - values.double()).square().sum())
        self.clipped += clipped

    @property
    def sqnr_db(self) -> float | None:
        """Of all pairs, dB."""
        return sqnr_db(self.signal, self.noise)

    @property
    def mse(self) -> float:
        """Mean squared error."""
        return self.noise / max(self.n, 1)

    @property
    def saturation(self) -> float:
        """Share of values beyond their grid."""
        return self.clipped / max(self.n, 1)


def spec_of(row: PlanRow | ActivationRow) -> QuantSpec:
    """The quantizer of a tensor that has one."""
    assert row.spec is not None, row.info.name
    return row.spec


def shared_fields(row: PlanRow | ActivationRow, errors: Errors, grid: Grid | None) -> dict[str, Any]:
    """Fields of `TensorProfile` that its row of the plan, its errors and its grid decide; without a grid those stay as they are.

    Args:
        row: with a spec.
        errors: of its values.
        grid: that they were brought to.
    """
    info, spec = row.info, spec_of(row)
    fields: dict[str, Any] = {"name": info.name, "shape": info.shape, "rule": row.rule, "scheme": grid_name(spec)}
    fields |= {name: getattr(spec, name) for name in ("bits", "mode", "granularity")}
    fields |= {"sqnr_db": errors.sqnr_db, "mse": errors.mse}
    if grid is not None:
        fields |= {"grid_min": float(grid.low.min()), "grid_max": float(grid.high.max()), "num_groups": len(grid.low)}
        if grid.scales is not None:
            fields |= {"scale_min": float(grid.scales.min()), "scale_max": float(grid.scales.max())}
    return fields


def count_clipped(values: Tensor, low: Tensor, high: Tensor, low_step: Tensor, high_step: Tensor) -> int:
    """How many values lie beyond the outermost levels by more than half a step, so that clamping moved them and not rounding.

    Args:
        values: any shape.
        low: lowest level; broadcasts to the values, like all that follow.
        high: highest level.
        low_step: step next to the lowest level.
        high_step: step next to the highest level.

    >>> levels, step = (torch.tensor(-1.0), torch.tensor(1.0)), torch.tensor(0.5)
    >>> count_clipped(torch.tensor([-1.3, -1.2, 0.0, 1.25, 9.0]), *levels, step, step)
    2
    """
    slack = _TOLERANCE * torch.maximum(low.abs(), high.abs())
    beyond = (values < low - low_step / 2 - slack) | (values > high + high_step / 2 + slack)
    return int(beyond.sum())


def histogram(values: Tensor, levels: tuple[float, ...] = (), num_bins: int = NUM_BINS) -> Histogram:
    """Counts in even bins from the smallest to the largest value.

    Args:
        values: any shape.
        levels: of the grid.
        num_bins: number of bins.

    >>> histogram(torch.tensor([0.0, 0.2, 0.9, 1.0]), num_bins=2).counts
    (2, 2)
    """
    flat = values.detach().flatten().double()
    low, high = (float(end) for end in torch.aminmax(flat))
    if low == high:
        low, high = low - (abs(low) or 1.0) / 2, high + (abs(high) or 1.0) / 2
    counts = torch.histc(flat, num_bins, low, high)
    return Histogram(tuple(int(count) for count in counts), low, high, levels)


@dataclass(frozen=True, eq=False)
class Grid:
    """The grids of one tensor or activation point, one per group.

    Args:
        low: lowest levels, float64 [G].
        high: highest levels, float64 [G].
        scales: [G], None where the scheme has none.
        levels: of the widest group.
        clipped: how many values of a weight lie beyond theirs.
    """

    low: Tensor
    high: Tensor
    scales: Tensor | None
    levels: tuple[float, ...]
    clipped: int = 0


def weight_grid(source: Tensor, spec: QuantSpec, limits: Limits | None = None) -> Grid | None:
    """The grids that `quantize_(..., source, spec, limits)` rounds to; None for `half`, and for codes that stand for no values.

    Args:
        source: the tensor before it is quantized.
        spec: of its quantizer.
        limits: as for `quantize_`.

    Raises:
        ConstantTensorError: the tensor has no range.
        UserError: as `quantize_`.
    """
    if spec.mode == "half" or not SCHEMES[spec.scheme].dequantizes:
        return None
    fitted = fit(source, spec, limits)
    low_code, high_code = SCHEMES[spec.scheme].codes_of(spec)
    outer = [low_code, min(low_code + 1, high_code), max(high_code - 1, low_code), high_code]
    rows = [part.double() for part in fitted.layout.rows(source.float())]
    codes = [torch.tensor(outer, dtype=torch.float32, device=source.device).expand(len(part), 4).clone() for part in rows]
    decoded = [part.double().sort(1).values for part in decode_rows(codes, spec, fitted)]
    clipped = sum(
        count_clipped(x, ends[:, :1], ends[:, 3:], ends[:, 1:2] - ends[:, :1], ends[:, 3:] - ends[:, 2:3])
        for x, ends in zip(rows, decoded, strict=True)
    )
    ends = torch.cat(decoded)
    levels: tuple[float, ...] = ()
    if spec.bits <= DRAWN_BITS:
        spans = [part[:, 3] - part[:, 0] for part in decoded]
        part = max(range(len(spans)), key=lambda number: float(spans[number].max()))
        row = int(spans[part].argmax())
        params = {name: values[row : row + 1] if values.dim() else values for name, values in fitted.parts()[part].items()}
        all_codes = torch.arange(low_code, high_code + 1, dtype=torch.float32, device=source.device)[None]
        levels = tuple(sorted(quantizer_of(spec).decode(all_codes, params, spec).flatten().tolist()))
    scales = fitted.params.get("scale")
    if "factor" in fitted.params:
        scales = fitted.params["factor"].reciprocal()
    return Grid(ends[:, 0], ends[:, 3], None if scales is None else scales.double().reshape(-1), levels, clipped)
