"""`results/<name>/predictions.safetensors`: what the rows of a table answered, in little more than a byte an image.

Tensors, for each set of images k: `k.index` and `k.label` [N], `k.top1` [rows, N] (the largest value of its type where logits
were NaN) and `k.right5` [rows, ceil(N/8)], eight images a byte, the first in the highest bit. The metadata names the rows, says
which are float networks, and holds the digest of all of it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from qexp.base.errors import UserError
from qexp.base.files import canonical_json, write_atomic
from qexp.reporting.answers import Answers, Found, Key, Place, float_keys, keys_of, place_of

FILE = "predictions.safetensors"
FORMAT = "qexp predictions 1"


def write_compact(folder: Path, frames: Iterable[pd.DataFrame], records: pd.DataFrame, found: Found) -> tuple[Path, str] | None:
    """Write the predictions of a table's rows and of the float networks they are compared with.

    Returns:
        The file and its digest; None, and no file, where nothing is stored.

    Args:
        folder: `results/<name>`. frames: the table, and other rows that are compared. records: of all epochs.
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
