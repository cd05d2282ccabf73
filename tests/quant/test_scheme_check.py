"""Rows of schemes tell the truth about their code: ours do, and one that does not is refused, whatever it gets wrong."""

from __future__ import annotations

from dataclasses import asdict, replace

import pytest
import torch

from qexp.base.errors import UserError
from qexp.base.types import QuantSpec
from qexp.base.user_source import source_hash
from qexp.quant.quantizer import Quantizer
from qexp.quant.scheme_check import check_scheme
from qexp.quant.scheme_table import SCHEMES, SchemeInfo, full
from qexp.quant.schemes import quantize_


@pytest.mark.parametrize("scheme", SCHEMES)
def test_every_row_of_ours_holds(scheme):
    check_scheme(SCHEMES[scheme], SCHEMES.load(scheme))


def test_a_row_that_omits_a_field_cannot_be_written():
    fields = asdict(SCHEMES["affine"])
    for field in fields:
        with pytest.raises(TypeError, match=f"'{field}'"):
            SchemeInfo(**{key: value for key, value in fields.items() if key != field})


# One for each kind of code.
KINDS = {
    name: SCHEMES[name]
    for name in (
        "linear",
        "linear_raw",
        "affine",
        "scale_factor",
        "fixed_point",
        "dorefa",
        "log2",
        "lut_quantile",
        "binary",
        "ternary",
    )
}
UNTRUE = [
    # Accepted before there were checks, as the tables that would have said so had been forgotten: 11.39, 15.83 and 0.00 % Prec@1.
    ("log2", "rounds", True), ("log2", "even_steps", True), ("log2", "min_bits", 1),
    *[(name, "zero", "never" if row.zero == "always" else "always") for name, row in KINDS.items()],
    *[(name, "dequantizes", not row.dequantizes) for name, row in KINDS.items()],
    *[(name, "control_min_bits", row.min_bits if row.control_min_bits is None else None) for name, row in KINDS.items()],
    *[(name, "ends", ends) for name, row in KINDS.items() for ends in ("both", "magnitude", "upper")
      if ends != row.ends and name != "affine"],  # whose grid follows from what the row says
    *[(name, "undefined_on", "constant") for name, row in KINDS.items() if row.undefined_on != "constant"],
    *[(name, "undefined_on", "nothing") for name in ("linear", "affine", "scale_factor")],
    *[(name, "rounds", True) for name in ("lut_quantile", "ternary")],
    *[(name, "even_steps", True) for name in ("dorefa", "apot", "quadratic", "lut_quantile")],
    *[(name, "onnx", True) for name, row in KINDS.items() if not row.onnx],
    *[(name, "covers_ends", not row.covers_ends) for name, row in KINDS.items()],
    *[(name, "activations", True) for name in ("linear", "fixed_point", "log2")],
    *[(name, "codes", full) for name in ("dorefa", "lut_quantile")],
    ("log2", "max_bits", 9), ("dorefa", "control_min_bits", 1), ("affine", "reads", ("level", "typo")),
    ("affine", "reads", ["level"]), ("affine", "zero", "sometimes"), ("affine", "rounds", "yes"), ("affine", "max_bits", 17),
    ("affine", "min_bits", 8.0), ("affine", "why_max", "Nobody tried."), ("affine", "group_bytes", lambda bits: 0.5),
    ("affine", "codes", None),
    ("affine", "block", 0), ("affine", "tensor_bytes", -1), ("bfp", "block", 32), ("mxfp4", "block", -1),
    ("mxfp4", "ends", "magnitude"), ("mxfp4", "covers_ends", True), ("mxint8", "covers_ends", True),
    ("minifloat", "even_steps", True), ("minifloat", "ends", "both"), ("minifloat", "min_bits", 2),
]  # fmt: skip


@pytest.mark.parametrize(("scheme", "field", "value"), UNTRUE, ids=lambda value: getattr(value, "__name__", str(value)))
def test_a_row_that_is_not_true_is_refused(scheme, field, value):
    with pytest.raises(UserError):
        check_scheme(replace(SCHEMES[scheme], **{field: value}), SCHEMES.load(scheme))


def test_what_is_refused_is_said():
    with pytest.raises(
        UserError, match=r"rounds=true: allowed is false. At 2 bits, level=nearest quant.weight.rounding does not"
    ):
        check_scheme(replace(SCHEMES["log2"], rounds=True), SCHEMES.load("log2"))
    with pytest.raises(
        UserError, match=r"min_bits=1: allowed is the widths that it has. At 1 bits, level=nearest it has one code"
    ):
        check_scheme(replace(SCHEMES["log2"], min_bits=1, control_min_bits=1), SCHEMES.load("log2"))


class Broken(SCHEMES.load("binary")):
    """Code that the row of `binary` does not tell of."""


@pytest.mark.parametrize(
    ("method", "does", "said"),
    [
        ("encode", lambda x, params, spec, rounding: x, "integral codes"),
        ("encode", lambda x, params, spec, rounding: torch.sign(x), "reach from -1 to 1"),
        ("decode", lambda codes, params, spec: codes / 0, "not finite"),
        ("decode", lambda codes, params, spec: codes[:, 1:], "It raised RuntimeError"),
        ("fit", lambda rows, minimum, maximum, spec: {"scael": maximum}, "It raised KeyError: 'scale'"),
    ],
    ids=["unrounded", "beyond", "infinite", "another_shape", "misspelt"],
)
def test_code_that_does_something_else_is_refused(method, does, said, monkeypatch):
    monkeypatch.setattr(Broken, method, staticmethod(does))
    with pytest.raises(UserError, match=said):
        check_scheme(SCHEMES["binary"], Broken)


def test_code_must_be_a_whole_quantizer():
    class Half(Quantizer):
        fit = SCHEMES.load("binary").fit

    for code in (Half, len, Quantizer):
        with pytest.raises(UserError, match="a subclass of qexp.quant.quantizer.Quantizer"):
            check_scheme(SCHEMES["binary"], code)


def test_the_identity_names_the_file_and_covers_its_source():
    spec = QuantSpec(scheme="/home/me/mine.py:scheme", bits=4, source="1f")
    assert spec.identity == replace(spec, scheme="elsewhere/mine.py:scheme").identity
    assert spec.identity["scheme"] == "mine.py:scheme" and spec.identity != replace(spec, source="2e").identity
    assert "source" not in QuantSpec(scheme="affine", bits=4).identity


def test_a_file_that_changes_while_it_is_used_ends_it(tmp_path):
    """Else the numbers of the new code would be stored as those of the old."""
    text = f"{tmp_path / 'mine.py'}:scheme"
    lines = ["from dataclasses import replace", "from qexp.quant.scheme_table import SCHEMES",
             "def scheme():", "    return replace(SCHEMES['affine'], name='mine', activations=False)"]  # fmt: skip
    (tmp_path / "mine.py").write_text("\n".join(lines))
    x, spec = torch.randn(20), QuantSpec(scheme=text, bits=4, source=source_hash(text))
    assert torch.equal(quantize_(torch.empty(20), x, spec), quantize_(torch.empty(20), x, QuantSpec(scheme="affine", bits=4)))
    (tmp_path / "mine.py").write_text("\n".join([*lines, "# Another."]))
    with pytest.raises(UserError, match="a file that does not change while it is used"):
        quantize_(torch.empty(20), x, spec)
