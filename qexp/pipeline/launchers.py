"""Where the groups of a sweep run: one after the other here, in worker processes, or as jobs of submitit.

The leader starts one worker per group, says where its output goes, and is told how it ended; a worker that dies takes no other
group with it. The same command again is the remedy for whatever did not end well.

joblib's loky and submitit are called directly. Rejected: hydra-joblib-launcher and hydra-submitit-launcher, both last released
(1.2.0) in May 2022, while joblib and submitit are kept up. They launch Hydra's composed jobs one by one, where a group of jobs
is one training here; they pickle Hydra's singletons and the task function into the workers, which need neither; and one job that
raises ends their loop over the others. Rejected too: joblib.Parallel, where a worker that dies takes all running groups along.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import multiprocessing
import os
import shutil
import signal
import time
from collections import deque
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any, Protocol

from pydantic import TypeAdapter, ValidationError

from qexp.base.console import say
from qexp.base.errors import UserError, UserErrors, nearest
from qexp.pipeline.check import Sweep
from qexp.pipeline.settings import LauncherSettings
from qexp.pipeline.worker import Failure, Submission, run_logged

Outcomes = Generator[tuple[int, Exception | None]]  # number of each group and why it failed, in the order in which they end
Launch = Callable[[Sequence[Sequence[int]]], Outcomes]  # from the positions of each group's jobs

POLL_S = 0.2  # between looks at the running workers
GRACE_S = 60.0  # that workers are given to save when the leader is stopped


def launcher_settings(values: Mapping[str, Any]) -> LauncherSettings:
    """Validate `hydra.launcher`, and that what it asks for can work here.

    Raises:
        UserErrors: a key, type or range is wrong. UserError: submitit or Slurm is missing, or torchrun started this process.
    """
    values = {key: value for key, value in values.items() if key != "_target_"}  # Hydra's
    known = [item.name for item in fields(LauncherSettings)]
    unknown = [key for key in values if key not in known]
    if unknown:
        raise UserErrors(_error(key, values[key], known, nearest(key, known)) for key in unknown)
    try:
        settings = TypeAdapter(LauncherSettings).validate_json(json.dumps(values), strict=True)
    except ValidationError as error:
        raise UserErrors(
            item["ctx"]["error"]
            if isinstance(item.get("ctx", {}).get("error"), UserError)
            else _error(".".join(map(str, item["loc"])), item["input"], item["msg"].removeprefix("Input should be "))
            for item in error.errors()
        ) from None
    _check_place(settings)
    return settings


def _error(key: str, value: object, allowed: str | Iterable[str] = "", remedy: str = "") -> UserError:
    return UserError(f"hydra.launcher.{key}", value, allowed=allowed, remedy=remedy)


def _check_place(settings: LauncherSettings) -> None:
    inner = settings.inner
    if inner != "basic" and int(os.environ.get("WORLD_SIZE", "1")) > 1:
        remedy = "These processes are one training already. Start the command without torchrun"
        remedy += "; hydra.launcher.tasks_per_node gives a job its ranks." if inner.startswith("submitit") else "."
        raise _error("inner", inner, "basic under torchrun", remedy)
    if inner.startswith("submitit") and importlib.util.find_spec("submitit") is None:
        raise _error("inner", inner, "basic or joblib without submitit", "pip install 'qexp[slurm]' brings it.")
    if inner == "submitit_slurm" and shutil.which("srun") is None:
        raise _error("inner", inner, "another one where there is no Slurm", "Start it where srun is found, on a login node say.")


def check_single(values: Mapping[str, Any]) -> None:
    """Refuse settings of the launcher in a command without `-m`, where Hydra runs the job itself and would not read them."""
    settings = launcher_settings(values)
    if settings.inner != "basic":
        raise _error("inner", settings.inner, "basic without -m", "Add -m.")


def in_turn(run: Callable[[Sequence[int]], None], groups: Iterable[Sequence[int]]) -> Outcomes:
    """`basic`: run each group here, whatever becomes of the others."""
    for number, positions in enumerate(groups):
        try:
            run(positions)
        except Exception as error:
            yield number, error
        else:
            yield number, None


def side_by_side(groups: Sequence[Sequence[dict[str, Any]]], sweep: Sweep, settings: LauncherSettings, folder: Path) -> Outcomes:
    """Run each group in a worker of its own, `settings.n_jobs` at a time; stops the workers if it is left early.

    Args:
        groups: resolved values of the jobs of each group. sweep: where they come from. folder: for output and submitit's files.
    """
    limit = _limit(settings, len(groups))
    if settings.inner == "joblib":
        start: Callable[[int], _Worker] = lambda number: _Process(groups[number], sweep, folder / f"{number}.log", limit)  # noqa: E731
    else:
        executor = _executor(settings, folder)
        start = lambda number: _Job(executor, Submission(groups[number], sweep))  # noqa: E731
    waiting, running = deque(range(len(groups))), {}
    try:
        while waiting or running:
            while waiting and len(running) < limit:
                number = waiting.popleft()
                running[number] = start(number)
                say(f"training {number + 1} of {len(groups)}: {running[number].name}, output in {running[number].log}")
            ended = [number for number, worker in running.items() if worker.done()]
            for number in ended:
                error = running.pop(number).error()
                say(f"training {number + 1} of {len(groups)}: {'done' if error is None else 'failed'}")
                yield number, error
            if not ended:
                time.sleep(POLL_S)
    finally:
        _stop(list(running.values()))


def _limit(settings: LauncherSettings, num_groups: int) -> int:
    if settings.n_jobs != -1:
        return settings.n_jobs
    if settings.inner == "submitit_slurm":
        return num_groups
    return max(1, _cores() // settings.tasks_per_node)


def _cores() -> int:
    import joblib

    return joblib.cpu_count()  # of those that this process may use


class _Worker(Protocol):
    """A group that runs elsewhere: what a person calls it, where its output goes, and how to follow and end it."""

    name: str
    log: Path

    def done(self) -> bool: ...

    def error(self) -> Exception | None: ...

    def terminate(self) -> None: ...

    def kill(self) -> None: ...


class _Process:
    """A group in a process of loky's, with its share of the cores."""

    def __init__(self, jobs: Sequence[dict[str, Any]], sweep: Sweep, log: Path, limit: int) -> None:
        from joblib.externals.loky import ProcessPoolExecutor

        threads = os.environ.get("OMP_NUM_THREADS", str(max(1, _cores() // limit)))
        before = set(multiprocessing.active_children())
        self._executor = ProcessPoolExecutor(max_workers=1, env={"OMP_NUM_THREADS": threads})
        self._future = self._executor.submit(run_logged, jobs, sweep, log)
        self._processes = set(multiprocessing.active_children()) - before
        self.name, self.log = f"process {', '.join(str(each.pid) for each in self._processes)}", log

    def done(self) -> bool:
        return self._future.done()

    def error(self) -> Exception | None:
        died = self._future.exception()
        self._executor.shutdown(kill_workers=died is not None)
        return RuntimeError(f"its process ended ({died}); output in {self.log}") if died else _raised(self._future.result())

    def terminate(self) -> None:
        for process in self._processes:
            process.terminate()

    def kill(self) -> None:
        self._executor.shutdown(kill_workers=True)


class _Job:
    """A group as a job of submitit."""

    def __init__(self, executor: Any, submission: Submission) -> None:
        from submitit import LocalExecutor
        from submitit.helpers import clean_env

        # Within an allocation sbatch would take that allocation's settings for the job's.
        with clean_env() if "SLURM_JOB_ID" in os.environ else contextlib.nullcontext():
            self._job = executor.submit(submission)
        self._is_local = isinstance(executor, LocalExecutor)
        self.name, self.log = f"job {self._job.job_id}", _shown(self._job.task(0).paths.stdout)

    def done(self) -> bool:
        return self._job.done()

    def error(self) -> Exception | None:
        first = self._job.task(0)  # the rank that leads the others
        died = first.exception()
        return RuntimeError(f"{self.name} ended without a result; output in {self.log}") if died else _raised(first.result())

    def terminate(self) -> None:
        if self._is_local:
            with contextlib.suppress(ProcessLookupError):
                os.kill(int(self._job.job_id), signal.SIGTERM)  # its controller hands it on to the tasks
        else:
            self._job.cancel(check=False)  # scancel: SIGTERM, and SIGKILL after the cluster's KillWait

    def kill(self) -> None:
        self._job.cancel(check=False)


def _executor(settings: LauncherSettings, folder: Path) -> Any:
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


def _shown(path: Path) -> Path:
    """The path from the working directory on, where it lies below that."""
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path


def _raised(failure: Failure | None) -> Exception | None:
    """The exception of a worker, by the name and with the traceback that it had there."""
    if failure is None:
        return None
    error = type(failure.kind, (RuntimeError,), {})(failure.message)
    error.__cause__ = RuntimeError(f"in the worker:\n{failure.traceback}")
    return error


def _stop(workers: Sequence[_Worker]) -> None:
    """Tell workers to save and stop, and end those that take too long."""
    for worker in workers:
        worker.terminate()
    deadline = time.monotonic() + GRACE_S
    while time.monotonic() < deadline and not all(worker.done() for worker in workers):
        time.sleep(POLL_S)
    for worker in workers:
        worker.kill()
