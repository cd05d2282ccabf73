"""One merged job, on all ranks, as the only process that works on its training."""

from __future__ import annotations

import contextlib
import sys
from dataclasses import dataclass, field, replace
from types import TracebackType

from qexp.base.console import is_main_process
from qexp.base.errors import UserError
from qexp.base.files import SaveError, discard_partials
from qexp.base.preemption import Preempted
from qexp.base.user_code import exits_are_errors
from qexp.engine.device import pick_device
from qexp.engine.seed import seed_everything
from qexp.experiment import messages
from qexp.experiment.job import Prepared
from qexp.experiment.prepare import Preparer
from qexp.experiment.recorder import Recorder, Status
from qexp.experiment.training import final_epochs, open_training, run_job
from qexp.sweep.jobs import JobLog
from qexp.sweep.ranks import Alone, Ranks
from qexp.sweep.types import MergedJob
from qexp.tracking.feed import Feeds

START = "start"  # the verb of a float training that others begin from


@dataclass
class Resources:
    """What a process holds for all merged jobs that it runs; a scope, at whose end MLflow has what was written.

    Args:
        preparer: makes jobs ready to run, and holds their data sets.
        ranks: that run a job together.
        feeds: to MLflow.
    """

    preparer: Preparer = field(default_factory=Preparer)
    ranks: Ranks = field(default_factory=Alone)
    feeds: Feeds = field(default_factory=Feeds)

    def __enter__(self) -> Resources:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.feeds.close(hurry=isinstance(error, Preempted))


def run_group(job: MergedJob, prepared: Prepared, resources: Resources) -> None:
    """Run one merged job on all ranks, as the only process that works on its training.

    Args:
        job: checked.
        prepared: the same, ready to run.
        resources: of this process.

    Raises:
        UserError: this process has other data than the one that planned the job.
    """
    _check_data(job, prepared)
    if prepared.start is not None:
        _run_start(job, prepared.start, resources)
    # Waited for here, not within the job, where the other ranks' collectives would time out.
    training = open_training(prepared)
    with training.lock():
        if prepared.config.fresh and prepared.config.checkpoint is None:
            training.discard()
        discard_partials(prepared.folder)
        resources.ranks.run_on_all(job, lambda: run_on_this_rank(job, prepared, resources))


def _run_start(job: MergedJob, start: Prepared, resources: Resources) -> None:
    """Train the float network that jobs begin from, if nobody has; what stops it stops them."""
    log = JobLog(job.asked, job.sweep)
    if not open_training(start).is_complete:
        log.note("running")
    try:
        # Nobody asked for that training by itself, so it has no jobs of its own in the journal.
        run_group(MergedJob((start.config,), (), replace(job.sweep, verb=START)), start, resources)
    except (KeyboardInterrupt, Preempted) as stop:
        log.note("preempted" if isinstance(stop, Preempted) else "killed")
        raise


def run_received(job: MergedJob, resources: Resources) -> None:
    """Run a merged job that the leader sent, on a rank above 0."""
    prepared = resources.preparer.prepare(job.configs)
    _check_data(job, prepared)
    run_on_this_rank(job, prepared, resources)


def _check_data(job: MergedJob, prepared: Prepared) -> None:
    """Raise where the data of this process are not those that the job was planned with: its training would be another one."""
    here = prepared.bundle.fingerprint
    if job.data_hash in ("", here):
        return
    own = prepared.config.data.factory is not None
    raise UserError(
        "data.factory" if own else "data.root",
        prepared.config.data.factory if own else prepared.config.data.root,
        allowed=f"{'a function that gives' if own else 'data that are'} the same whenever a process loads them",
        remedy=f"They had the hash {job.data_hash[:8]} where the jobs were planned, and have {here[:8]} in this process"
        + (": the factory gives other data each time. Seed what it draws." if own else ": the files have changed meanwhile."),
    )


def run_on_this_rank(job: MergedJob, prepared: Prepared, resources: Resources) -> None:
    """Run one merged job on this rank; rank 0 writes down what is measured."""
    config, sweep = prepared.config, job.sweep
    device = pick_device(config.device)
    seed_everything(config.seed, config.deterministic)
    if not is_main_process():
        run_job(prepared, device, recorder=None)
        return
    feed = resources.feeds.of(config)
    recorder = Recorder(prepared, sweep, str(device), notify=feed.notify, note_jobs=JobLog(job.asked, sweep).note)
    recorder.begin(None if sweep.verb == "export" else final_epochs(prepared))
    status: Status = "FAILED"
    try:
        with exits_are_errors():
            run_job(prepared, device, recorder)
            if sweep.verb == "export":
                from qexp.deploy import export  # half a second, and no other verb needs it

                export.run(prepared, recorder)
        status = "FINISHED"
        if recorder.num_measured == 0 and sweep.verb != START:
            messages.nothing_to_do(prepared)
    except (KeyboardInterrupt, Preempted) as stop:
        status = "KILLED" if isinstance(stop, KeyboardInterrupt) else "PREEMPTED"
        if isinstance(stop, Preempted) and config.checkpoint is None and open_training(prepared).info:
            open_training(prepared).mark_preempted(stop.signum.name)
        raise
    finally:
        # On a full disk the journal cannot be closed either; what is said is why.
        with contextlib.suppress(SaveError) if isinstance(sys.exception(), SaveError) else contextlib.nullcontext():
            recorder.end(status, sys.exception())
