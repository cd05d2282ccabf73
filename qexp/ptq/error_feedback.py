"""GPTQ, GPFQ and Qronos: each input's weights are rounded in turn, and those that follow take up what rounding left over.

No gradient and no iteration: a layer's inputs enter by their second moments alone, from which the codes follow directly
(`feedback_rules`). The grid is the plan's own (`element_grid`): integers, floating-point formats and levels, in any granularity.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from qexp.base.errors import UserError
from qexp.base.text import Note
from qexp.base.types import Batch, QuantSpec
from qexp.config.correct import CorrectSettings
from qexp.nn.channels import Layer
from qexp.nn.graph import evaluating
from qexp.ptq.adaround_loss import SUPPORTED, images_at_once, input_rows, kernel_rows
from qexp.ptq.element_grid import ElementGrid, why_no_grid
from qexp.ptq.feedback_rules import Rule, damp_, gpfq, gptq, in_order, qronos, revive_, settle
from qexp.ptq.layer_inputs import LayerByLayer
from qexp.ptq.rounded_layers import Rounded, RoundedLayers, layers_to_round
from qexp.quant.ranges import ConstantTensorError
from qexp.quant.schemes import Limits

MOMENT_ELEMENTS = 1 << 25  # of E[x x'] at most: 256 MiB of float64, of which a layer needs up to seven


@dataclass(frozen=True)
class _Method:
    """Which rule, and what it asks for."""

    rule: Callable[[Tensor, Tensor, Tensor], Rule]
    reads_float_inputs: bool
    damped: bool


METHODS = {
    "gptq": _Method(gptq, reads_float_inputs=False, damped=True),
    "gpfq": _Method(gpfq, reads_float_inputs=True, damped=False),
    "qronos": _Method(qronos, reads_float_inputs=True, damped=True),
}


@torch.no_grad()
def error_feedback_(
    quantized: nn.Module,
    reference: nn.Module,
    specs: Mapping[str, QuantSpec],
    batches: Iterable[Batch],
    method: str,
    settings: CorrectSettings | None = None,
    *,
    limits: Mapping[str, Limits] | None = None,
) -> RoundedLayers:
    """Round the planned weights of convolutions and linear layers, each layer's inputs in turn, by GPTQ, GPFQ or Qronos.

    Layer by layer, on x~, the inputs that the quantized network has with all layers before it rounded, and x, the float
    network's. GPTQ keeps W x~, what the float weights make of the quantized inputs; GPFQ and Qronos keep W x, what the float
    network has. `qexp.ptq.feedback_rules` has the formulas. Inputs are taken as they lie in the kernel (Cin, kh, kw), or from
    the largest E[x~^2] to the smallest; each group of channels has an order of its own, as its inputs are others. Of chosen
    and nearest codes each output channel keeps what gives it the smaller error, so none is worse than nearest on these images.

    The result is a function of images and settings: it draws nothing. Second moments are summed in float64, of products in
    float32: with few images, or inputs that follow from one another, they are all but singular. Memory is that of one batch,
    of `layer_inputs.KEPT_BYTES` for each network that runs and, for K inputs in G groups, up to seven G K^2 float64 (1.8 GiB).

    Args:
        quantized: overwritten in place; holds the copy rounded to nearest, and fake-quant modules if activations are quantized.
        reference: the float network, with the same layers under the same names, not changed.
        specs: name of a weight -> its quantizer (`Plan.quantized`); vectors are passed over, other tensors noted.
        batches: calibration images, on the networks' device; they are gone through once for each layer.
        method: `gptq`, `gpfq` or `qronos`.
        settings: its `feedback_...`.
        limits: name of a weight -> the range to use instead of its own.

    Raises:
        UserError: no images.
    """
    settings, limits, images = settings or CorrectSettings(), limits or {}, [batch.images for batch in batches]
    if not images:
        raise UserError(f"correct.{method}", True, allowed="at least one batch of calibration images")
    rows: list[Rounded] = []
    notes: list[Note] = []
    with evaluating(quantized), evaluating(reference):
        given, wanted = LayerByLayer(quantized, images), LayerByLayer(reference, images)
        for layer, module in layers_to_round(quantized, reference, specs, images[0][:1], notes):
            name = f"{layer}.weight"
            weight = reference.get_parameter(name).float()
            grid = _grid(name, module, weight, specs[name], limits.get(name), notes)
            if grid is None:
                continue
            moments = _Moments(module, weight, float_inputs=METHODS[method].reads_float_inputs)
            if moments.float_inputs:
                for (x, y), (float_x, _) in zip(given.at(layer), wanted.at(layer), strict=True):
                    moments.add(x, float_x, y)
            else:
                for x, y in given.at(layer):
                    moments.add(x, x, y)
            moments.close()
            if moments.are_finite:
                rows.append(_round_layer(name, module, grid, moments, METHODS[method], settings))
            else:
                notes.append(Note(name, "rounded to nearest, second moments of its inputs are not finite"))
    return RoundedLayers(tuple(rows), tuple(notes))


def _grid(
    name: str, layer: Layer, weight: Tensor, spec: QuantSpec, limits: Limits | None, notes: list[Note]
) -> ElementGrid | None:
    """The grid of a weight; None, with a note, where it or its layer has no form."""
    if why := _why_not(layer, spec):
        notes.append(Note(name, f"rounded to nearest, {why}"))
        return None
    try:
        grid = ElementGrid.of(layer, weight, spec, limits)
    except ConstantTensorError:
        notes.append(Note(name, "left as it is, it is constant"))
        return None
    if not grid.keeps_its_values:
        notes.append(Note(name, f"rounded to nearest, {spec.scheme} has no grid: it maps its own values to others"))
        return None
    return grid


def _why_not(layer: Layer, spec: QuantSpec) -> str:
    """Why a layer is left at its nearest codes."""
    if type(layer) not in SUPPORTED:
        return f"error feedback has no form for {type(layer).__name__}"
    if why := why_no_grid(spec):
        return f"error feedback has no form for {why}"
    groups, _, size = kernel_rows(layer, layer.weight).shape
    if groups * size * size > MOMENT_ELEMENTS:
        gib = groups * size * size * 8 / 2**30
        return f"second moments of its {size} inputs would take {gib:.1f} GiB, more than {MOMENT_ELEMENTS * 8 / 2**30:g}"
    return ""


class _Moments:
    """H = E[x~ x~'], C = E[x~ x'] and E|W x|^2 of a layer over all positions of all images, float64.

    Args:
        layer: of the quantized network.
        weight: its unrounded weight.
        float_inputs: whether x is the float network's input; otherwise it is x~.
    """

    def __init__(self, layer: Layer, weight: Tensor, *, float_inputs: bool) -> None:
        self.layer, self.float_inputs, self.count = layer, float_inputs, 0
        self.weight = kernel_rows(layer, weight).double()
        groups, outputs, size = self.weight.shape
        zeros = self.weight.new_zeros
        self.square = zeros(groups, size, size)
        self.cross = zeros(groups, size, size) if float_inputs else self.square
        self.wanted = zeros(groups, outputs)

    def add(self, quantized: Tensor, x: Tensor, y: Tensor) -> None:
        """Take in a batch: the layer's input in the quantized network, its input in the float one, and any output."""
        step = images_at_once(self.layer, y)
        for given, part in zip(quantized.split(step), x.split(step), strict=True):
            rows = input_rows(self.layer, given)
            self.square += rows.mT @ rows
            self.count += rows.shape[1]
            if self.float_inputs:
                others = input_rows(self.layer, part)
                self.cross += rows.mT @ others
                self.wanted += (others @ self.weight.mT.float()).square_().sum(1, dtype=torch.float64)

    def close(self) -> None:
        """Turn sums into means; call it once, after the last batch."""
        self.square /= self.count
        if self.float_inputs:
            self.cross /= self.count
            self.wanted /= self.count
        else:
            self.wanted = ((self.weight @ self.square) * self.weight).sum(-1)

    @property
    def are_finite(self) -> bool:
        """False where inputs or outputs overflow: no code follows from such moments."""
        return all(bool(moment.isfinite().all()) for moment in (self.square, self.cross, self.wanted))

    def error(self, weight: Tensor) -> Tensor:
        """Mean squared error E|W x - q x~|^2 of each output channel, [G, O] float64, of a quantized weight [G, O, K]."""
        product = weight @ self.square - 2 * self.weight @ self.cross.mT
        return (self.wanted + (product * weight).sum(-1)).clamp_(min=0)


def _round_layer(
    name: str, layer: Layer, grid: ElementGrid, moments: _Moments, method: _Method, settings: CorrectSettings
) -> Rounded:
    """Choose the codes of a layer and write its weight."""
    codes, damping = _codes(grid, moments, method, settings)
    nearest = grid.nearest()
    errors = [moments.error(kernel_rows(layer, grid.values(chosen)).double()) for chosen in (nearest, codes)]
    better = errors[1] < errors[0]
    codes = torch.where(better.unsqueeze(-1), codes, nearest)
    layer.weight.copy_(grid.values(codes))
    kept = torch.where(better, errors[1], errors[0])
    flipped = float((codes != nearest).float().mean())
    return Rounded(name, float(errors[0].mean()), float(kept.mean()), flipped, damping)


def _codes(grid: ElementGrid, moments: _Moments, method: _Method, settings: CorrectSettings) -> tuple[Tensor, float | None]:
    """The codes that a method chooses, [G, O, K], and the largest damping of a group, if it damps."""
    weight, group, order, damping = moments.weight, grid.group, None, None
    matrices = [moments.square, moments.cross] if moments.float_inputs else [moments.square]
    if settings.feedback_act_order:
        order = moments.square.diagonal(dim1=1, dim2=2).argsort(dim=1, descending=True, stable=True)
        weight, group = in_order(weight, order, 2), in_order(group, order, 2)
        matrices = [in_order(matrix, order, 1, 2) for matrix in matrices]
    else:
        matrices = [matrix.clone() for matrix in matrices]
    revive_(*matrices)
    if method.damped:
        damping = float(damp_(*matrices, damping=settings.feedback_damping).max())
    rule = method.rule(weight, matrices[0], matrices[-1])
    del matrices
    columns = group.permute(2, 0, 1).contiguous()
    codes = torch.empty(columns.shape, device=weight.device)

    def round_column(values: Tensor, column: int) -> Tensor:
        codes[column], rounded = grid.encode(values, columns[column])
        return rounded

    settle(rule, round_column)
    chosen = codes.permute(1, 2, 0).contiguous()
    return (chosen if order is None else in_order(chosen, order.argsort(dim=1), 2)), damping
