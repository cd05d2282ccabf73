"""The smallest network that loses less than a margin: `shrink.md`, `candidates.csv`, `policy/`, `figures/`, and on the screen."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import pandas as pd

from qexp.analysis.files import write_analysis
from qexp.analysis.shrink_figures import draw
from qexp.analysis.shrink_results import Confirmation, Earlier, Raced, Shrunk
from qexp.base.table import Column, Table, lines, markdown_table, markdown_text
from qexp.base.text import counted, mib_text, size_text
from qexp.reporting.tables.render import csv_text


def points(margin: float) -> str:
    """A margin in words.

    >>> points(0.5), points(1.0)
    ('0.5 points', '1 point')
    """
    return f"{margin:g} point{'' if margin == 1 else 's'}"


def write_shrunk(result: Shrunk, folder: Path, policy: tuple[str, str] | None, *, figures: bool = True) -> list[Path]:
    """Write all files; returns what was written.

    Args:
        result: of the search.
        folder: where all files go.
        policy: name and text of the policy's file; None where there is none.
        figures: draw them.
    """
    texts = {"shrink.md": markdown(result), "candidates.csv": csv_text(frame(result))}
    if policy is not None:
        texts[f"policy/{policy[0]}.yaml"] = policy[1]
    return write_analysis(folder, texts, draw(result) if figures else ())


def frame(result: Shrunk) -> pd.DataFrame:
    """One row per candidate with every number, in the order in which they ran; `chosen` marks the smallest that passed."""
    rows = []
    for raced in result.raced:
        row = asdict(raced)
        interval, widths = row.pop("interval"), row.pop("widths")
        row |= {"low": interval and interval["low"], "high": interval and interval["high"], "chosen": raced == result.smallest}
        row["widths"] = "" if widths is None else " ".join(f"{name}={bits}" for name, bits in widths.items())
        rows.append(row)
    return pd.DataFrame(rows)


def markdown(result: Shrunk) -> str:
    """The whole of `shrink.md`."""
    parts = [
        f"# The smallest network that loses less than {points(result.max_loss)}",
        f"{result.subject}, `{result.checkpoint}`. Candidates raced against the float network, smallest first, on "
        f"{result.images}.",
    ]
    parts += ["  \n".join(result.notes)] if result.notes else []
    parts += ["## Findings", "\n".join(f"- {line}" for line in findings(result))]
    ran = [raced for raced in result.raced if raced.outcome != "not run"]
    parts += ["## Candidates that ran", markdown_table(Table.of(_COLUMNS, ran))]
    left = len(result.raced) - len(ran)
    parts.append(
        f"*passed*: the loss is below the margin; *failed*: it is not; *given up*: it would not pass even if no further image "
        f"flipped; *undecided*: all images did not tell. Each *passed* and each *failed* is wrong in at most 5 % of cases, "
        f"however often it was looked at. *change* is Prec@1 less that of float, points, on the n images that the decision took, "
        f"with a 90 % interval that holds at any n. {left} larger candidates took no image. `candidates.csv` lists all."
    )
    if result.smallest is not None and result.smallest.widths:
        columns = (
            Column(name="layer", title="layer", kind="text", value=lambda one: one[0]),
            Column(name="bits", title="bits", kind="count", value=lambda one: one[1]),
        )
        parts += ["## Bits", markdown_table(Table.of(columns, result.smallest.widths.items()))]
    if result.evaluate:
        parts += ["## Use it", f"`{result.evaluate}`", _export(result)]
    return markdown_text([*parts, "## How this was made", f"`{result.command}`"])


def summary(result: Shrunk) -> str:
    """The text for the screen: what was found, what confirmed it, and what to run."""
    texts = ["", f"{result.label}, chosen on {result.images}", *(f"  {note}" for note in result.notes)]
    ran = [raced for raced in result.raced if raced.outcome not in ("not run", "failed")]
    texts += lines(Table.of(_COLUMNS, ran), indent="  ") if ran else []
    texts += [f"  {line}" for line in findings(result)]
    if result.evaluate:
        texts += ["the network again:", f"  {result.evaluate}"]
        texts += ["as a file for runtimes:", f"  {result.export}"] if result.export else [f"  {_export(result)}"]
    return "\n".join(texts)


def findings(result: Shrunk) -> list[str]:
    """Sentences: the verdict, the size beside others, how it passed, what it cost."""
    cost = f"{result.used} image evaluations of {result.full} that the whole grid takes: {100 * result.used / result.full:.1f} %."
    if result.smallest is None or result.confirmation is None:
        margin = points(result.max_loss)
        none = f"NOTHING WAS SHOWN: on {result.images} no candidate was seen to lose less than {margin}; nothing was tested."
        return [none, "More images, a larger margin or wider candidates may show something.", cost]
    sentences = [_verdict(result.confirmation, result.max_loss)]
    sentences += [f"ALARM: {alarm}." for alarm in result.confirmation.alarms]
    share = 100 * result.smallest.size_bytes / result.float_bytes
    sentences.append(
        f"It takes {size_text(result.smallest.size_bytes)}, {share:.1f} % of the float network's {size_text(result.float_bytes)}."
    )
    if result.uniform is not None and result.uniform != result.smallest:
        less = 100 * (1 - result.smallest.size_bytes / result.uniform.size_bytes)
        sentences.append(
            f"Without bits per layer the smallest that passed is {result.uniform.label}, {size_text(result.uniform.size_bytes)}; "
            f"the choice takes {less:.1f} % less."
        )
    if result.confirmation.earlier != Earlier():
        sentences.append(_earlier(result.confirmation.earlier))
    return [*sentences, cost]


def _earlier(earlier: Earlier) -> str:
    """What else of the checkpoint the images tested, networks and margins apart."""
    told = []
    if earlier.networks:
        told.append(f"{counted(len(earlier.networks), 'other network')} ({'; '.join(earlier.networks)})")
    if earlier.margins:
        margins = ", ".join(points(margin) for margin in earlier.margins)
        told.append(f"this network at {counted(len(earlier.margins), 'other margin')} ({margins})")
    if earlier.counts:
        numbers = ", ".join(f"n = {count}" for count in earlier.counts)
        selections = counted(len(earlier.counts), "other selection")
        told.append(f"this network at this margin on {selections} of images ({numbers})")
    return (
        f"The same images, or some of them, also tested of this checkpoint: {'; '.join(told)}. Each claim may be wrong in 5 % of "
        f"cases, all of them together in more."
    )


def _verdict(confirmation: Confirmation, margin: float) -> str:
    """The claim, or that there is none."""
    counts = (
        f"Prec@1 {confirmation.float_prec1:.2f} to {confirmation.prec1:.2f} ({confirmation.difference:+.2f} points; lost/won "
        f"{confirmation.n10}/{confirmation.n01}, n = {confirmation.images})"
    )
    bound = f"with 95 % confidence the loss is below {confirmation.loss_bound:.2f} points (p = {confirmation.p_value:.2g})"
    if confirmation.holds:
        return f"SHOWN: {confirmation.label} loses less than {points(margin)}. {counts}; {bound}."
    return (
        f"NOTHING WAS SHOWN: {confirmation.label} passed on the images that chose it, but not on the others. {counts}; {bound}, "
        f"which is not {margin:g}. No other network was tried on them."
    )


def _export(result: Shrunk) -> str:
    return f"`{result.export}`" if result.export else f"No file for integer runtimes: {result.no_export}"


def _interval(raced: Raced) -> str | None:
    return None if raced.interval is None else f"{raced.interval.low:+.2f} to {raced.interval.high:+.2f}"


_COLUMNS = (
    Column(name="label", title="network", kind="text"),
    Column(name="bits", title="bits", kind="number", form=".3g"),
    Column(name="size_bytes", title="MiB", kind="number", form=mib_text),
    Column(name="outcome", title="outcome", kind="text"),
    Column(name="n", title="n", kind="count"),
    Column(name="lost_won", title="lost/won", kind="text", value=lambda raced: f"{raced.n10}/{raced.n01}"),
    Column(name="difference", title="change", kind="points"),
    Column(name="interval", title="90 %", kind="text", value=_interval),
)
