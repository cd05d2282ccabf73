"""Where the groups of a sweep run: one after the other here, in worker processes, or as jobs of submitit.

The leader starts one worker per group, says where its output goes, and is told how it ended; a worker that dies takes no other
group with it. The same command again is the remedy for whatever did not end well.

joblib's loky and submitit are called directly. Rejected: hydra-joblib-launcher and hydra-submitit-launcher, both last released
(1.2.0) in May 2022, while joblib and submitit are kept up. They launch Hydra's composed jobs one by one, where a group of jobs
is one training here; they pickle Hydra's singletons and the task function into the workers, which need neither; and one job that
raises ends their loop over the others. Rejected too: joblib.Parallel, where a worker that dies takes all running groups along.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path

from qexp.base.console import print_main
from qexp.base.progress import track
from qexp.config.launcher import LauncherSettings
from qexp.experiment.job import Prepared
from qexp.sweep.group import Resources, run_group
from qexp.sweep.types import MergedJob, Outcomes
from qexp.sweep.worker import Submission
from qexp.sweep.workers import POLL_S, JobWorker, ProcessWorker, Worker, make_executor, num_cores, stop_workers


def run_in_turn(jobs: Sequence[MergedJob], prepared: Sequence[Prepared], *, resources: Resources) -> Outcomes:
    """`basic`: run each merged job here, whatever becomes of the others."""
    pairs = list(zip(jobs, prepared, strict=True))
    note = (lambda pair: pair[0].told_apart) if len(jobs) > 1 else None
    label = "checkpoint" if all(one.config.checkpoint is not None for one in prepared) else "training"
    for number, (job, one) in enumerate(track(pairs, label, note=note)):
        try:
            run_group(job, one, resources)
        except Exception as error:
            yield number, error
        else:
            yield number, None


def run_side_by_side(jobs: Sequence[MergedJob], settings: LauncherSettings, folder: Path) -> Outcomes:
    """Run each merged job in a worker of its own, `settings.n_jobs` at a time; stops the workers if it is left early.

    Args:
        jobs: checked.
        settings: of the launcher.
        folder: for output and submitit's files.
    """
    yield from track(_ended(jobs, settings, folder), "training", total=len(jobs))


def _ended(jobs: Sequence[MergedJob], settings: LauncherSettings, folder: Path) -> Outcomes:
    """Each job as its worker ends."""
    limit = _limit(settings, len(jobs))
    if settings.inner == "joblib":
        start: Callable[[int], Worker] = lambda number: ProcessWorker(jobs[number], folder / f"{number}.log", limit)  # noqa: E731
    else:
        executor = make_executor(settings, folder)
        start = lambda number: JobWorker(executor, Submission(jobs[number]))  # noqa: E731
    waiting = deque(range(len(jobs)))
    running: dict[int, Worker] = {}
    try:
        while waiting or running:
            while waiting and len(running) < limit:
                number = waiting.popleft()
                running[number] = start(number)
                print_main(f"training {number + 1} of {len(jobs)}: {running[number].name}, output in {running[number].log}")
            ended = [number for number, worker in running.items() if worker.done()]
            for number in ended:
                error = running.pop(number).error()
                print_main(f"training {number + 1} of {len(jobs)}: {'done' if error is None else 'failed'}")
                yield number, error
            if not ended:
                time.sleep(POLL_S)
    finally:
        stop_workers(list(running.values()))


def _limit(settings: LauncherSettings, num_groups: int) -> int:
    if settings.n_jobs != -1:
        return settings.n_jobs
    if settings.inner == "submitit_slurm":
        return num_groups
    return max(1, num_cores() // settings.tasks_per_node)
