"""One job's training: evaluate what is stored and not yet measured, train on from there, evaluate every epoch."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any, TypedDict

import torch
from torch import Tensor

from qexp.base import dist
from qexp.base.errors import UserError
from qexp.base.progress import track
from qexp.base.types import Batch
from qexp.config.later import stored_values
from qexp.config.root import Config
from qexp.engine.fit import EpochEnd, fit
from qexp.engine.hooks import NO_HOOKS
from qexp.engine.state import FitState
from qexp.engine.trajectory import Training, TrajectoryStore
from qexp.experiment import messages
from qexp.experiment.evaluator import Evaluator, Scored
from qexp.experiment.job import Prepared
from qexp.experiment.qat_training import QatTraining
from qexp.experiment.recorder import Recorder
from qexp.experiment.stored_numbers import UNCHANGED
from qexp.tracking import environment
from qexp.tracking.journal import CONVERTED
from qexp.tracking.record import Record

WRITE_EVERY = 8  # variants of an epoch that are scored before their numbers are written: what a killed sweep of many loses
A_LINE = 2 * WRITE_EVERY  # variants whose numbers one printed line has


def open_training(prepared: Prepared) -> Training:
    """The place of a job's training in the store."""
    return TrajectoryStore(Path(prepared.config.runs_dir)).open(prepared.training)


def final_epochs(prepared: Prepared) -> list[int] | None:
    """The epochs whose numbers are all that a job asks for; None where there is something to train, or to convert.

    Args:
        prepared: the merged job.
    """
    config = prepared.config
    if config.checkpoint is not None:
        return [0]
    training = open_training(prepared)
    converted = not config.qat.is_on or (training.folder / CONVERTED).exists()
    return training.epochs() if not config.fresh and converted and training.is_complete else None


def run_job(prepared: Prepared, device: torch.device, recorder: Recorder | None) -> None:
    """Train what is not stored and evaluate every variant after every epoch, or evaluate a checkpoint.

    Args:
        prepared: the merged job.
        device: of this rank.
        recorder: what rank 0 writes with; None on the others.
    """
    qat = QatTraining(prepared, device) if prepared.config.qat.is_on else None
    evaluator = Evaluator(prepared, device, qat)
    if prepared.config.checkpoint is not None:
        state = prepared.network().state_dict()
        _evaluate(evaluator, recorder, state, epoch=0, last=True)
        return
    _train(prepared, device, evaluator, qat, recorder)


def _train(
    prepared: Prepared, device: torch.device, evaluator: Evaluator, qat: QatTraining | None, recorder: Recorder | None
) -> None:
    """Evaluate what is stored and not yet measured, then train on from there."""
    config, recipe, training = prepared.config, prepared.config.recipe, open_training(prepared)
    stored = dist.from_main(lambda: _stored(training))
    start = None if stored["start"] is None else FitState(**stored["start"])
    if recorder is not None and not stored["complete"]:
        recorder.forget_after(0 if start is None else start.epoch)
    for epoch in track(stored["epochs"], "stored epoch"):
        if dist.from_main(partial(_missing, recorder, epoch)):
            state = dist.from_main(partial(training.load_epoch, epoch))
            _evaluate(evaluator, recorder, state, epoch=epoch, last=epoch == recipe.epochs)
    if stored["complete"]:
        if qat is not None and dist.from_main(lambda: not (training.folder / CONVERTED).exists()):
            qat.save(dist.from_main(lambda: training.load_epoch(recipe.epochs)), training.folder / CONVERTED)
        return
    if recorder is not None:
        training.begin(**training_facts(prepared), world_size=dist.world_size(), start=start)
        steps = prepared.bundle.steps_per_epoch(recipe.batch_size)
        messages.going_on(training.hash, start, steps=steps, epochs=recipe.epochs)

    def on_checkpoint(state: FitState, end: EpochEnd | None) -> None:
        if recorder is None:
            return
        if end is None:
            training.save_state(state)
            return
        curve = {"train_loss": end.train_loss, "train_prec1": end.train_prec1, "lr": end.lr}
        speed = {"seconds": end.seconds, "images_per_s": end.images_per_s}
        # Before the state is stored: an epoch that counts as done has its line.
        recorder.training_metrics(end.epoch, curve)
        training.save_epoch(state, curve | speed, keep=config.trajectory.keeps(end.epoch, recipe.epochs))
        messages.trained(training.hash, end.epoch, curve | speed)

    def on_epoch_end(end: EpochEnd) -> None:
        _evaluate(evaluator, recorder, end.model_state, epoch=end.epoch, last=end.epoch == recipe.epochs)

    model, hooks = (prepared.trained_network().to(device), NO_HOOKS) if qat is None else qat.begin(calibrate=start is None)
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
    if recorder is not None:
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
        mixup=config.recipe.mixup,
        randaugment=config.recipe.randaugment,
    )


class Stored(TypedDict):
    """What the store holds of a training, as it travels between ranks."""

    complete: bool  # nothing is left to train
    start: dict[str, Any] | None  # of a FitState, where to go on
    epochs: list[int]  # that can be evaluated


def _stored(training: Training) -> Stored:
    if training.is_complete:
        return {"complete": True, "start": None, "epochs": training.epochs()}
    start = training.resume_state()
    if start is None:
        return {"complete": False, "start": None, "epochs": []}
    # Weights of a later epoch were written just before a crash; the epoch is done again, and they with it.
    epochs = {epoch for epoch in training.epochs() if epoch <= start.epoch}
    if start.step == 0:
        epochs.add(start.epoch)
    return {"complete": False, "start": start.as_dict(), "epochs": sorted(epochs)}


def _missing(recorder: Recorder | None, epoch: int) -> list[str]:
    """Keys of the variants without a number for this epoch; asked on rank 0."""
    assert recorder is not None, "rank 0 records"
    return [variant.key for variant in recorder.missing(epoch)]


def _evaluate(
    evaluator: Evaluator, recorder: Recorder | None, state: Mapping[str, Tensor], *, epoch: int, last: bool
) -> list[Record]:
    keys = dist.from_main(partial(_missing, recorder, epoch))
    wanted = [variant for variant in evaluator.prepared.variants if variant.key in keys]
    if not wanted:
        return []
    records: list[Record] = []
    num_told, float_network = 0, None
    for first in range(0, len(wanted), WRITE_EVERY):
        digests = recorder.digests(epoch) if recorder is not None else {}
        part, total = wanted[first : first + WRITE_EVERY], len({evaluator.prepared.variants[0].key, *keys})
        scored = evaluator.score(state, part, digests, float_network, len(records), total)
        if float_network is None:
            _check_unchanged(evaluator.prepared, recorder, epoch, scored[0])
        float_network = scored[0].evaluation
        if recorder is not None:
            written = recorder.write(epoch, scored, last=last)
            fresh = written[1:] if records else written
            messages.measured(fresh)
            records += fresh
            if len(records) - num_told >= A_LINE or part[-1] is wanted[-1]:
                messages.epoch(records[num_told:], evaluator.prepared)
                num_told = len(records)
    return records


def _check_unchanged(prepared: Prepared, recorder: Recorder | None, epoch: int, of_float: Scored) -> None:
    """Raise on all ranks where new numbers would stand beside those of another network."""
    changed = dist.from_main(lambda: recorder.changed(epoch, of_float) if recorder is not None else "")
    if not changed:
        return
    config = prepared.config
    if config.checkpoint is not None:
        remedy = f"{changed} To measure all anew, remove {prepared.folder}."
        raise UserError("checkpoint", config.checkpoint, allowed=UNCHANGED, remedy=remedy)
    remedy = f"Epoch {epoch}: {changed} fresh=true trains again."
    raise UserError("training", prepared.training, allowed=UNCHANGED, remedy=remedy)


def training_facts(one: Prepared) -> dict[str, Any]:
    """What the store writes beside a training: enough to list it and to run it again."""
    return {
        "identity": messages.identity_of(one),
        "config": stored_values(asdict(one.config), Config),
        "versions": environment.versions(),
        "epochs": one.config.recipe.epochs,
    }
