"""A scheme's code, tried at one width on a few hundred fixed numbers and held against what its row says."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import NoReturn

import torch
from torch import Tensor

from qexp.base.errors import UserError
from qexp.base.types import QParams, QuantSpec
from qexp.quant.affine import dequantize_affine, quantize_affine
from qexp.quant.encoding import decode, encode
from qexp.quant.quantizer import Params
from qexp.quant.ranges import ConstantTensorError
from qexp.quant.rounding import half_even
from qexp.quant.scheme_table import SchemeInfo, represents_zero
from qexp.quant.schemes import Limits, encode_rows, fit, quantize_, quantizer_of

_FEW = 8  # up to this many bits all codes are looked at
_HALF_STEP = 0.6  # of a step, float32's own error at 16 bits included
_CHANNELS, _SIZE = 4, 53  # whose groups of 16 leave a smaller one


def refuse(field: str, value: object, allowed: str, remedy: str = "") -> NoReturn:
    """Raise the error for a field of a row.

    Args:
        field: its name.
        value: what the row says.
        allowed: what it may say.
        remedy: what the code does.
    """
    raise UserError(field, value, allowed=allowed, remedy=remedy)


def specs_of(row: SchemeInfo, name: str) -> Iterator[QuantSpec]:
    """Every width, and where all is tried every setting that the scheme reads.

    Args:
        row: of the scheme.
        name: under which it is had.
    """
    other: dict[str, dict[str, object]] = {
        "level": {"level": "companded"}, "signed": {"signed": False}, "fraction_bits": {"fraction_bits": 3},
        "pow2_round": {"pow2_round": "nearest"}, "pin_zero": {"pin_zero": True},
        "scaled": {"scaled": False}, "block_size": {"block_size": 16},
    }  # fmt: skip
    for bits in range(row.min_bits, row.max_bits + 1):
        spec = QuantSpec(scheme=name, bits=bits)
        yield spec
        for key in row.reads if bits in _looked_at(row) else ():
            setting = {"format": f"e1m{bits - 2}" if bits < 5 else f"e3m{bits - 4}"} if key == "format" else other[key]
            yield replace(spec, **setting)


def _looked_at(row: SchemeInfo) -> tuple[int, ...]:
    """Widths at which all is tried; at the others, that codes and copies are in order."""
    return row.min_bits, row.min_bits + 1, 3, _FEW, row.max_bits


class Trial:
    """One spec, tried.

    Args:
        row: whose words are checked.
        spec: per tensor.
    """

    def __init__(self, row: SchemeInfo, spec: QuantSpec) -> None:
        self.row, self.spec = row, spec
        self.quantizer = quantizer_of(spec)
        x = torch.randn(_CHANNELS, _SIZE, generator=torch.Generator().manual_seed(0)) * 0.4 + 0.07
        x[:, 1] = x.abs().max() * 1.25  # the larger end is the upper one
        self.x = x

    def run(self) -> None:
        """All of it, at the widths where something may change."""
        self._codes_and_copies("per_tensor")
        stored = self.row.group_bytes(self.spec.bits)
        if not (type(stored) is int and stored >= 0):
            refuse("group_bytes", stored, "bits -> an integer of at least 0")
        if self.spec.bits not in _looked_at(self.row):
            return
        self._codes_and_copies("per_channel")
        self._codes_and_copies("per_group", 16)
        self._zero()
        self._levels()
        self._ends()
        self._rounding()
        self._range()
        self._constants()
        if self.row.control_min_bits is not None and self.spec.bits >= self.row.control_min_bits:
            self._control()
        if self.row.onnx:
            self._file()

    def refuse(self, field: str, allowed: str, what: str) -> NoReturn:
        """The error for a field that the code contradicts."""
        value = getattr(self.row, field)
        shown = getattr(value, "__name__", value)
        settings = "".join(f", {key}={getattr(self.spec, key)}" for key in self.row.reads)
        refuse(field, shown, allowed, f"At {self.spec.bits} bits{settings} {what}.")

    def refuse_width(self, what: str) -> NoReturn:
        """The error for a width that the code does not have."""
        self.refuse("min_bits" if self.spec.bits < 3 else "max_bits", "the widths that it has", what)

    def copy(self, x: Tensor, limits: Limits | None = None, **changes: object) -> Tensor:
        """The quantized copy."""
        spec = replace(self.spec, **changes)  # type: ignore[arg-type]
        return quantize_(torch.full_like(x, torch.nan), x.clone(), spec, limits)

    def _codes_and_copies(self, granularity: str, group_size: int | None = None) -> None:
        """Codes are integers of the row's range, and what they stand for is finite and is the copy."""
        spec, kept = replace(self.spec, granularity=granularity, group_size=group_size), self.x.clone()
        fitted = fit(self.x, spec)
        codes = fitted.layout.fold(encode_rows(self.x, spec, fitted))
        low, high = self.row.codes_of(spec)
        copies = self.copy(self.x, granularity=granularity, group_size=group_size)
        if not bool(copies.isfinite().all()) or low >= high:
            self.refuse_width("a copy is not finite" if low < high else "it has one code")
        if codes.shape != self.x.shape or not torch.equal(codes, codes.round()):
            self.refuse("code", "an encode that gives integral codes of the shape of x", "it does not")
        if not (low <= float(codes.min()) and float(codes.max()) <= high):
            self.refuse("codes", "the codes that encode gives", f"they reach from {codes.min():g} to {codes.max():g}")
        if not torch.equal(copies, decode(encode(self.x, spec))) or not torch.equal(kept, self.x):
            self.refuse("code", "a kernel that gives what decode gives of the codes, and leaves x", "it does not")
        holds_codes = torch.equal(copies, codes)
        if spec.bits == self.row.max_bits and holds_codes == self.row.dequantizes:
            self.refuse("dequantizes", str(not holds_codes).lower(), f"decode {'leaves' if holds_codes else 'changes'} the codes")

    def _zero(self) -> None:
        """Zero, which is none of the values that the grid is fitted to, comes back or does not, as the row says."""
        params = fit(self.x, self.spec).params
        copy = float(self.quantizer.decode(self.encode(torch.zeros(1, 1), params), params, self.spec))
        if (copy == 0) != represents_zero(self.spec):
            self.refuse("zero", "always" if copy == 0 else "never, or pin_zero where it reads that", f"0 becomes {copy:g}")

    def encode(self, values: Tensor, params: Params) -> Tensor:
        """The codes of values [1, N] on a grid that was fitted to others, rounded as by default."""
        return self.quantizer.encode(values, params, self.spec, half_even)

    def _levels(self) -> None:
        """Codes stand for different values; at even steps for those in between too, a little nearer to one or to the other."""
        spec, params = self.spec, fit(self.x, self.spec).params
        low, high = self.row.codes_of(spec)
        codes = torch.arange(low, high + 1, dtype=torch.float32)[None]
        values = self.quantizer.decode(codes, params, spec)
        fitted = any(param.dim() > 1 for param in params.values())  # a codebook, which may repeat a value
        if not fitted and 4 * len(values.unique()) < 3 * codes.numel():  # some formats have two codes for zero
            self.refuse_width(f"its {codes.numel()} codes stand for {len(values.unique())} values")
        if not self.row.even_steps or spec.bits > _FEW:
            return
        steps = values.diff()
        even = torch.allclose(steps, steps[:, :1].expand_as(steps), rtol=1e-3, atol=1e-6 * float(values.abs().max()))
        if even and self.row.dequantizes:  # a little beyond the middle rounds up, a little before it down
            middle = (values[:, 1:] + values[:, :-1]) / 2
            for shift, expected in ((0.02, codes[:, 1:]), (-0.02, codes[:, :-1])):
                even = even and torch.equal(self.encode(middle + shift * steps, params), expected)
        if not even:
            self.refuse("even_steps", "false", "its codes are not one step apart, each value at the nearest")

    def _ends(self) -> None:
        """What lies at the ends of a range comes back to half a step or, at the narrowest width, does not, as the row says."""
        spec = self.spec
        if spec != QuantSpec(scheme=spec.scheme, bits=spec.bits):  # a setting of its own may round its scale down
            return
        low, high = self.row.codes_of(spec)
        codes = torch.arange(low, high + 1, dtype=torch.float32)[None]
        off = []
        for x in (self.x, self.x * (1.999 / self.x.max())):  # what a power of two covers last is just below the next one
            values, copy = self.quantizer.decode(codes, fit(x, spec).params, spec).unique(), self.copy(x)
            off += [(copy.max() - x.max()).abs() / (values[-1] - values[-2])]
            off += [(copy.min() - x.min()).abs() / (values[1] - values[0])] if self.row.ends == "both" else []
        covers = float(max(off)) <= _HALF_STEP
        if covers != self.row.covers_ends and (self.row.covers_ends or spec.bits == self.row.min_bits):
            what = f"an end of the range and its copy are {float(max(off)):.2g} steps apart"
            self.refuse("covers_ends", str(covers).lower(), what)

    def _rounding(self) -> None:
        """Rounding down and up differ by one code, and the nearest is one of them; or rounding has no say."""
        companded = "level" in self.row.reads and self.spec.level == "companded"
        if not (self.row.rounds or companded) or self.spec.bits == 1:
            return
        fitted = fit(self.x, self.spec)
        ways = {}
        for rounding in ("floor", "ceil", "half_even"):
            spec = replace(self.spec, rounding=rounding)
            ways[rounding] = encode_rows(self.x, spec, fitted)[0].abs() if companded else encode_rows(self.x, spec, fitted)[0]
        gap = ways["ceil"] - ways["floor"]
        between = (ways["floor"] <= ways["half_even"]) & (ways["half_even"] <= ways["ceil"])
        if not (0 <= float(gap.min()) and float(gap.max()) == 1 and bool(between.all())):
            field = "reads" if companded else "rounds"
            self.refuse(field, "one without level" if companded else "false", "quant.weight.rounding does not round its codes")

    def _range(self) -> None:
        """A range from outside has the effect that the row says; without one, the tensor's own range is all there is."""
        if not self.row.takes_range(self.spec.scaled):
            return
        ends, top = self.row.ends_of(self.spec.signed), float(self.x.max()) / 2
        limits: dict[str, Limits] = {
            key: (torch.tensor(-low * top), torch.tensor(high * top))
            for key, (low, high) in {"inner": (0.5, 1), "low": (0.25, 1), "high": (0.5, 0.5)}.items()
        }
        copies = {key: self.copy(self.x, limit) for key, limit in limits.items()}
        whole = (self.x.min(), self.x.max())
        if not torch.equal(self.copy(self.x, whole), self.copy(self.x)):
            self.refuse("ends", "none", "its own range, given from outside, makes another copy")
        far = self.copy(self.x * 100, limits["inner"])
        if not torch.equal(far.max(), self.copy(self.x * 1000, limits["inner"]).max()):
            self.refuse("ends", "none", "what lies beyond a range from outside does not go to its end")
        if self.spec.bits < 3:  # so few codes that a narrower range may make the same copy
            return
        if torch.equal(copies["inner"], self.copy(self.x)) or torch.equal(copies["inner"], copies["high"]):
            self.refuse("ends", "none", "a range from outside has no effect")
        moved = not torch.equal(copies["inner"], copies["low"])
        if moved != (ends == "both"):
            self.refuse("ends", "both" if moved else "magnitude or upper", f"the lower end has {'an' if moved else 'no'} effect")
        negative = bool((copies["inner"] < 0).any())
        if self.row.dequantizes and not moved and negative == (ends == "upper"):
            self.refuse("ends", "magnitude" if negative else "upper", f"negative values {'stay so' if negative else 'become 0'}")

    def _constants(self) -> None:
        """What the row says that it is undefined on raises, and nothing else does."""
        for what, value, undefined in (("constant", 0.5, ("constant",)), ("zero", 0.0, ("constant", "zero"))):
            try:
                copies = self.copy(torch.full((_CHANNELS, _SIZE), value))
                refused = False
            except ConstantTensorError:
                refused = True
            if refused != (self.row.undefined_on in undefined) or (not refused and not bool(copies.isfinite().all())):
                right = "nothing" if what == "zero" and not refused else "constant" if refused else "another"
                did = "raises ConstantTensorError" if refused else "gives a copy"
                self.refuse("undefined_on", right, f"a tensor of {value:g} {did}")
        rows = self.x.clone()
        rows[1] = 0.0
        if not bool(self.copy(rows, granularity="per_channel").isfinite().all()):
            self.refuse("code", "one that a channel of zeros among others does not break", "its copy is not finite")

    def _control(self) -> None:
        """The control is finite and rounds nothing."""
        x = torch.cat([torch.linspace(-1, 1, 41), torch.linspace(-0.1, 0.1, 40)])
        control = self.copy(x, mode="float")
        distinct = len(control.unique())
        if not bool(control.isfinite().all()) or (self.spec.bits <= 4 and distinct <= 2**self.spec.bits):
            self.refuse("control_min_bits", "null, or a larger width", f"mode=float gives {distinct} values of {len(x)}")

    def _file(self) -> None:
        """What ONNX computes of codes, scale and zero point is the copy, and goes back to the codes."""
        encoded = encode(self.x, self.spec)
        if "scale" not in encoded.params or encoded.params["scale"].numel() > 1:
            self.refuse("onnx", "false", "fit gives no scale, one for the tensor")
        scale = encoded.params["scale"].reshape(())
        zero_point = encoded.params.get("zero_point", torch.zeros_like(scale)).reshape(())
        qparams = QParams(scale, zero_point, *encoded.code_range)
        values = dequantize_affine(encoded.codes, qparams)
        back = quantize_affine(values, qparams)
        if not torch.equal(values, decode(encoded)) or not torch.equal(back, encoded.codes.float()):
            self.refuse("onnx", "false", "the copy is not (code - zero_point) * scale")
