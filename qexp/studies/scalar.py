"""Document 004: a quantizer of single numbers, and what its claims about networks need.

code = round(x S), x^ = code / S, S = 2^(b-1) - 1, for x in [-1, 1]; the document demonstrates it on pi, whose "4-bit" code is 22.
On weights the same grid wastes nearly all of its codes, for want of a scale; divided by their largest magnitude first they use
them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from qexp.base.errors import UserError
from qexp.base.types import QuantSpec
from qexp.config.study import StudySettings
from qexp.quant.packing import pack
from qexp.quant.scalar import dequantize_scalar, quantize_scalar
from qexp.quant.storage import stored_bytes
from qexp.studies.outcome import Check, Curve, Lines, Outcome, expected
from qexp.studies.seed_maps import mapped, symmetric
from qexp.studies.subject import Subject, load_subject

PI = 3.141592653589793
BITS = (4, 8)
PUBLISHED = {4: (22, 3.142857142857143), 8: (399, 3.141732283464567)}
VALUES = (PI, 1.0, 0.5, 0.1, -0.3, -1.0)
COLUMNS = ("what", "way", "bits", "value", "code", "back", "error", "fits", "prec1", "bytes", "ratio", "n")


@dataclass(frozen=True, kw_only=True)
class Score:
    """A network with quantized weights.

    Args:
        prec1: Prec@1, percent.
        bytes: of its state dict, with packed weights.
        ratio: bytes of the float state dict by these.
        n: images.
    """

    prec1: float
    bytes: int
    ratio: float
    n: int


def run(settings: StudySettings) -> Outcome:
    """The document's numbers, then a network."""
    return study(load_subject(settings))


def study(subject: Subject) -> Outcome:
    """The study with one network."""
    numbers = [row for bits in BITS for value in VALUES for row in _number_rows(value, bits)]
    scored = _scored(subject)
    scores = ", ".join(f"{scored[way, bits].prec1:.2f} ({way}, W{bits})" for bits in BITS for way in ("as written", "scaled"))
    codes = {bits: quantize_scalar(PI, bits, as_written=True) for bits in BITS}
    return Outcome(
        headline=f"pi has code {codes[4]} at 4 bits and {codes[8]} at 8, as published; neither fits its width. On weights, "
        f"Prec@1 {scores}; float {scored['float', None].prec1:.2f}. Packed 8-bit codes make the state dict "
        f"{scored['scaled', 8].ratio:.2f} times smaller, 4-bit ones {scored['scaled', 4].ratio:.2f} times.",
        subject=subject.label,
        rows=tuple(numbers + [_row(what="weights", way=way, bits=bits, **vars(score)) for (way, bits), score in scored.items()]),
        shown=COLUMNS,
        checks=tuple(_checks(scored, subject)),
        figures=(_figure(),),
        notes=(
            "`as written` has no scale and no clipping; `scaled` divides by the largest magnitude first, of a number the number "
            "itself or 1, of a weight its tensor's.",
            "Sizes count packed codes, a float32 scale for each tensor, and the rest as stored. Speed is not claimed: the "
            "arithmetic here is floating point on quantized values.",
        ),
    )


def _number_rows(value: float, bits: int) -> list[dict[str, object]]:
    """A number as written, and divided by max(|x|, 1) before."""
    scale = max(abs(value), 1.0)
    rows = []
    for way, unit in (("as written", 1.0), ("scaled", scale)):
        code = quantize_scalar(value / unit, bits, as_written=way == "as written")
        back = dequantize_scalar(code, bits) * unit
        error, fits = abs(value - back), _fits(code, bits)
        rows.append(_row(what="number", way=way, bits=bits, value=value, code=code, back=back, error=error, fits=fits))
    return rows


def _fits(code: int, bits: int) -> bool:
    """Whether the width holds the code, by trying to store it."""
    try:
        pack(torch.tensor([code]), bits, signed=True)
    except UserError:
        return False
    return True


def as_written(weight: Tensor, bits: int) -> Tensor:
    """The document's grid on a tensor: round(w S) / S."""
    steps = 2 ** (bits - 1) - 1
    return (weight * steps).round() / steps


def _scored(subject: Subject) -> dict[tuple[str, int | None], Score]:
    """(way, bits) -> score: float, and both ways at both widths, all conv and linear weights."""
    model = subject.model
    layers = [name for name, module in model.named_modules() if isinstance(module, nn.Conv2d | nn.Linear)]
    networks: dict[tuple[str, int | None], nn.Module] = {("float", None): model}
    for bits in BITS:
        networks["as written", bits] = mapped(model, layers, as_written, bits)
        networks["scaled", bits] = mapped(model, layers, symmetric, bits)
    scores = subject.evaluate({f"{way} {bits}": network for (way, bits), network in networks.items()})
    whole = _num_bytes(model, layers, None)
    scored = {}
    for way, width in networks:
        metrics, num_bytes = scores[f"{way} {width}"].metrics, _num_bytes(model, layers, width)
        scored[way, width] = Score(prec1=metrics.prec1, bytes=num_bytes, ratio=whole / num_bytes, n=metrics.n)
    return scored


def _num_bytes(model: nn.Module, layers: list[str], bits: int | None) -> int:
    """Bytes of the state dict with these layers' weights packed."""
    packed = {f"{layer}.weight" for layer in layers} if bits else set()
    spec = QuantSpec(scheme="symmetric_restricted", bits=bits or 8)
    return sum(
        stored_bytes(tensor.shape, spec) if name in packed else tensor.numel() * tensor.element_size()
        for name, tensor in model.state_dict().items()
    )


def _row(**values: object) -> dict[str, object]:
    """A line of `table.csv`; what is not given is empty."""
    return {column: values.get(column) for column in COLUMNS}


def _checks(scored: Mapping[tuple[str, int | None], Score], subject: Subject) -> list[Check]:
    checks = []
    for bits, (published_code, published_value) in PUBLISHED.items():
        code = quantize_scalar(PI, bits, as_written=True)
        value = dequantize_scalar(code, bits)
        passed = (code, value) == (published_code, published_value)
        published = f"{published_code}, {published_value}"
        checks.append(Check(f"pi at {bits} bits, as published", published, f"{code}, {value}", passed))
        fits = _fits(code, bits)
        checks.append(Check(f"the code of pi in {bits} bits", "does not fit", "fits" if fits else "does not fit", not fits))
        refused = _refused(PI, bits)
        checks.append(Check(f"pi at {bits} bits without `as_written`", "refused", "refused" if refused else "taken", refused))
    worst = max(_largest_error(bits) * 2 * (2 ** (bits - 1) - 1) for bits in range(2, 17))
    checks.append(
        Check("error within [-1, 1], 2 to 16 bits", "at most half a step", f"{worst:.4f} half steps", worst <= 1 + 1e-9)
    )
    if subject.bundled:
        return checks
    low, high = scored["scaled", 8].ratio, scored["scaled", 4].ratio
    drop = scored["float", None].prec1 - scored["scaled", 8].prec1
    lost = scored["scaled", 4].prec1 - scored["as written", 4].prec1
    n = scored["float", None].n
    return [
        *checks,
        expected("state dict at 8 bits", "nearly 4 times smaller (over 3.5)", f"{low:.2f} times", 3.5 < low < 4),
        expected("state dict at 4 bits", "nearly 8 times smaller (over 6)", f"{high:.2f} times", 6 < high < 8),
        expected("scaled W8", "within 0.5 points of float", f"{drop:.2f} below", abs(drop) <= 0.5, n=n),
        expected("as written W4", "below scaled W4, for want of a scale", f"{lost:.2f} below", lost > 0, n=n),
    ]


def _refused(value: float, bits: int) -> bool:
    try:
        quantize_scalar(value, bits)
    except UserError:
        return True
    return False


def _largest_error(bits: int) -> float:
    """Over 2001 numbers from -1 to 1."""
    values = [step / 1000 - 1 for step in range(2001)]
    return max(abs(value - dequantize_scalar(quantize_scalar(value, bits), bits)) for value in values)


def _figure() -> Lines:
    values = [step / 4000 for step in range(1001)]  # both widths' teeth can be told apart
    curves = tuple(
        Curve(
            label=f"{bits} bits",
            x=tuple(values),
            y=tuple(abs(value - dequantize_scalar(quantize_scalar(value, bits), bits)) for value in values),
        )
        for bits in BITS
    )
    assert not any(math.isnan(value) for curve in curves for value in curve.y)
    return Lines(
        stem="error",
        title="Error of the scalar quantizer near zero",
        x_label="value",
        y_label="|x - x^|",
        curves=curves,
        marked={},
    )
