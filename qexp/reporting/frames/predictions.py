"""What networks answered for each image, as stored: whole files of a store, and the compact file beside a table.

Everything that compares two networks image by image reads this. No torch: reports are made where only tables are at hand.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Hashable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from safetensors import SafetensorError, safe_open
from safetensors.numpy import load_file, save

from qexp.base.errors import UserError
from qexp.base.files import canonical_json, write_atomic
from qexp.tracking.record import FLOAT_VARIANT

Key = tuple[str, str, int, str, int]  # training, variant_key, epoch, split, n
Place = tuple[str, int, str, int]  # training, epoch, split, n: what a variant and its float network share
STORES = ("trainings", "checkpoints")
KEY_COLUMNS = ["training", "variant_key", "epoch", "split", "n"]
NOT_KEPT = "no predictions were kept"


@dataclass(frozen=True, eq=False)
class Answers:
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
        """Equal for answers to the same images in the same order."""
        return (self.index.tobytes(), self.label.tobytes())


@dataclass(frozen=True, eq=False)
class Found:
    """Stored answers by evaluation, and why there are none for the others."""

    answers: dict[Key, Answers] = field(default_factory=dict)
    missing: dict[Key, str] = field(default_factory=dict)

    def of(self, keys: Iterable[Key]) -> list[Answers | None]:
        """The answers of each key, None where there are none."""
        return [self.answers.get(key) for key in keys]


def keys_of(frame: pd.DataFrame) -> list[Key]:
    """The key of each row."""
    return [
        (str(training), str(variant), int(epoch), str(split), int(n))
        for training, variant, epoch, split, n in frame[KEY_COLUMNS].itertuples(index=False)
    ]


def place_of(key: Key) -> Place:
    """The key without its variant."""
    return (key[0], *key[2:])


def float_keys(frame: pd.DataFrame) -> dict[Place, Key]:
    """Place -> the key of its float network."""
    return {place_of(key): key for key in keys_of(frame[frame["variant"] == FLOAT_VARIANT])}


def stored_answers(records: pd.DataFrame, runs_dir: str | Path, *, log_prob: bool = False) -> Found:
    """Read what a store kept of an experiment's evaluations.

    A file whose Prec@1 is not the record's belongs to another evaluation (`fresh=true` under another name) and is not used.

    Args:
        records: of `load_records`.
        log_prob: read these too, four bytes an image.
    """
    found, shared = Found(), {}
    for key, path, prec1 in zip(keys_of(records), _paths(records, Path(runs_dir)), records["prec1"], strict=True):
        if path is None:
            found.missing[key] = NOT_KEPT
            continue
        answers = read_answers(path, log_prob=log_prob, shared=shared)
        if isinstance(answers, str):
            found.missing[key] = answers
        elif answers.n != key[4] or abs(100 * np.count_nonzero(answers.right) / answers.n - prec1) > 1e-6:
            found.missing[key] = "the stored predictions are those of another evaluation"
        else:
            found.answers[key] = answers
    return found


def read_answers(path: Path, *, log_prob: bool, shared: dict[Hashable, np.ndarray] | None = None) -> Answers | str:
    """Read one file of a store, or say why that was not possible.

    Args:
        shared: arrays read so far; equal indices and labels are held once.
    """
    try:
        fields = load_file(path)
        top5, label = fields["top5"], fields["label"]
        share = {} if shared is None else shared
        index, label = (share.setdefault(array.tobytes(), array) for array in (fields["index"], label))
        right5 = (top5 == label[:, None]).any(1)
        return Answers(index, label, top5[:, 0].copy(), right5, fields["log_prob"] if log_prob else None)
    except FileNotFoundError:
        return f"{path.name} is no longer there"
    except (OSError, KeyError, IndexError, ValueError, SafetensorError) as error:
        return f"{path.name} cannot be read ({type(error).__name__})"


def _paths(records: pd.DataFrame, runs_dir: Path) -> Iterator[Path | None]:
    """The file of each row, as the ledger names it: relative to its training's folder."""
    for training, relative in zip(records["training"], records["predictions"], strict=True):
        if not isinstance(relative, str) or not relative:
            yield None
            continue
        candidates = [runs_dir / store / training / relative for store in STORES]
        yield next((path for path in candidates if path.exists()), candidates[0])


FILE = "predictions.safetensors"

FORMAT = "qexp predictions 1"


def write_compact(folder: Path, frames: Iterable[pd.DataFrame], records: pd.DataFrame, found: Found) -> tuple[Path, str] | None:
    """Write the predictions of a table's rows and of the float networks they are compared with.

    Returns:
        The file and its digest; None, and no file, where nothing is stored.

    Args:
        folder: `results/<name>`.
        frames: the table, and other rows that are compared.
        records: of all epochs.
    """
    listed = [key for frame in frames for key in keys_of(frame)]
    places, floats = {place_of(key) for key in listed}, float_keys(records)
    keys = list(dict.fromkeys([*listed, *(key for place, key in floats.items() if place in places)]))
    sets: dict[Any, list[Key]] = {}
    for key in keys:
        if key in found.answers:
            sets.setdefault(found.answers[key].images, []).append(key)
    path = folder / FILE
    if not sets:
        path.unlink(missing_ok=True)
        return None
    tensors: dict[str, np.ndarray] = {}
    for number, members in enumerate(sets.values()):
        tensors |= {f"{number}.{name}": array for name, array in _pack([found.answers[key] for key in members]).items()}
    rows = [[[*key, floats.get(place_of(key)) == key] for key in members] for members in sets.values()]
    digest = _digest(tensors, rows)
    metadata = {"format": FORMAT, "rows": canonical_json(rows), "digest": digest}
    write_atomic(path, partial(_write, save(tensors, metadata=metadata)))
    return path, digest


def read_compact(path: Path) -> tuple[Found, dict[Place, Key]]:
    """Read what `write_compact` wrote, without log-probabilities, and the float network of each place.

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
    found, floats = Found(), {}
    for number, members in enumerate(rows):
        index, label = tensors[f"{number}.index"].astype(np.int64), tensors[f"{number}.label"].astype(np.int64)
        top1, right5 = tensors[f"{number}.top1"], tensors[f"{number}.right5"]
        for place, (*key, is_float) in enumerate(members):
            classes = top1[place].astype(np.int64)
            classes[top1[place] == np.iinfo(top1.dtype).max] = -1
            right = np.unpackbits(right5[place], count=len(index)).astype(bool)
            found.answers[tuple(key)] = Answers(index, label, classes, right)
            floats |= {place_of(tuple(key)): tuple(key)} if is_float else {}
    return found, floats


def _pack(answers: list[Answers]) -> dict[str, np.ndarray]:
    """The tensors of one set of images."""
    top1 = np.stack([each.top1 for each in answers])
    kind = _smallest(int(max(top1.max(), answers[0].label.max())) + 1)
    packed = np.where(top1 < 0, np.iinfo(kind).max, top1).astype(kind)
    index = answers[0].index
    return {
        "index": index.astype(_smallest(int(index.max()))),
        "label": answers[0].label.astype(kind),
        "top1": packed,
        "right5": np.packbits(np.stack([each.right5 for each in answers]), axis=1),
    }


def _smallest(value: int) -> type[np.unsignedinteger]:
    """The smallest type that holds a number."""
    return np.uint8 if value < 2**8 else np.uint16 if value < 2**16 else np.uint32


def _digest(tensors: Mapping[str, np.ndarray], rows: list) -> str:
    """Of names, types, shapes, values and rows."""
    digest = hashlib.sha256(canonical_json(rows).encode())
    for name in sorted(tensors):
        array = np.ascontiguousarray(tensors[name])
        digest.update(canonical_json([name, str(array.dtype), list(array.shape)]).encode())
        digest.update(array.tobytes())
    return digest.hexdigest()[:16]


def _write(data: bytes, path: Path) -> None:
    path.write_bytes(data)
