"""What an export measured, as rows that are stored and numbers that MLflow gets."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

from qexp.deploy.cost import bops, layer_bits
from qexp.deploy.fidelity import Fidelity
from qexp.deploy.lower import Lowered, example_of
from qexp.deploy.stages import FLOAT, Stage
from qexp.experiment.job import Prepared
from qexp.nn.macs import macs_per_layer

_STAGE_METRICS = ("prec1", "prec5", "agreement", "logit_sqnr_db", "max_steps", "layer_steps", "differ_pct", "integer_macs_pct")


def stage_row(stage: Stage, fidelity: Fidelity) -> dict[str, Any]:
    """A fidelity stage as a row of a measurement."""
    return {**asdict(stage), "float_layers": ", ".join(stage.float_layers), "version": fidelity.versions.get(stage.name, "")}


def layer_rows(prepared: Prepared, lowered: Lowered) -> list[dict[str, Any]]:
    """MACs and bit operations of each layer, of one image.

    Args:
        prepared: job.
        lowered: its network.
    """
    macs = macs_per_layer(lowered.network, example_of(prepared))
    bits = layer_bits(lowered.network, {**lowered.weights, **lowered.float8})
    work = bops(macs, bits)
    widths = {name: bits.get(name, (32, 32)) for name in macs}
    return [
        {"layer": name, "macs": macs[name], "weight_bits": widths[name][0], "act_bits": widths[name][1], "bops": work[name]}
        for name in macs
    ]


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
