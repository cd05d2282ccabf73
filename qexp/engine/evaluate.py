"""Scoring networks: several over one pass of the same batches, with the quantities kept per image.

Everything is a property of single images until the very end; then the ranks' images are put in order of their index and summed
exactly (math.fsum). So one rank and N ranks give the same metrics and the same digest to the last bit, provided the batches are
sharded whole. Rejected: all-reducing sums, whose last bits depend on the number of ranks.

Shapes: N images of a batch, n images in all, C classes.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from qexp.base import dist
from qexp.base.errors import UserError
from qexp.base.outputs import main_output
from qexp.base.types import Batch, Metrics
from qexp.engine.measures import Measure, measures
from qexp.engine.predictions import Predictions, top5_of

EVALUATOR_VERSION = 1  # part of every variant's key; raise it when the same network comes to score differently


@dataclass(frozen=True, eq=False, kw_only=True)
class Evaluation:
    """How one network did.

    Args:
        metrics: over all images and ranks; the same on every rank. Means are nan or inf where logits were.
        predictions: of all images, ordered by index.
        digest: names the logits bit for bit, whatever the batch size, the order and the number of ranks.
        logits: [n, C] float32 on the CPU, this rank's images in the order of the batches; None unless asked for.
    """

    metrics: Metrics
    predictions: Predictions
    digest: str
    logits: Tensor | None = None


def evaluate(
    models: Mapping[str, nn.Module],
    batches: Iterable[Batch],
    *,
    class_count: int,
    reference: Tensor | str | None = None,
    keep_logits: bool = False,
    measured: Sequence[Measure] | None = None,
    runs: Mapping[str, Callable[[Tensor], object]] | None = None,
    stop: Callable[[Batch, Mapping[str, Tensor]], bool] | None = None,
) -> dict[str, Evaluation]:
    """Score every network of `models` over one pass of `batches`.

    What is measured are the rows of `qexp.config.metrics`; an image whose logits hold a NaN is predicted wrong.

    Args:
        models: name -> network in eval mode, on the device of the batches.
        batches: this rank's whole batches.
        class_count: C, the width of the logits.
        reference: logits [n, C] that an earlier call kept over the same batches, or the name of one of `models`.
        keep_logits: keep the logits, to serve as `reference` later.
        measured: of `measures`; None is what every evaluation measures.
        runs: name -> what runs a network in its place, on its tensors (`qexp.engine.compiled`); the others run themselves.
        stop: called with each batch and the logits by name; where it returns true, no further batch is scored. For one rank.

    Raises:
        UserError: a network returns another number of classes.
        RuntimeError: a network is in training mode, or changed one of its buffers.
    """
    names = sorted(models, key=lambda name: name != reference)  # the reference runs first
    measured = measures() if measured is None else measured
    calls: dict[str, Callable[[Tensor], object]] = {**models, **(runs or {})}
    tallies = {name: _Tally(class_count, keep_logits, measured) for name in names}
    position = 0
    with torch.inference_mode(), unchanged(models):
        for batch in batches:
            expected = None
            if isinstance(reference, Tensor):
                expected = reference[position : position + len(batch.labels)].to(batch.images.device)
            position += len(batch.labels)
            answers: dict[str, Tensor] = {}
            for name in names:
                logits = main_output(calls[name](batch.images)).float()
                if logits.shape != (len(batch.labels), class_count):
                    raise UserError("model", f"{name} with logits {list(logits.shape)}", allowed=f"[N, {class_count}]")
                if name == reference:
                    expected = logits
                tallies[name].add(logits, batch, expected)
                answers[name] = logits
            if stop is not None and stop(batch, answers):
                break
        else:
            assert not isinstance(reference, Tensor) or position == len(reference), "the reference is of other batches"
    everywhere = dist.all_gather_object({name: tally.columns() for name, tally in tallies.items()})
    return {name: _summary([columns[name] for columns in everywhere], tallies[name].kept(), measured) for name in models}


@contextmanager
def unchanged(models: Mapping[str, nn.Module]) -> Iterator[None]:
    """Insist on eval mode, and that no buffer is written: an evaluation leaves BN's statistics as they are."""
    for name, model in models.items():
        modules = [path or "the network" for path, module in model.named_modules() if module.training]
        if modules:
            raise RuntimeError(f"{name} is in training mode ({modules[0]}): call .eval() before evaluating it")
    # Version counters would not do: batch norm writes its statistics without raising them.
    buffers = {f"{name}: {path}": item for name, model in models.items() for path, item in model.named_buffers()}
    before = {path: item.clone() for path, item in buffers.items()}
    yield
    changed = [path for path, item in buffers.items() if not torch.equal(_bytes(item), _bytes(before[path]))]
    if changed:
        raise RuntimeError(
            f"evaluating changed buffers, so the result depends on the order of evaluations: {', '.join(changed[:5])}"
        )


def _bytes(tensor: Tensor) -> Tensor:
    """The tensor's bytes, so that NaN equals NaN."""
    return tensor.reshape(-1).view(torch.uint8)


class _Tally:
    """Per-image quantities of one network, on its device until the pass is over, so that no batch waits for the device."""

    def __init__(self, class_count: int, keep_logits: bool, measured: Sequence[Measure]) -> None:
        self.class_count, self.keep_logits = class_count, keep_logits
        self.measured = [one for one in measured if one.row.reads == "logits"]
        self.rows: dict[str, list[Tensor]] = {}
        self.logits: list[Tensor] = []

    def add(self, logits: Tensor, batch: Batch, expected: Tensor | None) -> None:
        """Take in one batch. logits, and those of the reference: [N, C] float32."""
        small = torch.int16 if self.class_count <= torch.iinfo(torch.int16).max else torch.int32
        log_probs = logits.double().log_softmax(1)
        finite = logits.isfinite().all(1)
        new = {
            "index": batch.positions,
            "label": batch.labels.to(small),
            "top5": top5_of(logits).to(small),
            "log_prob": log_probs.gather(1, batch.labels[:, None]).squeeze(1).float(),
            "finite": finite,
            "row_hash": _row_hash(logits),
        }
        for one in self.measured:
            if expected is not None or not one.row.needs_reference:
                columns = one.columns(logits, batch.labels, expected if one.row.needs_reference else None)
                new |= {f"{one.row.name}.{number}": column for number, column in enumerate(columns)}
        for name, value in new.items():
            self.rows.setdefault(name, []).append(value)
        if self.keep_logits:
            self.logits.append(logits)

    def columns(self) -> dict[str, Tensor]:
        """All batches of this rank joined, on the CPU; empty where it had none."""
        return {name: torch.cat(parts).cpu() for name, parts in self.rows.items()}

    def kept(self) -> Tensor | None:
        """The logits of this rank, in the order of its batches."""
        if not self.keep_logits:
            return None
        return torch.cat(self.logits).cpu() if self.logits else torch.empty(0, self.class_count)


def _summary(shards: list[dict[str, Tensor]], logits: Tensor | None, measured: Sequence[Measure]) -> Evaluation:
    """Put the images of all ranks in order, and average."""
    shards = [shard for shard in shards if shard]
    assert shards, "an evaluation without images"
    order = torch.cat([shard["index"] for shard in shards]).argsort()
    rows = {name: torch.cat([shard[name] for shard in shards])[order] for name in shards[0]}
    assert bool((rows["index"].diff() > 0).all()), "an image was scored twice"
    predictions = Predictions(rows["index"], rows["label"], rows["top5"], rows["log_prob"])
    values: dict[str, float | None] = {}
    for one in measured:
        if one.row.reads == "logits":
            columns: Sequence[Tensor] = [column for name, column in rows.items() if name.startswith(f"{one.row.name}.")]
            values[one.row.name] = one.total(columns) if columns else None
        elif not one.row.needs_reference:  # else the caller compares it with the float network's predictions
            values[one.row.name] = one.total(one.columns(predictions, None))
    named = {item.name for item in fields(Metrics)}
    known: dict[str, Any] = {name: value for name, value in values.items() if name in named}
    extra = {name: value for name, value in values.items() if name not in named}
    metrics = Metrics(**known, n=len(order), finite=bool(rows["finite"].all()), extra=extra)
    digest = hashlib.sha256(torch.stack([rows["index"], rows["row_hash"]]).numpy().tobytes()).hexdigest()[:32]
    return Evaluation(metrics=metrics, predictions=predictions, digest=digest, logits=logits)


def _row_hash(logits: Tensor) -> Tensor:
    """[N] int64: a 64-bit multilinear hash of the bits of each row [N, C] float32, computed where the logits are.

    h = sum_c m_c bits_c mod 2^64 with fixed odd m_c: rows that differ in one logit always differ in h, others collide with a
    chance of 2^-32 or less, and two networks' digests are equal only if all n rows collide.
    """
    bits = logits.contiguous().view(torch.int32).to(torch.int64)
    return (bits * _multipliers(logits.shape[1]).to(logits.device, non_blocking=True)).sum(1)


@cache
def _multipliers(count: int) -> Tensor:
    """[count] odd int64, by splitmix64 of the position: the same on every platform and release."""
    values = []
    for position in range(1, count + 1):
        z = (position * 0x9E3779B97F4A7C15) % 2**64
        z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
        z = (z ^ (z >> 27)) * 0x94D049BB133111EB % 2**64
        values.append((z ^ (z >> 31)) | 1)
    return torch.tensor([value - 2**64 if value >= 2**63 else value for value in values])
