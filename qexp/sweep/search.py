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

from qexp.base.console import print_main, print_result, speaking, warn_main
from qexp.base.errors import JobsFailed, RankFailed, UserError, UserErrors
from qexp.base.files import hash_json, write_text_atomic
from qexp.base.progress import track
from qexp.config.root import Config
from qexp.experiment.prepare import with_preprocessing
from qexp.sweep.check import check
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

_PICK = "pick"  # what was typed for a trial, where optuna keeps numbers with all their digits


def run_search(composed: Composed, configs: Sequence[Config], log: JobLog, ranks: Ranks) -> None:
    """Try copies until `hydra.sweeper.trials` have numbers, then report, and list those that no other beats.

    Args:
        composed: with its `search`.
        configs: of its jobs, checked.
        log: of the same jobs.
        ranks: that run a job together.

    Raises:
        UserErrors, UserError: some value of some key cannot be searched with, alone; nothing was started.
        JobsFailed: some trials failed; the others are done and reported.
    """
    search = composed.search
    assert search is not None, "else the sweep is run"
    _check(configs)
    if any(config.plan_only for config in configs):  # each value once: which of their combinations, nobody knows yet
        run_command(composed, configs, log, ranks)
        return
    failed = 0
    with _alone(configs[0]), launching(composed, ranks) as (resources, launch):
        study = _study(search, composed.jobs[0], configs[0])
        for _ in track(range(search.settings.trials), "batch of trials"):
            trials = _ask(study, search)
            lost = _run(trials, study, search, log.sweep, resources, launch) if trials else 0
            failed += lost
            if lost == len(trials):  # none is left, or none of them works
                break
        resources.feeds.of(configs[0]).log_files(None, report(configs[0]))
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

    batch = replace(sweep, sweep=f"{sweep.sweep}_{trials[0][0].number}")
    try:
        configs = _evaluate(search.compose([pick for _, pick in trials]), batch, resources, launch)
    except (UserErrors, UserError) as error:  # a combination of right values may be wrong: it fails, the others do not
        if len(trials) > 1:
            return sum(_run([one], study, search, sweep, resources, launch) for one in trials)
        study.tell(trials[0][0], state=TrialState.FAIL)
        warn_main(f"trial {trials[0][0].number} is not possible: {error}")
        return 1
    numbers, lost = _numbers(configs, batch.sweep), 0
    for position, (trial, pick) in enumerate(trials):
        row = numbers.get(position)
        if row is None or any(row.get(name) is None or not math.isfinite(row[name]) for name in search.settings.objectives):
            study.tell(trial, state=TrialState.FAIL)
            lost += 1
            continue
        for name in _KEPT:
            trial.set_user_attr(name, row.get(name))
        trial.set_user_attr(_PICK, dict(pick))
        study.tell(trial, [float(row[name]) for name in search.settings.objectives])
        values = "  ".join(f"{name} {row[name]:.6g}" for name in search.settings.objectives)
        print_main(f"trial {trial.number}  {row['variant']}  {values}")
    return lost


def _evaluate(jobs: Sequence[Mapping[str, object]], batch: Sweep, resources: Resources, launch: Launch) -> list[Config]:
    """Run the jobs of a batch, whatever becomes of each; returns them checked.

    Raises:
        UserErrors, UserError: some job is wrong; none was started.
        RankFailed: the ranks can run no other.
    """
    log = JobLog(ask_for(jobs), batch)
    with log.refusals():
        configs = [with_preprocessing(config) for config in check(jobs, batch.verb)]
    try:
        with speaking(quiet=True):
            run_sweep(configs, log, resources, launch, reports=False)
    except JobsFailed as error:
        if isinstance(error.__cause__, RankFailed):
            raise error.__cause__ from None
    return configs


def _numbers(configs: Sequence[Config], sweep: str) -> dict[int, Row]:
    """Number of a job of a sweep -> the record of what it asked for, of its last epoch; without those that did not get there."""
    rows = list(Journal.of(configs[0].runs_dir, configs[0].name).rows())
    asked = {row["job"]: (row["training"], row["variant_key"]) for row in rows_of_jobs(rows) if row["sweep"] == sweep}
    records = {(row["training"], row["variant_key"], row["epoch"]): row for row in rows if row["kind"] == "record"}
    last = [config.recipe.epochs if config.checkpoint is None else 0 for config in configs]
    wanted = {job: (*key, last[job]) for job, key in asked.items() if job is not None}
    return {job: records[key] for job, key in wanted.items() if key in records}


def _tell(study: Study, search: Search, config: Config) -> None:
    """Write `search.csv`, a line per trial, and print the trials that no other beats."""
    names, best = search.settings.objectives, {trial.number for trial in study.best_trials}
    trials = sorted(_done(study), key=lambda trial: trial.values, reverse=search.settings.directions[0] == "maximize")
    lines = [
        {
            "trial": trial.number,
            "best": trial.number in best,
            **trial.user_attrs.get(_PICK, trial.params),
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
