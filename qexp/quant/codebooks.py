"""Quantizers that fit their values to the tensor: lut_quantile, lut_kmeans, binary, ternary; and dorefa.

They work on rows [G, N]: G groups with parameters of their own. A codebook is kept as it would be stored, in fp16 relative to the
float32 scale max|x| of its row, so that small weights do not fall among fp16's subnormals and a power of two in x is one in the
copy.
"""

from __future__ import annotations

import torch
from torch import Tensor

from qexp.quant.affine import Operation
from qexp.quant.levels import level_scale

KMEANS_STEPS = 200  # of Lloyd's iteration, at most; it stops where no centroid moves
_CELLS = 512  # in which the density is estimated whose cube root spaces the first centroids


def fit_codebook(rows: Tensor, bits: int, *, kmeans: bool, pin_zero: bool = False) -> tuple[Tensor, Tensor]:
    """The 2^bits centroids of each row, increasing.

    lut_quantile: the quantiles (i + 1/2) / 2^b, linearly interpolated
    lut_kmeans:   Lloyd-Max: a value belongs to the nearest centroid (between two, at their midpoint, to the lower), a centroid is
                  the mean of its values; from even steps between min and max and from the quantiles of the cube root of the
                  density, which many levels tend to, whichever ends with the smaller error

    Exact and deterministic: the rows are sorted once and the means come from cumulated sums, in float64.

    Args:
        rows: float32 [G, N], N at least 1.
        bits: 1 to 8.
        kmeans: which of the two.
        pin_zero: replace the centroid nearest to zero by zero.

    Returns:
        scale float32 [G], codebook float16 [G, 2^bits] relative to it.

    Source: Lloyd 1982 and Max 1960, IEEE Trans. Inf. Theory; Han et al. 2016, arXiv:1510.00149, section 3.

    >>> fit_codebook(torch.tensor([[-2.0, -2.0, 0.0, 1.0]]), 1, kmeans=True)
    (tensor([2.]), tensor([[-1.0000,  0.2500]], dtype=torch.float16))
    """
    count = 2**bits
    scale = level_scale(rows.amin(1), rows.amax(1))
    ordered = (rows / scale[:, None]).sort(dim=1).values.double()
    share = (torch.arange(count, device=rows.device, dtype=torch.float64) + 0.5) / count
    if not kmeans:
        centroids = _quantiles(ordered, share)
    else:
        low, high = ordered[:, :1], ordered[:, -1:]
        sums = torch.nn.functional.pad(ordered.cumsum(1), (1, 0))
        starts = (_compressed(ordered, share), low + (high - low) * share)
        by_density, by_steps = (_lloyd(ordered, sums, start) for start in starts)
        steps_are_better = _distortion(ordered, sums, by_steps) < _distortion(ordered, sums, by_density)
        centroids = torch.where(steps_are_better[:, None], by_steps, by_density)
    codebook = centroids.half()
    if pin_zero:
        codebook.scatter_(1, codebook.float().abs().argmin(1, keepdim=True), 0.0)
    return scale, codebook


def _quantiles(ordered: Tensor, share: Tensor) -> Tensor:
    """torch.quantile of sorted rows, without its limit on their length."""
    position = share * (ordered.shape[1] - 1)
    below = position.floor().long()
    above = (below + 1).clamp(max=ordered.shape[1] - 1)
    return torch.lerp(ordered[:, below], ordered[:, above], (position - below).expand(ordered.shape[0], -1))


def _compressed(ordered: Tensor, share: Tensor) -> Tensor:
    """The shares' quantiles of a density proportional to the cube root of the rows' own.

    Source: Panter and Dite 1951, Proc. IRE 39(1).
    """
    cells = max(1, min(_CELLS, ordered.shape[1] // 8))  # of equal mass, so that an outlier does not coarsen the rest
    edges = _quantiles(ordered, torch.linspace(0, 1, cells + 1, device=ordered.device, dtype=torch.float64))
    mass = torch.nn.functional.pad(edges.diff(dim=1).pow(2 / 3).cumsum(1), (1, 0))
    wanted = (share * mass[:, -1:]).contiguous()
    cell = torch.searchsorted(mass, wanted).clamp(1, cells)
    before, after = mass.gather(1, cell - 1), mass.gather(1, cell)
    part = (wanted - before) / torch.where(after > before, after - before, torch.ones_like(after))
    return torch.lerp(edges.gather(1, cell - 1), edges.gather(1, cell), part)


def _edges(ordered: Tensor, centroids: Tensor) -> Tensor:
    """Where in the sorted rows each centroid's values begin and end, [G, 2^bits + 1]."""
    midpoints = (centroids[:, 1:] + centroids[:, :-1]) / 2
    inner = torch.searchsorted(ordered, midpoints.contiguous(), right=True)
    return torch.nn.functional.pad(torch.nn.functional.pad(inner, (1, 0)), (0, 1), value=ordered.shape[1])


def _lloyd(ordered: Tensor, sums: Tensor, centroids: Tensor) -> Tensor:
    """Centroids after Lloyd's iteration; one without values stays."""
    for _ in range(KMEANS_STEPS):
        edges = _edges(ordered, centroids)
        size = edges.diff(dim=1)
        mean = sums.gather(1, edges).diff(dim=1) / size.clamp(min=1)
        moved = torch.where(size > 0, mean, centroids).cummax(dim=1).values  # rounding must not change their order
        if torch.equal(moved, centroids):
            break
        centroids = moved
    return centroids


def _distortion(ordered: Tensor, sums: Tensor, centroids: Tensor) -> Tensor:
    """Sum of squared distances to the centroids but for the sum of squares, which all codebooks share, [G]."""
    edges = _edges(ordered, centroids)
    return (centroids.square() * edges.diff(dim=1) - 2 * centroids * sums.gather(1, edges).diff(dim=1)).sum(1)


def encode_codebook(rows: Tensor, scale: Tensor, codebook: Tensor) -> Tensor:
    """Values [G, N] -> numbers of the nearest centroids, float32; between two, at their midpoint, the lower."""
    centroids = codebook.float()
    midpoints = (centroids[:, 1:] + centroids[:, :-1]) / 2
    unit = (rows / scale[:, None]).contiguous()
    return torch.searchsorted(midpoints.contiguous(), unit, out_int32=True).float()


def decode_codebook(codes: Tensor, scale: Tensor, codebook: Tensor) -> Tensor:
    """Numbers [G, N] -> centroids times scale."""
    return codebook.float().gather(1, codes.long()) * scale[:, None]


def fit_binary(rows: Tensor) -> Tensor:
    """The mean of |x| of each row, float32 [G].

    Source: Rastegari et al. 2016, arXiv:1603.05279, eq. 6.
    """
    return rows.abs().double().mean(1).float()


def encode_binary(x: Tensor) -> Tensor:
    """1 where x >= 0, else 0."""
    return (x >= 0).float()


def decode_binary(codes: Tensor, scale: Tensor) -> Tensor:
    """-scale or scale."""
    return (2 * codes - 1) * scale


def fit_ternary(rows: Tensor) -> tuple[Tensor, Tensor]:
    """Threshold t = 0.7 mean|x| and scale = mean of the |x| above t, of each row, float32 [G].

    Source: Li et al. 2016, arXiv:1605.04711, eqs. 5 and 6.
    """
    magnitude = rows.abs()
    threshold = (0.7 * magnitude.double().mean(1)).float()
    above = magnitude > threshold[:, None]
    total = torch.where(above, magnitude, torch.zeros_like(magnitude)).double().sum(1)
    return threshold, (total / above.sum(1).clamp(min=1)).float()


def encode_ternary(x: Tensor, threshold: Tensor) -> Tensor:
    """Sign of x where |x| is above the threshold, else 0."""
    return torch.sign(x) * (x.abs() > threshold)


def encode_dorefa(x: Tensor, peak: Tensor, bits: int, rounding: Operation | None) -> Tensor:
    """Values -> codes 0 to 2^b - 1, unrounded where `rounding` is None.

    code = R((2^b - 1) (tanh(x) / (2 max|tanh x|) + 1/2))

    Args:
        x: float32.
        peak: max|tanh x|, broadcastable to x.
        bits: 2 to 16.
        rounding: R.

    Source: Zhou et al. 2016, arXiv:1606.06160, eq. 9.
    """
    levels = 2.0**bits - 1
    codes = (torch.tanh(x) / (2 * peak) + 0.5) * levels
    return (codes if rounding is None else rounding(codes)).clamp_(0, levels)


def decode_dorefa(codes: Tensor, bits: int) -> Tensor:
    """Codes -> values: x = 2 code / (2^b - 1) - 1, between -1 and 1: not on the scale of what was encoded."""
    return 2 * codes / (2.0**bits - 1) - 1
