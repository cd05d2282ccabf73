"""The fidelity ladder: fp32, its simulation, the integer reference, each runtime; where two rungs part, and whether they may.

End to end, a code that differs by one step early on moves others behind it, by several steps deep in a network, until nothing
can be said about any layer. So layers are judged one by one: every place of a rung is computed anew by the integer reference from
that rung's *own* codes before it (`integer_codes(given=)`), and may differ from what the rung has by one step, which is what ties
and the order of float sums explain. The logits may differ by one step of their accumulator. The integer reference itself is
judged on the simulation's codes, so that it is the simulation that is proved there. What the same rung differs by end to end from
the simulation is reported beside it, and fails nothing.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from qexp.deploy.activation_codes import code_nodes
from qexp.deploy.integer_network import integer_codes
from qexp.deploy.weight_codes import WeightCodes, accumulator_scale
from qexp.nn.fake_quant import FakeQuantize
from qexp.nn.graph import GraphNetwork

FLOAT, SIMULATED, INTEGER, LOGITS = "fp32", "simulated", "integer", "logits"
MAX_STEPS = 1
_FLOAT_ERROR = 1e-3  # of the largest logit: what kernels of float32 may differ by


@dataclass(frozen=True)
class Rung:
    """One rung, over all images added.

    Args:
        name: `fp32`, `simulated`, `integer` or a runtime's. prec1, prec5: percent. n: images.
        agreement: share of predictions equal to the simulation's. logit_sqnr_db: 10 log10(sum s^2 / sum (s - this)^2), s the
            simulation's logits. Of fp32 and of the simulation both are between these two, s those of fp32.
        agreement_above, logit_sqnr_above_db: the same to the rung above; of the first, None.
        max_steps: largest difference of a code from the simulation's, end to end. first_difference: the first place, in order of
            execution, where it is more than one step.
        layer_steps: largest difference of a code from what the integer reference makes of the rung's own codes before it.
        failed_layer: the first place where that is more than one step, or `logits`. num_failed: how many there are.
        passed: no layer failed; None where nothing was compared layer by layer. n_codes: images for which codes were compared.
        note: for the reader.
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


@dataclass(frozen=True, eq=False)
class Outcome:
    """What a rung made of a batch.

    Args:
        logits: float32 [N, classes]. codes: place -> int32 codes; None where they were not asked for.
        logits_of_codes: of the run that gave the codes, where it was another one.
    """

    logits: Tensor
    codes: Mapping[str, Tensor] | None = None
    logits_of_codes: Tensor | None = None


@dataclass(eq=False)
class _Distance:
    """Of two rungs' logits."""

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
    """Of one rung so far."""

    top1: int = 0
    top5: int = 0
    n_codes: int = 0
    simulation: _Distance = field(default_factory=_Distance)
    above: _Distance = field(default_factory=_Distance)
    shown: _Distance = field(default_factory=_Distance)
    steps: dict[str, int] = field(default_factory=dict)  # place -> largest difference from the simulation
    layer_steps: dict[str, int] = field(default_factory=dict)  # place -> largest difference from the reference


class Ladder:
    """Compares rungs, batch by batch.

    Args:
        network: the simulation, as for `integer_codes`. weights: its codes. names: of the rungs in order; the first two are
            `FLOAT` and `SIMULATED`. requantization: of the integer reference.
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
        self.places = tuple(code_nodes(network))
        self._counts = {name: _Counts() for name in names}
        self._logit_step = _logit_step(network, weights)
        self._n = 0

    @torch.no_grad()
    def add(self, images: Tensor, labels: Tensor, outcomes: Mapping[str, Outcome]) -> None:
        """Count a batch in.

        Args:
            images: [N, C, H, W] float32. labels: [N]. outcomes: of every rung; codes are compared where a rung and the
                simulation have them, which may be for some batches only.

        Raises:
            UserError: an accumulator beyond 32 bits.
        """
        simulation, above = outcomes[SIMULATED], None
        self._n += len(labels)
        for name in self.names:
            found, counts = outcomes[name], self._counts[name]
            hits = found.logits.topk(min(5, found.logits.shape[1]), dim=1).indices == labels.reshape(-1, 1)
            counts.top1, counts.top5 = counts.top1 + int(hits[:, 0].sum()), counts.top5 + int(hits.any(1).sum())
            reference, other = (outcomes[FLOAT], simulation) if name in (FLOAT, SIMULATED) else (simulation, found)
            counts.simulation.add(reference.logits, other.logits)
            if above is not None:
                counts.above.add(above.logits, found.logits)
            above = found
            if found.codes is not None and simulation.codes is not None and name != SIMULATED:
                self._add_codes(images, found, simulation, name)

    def _add_codes(self, images: Tensor, found: Outcome, simulation: Outcome, name: str) -> None:
        """Compare the codes of a rung end to end and layer by layer."""
        counts = self._counts[name]
        counts.n_codes += len(images)
        judged = simulation if name == INTEGER else found
        logits = judged.logits if judged.logits_of_codes is None else judged.logits_of_codes
        if found.logits_of_codes is not None:
            counts.shown.add(found.logits, found.logits_of_codes)
        options = {"requantization": self.requantization, "given": judged.codes}
        expected, expected_logits = integer_codes(self.network, self.weights, images, **options)
        for place in self.places:
            _raise_to(counts.steps, place, found.codes[place] - simulation.codes[place])
            _raise_to(counts.layer_steps, place, judged.codes[place] - expected[place])
        allowed = self._logit_step + _FLOAT_ERROR * expected_logits.abs().max()
        beyond = ~((logits - expected_logits).abs() <= allowed)  # NaN too
        _raise_to(counts.layer_steps, LOGITS, beyond.int() * (MAX_STEPS + 1))

    def rungs(self) -> tuple[Rung, ...]:
        """All rungs, over what was added."""
        return tuple(self._rung(name, number) for number, name in enumerate(self.names))

    def _rung(self, name: str, number: int) -> Rung:
        counts, n = self._counts[name], max(1, self._n)
        places = [place for place in self.places if place in counts.steps]
        layers = [place for place in (*self.places, LOGITS) if place in counts.layer_steps]
        failed = _apart(counts.layer_steps, layers)
        apart = counts.shown.sqnr_db if counts.shown.signal else math.inf
        note = f"logits with codes shown: {apart:.1f} dB to those without" if apart < math.inf else ""
        return Rung(
            name,
            100 * counts.top1 / n,
            100 * counts.top5 / n,
            self._n,
            counts.simulation.equal / n,
            counts.simulation.sqnr_db,
            counts.above.equal / n if number else None,
            counts.above.sqnr_db if number else None,
            max((counts.steps[place] for place in places), default=None),
            next(iter(_apart(counts.steps, places)), None),
            max((counts.layer_steps[place] for place in places), default=None),
            next(iter(failed), None),
            len(failed),
            not failed if counts.n_codes else None,
            counts.n_codes,
            note,
        )


def _apart(steps: Mapping[str, int], places: Sequence[str]) -> list[str]:
    """The places that differ by more than one step."""
    return [place for place in places if steps[place] > MAX_STEPS]


def _raise_to(largest: dict[str, int], place: str, difference: Tensor) -> None:
    """Note the largest absolute difference at a place."""
    found = int(difference.abs().max()) if difference.numel() else 0
    largest[place] = max(largest.get(place, 0), found)


def _logit_step(network: GraphNetwork, weights: Mapping[str, WeightCodes]) -> Tensor:
    """The step of the accumulators that the logits are, 0-d or [classes]; 0 where no layer of codes gives them."""
    node = next(node for node in network.graph.nodes if node.op == "output").args[0]
    weight = weights.get(f"{getattr(node, 'target', '')}.weight")
    reads = node.args[0] if weight is not None and node.op == "call_module" else None
    while reads is not None and reads.op != "placeholder":
        module = network.get_submodule(str(reads.target)) if reads.op == "call_module" else None
        if isinstance(module, FakeQuantize):
            known = not module.spec.dynamic and module.axis is None
            return accumulator_scale(module.qparams, weight.qparams) if known else torch.tensor(0.0)
        operands = reads.all_input_nodes
        reads = operands[0] if len(operands) == 1 else None
    return torch.tensor(0.0)
