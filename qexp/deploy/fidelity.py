"""The images of an evaluation through every rung: the float network, its quantized copy, integers, each runtime."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from qexp.base.outputs import main_output
from qexp.base.types import Batch
from qexp.config.root import Config
from qexp.deploy.activation_codes import load_biases_, simulated_codes
from qexp.deploy.integer_network import integer_codes
from qexp.deploy.ladder import FLOAT, INTEGER, SIMULATED, Ladder, Outcome, Rung
from qexp.deploy.lower import Lowered
from qexp.deploy.onnx.qdq import Exported
from qexp.deploy.runtimes import Session, open_runtime
from qexp.experiment.job import Prepared
from qexp.nn.fake_quant import fake_quants
from qexp.nn.graph import GraphNetwork

EVALUATED = "evaluated"  # the copy as `qexp.evaluate` scores it, where the simulation is another


@dataclass(frozen=True, eq=False)
class Runtime:
    """A file in a runtime, twice: as it is, and with the codes of its places as outputs, for which fewer layers may be fused."""

    plain: Session
    shown: Session | None

    @classmethod
    def open(cls, name: str, exported: Exported, threads: int) -> Runtime:
        """Load the file; without places, once."""
        shown = open_runtime(name, exported.path, threads=threads, outputs=exported.codes) if exported.codes else None
        return cls(open_runtime(name, exported.path, threads=threads), shown)

    def outcome(self, images: Tensor, *, with_codes: bool) -> Outcome:
        """What it makes of a batch."""
        logits = self.plain.run(images)
        if not with_codes or self.shown is None:
            return Outcome(logits)
        codes, beside = self.shown.run_codes(images)
        return Outcome(logits, codes, beside)


@dataclass(frozen=True, eq=False)
class Fidelity:
    """All rungs of a network.

    Args:
        rungs: in order. versions: runtime -> its version. notes: what was not compared, and why.
    """

    rungs: tuple[Rung, ...]
    versions: Mapping[str, str]
    notes: tuple[str, ...] = ()


def images_of(prepared: Prepared) -> Iterator[Batch]:
    """The images of the evaluation, on the CPU, in its batches."""
    evaluate, device = prepared.config.evaluate, torch.device("cpu")
    options = {"batch_size": evaluate.batch_size, "num_images": evaluate.num_images, "device": device}
    return iter(prepared.bundle.eval_batches(evaluate.split, **options))


def simulation_of(config: Config, lowered: Lowered, exported: Exported) -> GraphNetwork:
    """What runtimes are compared with: the copy as it is evaluated, or one of it with the biases of the file."""
    if config.export.simulate == "fast" or not exported.biases:
        return lowered.network
    simulation = copy.deepcopy(lowered.network)
    load_biases_(simulation, exported.biases)
    return simulation


class Climb:
    """Runs the rungs of one exported network.

    Args:
        config: of the job. network: float, as trained, in eval mode. lowered: what was written. exported: the file.
    """

    def __init__(self, config: Config, network: nn.Module, lowered: Lowered, exported: Exported) -> None:
        settings = config.export
        self.config, self.network, self.lowered, self.settings = config, network, lowered, settings
        places = fake_quants(lowered.network).values()
        self.is_float = not lowered.weights and not places
        self.has_integers = bool(places)
        self.simulation = simulation_of(config, lowered, exported)
        self.is_exact = self.simulation is not lowered.network
        self.runtimes = {name: Runtime.open(name, exported, settings.threads) for name in settings.runtimes}

    @torch.no_grad()
    def run(self, prepared: Prepared) -> Fidelity:
        """Score the evaluation's images on every rung, and compare the codes of the first of them.

        Raises:
            UserError: an accumulator beyond 32 bits.
        """
        between = [EVALUATED] * self.is_exact + [INTEGER] * self.has_integers
        names = (FLOAT, SIMULATED, *between, *self.runtimes)
        ladder = Ladder(self.simulation, self.lowered.weights, names, requantization=self.settings.requantization)
        left = self.settings.num_compared
        for batch in images_of(prepared):
            with_codes = self.has_integers and (left is None or left > 0)
            ladder.add(batch.images, batch.labels, self._outcomes(batch.images, with_codes))
            left = None if left is None else left - len(batch.labels)
        versions = {name: runtime.plain.version for name, runtime in self.runtimes.items()}
        kept = tuple(rung for rung in ladder.rungs() if not (self.is_float and rung.name == SIMULATED))
        return Fidelity(kept, versions, tuple(self._notes()))

    def _outcomes(self, images: Tensor, with_codes: bool) -> dict[str, Outcome]:
        found = {FLOAT: Outcome(main_output(self.network(images)).float())}
        if with_codes:
            codes, logits = simulated_codes(self.simulation, images)
            found[SIMULATED] = Outcome(logits, codes)
        else:
            found[SIMULATED] = found[FLOAT] if self.is_float else Outcome(self.simulation(images))
        if self.is_exact:
            found[EVALUATED] = Outcome(self.lowered.network(images))
        if self.has_integers:
            codes, logits = integer_codes(
                self.simulation, self.lowered.weights, images, requantization=self.settings.requantization
            )
            found[INTEGER] = Outcome(logits, codes if with_codes else None)
        return found | {name: each.outcome(images, with_codes=with_codes) for name, each in self.runtimes.items()}

    def _notes(self) -> list[str]:
        return [] if self.has_integers or self.is_float else ["no integers to compare, since activations are float"]
