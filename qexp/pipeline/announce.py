"""What the user reads while a sweep runs: the plan, what it will cost, each epoch, the table at the end."""

from __future__ import annotations

import re
import time
import traceback
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from qexp.base.console import complain, say
from qexp.base.files import SaveError
from qexp.base.nouns import Plan, Record
from qexp.engine.state import FitState
from qexp.engine.trajectory import TrajectoryStore
from qexp.pipeline.identity import training_identity
from qexp.pipeline.prepare import Prepared
from qexp.pipeline.qat import QatTraining
from qexp.policy.table import format_plan
from qexp.reporting.protocol import MixedProtocolsError
from qexp.reporting.report import write_report
from qexp.schema import Config
from qexp.tracking import environment


def plan(prepared: Sequence[Prepared], *, num_jobs: int) -> None:
    """Print what will run: jobs, trainings, variants, and which tensor is quantized how."""
    trainings = [one for one in prepared if one.config.checkpoint is None]
    parts = [f"{_count(len(trainings), 'training')} ({sum(map(_is_stored, trainings))} stored)"] if trainings else []
    if starts := _starts(prepared):
        parts.append(f"{_count(len(starts), 'float training')} to begin from ({sum(map(_is_stored, starts))} stored)")
    parts.append(_count(sum(len(one.variants) - 1 for one in prepared), "quantized variant"))
    say(f"{_count(num_jobs, 'job')}: {', '.join(parts)}")
    shown: dict[str, str] = {}
    for one in prepared:
        say(*(f"note: {note}" for note in one.notes))
        for variant in one.variants[1:]:
            header, _, body = format_plan(variant.plan, policy=variant.config.policy.name).partition("\n")
            gist = _gist(variant.plan, body)
            same = shown.setdefault(gist, variant.label)
            lines = body.splitlines() if same == variant.label else [f"  the tensors of [{same}]"]
            say(f"[{variant.label}] {header}", *lines, *(f"  note: {note}; listed once" for note in variant.notes))


def _starts(prepared: Sequence[Prepared]) -> list[Prepared]:
    """The float trainings that others begin from and that no job asks for itself, each once."""
    own = {one.training for one in prepared}
    return list({one.start.training: one.start for one in prepared if one.start and one.start.training not in own}.values())


def _gist(chosen: Plan, body: str) -> str:
    """What tells two printed plans apart: all of it, or all but the width where one width serves all tensors."""
    widths = {spec.bits for spec in chosen.quantized.values()}
    return " ".join(re.sub(r"\d+", "#", body).split()) if len(widths) == 1 else body


def _is_stored(one: Prepared) -> bool:
    return not one.config.fresh and TrajectoryStore(Path(one.config.runs_dir)).open(one.training).is_complete


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


def estimate(prepared: Sequence[Prepared]) -> None:
    """Print time and disk that the sweep would take, from a few measured steps."""
    total_s, total_mib, starts = 0.0, 0.0, _starts(prepared)
    for one in [*starts, *prepared]:
        seconds, mib = _cost(one)
        total_s, total_mib = total_s + seconds, total_mib + mib
        what = " for the float training to begin from" if one in starts else ""
        say(f"{one.training}: about {seconds / 60:.1f} min and {mib:.1f} MiB here{what}")
    begun = f" and {_count(len(starts), 'float training')} to begin from" if starts else ""
    whole = f"about {total_s / 60:.1f} min and {total_mib:.1f} MiB"
    say(f"in all: {_count(len(prepared), 'training')}{begun}, {whole}; nothing was started (plan_only)")


def _cost(one: Prepared) -> tuple[float, float]:
    """Seconds and MiB of one merged job: measured seconds per image, times images and epochs."""
    config, bundle = one.config, one.bundle
    model = QatTraining(one, torch.device("cpu")).blank() if config.qat.is_on else one.network()
    channels, height, width = bundle.image_shape
    images = torch.randn(min(32, config.recipe.batch_size), channels, height, width)

    def step(train: bool) -> float:
        model.train(train)
        begin = time.perf_counter()
        with torch.set_grad_enabled(train):
            output = model(images)
            main = output if isinstance(output, torch.Tensor) else output[0]
            if train:
                main.sum().backward()
        return (time.perf_counter() - begin) / len(images)

    train_s, eval_s = (min(step(train) for _ in range(4)) for train in (True, False))
    num_eval = config.evaluate.num_images or bundle.split_sizes[config.evaluate.split]
    state_mib = sum(tensor.numel() * tensor.element_size() for tensor in model.state_dict().values()) / 2**20
    if config.checkpoint is not None:
        return eval_s * num_eval * len(one.variants), 0.0
    epochs = config.recipe.epochs
    kept = sum(config.trajectory.keeps(epoch, epochs) for epoch in range(1, epochs + 1))
    num_train = 0 if _is_stored(one) else bundle.split_sizes["train"]
    return epochs * (train_s * num_train + eval_s * num_eval * len(one.variants)), state_mib * (kept + 4)


def training_facts(one: Prepared) -> dict[str, Any]:
    """What the store writes beside a training: enough to list it and to run it again."""
    identity = {**training_identity(one.config), "data_hash": one.bundle.fingerprint, "split_sizes": one.bundle.split_sizes}
    return {
        "identity": identity,
        "config": asdict(one.config),
        "versions": environment.versions(),
        "epochs": one.config.recipe.epochs,
    }


def going_on(training: str, start: FitState | None) -> None:
    """Say where an interrupted training goes on."""
    if start is not None:
        place = f"epoch {start.epoch}" + (f", step {start.step} of the next" if start.step else "")
        say(f"  {training}: going on from {place}")


def epoch(records: Sequence[Record]) -> None:
    """One line per epoch: Prec@1 of the float network and of every copy."""
    parts = [f"{record.variant} {record.prec1:.2f}{' !' if record.alarms else ''}" for record in records]
    say(f"  epoch {records[0].epoch}  Prec@1  " + "  ".join(parts))
    for record in records:
        for alarm in record.alarms:
            say(f"  ! {record.variant}: {alarm}")


def left_alone(label: str, notes: Sequence[str]) -> None:
    """What the corrections of a copy left alone, and why."""
    say(*(f"  note: [{label}] {line}" for line in by_reason(notes, most=3)))


def by_reason(notes: Sequence[str], most: int | None = None) -> list[str]:
    """Notes of the form `layer: reason`, those for one reason together, of which `most` layers are named.

    >>> by_reason(["bn1: not folded, it is alone", "bn2: not folded, it is alone"])
    ['not folded, it is alone (bn1; bn2)']
    """
    reasons: dict[str, list[str]] = {}
    for note in notes:
        names, colon, reason = note.partition(": ")
        reasons.setdefault(reason if colon else note, []).extend([names] if colon else [])
    lines = []
    for reason, names in reasons.items():
        rest = f"; ... {len(names)} in all" if most is not None and len(names) > most else ""
        lines.append(f"{reason} ({'; '.join(names[:most])}{rest})" if names else reason)
    return lines


def failure(one: Prepared, error: Exception) -> Path | None:
    """Say which training failed and why; the traceback goes to a file beside it, which is returned, or to the screen."""
    complain(f"qexp: training {one.training} failed: {type(error).__name__}: {error}")
    text, path = "".join(traceback.format_exception(error)), one.folder / "traceback.txt"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    except OSError:  # the disk may be full, and that be the failure
        if not isinstance(error, SaveError):
            complain(text)
        return None
    complain(f"  traceback: {path}")
    return path


def report(config: Config) -> list[Path]:
    """Write tables and figures, print the table, say where everything is; returns the files, none where a table is refused."""
    try:
        written = write_report(config.name, runs_dir=config.runs_dir, results_dir=config.results_dir)
    except MixedProtocolsError as error:  # every number is stored: the sweep is done, its table has to be asked for
        say("", f"no report: {error}")
        return []
    say("", written.table, "", f"tables and figures: {written.folder}/")
    if config.tracking.enabled:
        uri = config.tracking.uri or f"sqlite:///{(Path(config.runs_dir) / 'mlflow.db').resolve()}"
        say(f"MLflow UI: make ui   (or: mlflow ui --host 127.0.0.1 --backend-store-uri {uri})")
    return [*written.figures, *written.tables]
