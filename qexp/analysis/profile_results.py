"""What `task=profile` measures: every quantized tensor of a network, and the class scores of one image."""

from __future__ import annotations

from dataclasses import dataclass

from qexp.analysis.results import Analysis


@dataclass(frozen=True)
class Histogram:
    """Counts of values in even bins, and the grid that they are brought to.

    Args:
        counts: one per bin.
        minimum: lower end of the first bin.
        maximum: upper end of the last bin.
        levels: of the grid, increasing; of the widest where groups have their own; empty above 8 bits and where there is none.
    """

    counts: tuple[int, ...]
    minimum: float
    maximum: float
    levels: tuple[float, ...] = ()


@dataclass(frozen=True, kw_only=True)
class TensorProfile:
    """One quantized tensor: what was done to it, and what that cost.

    Args:
        name: of the weight or of the activation point.
        role: `weight`, `bias`, ... or `activation`.
        made_by: module type, or for activations what computes them.
        shape: of the tensor, or of one image's activations.
        bits: of the quantizer.
        mode: of the quantizer.
        scheme: of the quantizer.
        granularity: of the quantizer.
        rule: of the policy, the one that chose the quantizer.
        ranges: method that found the limits.
        num_values: number of values measured.
        minimum: smallest of them.
        maximum: largest of them.
        zero_share: share of exact zeros, 0 to 1.
        grid_min: lowest level over all groups.
        grid_max: highest level over all groups.
        num_groups: grids of this tensor.
        scale_min: smallest scale over the groups: the step of a uniform grid, the largest level of others.
        scale_max: largest scale over the groups.
        sqnr_db: 10 log10(sum x^2 / sum (x - x^)^2); None where the copy is exact.
        mse: mean (x - x^)^2.
        loss: sum (x - x^)^2, document 003's quantization loss; None for activations, whose sum grows with the images.
        saturation: share of values, 0 to 1, further than half a step beyond the outermost level; None where there is no grid.
        size_bytes: stored.
        size_share: of the whole state dict as stored, 0 to 1; None for activations, which are not stored.
        distribution: that fits activations best.
        suggestion: a range method for them, and why.
        note: what else to know.
        histogram: of the values.
    """

    name: str
    role: str
    made_by: str
    shape: tuple[int, ...]
    bits: int
    mode: str
    scheme: str
    granularity: str
    rule: str
    ranges: str
    num_values: int
    minimum: float
    maximum: float
    zero_share: float
    grid_min: float | None = None
    grid_max: float | None = None
    num_groups: int = 1
    scale_min: float | None = None
    scale_max: float | None = None
    sqnr_db: float | None = None
    mse: float = 0.0
    loss: float | None = None
    saturation: float | None = None
    size_bytes: int | None = None
    size_share: float | None = None
    distribution: str = ""
    suggestion: str = ""
    note: str = ""
    histogram: Histogram

    @property
    def is_activation(self) -> bool:
        """True for the values at an activation point of the network's graph."""
        return self.role == "activation"


@dataclass(frozen=True)
class ClassScore:
    """What two networks say of one class for one image.

    Args:
        index: of the class.
        name: of the class.
        before: softmax of the float network, 0 to 1.
        after: softmax of the quantized network, 0 to 1.
        rank_before: of the class in the float network, 1 for the highest score.
        rank_after: of the class in the quantized network.
    """

    index: int
    name: str
    before: float
    after: float
    rank_before: int
    rank_after: int


@dataclass(frozen=True, kw_only=True)
class Profile(Analysis):
    """A quantized network, tensor by tensor.

    Args:
        tensors: weights, then activations, each in the order of the network.
        images: what activations were measured on; empty where none were.
        size_bytes: of the quantized state dict.
        image: file whose classes were scored.
        scores: the first classes of either network, by the float network's rank.
    """

    tensors: tuple[TensorProfile, ...]
    size_bytes: int
    images: str = ""
    image: str = ""
    scores: tuple[ClassScore, ...] = ()

    @property
    def weights(self) -> tuple[TensorProfile, ...]:
        """All but the activations."""
        return tuple(tensor for tensor in self.tensors if not tensor.is_activation)

    @property
    def activations(self) -> tuple[TensorProfile, ...]:
        """The activations."""
        return tuple(tensor for tensor in self.tensors if tensor.is_activation)

    @property
    def total_loss(self) -> float:
        """Sum of (w - w^)^2 over all quantized tensors of the state dict: document 003's total loss."""
        return sum(tensor.loss or 0.0 for tensor in self.weights)
