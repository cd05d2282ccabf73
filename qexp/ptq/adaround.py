"""AdaRound: rounding weights up or down as the layer's output asks, one layer after another.

The grid is the plan's own, whatever its scheme, granularity and range, as long as it is even: only the choice between the code
below a weight and the code above is learned. Gradients are written out: the loss is a quadratic form in the weights
(`adaround_loss`), and autograd would cost more than the arithmetic.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from qexp.base.errors import UserError
from qexp.base.progress import track
from qexp.base.text import Note
from qexp.base.types import Batch, QuantSpec
from qexp.config.correct import CorrectSettings
from qexp.nn.channels import Layer, as_layer
from qexp.nn.graph import evaluating
from qexp.nn.layer_pairs import activations_after
from qexp.ptq.adaround_loss import SUPPORTED, Quadratic, Samples, kernel_rows, make_loss
from qexp.ptq.layer_inputs import LayerByLayer
from qexp.ptq.rounded_layers import Rounded, RoundedLayers, layers_to_round
from qexp.quant.ranges import ConstantTensorError
from qexp.quant.scheme_table import SCHEMES, code_range
from qexp.quant.schemes import Fitted, Limits, decode_rows, encode_rows, fit

_ZETA, _GAMMA = 1.1, -0.1  # the sigmoid is stretched to these, so that 0 and 1 are reached


@torch.no_grad()
def adaround_(
    quantized: nn.Module,
    reference: nn.Module,
    specs: Mapping[str, QuantSpec],
    batches: Iterable[Batch],
    settings: CorrectSettings | None = None,
    *,
    limits: Mapping[str, Limits] | None = None,
    seed: int = 0,
) -> RoundedLayers:
    """Round the planned weights of convolutions and linear layers so that the layers' outputs stay.

    min over V: E|W x + b - (W~ x^ + b^)|^2 + lambda sum (1 - |2 h(V) - 1|^beta),  W~ = s clip(floor(W/s) + h(V), n, p)
    h(V) = clip(1.2 sigmoid(V) - 0.1, 0, 1), from h = W/s - floor(W/s); beta falls from start to end after the warm-up

    x^ is the input that the quantized network has with all layers before it rounded, x the float network's: asymmetric. Of
    learned and nearest rounding each output channel keeps what gives it the smaller error, so none is worse than nearest on these
    images. The result is a function of images, settings and seed; memory is that of one batch and one layer.

    Args:
        quantized: overwritten in place; holds the copy rounded to nearest, and fake-quant modules if activations are quantized.
        reference: the float network, with the same layers under the same names, not changed.
        specs: name of a weight -> its quantizer (`Plan.quantized`); vectors are passed over, other tensors noted.
        batches: calibration images, on the networks' device; they are gone through once for each layer.
        settings: its `adaround_...`.
        limits: name of a weight -> the range to use instead of its own.
        seed: of the samples, where samples are drawn.

    Raises:
        UserError: no images.

    Source: Nagel et al. 2020, arXiv:2004.10568, equations 16, 21-25 and section 4; schedule as the authors' (AIMET).
    """
    settings, limits, images = settings or CorrectSettings(), limits or {}, [batch.images for batch in batches]
    if not images:
        raise UserError("correct.adaround", True, allowed="at least one batch of calibration images")
    rows: list[Rounded] = []
    notes: list[Note] = []
    with evaluating(quantized), evaluating(reference):
        activations = activations_after(reference) if settings.adaround_relu else {}
        inputs, wanted = LayerByLayer(quantized, images), LayerByLayer(reference, images)
        for layer, module in layers_to_round(quantized, reference, specs, images[0][:1], notes):
            name = f"{layer}.weight"
            grid = _grid(name, module, reference, specs[name], limits.get(name), notes)
            if grid is not None:
                generator = torch.Generator().manual_seed(seed)
                loss = _collect(layer, inputs, wanted, activations.get(layer) == "relu", generator)
                if isinstance(loss, Samples):
                    loss.batch_size = settings.adaround_batch_size
                rows.append(_round_layer(name, module, grid, loss, settings))
    return RoundedLayers(tuple(rows), tuple(notes))


@dataclass(frozen=True)
class _Grid:
    """The even grid of one weight: value = offset + step * code, elementwise, and the unrounded codes within its limits."""

    weight: Tensor
    spec: QuantSpec
    fitted: Fitted
    codes: Tensor
    step: Tensor
    offset: Tensor

    def values(self, codes: Tensor) -> Tensor:
        """The values of integer codes, as `quantize_` gives them."""
        return self.fitted.layout.fold(decode_rows(self.fitted.layout.rows(codes), self.spec, self.fitted))


def _grid(
    name: str, layer: Layer, reference: nn.Module, spec: QuantSpec, limits: Limits | None, notes: list[Note]
) -> _Grid | None:
    """The grid of a weight; None, with a note, where it cannot be learned on."""
    weight = reference.get_parameter(name).float()
    row = SCHEMES[spec.scheme]
    if type(layer) not in SUPPORTED or not (row.even_steps and row.dequantizes) or spec.mode != "int":
        what = type(layer).__name__ if type(layer) not in SUPPORTED else f"scheme {row.name}, mode {spec.mode}"
        notes.append(Note(name, f"rounded to nearest, AdaRound has no form for {what}"))
        return None
    spec = replace(spec, rounding="half_even")
    try:
        fitted = fit(weight, spec, limits)
    except ConstantTensorError:
        notes.append(Note(name, "left as it is, it is constant"))
        return None
    layout = fitted.layout
    codes = layout.fold(encode_rows(weight, replace(spec, mode="float"), fitted))
    at_zero, at_one = (
        layout.fold(decode_rows([torch.full_like(part, code) for part in layout.rows(weight)], spec, fitted))
        for code in (0.0, 1.0)
    )
    return _Grid(weight, spec, fitted, codes, step=at_one - at_zero, offset=at_zero)


def _collect(
    layer: str, inputs: LayerByLayer, wanted: LayerByLayer, relu: bool, generator: torch.Generator
) -> Quadratic | Samples:
    """The loss of a layer: its input in the quantized network against its output in the float one."""
    weight = wanted.model.get_parameter(f"{layer}.weight")
    num_images = sum(len(batch_images) for batch_images in inputs.images)
    module = as_layer(inputs.model.get_submodule(layer))
    loss = make_loss(module, weight, relu=relu, num_images=num_images, generator=generator)
    for (x, _), (_, y) in zip(inputs.at(layer), wanted.at(layer), strict=True):
        loss.add(x, y)
    loss.close()
    return loss


def _round_layer(name: str, layer: Layer, grid: _Grid, loss: Quadratic | Samples, settings: CorrectSettings) -> Rounded:
    """Learn the codes of a layer and write its weight."""
    low, high = code_range(grid.spec.scheme, grid.spec.bits, grid.spec.signed)
    nearest = torch.round(grid.codes)
    codes = (torch.floor(grid.codes) + (_learn(layer, grid, loss, settings) >= 0.5)).clamp_(low, high)
    weight = kernel_rows(layer, grid.weight)
    errors = [loss.error(kernel_rows(layer, grid.values(rounded)) - weight) for rounded in (nearest, codes)]
    better = (errors[1] < errors[0]).unsqueeze(-1)
    merged = torch.where(better, kernel_rows(layer, codes), kernel_rows(layer, nearest))
    # In groups of channels, [G, O, K] is the weight's own order but for a transposed convolution, which has no form here.
    codes = merged.reshape(codes.shape)
    layer.weight.copy_(grid.values(codes))
    kept = torch.where(better.squeeze(-1), errors[1], errors[0])
    flipped = float((codes != nearest).float().mean())
    return Rounded(name, float(errors[0].mean()), float(kept.mean()), flipped)


def _learn(layer: Layer, grid: _Grid, loss: Quadratic | Samples, settings: CorrectSettings) -> Tensor:
    """The learned h of every weight, in the weight's shape."""
    low, high = code_range(grid.spec.scheme, grid.spec.bits, grid.spec.signed)
    codes, step, weight, offset = (kernel_rows(layer, values) for values in (grid.codes, grid.step, grid.weight, grid.offset))
    floor = torch.floor(codes)
    # D = W~ - W, where floor and the range's ends are constants.
    fixed = offset + step * floor - weight
    movable = (floor < high).to(step)
    gain = step * movable
    share = ((codes - floor) - _GAMMA) / (_ZETA - _GAMMA)
    variable = nn.Parameter(torch.log(share) - torch.log1p(-share))
    optimizer = torch.optim.Adam([variable], lr=settings.adaround_lr, fused=True)
    iterations = settings.adaround_iterations
    warm = int(settings.adaround_warmup * iterations)
    for iteration in track(range(iterations), "iteration"):
        sigmoid = torch.sigmoid(variable)
        h = sigmoid * (_ZETA - _GAMMA) + _GAMMA
        inside = (h > 0) & (h < 1)
        h.clamp_(0, 1)
        gradient = loss.gradient(torch.addcmul(fixed, gain, h)).mul_(gain)
        if iteration >= warm:
            progress = (iteration - warm) / max(1, iterations - warm)
            beta = settings.adaround_beta_end + (settings.adaround_beta_start - settings.adaround_beta_end) * (1 - progress)
            centred = 2 * h - 1
            slope = centred.abs().pow_(beta - 1).copysign_(centred)
            gradient.sub_(slope, alpha=2 * settings.adaround_lambda * beta)
        variable.grad = gradient.mul_(inside).mul_(sigmoid).mul_(1 - sigmoid)
        optimizer.step()
    return (torch.sigmoid(variable.detach()) * (_ZETA - _GAMMA) + _GAMMA).reshape(grid.codes.shape)
