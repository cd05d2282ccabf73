"""The story, top to bottom: check the jobs, prepare them, train once per group, evaluate every copy of every epoch, report.

`run_sweep` leads; it hands the groups of jobs that share a training to `launch`, which runs `run_group`, here or elsewhere.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from qexp.base import dist
from qexp.base.console import is_main_process, say
from qexp.base.errors import UserErrors
from qexp.base.files import SaveError
from qexp.base.journal_files import CONVERTED
from qexp.base.nouns import Batch, Record
from qexp.base.preemption import Preempted
from qexp.engine.fit import EpochEnd, fit
from qexp.engine.hooks import NO_HOOKS
from qexp.engine.seed import seed_everything
from qexp.engine.state import FitState
from qexp.engine.trajectory import Training, TrajectoryStore
from qexp.pipeline import announce, export, ranks
from qexp.pipeline.check import Sweep, check, check_read, group
from qexp.pipeline.entry import JobsFailed, RankFailed
from qexp.pipeline.evaluator import Evaluator
from qexp.pipeline.jobs import JobBook
from qexp.pipeline.launchers import Launch
from qexp.pipeline.ledger import Ledger
from qexp.pipeline.prepare import Prepared, pick_device, prepare, prepare_all
from qexp.pipeline.qat import QatTraining
from qexp.schema import Config
from qexp.tracking.feed import MlflowFeed
from qexp.tracking.journal import Journal

WRITE_EVERY = 8  # variants of an epoch that are scored before their numbers are written: what a killed sweep of many loses
START = "start"  # the verb of a float training that others begin from
PREEMPTED_LIMIT_S = 5.0  # for MLflow, where a scheduler's grace period runs; `qexp.sync` or the next start sends the rest
_FEEDS: dict[tuple[str, str], MlflowFeed] = {}  # of this sweep, by runs_dir and experiment


def run_sweep(jobs: Sequence[dict[str, Any]], sweep: Sweep, launch: Launch) -> None:
    """Check and prepare all jobs, launch them group by group, and report.

    Args:
        jobs: resolved values, one mapping per job. launch: runs the jobs at the positions of each group as one merged job.

    Raises:
        UserErrors: something is wrong with some job; nothing was started.
        JobsFailed: some group failed; the others are done and reported.
    """
    book = JobBook(jobs, sweep)
    try:
        configs = check(jobs, sweep.verb)
        check_read(configs, sweep.command)
        groups = group(configs)
        prepared = prepare_all([[configs[position] for position in positions] for positions in groups])
        if sweep.verb == "export":
            export.check(prepared)
    except UserErrors as error:
        with contextlib.suppress(OSError):  # a journal that cannot be written is not what the user has to hear of first
            book.refused(error)
        raise
    announce.plan(prepared, num_jobs=len(configs))
    if any(config.plan_only for config in configs):
        announce.estimate(prepared)
        return
    book.planned(configs, groups, prepared)
    try:
        failed = _launch_all(groups, prepared, launch, book)
        for config in {(config.runs_dir, config.name): config for config in configs}.values():
            _report(config)
    finally:
        close_feeds()
    if failed:
        raise JobsFailed(f"{failed} of {len(groups)} trainings failed; the same command tries them again")


def _report(config: Config) -> None:
    files = announce.report(config)
    _feed(config).log_files(None, files)  # where workers ran the groups, this process has sent nothing yet


def close_feeds() -> None:
    """Wait until MLflow has what this process wrote, not for long if a signal stopped it, and say where it is behind."""
    hurry = isinstance(sys.exception(), Preempted)
    while _FEEDS:
        behind = _FEEDS.popitem()[1].close(limit_s=PREEMPTED_LIMIT_S if hurry else None)
        if behind:
            say(behind)


def _launch_all(groups: Sequence[Sequence[int]], prepared: Sequence[Prepared], launch: Launch, book: JobBook) -> int:
    """Launch every group whatever becomes of the others; returns how many failed."""
    failed = 0
    with contextlib.closing(launch(groups)) as outcomes:
        for number, error in outcomes:
            one = prepared[number]
            if error is None:
                (one.folder / "traceback.txt").unlink(missing_ok=True)  # of an earlier try
                continue
            kept = announce.failure(one, error)
            with contextlib.suppress(OSError):  # on a full disk, which has been said
                book.note("failed", groups[number], error=error, traceback=kept)
            if isinstance(error, RankFailed):
                raise error  # the process group cannot be used again
            failed += 1
    return failed


def run_group(jobs: Sequence[dict[str, Any]], sweep: Sweep) -> None:
    """Run one merged job on all ranks, as the only process that works on its training."""
    prepared = prepare(check(jobs, sweep.verb))
    if prepared.start is not None:
        _run_start(jobs, sweep, stored=_training(prepared.start).is_complete)
    # Waited for here, not within the job, where the other ranks' collectives would time out.
    training = _training(prepared)
    with training.lock():
        if prepared.config.fresh and prepared.config.checkpoint is None:
            training.discard()
        ranks.together(jobs, sweep, lambda: run_group_here(jobs, sweep))


def _run_start(jobs: Sequence[dict[str, Any]], sweep: Sweep, *, stored: bool) -> None:
    """Train the float network that jobs begin from, if nobody has; what stops it stops them."""
    book = JobBook(jobs, sweep)
    if not stored:
        book.note("running")
    try:
        run_group([_start_values(jobs[0])], replace(sweep, verb=START))
    except (KeyboardInterrupt, Preempted) as stop:
        book.note("preempted" if isinstance(stop, Preempted) else "killed")
        raise


def _start_values(job: dict[str, Any]) -> dict[str, Any]:
    """The job of the float training that a quantization-aware one begins from: the same, in float."""
    return {**job, "qat": {"name": "none"}, "float_only": True, "fresh": False}


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
    book = None if sweep.verb == START else JobBook(jobs, sweep)  # nobody asked for that training by itself
    ledger = Ledger(prepared, sweep, str(device), poke=_feed(config).poke, book=book)
    ledger.begin()
    status = "FAILED"
    try:
        _measure(prepared, device, ledger)
        if sweep.verb == "export":
            export.run(prepared, ledger)
        status = "FINISHED"
        if ledger.num_measured == 0 and sweep.verb != START:
            say(f"  {prepared.training}: nothing to do, every number is stored (fresh=true trains again)")
    except (KeyboardInterrupt, Preempted) as stop:
        status = "KILLED" if isinstance(stop, KeyboardInterrupt) else "PREEMPTED"
        if isinstance(stop, Preempted) and config.checkpoint is None and _training(prepared).info:
            _training(prepared).mark_preempted(stop.signum.name)
        raise
    finally:
        # On a full disk the books cannot be closed either; what is said is why.
        with contextlib.suppress(SaveError) if isinstance(sys.exception(), SaveError) else contextlib.nullcontext():
            ledger.end(status, sys.exception())


def _feed(config: Config) -> MlflowFeed:
    """The thread that follows this experiment's journal; it lives until the sweep ends."""
    key = (config.runs_dir, config.name)
    if key not in _FEEDS:
        journal = Journal.of(config.runs_dir, config.name)
        _FEEDS[key] = MlflowFeed(journal, experiment=config.name, settings=config.tracking, runs_dir=config.runs_dir)
        _FEEDS[key].start()
    return _FEEDS[key]


def _measure(prepared: Prepared, device: torch.device, ledger: Ledger | None) -> None:
    qat = QatTraining(prepared, device) if prepared.config.qat.is_on else None
    evaluator = Evaluator(prepared, device, qat)
    if prepared.config.checkpoint is not None:
        state = prepared.network().state_dict()
        _evaluate(evaluator, ledger, state, epoch=0, last=True)
        return
    _train(prepared, device, evaluator, qat, ledger)


def _train(
    prepared: Prepared, device: torch.device, evaluator: Evaluator, qat: QatTraining | None, ledger: Ledger | None
) -> None:
    """Evaluate what is stored and not yet measured, then train on from there."""
    config, recipe, training = prepared.config, prepared.config.recipe, _training(prepared)
    found = dist.from_main(lambda: _found(training))
    start = None if found["start"] is None else FitState(**found["start"])
    if ledger is not None and not found["complete"]:
        ledger.forget_after(0 if start is None else start.epoch)
    for epoch in found["stored"]:
        if dist.from_main(lambda epoch=epoch: bool(ledger.missing(epoch))):
            state = dist.from_main(lambda epoch=epoch: training.load_epoch(epoch))
            _evaluate(evaluator, ledger, state, epoch=epoch, last=epoch == recipe.epochs)
    if found["complete"]:
        if qat is not None and dist.from_main(lambda: not (training.folder / CONVERTED).exists()):
            qat.save(dist.from_main(lambda: training.load_epoch(recipe.epochs)), training.folder / CONVERTED)
        return
    if ledger is not None:
        training.begin(**announce.training_facts(prepared), world_size=dist.world_size(), start=start)
        announce.going_on(training.hash, start)

    def on_checkpoint(state: FitState, end: EpochEnd | None) -> None:
        if ledger is None:
            return
        if end is None:
            training.save_state(state)
            return
        curve = {"train_loss": end.train_loss, "train_prec1": end.train_prec1, "lr": end.lr}
        speed = {"seconds": end.seconds, "images_per_s": end.images_per_s}
        # Before the state is stored: an epoch that counts as done has its line.
        ledger.training_metrics(end.epoch, curve)
        training.save_epoch(state, curve | speed, keep=config.trajectory.keeps(end.epoch, recipe.epochs))

    def on_epoch_end(end: EpochEnd) -> None:
        _evaluate(evaluator, ledger, end.model_state, epoch=end.epoch, last=end.epoch == recipe.epochs)

    model, hooks = (prepared.network().to(device), NO_HOOKS) if qat is None else qat.begin(calibrate=start is None)
    end = fit(
        model,
        _train_batches(prepared, device),
        recipe,
        steps_per_epoch=prepared.bundle.steps_per_epoch(recipe.batch_size),
        device=device,
        start=start,
        hooks=hooks,
        on_checkpoint=on_checkpoint,
        on_epoch_end=on_epoch_end,
    )
    if qat is not None:
        qat.save(end.model, training.folder / CONVERTED)
    if ledger is not None:
        training.finish()


def _train_batches(prepared: Prepared, device: torch.device) -> Callable[[int, int], Iterable[Batch]]:
    """(epoch, first step) -> this rank's batches from there on."""
    config = prepared.config
    return lambda epoch, first: prepared.bundle.train_batches(
        epoch=epoch,
        batch_size=config.recipe.batch_size,
        seed=config.seed,
        device=device,
        rank=dist.rank(),
        world_size=dist.world_size(),
        start_step=first,
    )


def _found(training: Training) -> dict[str, Any]:
    """What the store holds: whether nothing is left to train, where to go on, and the epochs that can be evaluated."""
    if training.is_complete:
        return {"complete": True, "start": None, "stored": training.epochs()}
    start = training.resume_state()
    if start is None:
        return {"complete": False, "start": None, "stored": []}
    # Weights of a later epoch were written just before a crash; the epoch is done again, and they with it.
    stored = {epoch for epoch in training.epochs() if epoch <= start.epoch}
    if start.step == 0:
        stored.add(start.epoch)
    return {"complete": False, "start": start.as_dict(), "stored": sorted(stored)}


def _evaluate(evaluator: Evaluator, ledger: Ledger | None, state: dict, *, epoch: int, last: bool) -> list[Record]:
    keys = dist.from_main(lambda: [variant.key for variant in ledger.missing(epoch)])
    wanted = [variant for variant in evaluator.prepared.variants if variant.key in keys]
    if not wanted:
        return []
    records: list[Record] = []
    float_network = None
    for first in range(0, len(wanted), WRITE_EVERY):
        digests = ledger.digests(epoch) if ledger is not None else {}
        scored = evaluator.score(state, wanted[first : first + WRITE_EVERY], digests, float_network)
        float_network = scored[0].evaluation
        if ledger is not None:
            found = ledger.write(epoch, scored, last=last)
            announce.epoch(found)
            records += found[1:] if records else found
    return records
