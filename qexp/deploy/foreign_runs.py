"""Whether a file of another writer runs on these images, how much of them its codes hold, and which files its weights are in."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from qexp.base.errors import UserError
from qexp.deploy.foreign import ForeignFile
from qexp.deploy.onnx.writer import onnx_library


class Counted:
    """Runs a file, and counts the inputs that its codes do not hold."""

    def __init__(self, file: ForeignFile) -> None:
        self._file = file
        self._num_beyond = self._num_inputs = 0

    def __call__(self, images: Tensor) -> Tensor:
        """Images [N, C, H, W] -> logits [N, classes]."""
        self._num_beyond += self._file.num_beyond(images)
        self._num_inputs += images.numel()
        return self._file.run(images)

    @property
    def beyond_pct(self) -> float:
        """Percent of the inputs until now."""
        return 100 * self._num_beyond / max(self._num_inputs, 1)


def files_with(path: Path) -> list[Path]:
    """A file, and behind it the files in which an ONNX file has weights, sorted."""
    if path.suffix != ".onnx":
        return [path]
    onnx = onnx_library()
    external = onnx.external_data_helper
    tensors = onnx.load(path, load_external_data=False).graph.initializer
    names = {external.ExternalDataInfo(one).location for one in tensors if external.uses_external_data(one)}
    return [path, *(path.parent / name for name in sorted(names))]


def check_runs(file: ForeignFile, example: Tensor, num_classes: int) -> None:
    """Raise UserError for a file that loads, but does not run on one image or on two at a time.

    Args:
        file: loaded.
        example: one image, [1, C, H, W] float32.
        num_classes: of the data.
    """
    for images in (example, torch.cat([example, example])):
        says = ""
        try:
            logits = file.run(images)
            if logits.shape != (len(images), num_classes):
                says = f"Of {len(images)} images it gives {list(logits.shape)}"
        except Exception as error:  # each runtime has errors of its own
            says = str(error).strip().partition("\n")[0] or type(error).__name__
        if says:
            allowed = "a file that runs on these images, several at a time"
            raise UserError("export.compare", file.path, allowed=allowed, remedy=f"It says: {says}")
