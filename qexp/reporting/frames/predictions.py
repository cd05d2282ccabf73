"""What networks predicted for each image, as stored: whole files of a store, and the compact file beside a table.

Everything that compares two networks image by image reads this. No torch: reports are made where only tables are at hand.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pandas as pd
from safetensors import SafetensorError, safe_open
from safetensors.numpy import load_file, save

from qexp.base.errors import UserError
from qexp.base.files import canonical_json, write_bytes_atomic
from qexp.base.progress import track
from qexp.reporting.frames.protocol import is_stopped
from qexp.tracking.record import FLOAT_VARIANT

Key = tuple[str, str, int, str, int]  # training, variant_key, epoch, split, n
Measurement = tuple[str, int, str, int]  # training, epoch, split, n: the same for a variant and its float network
STORES = ("trainings", "checkpoints")
KEY_COLUMNS = ["training", "variant_key", "epoch", "split", "n"]
STOPPED = "a test stopped its evaluation, and says what it decided"
NOT_KEPT = "no predictions were kept"


@dataclass(frozen=True, eq=False)
class Predictions:
    """One evaluation, image by image.

    Args:
        index: [N] integers, position in the split.
        label: [N] integers, the true class.
        top1: [N] integers, predicted class; -1 where logits were NaN.
        right5: [N] bool, one of the first five is right.
        log_prob: [N] float32, log-probability of the true class, nats; None where only classes were kept.
    """

    index: np.ndarray
    label: np.ndarray
    top1: np.ndarray
    right5: np.ndarray
    log_prob: np.ndarray | None = None

    @property
    def right(self) -> np.ndarray:
        """[N] bool, the first prediction is right."""
        return self.top1 == self.label

    @property
    def n(self) -> int:
        """Number of images."""
        return len(self.index)

    @property
    def images(self) -> Hashable:
        """Equal for predictions of the same images in the same order."""
        return (self.index.tobytes(), self.label.tobytes())


@dataclass(frozen=True, eq=False)
class StoredPredictions:
    """The predictions of an experiment's evaluations, as far as they were kept.

    Args:
        by_key: those that are stored.
        missing: why there are none for the others.
        floats: the float network of each measurement, of all epochs.
    """

    by_key: dict[Key, Predictions] = field(default_factory=dict)
    missing: dict[Key, str] = field(default_factory=dict)
    floats: dict[Measurement, Key] = field(default_factory=dict)

    def of(self, keys: Iterable[Key]) -> list[Predictions | None]:
        """The predictions of each key, None where there are none."""
        return [self.by_key.get(key) for key in keys]

    def references_of(self, frame: pd.DataFrame) -> list[Key | None]:
        """The float network that each row is tested against, None where it was not scored on the same images.

        That is the float control after the same epoch of a quantization-aware network that has one: against its start, what
        training on gave would be counted as what quantization did. It is the first protocol's of a float network whose images are
        prepared in another way. Else it is the row's own.

        Args:
            frame: records, or rows of a table.
        """
        others = next((frame[name] for name in ("compared_with", "control") if name in frame), [None] * len(frame))
        own = zip(others, map(measurement_of, keys_of(frame)), strict=True)
        return [self.floats.get((key[0] if pd.isna(other) else str(other), *key[1:])) for other, key in own]


def keys_of(frame: pd.DataFrame) -> list[Key]:
    """The key of each row."""
    return [
        (str(training), str(variant), int(epoch), str(split), int(n))
        for training, variant, epoch, split, n in frame[KEY_COLUMNS].itertuples(index=False)
    ]


def measurement_of(key: Key) -> Measurement:
    """The key without its variant."""
    return (key[0], *key[2:])


def float_keys(frame: pd.DataFrame) -> dict[Measurement, Key]:
    """The key of the float network of each measurement; the eager one, where there is one of a compiled program too."""
    floats = frame[frame["variant"] == FLOAT_VARIANT]
    if "engine" in floats:
        floats = floats.sort_values("engine", ascending=False, kind="stable")
    return {measurement_of(key): key for key in keys_of(floats)}


def load_predictions(records: pd.DataFrame, runs_dir: str | Path, *, log_prob: bool = False) -> StoredPredictions:
    """Read what a store kept of an experiment's evaluations.

    A file whose Prec@1 is not the record's belongs to another evaluation (`fresh=true` under another name) and is not used.

    Args:
        records: of `load_records`.
        runs_dir: where the store lies.
        log_prob: read these too, four bytes an image.
    """
    stored = StoredPredictions(floats=float_keys(records))
    shared: dict[Hashable, np.ndarray] = {}
    rows = zip(keys_of(records), _paths(records, Path(runs_dir)), records["prec1"], is_stopped(records), strict=True)
    for key, path, prec1, stopped in track(rows, "row", total=len(records)):
        if stopped or path is None:
            stored.missing[key] = STOPPED if stopped else NOT_KEPT
            continue
        predictions = read_predictions(path, log_prob=log_prob, shared=shared)
        if isinstance(predictions, str):
            stored.missing[key] = predictions
        elif predictions.n != key[4] or abs(100 * np.count_nonzero(predictions.right) / predictions.n - prec1) > 1e-6:
            stored.missing[key] = "the stored predictions are those of another evaluation"
        else:
            stored.by_key[key] = predictions
    return stored


def read_predictions(path: Path, *, log_prob: bool, shared: dict[Hashable, np.ndarray] | None = None) -> Predictions | str:
    """Read one file of a store, or return why that was not possible.

    Args:
        path: the file.
        log_prob: read these too.
        shared: arrays read so far; equal indices and labels are held once.
    """
    try:
        open(path, "rb").close()  # safetensors calls a file missing that may not be read
        fields = load_file(path)
        top5, label = fields["top5"], fields["label"]
        share = {} if shared is None else shared
        index, label = (share.setdefault(array.tobytes(), array) for array in (fields["index"], label))
        right5 = (top5 == label[:, None]).any(1)
        return Predictions(index, label, top5[:, 0].copy(), right5, fields["log_prob"] if log_prob else None)
    except FileNotFoundError:
        return f"{path.name} is no longer there"
    except (OSError, KeyError, IndexError, ValueError, SafetensorError) as error:
        return f"{path.name} cannot be read ({type(error).__name__})"


def _paths(records: pd.DataFrame, runs_dir: Path) -> Iterator[Path | None]:
    """The file of each row, which the record names relative to its training's folder."""
    for training, relative in zip(records["training"], records["predictions"], strict=True):
        if not isinstance(relative, str) or not relative:
            yield None
            continue
        candidates = [runs_dir / store / training / relative for store in STORES]
        yield next((path for path in candidates if path.exists()), candidates[0])


FILE = "predictions.safetensors"

FORMAT = "qexp predictions 1"


def write_compact(folder: Path, frames: Iterable[pd.DataFrame], stored: StoredPredictions) -> tuple[Path, str] | None:
    """Write the predictions of a table's rows and of the float networks they are compared with.

    Args:
        folder: `results/<name>`.
        frames: the table, and other rows that are compared.
        stored: the predictions to choose from.

    Returns:
        The file and its digest; None, and no file, where nothing is stored.
    """
    listed = [key for frame in frames for key in keys_of(frame)]
    measured = {measurement_of(key) for key in listed}
    keys = list(dict.fromkeys([*listed, *(key for measurement, key in stored.floats.items() if measurement in measured)]))
    sets: dict[Hashable, list[Key]] = {}  # keys of the same images
    for key in keys:
        if key in stored.by_key:
            sets.setdefault(stored.by_key[key].images, []).append(key)
    path = folder / FILE
    if not sets:
        path.unlink(missing_ok=True)
        return None
    tensors: dict[str, np.ndarray] = {}
    for number, members in enumerate(sets.values()):
        tensors |= {f"{number}.{name}": array for name, array in _pack([stored.by_key[key] for key in members]).items()}
    rows = [[[*key, stored.floats.get(measurement_of(key)) == key] for key in members] for members in sets.values()]
    digest = _digest(tensors, rows)
    metadata = {"format": FORMAT, "rows": canonical_json(rows), "digest": digest}
    write_bytes_atomic(path, save(tensors, metadata=metadata))
    return path, digest


def read_compact(path: Path) -> StoredPredictions:
    """Read what `write_compact` wrote, without log-probabilities.

    Raises:
        UserError: no such file, or its content is not what its digest says.
    """
    try:
        with safe_open(path, framework="numpy") as handle:
            metadata = handle.metadata() or {}
            tensors = {name: handle.get_tensor(name) for name in handle.keys()}  # noqa: SIM118  (it is no mapping)
    except (OSError, SafetensorError) as error:
        raise UserError("predictions", path, allowed="a file that qexp.report wrote", remedy=str(error)) from error
    if metadata.get("format") != FORMAT:
        raise UserError("predictions", path, allowed=f"a file of format {FORMAT!r}")
    rows = json.loads(metadata["rows"])
    if _digest(tensors, rows) != metadata["digest"]:
        raise UserError("predictions", path, allowed=f"content with the digest {metadata['digest']}", remedy="It was changed.")
    stored = StoredPredictions()
    for number, members in enumerate(rows):
        index, label = tensors[f"{number}.index"].astype(np.int64), tensors[f"{number}.label"].astype(np.int64)
        top1, right5 = tensors[f"{number}.top1"], tensors[f"{number}.right5"]
        for position, (training, variant, epoch, split, n, is_float) in enumerate(members):
            key = (training, variant, epoch, split, n)
            classes = top1[position].astype(np.int64)
            classes[top1[position] == np.iinfo(top1.dtype).max] = -1
            right = np.unpackbits(right5[position], count=len(index)).astype(bool)
            stored.by_key[key] = Predictions(index, label, classes, right)
            if is_float:
                stored.floats[measurement_of(key)] = key
    return stored


def _pack(predictions: list[Predictions]) -> dict[str, np.ndarray]:
    """The tensors of one set of images."""
    top1 = np.stack([network.top1 for network in predictions])
    dtype = _smallest(int(max(top1.max(), predictions[0].label.max())) + 1)
    packed = np.where(top1 < 0, np.iinfo(dtype).max, top1).astype(dtype)
    index = predictions[0].index
    return {
        "index": index.astype(_smallest(int(index.max()))),
        "label": predictions[0].label.astype(dtype),
        "top1": packed,
        "right5": np.packbits(np.stack([network.right5 for network in predictions]), axis=1),
    }


def _smallest(value: int) -> type[np.unsignedinteger]:
    """The smallest type that holds a number."""
    return np.uint8 if value < 2**8 else np.uint16 if value < 2**16 else np.uint32


def _digest(tensors: Mapping[str, np.ndarray], rows: Sequence[Sequence[Sequence[object]]]) -> str:
    """Of names, types, shapes, values and rows."""
    digest = hashlib.sha256(canonical_json(rows).encode())
    for name in sorted(tensors):
        array = np.ascontiguousarray(tensors[name])
        digest.update(canonical_json([name, str(array.dtype), list(array.shape)]).encode())
        digest.update(array.tobytes())
    return digest.hexdigest()[:16]
