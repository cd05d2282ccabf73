"""What the row of a training method says, held against what its quantizers do with small tensors, before anything is trained."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor

from qexp.base.checks import check_types
from qexp.base.errors import UserError
from qexp.base.types import ActivationInfo, QuantSpec
from qexp.config.qat import QatSettings
from qexp.config.qat_methods import QatMethodInfo
from qexp.qat.methods import QatMethod
from qexp.qat.moments import Moments, weight_moments
from qexp.qat.quantizers import BaseQuantizer, Quantizer
from qexp.quant.affine import fake_quantize_affine
from qexp.quant.scheme_table import SCHEMES

_BITS = (2, 4, 8)
_GROUP = 9  # values that share a range, of `per_group`


def check_qat_method(row: QatMethodInfo, code: object) -> None:
    """Raise `UserError(field, value, ...)` where a row contradicts itself or its code.

    Every grid that the row allows is tried at 2, 4 and 8 bits: forward and backward give finite values, all that is learned
    gets a gradient, the state dict holds the whole state, and the quantization parameters stand for what `forward` gives in
    eval mode.

    Args:
        row: of the method.
        code: the class that it names.
    """
    check_types(row)
    for name in ("granularities", "first_steps"):
        if not getattr(row, name):
            raise UserError(name, (), allowed="at least one")
    if (row.squashed_weights or row.overwrites_weights) and not row.why_unfolded:
        allowed = "a reason: weights that are squashed or overwritten cannot be quantized as folded"
        raise UserError("why_unfolded", repr(row.why_unfolded), allowed=allowed)
    if not (isinstance(code, type) and issubclass(code, QatMethod)):
        raise UserError("code", code, allowed="a class derived from qexp.qat.methods.QatMethod")
    place, learns = "its class", False
    try:
        method = code()
        for place, make, x, moments in (*_weights(row, method), *_activations(row, method)):
            learns = _try(row, make, x, moments, of_activation=place.startswith("activation")) or learns
    except UserError as error:
        raise UserError(error.key, error.value, allowed=error.allowed, remedy=f"Seen at: {place}. {error.remedy}") from error
    except Exception as error:  # whatever a user's code raises
        raise UserError("code", code.__name__, remedy=f"At {place} it raised {type(error).__name__}: {error}") from error
    if row.decay is not None and not learns:
        raise UserError("decay", row.decay, allowed="None", remedy="Its quantizers learn nothing.")


_Case = tuple[str, Callable[[], BaseQuantizer | None], Tensor, Moments]


def _weights(row: QatMethodInfo, method: QatMethod) -> Iterator[_Case]:
    """(where, what makes the quantizer, a weight, what it begins from) for all grids of a weight."""
    weight = torch.randn(6, 4, 3, 3, generator=torch.Generator().manual_seed(0)) / 10
    settings = QatSettings(mask=row.mask)
    for scheme in dict.fromkeys((row.weights, *row.weight_choices)):
        for granularity in row.granularities:
            axis = 0 if granularity == "per_channel" else None
            moments = weight_moments(weight, axis, three_sigma=row.three_sigma)
            for bits in filter(lambda bits: _has_width(scheme, bits), _BITS):
                group = _GROUP if granularity == "per_group" else None
                spec = QuantSpec(scheme=scheme, bits=bits, granularity=granularity, axis=axis or 0, group_size=group)
                for first_step in row.first_steps:
                    yield (
                        f"weight, {scheme}, {granularity}, {bits} bits, first_step={first_step}",
                        partial(method.weight_quantizer, weight, spec, settings),
                        weight,
                        replace(moments, ranged=first_step == "calibrated"),
                    )


def _activations(row: QatMethodInfo, method: QatMethod) -> Iterator[_Case]:
    """The same for all grids of an activation: images, and the result of a ReLU."""
    images = torch.randn(4, 3, 6, 6, generator=torch.Generator().manual_seed(1))
    settings = QatSettings(mask=row.mask)
    for scheme in (
        (row.activations,) if row.defines_activations else SCHEMES.names_where(lambda scheme: scheme.affine_activations)
    ):
        for operator, x in (("image", images), ("conv+relu", images.relu())):
            signed = "symmetric_restricted" if scheme == "unsigned_symmetric" and operator == "image" else scheme
            info = ActivationInfo(name=operator, operator=operator, shape=(3, 6, 6), non_negative=operator != "image")
            for bits in _BITS:
                spec = QuantSpec(scheme=signed, bits=bits)
                for first_step in row.first_steps:
                    ranged = row.begins_with_range or first_step == "calibrated"
                    moments = Moments(minimum=x.amin(), maximum=x.amax(), mean_abs=x.abs().mean(), ranged=ranged)
                    yield (
                        f"activation, {signed}, {operator}, {bits} bits, first_step={first_step}",
                        partial(method.activation_quantizer, info, spec, settings),
                        x,
                        moments,
                    )


def _has_width(scheme: str, bits: int) -> bool:
    try:
        SCHEMES[scheme].check_width(bits)
    except UserError:
        return False
    return True


def _try(
    row: QatMethodInfo, make: Callable[[], BaseQuantizer | None], x: Tensor, moments: Moments, *, of_activation: bool
) -> bool:
    """Run one quantizer forward and back; True where it learns something."""
    quantizer, again = make(), make()
    if not of_activation and (quantizer is None) != row.overwrites_weights:
        allowed = "true where weight_quantizer gives None, and nowhere else"
        raise UserError("overwrites_weights", row.overwrites_weights, allowed=allowed)
    if not of_activation and quantizer is None:
        return False
    kind = Quantizer if of_activation else BaseQuantizer
    if not isinstance(quantizer, kind) or not isinstance(again, kind):
        allowed = f"quantizers derived from qexp.qat.quantizers.{kind.__name__}"
        raise UserError("code", type(quantizer).__name__, allowed=allowed)
    quantizer.initialise(moments)
    leaf = x.clone().requires_grad_()
    result = quantizer.train()(leaf)
    result.backward(torch.linspace(-1, 1, result.numel()).reshape(result.shape))
    _holds("forward keeps shape and type", result.shape == x.shape and result.dtype == x.dtype)
    _holds("forward gives finite values", bool(result.isfinite().all()))
    _holds("a gradient comes through", leaf.grad is not None and bool(leaf.grad.isfinite().all()) and bool(leaf.grad.any()))
    learned = dict(quantizer.named_parameters())
    for name, parameter in learned.items():
        _holds(f"{name} gets a finite gradient", parameter.grad is not None and bool(parameter.grad.isfinite().all()))
    if learned and row.decay is None:
        allowed = "scale_decay or alpha_decay, as it learns"
        raise UserError("decay", None, allowed=allowed, remedy=f"It learns {', '.join(learned)}.")
    with torch.no_grad():
        values, qparams = quantizer.eval()(x), quantizer.at(x)
        again.load_state_dict(quantizer.state_dict())
        _holds("a state dict holds the whole state", torch.equal(again.eval()(x), values))
        if of_activation:
            told = fake_quantize_affine(x, qparams)
        else:
            shape = [-1 if axis == qparams.axis else 1 for axis in range(x.dim())]
            scale, zero = (part.float().reshape(shape) for part in (qparams.scale, qparams.zero_point))
            told = ((values / scale + zero).round().clamp(qparams.quant_min, qparams.quant_max) - zero) * scale
        _holds("qparams stand for what forward gives in eval mode", torch.allclose(told, values, rtol=1e-5, atol=1e-7))
    return bool(learned)


def _holds(what: str, holds: bool) -> None:
    if not holds:
        raise UserError("code", "its quantizer", allowed=f"one of which holds: {what}")
