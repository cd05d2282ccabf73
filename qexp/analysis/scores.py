"""What two networks say of one image."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from qexp.analysis.profile_results import ClassScore

NUM_SHOWN = 5


@torch.no_grad()
def class_scores(before: Tensor, after: Tensor, names: Sequence[str], count: int = NUM_SHOWN) -> tuple[ClassScore, ...]:
    """Softmax scores of the classes that are among the first `count` of either network, in the order of the first.

    Args:
        before: logits [C] of the float network.
        after: logits [C] of the quantized network.
        count: how many of the first classes of each are listed.
        names: of the classes; a class beyond them is called by its number.

    >>> [score.name for score in class_scores(torch.tensor([0.0, 2, 1]), torch.tensor([3.0, 2, 1]), ["a", "b", "c"], count=1)]
    ['b', 'a']
    """
    scores = [logits.double().softmax(0) for logits in (before, after)]
    # A stable sort: of equal scores the lower class comes first in both.
    orders = [values.sort(descending=True, stable=True).indices.tolist() for values in scores]
    ranks = [{index: rank for rank, index in enumerate(order, start=1)} for order in orders]
    listed = dict.fromkeys([*orders[0][:count], *orders[1][:count]])
    return tuple(
        ClassScore(
            index,
            names[index] if index < len(names) else str(index),
            float(scores[0][index]),
            float(scores[1][index]),
            ranks[0][index],
            ranks[1][index],
        )
        for index in sorted(listed, key=ranks[0].__getitem__)
    )
