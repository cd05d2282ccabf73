"""The fidelity stages: fp32, its simulation, the integer reference, each runtime; where two of them differ, and whether they may.

End to end, a code that differs by one step early on moves others behind it, by several steps deep in a network, until nothing
can be said about any layer. So layers are judged one by one: every activation point of a stage is computed anew by the integer
reference from that stage's *own* codes before it (`integer_codes(given=)`), and may differ from what the stage has by one step,
which is what ties and the order of float sums explain, and in few codes: at 2 bits one step is a third of the range, so a layer
fails too where more than one code in a hundred differs. The logits may differ by one step of their accumulator. The integer
reference itself is judged on the simulation's codes, so that it is the simulation that is proved there. What the same stage
differs by end to end from the simulation is reported beside it, and fails nothing.

Codes that agree do not say that integers were multiplied: a runtime may dequantize and compute in float. So a stage that says
which layers it had in integers fails where they are fewer than the plan has.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, fx

from qexp.deploy.activation_codes import code_nodes
from qexp.deploy.code_steps import PointSteps, StepCounts
from qexp.deploy.graph_nodes import first_input, output_of, quantizer_at
from qexp.deploy.integer_network import integer_codes
from qexp.deploy.weight_codes import WeightCodes, accumulator_scale
from qexp.nn.graph import GraphNetwork

FLOAT, SIMULATED, INTEGER, LOGITS = "fp32", "simulated", "integer", "logits"
MAX_STEPS = 1
MAX_DIFFERENT = 0.01  # of the codes of a layer, but one code may always: ties are rarer by far
_FLOAT_ERROR = 1e-3  # of the largest logit: what kernels of float32 may differ by


@dataclass(frozen=True)
class Stage:
    """One fidelity stage, over all images added.

    Args:
        name: `fp32`, `simulated`, `integer` or a runtime's.
        prec1: percent.
        prec5: percent.
        n: images.
        agreement: share of predictions equal to the simulation's; of fp32 and of the simulation, between these two.
        logit_sqnr_db: 10 log10(sum s^2 / sum (s - this)^2), s the simulation's logits; of fp32 and of the simulation between
            these two, s those of fp32.
        agreement_above: share of predictions equal to those of the stage before; None of the first.
        logit_sqnr_above_db: logit SQNR against the stage before; None of the first.
        max_steps: largest difference of a code from the simulation's, end to end.
        first_difference: the first activation point, in order of execution, where it is more than one step.
        layer_steps: largest difference of a code from what the integer reference makes of the stage's own codes before it.
        failed_layer: the first activation point where that is more than one step or too many codes differ, or `logits`.
        num_failed: how many there are.
        passed: no layer failed, and all planned layers ran in integers; None where nothing was compared layer by layer.
        n_codes: images for which codes were compared.
        note: for the reader.
        differ_pct: largest share of a layer's codes that differ from what the reference makes of the stage's own, percent.
        num_planned: layers whose weights and inputs the plan has as integers; None of a stage that is float or does not tell.
        num_integer: how many of these it ran in integers.
        integer_macs_pct: their share of the MACs of all planned ones, percent.
        float_layers: the others.
    """

    name: str
    prec1: float
    prec5: float
    n: int
    agreement: float
    logit_sqnr_db: float
    agreement_above: float | None
    logit_sqnr_above_db: float | None
    max_steps: int | None = None
    first_difference: str | None = None
    layer_steps: int | None = None
    failed_layer: str | None = None
    num_failed: int = 0
    passed: bool | None = None
    n_codes: int = 0
    note: str = ""
    differ_pct: float | None = None
    num_planned: int | None = None
    num_integer: int | None = None
    integer_macs_pct: float | None = None
    float_layers: tuple[str, ...] = ()

    def with_integers(self, planned: Mapping[str, int], integer: Collection[str] | None) -> Stage:
        """The stage with what it ran in integers; a layer that is missing fails it.

        Args:
            planned: layer -> its MACs, of those that the plan has in integers.
            integer: layers that the stage had in integers; None where it does not tell.
        """
        if integer is None:
            return self
        missing = tuple(layer for layer in planned if layer not in integer)
        macs = sum(planned.values())
        share = 100 * (1 - sum(planned[layer] for layer in missing) / macs) if macs else None
        passed = False if missing or self.passed is False else self.passed if planned else None
        counts = len(planned), len(planned) - len(missing)
        return replace(
            self, passed=passed, num_planned=counts[0], num_integer=counts[1], integer_macs_pct=share, float_layers=missing
        )


@dataclass(frozen=True, eq=False)
class Outcome:
    """What a stage computes of a batch.

    Args:
        logits: float32 [N, classes].
        codes: activation point -> int32 codes; None where the batch was run for its logits alone.
        logits_of_codes: of the run that gave the codes, where it was another run.
        logit_step: of logits that are codes, which round by half of it; 0 of floats.
    """

    logits: Tensor
    codes: Mapping[str, Tensor] | None = None
    logits_of_codes: Tensor | None = None
    logit_step: float = 0.0


@dataclass(eq=False)
class _Distance:
    """Between the logits of two stages."""

    equal: int = 0
    signal: float = 0.0
    noise: float = 0.0

    def add(self, reference: Tensor, other: Tensor) -> None:
        self.equal += int((reference.argmax(1) == other.argmax(1)).sum())
        self.signal += float(reference.double().square().sum())
        self.noise += float((reference.double() - other.double()).square().sum())

    @property
    def sqnr_db(self) -> float:
        if not self.noise:
            return math.inf
        return 10 * math.log10(self.signal / self.noise) if self.signal and math.isfinite(self.noise) else -math.inf


@dataclass(eq=False)
class _Counts:
    """Of one stage so far."""

    top1: int = 0
    top5: int = 0
    n_codes: int = 0
    to_simulation: _Distance = field(default_factory=_Distance)
    to_previous: _Distance = field(default_factory=_Distance)
    to_run_with_codes: _Distance = field(default_factory=_Distance)
    steps: dict[str, StepCounts] = field(default_factory=dict)  # activation point -> differences from the simulation
    alone: dict[str, StepCounts] = field(default_factory=dict)  # activation point -> differences from the reference
    logits_are_right: bool = True

    def fails(self, point: str) -> bool:
        """True where a layer is further from the reference than ties explain."""
        if point == LOGITS:
            return not self.logits_are_right
        alone = self.alone[point]
        return alone.largest > MAX_STEPS or alone.num_different > max(1, MAX_DIFFERENT * alone.num_codes)


class StageComparison:
    """Compares fidelity stages, batch by batch.

    Args:
        network: the simulation, as for `integer_codes`.
        weights: its codes.
        names: of the stages in order; the first two are `FLOAT` and `SIMULATED`.
        requantization: of the integer reference.
    """

    def __init__(
        self,
        network: GraphNetwork,
        weights: Mapping[str, WeightCodes],
        names: Sequence[str],
        *,
        requantization: str = "float32",
    ) -> None:
        assert tuple(names[:2]) == (FLOAT, SIMULATED), names
        self.network, self.weights, self.names, self.requantization = network, weights, tuple(names), requantization
        self.points = tuple(code_nodes(network))
        self._counts = {name: _Counts() for name in names}
        self._logit_step = _logit_step(network, weights)
        self._n = 0

    @torch.no_grad()
    def add(self, images: Tensor, labels: Tensor, outcomes: Mapping[str, Outcome]) -> None:
        """Count a batch in.

        Args:
            images: [N, C, H, W] float32.
            labels: [N].
            outcomes: of every stage; codes are compared where a stage and the simulation have them, which may be for some
                batches only.

        Raises:
            UserError: an accumulator beyond 32 bits.
        """
        simulation, previous = outcomes[SIMULATED], None
        self._n += len(labels)
        for name in self.names:
            outcome, counts = outcomes[name], self._counts[name]
            hits = outcome.logits.topk(min(5, outcome.logits.shape[1]), dim=1).indices == labels.reshape(-1, 1)
            counts.top1, counts.top5 = counts.top1 + int(hits[:, 0].sum()), counts.top5 + int(hits.any(1).sum())
            reference, other = (outcomes[FLOAT], simulation) if name in (FLOAT, SIMULATED) else (simulation, outcome)
            counts.to_simulation.add(reference.logits, other.logits)
            if previous is not None:
                counts.to_previous.add(previous.logits, outcome.logits)
            previous = outcome
            if outcome.codes is not None and simulation.codes is not None and name != SIMULATED:
                self._add_codes(images, name, outcome, outcome.codes, simulation, simulation.codes)

    def _add_codes(
        self,
        images: Tensor,
        name: str,
        outcome: Outcome,
        codes: Mapping[str, Tensor],
        simulation: Outcome,
        simulated: Mapping[str, Tensor],
    ) -> None:
        """Compare the codes of a stage end to end and layer by layer."""
        counts = self._counts[name]
        counts.n_codes += len(images)
        judged, own = (simulation, simulated) if name == INTEGER else (outcome, codes)
        logits = judged.logits if judged.logits_of_codes is None else judged.logits_of_codes
        if outcome.logits_of_codes is not None:
            counts.to_run_with_codes.add(outcome.logits, outcome.logits_of_codes)
        expected, expected_logits = integer_codes(
            self.network, self.weights, images, requantization=self.requantization, given=own
        )
        for point in self.points:
            counts.steps.setdefault(point, StepCounts()).add(codes[point] - simulated[point])
            alone = own[point] - expected[point]  # of the integers, `own` is the simulation's
            counts.alone.setdefault(point, StepCounts()).add(-alone if name == INTEGER else alone)
        allowed = self._logit_step + outcome.logit_step / 2 + _FLOAT_ERROR * expected_logits.abs().max()
        counts.logits_are_right &= bool(((logits - expected_logits).abs() <= allowed).all())  # not NaN either

    def stages(self) -> tuple[Stage, ...]:
        """All stages, over what was added."""
        return tuple(self._stage(name, number) for number, name in enumerate(self.names))

    def point_steps(self) -> tuple[PointSteps, ...]:
        """Of each stage whose codes were compared, every activation point, in order of execution."""
        return tuple(
            PointSteps.of(name, point, counts.steps[point], counts.alone[point])
            for name, counts in self._counts.items()
            for point in self.points
            if point in counts.steps
        )

    def _stage(self, name: str, number: int) -> Stage:
        counts, n = self._counts[name], max(1, self._n)
        points = [point for point in self.points if point in counts.steps]
        different = [point for point in points if counts.steps[point].largest > MAX_STEPS]
        failed = [point for point in (*points, LOGITS) if counts.fails(point)]
        shown_db = counts.to_run_with_codes.sqnr_db if counts.to_run_with_codes.signal else math.inf
        return Stage(
            name=name,
            prec1=100 * counts.top1 / n,
            prec5=100 * counts.top5 / n,
            n=self._n,
            agreement=counts.to_simulation.equal / n,
            logit_sqnr_db=counts.to_simulation.sqnr_db,
            agreement_above=counts.to_previous.equal / n if number else None,
            logit_sqnr_above_db=counts.to_previous.sqnr_db if number else None,
            max_steps=max((counts.steps[point].largest for point in points), default=None),
            first_difference=next(iter(different), None),
            layer_steps=max((counts.alone[point].largest for point in points), default=None),
            failed_layer=next(iter(failed), None),
            num_failed=len(failed),
            passed=not failed if counts.n_codes else None,
            n_codes=counts.n_codes,
            differ_pct=max((counts.alone[point].differ_pct for point in points), default=None),
            note=f"logits with codes shown: {shown_db:.1f} dB to those without" if shown_db < math.inf else "",
        )


def _logit_step(network: GraphNetwork, weights: Mapping[str, WeightCodes]) -> Tensor:
    """The step of the accumulators that the logits are, 0-d or [classes]; 0 where no layer of codes gives them."""
    layer = output_of(network)
    weight = None if layer is None or layer.op != "call_module" else weights.get(f"{layer.target}.weight")
    if layer is None or weight is None:
        return torch.tensor(0.0)
    source: fx.Node | None = first_input(layer)
    while source is not None and source.op != "placeholder":
        quantizer = quantizer_at(network, source)
        if quantizer is not None:
            known = not quantizer.spec.dynamic and quantizer.axis is None
            return accumulator_scale(quantizer.qparams, weight.qparams) if known else torch.tensor(0.0)
        operands = source.all_input_nodes
        source = operands[0] if len(operands) == 1 else None
    return torch.tensor(0.0)
