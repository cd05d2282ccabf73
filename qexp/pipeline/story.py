"""The story, top to bottom: check the jobs, prepare them, train once per group, evaluate every copy of every epoch, report.

`run_sweep` leads; it hands each group of jobs that share a training to `launch`, which comes back to `run_group` on all ranks.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from qexp.base import dist
from qexp.base.console import is_main_process, say
from qexp.base.errors import UserError
from qexp.base.nouns import Record
from qexp.engine.fit import EpochEnd, FitState, fit
from qexp.engine.seed import seed_everything
from qexp.engine.trajectory import Training, TrajectoryStore
from qexp.pipeline import announce, ranks
from qexp.pipeline.check import Sweep, check, group
from qexp.pipeline.entry import JobsFailed
from qexp.pipeline.evaluator import Evaluator
from qexp.pipeline.ledger import Ledger
from qexp.pipeline.prepare import Prepared, pick_device, prepare, prepare_all
from qexp.schema import Config
from qexp.tracking.feed import MlflowFeed
from qexp.tracking.journal import Journal

_FEEDS: dict[tuple[str, str], MlflowFeed] = {}  # of this sweep, by runs_dir and experiment


def run_sweep(jobs: Sequence[dict[str, Any]], sweep: Sweep, launch: Callable[[Sequence[int]], None]) -> None:
    """Check and prepare all jobs, launch them group by group, and report.

    Args:
        jobs: resolved values, one mapping per job. launch: runs the jobs at these positions as one merged job.

    Raises:
        UserErrors: something is wrong with some job; nothing was started.
        JobsFailed: some group failed; the others are done and reported.
    """
    configs = check(jobs, sweep.verb)
    groups = group(configs)
    prepared = prepare_all([[configs[position] for position in positions] for positions in groups])
    announce.plan(prepared, num_jobs=len(configs))
    if any(config.plan_only for config in configs):
        announce.estimate(prepared)
        return
    try:
        failed = _launch_all(groups, prepared, launch)
        for config in {(config.runs_dir, config.name): config for config in configs}.values():
            _report(config, failed)
    finally:
        while _FEEDS:
            behind = _FEEDS.popitem()[1].close()
            if behind:
                say(behind)
    if failed:
        raise JobsFailed(f"{failed} of {len(groups)} trainings failed; the same command tries them again")


def _report(config: Config, failed: int) -> None:
    try:
        files = announce.report(config)
    except UserError:
        if not failed:
            raise
        return  # nothing of this experiment got as far as an evaluation; each failure has been said
    if (config.runs_dir, config.name) in _FEEDS:
        _FEEDS[config.runs_dir, config.name].log_files(None, files)


def _launch_all(groups: Sequence[Sequence[int]], prepared: Sequence[Prepared], launch: Callable[[Sequence[int]], None]) -> int:
    """Launch every group whatever becomes of the others; returns how many failed."""
    failed = 0
    for positions, one in zip(groups, prepared, strict=True):
        try:
            launch(positions)
            (one.folder / "traceback.txt").unlink(missing_ok=True)  # of an earlier try
        except ranks.RankFailed:
            raise  # the process group cannot be used again
        except Exception as error:
            announce.failure(one, error)
            failed += 1
    return failed


def run_group(jobs: Sequence[dict[str, Any]], sweep: Sweep) -> None:
    """Run one merged job on all ranks, as the only process that works on its training."""
    prepared = prepare(check(jobs, sweep.verb))
    if prepared.config.checkpoint is not None:
        ranks.together(jobs, sweep, lambda: run_group_here(jobs, sweep))
        return
    # Waited for here, not within the job, where the other ranks' collectives would time out.
    training = _training(prepared)
    with training.lock():
        if prepared.config.fresh:
            training.discard()
        ranks.together(jobs, sweep, lambda: run_group_here(jobs, sweep))


def _training(prepared: Prepared) -> Training:
    return TrajectoryStore(Path(prepared.config.runs_dir)).open(prepared.training)


def run_group_here(jobs: Sequence[dict[str, Any]], sweep: Sweep) -> None:
    """Run one merged job on this rank."""
    prepared = prepare(check(jobs, sweep.verb))
    config = prepared.config
    device = pick_device(config.device)
    seed_everything(config.seed, config.deterministic)
    if not is_main_process():
        _measure(prepared, device, ledger=None)
        return
    ledger = Ledger(prepared, sweep, str(device), poke=_feed(config).poke)
    ledger.begin()
    status = "FAILED"
    try:
        _measure(prepared, device, ledger)
        status = "FINISHED"
        if ledger.num_measured == 0:
            say(f"  {prepared.training}: nothing to do, every number is stored (fresh=true trains again)")
    except KeyboardInterrupt:
        status = "KILLED"
        raise
    finally:
        ledger.end(status)


def _feed(config: Config) -> MlflowFeed:
    """The thread that follows this experiment's journal; it lives until the sweep ends."""
    key = (config.runs_dir, config.name)
    if key not in _FEEDS:
        journal = Journal.of(config.runs_dir, config.name)
        _FEEDS[key] = MlflowFeed(journal, experiment=config.name, settings=config.tracking, runs_dir=config.runs_dir)
        _FEEDS[key].start()
    return _FEEDS[key]


def _measure(prepared: Prepared, device: torch.device, ledger: Ledger | None) -> None:
    evaluator = Evaluator(prepared, device)
    if prepared.config.checkpoint is not None:
        state = prepared.network().state_dict()
        _evaluate(evaluator, ledger, state, epoch=0, last=True)
        return
    _train(prepared, device, evaluator, _training(prepared), ledger)


def _train(prepared: Prepared, device: torch.device, evaluator: Evaluator, training: Training, ledger: Ledger | None) -> None:
    """Evaluate what is stored and not yet measured, then train on from there."""
    config, bundle = prepared.config, prepared.bundle
    complete, start, stored = dist.from_main(lambda: _found(training))
    for epoch in stored:
        if dist.from_main(lambda epoch=epoch: bool(ledger.missing(epoch))):
            state = dist.from_main(lambda epoch=epoch: training.load_epoch(epoch))
            _evaluate(evaluator, ledger, state, epoch=epoch, last=epoch == config.train.epochs)
    if complete:
        return
    if ledger is not None:
        training.begin(**announce.training_facts(prepared))

    def on_epoch_end(end: EpochEnd) -> None:
        if ledger is not None:
            curve = {"train_loss": end.train_loss, "train_prec1": end.train_prec1, "lr": end.lr}
            speed = {"seconds": end.seconds, "images_per_s": end.images_per_s}
            training.save_epoch(end.state, curve | speed, keep=config.trajectory.keeps(end.epoch, config.train.epochs))
            ledger.training_metrics(end.epoch, curve)
        _evaluate(evaluator, ledger, end.model_state, epoch=end.epoch, last=end.epoch == config.train.epochs)

    fit(
        prepared.network().to(device),
        lambda epoch: bundle.train_batches(
            epoch=epoch,
            batch_size=config.train.batch_size,
            seed=config.seed,
            device=device,
            rank=dist.rank(),
            world_size=dist.world_size(),
        ),
        config.train,
        steps_per_epoch=bundle.steps_per_epoch(config.train.batch_size),
        device=device,
        start=start,
        on_epoch_end=on_epoch_end,
    )
    if ledger is not None:
        training.finish()


def _found(training: Training) -> tuple[bool, FitState | None, list[int]]:
    """What the store holds: whether nothing is left to train, where to go on, and the epochs that can be evaluated."""
    if training.is_complete:
        return True, None, training.epochs()
    start = training.resume_state()
    return False, start, sorted({*training.epochs(), *([start.epoch] if start else [])})


def _evaluate(evaluator: Evaluator, ledger: Ledger | None, state: dict, *, epoch: int, last: bool) -> list[Record]:
    keys = dist.from_main(lambda: [variant.key for variant in ledger.missing(epoch)])
    wanted = [variant for variant in evaluator.prepared.variants if variant.key in keys]
    if not wanted:
        return []
    scored = evaluator.score(state, wanted, ledger.digests(epoch) if ledger is not None else {})
    if ledger is None:
        return []
    records = ledger.write(epoch, scored, last=last)
    announce.epoch(records)
    return records
