"""The ranges that a calibration found, and all that they rest on; one file that is read again without running anything.

The file is safetensors: the ranges are its tensors, everything else JSON in its header, with the hash of both.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from qexp.base.errors import UserError, nearest
from qexp.base.files import canonical_json, hash_json, write_atomic
from qexp.base.types import QuantSpec
from qexp.config.calibrate import CALIB
from qexp.nn.fake_quant import CONTAINER
from qexp.ptq.range_methods import Limits

CALIBRATION_VERSION = 1  # raise it when the same settings come to give other ranges
_HEADER = "calibration"


@dataclass(frozen=True, eq=False, kw_only=True)
class Calibration:
    """The ranges of a network's activations.

    Args:
        ranges: activation point -> (minimum, maximum), float32 on the CPU, 0-d or [channels].
        methods: activation point -> name of the method that found its range.
        grids: activation point -> what that range depends on of its spec.
        settings: `CalibrateSettings.identity`.
        split: where the images came from.
        num_images: over all ranks.
        data_fingerprint: of the data set.
        weights_hash: of the network, `hash_tensors` of its state dict.
        version: of the methods.
    """

    ranges: Mapping[str, Limits]
    methods: Mapping[str, str]
    grids: Mapping[str, Mapping[str, object]]
    settings: Mapping[str, object]
    split: str
    num_images: int
    data_fingerprint: str
    weights_hash: str
    version: int = CALIBRATION_VERSION

    @property
    def waived(self) -> bool:
        """True where the images were not those set aside for calibration: to be stamped on every number."""
        return self.num_images > 0 and self.split != CALIB

    def alarms(self, data_fingerprint: str) -> tuple[str, ...]:
        """What to stamp on every number: images that were not set aside for calibration, or those of another data set.

        Args:
            data_fingerprint: of the data that the number is measured on.
        """
        alarms = [f"calibrated on {self.split} images, which are not the {CALIB} split"] if self.waived else []
        if self.num_images > 0 and self.data_fingerprint != data_fingerprint:
            alarms.append(f"calibrated on other data ({self.data_fingerprint}, not {data_fingerprint})")
        return tuple(alarms)

    @property
    def about(self) -> dict[str, object]:
        """Everything but the ranges, as JSON values."""
        values = {name: value for name, value in vars(self).items() if name != "ranges"}
        return {name: dict(value) if isinstance(value, Mapping) else value for name, value in values.items()}

    @property
    def hash(self) -> str:
        """16 hex digits that name the content: ranges and all that they rest on."""
        return hash_json({"about": self.about, "ranges": hash_tensors(self._tensors())})

    def _tensors(self) -> dict[str, Tensor]:
        sides = ("minimum", "maximum")
        return {
            f"{side}/{point}": end.detach().float().cpu().contiguous().clone()
            for point, ends in self.ranges.items()
            for side, end in zip(sides, ends, strict=True)
        }

    def save(self, path: Path) -> None:
        """Write the file, whole or not at all."""
        header = {_HEADER: canonical_json({"hash": self.hash, **self.about})}
        write_atomic(path, lambda partial: save_file(self._tensors(), partial, metadata=header))

    @classmethod
    def load(cls, path: Path) -> Calibration:
        """Read what `save` wrote.

        Raises:
            UserError: there is no such file, it is none of ours, damaged, or of another version of the methods.
        """
        remedy = "Calibrate again: without calibrate.file the same command finds ranges and saves them."
        ours, key = "a file of calibrated ranges", "calibrate.file"
        try:
            with safe_open(path, framework="pt") as file:
                header = json.loads((file.metadata() or {}).get(_HEADER, "null"))
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118, it is no dict
        except FileNotFoundError:
            raise UserError(key, path, allowed="a file that exists", remedy=remedy) from None
        except (SafetensorError, ValueError, OSError) as error:
            raise UserError(key, path, allowed=ours, remedy=f"{error}. {remedy}") from None
        if not isinstance(header, dict):
            raise UserError(key, path, allowed=ours, remedy=remedy)
        if header.get("version") != CALIBRATION_VERSION:
            what = f"{path} of version {header.get('version')}"
            raise UserError(key, what, allowed=f"version {CALIBRATION_VERSION}", remedy=remedy)
        expected, points = header.pop("hash", None), header.get("methods")
        names = {point: (f"minimum/{point}", f"maximum/{point}") for point in points or ()}
        whole = set(header) == {field.name for field in fields(cls)} - {"ranges"}
        if not whole or not all(low in tensors and high in tensors for low, high in names.values()):
            raise UserError(key, path, allowed="an undamaged file", remedy=remedy)
        ranges = {point: (tensors[low], tensors[high]) for point, (low, high) in names.items()}
        calibration = cls(ranges=ranges, **header)
        if calibration.hash != expected:
            raise UserError(key, path, allowed=f"an undamaged file, of hash {expected}", remedy=remedy)
        return calibration

    def check(self, specs: Mapping[str, QuantSpec], shapes: Mapping[str, Sequence[int]]) -> None:
        """Raise UserError unless there is a range for every activation point, found for what its grid is now.

        Which data and weights the ranges rest on is not asked here: `data_fingerprint` and `weights_hash` tell.

        Args:
            specs: activation point -> spec, of all points that are wanted.
            shapes: activation point -> shape of a batch there, without its first size.
        """
        for point, spec in specs.items():
            name = point.removeprefix(f"{CONTAINER}.")
            if point not in self.ranges:
                known = [known.removeprefix(f"{CONTAINER}.") for known in self.ranges]
                remedy = nearest(name, known) or f"It has {', '.join(known[:3])}, ... ({len(known)})."
                raise UserError("calibrate.file", f"no {name}", allowed="a range for every place of the plan", remedy=remedy)
            method, count = self.methods[point], self.ranges[point][0].numel()
            channels = shapes[point][spec.axis - 1] if spec.granularity == "per_channel" else 1
            grid = grid_of(spec, whole="scheme" in self.grids[point])
            if self.grids[point] != grid or count != channels:
                was = f"{name}: {count} {method} range{'s' if count > 1 else ''}, found for {_in_words(self.grids[point])}"
                allowed = f"{channels}, for {_in_words(grid)}"
                raise UserError("calibrate.file", was, allowed=allowed, remedy="Calibrate again for this grid.")


def _in_words(grid: Mapping[str, object]) -> str:
    return " ".join(f"{key}={value}" for key, value in grid.items())


def grid_of(spec: QuantSpec, *, whole: bool) -> dict[str, object]:
    """What a range depends on of a spec: all that a searched grid is, else only what shares the range.

    Args:
        spec: of the activation.
        whole: True for a method whose ranges depend on the grid.
    """
    if whole:
        return dict(spec.identity)
    return {"granularity": spec.granularity, **({"axis": spec.axis} if spec.granularity != "per_tensor" else {})}


def hash_tensors(tensors: Mapping[str, Tensor], length: int = 16) -> str:
    """The first `length` hex digits of a SHA-256 over names, dtypes, shapes and bytes, in the order of the names.

    Args:
        tensors: name -> tensor, any shape, dtype and device.
        length: hex digits.

    >>> hash_tensors({"a": torch.zeros(2)}) == hash_tensors({"a": torch.zeros(2, 1)})
    False
    """
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        data = tensor.detach().cpu().contiguous()
        digest.update(canonical_json([name, str(data.dtype), list(data.shape)]).encode())
        digest.update(data.reshape(-1).view(torch.uint8).numpy().tobytes() if data.numel() else b"")
    return digest.hexdigest()[:length]
