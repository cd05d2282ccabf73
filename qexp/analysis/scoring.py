"""Networks that an analysis chose, scored as `qexp.evaluate` does it: with records, table and MLflow runs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, replace
from functools import partial
from typing import NamedTuple

from qexp.config.root import Config
from qexp.engine import predictions
from qexp.experiment.job import Prepared
from qexp.experiment.prepare import Preparer
from qexp.stats.paired import Paired, compare
from qexp.sweep.group import Resources
from qexp.sweep.jobs import JobLog, ask_for
from qexp.sweep.launchers import run_in_turn
from qexp.sweep.run import run_sweep
from qexp.tracking.journal import Journal
from qexp.tracking.record import MEASURED, Sweep, outcomes_of


class Scored(NamedTuple):
    """What is stored of an evaluation; `predictions` is a file in the checkpoint's folder, None where none is kept."""

    label: str
    key: str
    prec1: float
    predictions: str | None
    alarms: tuple[str, ...] = ()


def score(configs: Sequence[Config], sweep: Sweep, preparer: Preparer) -> Prepared:
    """Score the networks of jobs of `qexp.evaluate` on one checkpoint; what is stored is not done again.

    Args:
        configs: jobs without a task.
        sweep: of the analysis.
        preparer: makes jobs ready.

    Raises:
        JobsFailed: they could not be scored.
    """
    asked = ask_for([{key: value for key, value in asdict(job).items() if key != "analyze"} for job in configs])
    with Resources(preparer=preparer) as resources:
        log = JobLog(asked, replace(sweep, verb="evaluate"))
        (prepared,) = run_sweep(configs, log, resources, partial(run_in_turn, resources=resources))
    return prepared


def scored(prepared: Prepared, config: Config | None = None) -> Scored:
    """What is stored of the variant that a job asks for, by the name that it has here.

    Args:
        prepared: of `score`.
        config: the job; None is the float network.
    """
    key = prepared.variants[0].key if config is None else prepared.variants_of([config])[-1].key
    row = list(Journal(prepared.folder / "variants" / f"{key}.jsonl", needs=MEASURED).rows())[-1]
    variant = next(variant for variant in prepared.variants if variant.key == key)
    return Scored(
        variant.after(outcomes_of(row)).label, row["variant_key"], row["prec1"], row["predictions"], tuple(row["alarms"])
    )


def compare_scored(prepared: Prepared, reference: Scored, other: Scored) -> Paired:
    """Two networks whose predictions are kept, image by image.

    Args:
        prepared: of `score`.
        reference: A of the comparison.
        other: B.
    """
    assert reference.predictions and other.predictions, "both are kept"
    a, b = (predictions.load(prepared.folder / file) for file in (reference.predictions, other.predictions))
    return compare(
        a.right.numpy(),
        b.right.numpy(),
        index_a=a.index.numpy(),
        index_b=b.index.numpy(),
        classes_a=a.top5[:, 0].numpy(),
        classes_b=b.top5[:, 0].numpy(),
    )
