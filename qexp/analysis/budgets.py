"""What a choice of bits per layer costs: bytes of the stored state dict, bits of a weight on average, or bit operations."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from qexp.analysis.measures import spec_of
from qexp.base.errors import UserError
from qexp.base.types import Plan, PlanRow
from qexp.config.root import Config
from qexp.experiment.job import Prepared
from qexp.nn.macs import macs_per_layer
from qexp.policy.sizes import plan_size_bytes
from qexp.quant.storage import stored_bytes
from qexp.tracking.record import FLOAT_BITS


@dataclass(frozen=True)
class Budget:
    """A limit on what layers cost together, in integers.

    Args:
        name: of the setting.
        value: as given.
        rows: the layers.
        per_bit: layer -> cost of one bit of width, where that is linear.
        limit: most that the layers may cost.
        fixed: what all else costs.
        unit: divides a cost for people to read.
    """

    name: str
    value: float
    rows: tuple[PlanRow, ...]
    per_bit: Mapping[str, int] | None
    limit: int
    fixed: int = 0
    unit: float = 1.0

    def cost(self, row: PlanRow, bits: int) -> int:
        """The cost of one layer.

        Args:
            row: of the layer in the plan.
            bits: its width.
        """
        if self.per_bit is not None:
            return self.per_bit[row.info.name] * bits
        return stored_bytes(row.info.shape, replace(spec_of(row), bits=bits))

    def costs(self, widths: Sequence[int]) -> np.ndarray:
        """[layers, widths] int64.

        Raises:
            UserError: the narrowest widths cost more than the budget.
        """
        costs = np.array([[self.cost(row, bits) for bits in widths] for row in self.rows], dtype=np.int64)
        least = int(costs.min(1).sum())
        if least > self.limit:
            needed = (least + self.fixed) / self.unit
            allowed = f"{needed:.0f}" if needed == int(needed) else f"{needed:.4g}"
            raise UserError(f"analyze.{self.name}", self.value, allowed=f"at least {allowed}, the cost of the narrowest widths")
        return costs

    def total(self, bits: Mapping[str, int]) -> float:
        """Of a whole choice, in the unit of the setting. bits: layer -> width."""
        return (sum(self.cost(row, bits[row.info.name]) for row in self.rows) + self.fixed) / self.unit

    @property
    def words(self) -> str:
        """`4 bits of a weight on average`."""
        what = {"budget_bytes": "bytes of the state dict", "average_bits": "bits of a weight on average"}
        return f"{self.value:g} {what[self.name]}" if self.name in what else f"{self.value:.6g} bit operations an image"


def budget_of(config: Config, rows: Sequence[PlanRow], plan: Plan, prepared: Prepared) -> Budget:
    """The budget that a job gives.

    Args:
        config: of the job.
        rows: the layers whose widths are chosen.
        plan: that they are part of.
        prepared: the job with its activations quantized.
    """
    (name,) = config.analyze.budgets
    value = getattr(config.analyze, name)
    if name == "average_bits":
        count = sum(row.info.num_elements for row in rows)
        per_bit = {row.info.name: row.info.num_elements for row in rows}
        return Budget(name, value, tuple(rows), per_bit, int(np.floor(value * count * (1 + 1e-12))), unit=count)
    if name == "budget_bytes":
        return bytes_budget(value, rows, plan)
    per_bit, fixed = _operations(rows, prepared)
    return Budget(name, value, tuple(rows), per_bit, value - fixed, fixed)


def bytes_budget(value: int, rows: Sequence[PlanRow], plan: Plan) -> Budget:
    """So many bytes of the stored state dict.

    Args:
        value: bytes.
        rows: the layers whose widths are chosen.
        plan: that they are part of.
    """
    fixed = plan_size_bytes(plan) - sum(stored_bytes(row.info.shape, spec_of(row)) for row in rows)
    return Budget("budget_bytes", value, tuple(rows), None, value - fixed, fixed)


def _operations(rows: Sequence[PlanRow], prepared: Prepared) -> tuple[dict[str, int], int]:
    """Layer -> MACs times bits of what it reads, and the bit operations of all that has no width to choose.

    A module with several weights shares its MACs among them by their elements.
    """
    network = prepared.network()
    macs = macs_per_layer(network, torch.zeros(1, *prepared.bundle.image_shape))
    root = type(network).__name__
    read = {weight: row.spec.bits for row in prepared.variants[-1].plan.activations if row.spec for weight in row.info.layers}
    elements: dict[str, int] = {}
    for row in rows:
        module = row.info.module or root
        elements[module] = elements.get(module, 0) + row.info.num_elements
    per_bit = {}
    for row in rows:
        module = row.info.module or root
        own = macs.get(module, 0) * row.info.num_elements // max(elements[module], 1)
        per_bit[row.info.name] = own * read.get(row.info.name, FLOAT_BITS)
    return per_bit, sum(count * FLOAT_BITS**2 for module, count in macs.items() if module not in elements)
