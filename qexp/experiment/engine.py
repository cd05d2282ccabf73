"""How the networks of an evaluation run: as they are, or by compiled programs, one for all variants of one graph.

`evaluate.engine=eager` runs them as they are: numbers of the same circumstances are equal to the last bit. `compiled` has sums
in another order, so its numbers have keys of their own, and stand in no table beside eager ones without a mark. `auto` compiles
where that is expected to pay, and where a measured batch then confirms it; it runs a graph that cannot be compiled as it is. What
was done, and why, is in the record of each number (`computed_by`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import astuple, dataclass, replace

import torch
from torch import Tensor, nn

from qexp.base import dist
from qexp.base.compiler import cxx_compiler
from qexp.base.console import print_main
from qexp.base.errors import UserError
from qexp.base.files import hash_json
from qexp.base.text import counted
from qexp.base.types import Batch
from qexp.config.train import BATCH_SIZES
from qexp.engine.compiled import TOLERANCE, CannotCompile, Programs, Run, check_alike, seconds_of
from qexp.engine.precision import InBf16, lacks_bf16
from qexp.experiment.batch_size import BatchSize, fastest
from qexp.experiment.job import Prepared
from qexp.experiment.memory import fitting
from qexp.experiment.variants import Variant

COMPILE_S = 0.2  # estimated seconds for each layer, activation or norm of a graph; ResNet-20 took 10 s on two quiet cores
SAVED = 0.5  # share of eager's time that a program is expected to save
WORTH = 0.9  # of eager's time at most, else a program that was made is not used
# Of the largest logit, in the median image, where activations are quantized: a value in the middle between two codes may go
# either way, and a step of an activation is far more than a rounding error. A program of another graph or other weights is off by
# as much as logits are, in every image.
QUANTIZED_TOLERANCE = 0.1
COMPARED_NETWORKS = 2  # of each state that a program runs: the second shows that it reads weights which were overwritten since
AUTOCAST = "bf16 by torch.autocast"
HALF = "mode=half rounds the result of every operation, and a compiler joins operations"


@dataclass(frozen=True)
class Choice:
    """How one network runs.

    Args:
        run: its program, or the network in bf16; None where it runs as it is.
        words: what was chosen and why, for the record.
    """

    run: Callable[[Tensor], object] | None
    words: str


class Engine:
    """Chooses how networks run, and on how many images at once, and holds their programs.

    `batch_size` is the one asked for or, once networks were chosen for, the one that was measured.

    Args:
        prepared: the merged job.
        batches: the images that are scored, in whole batches of so many, from the first one, on the device.
        device: where networks run.
    """

    def __init__(self, prepared: Prepared, batches: Callable[[int], Iterator[Batch]], device: torch.device) -> None:
        self.prepared, self._batches, self._device = prepared, batches, device
        self.setting = prepared.config.evaluate.engine
        self._is_bf16 = prepared.config.evaluate.precision == "bf16"
        if self._is_bf16 and lacks_bf16(device):
            print_main("  note: this processor has no instructions for bf16: evaluate.precision=fp32 is many times faster here")
        self.batch_size = BatchSize(prepared.config.evaluate.batch_images)
        self._is_settled = prepared.config.evaluate.batch_size is not None
        self.programs = Programs()
        self._images: Tensor | None = None
        self._runs: dict[int, Run] = {}  # of shadows, whose modules stay
        self._words: dict[str, str] = {}  # of graphs that were measured, or that run as they are
        self._eager: set[str] = set()
        self._said: set[str] = set()
        self._compared: Counter[int] = Counter()  # shadow's module -> networks of this state that it was

    def begin_state(self) -> None:
        """Say that networks of another state dict follow: programs are compared with the first of them again."""
        self._compared.clear()

    def choose(self, variants: Sequence[Variant], models: Mapping[str, nn.Module]) -> dict[str, Choice]:
        """How each variant runs, by key; empty where all run as they are and nothing else was asked for.

        The first call finds the size of batches, if it is to be measured, for its first variant.

        Args:
            variants: with their weights loaded.
            models: key -> network.

        Raises:
            UserError: `compiled` was asked for, and a network cannot be.
        """
        if not self._is_settled:
            first, model = variants[0], models[variants[0].key]
            self.batch_size = BatchSize(*dist.from_main(lambda: astuple(self._measured_size(first, model))))
            self._images, self._is_settled = None, True
            print_main(f"  note: evaluate.batch_size=null: {self.batch_size.words}")
        if self.setting == "eager":
            words = "; ".join(filter(None, [AUTOCAST * self._is_bf16, self.batch_size.words]))
            runs = {variant.key: InBf16(models[variant.key]) if self._is_bf16 else None for variant in variants}
            return {key: Choice(run, words) for key, run in runs.items()} if words else {}
        choices = {variant.key: self._choice(variant, models[variant.key]) for variant in variants}
        for variant in variants:
            words = choices[variant.key].words
            if words not in self._said and words != "compiled":
                self._said.add(words)
                print_main(f"  note: [{variant.label}] evaluate.engine={self.setting}: {words}")
        if not self.batch_size.words:
            return choices
        return {key: replace(one, words=f"{one.words}; {self.batch_size.words}") for key, one in choices.items()}

    def _measured_size(self, variant: Variant, model: nn.Module) -> BatchSize:
        """The fastest size of batches for the engine that a network would run by."""
        evaluate, bundle = self.prepared.config.evaluate, self.prepared.bundle
        num_images = evaluate.num_images or bundle.split_sizes[evaluate.split]
        sizes = [size for size in BATCH_SIZES if size <= num_images]
        if self._device.type == "cpu":
            sizes = fitting(sizes, model, bundle.image_shape)
        eager = InBf16(model) if self._is_bf16 else model
        compiles = self.setting == "compiled" or (self.setting == "auto" and not self._not_worth(variant, model))

        def seconds(size: int) -> float:
            images = next(self._batches(size)).images
            try:
                run = self.programs.run_of(model, images) if compiles else eager
            except CannotCompile:
                run = model
            return seconds_of(run, images)

        return fastest(sizes or BATCH_SIZES[:1], seconds)

    def _choice(self, variant: Variant, model: nn.Module) -> Choice:
        graph = _graph(variant)
        if self.setting == "auto" and graph not in self._words:
            reason = dist.from_main(lambda: self._not_worth(variant, model))
            if reason:
                self._words[graph] = f"eager: {reason}"
                self._eager.add(graph)
        if graph in self._eager:
            return Choice(None, self._words[graph])
        run, reason = self._compiled(variant, model)
        reason = next((text for text in dist.all_gather_object(reason) if text), "")  # all ranks or none
        if reason and self.setting == "compiled":
            remedy = f"{reason} evaluate.engine=auto runs it as it is."
            raise UserError("evaluate.engine", "compiled", allowed=f"auto or eager for {variant.label}", remedy=remedy)
        if not reason and graph not in self._words:
            reason, self._words[graph] = self._measured(run, model)
        if reason:
            self._eager.add(graph)
            self._words[graph] = f"eager: {reason}"
            run = None
        return Choice(run, self._words[graph])

    def _compiled(self, variant: Variant, model: nn.Module) -> tuple[Run | None, str]:
        """The network's program, found to compute what it or the first ones of its graph and state do; or why there is none."""
        try:
            if variant.plan.mode == "half":
                raise CannotCompile(f"{HALF}.")
            run = self._runs.get(id(model)) or self.programs.run_of(model, self._first_images())
            if not variant.is_built:
                self._runs[id(model)] = run
                self._compared[id(model)] += 1
            quantized = bool(variant.plan.quantized_activations)
            if variant.is_built or self._compared[id(model)] <= COMPARED_NETWORKS:
                check_alike(run, self._first_images(), QUANTIZED_TOLERANCE if quantized else TOLERANCE, typical=quantized)
        except CannotCompile as error:
            return None, str(error)
        return run, ""

    def _measured(self, run: Run | None, model: nn.Module) -> tuple[str, str]:
        """Why a program is not worth running, empty where it is; and what to say of it."""
        if self.setting == "compiled" or run is None:
            return "", "compiled"
        images, program = self._first_images(), run
        share = dist.from_main(lambda: seconds_of(program, images) / seconds_of(model, images))
        text = f"its program takes {share:.2f} of eager's time on a batch of {len(images)}"
        return (text, "") if share > WORTH else ("", f"compiled: {text}")

    def _not_worth(self, variant: Variant, model: nn.Module) -> str:
        """Why compiling a graph is not expected to pay; empty where it is."""
        if cxx_compiler() is None:
            return "there is no C++ compiler"
        config, images = self.prepared.config, self._first_images()
        size = self.prepared.bundle.split_sizes[config.evaluate.split]
        networks = sum(_graph(other) == _graph(variant) for other in self.prepared.variants)
        networks *= config.recipe.epochs if config.checkpoint is None else 1
        per_image = seconds_of(model, images, times=1) / len(images)
        saved = SAVED * per_image * networks * (config.evaluate.num_images or size)
        layers = sum(1 for module in model.modules() if not [*module.children()])
        if saved > COMPILE_S * layers:
            return ""
        expected = f"{saved:.1f} s where compiling its {counted(layers, 'module')} is expected to take {COMPILE_S * layers:.1f} s"
        return f"{counted(networks, 'evaluation')} would save about {expected}"

    def _first_images(self) -> Tensor:
        """The first batch of all, on every rank: programs are made for its shape."""
        if self._images is None:
            self._images = next(self._batches(self.batch_size.images)).images
        return self._images


def _graph(variant: Variant) -> str:
    """What the graph of a variant hangs on, as far as it is known before it is built."""
    built = [variant.config.correct.identity, [repr(row) for row in variant.plan.quantized_activations.items()]]
    return hash_json([*variant.structure, variant.is_built, built if variant.is_built else []])
