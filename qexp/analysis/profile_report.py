"""A profile of a quantized network as files, `tensors.csv`, `tensors.md`, `scores.csv`, `figures/`, and on the screen."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import pandas as pd

from qexp.analysis.profile_figures import draw, draw_each
from qexp.analysis.results import Profile, TensorProfile
from qexp.base.files import write_text_atomic
from qexp.reporting.figures.style import save
from qexp.reporting.tables.render import csv_text, indented, markdown_table

NUM_WORST = 5
_TENSOR = (("tensor", True), ("shape", True), ("bits", False), ("scheme", True), ("rule", True), ("range", True))
_NUMBERS = ("min", "max", "grid", "scale", "SQNR dB", "MSE", "clipped %")


def write_profile(found: Profile, folder: Path) -> list[Path]:
    """Write all files of a profile and remove the figures and scores of an earlier one; returns what was written."""
    texts = {"tensors.csv": csv_text(tensor_frame(found)), "tensors.md": markdown(found)}
    if found.scores:
        texts["scores.csv"] = csv_text(pd.DataFrame([asdict(score) for score in found.scores]))
    for name, text in texts.items():
        write_text_atomic(folder / name, text)
    paths = [folder / name for name in texts]
    for stem, figure in draw(found):
        paths += save(figure, folder / "figures" / stem)
    for stem, figure in draw_each(found):  # many, and read one at a time: no second format
        paths += save(figure, folder / "figures" / stem, kinds=("png",))
    for old in [folder / "scores.csv", *(folder / "figures").glob("*.*")]:
        if old not in paths:
            old.unlink(missing_ok=True)
    return paths


def tensor_frame(found: Profile) -> pd.DataFrame:
    """One row per tensor with every number; `shape` as `16x3x3x3`, `variant` the label."""
    rows = []
    for each in found.tensors:
        row = asdict(each)
        del row["histogram"]
        rows.append({"variant": found.label} | row | {"shape": _shape(each)})
    return pd.DataFrame(rows)


def markdown(found: Profile) -> str:
    """The whole of `tensors.md`."""
    parts = [f"# {found.label}", f"{found.subject}, `{found.checkpoint}`. {_total(found)}."]
    parts += ["  \n".join(found.notes)] if found.notes else []
    if found.weights:
        header = [*_TENSOR, *((name, False) for name in (*_NUMBERS, "loss", "size %"))]
        parts += ["## Weights", markdown_table(header, [_cells(each) for each in found.weights])]
    if found.activations:
        header = [*_TENSOR, *((name, False) for name in (*_NUMBERS, "zeros %")), ("follows", True), ("suggested range", True)]
        parts += [
            "## Activations",
            f"Measured on {found.images}, with quantized weights and float activations before each place.",
        ]
        parts += [markdown_table(header, [_cells(each) for each in found.activations])]
    parts.append(
        "SQNR is 10 log10(sum x^2 / sum (x - x^)^2), loss is sum (x - x^)^2. Clipped are values further than half a step beyond "
        "the outermost level; size is the share of the stored state dict. `grid` gives the outermost levels, `scale` the step of "
        "a uniform grid and the largest level of others, over all channels or groups where each has its own."
    )
    if found.scores:
        rows = [[s.name, _rank(s.rank_before), f"{s.before:.5f}", _rank(s.rank_after), f"{s.after:.5f}"] for s in found.scores]
        header = [("class", True), ("rank", False), ("float", False), ("rank", False), ("quantized", False)]
        parts += ["## Class scores", f"Of `{found.image}`.", markdown_table(header, rows)]
    return "\n\n".join([*parts, "## How this was made", f"`{found.command}`"]) + "\n"


def summary(found: Profile) -> str:
    """What the screen shows: totals, the tensors with the least SQNR, and the class scores."""
    lines = ["", f"{found.label}: {_total(found)}", *(f"  {note}" for note in found.notes)]
    for title, group in (("weights", found.weights), (f"activations, on {found.images}", found.activations)):
        known = sorted((each for each in group if each.sqnr_db is not None), key=lambda each: each.sqnr_db)
        if known:
            worst = known[:NUM_WORST]
            lines += ["", f"least SQNR of {len(group)} {title}:"]
            rows = [
                (each.name, f"{each.bits} bits", f"{each.sqnr_db:.1f} dB", f"clipped {_percent(each.saturation) or '-'} %")
                for each in worst
            ]
            lines += indented(rows)
    if found.scores:
        lines += ["", f"class scores of {found.image}:"]
        rows = [("", "float", "quantized")]
        rows += [
            (s.name, f"{s.before:.5f} ({s.rank_before})", f"{s.after:.5f} ({s.rank_after})") for s in found.scores
        ]  # fmt: skip
        lines += indented(rows)
    return "\n".join(lines)


def _total(found: Profile) -> str:
    """`20 tensors quantized, 0.27 MB stored, total quantization loss 0.083`."""
    count = len(found.weights)
    parts = [f"{count} weight tensor{'' if count == 1 else 's'} quantized"]
    parts += [f"{len(found.activations)} activations"] if found.activations else []
    parts += [f"{found.size_bytes / 1e6:.3g} MB stored", f"total quantization loss {found.total_loss:.4g}"]
    return ", ".join(parts)


def _cells(each: TensorProfile) -> list[str]:
    """One line of the table of weights or activations."""
    scheme = each.scheme if each.granularity == "per_tensor" else f"{each.scheme} {each.granularity}"
    scheme += "" if each.mode == "int" else f" ({each.mode})"
    name = f"{each.name} ({each.note})" if each.note else each.name
    cells = [name, _shape(each), str(each.bits), scheme, each.rule, each.ranges]
    cells += [_short(each.minimum), _short(each.maximum), _span(each.grid_min, each.grid_max, " to ")]
    cells += [_span(each.scale_min, each.scale_max, " - "), "exact" if each.sqnr_db is None else f"{each.sqnr_db:.2f}"]
    cells += [_short(each.mse), _percent(each.saturation)]
    if each.is_activation:
        return [*cells, _percent(each.zero_share), each.distribution, each.suggestion]
    return [*cells, _short(each.loss), _percent(each.size_share)]


def _shape(each: TensorProfile) -> str:
    return "x".join(map(str, each.shape))


def _short(value: float | None) -> str:
    return "" if value is None else f"{value:.4g}"


def _span(low: float | None, high: float | None, between: str) -> str:
    """Two ends, or one where they are equal."""
    return _short(low) if low == high else f"{_short(low)}{between}{_short(high)}"


def _percent(share: float | None) -> str:
    """Of a share; a hundredth of a percent is the least that is told from none."""
    if share is None:
        return ""
    return f"{100 * share:.2f}" if share == 0 or share >= 5e-5 else "<0.01"


def _rank(rank: int) -> str:
    return str(rank)
