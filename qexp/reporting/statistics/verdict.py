"""Which differences of a table are real, in words and in two of its columns."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from qexp.config.metrics import ALWAYS, MetricInfo
from qexp.reporting.frames.predictions import Predictions, StoredPredictions, float_keys, keys_of, measurement_of
from qexp.reporting.frames.summary import is_control, is_float, seed_table
from qexp.reporting.statistics.paired import ALPHA, all_pairs, comparable, holm, is_tested, row_names, seed_intervals
from qexp.stats.family import MAX_NAMES, Standing, in_words, indistinguishable_from_best
from qexp.stats.noninferiority import MARGIN
from qexp.stats.paired import minimum_detectable_effect
from qexp.tracking.record import FLOAT_VARIANT

BEST, ALIKE, WORSE = "best", "=", "worse"
EXPLAINED = (
    "*95 % CI*: paired bootstrap interval of delta, over images; without flips it is the point 0, however few images there "
    "are. *p*: exact McNemar test against the float network, adjusted by Holm over the table; a large one is no proof of "
    "equality. *flips*: images that only the float network gets right, and only this one. *differ %*: predictions that are "
    f"not the float network's. *no loss*: a loss of {MARGIN:g} points or more is excluded at 95 % (one-sided score test). *vs "
    "best*: `=` cannot be told from the most accurate row (exact McNemar, Holm over all pairs). Controls are in no family of "
    "tests. `pairs.csv` compares any two rows, with score intervals; KL and SQNR of two of them would need logits, which are "
    "not kept. All of it is about new images for these trained networks, not new seeds."
)


@dataclass(frozen=True)
class Verdict:
    """A table with the columns `p_holm` and `vs_best`, and sentences about it.

    Args:
        table: of `summarize`.
        sentences: what can be told from what.
        gaps: rows without statistics, and why.
        early: of `best_epoch_rows`.
        pairs: of `pairs_of`.
        seeds: of `seed_table`, with `seed_intervals`.
        digest: of the predictions beside the table; empty where there are none.
        protocols: sentences about the protocols of the rows; empty where there is one.
        metrics: that the table has.
    """

    table: pd.DataFrame
    sentences: tuple[str, ...]
    gaps: tuple[str, ...]
    early: pd.DataFrame
    pairs: pd.DataFrame
    seeds: pd.DataFrame
    digest: str = ""
    protocols: tuple[str, ...] = ()
    metrics: tuple[MetricInfo, ...] = ALWAYS


def compare_variants(
    table: pd.DataFrame, records: pd.DataFrame, stored: StoredPredictions, metrics: Sequence[MetricInfo] = ALWAYS
) -> Verdict:
    """Say which rows of a table differ.

    Args:
        table: of `summarize`, from records `with_statistics`.
        records: of all epochs.
        stored: of `load_predictions`.
        metrics: that the table has.
    """
    best, sentences = against_best(table, stored)
    against, groups = list(_against_float(table)), list(comparable(table, stored))
    power = [_power(part) for part, _ in groups]
    early = best_epoch_rows(records, table)
    seeds = pd.concat([seed_table(table, metrics), seed_intervals(table, stored, float_keys(records))], axis=1)
    return Verdict(
        table=_with_column(_with_column(table, "p_holm", holm(table), "p_value"), "vs_best", best, "non_inferior"),
        sentences=(*against, *sentences, *dict.fromkeys(text for text in power if text)),
        gaps=tuple(_gaps(table, stored)),
        early=early,
        pairs=pairs_of(table, early, stored),
        seeds=seeds,
        metrics=tuple(metrics),
    )


def pairs_of(table: pd.DataFrame, early: pd.DataFrame, stored: StoredPredictions) -> pd.DataFrame:
    """`all_pairs` of the last epoch and of the float network's best."""
    parts = [frame for frame in (all_pairs(table, stored), all_pairs(early, stored)) if not frame.empty]
    return pd.concat(parts, ignore_index=True) if parts else all_pairs(table.head(0), stored)


def against_best(table: pd.DataFrame, stored: StoredPredictions) -> tuple[pd.Series, list[str]]:
    """Each row's cell of `vs_best`, and a sentence for each set of images."""
    cells, sentences = pd.Series("", index=table.index), []
    groups = list(comparable(table, stored))
    for part, predictions in groups:
        counted = [position for position, control in enumerate(is_control(part)) if not control]
        if len(counted) > 1:
            part, predictions = part.iloc[counted], [predictions[position] for position in counted]
            column, words = _against_best(part, predictions, table)
            sentences.append((f"{_measured_on(part)}: " if len(groups) > 1 else "") + words)
            cells.loc[column.index] = column
    return cells, sentences


def _with_column(table: pd.DataFrame, name: str, values: pd.Series, after: str) -> pd.DataFrame:
    """The table with a column behind another."""
    table = table.copy()
    table.insert(table.columns.get_loc(after) + 1, name, values)
    return table


def best_epoch_rows(records: pd.DataFrame, table: pd.DataFrame) -> pd.DataFrame:
    """The records of a table's rows at the epoch at which the training's float network was best, where that is not its last.

    One epoch for all of a training: of other weights each, its variants would differ by more than their quantization.
    """
    columns, last = ["training", "split", "n"], table.groupby("training")["epoch"].max()
    floats = records[records["variant"] == FLOAT_VARIANT]
    chosen = floats.loc[floats.groupby(columns, sort=False)["prec1"].idxmax()] if len(floats) else floats
    epochs = {tuple(key): epoch for *key, epoch in chosen[[*columns, "epoch"]].itertuples(index=False)}
    listed = {(key[0], key[1], *key[3:]) for key in keys_of(table)}
    kept = [
        (key[0], key[1], *key[3:]) in listed and key[2] == epochs.get((key[0], *key[3:])) and key[2] < last[key[0]]
        for key in keys_of(records)
    ]
    return records[kept]


def _against_float(table: pd.DataFrame) -> Iterator[str]:
    """Sentences about the float networks: one where there is a single one, else all trainings in one."""
    tested = table[is_tested(table) & table["p_value"].notna()]
    if tested.empty:
        return
    adjusted, names = holm(table), dict(zip(table.index, row_names(table), strict=True))
    floats = table[is_float(table)]
    if tested["training"].nunique() == 1 and len(floats) and len(tested[["split", "n"]].drop_duplicates()) == 1:
        reference = floats[floats["training"] == tested["training"].iloc[0]].head(1)
        if len(reference):
            name = names[reference.index[0]]
            yield in_words(
                Standing(
                    reference=name,
                    is_best=False,
                    n=int(tested["n"].iloc[0]),
                    alpha=ALPHA,
                    num_tests=len(tested),
                    accuracy={name: reference["prec1"].iloc[0]}
                    | {names[index]: tested.at[index, "prec1"] for index in tested.index},
                    p_values={names[index]: float(adjusted[index]) for index in tested.index},
                )
            )
            yield from _no_loss(tested, names)
            return
    same = adjusted[tested.index] > ALPHA
    texts = [(tested.at[index, "delta_prec1"], names[index], same[index]) for index in tested.index]
    alike, different = ([text for text in texts if text[2] == flag] for flag in (True, False))
    images = ", ".join(map(str, dict.fromkeys(tested["n"])))
    parts = [f"{len(alike)} of {len(texts)} cannot be told from their float network" + _listed(alike)]
    parts += [f"different: {_listed(different)[2:]}"] if different else []
    yield f"{'; '.join(parts)} (n = {images}, exact McNemar, Holm over {len(texts)} tests, alpha {ALPHA:g})."
    yield from _no_loss(tested, names)


def _no_loss(tested: pd.DataFrame, names: dict[int, str]) -> Iterator[str]:
    """What is shown to lose less than the margin."""
    holds = tested[tested["non_inferior"].eq(True)].sort_values("loss_bound", kind="stable")
    bounds = [f"{names[index]} (at most {max(holds.at[index, 'loss_bound'], 0.0):.2f})" for index in holds.index]
    what = f"{len(bounds)} of {len(tested)} are shown to lose less than {MARGIN:g} points"
    yield f"{what}{': ' if bounds else ''}{_first_few(bounds)} (one-sided score test, 95 %)."


def _against_best(part: pd.DataFrame, predictions: Sequence[Predictions], table: pd.DataFrame) -> tuple[pd.Series, str]:
    """Each row's cell, and the sentence."""
    named = dict(zip(table.index, row_names(table), strict=True))
    names = [named[index] for index in part.index]
    correct = dict(zip(names, (network.right for network in predictions), strict=True))
    standing = indistinguishable_from_best(correct, alpha=ALPHA)
    cells = (
        {standing.reference: BEST} | dict.fromkeys(standing.indistinguishable, ALIKE) | dict.fromkeys(standing.different, WORSE)
    )
    return pd.Series([cells[name] for name in names], index=part.index), in_words(standing)


def _power(part: pd.DataFrame) -> str:
    """What these images can show."""
    tested = part[is_tested(part) & part["p_value"].notna()]
    flips = (tested["lost"] + tested["gained"]).astype(float) / tested["n"] * 100
    flips = flips[flips > 0]
    if flips.empty:
        return ""
    n, middle = int(part["n"].iloc[0]), float(np.median(flips))
    effect = minimum_detectable_effect(middle, n)
    flipping = f"{middle:.2g} % of them flip (the median here)"
    return f"{n} images show a difference of {effect:.2f} points in 4 of 5 repetitions where {flipping}."


def _gaps(table: pd.DataFrame, stored: StoredPredictions) -> Iterator[str]:
    """Rows that have no statistics, one sentence per reason."""
    reasons: dict[str, list[str]] = {}
    for name, key, tested, value in zip(
        row_names(table), keys_of(table), ~is_float(table), table["p_value"].notna(), strict=True
    ):
        if tested and not value:
            missing = stored.missing
            reference = next((other for other in missing if measurement_of(other) == measurement_of(key)), key)
            reason = missing.get(key) or missing.get(reference) or "its float network was not scored on the same images"
            reasons.setdefault(reason, []).append(name)
    for reason, names in reasons.items():
        if len(names) == int((~is_float(table)).sum()):
            yield f"No statistics: {reason}."
        else:
            yield f"No statistics for {_first_few(names)}: {reason}."


def _measured_on(part: pd.DataFrame) -> str:
    """Data, split and protocol of rows that share them."""
    row = part.iloc[0]
    return f"{row['data']}, {row['split']}" + (f", protocol {row['protocol']}" if "protocol" in part else "")


def _listed(texts: Iterable[tuple[float, str, bool]]) -> str:
    words = [f"{name} ({delta:+.2f})" for delta, name, _ in sorted(texts, key=lambda text: -text[0])]
    return f": {_first_few(words)}" if words else ""


def _first_few(texts: Sequence[str]) -> str:
    """The first texts of a sentence, and how many more there are."""
    rest = f" and {len(texts) - MAX_NAMES} more" if len(texts) > MAX_NAMES else ""
    return ", ".join(texts[:MAX_NAMES]) + rest
