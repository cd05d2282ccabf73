"""What a layer's quantization costs a network: `qexp.analysis` and the pipeline measure it, `qexp.reporting` writes it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class LayerLoss:
    """One weight at one width, all others float, against the float network on the same images.

    Args:
        layer: name of the weight. bits: its width. num_elements: of it. size_bytes: codes with scales and zero points.
        prec1: of the network, percent. delta_prec1: against the float network, points. delta_loss: rise of the cross-entropy,
            nats. kl: mean KL(float || this), nats. n: images.
        n10, n01: images that were right and became wrong, and the reverse. disagreement: share of changed predictions, percent.
        sqnr_db: of the weight; None where its copy is exact. noise_to_signal: the ratio that it is the logarithm of.
        mse: mean squared error of the weight. weighted_mse: sum of its squared errors, each times the mean square of the input
            channel that it multiplies. fisher: 1/2 sum E[g^2] (w - w^)^2. hessian: 1/2 (trace / elements) sum (w - w^)^2. The
            last three are None where the weight belongs to no layer that they are defined for.
    """

    layer: str
    bits: int
    num_elements: int
    size_bytes: int
    prec1: float
    delta_prec1: float
    delta_loss: float
    kl: float
    n: int
    n10: int
    n01: int
    disagreement: float
    sqnr_db: float | None
    noise_to_signal: float
    mse: float
    weighted_mse: float | None
    fisher: float | None
    hessian: float | None

    def score(self, measure: str) -> float | None:
        """How sensitive the layer is by one of `MEASURED` or `PROXIES`; more is worse."""
        if measure == "prec1":
            return -self.delta_prec1
        return getattr(self, {"loss": "delta_loss", "sqnr": "noise_to_signal"}.get(measure, measure))


@dataclass(frozen=True)
class Trust:
    """How well one measure ranks the layers of a network at one width, held against what was measured.

    Args:
        bits: of the layers. measure: that is trusted. truth: one of `MEASURED`. num_layers: that have both.
        spearman, kendall: rank correlations (tau-b); None where either does not vary.
        regret: of leaving float the quarter of the layers that the measure calls worst: the truth's sum over the others, less
            that of the truth's own choice, in percent of the sum over all; None where that sum is not positive.
    """

    bits: int
    measure: str
    truth: str
    num_layers: int
    spearman: float | None
    kendall: float | None
    regret: float | None


@dataclass(frozen=True, kw_only=True)
class Sensitivity:
    """The layers of a network, one at a time.

    Args:
        label: of the way to quantize. subject: data set and network. checkpoint: its file. command: as typed. images: what was
            scored. prec1: of the float network, percent. layers: in the order of the network, by width within.
        traces: layer -> Hessian trace and its standard error. trust: of every measure at every width. notes: for the reader.
    """

    label: str
    subject: str
    checkpoint: str
    command: str
    images: str
    prec1: float
    layers: tuple[LayerLoss, ...]
    traces: dict[str, tuple[float, float]]
    trust: tuple[Trust, ...]
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Allocated:
    """One choice of bits per layer, and what became of it.

    Args:
        method: `exact`, `greedy` or `uniform`. measure: whose sum was made small; empty for `uniform`. bits: layer -> width.
        cost: in the unit of the budget. size_bytes: of the state dict. average_bits: of a quantized weight.
        predicted: sum of the layers' measured KL, nats; None for a width that they were not measured at. kl: of the network with
            all of them quantized. prec1, delta_prec1: of it.
        by_measure: sum of the measure that was made small.
        label: of the variant that was scored on the images of `evaluate.split`; empty where it was not. test_prec1: there.
    """

    method: str
    measure: str
    bits: dict[str, int]
    cost: float
    size_bytes: int
    average_bits: float
    predicted: float | None
    kl: float
    prec1: float
    delta_prec1: float
    by_measure: float | None = None
    label: str = ""
    test_prec1: float | None = None


@dataclass(frozen=True)
class Against:
    """Two allocations on the same images: `method` less `reference`, points, with its interval and exact McNemar p."""

    method: str
    reference: str
    n: int
    difference: float
    low: float
    high: float
    level: float
    p_value: float
    n10: int
    n01: int
    disagreement: float | None


@dataclass(frozen=True, kw_only=True)
class Allocation:
    """Bits per layer under a budget.

    Args:
        label, subject, checkpoint, command, images, notes: as of `Sensitivity`. budget: in words.
        found: the exact choice first, then greedy, uniform, and exact ones by other measures. against: on the test images.
        gap: of greedy over exact, percent of exact; None where exact is 0. dynamic: what dynamic programming says of exact.
        scored: what `test_prec1` was measured on. use: the command that evaluates the policy.
    """

    label: str
    subject: str
    checkpoint: str
    command: str
    images: str
    budget: str
    found: tuple[Allocated, ...]
    against: tuple[Against, ...]
    gap: float | None
    dynamic: str
    scored: str
    use: str
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Histogram:
    """Counts of values in even bins, and the grid that they are brought to.

    Args:
        counts: one per bin. minimum, maximum: the outer ends of the bins.
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
        name: of the weight or of the activations' place. role: `weight`, `bias`, ... or `activation`.
        made_by: module type, or for activations what computes them. shape: of the tensor, or of one image's activations.
        bits, mode, scheme, granularity: of the quantizer. rule: of the policy that chose it. ranges: method of the limits.
        num_values: that were measured. minimum, maximum: of them. zero_share: of exact zeros, 0 to 1.
        grid_min, grid_max: outermost levels over all groups. num_groups: grids of this tensor.
        scale_min, scale_max: smallest and largest scale over the groups: the step of a uniform grid, the largest level of others.
        sqnr_db: 10 log10(sum x^2 / sum (x - x^)^2); None where the copy is exact. mse: mean (x - x^)^2.
        loss: sum (x - x^)^2, document 003's quantization loss; None for activations, whose sum grows with the images.
        saturation: share of values, 0 to 1, further than half a step beyond the outermost level; None where there is no grid.
        size_bytes: stored. size_share: of the whole state dict as stored, 0 to 1; None for activations, which are not stored.
        distribution: that fits activations best. suggestion: a range method for them, and why. note: what else to know.
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
        """True for the values at a place of the network's graph."""
        return self.role == "activation"


@dataclass(frozen=True)
class ClassScore:
    """What two networks say of one class for one image.

    Args:
        index, name: of the class. before, after: softmax of the float and of the quantized network, 0 to 1.
        rank_before, rank_after: 1 for the highest score.
    """

    index: int
    name: str
    before: float
    after: float
    rank_before: int
    rank_after: int


@dataclass(frozen=True, kw_only=True)
class Profile:
    """A quantized network, tensor by tensor.

    Args:
        label: of the variant. subject: data set and network. checkpoint: its file. command: as typed.
        tensors: weights, then activations, each in the order of the network. images: what activations were measured on; empty
            where none were.
        size_bytes: of the quantized state dict. notes: what a reader has to know.
        image: file whose classes were scored. scores: the first classes of either network, by the float network's rank.
    """

    label: str
    subject: str
    checkpoint: str
    command: str
    tensors: tuple[TensorProfile, ...]
    size_bytes: int
    images: str = ""
    notes: tuple[str, ...] = ()
    image: str = ""
    scores: tuple[ClassScore, ...] = ()

    @property
    def weights(self) -> tuple[TensorProfile, ...]:
        """All but the activations."""
        return tuple(each for each in self.tensors if not each.is_activation)

    @property
    def activations(self) -> tuple[TensorProfile, ...]:
        """The activations."""
        return tuple(each for each in self.tensors if each.is_activation)

    @property
    def total_loss(self) -> float:
        """Sum of (w - w^)^2 over all quantized tensors of the state dict: document 003's total loss."""
        return sum(each.loss or 0.0 for each in self.weights)
