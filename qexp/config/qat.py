"""Settings of quantization-aware training, and what they make of the recipe and of the quantizers; torch-free."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Annotated, Literal

from qexp.base.catalog import CUSTOM
from qexp.base.checks import Count, Epochs, Natural, NotNegative, Positive, Share, check_bounds
from qexp.base.errors import UserError
from qexp.config.later import later
from qexp.config.qat_methods import QAT_METHODS, FirstStep, Mask, QatMethodInfo
from qexp.config.quant import ActivationQuantSettings, QuantSettings
from qexp.config.read_where import ReadWhere
from qexp.config.train import TrainSettings
from qexp.quant.scheme_table import SCHEMES

QAT_VERSION = 3  # part of the hash of every such training; raise it when the same settings come to train otherwise
# Methods whose activations alone came to train otherwise since -> their version, in its place.
# A method of the user's may be built on any of them.
METHOD_VERSIONS = {"lsq_plus": 4, CUSTOM: 4}  # the step's gradient counts how the zero point is rounded
IN_RECIPE = ("epochs", "lr", "weight_decay", "warmup_epochs")  # settings that act through the recipe alone
FINE_TUNING = 0.1  # of train.lr, where a network that was trained with it goes on


@dataclass(frozen=True, kw_only=True)
class QatSettings:
    """How a network is trained with its quantization in the loop.

    Args:
        name: a method of `QAT_METHODS`, `custom` with `factory`, or `none`, which trains in float.
        factory: `package.module:function` or `file.py:function`, which returns a `QatMethodInfo` with its code.
        init: where it begins: `training` takes the float training of the same job, which is trained first where it is not stored,
            once for all; `checkpoint` takes `model.weights`; `none` begins with random weights.
        epochs: of the recipe; None takes `train.epochs`.
        lr: None takes a tenth of `train.lr` behind a float training, else `train.lr`.
        weight_decay: of the recipe; None takes `train.weight_decay`.
        warmup_epochs: None takes 0 behind a float training, else `train.warmup_epochs`, at most its epochs.
        activations: quantize them too, at `quant.activation.bits` or else at `bits`.
        mask: which values pass their gradient: `paper` those inside the limits, `rounded` those that round to codes, as torch,
            which `qat=ste` needs: its limits are the range's own ends, where `paper` would hold each tensor's largest weight.
            None takes the method's.
        first_step: what `lsq` begins with: `paper`, 2 E|x| / sqrt(p), or `calibrated`, what covers the range that `calibrate`
            gives an activation, and `calibrate.weights` a weight.
        momentum: of the observed ranges of `ste` and `every_step`: weight of the average so far when a batch is added.
        scale_decay: weight decay of learned step sizes and offsets.
        alpha_decay: weight decay of `pact`'s clipping; None takes the recipe's.
        batch_norm: `unfolded` quantizes the weights as they are stored; `folded` as they are once batch norm is folded into them,
            with running statistics, while batch statistics normalize.
        freeze_bn_epoch: from this epoch on, batch norm uses its running statistics and leaves them; None never.
        reestimate_bn: take its statistics anew from calibration images, in every copy that is evaluated or converted.
        distill_weight: share of the loss that compares with the float network it began from, 0 to 1.
        distill_temperature: of both softmaxes.
    """

    name: str = "none"
    factory: str | None = later(None)
    init: Literal["training", "checkpoint", "none"] = "training"
    epochs: Epochs | None = None
    lr: Positive | None = None
    weight_decay: NotNegative | None = None
    warmup_epochs: Natural | None = None
    activations: bool = True
    mask: Mask | None = "paper"
    first_step: FirstStep = "paper"
    momentum: Share = 0.9
    scale_decay: NotNegative = 0.0
    alpha_decay: NotNegative | None = None
    batch_norm: Literal["unfolded", "folded"] = "unfolded"
    freeze_bn_epoch: Count | None = None
    reestimate_bn: bool = False
    distill_weight: Share = 0.0
    distill_temperature: Annotated[Positive, ReadWhere("distill_weight")] = 1.0

    def __post_init__(self) -> None:
        """Check the ranges and what belongs together."""
        check_bounds(self, "qat")
        if self.distill_weight and self.init == "none":
            remedy = "Distillation learns from the float network that the training begins from."
            raise UserError("qat.distill_weight", self.distill_weight, allowed="0 with qat.init=none", remedy=remedy)
        if self.is_on:
            self._check_method()
        elif self.factory is not None:
            raise UserError("qat.factory", self.factory, allowed="null", remedy=f"It belongs to qat={CUSTOM}.")
        if self.batch_norm == "folded" and self.reestimate_bn:
            remedy = "A folded network has no batch norm whose statistics could be taken anew."
            raise UserError("qat.reestimate_bn", True, allowed="false with qat.batch_norm=folded", remedy=remedy)

    def _check_method(self) -> None:
        """Find the method, refuse what it cannot do, and take its mask."""
        method = QAT_METHODS.choose(self.name, factory=self.factory)
        if self.mask is None:
            object.__setattr__(self, "mask", method.mask)  # here, so that whatever is stored names it
        if self.first_step not in method.first_steps:
            readers = QAT_METHODS.names_where(lambda row: row.begins_with_range)
            remedy = f"The others say what they begin with; {', '.join(readers)} read calibrate."
            allowed = f"{' or '.join(method.first_steps)} with qat={self.name}"
            raise UserError("qat.first_step", self.first_step, allowed=allowed, remedy=remedy)
        if self.batch_norm == "folded" and method.why_unfolded:
            raise UserError("qat.batch_norm", "folded", allowed=f"unfolded with qat={self.name}", remedy=method.why_unfolded)

    @property
    def is_on(self) -> bool:
        """True unless the training is a float training."""
        return self.name != "none"

    @property
    def method(self) -> QatMethodInfo:
        """The row of the method; of a quantization-aware training only."""
        return QAT_METHODS[self.factory or self.name]

    @property
    def gradient_mask(self) -> Mask:
        """The mask, given or the method's."""
        assert self.mask is not None, "of a quantization-aware training, which has one"
        return self.mask

    def recipe(self, train: TrainSettings) -> TrainSettings:
        """The recipe of the training: `train`, with what these settings replace."""
        if not self.is_on:
            return train
        behind = self.init == "training"
        lr, warmup_epochs = (train.lr * FINE_TUNING, 0) if behind else (train.lr, train.warmup_epochs)
        epochs = train.epochs if self.epochs is None else self.epochs
        return replace(
            train,
            epochs=epochs,
            lr=lr if self.lr is None else self.lr,
            weight_decay=train.weight_decay if self.weight_decay is None else self.weight_decay,
            warmup_epochs=min(warmup_epochs, epochs) if self.warmup_epochs is None else self.warmup_epochs,
            ema_decay=None,  # an average of scales and codes is no quantizer that was trained
        )

    def quantizers(self, quant: QuantSettings, bits: int) -> QuantSettings:
        """The grids of weights and activations: what the method defines, and what it leaves to the user.

        Raises:
            UserError: `quant` asks for what the method does not have.
        """
        if not self.is_on:
            return quant
        self._check_weights(quant)
        self._check_activations(quant.activation)
        method = self.method
        chosen = quant.name if quant.name != QuantSettings.name else method.weights
        activation = replace(
            quant.activation,
            bits=(quant.activation.bits or bits) if self.activations else None,
            scheme=method.activations if method.defines_activations else quant.activation.scheme,
            places=quant.activation.places or "layers",
        )
        return replace(quant, name=chosen, activation=activation)

    def _check_weights(self, quant: QuantSettings) -> None:
        where, weight, method = f"with qat={self.name}", quant.weight, self.method
        grids = method.weight_choices
        if quant.name not in (QuantSettings.name, *grids):
            remedy = f"{method.name} has a quantizer of its own; leave quant at its default." if not grids else ""
            raise UserError("quant", quant.name, allowed=grids or f"{QuantSettings.name} {where}", remedy=remedy)
        if weight.granularity not in method.granularities:
            allowed = f"{' or '.join(method.granularities)} {where}"
            raise UserError("quant.weight.granularity", weight.granularity, allowed=allowed)
        for key, default in (("rounding", "half_even"), ("arithmetic", "reciprocal")):
            if not method.reads_rounding and getattr(weight, key) != default:
                raise UserError(f"quant.weight.{key}", getattr(weight, key), allowed=f"{default} {where}")
        if weight.rounding == "stochastic":
            remedy = "What is drawn is a function of the seed and the tensor: each update would draw the same."
            raise UserError("quant.weight.rounding", "stochastic", allowed=f"another rounding {where}", remedy=remedy)
        if quant.input != "none":
            remedy = "The images are an activation here: policy=first_last gives them policy.edge_bits."
            raise UserError("quant.input", quant.input, allowed=f"none {where}", remedy=remedy)

    def _check_activations(self, activation: ActivationQuantSettings) -> None:
        where = f"with qat={self.name}"
        if activation.bits is not None and not self.activations:
            remedy = "qat.activations=false leaves activations float."
            raise UserError("quant.activation.bits", activation.bits, allowed="null with qat.activations=false", remedy=remedy)
        if not activation.row.affine_activations:
            remedy = "Its gradients are those of a scale and a zero point."
            grids = SCHEMES.names_where(lambda row: row.affine_activations)
            allowed = f"{', '.join(grids)} {where}"
            raise UserError("quant.activation.scheme", activation.scheme, allowed=allowed, remedy=remedy)
        if activation.dynamic:
            remedy = "Ranges are learned or observed while it trains."
            raise UserError("quant.activation.dynamic", True, allowed=f"false {where}", remedy=remedy)
        for key, default in (("granularity", "per_tensor"), ("rounding", "half_even"), ("arithmetic", "reciprocal")):
            if getattr(activation, key) != default:
                raise UserError(f"quant.activation.{key}", getattr(activation, key), allowed=f"{default} {where}")
        default = ActivationQuantSettings.scheme
        if self.method.defines_activations and activation.scheme != default:
            remedy = f"{self.method.name} says what the grid of an activation is; leave it at its default."
            raise UserError("quant.activation.scheme", activation.scheme, allowed=f"{default} {where}", remedy=remedy)
