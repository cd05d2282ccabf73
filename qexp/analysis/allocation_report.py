"""Bits per layer under a budget: `allocation.md`, `methods.csv`, `layers.csv`, `policy/`, `figures/`, and on the screen."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import pandas as pd

from qexp.analysis.files import write_analysis
from qexp.analysis.results import Allocated, Allocation
from qexp.analysis.sensitivity_figures import draw_allocation
from qexp.base.table import Column, Table, lines, markdown_table, markdown_text
from qexp.config.analyze import MEASURE_TITLES
from qexp.reporting.tables.allocations import NUMBERS, choice_key, choice_title, comparison_sentence, explained
from qexp.reporting.tables.render import csv_text


def write_allocation(allocation: Allocation, policy: str, name: str, folder: Path, *, figures: bool = True) -> list[Path]:
    """Write all files of an allocation; returns what was written.

    Args:
        allocation: what was chosen and measured.
        policy: the policy file's text.
        name: of the policy file, in `folder`/policy/.
        folder: where all files go.
        figures: draw them.
    """
    texts = {
        "allocation.md": markdown(allocation),
        "methods.csv": csv_text(method_frame(allocation)),
        "layers.csv": csv_text(layer_frame(allocation)),
        f"policy/{name}.yaml": policy,
    }
    return write_analysis(folder, texts, draw_allocation(allocation) if figures else ())


def method_frame(allocation: Allocation) -> pd.DataFrame:
    """One row per allocation with every number; exact and greedy with their comparisons."""
    comparisons = {choice.method: choice for choice in allocation.comparisons}
    rows = []
    for choice in allocation.choices:
        row = asdict(choice)
        del row["bits"]
        comparison = comparisons.get(choice.method) if choice.label else None
        if comparison is not None:
            row |= {f"test_{key}": value for key, value in asdict(comparison).items() if key != "method"}
        rows.append(row | {"budget": allocation.budget, "images": allocation.images, "scored": allocation.scored})
    return pd.DataFrame(rows)


def layer_frame(allocation: Allocation) -> pd.DataFrame:
    """One row per layer, one column of bits per allocation: `exact_kl`, `greedy_kl`, `uniform`, ..."""
    return pd.DataFrame(
        {"layer": list(allocation.choices[0].bits)} | {_key(choice): list(choice.bits.values()) for choice in allocation.choices}
    )


def markdown(allocation: Allocation) -> str:
    """The whole of `allocation.md`."""
    parts = [
        f"# Bits per layer: {allocation.budget}",
        f"{allocation.subject}, `{allocation.checkpoint}`, {allocation.label}. Layers were compared, and the widths chosen, on "
        f"{allocation.images}; what was chosen is tested on {allocation.scored}.",
    ]
    parts += ["  \n".join(allocation.notes)] if allocation.notes else []
    parts += ["## Findings", "\n".join(f"- {line}" for line in findings(allocation))]
    parts += ["## Choices", markdown_table(_choices("choice", allocation))]
    parts.append(explained(allocation.images, allocation.scored))
    names = list(allocation.choices[0].bits)
    widths = [(Column(name=_key(choice), title=_title(choice), kind="count"), list(choice.bits.values()))
              for choice in allocation.choices]  # fmt: skip
    parts += ["## Bits", markdown_table(Table.of_values([(Column(name="layer", title="layer", kind="text"), names), *widths]))]
    parts += ["## Use it", f"`{allocation.use}`", "## How this was made", f"`{allocation.command}`"]
    return markdown_text(parts)


def summary(allocation: Allocation) -> str:
    """The text for the screen: the choices and the findings."""
    texts = ["", f"{allocation.label}: {allocation.budget}, chosen on {allocation.images}"]
    texts += [f"  {note}" for note in allocation.notes]
    texts += lines(_choices("", allocation), indent="  ")
    return "\n".join([*texts, *(f"  {line}" for line in findings(allocation))])


def findings(allocation: Allocation) -> list[str]:
    """Sentences: exact against one width for all with its interval, greedy's gap, and how far the sum of losses held."""
    sentences = [comparison_sentence(comparison, allocation.scored) for comparison in allocation.comparisons]
    best = allocation.choices[0]
    gap = "cannot be told, as the least sum is not positive" if allocation.gap is None else f"is {allocation.gap:.3g} %"
    sentences.append(
        f"The optimality gap of greedy over exact, in summed {MEASURE_TITLES[best.measure]}, {gap}; {allocation.dynamic_check}."
    )
    if best.predicted:
        ratio = best.kl / best.predicted
        sentences.append(
            f"Predicted KL {best.predicted:.4g}, measured {best.kl:.4g}: {ratio:.2f} times what single layers add up to."
        )
    by_kl = min(allocation.choices, key=lambda choice: choice.kl)
    others = [choice for choice in allocation.choices if choice.method == "exact" and choice.measure != best.measure]
    if others:
        costs = ", ".join(f"{MEASURE_TITLES[choice.measure]} {choice.kl - best.kl:+.3g}" for choice in others)
        sentences.append(f"Measured KL if another measure had been trusted, against {MEASURE_TITLES[best.measure]}: {costs}.")
    if by_kl is not best and _key(by_kl) != _key(best):
        sentences.append(f"The least measured KL of all choices is that of {_title(by_kl)}.")
    return sentences


def _title(choice: Allocated) -> str:
    """`exact by KL`, `uniform 4`."""
    return choice_title(choice.method, choice.measure, next(iter(choice.bits.values())))


def _key(choice: Allocated) -> str:
    return choice_key(choice.method, choice.measure)


def _choices(title: str, allocation: Allocation) -> Table:
    """One row for each choice.

    Args:
        title: of the first column.
        allocation: what was chosen.
    """
    return Table.of((Column(name="choice", title=title, kind="text", value=_title), *NUMBERS), allocation.choices)
