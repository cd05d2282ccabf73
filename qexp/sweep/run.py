"""A sweep, top to bottom: check the jobs, prepare them, train once per group, evaluate every copy of every epoch, report."""

from __future__ import annotations

import contextlib
import shlex
import traceback
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

from qexp.base.console import print_main, print_result, report_error, warn_main
from qexp.base.errors import JobsFailed, RankFailed, is_mistake
from qexp.base.files import SaveError, write_text_atomic
from qexp.config.launcher import check_single, launcher_settings
from qexp.config.root import Config
from qexp.experiment import messages
from qexp.experiment.estimate import estimate
from qexp.experiment.job import Prepared, with_common_words
from qexp.experiment.prepare import Preparer, with_preprocessing
from qexp.experiment.typed_labels import check_labels
from qexp.reporting.frames.protocol import MixedProtocolsError
from qexp.reporting.report import write_report
from qexp.sweep.check import group
from qexp.sweep.group import Resources
from qexp.sweep.jobs import JobLog
from qexp.sweep.launchers import run_in_turn, run_side_by_side
from qexp.sweep.ranks import Ranks
from qexp.sweep.repeat import Journals, done_already, in_mlflow, noted, numbers_in
from qexp.sweep.types import Composed, MergedJob, Outcomes
from qexp.tracking.rows import Row

Launch = Callable[[Sequence[MergedJob], Sequence[Prepared]], Outcomes]  # runs merged jobs, here or elsewhere


def run_command(composed: Composed, configs: Sequence[Config], log: JobLog, ranks: Ranks) -> None:
    """Run the jobs of a command where its launcher says.

    Args:
        composed: as Hydra left it.
        configs: of its jobs, checked.
        log: of the same jobs.
        ranks: that run a job together.

    Raises:
        UserErrors, UserError: something is wrong with some job or with the launcher; nothing was started.
        JobsFailed: some group failed; the others are done and reported.
    """
    with launching(composed, ranks) as (resources, launch):
        run_sweep([with_preprocessing(config) for config in configs], log, resources, launch)


@contextlib.contextmanager
def launching(composed: Composed, ranks: Ranks) -> Iterator[tuple[Resources, Launch]]:
    """What the jobs of a command share, and how its launcher runs them.

    Args:
        composed: as Hydra left it.
        ranks: that run a job together.

    Raises:
        UserErrors, UserError: something is wrong with the launcher.
    """
    settings = launcher_settings(composed.launcher)
    if not composed.is_sweep:
        check_single(settings)
    preparer = Preparer(check_device=settings.inner != "submitit_slurm")
    with Resources(preparer=preparer, ranks=ranks) as resources:
        if settings.inner == "basic":
            yield resources, partial(run_in_turn, resources=resources)
        else:
            yield resources, lambda jobs, prepared: run_side_by_side(jobs, settings, composed.folder)


def run_sweep(
    configs: Sequence[Config],
    log: JobLog,
    resources: Resources,
    launch: Launch,
    *,
    reports: bool = True,
) -> list[Prepared]:
    """Prepare checked jobs, run them group by group, and report.

    Args:
        configs: of all jobs.
        log: of the same jobs.
        resources: of this process.
        launch: runs the groups.
        reports: write tables and page in the end.

    Returns:
        What was run: the jobs that share a training as one.

    Raises:
        UserErrors: something is wrong with some job; nothing was started.
        JobsFailed: some group failed; the others are done and reported.
    """
    groups = group(configs)
    notes: Sequence[str] = ()
    with log.refusals(groups):
        chosen = [[configs[position] for position in positions] for positions in groups]
        prepared = with_common_words(resources.preparer.prepare_all(chosen))
        check_labels(prepared)
        if log.sweep.verb == "export":
            from qexp.deploy import export  # half a second, and no other verb needs it

            notes = export.check(prepared)
    messages.plan(prepared, num_jobs=len(configs), notes=notes)
    if any(config.plan_only for config in configs):
        estimate(prepared)
        return prepared
    with log.refusals(groups):
        resources.preparer.identify_all(prepared, groups)
    journals = Journals()
    left = _set_aside_done(groups, prepared, log, journals)
    failed = _launch_all([groups[number] for number in left], [prepared[number] for number in left], configs, launch, log)
    for config in () if not reports else {(config.runs_dir, config.name): config for config in configs}.values():
        folder = Path(config.results_dir, config.name)
        before = numbers_in(folder)
        rows = journals.of(config).rows()
        files = report(config, rows)
        # Where workers ran the groups, this process has sent nothing yet. MLflow is not even loaded where it has all.
        if left or numbers_in(folder) != before or not in_mlflow(config) or not noted(rows, files):
            resources.feeds.of(config).log_files(None, files)
    if failed:
        mistakes = all(is_mistake(error) for error in failed)
        remedy = "mend what is said above, then the same command goes on" if mistakes else "the same command tries them again"
        raise JobsFailed(f"{len(failed)} of {len(groups)} trainings failed; {remedy}", exit_code=2 if mistakes else 1)
    return prepared


def _set_aside_done(groups: Sequence[Sequence[int]], prepared: Sequence[Prepared], log: JobLog, journals: Journals) -> list[int]:
    """Note all jobs, those of groups with nothing to do as done; returns the numbers of the other groups."""
    done = done_already(prepared, log.sweep, journals)
    over = [number for number, is_done in enumerate(done) if is_done]
    left = [number for number, is_done in enumerate(done) if not is_done]
    if over:
        known = {(prepared[number].config.runs_dir, prepared[number].config.name): prepared[number].config for number in over}
        places = {place: journals.of(config) for place, config in known.items()}
        log.repeated([groups[number] for number in over], [prepared[number] for number in over], places)
    if left:
        log.planned([groups[number] for number in left], [prepared[number] for number in left])
    for number in over:
        (prepared[number].folder / "traceback.txt").unlink(missing_ok=True)  # of an earlier try
        messages.nothing_to_do(prepared[number])
    return left


def _launch_all(
    groups: Sequence[Sequence[int]], prepared: Sequence[Prepared], configs: Sequence[Config], launch: Launch, log: JobLog
) -> list[Exception]:
    """Launch every group whatever becomes of the others; returns why some failed."""
    jobs = [
        MergedJob(
            configs=tuple(configs[position] for position in positions),
            asked=tuple(log.jobs[position] for position in positions),
            sweep=log.sweep,
            data_hash=one.bundle.fingerprint,
        )
        for positions, one in zip(groups, prepared, strict=True)
    ]
    failed: list[Exception] = []
    with contextlib.closing(launch(jobs, prepared)) as outcomes:
        for number, error in outcomes:
            one = prepared[number]
            if error is None:
                (one.folder / "traceback.txt").unlink(missing_ok=True)  # of an earlier try
                continue
            kept = failure(one, error)
            with contextlib.suppress(OSError):  # on a full disk, which has been said
                log.note("failed", groups[number], error=error, traceback=kept)
            if isinstance(error, RankFailed):  # the process group cannot be used again
                if is_mistake(error):
                    raise JobsFailed("mend what is said above, then the same command goes on", exit_code=2) from error
                raise error
            failed.append(error)
    return failed


def failure(one: Prepared, error: Exception) -> Path | None:
    """Say which training failed and why; the traceback goes to a file beside it, which is returned, or to the screen.

    A mistake of the user's that shows only while a job runs has none.
    """
    mistake = is_mistake(error)
    line = f"qexp: training {one.training} failed: {'' if mistake else f'{type(error).__name__}: '}{error}"
    report_error(error, line, exit_code=None)
    if mistake:
        return None
    text, path = "".join(traceback.format_exception(error)), one.folder / "traceback.txt"
    try:
        write_text_atomic(path, text)
    except OSError:  # the disk may be full, and that be the failure
        if not isinstance(error, SaveError):
            warn_main(text)
        return None
    warn_main(f"  traceback: {path}")
    return path


def report(config: Config, rows: Sequence[Row] | None = None) -> list[Path]:
    """Write tables and figures, print the table, say where everything is; returns the files, none where a table is refused.

    Args:
        config: of a job of the experiment.
        rows: of its journal; None reads them.
    """
    try:
        written = write_report(
            config.name, runs_dir=config.runs_dir, results_dir=config.results_dir, figures=config.draw_figures, rows=rows
        )
    except MixedProtocolsError as error:  # every number is stored: the sweep is done, its table has to be asked for
        print_result(f"no report: {error}", name=config.name, folder=None, why=str(error))
        return []
    what = "tables and figures" if config.draw_figures else "tables"
    print_main("", written.table, "")
    if config.tracking.enabled:
        print_main(f"MLflow UI: {_ui_command(config)}")
    print_result(written.where(what), *written.places, **written.as_event())
    return [*written.figures, *written.tables]


def _ui_command(config: Config) -> str:
    """What serves MLflow's UI on the runs of a job; `qexp.ui` knows the store in `runs_dir` alone."""
    if config.tracking.uri is not None:
        return f"mlflow ui --host 127.0.0.1 --backend-store-uri {config.tracking.uri}"
    elsewhere = "" if str(config.runs_dir) == "runs" else f" runs_dir={shlex.quote(str(config.runs_dir))}"
    return f"python -m qexp.ui mlflow=true name={shlex.quote(config.name)}{elsewhere}"
