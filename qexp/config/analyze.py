"""Settings of `qexp.analyze`, all tasks but profile: what is measured, and what a network may cost; torch-free."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal, get_args

from annotated_types import Ge, Gt, Le

from qexp.base.catalog import CUSTOM, is_own
from qexp.base.checks import Bits, Count, check_bounds
from qexp.base.errors import UserError, choose
from qexp.config.correct import CORRECTIONS
from qexp.config.later import later
from qexp.quant.scheme_table import SCHEMES, Granularity

Task = Literal["profile", "sensitivity", "allocate", "shrink"]  # of qexp.analyze
TASKS: tuple[Task, ...] = get_args(Task)
Proxy = Literal["sqnr", "mse", "weighted_mse", "fisher", "hessian"]
Measure = Literal["kl", "loss", Proxy]  # that an allocation can add up; Prec@1 moves in steps of whole images
MEASURED = ("kl", "loss", "prec1")  # by running the network with that layer quantized
PROXIES: tuple[Proxy, ...] = get_args(Proxy)  # without running it
MEASURES: tuple[Measure, ...] = get_args(Measure)
MEASURE_TITLES = {
    "kl": "KL", "loss": "loss", "prec1": "Prec@1", "sqnr": "weight SQNR", "mse": "weight MSE", "weighted_mse": "weighted MSE",
    "fisher": "Fisher", "hessian": "Hessian trace",
}  # fmt: skip
BUDGETS = ("budget_bytes", "average_bits", "bops")
DEFAULT_WIDTHS = (2, 3, 4, 5, 6, 8)  # that task=allocate and task=shrink choose among
Tried = Literal[
    "uniform", "first_last", "mixed"
]  # policies of task=shrink; `mixed` is bits per layer, around the best of the others
TRIED: tuple[Tried, ...] = get_args(Tried)
NO_CORRECTION = "none"
_CORRECTED = [row.name for row in CORRECTIONS.values() if row.name != "rescale"]  # which does what others undo
# Lists of task=shrink -> the setting whose values they are; what is searched is not typed a second time.
SEARCHED = {
    "widths": ("bits",),
    "schemes": ("quant", "quant.name", "quant.factory"),
    "granularities": ("quant.weight.granularity",),
    "policies": ("policy", "policy.name"),
    "corrections": tuple(f"correct.{row.switch}" for row in CORRECTIONS.values()),
}
# Setting -> the tasks that read it.
READS: dict[str, tuple[Task, ...]] = {name: ("allocate",) for name in ("measure", *BUDGETS)} | {
    name: ("sensitivity", "allocate") for name in ("proxy_images", "probes", "reuse_mib")
}
READS |= dict.fromkeys(("split", "num_images", "widths"), ("sensitivity", "allocate", "shrink"))
READS |= dict.fromkeys(("max_loss", "steps", *(name for name in SEARCHED if name != "widths")), ("shrink",))


@dataclass(frozen=True, kw_only=True)
class AnalyzeSettings:
    """How layers are compared, the budget that their widths share, and what shrink searches.

    Args:
        split: images that a choice may be made on; never those that it is tested on.
        num_images: only the first so many.
        widths: bits that each layer is tried at; None takes the root `bits` for sensitivity, `DEFAULT_WIDTHS` for allocate.
        proxy_images: images that gradients and curvature are estimated from.
        probes: random vectors of a Hessian trace.
        reuse_mib: memory for float activations that networks with one quantized layer start from; 0 runs each from its images.
        measure: the loss that allocate adds up: `kl` and `loss` (rise of the cross-entropy) are measured, the rest are proxies.
        budget_bytes: of the stored state dict. Allocate takes exactly one of the three budgets.
        average_bits: of the codes of a weight.
        bops: bit operations of an image.
        max_loss: of shrink, which needs it: the margin, points of Prec@1; the network that is looked for loses less.
        schemes: of weights, that shrink tries: names of `SCHEMES`, or `file.py:function` of your own.
        granularities: that shrink tries.
        corrections: that shrink tries: `none`, or rows of `CORRECTIONS` joined by `+`.
        policies: that shrink tries.
        steps: of shrink's search for bits per layer: each halves the range of sizes that the smallest may have.
    """

    split: Literal["select", "calib", "train"] = "select"
    num_images: Count | None = None
    widths: list[Bits] | None = None
    proxy_images: Count = 128
    probes: Annotated[int, Ge(2)] = 50
    reuse_mib: Annotated[int, Ge(0)] = later(1024)
    measure: Measure = "kl"
    budget_bytes: Count | None = None
    average_bits: Annotated[float, Ge(1), Le(16)] | None = None
    bops: Count | None = None
    max_loss: Annotated[float, Gt(0.0), Le(50.0)] | None = later(None)
    schemes: list[str] = later(["symmetric_restricted", "affine"])
    granularities: list[Granularity] = later(["per_tensor", "per_channel"])
    corrections: list[str] = later([NO_CORRECTION, "fold_bn+equalize", "bias_analytic"])
    policies: list[Tried] = later(["uniform", "mixed"])
    steps: Annotated[int, Ge(1), Le(20)] = later(5)

    def __post_init__(self) -> None:
        """Check the ranges, and that lists have something, and nothing twice."""
        check_bounds(self, "analyze")
        for name in SEARCHED:
            values: list[object] | None = getattr(self, name)
            if values is not None and (not values or len(set(values)) < len(values)):
                what = "widths, or null" if name == "widths" else name
                raise UserError(f"analyze.{name}", values, allowed=f"a list of different {what}")
        for name in self.schemes:
            if not is_own(name):
                choose("analyze.schemes", name, [row for row in SCHEMES if row != CUSTOM])
        for name in self.corrections:
            for part in name.split("+"):
                choose("analyze.corrections", part, [NO_CORRECTION] if part == name == NO_CORRECTION else _CORRECTED)
        if self.policies == ["mixed"]:
            remedy = "Bits per layer are looked for around the smallest network of one width."
            raise UserError("analyze.policies", self.policies, allowed="uniform or first_last in it", remedy=remedy)

    @property
    def budgets(self) -> tuple[str, ...]:
        """Names of the budgets that were given."""
        return tuple(name for name in BUDGETS if getattr(self, name) is not None)

    def tried(self, bits: int, task: Task) -> tuple[int, ...]:
        """The widths that a task tries each layer at, ascending.

        Args:
            bits: the root setting.
            task: `sensitivity`, `allocate` or `shrink`.
        """
        chosen = self.widths or ((bits,) if task == "sensitivity" else DEFAULT_WIDTHS)
        return tuple(sorted(chosen))
