"""Which float training a quantization-aware one began from, and which one is its control.

A journal says of each training what was asked for. The start is the float training with the same settings but for `qat`. The
control has the recipe that the quantization-aware training had in the end (`train.*`), the same seed, and begins from the same
weights.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from qexp.base.files import hash_json
from qexp.tracking.row_types import RunRow
from qexp.tracking.rows import Scalar

Origin = tuple[str, ...] | tuple[str, str | None]  # what a training's first weights are: `random`, a file, a training
WEIGHTS = "model.weights"
NO_DECISION = (
    "data.root",
    "data.classes",
    "data.download",
    "data.workers",
    "data.storage",
    "checkpoint_every_steps",
)  # of a training's weights


@dataclass(frozen=True)
class Training:
    """A training as the journal has it.

    Args:
        key: its hash, or a checkpoint's.
        params: of its run; `model.weights` is the file as it was typed.
        asked: `train` as it was typed, before `qat` replaced some of it.
        epochs: planned; None where there was no training.
    """

    key: str
    params: Mapping[str, Scalar]
    asked: Mapping[str, object]
    epochs: int | None

    @property
    def is_qat(self) -> bool:
        """True for a quantization-aware training."""
        return "qat.name" in self.params

    @property
    def is_float(self) -> bool:
        """True for a training that knows no quantization; a checkpoint is none."""
        return not self.is_qat and "checkpoint" not in self.params

    @property
    def recipe(self) -> dict[str, Scalar]:
        """What it was trained with: `train.*`."""
        return {key: value for key, value in self.params.items() if key.startswith("train.")}

    @property
    def network(self) -> dict[str, Scalar]:
        """Data and network, without the weights."""
        kept = {key: value for key, value in self.params.items() if key.startswith(("data.", "model."))}
        return {key: value for key, value in kept.items() if key not in (WEIGHTS, *NO_DECISION)}


@dataclass(frozen=True)
class Lineage:
    """Where a quantization-aware training stands among the others.

    Args:
        start: hash of the float training that it began from, or the file; None with random weights.
        control: hash of its float control; None where the experiment has none.
        comparison: equal for trainings that may be compared: same data, network and float start, whatever the seed.
        facts: what `comparison` is the hash of.
    """

    start: str | None
    control: str | None
    comparison: str
    facts: Mapping[str, object]


def read_training(key: str, run: RunRow | None) -> Training:
    """A training from its row in the journal; an empty one where it was never opened."""
    config = json.loads(run.get("artifacts", {}).get("config.json", "{}")) if run is not None else {}
    params = dict(run.get("params", {})) if run is not None else {}
    if config.get("model", {}).get("weights") is not None:
        params[WEIGHTS] = config["model"]["weights"]
    recipe = {name.removeprefix("train."): value for name, value in params.items() if name.startswith("train.")}
    asked = {name: value for name, value in config.get("train", recipe).items() if name not in NO_DECISION}
    return Training(key, params, asked, run.get("planned_epochs") if run is not None else None)


def lineages(trainings: Mapping[str, Training]) -> dict[str, Lineage]:
    """The lineage of each quantization-aware training, by its hash."""
    floats = [training for training in trainings.values() if training.is_float]
    by_key = {}
    for qat in trainings.values():
        if not qat.is_qat:
            continue
        init = qat.params.get("qat.init")
        start = next((candidate.key for candidate in floats if _is_start(candidate, qat)), None) if init == "training" else None
        facts: dict[str, object] = {**qat.network, WEIGHTS: qat.params.get(WEIGHTS), "qat.init": init}
        facts |= {f"train.{key}": value for key, value in qat.asked.items()} if init == "training" else {}
        origin = ("training", start) if init == "training" else _origin(qat, trainings)
        control = next((candidate.key for candidate in floats if _is_control(candidate, qat, origin, trainings)), None)
        if start is None and init != "none":
            start = str(qat.params.get(WEIGHTS)) if init == "checkpoint" else "float training"
        by_key[qat.key] = Lineage(start, control, hash_json(facts), facts)
    return by_key


def _is_start(candidate: Training, qat: Training) -> bool:
    same = candidate.network == qat.network and _same_seed(candidate, qat) and same_values(candidate.asked, qat.asked)
    return same and candidate.params.get(WEIGHTS) == qat.params.get(WEIGHTS)


def _is_control(candidate: Training, qat: Training, origin: Origin, trainings: Mapping[str, Training]) -> bool:
    same = candidate.network == qat.network and _same_seed(candidate, qat) and same_values(candidate.recipe, qat.recipe)
    return same and _origin(candidate, trainings) == origin


def _same_seed(candidate: Training, qat: Training) -> bool:
    return candidate.params.get("seed") == qat.params.get("seed")


def _origin(training: Training, trainings: Mapping[str, Training]) -> Origin:
    """The weights that a training begins with: random ones, a file, or the last epoch of another training of the experiment."""
    weights = training.params.get(WEIGHTS)
    if weights is None:
        return ("random",)
    path = Path(str(weights))
    *_, folder, epochs, file = ("", "", *path.parts)
    stored = trainings.get(folder)
    if stored is not None and epochs == "epochs" and Path(file).stem == f"{stored.epochs or 0:04d}":
        return ("training", folder)
    return ("file", str(path))


def same_values(settings: Mapping[str, object], others: Mapping[str, object]) -> bool:
    """True where both have the same values; a tenth of 0.05 is 0.005, whatever the last bit says.

    >>> same_values({"lr": 0.1 * 0.05}, {"lr": 0.005})
    True
    """
    return settings.keys() == others.keys() and all(_same(value, others[key]) for key, value in settings.items())


def _same(value: object, other: object) -> bool:
    if isinstance(value, float) and isinstance(other, float):
        return math.isclose(value, other, rel_tol=1e-9)
    return bool(value == other)
