"""Processes and jobs that run one group each: how to start, follow and end them."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from qexp.base.errors import UserErrors
from qexp.config.launcher import LauncherSettings
from qexp.sweep.types import MergedJob
from qexp.sweep.worker import Failure, Submission, run_logged

if TYPE_CHECKING:
    from submitit import Executor

GRACE_S = 60.0  # that workers are given to save when the leader is stopped

POLL_S = 0.2  # between looks at the running workers


class Worker(Protocol):
    """A group that runs elsewhere: what a person calls it, where its output goes, and how to follow and end it."""

    name: str
    log: Path

    def done(self) -> bool:
        """True once it has ended."""
        ...

    def error(self) -> Exception | None:
        """Why it failed; asked once it has ended."""
        ...

    def terminate(self) -> None:
        """Tell it to save and stop."""
        ...

    def kill(self) -> None:
        """End it now."""
        ...


class ProcessWorker:
    """A group in a process of loky's, with its share of the cores."""

    def __init__(self, job: MergedJob, log: Path, limit: int) -> None:
        from joblib.externals.loky import ProcessPoolExecutor

        threads = os.environ.get("OMP_NUM_THREADS", str(max(1, num_cores() // limit)))
        before = set(multiprocessing.active_children())
        self._executor = ProcessPoolExecutor(max_workers=1, env={"OMP_NUM_THREADS": threads})
        self._future = self._executor.submit(run_logged, job, log)
        self._processes = set(multiprocessing.active_children()) - before
        self.name, self.log = f"process {', '.join(str(process.pid) for process in self._processes)}", log

    def done(self) -> bool:
        """True once it has ended."""
        return self._future.done()

    def error(self) -> Exception | None:
        """Why it failed; asked once it has ended."""
        died = self._future.exception()
        self._executor.shutdown(kill_workers=died is not None)
        return RuntimeError(f"its process ended ({died}); output in {self.log}") if died else as_exception(self._future.result())

    def terminate(self) -> None:
        """Tell it to save and stop."""
        for process in self._processes:
            process.terminate()

    def kill(self) -> None:
        """End it now."""
        self._executor.shutdown(kill_workers=True)


class JobWorker:
    """A group as a job of submitit."""

    def __init__(self, executor: Executor, submission: Submission) -> None:
        from submitit import LocalExecutor
        from submitit.helpers import clean_env

        # Within an allocation sbatch would take that allocation's settings for the job's.
        with clean_env() if "SLURM_JOB_ID" in os.environ else contextlib.nullcontext():
            self._job = executor.submit(submission)
        self._is_local = isinstance(executor, LocalExecutor)
        self.name, self.log = f"job {self._job.job_id}", from_here(self._job.task(0).paths.stdout)

    def done(self) -> bool:
        """True once it has ended."""
        return self._job.done()

    def error(self) -> Exception | None:
        """Why it failed; asked once it has ended."""
        first = self._job.task(0)  # the rank that leads the others
        died = first.exception()
        return RuntimeError(f"{self.name} ended without a result; output in {self.log}") if died else as_exception(first.result())

    def terminate(self) -> None:
        """Tell it to save and stop."""
        if self._is_local:
            with contextlib.suppress(ProcessLookupError):
                os.kill(int(self._job.job_id), signal.SIGTERM)  # its controller hands it on to the tasks
        else:
            self._job.cancel(check=False)  # scancel: SIGTERM, and SIGKILL after the cluster's KillWait

    def kill(self) -> None:
        """End it now."""
        self._job.cancel(check=False)


def make_executor(settings: LauncherSettings, folder: Path) -> Executor:
    """Submitit's executor for these settings.

    Args:
        settings: of the launcher.
        folder: for submitit's files.
    """
    import submitit

    files, setup = folder / "submitit" / "%j", list(settings.setup)
    asked = {name: getattr(settings, name) for name in ("timeout_min", "tasks_per_node", "gpus_per_node")}
    if settings.inner == "submitit_local":
        executor = submitit.LocalExecutor(files, max_num_timeout=settings.max_num_timeout)
        asked |= {"signal_delay_s": settings.signal_delay_s, "setup": setup}
        executor.update_parameters(stderr_to_stdout=True, **{name: value for name, value in asked.items() if value is not None})
        return executor
    if settings.cpus_per_task is not None:
        setup.append(f"export SRUN_CPUS_PER_TASK={settings.cpus_per_task}")  # since Slurm 22.05 srun does not ask sbatch for it
    asked |= {name: getattr(settings, name) for name in ("nodes", "cpus_per_task", "mem_gb")}
    own = {name: getattr(settings, name) for name in ("partition", "account", "qos", "signal_delay_s")}
    own |= {"additional_parameters": settings.additional_parameters or None, "setup": setup or None}
    own["srun_args"] = ["--kill-on-bad-exit=0"]  # a rank that was told to stop ends while the first one still saves
    executor = submitit.AutoExecutor(files, cluster="slurm", slurm_max_num_timeout=settings.max_num_timeout)
    executor.update_parameters(name="qexp", stderr_to_stdout=True, **asked, **{f"slurm_{name}": own[name] for name in own})
    return executor


def from_here(path: Path) -> Path:
    """The path from the working directory on, where it lies below that."""
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path


def as_exception(failure: Failure | None) -> Exception | None:
    """The exception of a worker, by the name and with the traceback that it had there."""
    if failure is None:
        return None
    if failure.kind in ("UserError", "UserErrors"):
        return UserErrors([ValueError(failure.message)])
    error = type(failure.kind, (RuntimeError,), {})(failure.message)
    error.__cause__ = RuntimeError(f"in the worker:\n{failure.traceback}")
    return error


def stop_workers(workers: Sequence[Worker]) -> None:
    """Tell workers to save and stop, and end those that take too long."""
    for worker in workers:
        worker.terminate()
    deadline = time.monotonic() + GRACE_S
    while time.monotonic() < deadline and not all(worker.done() for worker in workers):
        time.sleep(POLL_S)
    for worker in workers:
        worker.kill()


def num_cores() -> int:
    """Cores that this process may use."""
    import joblib

    return joblib.cpu_count()
