"""`hydra/sweeper=optuna`: some of the combinations of the swept values, chosen as numbers come in.

Each trial is a job like any other: planned, stored by content, in journal, tables and MLflow. The study lies in
`<runs_dir>/optuna.db`, so that the same command goes on where it stopped; a trial whose numbers are stored costs nothing.
"""

from __future__ import annotations

import contextlib
import csv
import io
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from filelock import FileLock, Timeout

from qexp.base.console import print_main, print_result, speaking
from qexp.base.errors import JobsFailed, UserError
from qexp.base.files import hash_json, write_text_atomic
from qexp.base.progress import track
from qexp.config.root import Config
from qexp.experiment.prepare import with_preprocessing
from qexp.sweep.check import check
from qexp.sweep.check_read import check_read
from qexp.sweep.group import Resources
from qexp.sweep.jobs import JobLog, ask_for
from qexp.sweep.ranks import Ranks
from qexp.sweep.run import Launch, launching, report, run_command, run_sweep
from qexp.sweep.types import Composed, Pick, Search
from qexp.tracking.journal import Journal
from qexp.tracking.record import Sweep
from qexp.tracking.repeats import rows_of_jobs
from qexp.tracking.rows import Row

if TYPE_CHECKING:
    from optuna import Study
    from optuna.trial import FrozenTrial, Trial

_KEPT = ("variant", "training", "variant_key", "n", "split", "epoch")  # of an evaluation, beside the objectives


def run_search(composed: Composed, sweep: Sweep, typed: Mapping[str, str], ranks: Ranks) -> None:
    """Try copies until `hydra.sweeper.trials` have numbers, then report, and list those that no other beats.

    Args:
        composed: with its `search`.
        sweep: of the command.
        typed: settings that were typed, as typed.
        ranks: that run a job together.

    Raises:
        UserErrors, UserError: some value of some key is wrong, alone; nothing was started.
        JobsFailed: some trials failed; the others are done and reported.
    """
    search = composed.search
    assert search is not None, "else the sweep is run"
    log = JobLog(ask_for(composed.jobs), sweep)
    with log.refusals():
        configs = check(composed.jobs, sweep.verb)
        check_read(configs, typed, sweep.verb)
        _check(configs)
    if any(config.plan_only for config in configs):  # each value once: which of their combinations, nobody knows yet
        run_command(composed, sweep, typed, ranks)
        return
    failed = 0
    with _alone(configs[0]), launching(composed, ranks) as (resources, launch):
        study = _study(search, composed.jobs[0], configs[0])
        for _ in track(range(search.settings.trials), "batch of trials"):
            trials = _ask(study, search)
            lost = _run(trials, study, search, sweep, resources, launch) if trials else 0
            failed += lost
            if lost == len(trials):  # none is left, or none of them works
                break
        report(configs[0])
        _tell(study, search, configs[0])
    if failed:
        raise JobsFailed(f"{failed} trials failed; the same command tries others in their place", exit_code=1)


def _check(configs: Sequence[Config]) -> None:
    config = configs[0]
    if config.evaluate.split == "test":
        remedy = (
            "What is chosen on the test images is too good on them: data.num_select=N evaluate.split=select, and confirm on test."
        )
        raise UserError("evaluate.split", "test", allowed="another split with hydra/sweeper=optuna", remedy=remedy)
    if len({(one.name, one.runs_dir, one.results_dir) for one in configs}) > 1:
        raise UserError("name", "several", allowed="one experiment with hydra/sweeper=optuna")
    if any(one.fresh for one in configs):
        raise UserError("fresh", True, allowed="false with hydra/sweeper=optuna", remedy="Each batch of trials would train anew.")


@contextlib.contextmanager
def _alone(config: Config) -> Iterator[None]:
    """Hold the searches of an experiment: what another process has under way would look like what a killed one left."""
    lock = Path(config.runs_dir, ".locks", f"search-{config.name}.lock")
    lock.parent.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(lock, timeout=0):
            yield
    except Timeout:
        remedy = "Another process searches in this experiment: wait for it, or give this one a name=NAME."
        raise UserError("hydra/sweeper", "optuna", allowed="one search of an experiment at a time", remedy=remedy) from None


def _study(search: Search, first: Mapping[str, object], config: Config) -> Study:
    """The study of this very question, made or opened; trials that a killed process left open count as failed."""
    try:
        import optuna
    except ModuleNotFoundError as error:
        remedy = "pip install 'qexp[search]' brings it."
        raise UserError("hydra/sweeper", "optuna", allowed="basic without optuna", remedy=remedy) from error
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    asked = [ask_for([first])[0].key, {key: list(values) for key, values in search.space.items()}, search.settings.objectives]
    Path(config.runs_dir).mkdir(parents=True, exist_ok=True)
    study = optuna.create_study(
        storage=f"sqlite:///{Path(config.runs_dir).absolute() / 'optuna.db'}",
        study_name=f"{config.name}-{hash_json(json.dumps(asked, sort_keys=True))[:12]}",
        directions=search.settings.directions,
        load_if_exists=True,
    )
    with contextlib.suppress(Exception):  # names of objectives are for people, in optuna's own pages
        study.set_metric_names(search.settings.objectives)
    for trial in study.get_trials(deepcopy=False, states=(optuna.trial.TrialState.RUNNING,)):
        study.tell(trial.number, state=optuna.trial.TrialState.FAIL)
    return study


def _done(study: Study) -> list[FrozenTrial]:
    from optuna.trial import TrialState

    return study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))


def _ask(study: Study, search: Search) -> list[tuple[Trial, Pick]]:
    """The next trials and what they try; none once there are enough."""
    import optuna

    settings = search.settings
    count = min(settings.batch, settings.trials - len(_done(study)))
    # A function of the seed and of what is there: an interrupted search goes on as an undisturbed one.
    study.sampler = optuna.samplers.TPESampler(
        seed=settings.seed + 7919 * len(study.get_trials(deepcopy=False)), constant_liar=True
    )
    trials = [study.ask() for _ in range(count)]
    return [(trial, {key: _value(trial, key, search) for key in search.space}) for trial in trials]


def _value(trial: Trial, key: str, search: Search) -> str:
    values = search.space[key]
    low, high = values[0], values[-1]
    if isinstance(low, float) and isinstance(high, float):
        return f"{trial.suggest_float(key, low, high):.6g}"
    return str(trial.suggest_categorical(key, [str(value) for value in values]))


def _run(
    trials: Sequence[tuple[Trial, Pick]], study: Study, search: Search, sweep: Sweep, resources: Resources, launch: Launch
) -> int:
    """Run trials as one sweep and tell the study their numbers; returns how many failed."""
    from optuna.trial import TrialState

    jobs = search.compose([pick for _, pick in trials])
    batch = replace(sweep, sweep=f"{sweep.sweep}_{trials[0][0].number}")
    log = JobLog(ask_for(jobs), batch)
    with log.refusals():
        configs = [with_preprocessing(config) for config in check(jobs, sweep.verb)]
    with speaking(quiet=True), contextlib.suppress(JobsFailed):
        run_sweep(configs, log, resources, launch, typed={}, reports=False)
    numbers = _numbers(configs[0], batch.sweep)
    for position, (trial, _) in enumerate(trials):
        row = numbers.get(position)
        if row is None or any(row.get(name) is None or not math.isfinite(row[name]) for name in search.settings.objectives):
            numbers.pop(position, None)
            study.tell(trial, state=TrialState.FAIL)
            continue
        for name in _KEPT:
            trial.set_user_attr(name, row.get(name))
        study.tell(trial, [float(row[name]) for name in search.settings.objectives])
        values = "  ".join(f"{name} {row[name]:.6g}" for name in search.settings.objectives)
        print_main(f"trial {trial.number}  {row['variant']}  {values}")
    return len(trials) - len(numbers)


def _numbers(config: Config, sweep: str) -> dict[int, Row]:
    """Number of a job of a sweep -> the record of what it asked for, of the last epoch; without those that have none."""
    rows = list(Journal.of(config.runs_dir, config.name).rows())
    asked = {row["job"]: (row["training"], row["variant_key"]) for row in rows_of_jobs(rows) if row["sweep"] == sweep}
    records: dict[tuple[str, str], Row] = {}
    for row in rows:
        if row["kind"] == "record":
            key = row["training"], row["variant_key"]
            if key not in records or row["epoch"] >= records[key]["epoch"]:
                records[key] = row
    return {job: records[key] for job, key in asked.items() if job is not None and key in records}


def _tell(study: Study, search: Search, config: Config) -> None:
    """Write `search.csv`, a line per trial, and print the trials that no other beats."""
    names, best = search.settings.objectives, {trial.number for trial in study.best_trials}
    trials = sorted(_done(study), key=lambda trial: trial.values, reverse=search.settings.directions[0] == "maximize")
    lines = [
        {
            "trial": trial.number,
            "best": trial.number in best,
            **trial.params,
            **dict(zip(names, trial.values, strict=True)),
            **{name: trial.user_attrs.get(name) for name in _KEPT},
        }
        for trial in trials
    ]
    text = io.StringIO()
    writer = csv.DictWriter(text, list(lines[0]) if lines else ["trial"], lineterminator="\n")
    writer.writeheader()
    writer.writerows(lines)
    path = Path(config.results_dir, config.name, "search.csv")
    write_text_atomic(path, text.getvalue())
    shown, seen = [], set()
    for line in lines:
        if line["best"] and line["variant_key"] not in seen:
            seen.add(line["variant_key"])
            picked = " ".join(f"{key}={line[key]}" for key in search.space)
            shown.append(f"  {line['variant']}  {'  '.join(f'{name} {line[name]:.6g}' for name in names)}  ({picked})")
    print_result(
        f"{len(trials)} trials; of {' and '.join(names)} on split {config.evaluate.split} no other beats:",
        *shown,
        f"They were chosen on these images: confirm with evaluate.split=test. All trials: {path}",
        search=path,
        trials=len(trials),
        best=[line for line in lines if line["best"]],
    )
