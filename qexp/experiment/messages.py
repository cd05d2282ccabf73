"""What the user reads while a sweep runs: the plan, where a training goes on, each epoch, what corrections left alone."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from qexp.base.console import emit, print_main, speaks_json
from qexp.base.files import canonical_json
from qexp.base.text import by_reason, counted
from qexp.config.metrics import METRICS
from qexp.engine.state import FitState
from qexp.engine.trajectory import TrajectoryStore
from qexp.experiment.identity import differences, training_identity
from qexp.experiment.job import Prepared
from qexp.experiment.variants import Variant
from qexp.policy.table import PrintedPlan, print_plan
from qexp.tracking.record import Record

TOLD = (  # fields of a record that its event has
    *("training", "variant", "variant_key", "epoch", "seed", "bits", "mode", "split", "n", "prec1", "prec5", "loss"),
    *("delta_prec1", "kl", "logit_sqnr_db", "size_bytes", "extra", "alarms"),
)


MANY = 8  # quantized variants, above which those that differ in width alone share a line of the plan


def plan(prepared: Sequence[Prepared], *, num_jobs: int, notes: Sequence[str] = ()) -> None:
    """Print what will run: jobs, trainings, variants, and which tensor is quantized how.

    Args:
        prepared: merged jobs.
        num_jobs: before they were merged.
        notes: on the files of an export.
    """
    if speaks_json():
        emit("plan", jobs=num_jobs, trainings=[_planned(one) for one in prepared], notes=notes)
    trainings = [one for one in prepared if one.config.checkpoint is None]
    parts = [f"{counted(len(trainings), 'training')} ({sum(map(is_stored, trainings))} stored)"] if trainings else []
    if starts := float_starts(prepared):
        parts.append(f"{counted(len(starts), 'float training')} to begin from ({sum(map(is_stored, starts))} stored)")
    parts.append(counted(sum(len(one.variants) - 1 for one in prepared), "quantized variant"))
    parts += [f"all {' '.join(prepared[0].common)}"] if prepared[0].common else []
    print_main(f"{counted(num_jobs, 'job')}: {', '.join(parts)}")
    print_main(*trained_anew([*starts, *trainings]))
    config = prepared[0].config
    whole = (config.plan or ("full" if config.plan_only else "short")) == "full"
    shown: dict[object, str] = {}  # what tells plans apart -> the first variant that has it
    titles: set[object] = set()  # of plans that other trainings have too
    said: set[str] = set()
    for one in prepared:
        print_main(*_once(said, (f"note: {note}" for note in one.notes)))
        plans = [(variant, print_plan(variant.plan, policy=variant.config.policy.name)) for variant in one.variants[1:]]
        alike = not whole and sum(len(other.variants) - 1 for other in prepared) > MANY
        for title, group in _titled(one, plans, alike=alike):
            gists = tuple(printed.gist for _, printed in group) if whole else ()
            if (title, gists) in titles:
                continue
            titles.add((title, gists))
            print_main(title)
            for variant, printed in group:
                lines: Iterable[str] = _once(said, printed.remarks)
                if whole:
                    same = shown.setdefault(printed.gist, name := one.shown(variant.named))
                    lines = printed.body if same == name else [f"  the tensors of [{same}]"]
                print_main(*lines, *_once(said, (f"  note: {note}; listed once" for note in variant.notes)))
    print_main(*(f"note: {note}" for note in notes))
    if not whole and any(len(one.variants) > 1 for one in prepared):
        kept = "" if config.plan_only else ", and plan.csv in the results has it"
        print_main(f"plan=full prints what becomes of each tensor and activation{kept}")


def _titled(
    one: Prepared, plans: Sequence[tuple[Variant, PrintedPlan]], *, alike: bool
) -> Iterator[tuple[str, list[tuple[Variant, PrintedPlan]]]]:
    """The line of each plan, or of those that differ in width alone, and which they are."""
    groups: dict[object, list[tuple[Variant, PrintedPlan]]] = {}
    for number, (variant, printed) in enumerate(plans):
        groups.setdefault(printed.way if alike else number, []).append((variant, printed))
    for group in groups.values():
        labels, (_, first) = ", ".join(one.shown(variant.named) for variant, _ in group), group[0]
        sizes = sorted(printed.size_mib for _, printed in group)
        several = f"W{'|'.join(printed.bits for _, printed in group)}{first.way}, {sizes[0]:.3g} to {sizes[-1]:.3g} MiB stored"
        yield f"[{labels}] {first.summary if len(group) == 1 else several}", group


def _planned(one: Prepared) -> dict[str, object]:
    """What a `plan` event says of a merged job."""
    of_checkpoint = one.config.checkpoint is not None
    return {
        "training": one.training,
        "checkpoint": one.config.checkpoint,
        "stored": None if of_checkpoint else is_stored(one),
        "epochs": None if of_checkpoint else one.config.recipe.epochs,
        "data": one.config.data.name,
        "model": one.config.model.name,
        "seed": one.config.seed,
        "notes": one.notes,
        "variants": [
            {
                "variant": variant.label,
                "variant_key": variant.key,
                "bits": variant.bits,
                "size_bytes": variant.size_bytes,
                "summary": print_plan(variant.plan, policy=variant.config.policy.name).summary,
                "notes": variant.notes,
            }
            for variant in one.variants[1:]
        ],
    }


def _once(said: set[str], lines: Iterable[str]) -> Iterator[str]:
    """The lines that were not said yet."""
    for line in lines:
        if line not in said:
            said.add(line)
            yield line


def identity_of(one: Prepared) -> dict[str, object]:
    """What a training's hash is made of, as it is written beside it."""
    content = {"data_hash": one.bundle.fingerprint, "split_sizes": one.bundle.split_sizes}
    return {**training_identity(one.config), **content, **one.rests_on}


def trained_anew(trainings: Sequence[Prepared]) -> Iterator[str]:
    """Notes: which stored trainings of the same settings do not answer for these, and why."""
    for one in trainings:
        store = TrajectoryStore(Path(one.config.runs_dir))
        if store.open(one.training).info:
            continue
        identity = json.loads(canonical_json(identity_of(one)))
        for other, stored in store.identities().items():
            if words := differences(identity, stored):
                streamed = " (files are known by their content now)" if one.bundle.streamed and words == ["data"] else ""
                other_content = f"stored training {other} has the same settings, but other {' and '.join(words)}{streamed}"
                yield f"note: {other_content}: {one.training} is trained anew"


def float_starts(prepared: Sequence[Prepared]) -> list[Prepared]:
    """The float trainings that others begin from and that no job asks for itself, each once."""
    own = {one.training for one in prepared if one.config.checkpoint is None}
    return list({one.start.training: one.start for one in prepared if one.start and one.start.training not in own}.values())


def is_stored(one: Prepared) -> bool:
    """True where the training of a job is complete and not asked for afresh."""
    return not one.config.fresh and TrajectoryStore(Path(one.config.runs_dir)).open(one.training).is_complete


def nothing_to_do(one: Prepared) -> None:
    """Say that a job is done as it stands."""
    again = " (fresh=true trains again)" if one.config.checkpoint is None else ""
    print_main(f"  {one.training}: nothing to do, every number is stored{again}")


def going_on(training: str, start: FitState | None, *, steps: int, epochs: int) -> None:
    """Say where an interrupted training goes on.

    Args:
        training: its hash.
        start: where; None at its beginning.
        steps: of an epoch.
        epochs: of the training.
    """
    if start is not None:
        print_main(f"  {training}: going on {start.place} of {steps if start.step else epochs}")


def trained(training: str, number: int, values: Mapping[str, float]) -> None:
    """The event of an epoch that was trained; `fit` prints its line."""
    emit("record", kind="epoch", training=training, epoch=number, **values)


def measured(records: Sequence[Record]) -> None:
    """The events of evaluations; `epoch` prints their line."""
    for record in records:
        emit("record", kind="evaluation", **{name: getattr(record, name) for name in TOLD})


def epoch(records: Sequence[Record], one: Prepared) -> None:
    """One line: Prec@1 of some networks after an epoch, and below it what is suspicious of them.

    Args:
        records: of the epoch.
        one: the job that has them.
    """
    names = [record.variant if record.named is None else one.shown(record.named) for record in records]
    parts = [f"{name} {record.prec1:.2f}{' !' if record.alarms else ''}" for name, record in zip(names, records, strict=True)]
    print_main(f"  epoch {records[0].epoch}  {METRICS['prec1'].title}  " + "  ".join(parts))
    for record in records:
        for text in record.alarms:
            alarm(record.variant, text, training=record.training, epoch=record.epoch)


def alarm(variant: str, text: str, *, training: str, epoch: int) -> None:
    """What is suspicious of a number."""
    print_main(f"  ! {variant}: {text}")
    emit("alarm", training=training, variant=variant, epoch=epoch, text=text)


def left_alone(label: str, notes: Sequence[str]) -> None:
    """What the corrections of a copy left alone, and why."""
    print_main(*(f"  note: [{label}] {line}" for line in by_reason(notes, most=3)))
