"""A profile of a quantized network as files, `tensors.csv`, `tensors.md`, `scores.csv`, `figures/`, and on the screen."""

from __future__ import annotations

from dataclasses import asdict
from operator import itemgetter
from pathlib import Path

import pandas as pd

from qexp.analysis.profile_figures import draw, draw_each
from qexp.analysis.profile_results import ClassScore, Profile, TensorProfile
from qexp.base.files import write_text_atomic
from qexp.reporting.figures.style import save
from qexp.reporting.tables.render import csv_text, indented, markdown_table

NUM_WORST = 5
_TENSOR = (("tensor", True), ("shape", True), ("bits", False), ("scheme", True), ("rule", True), ("range", True))
_NUMBERS = ("min", "max", "grid", "scale", "SQNR dB", "MSE", "clipped %")


def write_profile(profile: Profile, folder: Path) -> list[Path]:
    """Write all files of a profile and remove the figures and scores of an earlier one; returns what was written."""
    texts = {"tensors.csv": csv_text(tensor_frame(profile)), "tensors.md": markdown(profile)}
    if profile.scores:
        texts["scores.csv"] = csv_text(pd.DataFrame([asdict(score) for score in profile.scores]))
    for name, text in texts.items():
        write_text_atomic(folder / name, text)
    paths = [folder / name for name in texts]
    for stem, figure in draw(profile):
        paths += save(figure, folder / "figures" / stem)
    for stem, figure in draw_each(profile):  # many, and read one at a time: no second format
        paths += save(figure, folder / "figures" / stem, kinds=("png",))
    for old in [folder / "scores.csv", *(folder / "figures").glob("*.*")]:
        if old not in paths:
            old.unlink(missing_ok=True)
    return paths


def tensor_frame(profile: Profile) -> pd.DataFrame:
    """One row per tensor with every number; `shape` as `16x3x3x3`, `variant` the label."""
    rows = []
    for tensor in profile.tensors:
        row = asdict(tensor)
        del row["histogram"]
        rows.append({"variant": profile.label} | row | {"shape": _shape(tensor)})
    return pd.DataFrame(rows)


def markdown(profile: Profile) -> str:
    """The whole of `tensors.md`."""
    parts = [f"# {profile.label}", f"{profile.subject}, `{profile.checkpoint}`. {_total(profile)}."]
    parts += ["  \n".join(profile.notes)] if profile.notes else []
    if profile.weights:
        header = [*_TENSOR, *((name, False) for name in (*_NUMBERS, "loss", "size %"))]
        parts += ["## Weights", markdown_table(header, [_cells(tensor) for tensor in profile.weights])]
    if profile.activations:
        header = [*_TENSOR, *((name, False) for name in (*_NUMBERS, "zeros %")), ("follows", True), ("suggested range", True)]
        parts += [
            "## Activations",
            f"Measured on {profile.images}, with quantized weights and float activations before each place.",
        ]
        parts += [markdown_table(header, [_cells(tensor) for tensor in profile.activations])]
    parts.append(
        "SQNR is 10 log10(sum x^2 / sum (x - x^)^2), loss is sum (x - x^)^2. Clipped are values further than half a step beyond "
        "the outermost level; size is the share of the stored state dict. `grid` gives the outermost levels, `scale` the step of "
        "a uniform grid and the largest level of others, over all channels or groups where each has its own."
    )
    if profile.scores:
        rows = [
            [score.name, _rank(score.rank_before), f"{score.before:.5f}", _rank(score.rank_after), f"{score.after:.5f}"]
            for score in profile.scores
        ]
        header = [("class", True), ("rank", False), ("float", False), ("rank", False), ("quantized", False)]
        parts += ["## Class scores", f"Of `{profile.image}`.", markdown_table(header, rows)]
    return "\n\n".join([*parts, "## How this was made", f"`{profile.command}`"]) + "\n"


def summary(profile: Profile) -> str:
    """The text for the screen: totals, the tensors with the least SQNR, and the class scores."""
    lines = ["", f"{profile.label}: {_total(profile)}", *(f"  {note}" for note in profile.notes)]
    for title, group in (("weights", profile.weights), (f"activations, on {profile.images}", profile.activations)):
        known = [(tensor.sqnr_db, tensor) for tensor in group if tensor.sqnr_db is not None]
        if known:
            worst = sorted(known, key=itemgetter(0))[:NUM_WORST]
            lines += ["", f"least SQNR of {len(group)} {title}:"]
            lines += indented([_worst_line(tensor, sqnr_db) for sqnr_db, tensor in worst])
    if profile.scores:
        lines += ["", f"class scores of {profile.image}:"]
        lines += indented([("", "float", "quantized"), *(_score_line(score) for score in profile.scores)])
    return "\n".join(lines)


def _worst_line(tensor: TensorProfile, sqnr_db: float) -> list[str]:
    return [tensor.name, f"{tensor.bits} bits", f"{sqnr_db:.1f} dB", f"clipped {_percent(tensor.saturation) or '-'} %"]


def _score_line(score: ClassScore) -> list[str]:
    return [score.name, f"{score.before:.5f} ({score.rank_before})", f"{score.after:.5f} ({score.rank_after})"]


def _total(profile: Profile) -> str:
    """`20 tensors quantized, 0.27 MB stored, total quantization loss 0.083`."""
    count = len(profile.weights)
    parts = [f"{count} weight tensor{'' if count == 1 else 's'} quantized"]
    parts += [f"{len(profile.activations)} activations"] if profile.activations else []
    parts += [f"{profile.size_bytes / 1e6:.3g} MB stored", f"total quantization loss {profile.total_loss:.4g}"]
    return ", ".join(parts)


def _cells(tensor: TensorProfile) -> list[str]:
    """One line of the table of weights or activations."""
    scheme = tensor.scheme if tensor.granularity == "per_tensor" else f"{tensor.scheme} {tensor.granularity}"
    scheme += "" if tensor.mode == "int" else f" ({tensor.mode})"
    name = f"{tensor.name} ({tensor.note})" if tensor.note else tensor.name
    cells = [name, _shape(tensor), str(tensor.bits), scheme, tensor.rule, tensor.ranges]
    cells += [_short(tensor.minimum), _short(tensor.maximum), _span(tensor.grid_min, tensor.grid_max, " to ")]
    cells += [_span(tensor.scale_min, tensor.scale_max, " - "), "exact" if tensor.sqnr_db is None else f"{tensor.sqnr_db:.2f}"]
    cells += [_short(tensor.mse), _percent(tensor.saturation)]
    if tensor.is_activation:
        return [*cells, _percent(tensor.zero_share), tensor.distribution, tensor.suggestion]
    return [*cells, _short(tensor.loss), _percent(tensor.size_share)]


def _shape(tensor: TensorProfile) -> str:
    return "x".join(map(str, tensor.shape))


def _short(value: float | None) -> str:
    return "" if value is None else f"{value:.4g}"


def _span(low: float | None, high: float | None, between: str) -> str:
    """Two ends, or one where they are equal."""
    return _short(low) if low == high else f"{_short(low)}{between}{_short(high)}"


def _percent(share: float | None) -> str:
    """A share in percent; anything below a hundredth of a percent is `<0.01`."""
    if share is None:
        return ""
    return f"{100 * share:.2f}" if share == 0 or share >= 5e-5 else "<0.01"


def _rank(rank: int) -> str:
    return str(rank)
