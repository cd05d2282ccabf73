"""What a table's images could show at all, and whether its float networks know anything of them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import pandas as pd

from qexp.reporting.frames.summary import is_float
from qexp.reporting.statistics.paired import is_tested, row_names
from qexp.reporting.statistics.pairs import Comparisons
from qexp.stats.paired import mcnemar_power, minimum_detectable_effect


def power_sentences(table: pd.DataFrame, groups: Sequence[pd.Index], rows: Comparisons) -> Iterator[str]:
    """What these images can show, at the median of the shares that flip, and how many would be needed where they show nothing.

    Args:
        table: of `compare_variants`.
        groups: rows that were scored on the same images.
        rows: of `compare_rows`.
    """
    texts = []
    for index in groups:
        tested = table.loc[index][is_tested(table.loc[index]) & table.loc[index, "p_value"].notna()]
        flips = (tested["lost"] + tested["gained"]).astype(float) / tested["n"] * 100
        flips = flips[flips > 0]
        n, middle = int(table.loc[index, "n"].iloc[0]), float(np.median(flips)) if len(flips) else 0.0
        effect = minimum_detectable_effect(middle, n, alpha=rows.level) if middle else None
        if effect is None:
            if middle:
                enough = next(
                    (n * 2**k for k in range(1, 12) if minimum_detectable_effect(middle, n * 2**k, alpha=rows.level)), None
                )
                more = f"; some {enough} images would show one" if enough else ""
                texts.append(
                    f"Where {middle:.2g} % of {n} images flip (the median of those that flip), not even flips of one kind alone "
                    f"would show a difference with 80 % power{more}."
                )
            continue
        said = min(np.ceil(100 * effect) / 100, middle)  # its power is told as printed
        power = 100 * mcnemar_power(middle, said, n, alpha=rows.level)
        texts.append(
            f"With {power:.0f} % power {n} images show a difference of {said:.2f} points from a float network where "
            f"{middle:.2g} % of them flip (the median of those that flip), if it is the only one: exact McNemar at "
            f"{rows.level:.3g}, where Holm begins."
        )
    yield from dict.fromkeys(texts)


def at_chance(table: pd.DataFrame, num_classes: int) -> Iterator[str]:
    """A sentence for each float network whose interval has the accuracy of guessing in it: its copies say nothing.

    Args:
        table: rows with `prec1`, `prec1_low` and `prec1_high`.
        num_classes: of the data; 0 where it is not known.
    """
    if not num_classes or "prec1_low" not in table:
        return
    guessing, floats = 100 / num_classes, table[is_float(table)]
    for name, (_, row) in zip(row_names(floats), floats.iterrows(), strict=True):
        if row["prec1_low"] <= guessing <= row["prec1_high"]:
            yield (
                f"{name} is no better than guessing among {num_classes} classes ({row['prec1']:.2f} %): what its copies lose "
                "says nothing of quantization. Was it trained on these data?"
            )
