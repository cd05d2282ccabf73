"""Settings of `qexp.analyze`, tasks sensitivity and allocate: what is measured, and what a network may cost; torch-free."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal, get_args

from annotated_types import Ge, Le

from qexp.base.checks import Bits, Count, check_bounds
from qexp.base.errors import UserError

Task = Literal["profile", "sensitivity", "allocate"]  # of qexp.analyze
TASKS: tuple[Task, ...] = get_args(Task)
Proxy = Literal["sqnr", "mse", "weighted_mse", "fisher", "hessian"]
Measure = Literal["kl", "loss", Proxy]  # that an allocation can add up; Prec@1 moves in steps of whole images
MEASURED = ("kl", "loss", "prec1")  # by running the network with that layer quantized
PROXIES: tuple[Proxy, ...] = get_args(Proxy)  # without running it
MEASURES: tuple[Measure, ...] = get_args(Measure)
BUDGETS = ("budget_bytes", "average_bits", "bops")
DEFAULT_WIDTHS = (2, 3, 4, 5, 6, 8)  # that task=allocate chooses among
# Setting -> the tasks that read it.
READS: dict[str, tuple[Task, ...]] = {name: ("allocate",) for name in ("measure", *BUDGETS)} | {
    name: ("sensitivity", "allocate") for name in ("split", "num_images", "widths", "proxy_images", "probes")
}


@dataclass(frozen=True, kw_only=True)
class AnalyzeSettings:
    """How layers are compared, and the budget that their widths share.

    Args:
        split: images that a choice may be made on; never those that it is tested on.
        num_images: only the first so many.
        widths: bits that each layer is tried at; None takes the root `bits` for sensitivity, `DEFAULT_WIDTHS` for allocate.
        proxy_images: images that gradients and curvature are estimated from.
        probes: random vectors of a Hessian trace.
        measure: the loss that allocate adds up: `kl` and `loss` (rise of the cross-entropy) are measured, the rest are proxies.
        budget_bytes: of the stored state dict. Allocate takes exactly one of the three budgets.
        average_bits: of the codes of a weight.
        bops: bit operations of an image.
    """

    split: Literal["select", "calib", "train"] = "select"
    num_images: Count | None = None
    widths: list[Bits] | None = None
    proxy_images: Count = 128
    probes: Annotated[int, Ge(2)] = 50
    measure: Measure = "kl"
    budget_bytes: Count | None = None
    average_bits: Annotated[float, Ge(1), Le(16)] | None = None
    bops: Count | None = None

    def __post_init__(self) -> None:
        """Check the ranges, and that no width is listed twice."""
        check_bounds(self, "analyze")
        if self.widths is not None and (not self.widths or len(set(self.widths)) < len(self.widths)):
            raise UserError("analyze.widths", self.widths, allowed="a list of different widths, or null")

    @property
    def budgets(self) -> tuple[str, ...]:
        """Names of the budgets that were given."""
        return tuple(name for name in BUDGETS if getattr(self, name) is not None)

    def tried(self, bits: int, task: Task) -> tuple[int, ...]:
        """The widths that a task tries each layer at, ascending.

        Args:
            bits: the root setting.
            task: `sensitivity` or `allocate`.
        """
        chosen = self.widths or ((bits,) if task == "sensitivity" else DEFAULT_WIDTHS)
        return tuple(sorted(chosen))
