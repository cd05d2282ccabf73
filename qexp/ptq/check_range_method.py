"""Does a range method do what its row says? It is tried on small values, a user's before anything runs, ours in the tests."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import torch
from torch import Tensor

from qexp.base.checks import check_types
from qexp.base.errors import UserError, choose
from qexp.base.types import QuantSpec
from qexp.config.calibrate import CalibrateSettings, RangeMethodInfo
from qexp.ptq.range_methods import BehindNorm, Limits, find_limits
from qexp.ptq.samples import Rows, Sample

_AFFINE = QuantSpec(scheme="affine", bits=8, granularity="per_channel")
_SPECS = (_AFFINE, replace(_AFFINE, bits=4), QuantSpec(scheme="symmetric_restricted", bits=4, granularity="per_channel"))
_GROUPS = 3
_FUNCTION = "a function of values, spec and settings"
_SETTINGS = CalibrateSettings(num_bins=128, num_candidates=10, percentile=90.0)


def check_range_method(method: RangeMethodInfo, code: object) -> None:
    """Raise UserError for a row that contradicts itself, or whose code does not do what it says.

    Args:
        method: its row.
        code: that the row names.
    """
    check_types(method)
    for name in method.settings:
        choose("settings", name, CalibrateSettings.__dataclass_fields__)
    if method.reads == "batch_norm" and method.for_weights:
        raise UserError("for_weights", True, allowed="false where reads=batch_norm", remedy="A weight has none before it.")
    if not callable(code):
        raise UserError("code", type(code).__name__, allowed=_FUNCTION)
    for values, lowest, highest in _values(method):
        limits = [_tried(method, values, spec) for spec in _SPECS]
        for low, high in limits:
            _check_limits(low, high)
            if lowest is not None and highest is not None and ((low < lowest).any() or (high > highest).any()):
                allowed = "limits within the values and zero"
                raise UserError("code", f"{low.tolist()} to {high.tolist()}", allowed=allowed, remedy=_of(lowest, highest))
        if not method.depends_on_grid and not all(torch.equal(*pair) for pair in zip(*limits[:2], strict=True)):
            raise UserError("depends_on_grid", False, allowed="true", remedy="8 and 4 bits have other limits.")


def _values(method: RangeMethodInfo) -> Iterator[tuple[Limits | Sample | BehindNorm, Tensor | None, Tensor | None]]:
    """What the method reads, and the least and the largest limit [G] that it may find."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(_GROUPS, 200, generator=generator)
    x[1].relu_()
    x[2] = -x[2].abs()
    lowest, highest = x.amin(1).clamp(max=0), x.amax(1).clamp(min=0)
    if method.reads == "ends":
        batches = x.split(50, 1)
        yield (torch.stack([b.amin(1) for b in batches]), torch.stack([b.amax(1) for b in batches])), lowest, highest
    elif method.reads == "sample":
        rows = Rows.of(x)
        yield rows, lowest, highest
        yield rows.histogram(_SETTINGS.num_bins), lowest, highest
    else:
        yield BehindNorm(x[:, 0], x[:, 1], floor=0.0), None, None


def _tried(method: RangeMethodInfo, values: Limits | Sample | BehindNorm, spec: QuantSpec) -> Limits:
    """What the method finds; whatever it raises is the row's mistake."""
    try:
        settings = _Declared(method)
        low, high = find_limits(method, values, spec, settings)
    except UserError:
        raise
    except Exception as error:
        remedy = f"On small values it raised {type(error).__name__}: {error}."
        raise UserError("code", _named(method.load()), allowed=_FUNCTION, remedy=remedy) from error
    return low, high


def _check_limits(low: object, high: object) -> None:
    """Raise UserError unless these are limits of the groups."""
    allowed = f"two float32 tensors [{_GROUPS}], one number for each group"
    for end in (low, high):
        if not isinstance(end, Tensor):
            raise UserError("code", type(end).__name__, allowed=allowed)
        if end.shape != (_GROUPS,) or end.dtype != torch.float32:
            raise UserError("code", f"{str(end.dtype).removeprefix('torch.')} {list(end.shape)}", allowed=allowed)
        if not torch.isfinite(end).all():
            raise UserError("code", end.tolist(), allowed="finite limits")
    assert isinstance(low, Tensor) and isinstance(high, Tensor)
    if (low > high).any():
        raise UserError("code", f"{low.tolist()} to {high.tolist()}", allowed="no lower limit above the upper one")


class _Declared(CalibrateSettings):
    """Settings of which only those that the row names may be read: another would decide ranges and not be part of their key."""

    def __init__(self, method: RangeMethodInfo) -> None:
        vars(self).update(vars(_SETTINGS), _allowed=method.read_settings)

    def __getattribute__(self, name: str) -> object:
        """A setting that the row names, or anything that is none."""
        if name in CalibrateSettings.__dataclass_fields__ and name not in vars(self)["_allowed"]:
            raise UserError("settings", name, allowed="the settings that the method reads, all of them")
        return object.__getattribute__(self, name)


def _of(lowest: Tensor, highest: Tensor) -> str:
    return f"Those go from {lowest.tolist()} to {highest.tolist()}."


def _named(code: object) -> str:
    return getattr(code, "__qualname__", type(code).__name__)
