"""Names for trainings where quantization-aware ones are among them: `lsq W2A2 mask=rounded seed=1`, `float control`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from qexp.base.label import Label
from qexp.reporting.frames.lineage import WEIGHTS, Lineage, Training, lineages
from qexp.reporting.frames.training_labels import MAX_LABEL_PARTS, is_training_key, short_key, training_labels, value_text
from qexp.tracking.journal import CONVERTED

Quantized = tuple[Label, Mapping[str, object]]  # label and parameters of what a training was quantized to
START, CONTROL = "float start", "float control"
# What the method and its widths say already, and a number that no reader sets.
IN_BASE = (
    "qat.name", "qat.bits", "qat.version", "qat.activations", "quant.activation.bits", "seed", "checkpoint", "deterministic",
)  # fmt: skip
VARIANT_KEYS = ("policy.", "quant.")  # of the variant: they decide a training that quantizes


@dataclass(frozen=True)
class Named:
    """A training's place among the others, in words.

    Args:
        label: what distinguishes it from the others.
        group: that without the seed.
        curve: that without data and network.
        role: `start`, `control`, `qat`, `float` (neither of the former) or `checkpoint`.
        trained_with: the method of a quantization-aware training.
        method: of a quantization-aware training: its method and what else differs, without the widths.
        comparison: what is drawn together: data, network and start, as far as the experiment has several; None outside of any.
        start: as in `Lineage`.
        control: as in `Lineage`; a control is its own.
    """

    label: str
    group: str
    curve: str
    role: str
    trained_with: str = ""
    method: str = ""
    comparison: str | None = None
    start: str | None = None
    control: str | None = None


def name_trainings(trainings: Mapping[str, Training], quantized: Mapping[str, Quantized]) -> dict[str, Named]:
    """The names of each training, by its hash.

    Args:
        trainings: of the experiment.
        quantized: hash -> label and parameters of what a training or a checkpoint was quantized to.
    """
    by_key = lineages(trainings)
    titles = _titles(by_key)
    bases = {key: _base(training, by_key, quantized, trainings) for key, training in trainings.items()}
    network = _differing({key: training.network for key, training in trainings.items()})
    if "data.name" in network:
        network = [key for key in network if not key.startswith("data.") or key == "data.name"]
    extras = _extras(trainings, bases, quantized)
    seeded = len({training.params.get("seed") for training in trainings.values()}) > 1
    texts = {}
    for key, training in trainings.items():
        subject = [f"{short_key(name, network)}={value_text(training.params.get(name))}" for name in network]
        texts[key] = " ".join([*subject, bases[key], *extras[key]])
    seeds = {key: f" seed={training.params.get('seed')}" if seeded else "" for key, training in trainings.items()}
    labels = {key: texts[key] + seeds[key] for key in trainings}
    alike = list(labels.values())
    named = {}
    for key, training in trainings.items():
        mark = f" {key[:6]}" if alike.count(labels[key]) > 1 else ""
        method = str(training.params["qat.name"]) if training.is_qat else ""
        role, own, served = _role(training, by_key), by_key.get(key), _lineage(training, by_key)
        named[key] = Named(
            label=labels[key] + mark,
            group=texts[key] + mark,
            curve=" ".join([bases[key], *extras[key]]) + mark,
            role=role,
            trained_with=method,
            method=" ".join([method, *extras[key]]) + mark if method else "",
            comparison=titles[served.comparison] if served is not None else None,
            start=own.start if own is not None else None,
            control=own.control if own is not None else key if role == "control" else None,
        )
    return named


def _titles(by_key: Mapping[str, Lineage]) -> dict[str, str]:
    """Comparison -> the data, network or start that distinguishes it from the others; nothing where it is the only one."""
    facts = {lineage.comparison: lineage.facts for lineage in by_key.values()}
    labels = training_labels(facts)
    return {key: label for key, (label, _) in labels.items()} if len(facts) > 1 else dict.fromkeys(facts, "")


def _role(training: Training, by_key: Mapping[str, Lineage]) -> str:
    if training.is_qat:
        return "qat"
    if not training.is_float:
        return "checkpoint"
    if any(lineage.control == training.key for lineage in by_key.values()):
        return "control"
    return "start" if any(lineage.start == training.key for lineage in by_key.values()) else "float"


def _lineage(training: Training, by_key: Mapping[str, Lineage]) -> Lineage | None:
    """Its own, or that of the first training which it serves."""
    serves = (lineage for lineage in by_key.values() if training.key in (lineage.control, lineage.start))
    return by_key.get(training.key) or next(serves, None)


def _base(
    training: Training,
    by_key: Mapping[str, Lineage],
    quantized: Mapping[str, Quantized],
    trainings: Mapping[str, Training],
) -> str:
    """`lsq W2A2`, `float start`, `float control`, `float`, `converted lsq W2A2` or `checkpoint=FILE`."""
    role = _role(training, by_key)
    label, _ = quantized.get(training.key, (None, {}))
    if role == "qat":
        return f"{training.params['qat.name']} {label.widths if label else 'W{}'.format(training.params.get('qat.bits'))}"
    if role != "checkpoint":
        return {"start": START, "control": CONTROL, "float": "float"}[role]
    path = Path(str(training.params["checkpoint"]))
    if path.name != CONVERTED:
        return f"checkpoint={path.name}"
    trained = trainings.get(path.parent.name)
    if trained is not None:
        return f"converted {_base(trained, by_key, quantized, trainings)}"
    return f"converted {label.way} {label.widths}" if label else "converted"


def _extras(
    trainings: Mapping[str, Training],
    bases: Mapping[str, str],
    quantized: Mapping[str, Quantized],
) -> dict[str, list[str]]:
    """What else differs: among the quantization-aware trainings, and among float ones of the same name."""
    groups: dict[str, dict[str, Mapping[str, object]]] = {}  # of trainings that are told apart from each other
    for key, training in trainings.items():
        variant_params = quantized[key][1] if training.is_qat and key in quantized else {}
        params = {name: value for name, value in variant_params.items() if name.startswith(VARIANT_KEYS)}
        params |= {name: value for name, value in training.params.items() if is_training_key(name)}
        kept = {name: value for name, value in params.items() if name not in IN_BASE and name not in training.network}
        groups.setdefault("qat" if training.is_qat else bases[key], {})[key] = kept
    extras = {}
    for settings in groups.values():
        chosen = _differing(settings)[:MAX_LABEL_PARTS]
        known = {name for values in settings.values() for name in values}
        for key, values in settings.items():
            extras[key] = [f"{_word(name, known)}={value_text(values.get(name))}" for name in chosen]
    return extras


def _word(name: str, known: Iterable[str]) -> str:
    """`calibrate` for `qat.calibrate.name`, else as short as leaves no doubt."""
    return short_key(name, known).removeprefix("qat.") if name.endswith(".name") else short_key(name, known)


def _differing(settings: Mapping[str, Mapping[str, object]]) -> list[str]:
    """The settings that differ as they are printed, names of things first, where trainings begin last."""
    names = sorted({name for values in settings.values() for name in values})
    differ = [name for name in names if len({value_text(values.get(name)) for values in settings.values()}) > 1]
    return sorted(differ, key=lambda name: (name == WEIGHTS, not name.endswith(".name"), name))
