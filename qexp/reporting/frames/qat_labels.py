"""Names for trainings where quantization-aware ones are among them: `lsq W2A2 mask=rounded seed=1`, `float control`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qexp.reporting.frames.lineage import WEIGHTS, Lineage, Training, lineages
from qexp.reporting.frames.training_labels import MAX_LABEL_PARTS, is_training_key, plain, short, training_labels
from qexp.tracking.journal import CONVERTED

START, CONTROL = "float start", "float control"
# What the method and its widths say already, and a number that no reader sets.
SAID = (
    "qat.name", "qat.bits", "qat.version", "qat.activations", "quant.activation.bits", "seed", "checkpoint", "deterministic",
)  # fmt: skip
DIALS = ("policy.", "quant.")  # of the variant: they decide a training that quantizes


@dataclass(frozen=True)
class Named:
    """A training's place among the others, in words.

    Args:
        label: what tells it from the others.
        group: that without the seed.
        curve: that without data and network.
        role: `start`, `control`, `qat`, `float` (neither of the former) or `checkpoint`.
        method: of a quantization-aware training: its method and what else differs, without the widths.
        comparison: what is drawn together: data, network and start, as far as the experiment has several; None outside of any.
        start: as in `Lineage`.
        control: as in `Lineage`; a control is its own.
    """

    label: str
    group: str
    curve: str
    role: str
    method: str = ""
    comparison: str | None = None
    start: str | None = None
    control: str | None = None


def name_trainings(trainings: Mapping[str, Training], quantized: Mapping[str, tuple[str, Mapping[str, Any]]]) -> dict[str, Named]:
    """Hash -> names.

    Args:
        trainings: of the experiment.
        quantized: hash -> label and parameters of what a training or a checkpoint was quantized to.
    """
    found = lineages(trainings)
    titles = _titles(found)
    bases = {key: _base(each, found, quantized, trainings) for key, each in trainings.items()}
    network = _differing({key: each.network for key, each in trainings.items()})
    if "data.name" in network:
        network = [key for key in network if not key.startswith("data.") or key == "data.name"]
    more = _extras(trainings, bases, quantized)
    seeded = len({each.params.get("seed") for each in trainings.values()}) > 1
    texts = {}
    for key, each in trainings.items():
        place = [f"{short(name, network)}={plain(each.params.get(name))}" for name in network]
        texts[key] = " ".join([*place, bases[key], *more[key]])
    seeds = {key: f" seed={each.params.get('seed')}" if seeded else "" for key, each in trainings.items()}
    labels = {key: texts[key] + seeds[key] for key in trainings}
    alike = list(labels.values())
    named = {}
    for key, each in trainings.items():
        mark = f" {key[:6]}" if alike.count(labels[key]) > 1 else ""
        own = _lineage(each, found)
        named[key] = Named(
            label=labels[key] + mark,
            group=texts[key] + mark,
            curve=" ".join([bases[key], *more[key]]) + mark,
            role=_role(each, found),
            method=" ".join([str(each.params.get("qat.name")), *more[key]]) + mark if each.is_qat else "",
            comparison=titles[own.comparison] if own is not None else None,
            start=own.start if each.is_qat else None,
            control=own.control if each.is_qat else key if _role(each, found) == "control" else None,
        )
    return named


def _titles(found: Mapping[str, Lineage]) -> dict[str, str]:
    """Comparison -> the data, network or start that tells it from the others; nothing where it is the only one."""
    first = {each.comparison: each.facts for each in found.values()}
    labels = training_labels(first)
    return {key: label for key, (label, _) in labels.items()} if len(first) > 1 else dict.fromkeys(first, "")


def _role(training: Training, found: Mapping[str, Lineage]) -> str:
    if training.is_qat:
        return "qat"
    if not training.is_float:
        return "checkpoint"
    if any(each.control == training.key for each in found.values()):
        return "control"
    return "start" if any(each.start == training.key for each in found.values()) else "float"


def _lineage(training: Training, found: Mapping[str, Lineage]) -> Lineage | None:
    """Its own, or that of the first training which it serves."""
    serves = (each for each in found.values() if training.key in (each.control, each.start))
    return found.get(training.key) or next(serves, None)


def _base(
    training: Training,
    found: Mapping[str, Lineage],
    quantized: Mapping[str, tuple[str, Mapping[str, Any]]],
    trainings: Mapping[str, Training],
) -> str:
    """`lsq W2A2`, `float start`, `float control`, `float`, `converted lsq W2A2` or `checkpoint=FILE`."""
    role = _role(training, found)
    variant, _ = quantized.get(training.key, ("", {}))
    if role == "qat":
        return f"{training.params['qat.name']} {_widths(variant) or 'W{}'.format(training.params.get('qat.bits'))}"
    if role != "checkpoint":
        return {"start": START, "control": CONTROL, "float": "float"}[role]
    path = Path(str(training.params["checkpoint"]))
    if path.name != CONVERTED:
        return f"checkpoint={path.name}"
    trained = trainings.get(path.parent.name)
    if trained is not None:
        return f"converted {_base(trained, found, quantized, trainings)}"
    widths, _, method = variant.partition(" ")
    return f"converted {method.partition(' ')[0]} {widths}".rstrip()


def _widths(variant: str) -> str:
    """`W2A2` of the label `W2A2 lsq rounded`."""
    return variant.partition(" ")[0]


def _extras(
    trainings: Mapping[str, Training],
    bases: Mapping[str, str],
    quantized: Mapping[str, tuple[str, Mapping[str, Any]]],
) -> dict[str, list[str]]:
    """What else differs: among the quantization-aware trainings, and among float ones of the same name."""
    kinds: dict[str, dict[str, Mapping[str, Any]]] = {}
    for key, each in trainings.items():
        dials = quantized.get(key, ("", {}))[1] if each.is_qat else {}
        settings = {name: value for name, value in dials.items() if name.startswith(DIALS)}
        settings |= {name: value for name, value in each.params.items() if is_training_key(name)}
        kept = {name: value for name, value in settings.items() if name not in SAID and name not in each.network}
        kinds.setdefault("qat" if each.is_qat else bases[key], {})[key] = kept
    found = {}
    for settings in kinds.values():
        chosen = _differing(settings)[:MAX_LABEL_PARTS]
        known = {name for values in settings.values() for name in values}
        for key, values in settings.items():
            found[key] = [f"{_word(name, known)}={plain(values.get(name))}" for name in chosen]
    return found


def _word(name: str, known: Iterable[str]) -> str:
    """`calibrate` for `qat.calibrate.name`, else as short as leaves no doubt."""
    return short(name, known).removeprefix("qat.") if name.endswith(".name") else short(name, known)


def _differing(settings: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """The settings that differ as they are printed, names of things first, where trainings begin last."""
    names = sorted({name for values in settings.values() for name in values})
    differ = [name for name in names if len({plain(values.get(name)) for values in settings.values()}) > 1]
    return sorted(differ, key=lambda name: (name == WEIGHTS, not name.endswith(".name"), name))
