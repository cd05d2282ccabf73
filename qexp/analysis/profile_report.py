"""A profile of a quantized network as files, `tensors.csv`, `tensors.md`, `scores.csv`, `figures/`, and on the screen."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import pandas as pd

from qexp.analysis.files import write_analysis
from qexp.analysis.profile_figures import draw, draw_each
from qexp.analysis.profile_results import Profile, TensorProfile
from qexp.base.table import Column, Table, lines, markdown_table, markdown_text
from qexp.reporting.tables.render import csv_text

NUM_WORST = 5


def write_profile(profile: Profile, folder: Path, *, figures: bool = True) -> list[Path]:
    """Write all files of a profile, figures if asked for, without those of an earlier one; returns what was written."""
    scores = csv_text(pd.DataFrame([asdict(score) for score in profile.scores])) if profile.scores else ""
    texts = {"tensors.csv": csv_text(tensor_frame(profile)), "tensors.md": markdown(profile), "scores.csv": scores}
    drawn = (draw(profile), draw_each(profile)) if figures else ((), ())
    return write_analysis(folder, texts, *drawn)


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
        parts += ["## Weights", markdown_table(Table.of((*_TENSOR, *_WEIGHT), profile.weights))]
    if profile.activations:
        parts += [
            "## Activations",
            f"Measured on {profile.images}, with quantized weights and float activations before each place.",
        ]
        parts += [markdown_table(Table.of((*_TENSOR, *_ACTIVATION), profile.activations))]
    parts.append(
        "SQNR is 10 log10(sum x^2 / sum (x - x^)^2), loss is sum (x - x^)^2. Clipped are values further than half a step beyond "
        "the outermost level; size is the share of the stored state dict. `grid` gives the outermost levels, `scale` the step of "
        "a uniform grid and the largest level of others, over all channels or groups where each has its own."
    )
    if profile.scores:
        parts += ["## Class scores", f"Of `{profile.image}`.", markdown_table(Table.of(_SCORE, profile.scores))]
    return markdown_text([*parts, "## How this was made", f"`{profile.command}`"])


def summary(profile: Profile) -> str:
    """The text for the screen: totals, the tensors with the least SQNR, and the class scores."""
    texts = ["", f"{profile.label}: {_total(profile)}", *(f"  {note}" for note in profile.notes)]
    for title, group in (("weights", profile.weights), (f"activations, on {profile.images}", profile.activations)):
        known = [tensor for tensor in group if tensor.sqnr_db is not None]
        if known:
            worst = sorted(known, key=lambda tensor: tensor.sqnr_db or 0.0)[:NUM_WORST]
            texts += ["", f"least SQNR of {len(group)} {title}:"]
            texts += lines(Table.of(_WORST, worst), titles=False, indent="  ")
    if profile.scores:
        texts += ["", f"class scores of {profile.image}:", *lines(Table.of(_SCORE_ON_SCREEN, profile.scores), indent="  ")]
    return "\n".join(texts)


def _total(profile: Profile) -> str:
    """`20 tensors quantized, 0.266 MiB stored, total quantization loss 0.083`."""
    count = len(profile.weights)
    parts = [f"{count} weight tensor{'' if count == 1 else 's'} quantized"]
    parts += [f"{len(profile.activations)} activations"] if profile.activations else []
    parts += [f"{profile.size_bytes / 2**20:.3g} MiB stored", f"total quantization loss {profile.total_loss:.4g}"]
    return ", ".join(parts)


def _name(tensor: TensorProfile) -> str:
    return f"{tensor.name} ({tensor.note})" if tensor.note else tensor.name


def _scheme(tensor: TensorProfile) -> str:
    """`affine`, `linear per_channel (float)`."""
    scheme = tensor.scheme if tensor.granularity == "per_tensor" else f"{tensor.scheme} {tensor.granularity}"
    return scheme + ("" if tensor.mode == "int" else f" ({tensor.mode})")


def _shape(tensor: TensorProfile) -> str:
    return "x".join(map(str, tensor.shape))


def _short(value: float | None) -> str:
    return "" if value is None else f"{value:.4g}"


def _span(low: float | None, high: float | None, between: str) -> str:
    """Two ends, or one where they are equal."""
    return _short(low) if low == high else f"{_short(low)}{between}{_short(high)}"


def _percent(share: float) -> str:
    """A share in percent; anything below a hundredth of a percent is `<0.01`."""
    return f"{100 * share:.2f}" if share == 0 or share >= 5e-5 else "<0.01"


_TENSOR = (
    Column(name="name", title="tensor", kind="text", value=_name),
    Column(name="shape", title="shape", kind="text", value=_shape),
    Column(name="bits", title="bits", kind="count"),
    Column(name="scheme", title="scheme", kind="text", value=_scheme),
    Column(name="rule", title="rule", kind="text"),
    Column(name="ranges", title="range", kind="text"),
    Column(name="minimum", title="min", kind="number"),
    Column(name="maximum", title="max", kind="number"),
    Column(name="grid", title="grid", kind="number", form=str, value=lambda row: _span(row.grid_min, row.grid_max, " to ")),
    Column(name="scale", title="scale", kind="number", form=str, value=lambda row: _span(row.scale_min, row.scale_max, " - ")),
    Column(name="sqnr_db", title="SQNR dB", kind="number", form=".2f", empty="exact"),
    Column(name="mse", title="MSE", kind="number"),
    Column(name="saturation", title="clipped %", kind="percent", form=_percent),
)
_WEIGHT = (
    Column(name="loss", title="loss", kind="number"),
    Column(name="size_share", title="size %", kind="percent", form=_percent),
)
_ACTIVATION = (
    Column(name="zero_share", title="zeros %", kind="percent", form=_percent),
    Column(name="distribution", title="follows", kind="text"),
    Column(name="suggestion", title="suggested range", kind="text"),
)
_WORST = (
    Column(name="name", title="", kind="text"),
    Column(name="bits", title="", kind="count", form=lambda bits: f"{bits} bits"),
    Column(name="sqnr_db", title="", kind="number", form=lambda value: f"{value:.1f} dB"),
    Column(name="saturation", title="", kind="percent", form=lambda share: f"clipped {_percent(share)} %", empty="clipped - %"),
)
_SCORE = (
    Column(name="name", title="class", kind="text"),
    Column(name="rank_before", title="rank", kind="count"),
    Column(name="before", title="float", kind="number", form=".5f"),
    Column(name="rank_after", title="rank", kind="count"),
    Column(name="after", title="quantized", kind="number", form=".5f"),
)
_SCORE_ON_SCREEN = (
    Column(name="name", title="", kind="text"),
    Column(name="before", title="float", kind="number", value=lambda row: f"{row.before:.5f} ({row.rank_before})", form=str),
    Column(name="after", title="quantized", kind="number", value=lambda row: f"{row.after:.5f} ({row.rank_after})", form=str),
)
