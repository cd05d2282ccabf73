"""What networks predict of the images of an evaluation, image by image."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from qexp.base.types import Batch

PLACES = 5  # of Prec@5
Run = Callable[[Tensor], Tensor]  # images [N, C, H, W] -> logits [N, classes]


@dataclass(frozen=True, eq=False)
class Answers:
    """What a network predicted.

    Args:
        classes: [n, 5], likeliest first.
        labels: [n].
        ties: [n] bool, whether the label is one of several classes with the fifth largest logit that are not all among the five.
    """

    classes: Tensor
    labels: Tensor
    ties: Tensor

    @property
    def right(self) -> Tensor:
        """[n] bool, whether the first is the label."""
        return self.classes[:, 0] == self.labels

    @property
    def right5(self) -> Tensor:
        """[n] bool, whether one of the five is."""
        return (self.classes == self.labels[:, None]).any(1)

    def equal_pct(self, other: Answers) -> float:
        """Percent of the images for which another network predicts the same first."""
        return 100 * float((self.classes[:, 0] == other.classes[:, 0]).double().mean())


def answers_of(runs: Mapping[str, Run], batches: Iterable[Batch]) -> dict[str, Answers]:
    """Name -> what it predicted; -1 where logits are NaN, which is no class.

    Args:
        runs: the networks by name.
        batches: images and labels, read once.
    """
    classes: dict[str, list[Tensor]] = {name: [] for name in runs}
    ties: dict[str, list[Tensor]] = {name: [] for name in runs}
    labels = []
    for batch in batches:
        labels.append(batch.labels)
        for name, run in runs.items():
            logits = run(batch.images)
            top = logits.topk(min(PLACES, logits.shape[1]), dim=1).indices
            classes[name].append(top.masked_fill(logits.isnan().any(1, keepdim=True), -1))
            ties[name].append(_ties(logits, batch.labels))
    return {name: Answers(torch.cat(parts), torch.cat(labels), torch.cat(ties[name])) for name, parts in classes.items()}


def _ties(logits: Tensor, labels: Tensor) -> Tensor:
    """[n] bool, whether chance says that a label is among the five: logits [n, classes] that are codes are often equal."""
    if logits.shape[1] <= PLACES:
        return torch.zeros(len(labels), dtype=torch.bool)
    fifth, sixth = logits.topk(PLACES + 1, dim=1).values[:, -2:].unbind(1)
    return (fifth == sixth) & (logits.gather(1, labels[:, None]).squeeze(1) == fifth)
