"""Settings of quantization-aware training, and what they make of the recipe and of the quantizers; torch-free."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal, get_args

from qexp.base.checks import check_all, check_range
from qexp.base.errors import UserError
from qexp.config.quant import ActivationQuantSettings, QuantSettings
from qexp.config.train import TrainSettings

Method = Literal["ste", "lsq", "lsq_plus", "pact", "dorefa", "every_step"]
METHODS: tuple[Method, ...] = get_args(Method)
# What each method quantizes with: (weights, activations). `unsigned_symmetric` is signed where values may be negative.
SCHEMES: dict[str, tuple[str, str]] = {
    "ste": ("symmetric_restricted", "affine"),
    "lsq": ("symmetric", "unsigned_symmetric"),
    "lsq_plus": ("symmetric", "affine"),
    "pact": ("dorefa", "unsigned_symmetric"),
    "dorefa": ("dorefa", "unsigned_symmetric"),
    "every_step": ("linear", "affine"),
}
# Where the user may choose the grid instead.
WEIGHT_GRIDS: dict[str, tuple[str, ...]] = {
    "ste": ("symmetric_restricted", "symmetric", "affine"),
    "every_step": ("linear", "affine", "symmetric", "symmetric_restricted", "scale_factor", "pow2_scale"),
}
_SQUASHED = (
    "Its weights reach from -1 to 1 whatever they are folded with: batch norm's variance and the factor that is folded in would "
    "drive each other up."
)
_UNFOLDED = {"every_step": "The stored weights are what it quantizes.", "pact": _SQUASHED, "dorefa": _SQUASHED}
OWN_ACTIVATIONS = ("lsq", "lsq_plus", "pact", "dorefa")  # methods that define the grid of an activation themselves
QAT_VERSION = 3  # part of the hash of every such training; raise it when the same settings come to train otherwise
IN_RECIPE = ("epochs", "lr", "weight_decay", "warmup_epochs")  # settings that act through the recipe alone
FINE_TUNING = 0.1  # of train.lr, where a network that was trained with it goes on


@dataclass(frozen=True, kw_only=True)
class QatSettings:
    """How a network is trained with its quantization in the loop.

    Args:
        name: `ste` rounds with ranges that are observed and passes the gradient straight through; `lsq` and `lsq_plus` learn
            step sizes, the latter offsets too; `pact` learns where activations are clipped; `dorefa` squashes weights and clips
            activations at one; `every_step` overwrites the stored weights with their quantized values after each update, as
            document 003 does. `none` trains in float.
        init: where it begins: `training` takes the float training of the same job, which is trained first where it is not stored,
            once for all; `checkpoint` takes `model.weights`; `none` begins with random weights.
        epochs: of the recipe; None takes `train.epochs`.
        lr: None takes a tenth of `train.lr` behind a float training, else `train.lr`.
        weight_decay: of the recipe; None takes `train.weight_decay`.
        warmup_epochs: None takes 0 behind a float training, else `train.warmup_epochs`.
        activations: quantize them too, at `quant.activation.bits` or else at `bits`.
        mask: which values pass their gradient: `paper` those inside the limits, `rounded` those that round to codes, as torch,
            which `qat=ste` needs: its limits are the range's own ends, where `paper` would hold each tensor's largest weight.
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

    name: Literal["none", Method] = "none"
    init: Literal["training", "checkpoint", "none"] = "training"
    epochs: int | None = None
    lr: float | None = None
    weight_decay: float | None = None
    warmup_epochs: int | None = None
    activations: bool = True
    mask: Literal["paper", "rounded"] = "paper"
    first_step: Literal["paper", "calibrated"] = "paper"
    momentum: float = 0.9
    scale_decay: float = 0.0
    alpha_decay: float | None = None
    batch_norm: Literal["unfolded", "folded"] = "unfolded"
    freeze_bn_epoch: int | None = None
    reestimate_bn: bool = False
    distill_weight: float = 0.0
    distill_temperature: float = 1.0

    def __post_init__(self) -> None:
        """Check the ranges and what belongs together."""
        check_all(
            (
                ("qat.epochs", self.epochs, 1, None),
                ("qat.weight_decay", self.weight_decay, 0.0, None),
                ("qat.warmup_epochs", self.warmup_epochs, 0, None),
                ("qat.momentum", self.momentum, 0.0, 1.0),
                ("qat.scale_decay", self.scale_decay, 0.0, None),
                ("qat.alpha_decay", self.alpha_decay, 0.0, None),
                ("qat.freeze_bn_epoch", self.freeze_bn_epoch, 1, None),
                ("qat.distill_weight", self.distill_weight, 0.0, 1.0),
            )
        )
        check_range("qat.lr", self.lr, 0.0, open_low=True)
        check_range("qat.distill_temperature", self.distill_temperature, 0.0, open_low=True)
        if self.distill_weight and self.init == "none":
            remedy = "Distillation learns from the float network that the training begins from."
            raise UserError("qat.distill_weight", self.distill_weight, allowed="0 with qat.init=none", remedy=remedy)
        if self.first_step != "paper" and self.name not in ("none", "lsq"):
            remedy = "The others say what they begin with; lsq_plus, pact and ste read calibrate."
            raise UserError("qat.first_step", self.first_step, allowed=f"paper with qat={self.name}", remedy=remedy)
        if self.batch_norm == "folded" and self.name in _UNFOLDED:
            raise UserError("qat.batch_norm", "folded", allowed=f"unfolded with qat={self.name}", remedy=_UNFOLDED[self.name])
        if self.batch_norm == "folded" and self.reestimate_bn:
            remedy = "A folded network has no batch norm whose statistics could be taken anew."
            raise UserError("qat.reestimate_bn", True, allowed="false with qat.batch_norm=folded", remedy=remedy)

    @property
    def is_on(self) -> bool:
        """True unless the training is a float training."""
        return self.name != "none"

    def recipe(self, train: TrainSettings) -> TrainSettings:
        """The recipe of the training: `train`, with what these settings replace."""
        if not self.is_on:
            return train
        behind = self.init == "training"
        lr, warmup_epochs = (train.lr * FINE_TUNING, 0) if behind else (train.lr, train.warmup_epochs)
        return replace(
            train,
            epochs=train.epochs if self.epochs is None else self.epochs,
            lr=lr if self.lr is None else self.lr,
            weight_decay=train.weight_decay if self.weight_decay is None else self.weight_decay,
            warmup_epochs=warmup_epochs if self.warmup_epochs is None else self.warmup_epochs,
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
        weights, activations = SCHEMES[self.name]
        chosen = quant.name if quant.name != QuantSettings.name else weights
        activation = replace(
            quant.activation,
            bits=(quant.activation.bits or bits) if self.activations else None,
            scheme=activations if self.name in OWN_ACTIVATIONS else quant.activation.scheme,
            places=quant.activation.places or "layers",
        )
        return replace(quant, name=chosen, activation=activation)

    def _check_weights(self, quant: QuantSettings) -> None:
        where, weight = f"with qat={self.name}", quant.weight
        grids = WEIGHT_GRIDS.get(self.name, ())
        if quant.name not in (QuantSettings.name, *grids):
            remedy = f"{self.name} has a quantizer of its own; leave quant at its default." if not grids else ""
            raise UserError("quant", quant.name, allowed=grids or f"{QuantSettings.name} {where}", remedy=remedy)
        granularities = ("per_tensor",) if SCHEMES[self.name][0] == "dorefa" else ("per_tensor", "per_channel")
        if self.name != "every_step" and weight.granularity not in granularities:
            raise UserError("quant.weight.granularity", weight.granularity, allowed=f"{' or '.join(granularities)} {where}")
        for key, default in (("rounding", "half_even"), ("arithmetic", "reciprocal")):
            if self.name != "every_step" and getattr(weight, key) != default:
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
        if activation.dynamic:
            remedy = "Ranges are learned or observed while it trains."
            raise UserError("quant.activation.dynamic", True, allowed=f"false {where}", remedy=remedy)
        for key, default in (("granularity", "per_tensor"), ("rounding", "half_even"), ("arithmetic", "reciprocal")):
            if getattr(activation, key) != default:
                raise UserError(f"quant.activation.{key}", getattr(activation, key), allowed=f"{default} {where}")
        default = ActivationQuantSettings.scheme
        if self.name in OWN_ACTIVATIONS and activation.scheme != default:
            remedy = f"{self.name} says what the grid of an activation is; leave it at its default."
            raise UserError("quant.activation.scheme", activation.scheme, allowed=f"{default} {where}", remedy=remedy)
