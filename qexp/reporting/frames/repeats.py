"""Which rows of a table repeat one another: trainings with other seeds, copies with other calibration images.

Draws are repeats within a training, seeds are repeats of it. Where both vary the spread over draws is that of each training by
itself: one deviation over seeds and draws together would mean neither.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator
from dataclasses import dataclass

import pandas as pd

from qexp.base.label import draw_word
from qexp.config.correct import CORRECTIONS
from qexp.tracking.record import FLOAT_VARIANT

REPEATED = ["group", "variant", "bits", "mode", "policy", "quant", "granularity", "input_quant", "split", "n", "epoch"]
DRAWN = ("draw", "without_draw")  # columns of a table in which some row has another draw than the first
_IMAGES = {row.name for row in CORRECTIONS.values() if row.needs_images}


@dataclass(frozen=True)
class Repeat:
    """One variant that was repeated.

    Args:
        values: `REPEATED`, the variant without its draw.
        part: the rows, those of draws in their order.
        over: what differs, `seeds` or `draws`.
        count: of different ones.
    """

    values: dict[str, Hashable]
    part: pd.DataFrame
    over: str
    count: int

    @property
    def is_float(self) -> bool:
        """True of the network as trained."""
        return self.values["variant"] == FLOAT_VARIANT


def with_draws(frame: pd.DataFrame) -> pd.DataFrame:
    """Records with `without_draw`, the variant's name but for its draw; without `draw` where there is only the first.

    Args:
        frame: records with `draw` and `named`.
    """
    if not frame["draw"].any():
        return frame.drop(columns="draw")
    names = [named.without([draw_word(draw)]).text for named, draw in zip(frame["named"], frame["draw"], strict=True)]
    return frame.assign(without_draw=names)


def has_draws(frame: pd.DataFrame) -> bool:
    """True where some row has another draw than the first."""
    return set(DRAWN) <= set(frame.columns)


def is_further_draw(table: pd.DataFrame) -> pd.Series:
    """True in all rows of a variant with several draws but that of the first.

    Tests of images are of one network each, and the first draw's stands for its variant: twenty copies that are meant to be one
    would be twenty times in a family of tests.
    """
    further = pd.Series(False, index=table.index)
    for repeat in repeats(table) if has_draws(table) else ():
        if repeat.over == "draws":
            further.loc[repeat.part.index[1:]] = True
    return further


def repeats(table: pd.DataFrame) -> Iterator[Repeat]:
    """The repeated variants of a table, in its order: with several draws within a training, else with several seeds.

    Args:
        table: of `summarize`.
    """
    if not has_draws(table) and table["seed"].nunique() < 2:  # so none; groups are slow to take apart
        return iter(())
    return (variant for variant in variants(table) if variant.count > 1)


def variants(table: pd.DataFrame) -> Iterator[Repeat]:
    """All variants of a table in its order, those that were not repeated with a count of 1.

    Args:
        table: of `summarize`.
    """
    drawn: list[tuple[int, Repeat]] = []
    rest = table
    if has_draws(table):
        keys = [name for name in REPEATED if name not in ("group", "variant")]
        for _, part in table.groupby(["training", "without_draw", *keys], sort=False, dropna=False):
            if part["draw"].nunique() > 1:
                values = part.iloc[0][REPEATED].to_dict() | {
                    "group": part["label"].iloc[0],
                    "variant": part["without_draw"].iloc[0],
                }
                ordered = part.sort_values("draw", kind="stable")
                place = table.index.get_loc(part.index[0])
                drawn.append((place, Repeat(values, ordered, "draws", part["draw"].nunique())))
        rest = table.drop(index=[index for _, repeat in drawn for index in repeat.part.index])
    groups = rest.groupby(REPEATED, sort=False, dropna=False)
    seeded = [
        (table.index.get_loc(part.index[0]), Repeat(dict(zip(REPEATED, values, strict=True)), part, "seeds", count))
        for (values, part), count in zip(groups, groups["seed"].nunique().to_list(), strict=True)
    ]
    both = sorted([*drawn, *seeded], key=lambda pair: pair[0]) if drawn else seeded
    return (repeat for _, repeat in both)


def without_draws(table: pd.DataFrame) -> pd.DataFrame:
    """The table with variants named without their draw."""
    if not has_draws(table):
        return table
    named = [label.without([draw_word(draw)]) for label, draw in zip(table["named"], table["draw"], strict=True)]
    return table.assign(variant=table["without_draw"], named=named)


def one_of_each(table: pd.DataFrame) -> pd.DataFrame:
    """Of several draws the first one's row, with a note; the others are in `table.csv`.

    Args:
        table: of `summarize`.
    """
    if not has_draws(table):
        return table
    notes = table["notes"].copy()
    for repeat in repeats(table):
        if repeat.over == "draws":
            first = repeat.part.index[0]
            notes.at[first] = (*notes.at[first], f"the first of {repeat.count} draws of calibration images")
    return table.assign(notes=notes)[~is_further_draw(table)]


def over_draws(table: pd.DataFrame) -> pd.DataFrame:
    """One row for each variant: of several draws the mean of `prec1`, and `draws_sd`, its sample standard deviation.

    Args:
        table: of `summarize`.
    """
    if not has_draws(table):
        return table
    mean, sd = table["prec1"].copy(), pd.Series(float("nan"), index=table.index)
    for repeat in repeats(table):
        if repeat.over == "draws":
            mean.loc[repeat.part.index] = repeat.part["prec1"].mean()
            sd.loc[repeat.part.index] = repeat.part["prec1"].std(ddof=1)
    return without_draws(table.assign(prec1=mean, draws_sd=sd))[~is_further_draw(table)]


def learned_from_images(table: pd.DataFrame) -> pd.Series:
    """True in the rows of copies whose ranges or corrections come from calibration images.

    Args:
        table: rows with `named`.
    """
    words = [bool(_IMAGES & {*named.words}) for named in table["named"]]
    ranges = table["calibration"].notna() if "calibration" in table else False
    return pd.Series(words, index=table.index) | ranges
