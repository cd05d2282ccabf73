"""How many images a network takes at once, found by a short measurement (`evaluate.batch_size=null`).

Each size is timed on the first images of the split, with the engine that scores them. What is chosen stands in the record of each
number, and in no key: a stored number answers whatever would be chosen today. Logits hang on it in their last bits at most, where
a library adds in another order for another size; equal predictions but for ties are what is promised.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class BatchSize:
    """Images of a forward pass.

    Args:
        images: so many.
        words: how they were found, for the record; empty where they were asked for.
    """

    images: int
    words: str = ""


def fastest(sizes: Sequence[int], seconds_of_batch: Callable[[int], float]) -> BatchSize:
    """The size with the least time for an image.

    Args:
        sizes: at least one; one alone is not measured.
        seconds_of_batch: seconds that a batch of so many images takes. A GPU that has too little memory for it is no candidate.

    >>> fastest([50, 100], {50: 0.1, 100: 0.3}.__getitem__)
    BatchSize(images=50, words='batches of 50: 2.00 ms an image, 3.00 in batches of 100')
    >>> fastest([50], {}.__getitem__)
    BatchSize(images=50, words='batches of 50: no larger ones are tried here')
    """
    if len(sizes) == 1:
        return BatchSize(sizes[0], f"batches of {sizes[0]}: no larger ones are tried here")
    milliseconds = {size: 1000 * _seconds(size, seconds_of_batch) / size for size in sizes}
    best = min(milliseconds, key=lambda size: milliseconds[size])
    others = ", ".join(f"{value:.2f} in batches of {size}" for size, value in milliseconds.items() if size != best)
    return BatchSize(best, f"batches of {best}: {milliseconds[best]:.2f} ms an image, {others}")


def _seconds(size: int, seconds_of_batch: Callable[[int], float]) -> float:
    try:
        return seconds_of_batch(size)
    except torch.OutOfMemoryError:
        return math.inf
