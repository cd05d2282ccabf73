"""What activations look like at each activation point, which distribution they follow, and which range method that suggests.

Profile (`profile`, a pass over images), fit (`fit_distributions`), decide (`suggest`): the last two are functions of tensors.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from qexp.base.types import QuantSpec
from qexp.nn.fake_quant import observing
from qexp.nn.fake_quantize import range_qparams
from qexp.quant.affine import fake_quantize_affine
from qexp.quant.scheme_table import SCHEMES
from qexp.quant.schemes import quantize_

GOOD_FIT = 0.05  # a Kolmogorov-Smirnov distance below it counts as following the distribution
WORTH_CLIPPING_DB = 0.5
_SAMPLE = 1 << 16  # values kept of an activation point
_PER_BATCH = 1 << 13


@dataclass(frozen=True, kw_only=True)
class ActivationStats:
    """The values at one activation point over all images, padding not included.

    Args:
        n: number of values.
        minimum: smallest value.
        maximum: largest value.
        zero_share: share of values that are exactly 0.
        sample: [m] float32, at most 65536 of the values, evenly drawn.
    """

    n: int
    minimum: float
    maximum: float
    zero_share: float
    sample: Tensor


@dataclass(frozen=True, kw_only=True)
class Fit:
    """A distribution fitted by maximum likelihood.

    Args:
        name: `gaussian`, `laplace`, `uniform`, or for values that are never negative `half_normal`, `half_laplace`, fitted to
            those above zero.
        location: mean, median or lower end; 0 for the halves.
        scale: standard deviation, mean distance or width.
        ks: Kolmogorov-Smirnov distance to the sample, 0 to 1.
    """

    name: str
    location: float
    scale: float
    ks: float


@dataclass(frozen=True, kw_only=True)
class Suggestion:
    """A range method for one activation point.

    Args:
        method: name of a file of the `calibrate` group.
        reason: why it.
    """

    method: str
    reason: str


@torch.no_grad()
def profile(network: nn.Module, batches: Iterable[Tensor]) -> dict[str, ActivationStats]:
    """Statistics at every activation point of a network, in one pass over images.

    Args:
        network: of `qexp.nn.fake_quant.observed`, in eval mode.
        batches: [N, C, H, W] images each, on the network's device.

    Raises:
        ValueError: no batch.
    """
    streams: dict[str, _Stream] = {}
    with observing(network, lambda name, values: streams.setdefault(name, _Stream()).add(values)):
        for images in batches:
            network(images)
    if not streams:
        raise ValueError("no images to profile activations on")
    return {name: stream.stats() for name, stream in streams.items()}


class _Stream:
    """What is kept of a stream of values."""

    def __init__(self) -> None:
        self.n = self.zeros = 0
        self.minimum, self.maximum = float("inf"), float("-inf")
        self.sample: list[Tensor] = []

    def add(self, values: Tensor) -> None:
        """Take in the values of one batch."""
        flat = values.detach().flatten()
        step = -(-flat.numel() // _PER_BATCH) | 1  # odd: no multiple of an image's width, so that all columns are drawn
        self.sample.append(flat[::step].float().cpu().clone())
        self.n, self.zeros = self.n + flat.numel(), self.zeros + int((flat == 0).sum())
        self.minimum, self.maximum = min(self.minimum, float(flat.min())), max(self.maximum, float(flat.max()))

    def stats(self) -> ActivationStats:
        """The statistics of all values so far."""
        sample = torch.cat(self.sample)
        sample = sample[:: max(1, -(-sample.numel() // _SAMPLE))]
        return ActivationStats(
            n=self.n, minimum=self.minimum, maximum=self.maximum, zero_share=self.zeros / self.n, sample=sample
        )


def fit_distributions(sample: Tensor) -> tuple[Fit, ...]:
    """The candidates fitted to a sample, the nearest by Kolmogorov-Smirnov distance first; none where all values are equal.

    A sample without negative values, as behind a ReLU, is fitted by the halves, to its positive part: the share of zeros says how
    much of the distribution lies there.

    Args:
        sample: any shape, finite.

    >>> fits = fit_distributions(torch.randn(10000, generator=torch.Generator().manual_seed(0)).relu())
    >>> fits[0].name
    'half_normal'
    """
    values = sample.detach().flatten().double()
    one_sided = bool((values >= 0).all())
    values = (values[values > 0] if one_sided else values).sort().values
    if values.numel() < 2 or values[0] == values[-1]:
        return ()
    ends = float(values[0]), float(values[-1])
    fits = [_fit("uniform", ends[0], ends[1] - ends[0], values)]
    if one_sided:
        fits.append(_fit("half_normal", 0.0, float(values.square().mean().sqrt()), values))
        fits.append(_fit("half_laplace", 0.0, float(values.mean()), values))
    else:
        median = float(values.median())
        fits.append(_fit("gaussian", float(values.mean()), float(values.std(correction=0)), values))
        fits.append(_fit("laplace", median, float((values - median).abs().mean()), values))
    return tuple(sorted(fits, key=lambda fit: fit.ks))


def _fit(name: str, location: float, scale: float, ordered: Tensor) -> Fit:
    """A distribution and its distance to the sorted sample."""
    z = (ordered - location) / scale
    if name == "uniform":
        below = z
    elif name == "gaussian":
        below = torch.special.ndtr(z)
    elif name == "half_normal":
        below = torch.erf(z / 2**0.5)
    elif name == "half_laplace":
        below = -torch.expm1(-z)
    else:
        below = torch.where(z < 0, 0.5 * z.exp(), 1 - 0.5 * (-z).exp())
    steps = torch.arange(ordered.numel() + 1, dtype=torch.float64) / ordered.numel()
    distance = torch.maximum((below - steps[:-1]).abs(), (steps[1:] - below).abs()).max()
    return Fit(name=name, location=location, scale=scale, ks=float(distance))


def suggest(stats: ActivationStats, fits: tuple[Fit, ...], spec: QuantSpec) -> Suggestion:
    """The range method for one activation point and its quantizer: `minmax` where clipping gains nothing, else `aciq` or `mse`.

    Clipping is tried on the sample: the best of 19 ranges against the whole range. Where it gains half a decibel, ACIQ's closed
    form serves if the values follow the distribution that it supposes; `mse`, which supposes none, if they do not.

    Args:
        stats: of `profile`.
        fits: of `fit_distributions(stats.sample)`.
        spec: of the quantizer, per tensor.
    """
    if not fits:
        return Suggestion(method="minmax", reason="the values do not vary")
    ends = torch.tensor(stats.minimum), torch.tensor(stats.maximum)
    whole = _error(stats.sample, ends, spec)
    gains = {ratio: _gain_db(whole, _error(stats.sample, tuple(ratio * end for end in ends), spec)) for ratio in _RATIOS}
    best = max(gains, key=gains.__getitem__)
    if gains[best] < WORTH_CLIPPING_DB:
        return Suggestion(method="minmax", reason=f"clipping gains at most {max(gains[best], 0):.1f} dB at {spec.bits} bits")
    gain = f"clipping at {best:.2f} of the range gains {gains[best]:.1f} dB at {spec.bits} bits"
    nearest = fits[0]
    if nearest.ks <= GOOD_FIT and nearest.name != "uniform" and SCHEMES[spec.scheme].even_steps:
        return Suggestion(method="aciq", reason=f"{gain}; values follow {nearest.name} (KS {nearest.ks:.3f})")
    why = f"no distribution fits (nearest {nearest.name}, KS {nearest.ks:.3f})"
    why = why if SCHEMES[spec.scheme].even_steps else "no closed form is known for its uneven steps"
    return Suggestion(method="mse", reason=f"{gain}; {why}")


_RATIOS = tuple(number / 20 for number in range(1, 20))


def _error(sample: Tensor, ends: tuple[Tensor, ...], spec: QuantSpec) -> float:
    """Mean squared error of the sample within a range."""
    if SCHEMES[spec.scheme].affine_activations:
        qparams = range_qparams(ends[0], ends[1], spec)
        copy = fake_quantize_affine(sample, qparams, rounding=spec.rounding, arithmetic=spec.arithmetic)
    else:
        copy = quantize_(torch.empty_like(sample), sample, spec, (ends[0], ends[1]))
    return float((copy - sample).double().square().mean())


def _gain_db(before: float, after: float) -> float:
    """How much smaller the second error is, dB."""
    if not before:
        return 0.0
    return float("inf") if not after else float(10 * torch.log10(torch.tensor(before / after, dtype=torch.float64)))
