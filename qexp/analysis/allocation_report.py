"""Bits per layer under a budget: `allocation.md`, `methods.csv`, `layers.csv`, `policy/`, `figures/`, and on the screen."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import pandas as pd

from qexp.analysis.results import Allocated, Allocation, ChoiceComparison
from qexp.analysis.sensitivity_figures import draw_allocation
from qexp.analysis.sensitivity_report import TITLES
from qexp.base.files import write_text_atomic
from qexp.reporting.figures.style import save
from qexp.reporting.tables.render import csv_text, indented, markdown_table


def write_allocation(allocation: Allocation, policy: str, name: str, folder: Path) -> list[Path]:
    """Write all files of an allocation; returns what was written.

    Args:
        allocation: what was chosen and measured.
        policy: the policy file's text.
        name: of the policy file, in `folder`/policy/.
        folder: where all files go.
    """
    texts = {
        "allocation.md": markdown(allocation),
        "methods.csv": csv_text(method_frame(allocation)),
        "layers.csv": csv_text(layer_frame(allocation)),
        f"policy/{name}.yaml": policy,
    }
    for file, text in texts.items():
        write_text_atomic(folder / file, text)
    paths = [folder / file for file in texts]
    for stem, figure in draw_allocation(allocation):
        paths += save(figure, folder / "figures" / stem)
    return paths


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
        rows.append(row)
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
    header = [("choice", True)] + [(title, False) for title in _TITLES]
    parts += ["## Choices", markdown_table(header, [[_title(choice), *_cells(choice)] for choice in allocation.choices])]
    parts.append(
        f"*predicted*: sum of the KL of single layers; *KL*, *Prec@1*, *change*: of the network with all of them quantized, on "
        f"{allocation.images}, in nats, percent and points; *measured/predicted*: 1 where losses add up. *test Prec@1*: on "
        f"{allocation.scored}."
    )
    names = list(allocation.choices[0].bits)
    header = [("layer", True)] + [(_title(choice), False) for choice in allocation.choices]
    rows = [[name, *(str(choice.bits[name]) for choice in allocation.choices)] for name in names]
    parts += ["## Bits", markdown_table(header, rows)]
    parts += ["## Use it", f"`{allocation.use}`", "## How this was made", f"`{allocation.command}`"]
    return "\n\n".join(parts) + "\n"


def summary(allocation: Allocation) -> str:
    """The text for the screen: the choices and the findings."""
    lines = ["", f"{allocation.label}: {allocation.budget}, chosen on {allocation.images}"]
    lines += [f"  {note}" for note in allocation.notes]
    lines += indented([("", *_TITLES), *((_title(choice), *_cells(choice)) for choice in allocation.choices)])
    return "\n".join([*lines, *(f"  {line}" for line in findings(allocation))])


def findings(allocation: Allocation) -> list[str]:
    """Sentences: exact against one width for all with its interval, greedy's gap, and how far the sum of losses held."""
    lines = [_comparison(comparison, allocation.scored) for comparison in allocation.comparisons]
    best = allocation.choices[0]
    gap = "cannot be told, as the least sum is not positive" if allocation.gap is None else f"is {allocation.gap:.3g} %"
    lines.append(f"The optimality gap of greedy over exact, in summed {TITLES[best.measure]}, {gap}; {allocation.dynamic_check}.")
    if best.predicted:
        ratio = best.kl / best.predicted
        lines.append(
            f"Predicted KL {best.predicted:.4g}, measured {best.kl:.4g}: {ratio:.2f} times what single layers add up to."
        )
    by_kl = min(allocation.choices, key=lambda choice: choice.kl)
    others = [choice for choice in allocation.choices if choice.method == "exact" and choice.measure != best.measure]
    if others:
        costs = ", ".join(f"{TITLES[choice.measure]} {choice.kl - best.kl:+.3g}" for choice in others)
        lines.append(f"Measured KL if another measure had been trusted, against {TITLES[best.measure]}: {costs}.")
    if by_kl is not best and _key(by_kl) != _key(best):
        lines.append(f"The least measured KL of all choices is that of {_title(by_kl)}.")
    return lines


def _comparison(comparison: ChoiceComparison, scored: str) -> str:
    """One difference in words; a verdict only where its interval excludes zero."""
    if comparison.low > 0:
        verdict = "better"
    elif comparison.high < 0:
        verdict = "worse"
    else:
        verdict = "not to be told apart"
    ends = f"{comparison.low:+.2f} to {comparison.high:+.2f}"
    interval = f"{comparison.difference:+.2f} points, {100 * comparison.level:g} % interval {ends}"
    counts = f"lost/won {comparison.n10}/{comparison.n01}, McNemar p = {comparison.p_value:.2g}, n = {comparison.n} {scored}"
    return f"{comparison.method} against {comparison.reference}: {interval} ({counts}): {verdict}."


_TITLES = ("bits", "bytes", "predicted", "KL", "measured/predicted", "Prec@1", "change", "test Prec@1")


def _title(choice: Allocated) -> str:
    """`exact by KL`, `uniform 4`."""
    return (
        f"{choice.method} by {TITLES[choice.measure]}"
        if choice.measure
        else f"{choice.method} {next(iter(choice.bits.values()))}"
    )


def _key(choice: Allocated) -> str:
    return f"{choice.method}_{choice.measure}" if choice.measure else choice.method


def _cells(choice: Allocated) -> list[str]:
    return [
        f"{choice.average_bits:.3f}",
        str(choice.size_bytes),
        "" if choice.predicted is None else f"{choice.predicted:.4g}",
        f"{choice.kl:.4g}",
        f"{choice.kl / choice.predicted:.2f}" if choice.predicted else "",
        f"{choice.prec1:.2f}",
        f"{choice.delta_prec1:+.2f}",
        "" if choice.test_prec1 is None else f"{choice.test_prec1:.2f}",
    ]
