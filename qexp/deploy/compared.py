"""Files of other writers held against the simulation, the float network and qexp's own files, on the images of an evaluation."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch

from qexp.base.files import hash_file, hash_json
from qexp.base.types import Batch
from qexp.config.export import RUNTIMES, ExportSettings
from qexp.deploy.answers import Answers, Run, answers_of
from qexp.deploy.cost import latency
from qexp.deploy.foreign import ForeignFile, open_foreign
from qexp.deploy.foreign_runs import Counted, files_with
from qexp.deploy.runtimes import open_runtime, runtime_version
from qexp.deploy.stages import FLOAT, SIMULATED
from qexp.stats.interval import wilson
from qexp.stats.paired import compare

_FEW_EQUAL = 50.0  # percent of predictions: below, a file was most likely given other images than it was made for
_MANY_BEYOND = 1.0  # percent of the inputs: so much of them the ranges of a calibration cut off at most


@dataclass(frozen=True, kw_only=True)
class Compared:
    """One network on the images of an evaluation.

    Args:
        name: `fp32`, `simulated`, a runtime's for qexp's own file, or that of the file.
        runtime: that ran it; empty for torch.
        version: of the runtime.
        digest: of the bytes of a file of somebody else's, with its weights where they are in files beside it, else empty.
        takes: what such a file takes, in words.
        size_bytes: of the file and of those that hold its weights; None where there is none.
        n: images.
        prec1: percent.
        prec1_low: lower end of its 95 % Wilson interval.
        prec1_high: upper end.
        prec5: percent.
        vs_fp32: Prec@1 minus that of fp32 on the same images, points; None for fp32.
        vs_fp32_low: lower end of its 95 % interval.
        vs_fp32_high: upper end.
        p_fp32: of the exact McNemar test of equal accuracy.
        vs_simulated: Prec@1 minus that of the simulation; None for the simulation.
        vs_simulated_low: lower end of its 95 % interval.
        vs_simulated_high: upper end.
        p_simulated: of the same test.
        equal_fp32: predictions equal to those of fp32, percent.
        equal_simulated: to those of the simulation.
        num_layers: convolutions and matrix products of the file; None where the file was not looked into.
        num_integer: how many of these run in integers.
        batch: images of a timed call.
        median_ms: of a call; None where nothing was timed.
        times_fp32: how many times as fast as qexp's fp32 file in the same runtime.
        note: for the reader.
    """

    name: str
    runtime: str
    version: str
    digest: str
    takes: str
    size_bytes: int | None
    n: int
    prec1: float
    prec1_low: float
    prec1_high: float
    prec5: float
    vs_fp32: float | None
    vs_fp32_low: float | None
    vs_fp32_high: float | None
    p_fp32: float | None
    vs_simulated: float | None
    vs_simulated_low: float | None
    vs_simulated_high: float | None
    p_simulated: float | None
    equal_fp32: float
    equal_simulated: float
    num_layers: int | None
    num_integer: int | None
    batch: int | None
    median_ms: float | None
    times_fp32: float | None
    note: str


@dataclass(frozen=True)
class Files:
    """What is compared.

    Args:
        own: qexp's file of the quantized network, `network.onnx`.
        plain: that of the float network.
        others: of other writers.
    """

    own: Path
    plain: Path
    others: Sequence[Path]


class _Difference(NamedTuple):
    """Of two Prec@1 on the same images, points; None of a network to itself."""

    points: float | None
    low: float | None
    high: float | None
    p_value: float | None


def digests_of(paths: Iterable[Path]) -> list[str]:
    """What tells files from others: the hashes of their bytes, and of those of the files that hold their weights."""
    hashes = [[hash_file(part) for part in files_with(path)] for path in paths]
    return [own[0] if len(own) == 1 else hash_json(own) for own in hashes]


@torch.no_grad()
def compare_files(
    files: Files,
    networks: Mapping[str, Run],
    batches: Iterable[Batch],
    *,
    image_shape: Sequence[int],
    num_classes: int,
    settings: ExportSettings,
) -> list[Compared]:
    """Run every network on every image; one row each, in the order of `networks`, qexp's files, and the others.

    Args:
        files: to run.
        networks: `fp32` and `simulated`, in torch.
        batches: images and labels.
        image_shape: (C, H, W).
        num_classes: of the data.
        settings: runtimes, threads, and whether calls are timed.

    Raises:
        UserError: a file that does not fit, as `open_foreign` says.
    """
    opened = [
        open_foreign(path, image_shape=image_shape, num_classes=num_classes, threads=settings.threads) for path in files.others
    ]
    names = _names(files.others)
    own = {name: open_runtime(name, files.own, threads=settings.threads) for name in sorted({file.runtime for file in opened})}
    runs = {**networks, **{name: session.run for name, session in own.items()}}
    counted = {name: Counted(file) for name, file in zip(names, opened, strict=True)}
    runs |= counted
    answers = answers_of(runs, batches)
    beyond = {name: run.beyond_pct for name, run in counted.items()}
    times = _Times(files.plain, image_shape, settings)
    rows = [_row(name, answers) for name in networks]
    for name, session in own.items():
        path = files.own.with_suffix(".tflite") if RUNTIMES[name].reads == "tflite" else files.own
        looked = open_foreign(path, image_shape=image_shape, num_classes=num_classes, threads=settings.threads)
        rows.append(_row(name, answers, looked, times.of(name, session.run, settings.batch_sizes[0])))
    for name, file in zip(names, opened, strict=True):
        timed = times.of(file.runtime, file.run, file.batch or settings.batch_sizes[0])
        row = _row(name, answers, file, timed, digest=digests_of([file.path])[0], beyond_pct=beyond[name])
        rows.append(row)
    return rows


def _names(paths: Sequence[Path]) -> list[str]:
    """Names of files that tell them apart: the file's own, or the whole path where two have one name."""
    short = [path.name for path in paths]
    return [name if short.count(name) == 1 else str(path) for name, path in zip(short, paths, strict=True)]


class _Times:
    """Times of calls, beside those of qexp's float file in the same runtime at the same batch, each measured once."""

    def __init__(self, plain: Path, image_shape: Sequence[int], settings: ExportSettings) -> None:
        self._plain, self._shape, self._settings = plain, tuple(image_shape), settings
        self._of_float: dict[tuple[str, int], float] = {}

    def of(self, runtime: str, run: Run, batch: int) -> tuple[int, float, float] | None:
        """(batch, milliseconds, times as fast as fp32); None where nothing is to be timed."""
        if not self._settings.cost:
            return None
        if (runtime, batch) not in self._of_float:
            session = open_runtime(runtime, self._plain, threads=self._settings.threads)
            self._of_float[runtime, batch] = self._median_ms(session.run, batch)
        median_ms = self._median_ms(run, batch)
        return batch, median_ms, self._of_float[runtime, batch] / median_ms

    def _median_ms(self, run: Run, batch: int) -> float:
        images = torch.randn(batch, *self._shape, generator=torch.Generator().manual_seed(0))
        return latency(lambda: run(images), repeats=self._settings.repeats, warmup=self._settings.warmup).median_ms


def _row(
    name: str,
    answers: Mapping[str, Answers],
    file: ForeignFile | None = None,
    timed: tuple[int, float, float] | None = None,
    *,
    digest: str = "",
    beyond_pct: float = 0.0,
) -> Compared:
    """What one network came to."""
    own, n = answers[name], len(answers[name].labels)
    num_right = int(own.right.sum())
    interval = wilson(num_right, n)
    none = _Difference(None, None, None, None)
    of_float, of_simulated = (none if other == name else _difference(answers[other], own) for other in (FLOAT, SIMULATED))
    equal = own.equal_pct(answers[FLOAT])
    return Compared(
        name=name,
        runtime=file.runtime if file is not None else "",
        version=runtime_version(file.runtime) if file is not None else "",
        digest=digest,
        takes=file.takes if file is not None else "",
        size_bytes=sum(part.stat().st_size for part in files_with(file.path)) if file is not None else None,
        n=n,
        prec1=100 * num_right / n,
        prec1_low=interval.low,
        prec1_high=interval.high,
        prec5=100 * int(own.right5.sum()) / n,
        vs_fp32=of_float.points,
        vs_fp32_low=of_float.low,
        vs_fp32_high=of_float.high,
        p_fp32=of_float.p_value,
        vs_simulated=of_simulated.points,
        vs_simulated_low=of_simulated.low,
        vs_simulated_high=of_simulated.high,
        p_simulated=of_simulated.p_value,
        equal_fp32=equal,
        equal_simulated=own.equal_pct(answers[SIMULATED]),
        num_layers=file.num_layers if file is not None else None,
        num_integer=file.num_integer if file is not None else None,
        batch=timed[0] if timed else None,
        median_ms=timed[1] if timed else None,
        times_fp32=timed[2] if timed else None,
        note=_note(own, is_like_fp32=not digest or equal >= _FEW_EQUAL, beyond_pct=beyond_pct),
    )


def _note(own: Answers, *, is_like_fp32: bool, beyond_pct: float) -> str:
    """What a reader should know of a network's numbers; empty where there is nothing."""
    tied_pct = 100 * float(own.ties.double().mean())
    notes = {
        "predicts what fp32 does for few images: was it made for images prepared in another way?": not is_like_fp32,
        f"{beyond_pct:.3g} % of the inputs are beyond what the file's codes hold": beyond_pct > _MANY_BEYOND,
        f"Prec@5 is arbitrary for {tied_pct:.3g} % of the images: their label ties for the fifth place": tied_pct > 0,
    }
    return "; ".join(text for text, holds in notes.items() if holds)


def _difference(reference: Answers, other: Answers) -> _Difference:
    """One network against another, image by image."""
    paired = compare(reference.right.numpy(), other.right.numpy())
    return _Difference(paired.difference, paired.interval.low, paired.interval.high, paired.p_value)
