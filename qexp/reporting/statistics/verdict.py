"""Which differences of a table are real, in words and in some of its columns."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import pandas as pd

from qexp.base.text import counted
from qexp.config.metrics import ALWAYS, MetricInfo
from qexp.reporting.frames.names import renamed, short_names
from qexp.reporting.frames.predictions import StoredPredictions, keys_of, measurement_of
from qexp.reporting.frames.summary import CLAIMS, is_compared, is_float, seed_table
from qexp.reporting.statistics.draws import draw_pairs, draw_sentences, first_few, over_repeats
from qexp.reporting.statistics.paired import ALPHA, comparable, is_tested, row_names, seed_intervals
from qexp.reporting.statistics.pairs import ALIKE, BEST, PLANNED, WORSE, Comparisons, compare_rows
from qexp.reporting.statistics.power import power_sentences
from qexp.stats.family import adjust
from qexp.stats.noninferiority import MARGIN
from qexp.tracking.record import FLOAT_VARIANT

EXPLAINED = (
    "*95 % CI*: score interval of the difference from the float network, over images, of each row by itself: not adjusted; "
    "`pairs.csv` has the same. *Holm-adjusted p*: exact McNemar test against the float network. All pairs of rows are one "
    f"family: Holm begins with {100 * PLANNED:g} % of the error for comparisons with a float network and the rest for the "
    f"others, and all claims of a difference together err in at most {100 * ALPHA:g} % of repetitions; a large p is no proof of "
    "equality. "
    "*flips*: images that only the float network gets right, and only this one. *differ %*: predictions that are not the "
    f"float network's. *no loss*: `yes` where a loss of {MARGIN:g} points or more is excluded, `equivalent` where a gain of "
    "that size is, too (one-sided score tests, each claim with Holm over all rows that are tested against a float network). "
    f"*vs best*: `{WORSE}` is shown to be less accurate than some row; what is *not significant* is not shown to be worse than "
    "any. Controls are in no family of tests. A quantization-aware network is tested against its float control after "
    "the same epoch, where there is one. KL and SQNR of two rows would need logits, which are not kept. All of it is about new "
    "images for these trained networks, not new seeds."
)


@dataclass(frozen=True)
class Verdict:
    """A table with the columns `CLAIMS`, and sentences about it.

    Args:
        table: of `summarize`.
        sentences: what can be told from what.
        gaps: rows without statistics, and why.
        early: of `best_epoch_rows`.
        pairs: of `pairs_of`.
        seeds: of `seed_table`, with `seed_intervals`.
        draws: of `draw_pairs`.
        digest: of the predictions beside the table; empty where there are none.
        protocols: sentences about the protocols of the rows; empty where there is one.
        at_chance: sentences about float networks that know nothing of the images.
        metrics: that the table has.
    """

    table: pd.DataFrame
    sentences: tuple[str, ...]
    gaps: tuple[str, ...]
    early: pd.DataFrame
    pairs: pd.DataFrame
    seeds: pd.DataFrame
    draws: pd.DataFrame
    digest: str = ""
    protocols: tuple[str, ...] = ()
    at_chance: tuple[str, ...] = ()
    metrics: tuple[MetricInfo, ...] = ALWAYS

    @property
    def warnings(self) -> tuple[str, ...]:
        """What is to be read before any number."""
        return (*self.protocols, *self.at_chance)


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
    early, rows = best_epoch_rows(records, table), compare_rows(table, stored)
    seeds = pd.concat([seed_table(table, metrics), seed_intervals(table, stored)], axis=1)
    claimed = with_claims(table, rows)
    groups = [part.index for part, _ in comparable(table, stored)]
    draws, names = draw_pairs(table, stored), short_names(table)
    read, read_seeds = renamed(claimed, names), renamed(seeds, names)
    sentences = [
        *over_repeats(read_seeds, read),
        *draw_sentences(read, read_seeds, renamed(draws, names)),
        *_against_float(read, rows),
        *_no_loss(read),
    ]
    sentences += [*_against_best(read, groups), *power_sentences(read, groups, rows)]
    return Verdict(
        table=claimed,
        sentences=tuple(sentences),
        gaps=tuple(_gaps(renamed(table, names), stored)),
        early=early,
        pairs=_pairs(rows, early, stored),
        seeds=seeds,
        draws=draws,
        metrics=tuple(metrics),
    )


def pairs_of(table: pd.DataFrame, early: pd.DataFrame, stored: StoredPredictions) -> pd.DataFrame:
    """All pairs of the last epoch and of the float network's best, each a family of its own."""
    return _pairs(compare_rows(table, stored), early, stored)


def _pairs(rows: Comparisons, early: pd.DataFrame, stored: StoredPredictions) -> pd.DataFrame:
    parts = [frame for frame in (rows.pairs, compare_rows(early, stored).pairs) if not frame.empty]
    return pd.concat(parts, ignore_index=True) if parts else rows.pairs


def with_claims(table: pd.DataFrame, rows: Comparisons) -> pd.DataFrame:
    """The table with the columns `CLAIMS`.

    `p_holm`, `vs_best`: of `compare_rows`. `p_loss_holm`: `p_loss` adjusted over all tested rows; `non_inferior`: it is at most
    `ALPHA`; `equivalent`: so is `p_equivalent`, adjusted in the same way.

    Args:
        table: rows `with_statistics`.
        rows: of `compare_rows`.
    """
    tested = table[is_tested(table) & table["p_value"].notna()]
    adjusted = {name: _adjusted(tested[name]).reindex(table.index) for name in ("p_loss", "p_equivalent")}
    told = table.index.isin(tested.index)
    columns = {
        "p_holm": rows.p_holm,
        "p_loss_holm": adjusted["p_loss"],
        "non_inferior": adjusted["p_loss"].le(ALPHA).astype(object).where(told),
        "equivalent": adjusted["p_equivalent"].le(ALPHA).astype(object).where(told),
        "vs_best": rows.vs_best,
    }
    table = table.drop(columns=list(CLAIMS), errors="ignore")
    behind = table.columns.get_loc("p_equivalent")
    return pd.concat([table.iloc[:, : behind + 1], pd.DataFrame(columns), table.iloc[:, behind + 1 :]], axis=1)


def _adjusted(values: pd.Series) -> pd.Series:
    adjusted = adjust({str(index): float(value) for index, value in values.items()})
    return pd.Series({index: adjusted[str(index)] for index in values.index}, dtype=float)


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


def _against_float(table: pd.DataFrame, rows: Comparisons) -> Iterator[str]:
    """One sentence about the comparisons with float networks."""
    tested = table[is_tested(table) & table["p_value"].notna()]
    if tested.empty:
        return
    names, floats = dict(zip(table.index, row_names(table), strict=True)), table[is_float(table)]
    reference = "their float network"
    if tested["training"].nunique() == 1 and len(tested[["split", "n"]].drop_duplicates()) == 1:
        own = floats[floats["training"] == tested["training"].iloc[0]].head(1)
        reference = f"{names[own.index[0]]} ({own['prec1'].iloc[0]:.2f} %)" if len(own) else reference
    texts = [(points, names[index], p_value) for index, points, p_value in zip(
        tested.index, 100 * (tested["gained"] - tested["lost"]) / tested["n"], tested["p_holm"], strict=True)]  # fmt: skip
    alike, different = [text for text in texts if text[2] > ALPHA], [text for text in texts if text[2] <= ALPHA]
    images = ", ".join(map(str, dict.fromkeys(tested["n"])))
    if different:
        parts = [f"{_of(len(different), len(texts))} shown to differ from {reference}{_listed(different)}"]
        parts += [f"not significantly different: {_listed(alike)[2:]}"] if alike else []
    else:
        parts = [f"No difference from {reference} is shown{_listed(alike)}"]
    yield f"{'; '.join(parts)} (n = {images}, exact McNemar, {_family(rows)}: significant is an adjusted p of at most {ALPHA:g})."
    alone = tested[(tested["p_holm"] > ALPHA) & ((tested["ci_low"] > 0) | (tested["ci_high"] < 0))]
    if len(alone):
        listed = first_few([names[index] for index in alone.index])
        yield f"By itself the interval of {listed} leaves zero out; among so many comparisons that is not significant."


def _of(part: int, whole: int, what: str = "") -> str:
    """`1 of 3 is`, `2 of 3 others are`."""
    return f"{part} of {whole}{what} {'is' if part == 1 else 'are'}"


def _family(rows: Comparisons) -> str:
    """What Holm's correction is over."""
    total = rows.num_tests
    return f"Holm over {counted(total, 'comparison')}" if total == rows.num_planned else f"Holm over all {total} pairs of rows"


def _no_loss(table: pd.DataFrame) -> Iterator[str]:
    """What is shown to lose less than the margin, and what to differ by less."""
    tested = table[is_tested(table) & table["p_value"].notna()]
    if tested.empty:
        return
    names = dict(zip(table.index, row_names(table), strict=True))
    count, how = len(tested), f"Holm over {len(tested)} test{'s' * (len(tested) > 1)}, alpha {ALPHA:g}"
    tests = {"non_inferior": ("p_loss", "shown to lose less than", f"one-sided score test, {how}")}
    tests["equivalent"] = ("p_equivalent", "equivalent within", f"two one-sided score tests, {how}")
    for column, (by, what, told) in tests.items():
        holds = tested[tested[column].eq(True)].sort_values(by, kind="stable")
        if len(holds) or column == "non_inferior":
            listed = f": {first_few([names[index] for index in holds.index])}" if len(holds) else ""
            yield f"{_of(len(holds), count)} {what} {MARGIN:g} points{listed} ({told})."


def _against_best(table: pd.DataFrame, groups: Sequence[pd.Index]) -> Iterator[str]:
    """A sentence for each set of images: which row is the best, and which are not shown to be worse."""
    names = dict(zip(table.index, row_names(table), strict=True))
    for index in groups:
        part = table.loc[index]
        best = part[part["vs_best"] == BEST]
        if best.empty:
            continue
        top = float(best["prec1"].iloc[0])
        if len(groups) == 1 and is_float(best).iloc[0] and _as_against_float(part):
            yield f"No row is better than {names[best.index[0]]}: what holds against it holds against the best."
            continue
        cells = {
            cell: [(row["prec1"] - top, names[place], 0.0) for place, row in part[part["vs_best"] == cell].iterrows()]
            for cell in (ALIKE, WORSE)
        }
        where = f"{_measured_on(part)}: " if len(groups) > 1 else ""
        # A row that is worse than another one may be no worse than the best by these images, so none are counted as alike to it.
        counts = f"{_of(len(cells[WORSE]), len(cells[ALIKE]) + len(cells[WORSE]), ' others')} shown to be worse than some row"
        parts = [f"The best is {names[best.index[0]]} ({top:.2f} %); {counts}{_listed(cells[WORSE])}"]
        parts += [f"not shown to be worse than any: {_listed(cells[ALIKE])[2:]}"] if cells[ALIKE] else []
        yield f"{where}{'; '.join(parts)} (the same family)."


def _as_against_float(part: pd.DataFrame) -> bool:
    """True where the rows not shown to be worse than some row are those not separated from their float network."""
    others = part[part["vs_best"].isin((ALIKE, WORSE))]
    return bool((others["p_holm"].notna() & (others["vs_best"].eq(ALIKE) == others["p_holm"].gt(ALPHA))).all())


def _gaps(table: pd.DataFrame, stored: StoredPredictions) -> Iterator[str]:
    """Rows that have no statistics, one sentence per reason."""
    reasons: dict[str, list[str]] = {}
    for name, key, tested, value in zip(
        row_names(table), keys_of(table), is_compared(table), table["p_value"].notna(), strict=True
    ):
        if tested and not value:
            missing = stored.missing
            reference = next((other for other in missing if measurement_of(other) == measurement_of(key)), key)
            reason = (
                missing.get(key) or missing.get(reference) or "its float network, or control, was not scored on the same images"
            )
            reasons.setdefault(reason, []).append(name)
    for reason, names in reasons.items():
        if len(names) == int(is_compared(table).sum()):
            yield f"No statistics: {reason}."
        else:
            yield f"No statistics for {first_few(names)}: {reason}."


def _measured_on(part: pd.DataFrame) -> str:
    """Data, split and protocol of rows that share them."""
    row = part.iloc[0]
    return f"{row['data']}, {row['split']}" + (f", protocol {row['protocol']}" if "protocol" in part else "")


def _listed(texts: Iterable[tuple[float, str, float]]) -> str:
    words = [f"{name} ({delta:+.2f})" for delta, name, _ in sorted(texts, key=lambda text: -text[0])]
    return f": {first_few(words)}" if words else ""
