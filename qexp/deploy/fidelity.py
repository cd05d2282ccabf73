"""The images of an evaluation through every fidelity stage: the float network, its quantized copy, integers, each runtime."""

from __future__ import annotations

import copy
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from qexp.base.modules import named_tensors
from qexp.base.outputs import main_output
from qexp.base.types import Batch
from qexp.config.root import Config
from qexp.deploy.activation_codes import load_values_, simulated_codes
from qexp.deploy.alarms import parting
from qexp.deploy.code_steps import PointSteps
from qexp.deploy.coded_network import names_read
from qexp.deploy.files import float_note
from qexp.deploy.float8 import Float8Weight
from qexp.deploy.integer_network import integer_codes
from qexp.deploy.lower import Lowered
from qexp.deploy.onnx.qdq import Exported
from qexp.deploy.runtimes import Session, open_runtime
from qexp.deploy.stages import FLOAT, INTEGER, SIMULATED, Outcome, Stage, StageComparison
from qexp.deploy.value_grids import value_quantizers
from qexp.experiment.job import Prepared
from qexp.nn.fake_quant import fake_quants
from qexp.nn.fake_quantize import FloatFakeQuantize
from qexp.nn.graph import GraphNetwork
from qexp.nn.layer_calls import layer_calls, products
from qexp.nn.macs import macs_per_layer

_MAX_BYTES = 2**29
_BYTES_PER_CODE = 20  # int32 of the simulation, the integers, a runtime and the reference, and the runtime's own
_BYTES_PER_VALUE = 64  # float64 operands and results of the largest layer, and what a convolution lays out for itself
FLOAT8_NOTE = "floats of 8 bits: predictions and logits are compared; there is no integer reference"
EVALUATED = "evaluated"  # the copy as `qexp.evaluate` scores it, where the simulation is another


@dataclass(frozen=True, eq=False)
class Runtime:
    """A file loaded into a runtime, twice.

    Args:
        plain: the file as it is.
        with_codes: the file with the codes of its activation points as outputs, for which fewer layers may be fused; None where
            it has none.
    """

    plain: Session
    with_codes: Session | None

    @classmethod
    def open(cls, name: str, exported: Exported, threads: int) -> Runtime:
        """Load the file; once where it has no activation points.

        Args:
            name: of the runtime.
            exported: the file.
            threads: of one run.
        """
        with_codes = open_runtime(name, exported.path, threads=threads, outputs=exported.codes) if exported.codes else None
        return cls(open_runtime(name, exported.path, threads=threads), with_codes)

    def outcome(self, images: Tensor, *, with_codes: bool) -> Outcome:
        """What the runtime computes of a batch.

        Args:
            images: [N, C, H, W] float32.
            with_codes: run the file for its codes too.
        """
        logits = self.plain.run(images)
        if not with_codes or self.with_codes is None:
            return Outcome(logits, logit_step=self.plain.logit_step)
        codes, logits_of_codes = self.with_codes.run_codes(images)
        return Outcome(logits, codes, logits_of_codes, self.plain.logit_step)


@dataclass(frozen=True, eq=False)
class Fidelity:
    """All fidelity stages of a network.

    Args:
        stages: in order.
        versions: runtime -> its version.
        points: of each stage whose codes were compared, how they differ at every activation point.
        notes: what was not compared, and why; where a stage parts whose predictions are not the simulation's.
    """

    stages: tuple[Stage, ...]
    versions: Mapping[str, str]
    points: tuple[PointSteps, ...] = ()
    notes: tuple[str, ...] = ()


def images_of(prepared: Prepared) -> Iterator[Batch]:
    """The images of the evaluation, on the CPU, in its batches."""
    evaluate = prepared.config.evaluate
    batches = prepared.bundle.eval_batches(
        evaluate.split, batch_size=evaluate.batch_images, num_images=evaluate.num_images, device=torch.device("cpu")
    )
    return iter(batches)


def simulation_of(config: Config, lowered: Lowered, exported: Exported) -> GraphNetwork:
    """What runtimes are compared with: the copy as it is evaluated, or one of it with the biases and weights of the file.

    Args:
        config: of the job.
        lowered: the copy.
        exported: the file.
    """
    values = lowered.values_in(exported.biases)
    if config.export.simulate == "fast" or not values:
        return lowered.network
    simulation = copy.deepcopy(lowered.network)
    load_values_(simulation, values)
    return simulation


class FidelityRun:
    """Runs the fidelity stages of one exported network.

    Args:
        config: of the job.
        network: float, as trained, in eval mode.
        lowered: what was written.
        exported: the file.
        planned: names of the weights that the plan rounds to integers.
        example: [1, C, H, W].
    """

    def __init__(
        self, config: Config, network: nn.Module, lowered: Lowered, exported: Exported, planned: Collection[str], example: Tensor
    ) -> None:
        settings = config.export
        self.config, self.network, self.lowered, self.settings = config, network, lowered, settings
        quantizers = fake_quants(lowered.network)
        self.is_float = not (lowered.weights or lowered.in_float or quantizers)
        small_floats = (Float8Weight, FloatFakeQuantize)
        self.has_float8 = any(isinstance(one, small_floats) for one in (*lowered.in_float.values(), *quantizers.values()))
        self.has_integers = bool(quantizers) and not self.has_float8
        self.simulation = simulation_of(config, lowered, exported)
        self.is_exact = self.simulation is not lowered.network
        self.runtimes = {name: Runtime.open(name, exported, settings.threads) for name in settings.runtimes}
        self.planned = planned_layers(lowered.network, planned, example)
        self.float_note = float_note(lowered, exported.stored, settings)
        # A batch that gives ranges of its own is one whole; without integers there are no codes to hold.
        is_whole = not self.has_integers or any(quantizer.spec.dynamic for quantizer in quantizers.values())
        self.at_once = config.evaluate.batch_images if is_whole else images_at_once(self.simulation, example)
        self._ran: set[str] = set()

    @torch.no_grad()
    def run(self, prepared: Prepared) -> Fidelity:
        """Score the evaluation's images at every stage, and compare the codes of the first of them.

        Raises:
            UserError: an accumulator beyond 32 bits.
        """
        between = [EVALUATED] * self.is_exact + [INTEGER] * self.has_integers
        names = (FLOAT, SIMULATED, *between, *self.runtimes)
        comparison = StageComparison(self.simulation, self.lowered.weights, names, requantization=self.settings.requantization)
        left = self.settings.num_compared
        for batch in images_of(prepared):
            # What was evaluated is scored in the evaluation's batches, all else by as many images as memory allows.
            scored = {FLOAT: main_output(self.network(batch.images)).float()}
            scored[EVALUATED if self.is_exact else SIMULATED] = self.lowered.network(batch.images)
            for part in torch.arange(len(batch.labels)).split(self.at_once):
                with_codes = self.has_integers and (left is None or left > 0)
                logits = {name: values[part] for name, values in scored.items()}
                comparison.add(batch.images[part], batch.labels[part], self._outcomes(batch.images[part], logits, with_codes))
                left = None if left is None else left - len(part)
        versions = {name: runtime.plain.version for name, runtime in self.runtimes.items()}
        stages = [stage for stage in comparison.stages() if not (self.is_float and stage.name == SIMULATED)]
        if self.has_float8:
            stages = [replace(stage, note=FLOAT8_NOTE) if stage.name in self.runtimes else stage for stage in stages]
        partings = (parting(stage) for stage in stages if stage.name in (INTEGER, *self.runtimes))
        notes = (*self._notes(), *(text for text in partings if text is not None))
        return Fidelity(tuple(map(self._with_integers, stages)), versions, comparison.point_steps(), notes)

    def _outcomes(self, images: Tensor, scored: Mapping[str, Tensor], with_codes: bool) -> dict[str, Outcome]:
        outcomes = {name: Outcome(logits) for name, logits in scored.items()}
        if with_codes:
            codes, logits = simulated_codes(self.simulation, images)
            outcomes[SIMULATED] = Outcome(scored.get(SIMULATED, logits), codes)
        elif SIMULATED not in outcomes:
            outcomes[SIMULATED] = Outcome(self.simulation(images))
        if self.has_integers:
            codes, logits = integer_codes(
                self.simulation, self.lowered.weights, images, requantization=self.settings.requantization, ran=self._ran
            )
            outcomes[INTEGER] = Outcome(logits, codes if with_codes else None)
        return outcomes | {name: runtime.outcome(images, with_codes=with_codes) for name, runtime in self.runtimes.items()}

    def _with_integers(self, stage: Stage) -> Stage:
        """A stage with what it ran in integers."""
        if not self.has_integers:
            return stage
        if stage.name == INTEGER:
            return stage.with_integers(self.planned, self._ran)
        integer_layers = self.runtimes[stage.name].plain.integer_layers if stage.name in self.runtimes else None
        return stage if integer_layers is None else stage.with_integers(self.planned, integer_layers())

    def _notes(self) -> Iterator[str]:
        if self.float_note is not None:
            yield self.float_note
        if self.has_float8:
            yield FLOAT8_NOTE
        elif not self.has_integers and not self.is_float:
            yield "no integers to compare, since activations are float"
        if self.has_integers and not self.planned:
            yield "no layer is planned in integers: nothing could show that integers were multiplied"
        silent = [name for name, runtime in self.runtimes.items() if runtime.plain.integer_layers is None]
        if self.has_integers and silent:
            yield f"{', '.join(silent)}: does not tell which layers it computes in integers"


def planned_layers(network: GraphNetwork, weights: Collection[str], example: Tensor) -> dict[str, int]:
    """Layer -> MACs of one image, of the layers that a plan has in integers: it rounds their weights and what they read.

    Matrix products of two activations are among them, where it rounds both.

    Args:
        network: of `Lowered`.
        weights: names of the weights that the plan rounds.
        example: [1, C, H, W].
    """
    quantizers, tensors, macs = value_quantizers(network), named_tensors(network), macs_per_layer(network, example)
    rounded = {alias for name in weights if name in tensors for alias in names_read(network, name, tensors)}
    calls = [call for call in layer_calls(network) if call.weight in rounded and call.source in quantizers]
    layers = {(layer := call.weight.removesuffix(".weight")): macs.get(layer, 0) for call in calls}
    coded = {name: node for node, name in products(network).items() if all(one in quantizers for one in node.all_input_nodes)}
    return layers | {name: macs.get(name, 0) for name in coded}


def images_at_once(network: GraphNetwork, example: Tensor) -> int:
    """How many images to compare at a time, so that their codes and the values behind them take at most half a GiB.

    Args:
        network: whose activation points are compared.
        example: [1, C, H, W].
    """
    sizes = [codes.numel() for codes in simulated_codes(network, example)[0].values()]
    per_image = _BYTES_PER_CODE * sum(sizes) + _BYTES_PER_VALUE * max(sizes, default=0)
    return max(1, _MAX_BYTES // max(1, per_image))
