"""What a worker process runs: one merged job, with an MLflow feed and output of its own, and ranks where there are several tasks.

A worker is handed checked jobs and runs no Hydra. How it ended goes back as text: exceptions with constructors of their own do
not survive pickling.
"""

from __future__ import annotations

import contextlib
import os
import signal
import traceback
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING

from qexp.base.allocator import keep_freed_memory
from qexp.base.console import warn_main
from qexp.base.errors import is_mistake
from qexp.base.orphans import end_with, is_orphan
from qexp.base.preemption import Preempted, listening
from qexp.base.progress_shown import shown
from qexp.sweep.ranks import Alone, Leader, Ranks, serve
from qexp.sweep.types import MergedJob

if TYPE_CHECKING:
    from submitit import JobEnvironment
    from submitit.helpers import DelayedSubmission


@dataclass(frozen=True)
class Failure:
    """Why a merged job failed: the exception's class, its message, its traceback as text."""

    kind: str
    message: str
    traceback: str

    @classmethod
    def of(cls, error: BaseException) -> Failure:
        """The failure that an exception stands for."""
        kind = "UserError" if is_mistake(error) else type(error).__name__  # a mistake may be another rank's
        return cls(kind, str(error), "".join(traceback.format_exception(error)))


def run_here(job: MergedJob) -> Failure | None:
    """Run a merged job in this process and wait until MLflow has it; returns None or why it failed."""
    return _run(job, Alone())


def _run(job: MergedJob, ranks: Ranks) -> Failure | None:
    from qexp.sweep.group import Resources, run_group

    try:
        with shown(), Resources(ranks=ranks) as resources:
            run_group(job, resources.preparer.prepare(job.configs), resources)
    except Exception as error:
        failure = Failure.of(error)
        warn_main(failure.traceback)
        return failure
    return None


def run_logged(job: MergedJob, log: Path, leader: int) -> Failure | None:
    """`run_here` with all that is printed in a file: the lines of several trainings on one screen tell nobody anything.

    Args:
        job: checked.
        log: the file.
        leader: number of the process that waits for the outcome; where that one is gone, this one saves and ends.
    """
    keep_freed_memory()
    end_with(leader)
    log.parent.mkdir(parents=True, exist_ok=True)
    with open(log, "a", buffering=1, encoding="utf-8") as out, contextlib.redirect_stdout(out), contextlib.redirect_stderr(out):
        try:
            with listening():
                return run_here(job)
        except Preempted as stop:
            if is_orphan(leader):
                os._exit(stop.exit_code)  # loky would wait for the next job
            return Failure.of(stop)


@dataclass(frozen=True)
class Submission:
    """A merged job as submitit calls it, in every task of the job.

    Requeue: submitit sends its signal before the time limit and on preemption. The training is then told to stop, as SIGTERM
    does, and once it has saved, submitit queues this same call again: running it again is the resume. A task that SIGTERM alone
    ended (scancel, or Slurm's own requeue) leaves no result, so that whoever waits for the job looks at Slurm's state of it.
    """

    job: MergedJob

    def __call__(self) -> Failure | None:
        """Run; returns None or why it failed."""
        import submitit

        keep_freed_memory()
        place = submitit.JobEnvironment()
        with _requeue_on(getattr(signal, f"SIG{place.USR_SIG}")):
            return run_here(self.job) if place.num_tasks == 1 else self._as_rank(place)

    def checkpoint(self) -> DelayedSubmission:
        """Submitit's hook: what to run when the job is queued again."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self)

    __submitit_checkpoint__ = checkpoint  # the hook's name after submitit 1.5

    def _as_rank(self, place: JobEnvironment) -> Failure | None:
        """Lead the other tasks of this job, or follow the first."""
        from submitit.helpers import TorchDistributedEnvironment

        from qexp.sweep.group import Resources, run_received

        # Every task sees all GPUs of its node: a rank takes the one of its local rank.
        TorchDistributedEnvironment().export(set_cuda_visible_devices=False, overwrite=True)
        if place.num_nodes == 1:
            os.environ["MASTER_ADDR"] = "127.0.0.1"  # a host name need not resolve on its own machine
        device = self.job.configs[0].device
        if place.global_rank > 0:
            code = serve(device, partial(run_received, resources=Resources()))
            return Failure("RankFailed", f"the job's first task ended with {code}", "") if code else None
        leader, code = Leader(device), 1
        try:
            failure = _run(self.job, leader)
            code = int(failure is not None)
            return failure
        finally:
            leader.shutdown(code)


@contextlib.contextmanager
def _requeue_on(number: signal.Signals) -> Iterator[None]:
    """Within, submitit's signal stops the training as SIGTERM does; submitit's own handler queues the job again after it."""
    requeue = signal.getsignal(number)
    assert callable(requeue), "submitit has installed its handler"
    asked = False

    def on_signal(number: int, frame: FrameType | None) -> None:
        nonlocal asked
        asked = True
        signal.raise_signal(signal.SIGTERM)

    with listening():
        signal.signal(number, on_signal)
        try:
            yield
        except Preempted as stop:
            if asked:
                requeue(number, None)  # leaves the process, but for ranks above 0
            raise SystemExit(stop.exit_code) from stop
        finally:
            signal.signal(number, requeue)
