"""The quantizers of each training method; what else a method is stands in its row, `qexp/config/qat_methods.py`."""

from __future__ import annotations

from abc import ABC, abstractmethod

from torch import Size, Tensor

from qexp.base.types import ActivationInfo, QuantSpec
from qexp.config.qat import QatSettings
from qexp.qat.quantizers import BaseQuantizer, ClippedRange, DorefaWeight, LearnedStep, ObservedRange, Quantizer, WeightRange


class QatMethod(ABC):
    """Makes a quantizer for each planned weight and activation of a network."""

    @abstractmethod
    def weight_quantizer(self, weight: Tensor, spec: QuantSpec, settings: QatSettings) -> BaseQuantizer | None:
        """The quantizer of a weight; None where stored weights are overwritten instead, as the method's row says.

        Args:
            weight: any shape, of which the quantizer may take its own; its values are not the first ones yet.
            spec: the grid.
            settings: of the training.
        """

    @abstractmethod
    def activation_quantizer(self, info: ActivationInfo, spec: QuantSpec, settings: QatSettings) -> Quantizer:
        """The quantizer of an activation.

        Args:
            info: shape for one image without the batch, operator that makes it.
            spec: the grid.
            settings: of the training.
        """


class Ste(QatMethod):
    """A weight's own range at each step, an average of an activation's ranges."""

    def weight_quantizer(self, weight: Tensor, spec: QuantSpec, settings: QatSettings) -> BaseQuantizer | None:
        """The weight's own range."""
        return WeightRange(spec, settings.gradient_mask)

    def activation_quantizer(self, info: ActivationInfo, spec: QuantSpec, settings: QatSettings) -> Quantizer:
        """An average of the batches' ranges."""
        return ObservedRange(spec, settings.gradient_mask, settings.momentum)


class EveryStep(Ste):
    """Activations as `Ste`; the stored weights are quantized after each update."""

    def weight_quantizer(self, weight: Tensor, spec: QuantSpec, settings: QatSettings) -> BaseQuantizer | None:
        """None: `QatNetwork.overwrite_weights` quantizes them."""
        return None


class Lsq(QatMethod):
    """Learned step sizes."""

    with_offset = False  # of activations

    def weight_quantizer(self, weight: Tensor, spec: QuantSpec, settings: QatSettings) -> BaseQuantizer | None:
        """A step for the tensor or for each channel."""
        channels = weight.shape[spec.axis] if spec.granularity == "per_channel" else None
        return LearnedStep(spec, settings.gradient_mask, weight.numel() // (channels or 1), channels)

    def activation_quantizer(self, info: ActivationInfo, spec: QuantSpec, settings: QatSettings) -> Quantizer:
        """One step."""
        num_elements = max(1, Size(info.shape).numel())
        return LearnedStep(spec, settings.gradient_mask, num_elements, with_offset=self.with_offset)


class LsqPlus(Lsq):
    """Learned step sizes, and learned offsets of activations."""

    with_offset = True


class Pact(QatMethod):
    """Squashed weights, activations clipped at a learned end."""

    def weight_quantizer(self, weight: Tensor, spec: QuantSpec, settings: QatSettings) -> BaseQuantizer | None:
        """Even levels of the squashed values."""
        return DorefaWeight(spec, settings.gradient_mask)

    def activation_quantizer(self, info: ActivationInfo, spec: QuantSpec, settings: QatSettings) -> Quantizer:
        """Clipped at a learned end."""
        return ClippedRange(spec, settings.gradient_mask, learned=True)


class Dorefa(Pact):
    """Squashed weights, activations clipped at one."""

    def activation_quantizer(self, info: ActivationInfo, spec: QuantSpec, settings: QatSettings) -> Quantizer:
        """Clipped at one, but for the images: its authors leave these alone, whose values a clip at one would destroy."""
        end = None if info.operator == "image" else 1.0
        return ClippedRange(spec, settings.gradient_mask, learned=False, end=end)
