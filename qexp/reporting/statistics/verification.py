"""What comparing written numbers with recomputed ones gave."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import pandas as pd


@dataclass
class Verification:
    """What comparing a table with its stored predictions gave.

    Args:
        equal: (file, column) -> numbers that are as written.
        wrong: numbers that are not, a sentence each.
        left: what was not recomputed, and why.
    """

    equal: dict[tuple[str, str], int] = field(default_factory=dict)
    wrong: list[str] = field(default_factory=list)
    left: dict[str, str] = field(default_factory=dict)

    def compare(self, file: str, row: str, column: str, written: Any, recomputed: Any, *, slack: float = 0.0) -> None:
        """Note whether a number is as written, to the digits of a CSV.

        Args:
            file: the table.
            row: what names its row.
            column: of the table.
            written: the number there.
            recomputed: the number from the predictions.
            slack: by how much they may differ.
        """
        if _same(written, recomputed, slack):
            self.equal[file, column] = self.equal.get((file, column), 0) + 1
        else:
            self.wrong.append(f"{file}, {row}: {column} is {_text(written)}, from the predictions {_text(recomputed)}")

    @property
    def lines(self) -> list[str]:
        """For the screen."""
        files = dict.fromkeys(file for file, _ in self.equal)
        counts = {file: [f"{name} {count}" for (other, name), count in self.equal.items() if other == file] for file in files}
        lines = [f"{file}: recomputed and equal: {', '.join(parts)}" for file, parts in counts.items()]
        lines += [f"not recomputed: {what} ({why})" for what, why in self.left.items()]
        lines += [f"WRONG {line}" for line in self.wrong]
        total = sum(self.equal.values())
        if self.wrong:
            return [*lines, f"{total} numbers are equal, {len(self.wrong)} are not"]
        return [*lines, f"{total} numbers are what the stored predictions give"]


def _same(written: Any, recomputed: Any, slack: float) -> bool:
    if isinstance(written, str) or isinstance(recomputed, str) or isinstance(written, bool):
        return str(written) == str(recomputed)
    if pd.isna(written) or pd.isna(recomputed):
        return bool(pd.isna(written) and pd.isna(recomputed))
    return math.isclose(float(written), float(recomputed), rel_tol=1e-6, abs_tol=max(1e-9, slack))


def _text(value: Any) -> str:
    return f"{value:.10g}" if isinstance(value, float) else str(value)
