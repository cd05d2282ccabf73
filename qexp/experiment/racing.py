"""`evaluate.until=decided`: a variant is scored until its paired comparison with the float network is decided.

Images come in blocks of `evaluate.batch_size`, in an order that was drawn once for all (`DRAW`). After each block the sequential
test looks at the counts, `evaluate.margin` points of loss or, without a margin, any difference; its error rate holds however
often it looks (`qexp.stats.sequential`; the simulation that confirms it is `tests/stats/test_sequential.py`). A number that such
a test stopped exaggerates its difference, so reports make no test or interval for a fixed number of images of it.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from qexp.base.types import Batch
from qexp.config.train import EvaluateSettings
from qexp.engine.predictions import top5_of
from qexp.stats.sequential import Looks, Sequential, SequentialTest, different, non_inferior

DRAW = 0  # of the order of the images
WORD = "until_decided"  # of labels


class UntilDecided:
    """Looks at a network's answers batch by batch, until its comparison with the float network is decided.

    Args:
        settings: of the evaluation.
        reference: logits [n, C] of the float network, in the order of the batches.
    """

    def __init__(self, settings: EvaluateSettings, reference: Tensor) -> None:
        self._reference, self._looks = reference, Looks(test_of(settings))

    @property
    def seen(self) -> Sequential:
        """What the test says by now."""
        return self._looks.seen

    def __call__(self, batch: Batch, logits: Mapping[str, Tensor]) -> bool:
        """Take a batch; True where no further one is needed.

        Args:
            batch: the one that follows those taken before.
            logits: of one network, [N, C], by its name.
        """
        (network,) = logits.values()
        first = self.seen.n
        before, after = (
            top5_of(values)[:, 0] == batch.labels
            for values in (self._reference[first : first + len(batch.labels)].to(network.device), network)
        )
        return self._looks.add(int((before & ~after).sum()), int((~before & after).sum()), len(batch.labels))


def test_of(settings: EvaluateSettings) -> SequentialTest:
    """The test that decides: of a loss of `margin` points, or of any difference where there is no margin."""
    return different() if settings.margin is None else non_inferior(settings.margin)


def asked(settings: EvaluateSettings) -> str:
    """What a record says of the test; nothing where all images are scored.

    >>> asked(EvaluateSettings(until="decided")), asked(EvaluateSettings())
    ('loss of 0.5 points', '')
    """
    if settings.until is None:
        return ""
    return "difference" if settings.margin is None else f"loss of {settings.margin:g} points"


def sentence(settings: EvaluateSettings, seen: Sequential, num_images: int) -> str:
    """What was decided, and by how many images.

    Args:
        settings: of the evaluation.
        seen: what the test said when it stopped.
        num_images: that there were.
    """
    margin = settings.margin
    words = {"above": "better than the float network", "below": "worse than the float network"}
    if margin is not None:
        words = {"above": f"loses less than {margin:g} points", "below": f"loses more than {margin:g} points"}
    verdict = words.get(seen.verdict, "undecided")
    return f"{verdict}, after {seen.n} of {num_images} images ({seen.n10} lost, {seen.n01} gained; each error at most 5 %)"
