"""Metrics of logits, which are made while images are scored, and the trial of a user's own before anything runs.

Values are kept per image and summed exactly over all ranks: see `qexp.engine.evaluate`. `qexp.config.metrics` has their rows.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from qexp.base.errors import UserError
from qexp.config.metrics import MetricInfo
from qexp.engine.measures import measure
from qexp.engine.predictions import Predictions


def kl(logits: Tensor, labels: Tensor, reference: Tensor) -> Tensor:
    """[N] nats: sum_c p_ref (log p_ref - log p), in float64; a class that the reference excludes adds nothing.

    Args:
        logits: [N, C] float32.
        labels: [N], not read.
        reference: [N, C] float32.
    """
    log_probs, expected = logits.double().log_softmax(1), reference.double().log_softmax(1)
    probs = expected.exp()
    return (probs * (expected - log_probs)).masked_fill_(probs == 0, 0).sum(1)


def signal_and_noise(logits: Tensor, labels: Tensor, reference: Tensor) -> tuple[Tensor, Tensor]:
    """Two of [N]: sum_c ref^2 and sum_c (ref - this)^2, in float64.

    Args:
        logits: [N, C] float32.
        labels: [N], not read.
        reference: [N, C] float32.
    """
    exact = reference.double()
    return exact.square().sum(1), (exact - logits.double()).square_().sum(1)


def decibels(sums: Sequence[float], n: int) -> float | None:
    """10 log10(signal / noise), dB; None where the noise is zero."""
    signal, noise = sums
    if noise == 0:
        return None
    ratio = signal / noise if math.isfinite(noise) else math.nan
    return 10 * math.log10(ratio) if ratio > 0 else (math.nan if math.isnan(ratio) else -math.inf)


NUM_TRIED = 8  # images of the trial


def check_metric(row: MetricInfo, *, class_count: int = 10) -> None:
    """Try a metric on a few fixed logits: it must give finite values of floating point, one per image, the same each time.

    What it says of an image hangs on nothing but that image's logits and label, and the logits stay as they are; else the
    number would hang on batches and ranks.

    Args:
        row: of the metric; of logits or of predictions.
        class_count: C of the logits.

    Raises:
        UserError: it does not, or it raises.
    """
    one, (logits, reference, labels) = measure(row), _fixed(class_count)
    before = logits.clone(), reference.clone()

    def tried(part: slice = slice(None)) -> tuple[Tensor, ...]:
        parts = (logits[part], labels[part], reference[part])
        if row.reads == "logits":
            return one.columns(*parts[:2], parts[2] if row.needs_reference else None)
        return one.columns(_predicted(*parts[:2]), _predicted(parts[2], parts[1]) if row.needs_reference else None)

    try:
        with torch.inference_mode():
            columns, again, halves = tried(), tried(), (tried(slice(0, 3)), tried(slice(3, None)))
            _check_columns(row, columns, again)
            value = one.total(columns)
    except UserError:
        raise
    except Exception as error:
        raise _unfit(row, f"It raised {type(error).__name__}: {error}") from error
    if not (torch.equal(before[0], logits) and torch.equal(before[1], reference)):
        raise _unfit(row, "It changed the logits that it was given.")
    for column, cut in zip(columns, zip(*halves, strict=True), strict=True):
        # A batch cut in two gives the same, but for the order of sums.
        if not all(part.dim() for part in cut) or not torch.allclose(torch.cat(cut), column, rtol=1e-4, atol=1e-6):
            raise _unfit(row, "What it says of an image hangs on the others of its batch.")
    if value is not None and not isinstance(value, float | int):
        raise _unfit(row, f"In all it is of type {type(value).__name__}, not a number.")


def _check_columns(row: MetricInfo, columns: tuple[Tensor, ...], again: tuple[Tensor, ...]) -> None:
    """Shape, dtype and values of what the code returned."""
    if row.finish is None and len(columns) != 1:
        raise _unfit(row, f"It returned {len(columns)} values an image, and the row has no finish for them.")
    for column in columns:
        if not isinstance(column, Tensor) or column.shape != (NUM_TRIED,):
            got = f"shape {list(column.shape)}" if isinstance(column, Tensor) else f"type {type(column).__name__}"
            raise _unfit(row, f"It returned {got} for {NUM_TRIED} images, not [{NUM_TRIED}].")
        if not column.is_floating_point():
            raise _unfit(row, f"It returned {column.dtype}, not a floating-point type.")
        if not column.isfinite().all():
            raise _unfit(row, "It returned a value that is not finite for finite logits.")
    if len(again) != len(columns) or not all(map(torch.equal, columns, again)):
        raise _unfit(row, "It returned other values for the same logits.")


def _fixed(class_count: int) -> tuple[Tensor, Tensor, Tensor]:
    """Logits, other logits near them, labels; the same everywhere."""
    generator = torch.Generator().manual_seed(0)
    logits = 3 * torch.randn(NUM_TRIED, class_count, generator=generator)
    reference = logits + 0.3 * torch.randn(NUM_TRIED, class_count, generator=generator)
    return logits, reference, torch.arange(NUM_TRIED) % class_count


def _predicted(logits: Tensor, labels: Tensor) -> Predictions:
    top5 = logits.topk(min(5, logits.shape[1]), dim=1).indices
    return Predictions(torch.arange(len(labels)), labels, top5, logits.log_softmax(1).gather(1, labels[:, None]).squeeze(1))


def _unfit(row: MetricInfo, remedy: str) -> UserError:
    given = "(logits [N, C], labels [N], reference)"
    return UserError("evaluate.metrics", row.name, allowed=f"a function of {given} that returns values [N]", remedy=remedy)
