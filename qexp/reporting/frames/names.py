"""What the copies of an experiment are called where people read of all of them: by what tells them apart.

What all have in common is said once, in the caption of the table. `table.csv`, `pairs.csv` and `qexp.load` keep the whole labels:
their rows are put beside those of other experiments, of which other words are common.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import pandas as pd

from qexp.base.label import Label, common_words, draw_word
from qexp.reporting.frames.comparison import has_qat
from qexp.tracking.record import FLOAT_VARIANT

NAMING = ("variant", "without_draw", "a", "b")  # columns of frames that name copies


def shared_words(table: pd.DataFrame) -> tuple[str, ...]:
    """Words that the labels of all copies have: `first_last e8` of `W4A4/8 lsq first_last e8`.

    Copies in fp16 do not count where none of them has any words. None of a single copy, whatever its draws, unless it was
    trained: nothing is told from it.

    Args:
        table: rows with `named`, `variant` and `mode`.
    """
    copies = table[table["variant"] != FLOAT_VARIANT]
    counted = copies[copies["mode"] != "half"]
    if len(dict(_bare(counted if len(counted) else copies))) < 2 and not has_qat(table):
        return ()
    return common_words(copies["named"])


def short_names(table: pd.DataFrame) -> dict[str, str]:
    """Name of each copy -> its name without `shared_words`, of copies of other draws of calibration images without the draw too.

    Args:
        table: rows with `named`, `variant`, `mode` and, where draws differ, `draw`.
    """
    words = () if table.empty else shared_words(table)
    names = dict(zip(table["variant"], table["named"], strict=True)) | dict(_bare(table)) if words else {}
    return {text: label.without(words).text for text, label in names.items()}


def _bare(table: pd.DataFrame) -> Iterator[tuple[str, Label]]:
    """The labels but for draws of calibration images, with their texts."""
    draws = table["draw"] if "draw" in table else [0] * len(table)
    for label, draw in dict.fromkeys(zip(table["named"], draws, strict=True)):
        bare = label.without([draw_word(draw)])
        yield bare.text, bare


def renamed(frame: pd.DataFrame, names: Mapping[str, str]) -> pd.DataFrame:
    """A frame whose copies are called by other names; `named` stays, since it says what they are.

    Args:
        frame: with some of the columns `NAMING`.
        names: of `short_names`.
    """
    columns = [name for name in NAMING if name in frame] if names else []
    return frame.assign(**{name: [names.get(text, text) for text in frame[name]] for name in columns})
