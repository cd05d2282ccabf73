"""What the choice of calibration images leaves open: variants with several draws against each other, and how much a draw moves.

Rejected: tests of all draws' networks, of which 420 copies make 87 990 pairs, and twenty verdicts on one question.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import combinations

import numpy as np
import pandas as pd

from qexp.base.text import counted
from qexp.reporting.frames.predictions import StoredPredictions, keys_of
from qexp.reporting.frames.repeats import Repeat, learned_from_images, repeats
from qexp.reporting.frames.summary import is_control, is_float
from qexp.reporting.statistics.paired import ALPHA, row_names
from qexp.stats.family import holm_adjusted
from qexp.stats.seeds import over_draws_and_images
from qexp.tracking.record import FLOAT_VARIANT

FILE = "draws.csv"
MAX_NAMES = 8  # of a sentence
WORSE, ALIKE, APART = (
    "shown to be less accurate",
    "not significantly different",
    "not compared, as draws, images or epochs are others",
)
COLUMNS = (
    "training", "a", "b", "num_draws", "difference", "difference_sd", "ci_low", "ci_high", "p_value", "p_holm", "n", "split",
    "epoch",
)  # fmt: skip
EXPLAINED = (
    "Variants that differ in the draw of their calibration images alone are one variant; the first draw's copy stands in the "
    "table and in its tests of images. *sd of images*: of one accuracy over the choice of the images that are scored. Two "
    "variants with the same draws are compared draw by draw, so that what a draw does to both cancels; the interval is for new "
    "draws and new images, from the variances over both (`over_draws_and_images`), p by Holm over all such pairs. `draws.csv` "
    "has them."
)


def draw_pairs(table: pd.DataFrame, stored: StoredPredictions) -> pd.DataFrame:
    """`COLUMNS` of any two variants of a training, no controls, with the same draws and images; b minus a in points.

    Args:
        table: of `summarize`.
        stored: of `load_predictions`.
    """
    drawn = [one for one in repeats(table[~is_control(table)]) if one.over == "draws"]
    variants = [(one, right) for one in drawn for right in [_right(one, stored)] if right is not None]
    rows = [row for pair in combinations(variants, 2) if (row := _compared(*pair)) is not None]
    frame = pd.DataFrame(rows, columns=[name for name in COLUMNS if name != "p_holm"])
    p_values = frame["p_value"].fillna(1.0).to_numpy(dtype=float)
    adjusted = holm_adjusted(p_values, np.full(len(frame), 1 / max(len(frame), 1)))
    return frame.assign(p_holm=adjusted)[list(COLUMNS)]


def _right(variant: Repeat, stored: StoredPredictions) -> tuple[np.ndarray, object] | None:
    """[draws, images] bool, where each is right, and which images; None where one is missing."""
    predictions = [one for one in stored.of(keys_of(variant.part)) if one is not None]
    if len(predictions) < len(variant.part) or len({one.images for one in predictions}) != 1:
        return None
    return np.stack([one.right for one in predictions]), predictions[0].images


def _compared(first: tuple[Repeat, tuple[np.ndarray, object]], second: tuple[Repeat, tuple[np.ndarray, object]]) -> dict | None:
    """A row of `COLUMNS`; None where the two are of other trainings, images or draws."""
    (a, (right_a, images_a)), (b, (right_b, images_b)) = first, second
    same = all(list(a.part[name]) == list(b.part[name]) for name in ("training", "draw", "split", "epoch"))
    if not same or images_a != images_b:
        return None
    spread = over_draws_and_images(right_b.astype(int) - right_a.astype(int))
    assert spread.interval is not None, "several draws"
    return {
        "training": a.part["training"].iloc[0],
        "a": a.values["variant"],
        "b": b.values["variant"],
        "num_draws": a.count,
        "difference": spread.mean,
        "difference_sd": spread.sd,
        "ci_low": spread.interval.low,
        "ci_high": spread.interval.high,
        "p_value": spread.p_value,
        "n": a.values["n"],
        "split": a.values["split"],
        "epoch": a.values["epoch"],
    }


def over_repeats(seeds: pd.DataFrame, table: pd.DataFrame) -> Iterator[str]:
    """Means and deviations, which are the results where seeds or draws were repeated.

    Args:
        seeds: of `seed_table`.
        table: that they are of.
    """
    drawn = seeds["num_draws"].notna() if "num_draws" in seeds else pd.Series(False, index=seeds.index)
    roles = dict(zip(table["group"], table["role"], strict=True)) if "role" in table else {}
    for part, count, what in (
        (seeds[drawn], "num_draws", "draws of calibration images"),
        (seeds[~drawn], "num_seeds", "seeds"),
    ):
        if part.empty:
            continue
        named = part.assign(label=part["group"], training=part["group"], role=part["group"].map(roles), variant_key="")
        texts = []
        for name, row in zip(row_names(named), part.to_dict("records"), strict=True):
            text = f"{name} {row['prec1_mean']:.2f} +- {row['prec1_sd']:.2f} %"
            against = "vs_control" if pd.notna(row.get("vs_control_mean")) else "delta_prec1"
            if row["variant"] != FLOAT_VARIANT:
                text += f" ({row[f'{against}_mean']:+.2f} +- {row[f'{against}_sd']:.2f})"
            texts.append(text)
        counts = sorted({int(number) for number in part[count]})
        yield f"Over {' to '.join(map(str, dict.fromkeys((counts[0], counts[-1]))))} {what}, mean +- sd: {first_few(texts)}."


def first_few(texts: Sequence[str]) -> str:
    """The first texts of a sentence, and how many more there are."""
    rest = f" and {len(texts) - MAX_NAMES} more" if len(texts) > MAX_NAMES else ""
    return ", ".join(texts[:MAX_NAMES]) + rest


def draw_sentences(table: pd.DataFrame, seeds: pd.DataFrame, pairs: pd.DataFrame) -> Iterator[str]:
    """What a reader is to know of draws: how much one moves, which variants differ beyond that, and what one draw leaves out.

    Args:
        table: of `summarize`.
        seeds: of `seed_table`.
        pairs: of `draw_pairs`.
    """
    drawn = [one for one in repeats(table) if one.over == "draws"]
    if drawn:
        own = seeds[seeds["num_draws"].notna() & ~is_control(seeds)]
        own = own if len(own) else seeds[seeds["num_draws"].notna()]
        moves, images = own["prec1_sd"], own["images_sd"]
        yield (
            f"A draw of calibration images moves Prec@1 by {moves.min():.2f} to {moves.max():.2f} points (one sd); the choice of "
            f"the {_listed(own['n'])} images that are scored by {images.min():.2f} to {images.max():.2f}. Of several draws the "
            "first one's copy is in the tests of images below."
        )
        yield from _best_of_widths([one for one in drawn if not is_control(one.part).any()], pairs)
    once = table[learned_from_images(table) & ~is_float(table)].drop(index=[index for one in drawn for index in one.part.index])
    if len(once):
        yield (
            f"{len(once)} cop{'y' if len(once) == 1 else 'ies'} learned from one draw of calibration images: what another draw "
            "would give is in none of these intervals (calibrate.draw=0,1,2 calibrate.num_images=N -m shows it)."
        )


def _best_of_widths(drawn: list[Repeat], pairs: pd.DataFrame) -> Iterator[str]:
    """For each pair of widths the best of several variants, and which are shown to be less accurate."""
    groups: dict[tuple, list[Repeat]] = {}
    for one in drawn:
        first = one.part.iloc[0]
        groups.setdefault((first["training"], one.values["n"], one.values["split"], first["named"].widths), []).append(one)
    for (training, n, split, widths), members in groups.items():
        if len(members) < 2:
            continue
        known = pairs[(pairs["training"] == training) & (pairs["n"] == n) & (pairs["split"] == split)]
        best = max(members, key=lambda one: one.part["prec1"].mean())
        top = best.part["prec1"].mean()
        told: dict[str, list[str]] = {WORSE: [], ALIKE: [], APART: []}
        for one in sorted(members, key=lambda one: -one.part["prec1"].mean()):
            if one is not best:
                names = {best.values["variant"], one.values["variant"]}
                row = known[known["a"].isin(names) & known["b"].isin(names)]
                what = APART if len(row) != 1 else WORSE if row["p_holm"].iloc[0] <= ALPHA else ALIKE
                told[what].append(f"{one.values['variant']} ({one.part['prec1'].mean() - top:+.2f})")
        parts = [f"the best {widths} on average is {best.values['variant']} ({top:.2f} %)"]
        parts += [f"{what}: {', '.join(names)}" for what, names in told.items() if names]
        where = f"{_whose(best)}: over" if len({key[0] for key in groups}) > 1 else "Over"
        yield f"{where} {best.count} draws and new images, {'; '.join(parts)} (Holm over {counted(len(pairs), 'pair')})."


def _whose(variant: Repeat) -> str:
    """Which protocol or training a variant is of."""
    row = variant.part.iloc[0]
    return f"Protocol {row['protocol']}" if "protocol" in row else str(row["label"])


def _listed(values: pd.Series) -> str:
    return ", ".join(map(str, dict.fromkeys(values)))
