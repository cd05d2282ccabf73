"""Whether a scheme's row tells the truth about its code: the code is tried, at every width that the row allows.

Ours are tried by the tests, a user's when its row is first read, so that no setting of a sweep reaches code that does not have
it. Tried on a few hundred fixed numbers, which takes about a tenth of a second. Rejected: trusting the row, as what it leaves out
or gets wrong is not seen in a run: it scores, and the number is wrong.
"""

from __future__ import annotations

import inspect
import traceback
from dataclasses import replace

from qexp.base.checks import check_types
from qexp.base.errors import UserError
from qexp.quant.float_quantizers import FloatQuantizer
from qexp.quant.quantizer import ControlQuantizer, FusedQuantizer, Quantizer
from qexp.quant.quantizers import Affine
from qexp.quant.scheme_table import OWN_SETTINGS, SCHEMES, SchemeInfo
from qexp.quant.scheme_trial import Trial, refuse, specs_of


def check_scheme(row: SchemeInfo, code: object) -> None:
    """Try the code of a row on small fixed tensors.

    Args:
        row: all that is asked of the scheme.
        code: its `Quantizer`.

    Raises:
        UserError: a field of the row of a wrong type, or one that the code, or another field, contradicts.
    """
    row = replace(row, code=code)
    _check_fields(row)
    _check_class(row, code)
    with SCHEMES.trying(row) as name:
        for spec in specs_of(row, name):
            try:
                Trial(row, spec).run()
            except UserError:
                raise
            except Exception as error:
                frame = traceback.extract_tb(error.__traceback__)[-1]
                what = f"{type(error).__name__}: {error} ({frame.filename}:{frame.lineno})"
                refuse("code", _named(code), f"code that runs at {spec.bits} bits", f"It raised {what}.")


def _named(code: object) -> str:
    return getattr(code, "__name__", type(code).__name__)


def _check_fields(row: SchemeInfo) -> None:
    """Types, and what belongs together whatever the code."""
    check_types(row)
    if not 1 <= row.min_bits <= row.max_bits <= 16:
        refuse("max_bits", row.max_bits, f"an integer from min_bits={row.min_bits} to 16, min_bits at least 1")
    if (row.max_bits < 16) != bool(row.why_max):
        refuse("why_max", repr(row.why_max), "a sentence where max_bits is below 16, else empty")
    if unknown := [key for key in row.reads if key not in OWN_SETTINGS]:
        refuse("reads", unknown[0], f"of {', '.join(OWN_SETTINGS)}, those that it reads")
    if row.zero == "pin_zero" and "pin_zero" not in row.reads:
        refuse("zero", row.zero, "always or never where it does not read pin_zero")
    if row.control_min_bits is not None and not row.min_bits <= row.control_min_bits <= row.max_bits:
        refuse("control_min_bits", row.control_min_bits, f"null or a width from {row.min_bits} to {row.max_bits}")
    if row.tensor_bytes < 0 or (row.block is not None and row.block < 0):
        refuse("tensor_bytes" if row.tensor_bytes < 0 else "block", min(row.tensor_bytes, row.block or 0), "at least 0")
    if row.block is not None and row.clipped:
        refuse("ends", row.ends, "none where it has blocks of its own", "No range is known for each block from outside.")
    if (row.block == 0) != ("block_size" in row.reads):
        refuse("block", row.block, "0 where it reads block_size, and nowhere else")
    if row.onnx and not (row.even_steps and row.dequantizes and row.zero == "always"):
        refuse("onnx", row.onnx, "true only with even_steps, dequantizes and zero=always", "QuantizeLinear has such a grid.")


def _check_class(row: SchemeInfo, code: object) -> None:
    """What the class is, for what the row says that it can."""
    if not (isinstance(code, type) and issubclass(code, Quantizer)) or inspect.isabstract(code):
        lacks = ", ".join(sorted(getattr(code, "__abstractmethods__", ())))
        remedy = f"It does not define {lacks}." if lacks else ""
        refuse("code", _named(code), "a subclass of qexp.quant.quantizer.Quantizer with fit, encode and decode", remedy)
    controls = issubclass(code, FusedQuantizer | ControlQuantizer)
    if controls != (row.control_min_bits is not None):
        allowed = "a width where its class is a FusedQuantizer or a ControlQuantizer, else null"
        refuse("control_min_bits", row.control_min_bits, allowed, f"{code.__name__} is {'one' if controls else 'neither'}.")
    if row.activations and code is not Affine and not issubclass(code, FloatQuantizer):
        remedy = "Activations are quantized by choose_qparams, or in a floating-point format."
        refuse("activations", True, "false but for the class Affine and subclasses of FloatQuantizer", remedy)
