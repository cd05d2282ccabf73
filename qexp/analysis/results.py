"""What `task=sensitivity` and `task=allocate` measure: single layers, the measures' agreement, choices of bits per layer."""

from __future__ import annotations

from dataclasses import dataclass

from qexp.reporting.tables.allocations import ChoiceComparison


@dataclass(frozen=True, kw_only=True)
class Analysis:
    """What any analysis of a checkpoint says of itself.

    Args:
        label: of the way to quantize.
        subject: data set and network.
        checkpoint: its file.
        command: as typed.
        notes: for the reader.
    """

    label: str
    subject: str
    checkpoint: str
    command: str
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class LayerLoss:
    """One weight at one width, all others float, against the float network on the same images.

    Args:
        layer: name of the weight.
        bits: its width.
        num_elements: of it.
        size_bytes: codes with scales and zero points.
        prec1: of the network, percent.
        delta_prec1: against the float network, points.
        delta_loss: rise of the cross-entropy, nats.
        kl: mean KL(float || this), nats.
        n: images.
        n10: images that were right and became wrong.
        n01: images that were wrong and became right.
        disagreement: share of changed predictions, percent.
        sqnr_db: of the weight; None where its copy is exact.
        noise_to_signal: the ratio that it is the logarithm of.
        mse: mean squared error of the weight.
        weighted_mse: sum of its squared errors, each times the mean square of the input channel that it multiplies; None where
            the weight belongs to no convolution or linear layer.
        fisher: 1/2 sum E[g^2] (w - w^)^2; None where the weight has no gradient.
        hessian: 1/2 (trace / elements) sum (w - w^)^2; None where the weight has no gradient.
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
        bits: of the layers.
        measure: the measure that is trusted.
        truth: one of `MEASURED`.
        num_layers: that have both.
        spearman: rank correlation rho; None where either does not vary.
        kendall: rank correlation tau-b; None where either does not vary.
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
class Sensitivity(Analysis):
    """The layers of a network, one at a time.

    Args:
        images: what was scored.
        prec1: of the float network, percent.
        layers: in the order of the network, by width within.
        traces: layer -> Hessian trace and its standard error.
        trust: of every measure at every width.
    """

    images: str
    prec1: float
    layers: tuple[LayerLoss, ...]
    traces: dict[str, tuple[float, float]]
    trust: tuple[Trust, ...]


@dataclass(frozen=True, kw_only=True)
class Allocated:
    """One choice of bits per layer, and what became of it.

    Args:
        method: `exact`, `greedy` or `uniform`.
        measure: whose sum was made small; empty for `uniform`.
        bits: layer -> width.
        cost: in the unit of the budget.
        size_bytes: of the state dict.
        average_bits: of a quantized weight.
        predicted: sum of the layers' measured KL, nats; None for a width that they were not measured at.
        kl: of the network with all of them quantized.
        prec1: of that network, percent.
        delta_prec1: of that network, against the float network, points.
        by_measure: sum of the measure that was made small.
        label: of the variant that was scored on the images of `evaluate.split`; empty where it was not.
        test_prec1: Prec@1 on those images, percent.
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


@dataclass(frozen=True, kw_only=True)
class Allocation(Analysis):
    """Bits per layer under a budget.

    Args:
        images: what layers were compared on.
        budget: in words.
        choices: the exact choice first, then greedy, uniform, and exact ones by other measures.
        comparisons: of the choices, on the test images.
        gap: of greedy over exact, percent of exact; None where exact is 0.
        dynamic_check: what dynamic programming says of exact.
        scored: what `test_prec1` was measured on.
        use: the command that evaluates the policy.
    """

    images: str
    budget: str
    choices: tuple[Allocated, ...]
    comparisons: tuple[ChoiceComparison, ...]
    gap: float | None
    dynamic_check: str
    scored: str
    use: str
