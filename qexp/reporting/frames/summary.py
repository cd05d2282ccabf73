"""From tidy records to what a reader compares: one row per variant at its last epoch, and means over repeated seeds."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import replace
from types import MappingProxyType

import pandas as pd

from qexp.config.metrics import ALWAYS, METRICS, MetricInfo
from qexp.reporting.frames.comparison import LINEAGE, has_qat, one_start_each, points_against_control, training_order
from qexp.reporting.frames.jobs import STATES
from qexp.reporting.frames.protocol import ENGINE, UNTIL, planned_images
from qexp.reporting.frames.repeats import DRAWN, REPEATED, has_draws, repeats
from qexp.tracking.record import ADDED, COLUMNS, FLOAT_VARIANT

TABLE_COLUMNS = (
    "training", "label", "variant", "bits", "mode", "policy", "quant", "granularity", "input_quant", "seed", "epoch",
    *(row.name for row in ALWAYS), "n", "size_bytes", "split", "state", "alarms", "notes",
    "activation_bits", "activation_scheme", "ranges", "corrections", "calibration",
    "group", "data", "model", "planned_epochs", "plan_hash", "variant_key", "data_hash", "device", "world_size",
    "trained_by", "reused", "time_ms",
)  # fmt: skip
# Of `qexp.reporting.statistics.paired`, where they were computed.
PAIRED = ("ci_low", "ci_high", "p_value", "lost", "gained", "disagreement", "loss_bound", "p_loss", "p_equivalent")
# What is claimed of a table's rows together, of `qexp.reporting.statistics.verdict`.
CLAIMS = ("p_holm", "p_loss_holm", "non_inferior", "equivalent", "vs_best")
STATISTICS = ("prec1_low", "prec1_high", *PAIRED)
Family = tuple[str, ...]  # policy, quantizer, granularity, input
MODE_ORDER = {"int": 0, "float": 1, "half": 2}
MEASUREMENT = ["training", "variant_key", "split", "n"]
ACROSS = ("files", "compared_with")  # of rows of the same files, prepared in other ways
CONTROL = "control: the same map and clamp, no rounding"


def is_float(frame: pd.DataFrame) -> pd.Series:
    """True in the rows of the network as trained."""
    return frame["variant"] == FLOAT_VARIANT


def is_compared(frame: pd.DataFrame) -> pd.Series:
    """True in the rows that stand against a float network: copies, and float networks of images prepared in another way."""
    across = frame["compared_with"].notna() if "compared_with" in frame else False
    return ~is_float(frame) | across


def is_control(frame: pd.DataFrame) -> pd.Series:
    """True in the rows of variants that are quantized without rounding."""
    return (frame["mode"] == "float") & ~is_float(frame)


def columns_of_others() -> frozenset[str]:
    """Names that columns of tables and curves in MLflow have, and no metric of the user's own may have."""
    added = (
        "run",
        "num_epochs",
        "protocol",
        "widths",
        "vs_control",
        "is_last",
        "num_seeds",
        "versions",
        "trained_with",
        "num_draws",
        "images_sd",
        *DRAWN,
    )
    curves = ("train_loss", "train_prec1", "lr")
    return frozenset((*TABLE_COLUMNS, *COLUMNS, *ADDED, *STATISTICS, *CLAIMS, *LINEAGE, *ACROSS, *METRICS, *added, *curves))


def own_metrics(table: pd.DataFrame) -> list[MetricInfo]:
    """The user's own metrics of a table, of which it has no more than the names: whatever no other column is called."""
    names = [str(name) for name in table if name not in columns_of_others() and not str(name).startswith("param.")]
    return [replace(METRICS["prec1"], name=name, always=False) for name in names]


def widths_of(frame: pd.DataFrame) -> list[str]:
    """The width of each row's weights in words: `4`, or `3-6, mean 4.0` where layers have widths of their own."""
    own = frame["widths"] if "widths" in frame else [""] * len(frame)
    return [text or f"{bits:g}" for text, bits in zip(own, frame["bits"], strict=True)]


def summarize(
    records: pd.DataFrame,
    states: Mapping[tuple[str, str], str] = MappingProxyType({}),
    metrics: Sequence[MetricInfo] = ALWAYS,
) -> pd.DataFrame:
    """One row per variant at its last epoch; per training the float network first, then by family, falling bits and mode.

    `state` is that of the job that asks for the variant while it is not done; `partial` where no job is known and the training
    has later epochs. Variants that have the same plan, and hence the same numbers, are one row with a note, controls excepted.
    `alarms` are those of all epochs, and `named` holds the parts of `variant`. Beside quantization-aware trainings a float start
    is listed once, trainings stand in the order of `training_order`, and `vs_control` holds the points against the float control,
    where there is one.

    Args:
        records: what `load_records` returns.
        states: (training, variant_key) -> state of the jobs that are not done.
        metrics: of the records; those that not every evaluation has stand behind the others.
    """
    table = _last_rows(records)
    reached = records[is_float(records)].groupby("training")["epoch"].max()
    planned = table["planned_epochs"].astype("Float64").fillna(table["training"].map(reached).astype("Float64"))
    table.loc[(table["epoch"] < planned).fillna(False), "state"] = "partial"
    _set_states(table, states)
    gaps = (table["num_epochs"] < planned).fillna(False) & (table["state"] == "done")
    table["notes"] = [
        (*([CONTROL] if control else []), *([f"{count} of {int(total)} epochs"] if gap else []))
        for control, gap, count, total in zip(is_control(table), gaps, table["num_epochs"], planned.fillna(0), strict=True)
    ]
    if "computed_by" in table:  # under `auto`, what was done is no foregone conclusion
        table["notes"] = [
            (*notes, *([words] if words and engine == "auto" else []))
            for notes, words, engine in table[["notes", "computed_by", "engine"]].itertuples(index=False)
        ]
    if "decided" in table:
        table["notes"] = [
            (*notes, *([words] if words else [])) for notes, words in zip(table["notes"], table["decided"], strict=True)
        ]
    columns = list(TABLE_COLUMNS)
    before_n = columns.index("n")
    columns[before_n:before_n] = [row.name for row in metrics if row.name in table and row.name not in columns]
    if has_qat(table):
        table = one_start_each(table)
        table["vs_control"] = points_against_control(table, records)
        columns.insert(columns.index("delta_prec1") + 1, "vs_control")
        columns += LINEAGE
    if "widths" in table:
        columns.insert(columns.index("bits") + 1, "widths")
    columns += DRAWN if has_draws(table) else ()
    columns += [name for name in (*ENGINE, *UNTIL) if name in table]
    if "protocol" in table:
        columns.insert(0, "protocol")
    columns += [name for name in ACROSS if name in table]
    before_kl = columns.index("kl")
    columns[before_kl:before_kl] = [column for column in STATISTICS if column in table]
    table = _merge_equal(_in_order(table))
    params = [column for column in table.columns if column.startswith("param.")]
    return table[[*columns, *params, "named"]].reset_index(drop=True)


def _set_states(table: pd.DataFrame, states: Mapping[tuple[str, str], str]) -> None:
    """Say what became of rows that are not done; the float network waits for whichever job is the furthest."""
    of_training: dict[str, list[str]] = {}
    for (training, _), state in states.items():
        of_training.setdefault(training, []).append(state)
    now = []
    for training, key, variant, own in table[["training", "variant_key", "variant", "state"]].itertuples(index=False):
        state = states.get((training, key), own)
        if variant == FLOAT_VARIANT and state == "partial" and training in of_training:
            state = min(of_training[training], key=STATES.index)
        now.append(state)
    table["state"] = now


def seed_table(table: pd.DataFrame, metrics: Sequence[MetricInfo] = ALWAYS) -> pd.DataFrame:
    """Mean and standard deviation (ddof 1) over seeds of each variant that was trained with several, or over draws; may be empty.

    With draws `num_draws` counts them, and `images_sd` is the standard deviation of one accuracy over the choice of the n images
    that are scored, 100 sqrt(p (1 - p)/n) at the mean.

    Args:
        table: what `summarize` returns.
        metrics: of the table; those whose rows say so are averaged.
    """
    rows, averaged = [], [row.name for row in metrics if row.averaged and row.name in COLUMNS]
    averaged += ["vs_control"] if has_qat(table) and table["vs_control"].notna().any() else []
    asked_for = [row.name for row in metrics if row.averaged and row.name not in COLUMNS and row.name in table]
    averaged += asked_for
    for repeat in repeats(table):
        part, row = repeat.part, repeat.values | {"num_seeds": repeat.part["seed"].nunique()}
        if has_draws(table):
            mean = part["prec1"].mean() / 100
            row |= {"num_draws": repeat.count if repeat.over == "draws" else None}
            row |= {"images_sd": 100 * (mean * (1 - mean) / row["n"]) ** 0.5}
        for name in averaged:
            # A metric that was asked for of some seeds only has no mean over all of them.
            values = part[name] if name not in asked_for or part[name].notna().all() else part[name].head(0)
            row |= {f"{name}_mean": values.mean(), f"{name}_sd": values.std(ddof=1)}
        rows.append(row)
    columns = [f"{name}_{kind}" for name in averaged for kind in ("mean", "sd")]
    columns = [*(["num_draws", "images_sd"] if has_draws(table) else []), *columns]
    frame = pd.DataFrame(rows, columns=[*REPEATED, "num_seeds", *columns])
    return frame.astype({"num_draws": "Int64"}) if has_draws(table) else frame  # none where seeds were repeated


def _last_rows(records: pd.DataFrame) -> pd.DataFrame:
    """Each variant's row at its last epoch, in the order of the first ones, with the alarms of all."""
    measurements = records.groupby(MEASUREMENT, sort=False)
    last = records.loc[measurements["epoch"].idxmax()]
    counts = measurements.size().to_list()
    epochs: list[dict[str, list[int]]] = [{} for _ in counts]
    for number, epoch, alarms in zip(measurements.ngroup(), records["epoch"], records["alarms"], strict=True):
        for alarm in alarms:
            epochs[number].setdefault(alarm, []).append(epoch)
    told = [
        tuple(
            alarm if len(seen) == count else f"{alarm} (in {len(seen)} of {count} epochs, last in {max(seen)})"
            for alarm, seen in of_variant.items()
        )
        for of_variant, count in zip(epochs, counts, strict=True)
    ]
    # What all variants have at the end decides the type of a column.
    table = pd.DataFrame({name: pd.Series(last[name].to_list()) for name in last})
    return table.assign(alarms=told, num_epochs=counts)


def _in_order(table: pd.DataFrame) -> pd.DataFrame:
    """Trainings and families as they came; within a family falling bits, then int, its control, half."""
    keys = family_keys(table)
    families = {key: number for number, key in enumerate(dict.fromkeys(keys))}
    for key in {key for key, mode in zip(keys, table["mode"], strict=True) if mode == "half"}:
        # Without a quantizer it stands beside the first family of the same policy and input.
        families[key] = min(number for other, number in families.items() if (other[0], other[3]) == (key[0], key[3]))
    ranks = training_order(table) if has_qat(table) else table["training"]
    trainings = {rank: number for number, rank in enumerate(sorted(set(ranks)) if has_qat(table) else dict.fromkeys(ranks))}
    order = pd.DataFrame(
        {
            "training": ranks.map(trainings),
            "split": table["split"] + planned_images(table).astype(str),
            "quantized": ~is_float(table),
            "family": [families[key] for key in keys],
            "bits": -table["bits"],
            "mode": table["mode"].map(MODE_ORDER).fillna(len(MODE_ORDER)),
        }
    )
    return table.loc[order.sort_values(list(order.columns), kind="stable").index]


def family_keys(frame: pd.DataFrame) -> list[Family]:
    """What a variant is apart from bits and mode: policy, quantizer, granularity, input; `half` has no quantizer."""
    return list(zip(frame["policy"], frame["quant"], frame["granularity"], frame["input_quant"], strict=True))


def _merge_equal(table: pd.DataFrame) -> pd.DataFrame:
    """One row for variants with the same plan, numbers and alarms; float networks and controls stay as they are."""
    kept: dict[tuple[Hashable, ...], Hashable] = {}
    others: dict[Hashable, list[str]] = {}
    free = is_float(table) | is_control(table)
    # A draw that happens to give another variant's numbers is one of its variant's draws all the same.
    drawn = [name for name in ("draw", "without_draw", "engine", "until") if name in table]
    parts = table[["training", "split", "n", "epoch", "plan_hash", "prec1", "prec5", "loss", "alarms", *drawn]]
    for index, variant, row in zip(table.index, table["variant"], parts.itertuples(index=False, name=None), strict=True):
        key = (*map(repr, row), index if free[index] else None)  # as texts, since a loss that is no number is unlike itself
        if key in kept:
            others.setdefault(kept[key], []).append(variant)
        else:
            kept[key] = index
    for index, variants in others.items():
        table.at[index, "notes"] = (*table.at[index, "notes"], f"same plan: {', '.join(dict.fromkeys(variants))}")
    return table.loc[list(kept.values())]
