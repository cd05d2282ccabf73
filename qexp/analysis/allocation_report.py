"""Bits per layer under a budget: `allocation.md`, `methods.csv`, `layers.csv`, `policy/`, `figures/`, and on the screen."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import pandas as pd

from qexp.analysis.results import Against, Allocated, Allocation
from qexp.analysis.sensitivity_figures import draw_allocation
from qexp.analysis.sensitivity_report import TITLES
from qexp.base.files import write_text_atomic
from qexp.reporting.figures.style import save
from qexp.reporting.tables.render import csv_text, indented, markdown_table


def write_allocation(found: Allocation, policy: str, name: str, folder: Path) -> list[Path]:
    """Write all files of an allocation; returns what was written.

    Args:
        found: what was chosen and measured. policy: the policy file's text. name: of it, in `folder`/policy/.
    """
    texts = {
        "allocation.md": markdown(found),
        "methods.csv": csv_text(method_frame(found)),
        "layers.csv": csv_text(layer_frame(found)),
        f"policy/{name}.yaml": policy,
    }
    for file, text in texts.items():
        write_text_atomic(folder / file, text)
    paths = [folder / file for file in texts]
    for stem, figure in draw_allocation(found):
        paths += save(figure, folder / "figures" / stem)
    return paths


def method_frame(found: Allocation) -> pd.DataFrame:
    """One row per allocation with every number; exact and greedy with their comparisons."""
    against = {each.method: each for each in found.against}
    rows = []
    for each in found.found:
        row = asdict(each)
        del row["bits"]
        compared = against.get(each.method) if each.label else None
        if compared is not None:
            row |= {f"test_{key}": value for key, value in asdict(compared).items() if key != "method"}
        rows.append(row)
    return pd.DataFrame(rows)


def layer_frame(found: Allocation) -> pd.DataFrame:
    """One row per layer, one column of bits per allocation: `exact_kl`, `greedy_kl`, `uniform`, ..."""
    return pd.DataFrame({"layer": list(found.found[0].bits)} | {_key(each): list(each.bits.values()) for each in found.found})


def markdown(found: Allocation) -> str:
    """The whole of `allocation.md`."""
    parts = [
        f"# Bits per layer: {found.budget}",
        f"{found.subject}, `{found.checkpoint}`, {found.label}. Layers were compared, and the widths chosen, on {found.images}; "
        f"what was chosen is tested on {found.scored}.",
    ]
    parts += ["  \n".join(found.notes)] if found.notes else []
    parts += ["## Findings", "\n".join(f"- {line}" for line in findings(found))]
    header = [("choice", True)] + [(title, False) for title in _TITLES]
    parts += ["## Choices", markdown_table(header, [[_title(each), *_cells(each)] for each in found.found])]
    parts.append(
        f"*predicted*: sum of the KL of single layers; *KL*, *Prec@1*, *change*: of the network with all of them quantized, on "
        f"{found.images}, in nats, percent and points; *measured/predicted*: 1 where losses add up. *test Prec@1*: on "
        f"{found.scored}."
    )
    names = list(found.found[0].bits)
    header = [("layer", True)] + [(_title(each), False) for each in found.found]
    rows = [[name, *(str(each.bits[name]) for each in found.found)] for name in names]
    parts += ["## Bits", markdown_table(header, rows)]
    parts += ["## Use it", f"`{found.use}`", "## How this was made", f"`{found.command}`"]
    return "\n\n".join(parts) + "\n"


def summary(found: Allocation) -> str:
    """What the screen shows: the choices, and what is to be said of them."""
    lines = ["", f"{found.label}: {found.budget}, chosen on {found.images}"]
    lines += [f"  {note}" for note in found.notes]
    lines += indented([("", *_TITLES), *((_title(each), *_cells(each)) for each in found.found)])
    return "\n".join([*lines, *(f"  {line}" for line in findings(found))])


def findings(found: Allocation) -> list[str]:
    """Sentences: exact against one width for all with its interval, greedy's gap, and how far the sum of losses held."""
    lines = [_comparison(each, found.scored) for each in found.against]
    best = found.found[0]
    gap = "cannot be told, as the least sum is not positive" if found.gap is None else f"is {found.gap:.3g} %"
    lines.append(f"The optimality gap of greedy over exact, in summed {TITLES[best.measure]}, {gap}; {found.dynamic}.")
    if best.predicted:
        ratio = best.kl / best.predicted
        lines.append(
            f"Predicted KL {best.predicted:.4g}, measured {best.kl:.4g}: {ratio:.2f} times what single layers add up to."
        )
    by_kl = min(found.found, key=lambda each: each.kl)
    others = [each for each in found.found if each.method == "exact" and each.measure != best.measure]
    if others:
        costs = ", ".join(f"{TITLES[each.measure]} {each.kl - best.kl:+.3g}" for each in others)
        lines.append(f"Measured KL if another measure had been trusted, against {TITLES[best.measure]}: {costs}.")
    if by_kl is not best and _key(by_kl) != _key(best):
        lines.append(f"The least measured KL of all choices is that of {_title(by_kl)}.")
    return lines


def _comparison(each: Against, scored: str) -> str:
    """One difference in words, without more than its interval says."""
    if each.low > 0:
        verdict = "better"
    elif each.high < 0:
        verdict = "worse"
    else:
        verdict = "not to be told apart"
    interval = f"{each.difference:+.2f} points, {100 * each.level:g} % interval {each.low:+.2f} to {each.high:+.2f}"
    counts = f"lost/won {each.n10}/{each.n01}, McNemar p = {each.p_value:.2g}, n = {each.n} {scored}"
    return f"{each.method} against {each.reference}: {interval} ({counts}): {verdict}."


_TITLES = ("bits", "bytes", "predicted", "KL", "measured/predicted", "Prec@1", "change", "test Prec@1")


def _title(each: Allocated) -> str:
    """`exact by KL`, `uniform 4`."""
    return f"{each.method} by {TITLES[each.measure]}" if each.measure else f"{each.method} {next(iter(each.bits.values()))}"


def _key(each: Allocated) -> str:
    return f"{each.method}_{each.measure}" if each.measure else each.method


def _cells(each: Allocated) -> list[str]:
    return [
        f"{each.average_bits:.3f}",
        str(each.size_bytes),
        "" if each.predicted is None else f"{each.predicted:.4g}",
        f"{each.kl:.4g}",
        f"{each.kl / each.predicted:.2f}" if each.predicted else "",
        f"{each.prec1:.2f}",
        f"{each.delta_prec1:+.2f}",
        "" if each.test_prec1 is None else f"{each.test_prec1:.2f}",
    ]
