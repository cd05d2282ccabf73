"""The methods of quantization-aware training, one row each; torch-free. Their code is in `qexp/qat/methods.py`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from qexp.base.catalog import Catalog, Info, import_object
from qexp.quant.scheme_table import GRANULARITIES, Granularity

Mask = Literal["paper", "rounded"]
FirstStep = Literal["paper", "calibrated"]
_BOTH: tuple[Granularity, ...] = ("per_tensor", "per_channel")


@dataclass(frozen=True, kw_only=True)
class QatMethodInfo(Info):
    """What a training method quantizes with, what it reads, and what the training does for it.

    Args:
        name: as in `qat=NAME`.
        summary: one line for people.
        code: a class, `qexp.qat.methods.QatMethod`, or its import string.
        weights: grid of a weight, unless the user chooses another.
        weight_choices: grids that `quant=NAME` may choose instead; none where the method has a quantizer of its own.
        activations: grid of an activation, unless the user chooses another; `unsigned_symmetric` is signed where values may be
            negative.
        defines_activations: the user may not choose another.
        granularities: that `quant.weight.granularity` may have.
        reads_rounding: it reads `quant.weight.rounding` and `quant.weight.arithmetic`.
        why_unfolded: why its weights are not quantized as they are once batch norm is folded into them; empty where they can be.
        first_steps: that `qat.first_step` may have.
        begins_with_range: activations begin with a calibrated range, not with their mean magnitude.
        three_sigma: a weight's first step covers three standard deviations.
        squashed_weights: weights reach from -1 to 1 whatever they were, so that batch norm's statistics have to be taken anew.
        overwrites_weights: stored weights become their quantized values after each update; they have no quantizer of the class.
        mask: which values pass their gradient unless `qat.mask` says otherwise.
        decay: the setting of `qat` that decays what its quantizers learn; None where they learn nothing.
    """

    weights: str
    weight_choices: tuple[str, ...]
    activations: str
    defines_activations: bool
    granularities: tuple[Granularity, ...]
    reads_rounding: bool
    why_unfolded: str
    first_steps: tuple[FirstStep, ...]
    begins_with_range: bool
    three_sigma: bool
    squashed_weights: bool
    overwrites_weights: bool
    mask: Mask
    decay: Literal["scale_decay", "alpha_decay"] | None


_SQUASHED = (
    "Its weights reach from -1 to 1 whatever they are folded with: batch norm's variance and the factor that is folded in would "
    "drive each other up."
)
_ROWS = (
    QatMethodInfo(
        name="ste",
        summary="Ranges that are observed while it trains, the gradient straight through the rounding (Bengio et al. 2013).",
        code="qexp.qat.methods:Ste",
        weights="symmetric_restricted",
        weight_choices=("symmetric_restricted", "symmetric", "affine"),
        activations="affine",
        defines_activations=False,
        granularities=_BOTH,
        reads_rounding=False,
        why_unfolded="",
        first_steps=("paper",),
        begins_with_range=True,
        three_sigma=False,
        squashed_weights=False,
        overwrites_weights=False,
        mask="rounded",  # `paper` would hold the ends of a range, which are its limits
        decay=None,
    ),
    QatMethodInfo(
        name="lsq",
        summary="Learned step sizes of weights and activations (Esser et al. 2020).",
        code="qexp.qat.methods:Lsq",
        weights="symmetric",
        weight_choices=(),
        activations="unsigned_symmetric",
        defines_activations=True,
        granularities=_BOTH,
        reads_rounding=False,
        why_unfolded="",
        first_steps=("paper", "calibrated"),
        begins_with_range=False,
        three_sigma=False,
        squashed_weights=False,
        overwrites_weights=False,
        mask="paper",
        decay="scale_decay",
    ),
    QatMethodInfo(
        name="lsq_plus",
        summary="Learned step sizes, and learned offsets of activations (Bhalgat et al. 2020).",
        code="qexp.qat.methods:LsqPlus",
        weights="symmetric",
        weight_choices=(),
        activations="affine",
        defines_activations=True,
        granularities=_BOTH,
        reads_rounding=False,
        why_unfolded="",
        first_steps=("paper",),
        begins_with_range=True,
        three_sigma=True,
        squashed_weights=False,
        overwrites_weights=False,
        mask="paper",
        decay="scale_decay",
    ),
    QatMethodInfo(
        name="pact",
        summary="Learned clipping of activations, weights as DoReFa-Net quantizes them (Choi et al. 2018).",
        code="qexp.qat.methods:Pact",
        weights="dorefa",
        weight_choices=(),
        activations="unsigned_symmetric",
        defines_activations=True,
        granularities=("per_tensor",),
        reads_rounding=False,
        why_unfolded=_SQUASHED,
        first_steps=("paper",),
        begins_with_range=True,
        three_sigma=False,
        squashed_weights=True,
        overwrites_weights=False,
        mask="paper",
        decay="alpha_decay",
    ),
    QatMethodInfo(
        name="dorefa",
        summary="Weights squashed by tanh, activations clipped at one (Zhou et al. 2016).",
        code="qexp.qat.methods:Dorefa",
        weights="dorefa",
        weight_choices=(),
        activations="unsigned_symmetric",
        defines_activations=True,
        granularities=("per_tensor",),
        reads_rounding=False,
        why_unfolded=_SQUASHED,
        first_steps=("paper",),
        begins_with_range=False,
        three_sigma=False,
        squashed_weights=True,
        overwrites_weights=False,
        mask="paper",
        decay=None,
    ),
    QatMethodInfo(
        name="every_step",
        summary="The stored weights are quantized after every update (document 003): the baseline that shows why a float copy is "
        "kept.",
        code="qexp.qat.methods:EveryStep",
        weights="linear",
        weight_choices=("linear", "affine", "symmetric", "symmetric_restricted", "scale_factor", "pow2_scale"),
        activations="affine",
        defines_activations=False,
        granularities=GRANULARITIES,
        reads_rounding=True,
        why_unfolded="The stored weights are what it quantizes.",
        first_steps=("paper",),
        begins_with_range=True,
        three_sigma=False,
        squashed_weights=False,
        overwrites_weights=True,
        mask="rounded",  # as for `ste`
        decay=None,
    ),
)


def _check(row: QatMethodInfo, code: object) -> None:
    """By an import string, since the check runs the code, which needs torch."""
    import_object("qexp.qat.check:check_qat_method")(row, code)  # type: ignore[operator]


QAT_METHODS = Catalog("qat", QatMethodInfo, _ROWS, check=_check)
