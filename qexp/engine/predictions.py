"""Per-image predictions on disk: what paired statistics need, about 20 bytes an image."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from qexp.base.files import write_atomic


@dataclass(frozen=True, eq=False)
class Predictions:
    """What a network said about each image of a split, ordered by index.

    Args:
        index: [N] int64, position in the split.
        label: [N] int16 or int32, the true class.
        top5: [N, min(5, C)] int16 or int32, likeliest class first; -1 throughout where a logit was NaN. Equal logits keep
            torch.topk's order, which is the same for the same logits on the same kind of device.
        log_prob: [N] float32, log-probability of the true class, nats.
    """

    index: Tensor
    label: Tensor
    top5: Tensor
    log_prob: Tensor

    def of(self, index: Tensor) -> Predictions:
        """Those of some of its images.

        Args:
            index: [M] int64, their positions in the split, ascending.
        """
        places = torch.searchsorted(self.index, index)
        return Predictions(*(values[places] for values in (self.index, self.label, self.top5, self.log_prob)))

    @property
    def right(self) -> Tensor:
        """[N] bool, the first prediction is right."""
        return self.top5[:, 0] == self.label

    @property
    def right5(self) -> Tensor:
        """[N] bool, one of the first five predictions is right."""
        return (self.top5 == self.label[:, None]).any(1)


def top5_of(logits: Tensor) -> Tensor:
    """[N, min(5, C)] int64, likeliest class first; -1 throughout where a logit is NaN.

    Args:
        logits: [N, C].
    """
    top5 = logits.topk(min(5, logits.shape[1]), dim=1).indices
    return top5.masked_fill(logits.isnan().any(1, keepdim=True), -1)


def save(path: Path, predictions: Predictions) -> None:
    """Write predictions as safetensors, atomically."""
    fields = {name: value.contiguous() for name, value in vars(predictions).items()}
    if len(predictions.index) == 0 or int(predictions.index.max()) < 2**31:
        fields["index"] = fields["index"].to(torch.int32)
    write_atomic(path, lambda partial: save_file(fields, partial))


def load(path: Path) -> Predictions:
    """Read what `save` wrote."""
    fields = load_file(path)
    fields["index"] = fields["index"].to(torch.int64)
    return Predictions(**fields)
