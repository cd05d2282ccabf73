"""What files of INT8 codes have in common, whoever reads them: which grids they hold, and what is refused by name."""

from __future__ import annotations

from qexp.base.errors import UserError
from qexp.base.types import QParams
from qexp.deploy.onnx.writer import code_type
from qexp.deploy.weight_codes import WeightCodes
from qexp.nn.fake_quantize import FakeQuantize

_OFFSET = -128  # what codes from 0 to 255 are moved by


def check_point(quantizer: FakeQuantize, place: str) -> None:
    """Raise UserError for an activation point that no such file holds.

    Args:
        quantizer: at the point.
        place: whose file, for the message.
    """
    wanted: dict[str, object] = {
        "mode": "int", "rounding": "half_even", "dynamic": False, "granularity": "per_tensor",
    }  # fmt: skip
    for key, value in wanted.items():
        given = getattr(quantizer.spec, key)
        if given != value:
            remedy = "Another runtime may hold it: export.runtime=onnxruntime."
            raise UserError(f"{quantizer.name}.{key}", given, allowed=f"{str(value).lower()} in {place}", remedy=remedy)


def check_weight(path: str, coded: WeightCodes, place: str) -> None:
    """Raise UserError for codes that no such file has as weights.

    Args:
        path: state-dict name of the weight.
        coded: its codes.
        place: whose file, for the message.

    Source: LiteRT 8-bit quantization specification: weights are int8 within -127 and 127, zero point 0; XNNPACK has the same.
    """
    qparams, remedy = coded.qparams, "Quantize weights with quant=symmetric_restricted and at most 8 bits."
    if bool((qparams.zero_point != 0).any()):
        raise UserError(path, "codes with a zero point", allowed=f"weights whose zero point is 0 in {place}", remedy=remedy)
    if qparams.quant_min < -127 or qparams.quant_max > 127:
        ends = f"codes from {qparams.quant_min} to {qparams.quant_max}"
        raise UserError(path, ends, allowed=f"weights from -127 to 127 in {place}", remedy=remedy)
    if qparams.axis not in (None, 0):
        raise UserError(path, f"scales along dimension {qparams.axis}", allowed=f"one for each output in {place}", remedy=remedy)


def signed(qparams: QParams) -> tuple[QParams, int]:
    """A grid with signed codes, the same values: codes of 8 bits from 0 on move by -128; and what was added to the codes.

    >>> import torch
    >>> signed(QParams(torch.tensor(1.0), torch.tensor(3.0), 0, 255))[0].zero_point
    tensor(-125.)
    """
    if code_type(qparams) != "UINT8":
        return qparams, 0
    limits = qparams.quant_min + _OFFSET, qparams.quant_max + _OFFSET
    return QParams(qparams.scale, qparams.zero_point + _OFFSET, *limits, qparams.axis), _OFFSET
