"""The images of an evaluation through every fidelity stage: the float network, its quantized copy, integers, each runtime."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from qexp.base.outputs import main_output
from qexp.base.types import Batch
from qexp.config.root import Config
from qexp.deploy.activation_codes import load_values_, simulated_codes
from qexp.deploy.integer_network import integer_codes
from qexp.deploy.lower import Lowered
from qexp.deploy.onnx.qdq import Exported
from qexp.deploy.runtimes import Session, open_runtime
from qexp.deploy.stages import FLOAT, INTEGER, SIMULATED, Outcome, Stage, StageComparison
from qexp.experiment.job import Prepared
from qexp.nn.fake_quant import fake_quants
from qexp.nn.graph import GraphNetwork

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
            return Outcome(logits)
        codes, logits_of_codes = self.with_codes.run_codes(images)
        return Outcome(logits, codes, logits_of_codes)


@dataclass(frozen=True, eq=False)
class Fidelity:
    """All fidelity stages of a network.

    Args:
        stages: in order.
        versions: runtime -> its version.
        notes: what was not compared, and why.
    """

    stages: tuple[Stage, ...]
    versions: Mapping[str, str]
    notes: tuple[str, ...] = ()


def images_of(prepared: Prepared) -> Iterator[Batch]:
    """The images of the evaluation, on the CPU, in its batches."""
    evaluate = prepared.config.evaluate
    batches = prepared.bundle.eval_batches(
        evaluate.split, batch_size=evaluate.batch_size, num_images=evaluate.num_images, device=torch.device("cpu")
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
    """

    def __init__(self, config: Config, network: nn.Module, lowered: Lowered, exported: Exported) -> None:
        settings = config.export
        self.config, self.network, self.lowered, self.settings = config, network, lowered, settings
        quantizers = fake_quants(lowered.network)
        self.is_float = not lowered.weights and not quantizers
        self.has_integers = bool(quantizers)
        self.simulation = simulation_of(config, lowered, exported)
        self.is_exact = self.simulation is not lowered.network
        self.runtimes = {name: Runtime.open(name, exported, settings.threads) for name in settings.runtimes}

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
            with_codes = self.has_integers and (left is None or left > 0)
            comparison.add(batch.images, batch.labels, self._outcomes(batch.images, with_codes))
            left = None if left is None else left - len(batch.labels)
        versions = {name: runtime.plain.version for name, runtime in self.runtimes.items()}
        stages = tuple(stage for stage in comparison.stages() if not (self.is_float and stage.name == SIMULATED))
        return Fidelity(stages, versions, tuple(self._notes()))

    def _outcomes(self, images: Tensor, with_codes: bool) -> dict[str, Outcome]:
        outcomes = {FLOAT: Outcome(main_output(self.network(images)).float())}
        if with_codes:
            codes, logits = simulated_codes(self.simulation, images)
            outcomes[SIMULATED] = Outcome(logits, codes)
        else:
            outcomes[SIMULATED] = outcomes[FLOAT] if self.is_float else Outcome(self.simulation(images))
        if self.is_exact:
            outcomes[EVALUATED] = Outcome(self.lowered.network(images))
        if self.has_integers:
            codes, logits = integer_codes(
                self.simulation, self.lowered.weights, images, requantization=self.settings.requantization
            )
            outcomes[INTEGER] = Outcome(logits, codes if with_codes else None)
        return outcomes | {name: runtime.outcome(images, with_codes=with_codes) for name, runtime in self.runtimes.items()}

    def _notes(self) -> list[str]:
        return [] if self.has_integers or self.is_float else ["no integers to compare, since activations are float"]
