"""Networks against their float network, block by block, until a sequential test decides; what was counted is kept.

`<runs_dir>/checkpoints/<hash>/shrink.jsonl` gets a row for each block of images of each network as soon as it is counted. A row's
key covers all that decides its counts, so a search that was killed goes on, and other margins and lists use what is there.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import nn

from qexp.analysis.layers import selecting
from qexp.base.errors import UserError
from qexp.base.files import hash_json
from qexp.base.progress import track
from qexp.base.types import Batch
from qexp.config.model import PRETRAINED
from qexp.config.root import Config
from qexp.engine.evaluate import Evaluation, evaluate
from qexp.experiment.build import Built, quantized_copy
from qexp.experiment.data_checks import check_allocation_images, check_analysis_images
from qexp.experiment.prepare import Preparer
from qexp.experiment.stored_numbers import UNCHANGED, as_stored, changed, circumstances
from qexp.experiment.variants import Variant
from qexp.ptq.calibration import hash_tensors
from qexp.qat.convert import load_converted
from qexp.stats.sequential import Sequential, SequentialTest
from qexp.tracking.journal import Journal

FILE = "shrink.jsonl"
KEPT_BYTES = 1 << 29  # of images in memory, so that the next network need not decode them again
_DRAW = 0  # of the order of the images


class Race:
    """The networks of a job against their float network, on `analyze.split` in an order that was drawn.

    Args:
        config: of the job.
        jobs: its candidates.
        device: where networks run.
        preparer: makes jobs ready.

    Raises:
        UserError: the split has too few images or shares them with those of the test, or the checkpoint was trained with its
            quantization.
    """

    def __init__(self, config: Config, jobs: Sequence[Config], device: torch.device, preparer: Preparer) -> None:
        self.config, self.device = config, device
        bundle = preparer.data.of(config.data)
        check_analysis_images(config, bundle)
        check_allocation_images(config, bundle)
        if config.checkpoint != PRETRAINED and load_converted(str(config.checkpoint)) is not None:
            remedy = "That file's quantizers were trained with it and stay as they are."
            raise UserError("checkpoint", config.checkpoint, allowed="a plain state dict for task=shrink", remedy=remedy)
        self.prepared = preparer.prepare([selecting(job, activations=True) for job in jobs])
        self.num_images = min(config.analyze.num_images or bundle.split_sizes[config.analyze.split],
                              bundle.split_sizes[config.analyze.split])  # fmt: skip
        self.block = config.evaluate.batch_images
        self.float_images = 0  # that the float network was needed for
        self.journal = Journal(self.prepared.folder / FILE, needs=("kind", "key", "values"))
        rows = list(self.journal.rows())
        self._stored = {(row["kind"], row["key"]): row["values"] for row in rows}
        self._labels = {row["values"]["network"]: row["variant"] for row in rows if "network" in row["values"]}
        self._network = self.prepared.network().to(device).eval()
        self._blocks = _Blocks(self._batches)
        self._checked = False

    @property
    def images(self) -> str:
        """What is scored, in words."""
        return f"{self.num_images} {self.config.analyze.split} images"

    @property
    def digest(self) -> str:
        """Of the checkpoint's tensors: what tells it wherever it lies and whatever else a job asks for."""
        return hash_tensors(self._network.state_dict())

    def variant(self, job: Config, *, activations: bool = True) -> Variant:
        """What a job asks for, scored on these images.

        Args:
            job: a candidate's.
            activations: quantize them as the job says.
        """
        return self.prepared.variants_of([selecting(job, activations=activations)])[-1]

    def built(self, variant: Variant) -> Built:
        """The copy of the network that a variant asks for."""
        built = quantized_copy(variant, self._network, self.prepared)
        self._labels[variant.key] = variant.after(built.outcomes).label
        return built

    def label(self, variant: Variant) -> str:
        """Of a variant by what its corrections did; as planned where nothing of it was counted."""
        return self._labels.get(variant.key, variant.label)

    def run(self, variant: Variant, test: SequentialTest) -> Sequential:
        """Count block by block until the test decides, or until it no longer can say `above`.

        Args:
            variant: of `variant`.
            test: of the difference to the float network.
        """
        seen = test.run(self._counts(variant), self.num_images)
        self.float_images = max(self.float_images, seen.n)
        return seen

    def _counts(self, variant: Variant) -> Iterator[tuple[int, int, int]]:
        """(n10, n01, n) of each block; a block that is not stored is counted when it is asked for."""
        module: nn.Module | None = None
        batches: Iterator[Batch] = iter(())
        at = -1  # number of the block that comes next of them
        starts = range(0, self.num_images, self.block)
        for number, start in enumerate(track(starts, "block")):
            key = self._key(variant, start)
            if ("block", key) not in self._stored:
                module = self.built(variant).module if module is None else module
                if at != number:
                    batches, at = self._blocks.begin(number), number
                batch, at = next(batches), at + 1
                counted = {**self._counted(module, batch, start), "network": variant.key}
                self._append("block", key, counted, self.label(variant))
            values = self._stored["block", key]
            yield values["n10"], values["n01"], values["n"]

    def _key(self, variant: Variant, start: int) -> str:
        stop = min(start + self.block, self.num_images)
        return hash_json({"variant": variant.key, "draw": _DRAW, "start": start, "stop": stop})

    def _counted(self, module: nn.Module, batch: Batch, start: int) -> dict[str, Any]:
        """A block's counts of a network."""
        before = self._float_right(batch, start)
        after = self._evaluate(module, batch).predictions.right.numpy()
        n10, n01 = int((before & ~after).sum()), int((~before & after).sum())
        return {"start": start, "n": len(after), "n10": n10, "n01": n01}

    def check_float(self) -> None:
        """Compare the float network with what is stored of it, once; where nothing is stored there is nothing to compare.

        Raises:
            UserError: it is another network than the one that stored counts are of.
        """
        starts = range(0, self.num_images, self.block)
        stored = (number for number, start in enumerate(starts) if ("float", self._float_key(start)) in self._stored)
        number = None if self._checked else next(stored, None)
        if number is not None:
            self._float_row(next(self._blocks.begin(number)), starts[number])

    def _float_right(self, batch: Batch, start: int) -> np.ndarray:
        """[n] bool, which images of a block the float network has right; before the first answer it is compared."""
        self.check_float()  # also where this block is not stored: counts of two networks must not mix
        known = self._stored.get(("float", self._float_key(start))) or self._float_row(batch, start)
        bits = np.unpackbits(np.frombuffer(bytes.fromhex(known["right"]), dtype=np.uint8), count=known["n"])
        return bits.astype(bool)

    def _float_key(self, start: int) -> str:
        return self._key(self.prepared.variants[0], start)

    def _float_row(self, batch: Batch, start: int) -> dict[str, Any]:
        """Evaluate a block of the float network: compared with what is stored of it, else stored."""
        known: dict[str, Any] | None = self._stored.get(("float", self._float_key(start)))
        evaluation = self._evaluate(self._network, batch)
        now = circumstances(self.device, self.config.evaluate.batch_images)
        if difference := changed(known, evaluation, now):
            remedy = f"{difference} To count all anew, remove {self.journal.path}."
            raise UserError("checkpoint", self.config.checkpoint, allowed=UNCHANGED, remedy=remedy)
        self._checked = True  # or nothing was stored, and all that follows is of this process
        if known is None:
            right = evaluation.predictions.right.numpy()
            metrics = {"prec1": evaluation.metrics.prec1, "loss": evaluation.metrics.loss}
            known = {"n": len(right), "right": np.packbits(right).tobytes().hex(), **metrics, **as_stored(evaluation, now)}
            self._append("float", self._float_key(start), known)
        return known

    def _append(self, kind: str, key: str, values: dict[str, Any], label: str = "") -> None:
        self.journal.append([{"kind": kind, "key": key, "variant": label, "values": values}])
        self._stored[kind, key] = values

    def _evaluate(self, network: nn.Module, batch: Batch) -> Evaluation:
        return evaluate({"network": network}, [batch], class_count=self.prepared.num_classes)["network"]

    def _batches(self, start: int) -> Iterator[Batch]:
        """The blocks from one on, images in the order that was drawn."""
        settings = self.config.analyze
        return self.prepared.bundle.eval_batches(
            settings.split, batch_size=self.block, num_images=settings.num_images, device=self.device, draw=_DRAW,
            shuffled=True, start=start,
        )  # fmt: skip


class _Blocks:
    """Blocks of images, of which the first so many bytes stay in memory.

    Args:
        make: the blocks from a number on.
    """

    def __init__(self, make: Callable[[int], Iterator[Batch]]) -> None:
        self._make, self._kept, self._bytes = make, list[Batch](), 0

    def begin(self, number: int) -> Iterator[Batch]:
        """The blocks from a number on."""
        while number < len(self._kept):
            yield self._kept[number]
            number += 1
        for batch in self._make(number):
            size = batch.images.numel() * batch.images.element_size()
            if number == len(self._kept) and self._bytes + size <= KEPT_BYTES:
                self._kept.append(batch)
                self._bytes += size
            yield batch
            number += 1
