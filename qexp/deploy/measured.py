"""What an export measured, as rows that are stored and numbers that MLflow gets."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from qexp.base.progress import track
from qexp.config.export import ExportSettings
from qexp.deploy.cost import bops, latency, layer_bits, peak_memory_bytes
from qexp.deploy.fidelity import Fidelity
from qexp.deploy.lower import Lowered, example_of
from qexp.deploy.runtimes import open_runtime
from qexp.deploy.stages import FLOAT, Stage
from qexp.experiment.job import Prepared
from qexp.nn.macs import macs_per_layer

_STAGE_METRICS = ("prec1", "prec5", "agreement", "logit_sqnr_db", "max_steps", "layer_steps", "differ_pct", "integer_macs_pct")


def stage_row(stage: Stage, fidelity: Fidelity) -> dict[str, Any]:
    """A fidelity stage as a row of a measurement."""
    return {**asdict(stage), "float_layers": ", ".join(stage.float_layers), "version": fidelity.versions.get(stage.name, "")}


def point_rows(fidelity: Fidelity) -> list[dict[str, Any]]:
    """How the codes of each activation point differ at each stage, as rows of a measurement."""
    return [asdict(point) for point in fidelity.points]


def layer_rows(prepared: Prepared, lowered: Lowered) -> list[dict[str, Any]]:
    """MACs and bit operations of each layer, of one image.

    Args:
        prepared: job.
        lowered: its network.
    """
    macs = macs_per_layer(lowered.network, example_of(prepared))
    bits = layer_bits(lowered.network, {**lowered.weights, **lowered.in_float})
    work = bops(macs, bits)
    widths = {name: bits.get(name, (32, 32)) for name in macs}
    return [
        {"layer": name, "macs": macs[name], "weight_bits": widths[name][0], "act_bits": widths[name][1], "bops": work[name]}
        for name in macs
    ]


def cost_rows(
    settings: ExportSettings, networks: Mapping[str, Path], image_shape: tuple[int, int, int]
) -> Iterator[dict[str, Any]]:
    """Latency at each batch size and peak memory of each network in each runtime.

    Args:
        settings: of the export.
        networks: what a row calls a network -> its ONNX file.
        image_shape: C, H, W.
    """
    largest = max(settings.batch_sizes)
    images = torch.randn(largest, *image_shape, generator=torch.Generator().manual_seed(0))
    for name in track(settings.runtimes, "runtime to time", note=str):
        for network, path in networks.items():
            session = open_runtime(name, path, threads=settings.threads)
            peak = peak_memory_bytes(name, path, (largest, *image_shape), threads=settings.threads)
            for batch in settings.batch_sizes:
                chosen = images[:batch]
                timing = latency(lambda: session.run(chosen), repeats=settings.repeats, warmup=settings.warmup)  # noqa: B023
                yield {
                    "runtime": name,
                    "version": session.version,
                    "network": network,
                    "batch": batch,
                    **asdict(timing),
                    "images_per_s": 1e3 * batch / timing.median_ms,
                    "peak_bytes": peak if batch == largest else None,
                }


def metrics_of(measured: dict[str, Any]) -> Iterator[tuple[str, float]]:
    """What MLflow gets of a variant: fidelity stages, sizes, costs."""
    prefix = "" if measured["split"] == "test" else f"{measured['split']}/"
    for stage in measured["rungs"]:
        if stage["name"] != FLOAT:
            for key in _STAGE_METRICS:
                if stage[key] is not None:
                    yield f"{prefix}{stage['name']}/{key}", stage[key]
    for name, size in measured["sizes"].items():
        yield f"{name}_bytes", size
    for line in measured["cost"]:
        cost_prefix = f"{line['runtime']}/{line['network']}_b{line['batch']}"
        yield f"{cost_prefix}_median_ms", line["median_ms"]
        yield f"{cost_prefix}_images_per_s", line["images_per_s"]
        if line["peak_bytes"] is not None:
            yield f"{cost_prefix}_peak_bytes", line["peak_bytes"]
    for key in ("macs", "bops"):
        yield key, sum(layer[key] for layer in measured["layers"])
