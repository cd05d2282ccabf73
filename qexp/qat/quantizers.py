"""The quantizers that a network is trained with: modules that hold what is learned or observed, one per weight or activation.

All that a resume needs lies in parameters and buffers; they are NaN until `initialise`, and a resumed network gets them from its
state dict instead, so that nothing is calibrated twice.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn

from qexp.base.types import QParams, QuantSpec
from qexp.nn.fake_quantize import range_qparams
from qexp.qat.moments import Moments
from qexp.quant.gradient_blocks import eager_cpu
from qexp.quant.gradients import (
    fake_quantize_learned,
    fake_quantize_ste,
    gradient_factor,
    initial_scale,
    initial_weight_scale,
    offset_zero_point,
)
from qexp.quant.gradients_dorefa import quantize_dorefa_weight
from qexp.quant.gradients_pact import quantize_clipped
from qexp.quant.qparams import MIN_SCALE
from qexp.quant.ranges import extremes, min_max
from qexp.quant.scheme_table import code_range


class BaseQuantizer(nn.Module, ABC):
    """x -> the values that its codes stand for, with a gradient; shape, dtype and memory format stay.

    Args:
        spec: the grid.
        mask: which values pass their gradient, `paper` or `rounded`.
    """

    def __init__(self, spec: QuantSpec, mask: str) -> None:
        super().__init__()
        self.spec, self.mask = spec, mask
        self.axis = spec.axis if spec.granularity == "per_channel" else None
        self.quant_min, self.quant_max = code_range(spec.scheme, spec.bits)

    def initialise(self, moments: Moments) -> None:  # noqa: B027  (those that learn nothing begin with nothing)
        """Take first values from what was observed."""

    @abstractmethod
    def at(self, x: Tensor) -> QParams:
        """What maps the codes of a tensor `x` to the values that `forward` gives of it in eval mode."""

    def extra_repr(self) -> str:
        """What `print(model)` shows."""
        return f"{self.spec.scheme}, bits={self.spec.bits}, {self.spec.granularity}"


class Quantizer(BaseQuantizer):
    """One whose grid does not depend on the tensor that it is applied to: what is learned or observed gives it."""

    needs_range = False  # it begins with a calibrated range, even if its method's others do not

    @property
    @abstractmethod
    def qparams(self) -> QParams:
        """What maps the codes to the values that `forward` gives in eval mode."""

    def at(self, x: Tensor) -> QParams:
        """The same, whatever x."""
        return self.qparams

    def _qparams(self, scale: Tensor, zero_point: Tensor | None = None) -> QParams:
        zeros = torch.zeros_like(scale) if zero_point is None else zero_point
        return QParams(scale.detach().clone(), zeros.detach().clone(), self.quant_min, self.quant_max, self.axis)


def _or_one(size: Tensor) -> Tensor:
    """Where nothing but zeros was seen, one: a step of zero has no gradient, so that nothing would ever come through."""
    return torch.where(size == 0, 1.0, size)


class WeightRange(BaseQuantizer):
    """`ste` of a weight: its own range at each step, straight through."""

    def forward(self, x: Tensor) -> Tensor:
        """The quantized weight."""
        qparams = self.at(x)
        return fake_quantize_ste(
            x, qparams.scale, qparams.zero_point, qparams.quant_min, qparams.quant_max, axis=self.axis, mask=self.mask
        )

    def at(self, x: Tensor) -> QParams:
        """The grid of a weight."""
        low, high = min_max(x.detach(), self.axis)
        return range_qparams(low.float(), high.float(), self.spec)


class ObservedRange(Quantizer):
    """`ste` of an activation: an average of the batches' ranges, which eval mode leaves as it is.

    Under several ranks each averages its own batches, and all begin each step with rank 0's average, as batch norm does.

    Args:
        spec: the grid.
        mask: which values pass their gradient, `paper` or `rounded`.
        momentum: weight of the average so far when a batch is added.
    """

    minimum: Tensor
    maximum: Tensor

    def __init__(self, spec: QuantSpec, mask: str, momentum: float) -> None:
        super().__init__(spec, mask)
        self.momentum = momentum
        self.register_buffer("minimum", torch.full((), torch.nan))
        self.register_buffer("maximum", torch.full((), torch.nan))

    def initialise(self, moments: Moments) -> None:
        """Begin with the calibrated range."""
        self.minimum.copy_(moments.minimum)
        self.maximum.copy_(moments.maximum)

    def forward(self, x: Tensor) -> Tensor:
        """The quantized activation; the range moves first."""
        if self.training:
            for average, end in zip((self.minimum, self.maximum), extremes(x.detach()), strict=True):
                # A step of fp16 that overflowed, and that the gradient scaler skips, leaves it as it is.
                average.lerp_(torch.where(end.isfinite(), end.to(average), average), 1 - self.momentum)
        qparams = self.qparams
        return fake_quantize_ste(x, qparams.scale, qparams.zero_point, self.quant_min, self.quant_max, mask=self.mask)

    @property
    def qparams(self) -> QParams:
        """The grid of the average range."""
        return range_qparams(self.minimum, self.maximum, self.spec)


class LearnedStep(Quantizer):
    """`lsq`, and with an offset `lsq_plus`: the step size is a parameter.

    Args:
        spec: the grid.
        mask: which values pass their gradient, `paper` or `rounded`.
        num_elements: of a step: weights, or values of one image.
        num_channels: steps, where they are per channel.
        with_offset: learn the value of code 0 too.
    """

    def __init__(
        self, spec: QuantSpec, mask: str, num_elements: int, num_channels: int | None = None, *, with_offset: bool = False
    ) -> None:
        super().__init__(spec, mask)
        shape = () if num_channels is None else (num_channels,)
        self.scale = nn.Parameter(torch.full(shape, torch.nan))
        self.offset = nn.Parameter(torch.full(shape, torch.nan)) if with_offset else None
        # The codes of an affine grid are signed: counted from its lower end they are the paper's 0 to p.
        self.positive = self.quant_max - self.quant_min if with_offset else self.quant_max
        self.factor = gradient_factor(num_elements, self.positive)

    @torch.no_grad()
    def initialise(self, moments: Moments) -> None:
        """2 E|x| / sqrt(p), above 4 bits at most max|x| / p, or what covers the calibrated range.

        LSQ+ takes three standard deviations of a weight, of an activation the range.

        The paper has the first at every width. At 8 bits it ends at 22 E|x| of a weight, 32 E|x| of an activation: two or three
        bits lie beyond the largest value until the step is learned.
        """
        if self.offset is not None:
            qparams = range_qparams(moments.minimum, moments.maximum, self.spec)
            self.scale.copy_(qparams.scale)
            self.offset.copy_(-qparams.zero_point * qparams.scale)
        elif moments.ranged:
            self.scale.copy_(_or_one(range_qparams(moments.minimum, moments.maximum, self.spec).scale))
        elif moments.three_sigma:
            assert moments.mean is not None and moments.std is not None
            self.scale.copy_(_or_one(initial_weight_scale(moments.mean, moments.std, self.spec.bits)))
        else:
            scale = initial_scale(moments.mean_abs, self.positive)
            if self.spec.bits > 4:
                scale = torch.minimum(scale, torch.maximum(moments.maximum, -moments.minimum) / self.positive)
            self.scale.copy_(_or_one(scale))

    def forward(self, x: Tensor) -> Tensor:
        """The quantized tensor."""
        return fake_quantize_learned(
            x,
            self.step,
            quant_min=self.quant_min,
            quant_max=self.quant_max,
            gradient_factor=self.factor,
            axis=self.axis,
            mask=self.mask,
            offset=self.offset,
        )

    @property
    def step(self) -> Tensor:
        """The step size as used: an update that carries it across zero does not turn the grid around."""
        if eager_cpu(self.scale) and float(self.scale.detach().amin()) >= MIN_SCALE:
            return self.scale  # as it is: two functions less in the gradient of each tensor
        return self.scale.abs().clamp_min(MIN_SCALE)

    @property
    def qparams(self) -> QParams:
        """Step and offset as scale and zero point."""
        step = self.step.detach()
        zero = None if self.offset is None else offset_zero_point(self.offset, step, self.quant_min, self.quant_max)
        return self._qparams(step, zero)


class ClippedRange(Quantizer):
    """`pact`: the activation's end alpha is a parameter; of `dorefa` it is fixed, at 1 but for the images.

    Args:
        spec: the grid.
        mask: which values pass their gradient, `paper` or `rounded`.
        learned: alpha is a parameter.
        end: where alpha begins; None takes the calibrated range.
    """

    alpha: Tensor

    def __init__(self, spec: QuantSpec, mask: str, *, learned: bool, end: float | None = None) -> None:
        super().__init__(spec, mask)
        self.signed, self.end, self.needs_range = spec.scheme != "unsigned_symmetric", end, end is None
        alpha = torch.full((), torch.nan)
        if learned:
            self.alpha = nn.Parameter(alpha)
        else:
            self.register_buffer("alpha", alpha)

    @torch.no_grad()
    def initialise(self, moments: Moments) -> None:
        """The end that was given, else of the calibrated range."""
        end = torch.tensor(self.end) if self.end is not None else torch.maximum(moments.maximum, -moments.minimum)
        self.alpha.copy_(_or_one(end))

    def forward(self, x: Tensor) -> Tensor:
        """The quantized activation."""
        return quantize_clipped(x, self._end(), self.spec.bits, signed=self.signed, mask=self.mask)

    def _end(self) -> Tensor:
        return self.alpha.abs().clamp_min(MIN_SCALE * self.quant_max)

    @property
    def qparams(self) -> QParams:
        """The grid that ends at alpha."""
        end = self._end().detach()
        return self._qparams(end / torch.full_like(end, self.quant_max))


class DorefaWeight(BaseQuantizer):
    """`dorefa` and `pact` of a weight: even levels of its squashed values, -1 to 1."""

    def forward(self, x: Tensor) -> Tensor:
        """The quantized weight."""
        return quantize_dorefa_weight(x, self.spec.bits)

    def at(self, x: Tensor) -> QParams:
        """Its levels as odd multiples of half their distance; at one bit both signs of the mean magnitude."""
        ends = 2**self.spec.bits - 1
        scale = x.detach().abs().mean() if self.spec.bits == 1 else torch.tensor(1 / ends, device=x.device)
        return QParams(scale.float(), torch.zeros_like(scale), -ends, ends)
