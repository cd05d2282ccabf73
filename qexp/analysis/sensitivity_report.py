"""What single layers cost a network: `sensitivity.csv`, `trust.csv`, `sensitivity.md`, `figures/`, and on the screen."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

import pandas as pd

from qexp.analysis.files import write_analysis
from qexp.analysis.results import Sensitivity, Trust
from qexp.analysis.sensitivity_figures import draw
from qexp.base.table import Column, Table, lines, markdown_table, markdown_text
from qexp.config.analyze import MEASURE_TITLES, MEASURED, PROXIES
from qexp.reporting.tables.render import csv_text

NUM_WORST = 5


def write_sensitivity(sensitivity: Sensitivity, folder: Path, *, figures: bool = True) -> list[Path]:
    """Write all files of an analysis, figures if asked for; returns what was written."""
    texts = {
        "sensitivity.csv": csv_text(layer_frame(sensitivity)),
        "trust.csv": csv_text(pd.DataFrame([asdict(trust) for trust in sensitivity.trust])),
        "sensitivity.md": markdown(sensitivity),
    }
    return write_analysis(folder, texts, draw(sensitivity) if figures else ())


def layer_frame(sensitivity: Sensitivity) -> pd.DataFrame:
    """One row per layer and width with every number, and the layer's Hessian trace."""
    rows = []
    for loss in sensitivity.layers:
        trace, error = sensitivity.traces.get(loss.layer, (None, None))
        rows.append({"variant": sensitivity.label} | asdict(loss) | {"hessian_trace": trace, "hessian_trace_se": error})
    return pd.DataFrame(rows)


def markdown(sensitivity: Sensitivity) -> str:
    """The whole of `sensitivity.md`."""
    layers = {loss.layer for loss in sensitivity.layers}
    parts = [
        f"# {sensitivity.label}: one layer at a time",
        f"{sensitivity.subject}, `{sensitivity.checkpoint}`. {len(layers)} layers, each quantized alone, all else float, on "
        f"{sensitivity.images}; the float network's Prec@1 there is {sensitivity.prec1:.2f}.",
    ]
    parts += ["  \n".join(sensitivity.notes)] if sensitivity.notes else []
    parts += ["## Layers", markdown_table(Table.of(_LAYER, sensitivity.layers))]
    parts.append(
        "`change` is in points against the float network on the same images, `lost/won` the images that became wrong and right, "
        "`changed` the share of predictions that changed. KL is the mean of KL(float || quantized), `loss` the rise of the "
        "cross-entropy, both in nats. The columns from SQNR on are told without running the quantized network."
    )
    parts += ["## Which measure can be trusted", *(markdown_table(_trust(sensitivity, bits)) for bits in _widths(sensitivity))]
    parts.append(
        "Rank correlations over the layers, Spearman's rho and Kendall's tau, with what was measured. Regret: a quarter of the "
        "layers stays float, those that the measure calls worst; the KL of the others, less that of the best such choice, in "
        "percent of the KL of all."
    )
    return markdown_text([*parts, "## How this was made", f"`{sensitivity.command}`"])


def summary(sensitivity: Sensitivity) -> str:
    """The text for the screen: the worst layers, and how far each measure can be trusted."""
    texts = ["", f"{sensitivity.label}: Prec@1 of the float network {sensitivity.prec1:.2f} on {sensitivity.images}"]
    texts += [f"  {note}" for note in sensitivity.notes]
    for bits in _widths(sensitivity):
        worst = sorted((loss for loss in sensitivity.layers if loss.bits == bits), key=lambda loss: -loss.kl)[:NUM_WORST]
        texts += ["", f"most sensitive at {bits} bits:", *lines(Table.of(_WORST, worst), titles=False, indent="  ")]
        trusts = Table.of(_TRUST, _of(sensitivity, bits, "kl"))
        texts += ["", f"rank correlation with measured KL at {bits} bits:", *lines(trusts, indent="  ")]
    return "\n".join(texts)


def _widths(sensitivity: Sensitivity) -> list[int]:
    return sorted({loss.bits for loss in sensitivity.layers})


def _of(sensitivity: Sensitivity, bits: int, truth: str) -> Sequence[Trust]:
    return [trust for trust in sensitivity.trust if trust.bits == bits and trust.truth == truth]


def _trust(sensitivity: Sensitivity, bits: int) -> Table:
    """Measures by what they are held against, at one width."""
    trusts = [{trust.truth: trust for trust in sensitivity.trust if trust.bits == bits and trust.measure == measure}
              for measure in ("kl", "loss", *PROXIES)]  # fmt: skip
    columns = [
        Column(name="measure", title=f"{bits} bits", kind="text", value=lambda of: _title(next(iter(of.values())))),
        Column(name="layers", title="layers", kind="count", value=lambda of: next(iter(of.values())).num_layers),
    ]
    for truth in MEASURED:
        title = f"with {MEASURE_TITLES[truth]}"
        columns += [_against(truth, "spearman", f"rho {title}", ".2f"), _against(truth, "kendall", f"tau {title}", ".2f")]
    return Table.of([*columns, _against("kl", "regret", "regret %", ".1f")], trusts)


def _title(trust: Trust) -> str:
    """Which measure it is of."""
    return MEASURE_TITLES[trust.measure]


def _against(truth: str, name: str, title: str, form: str) -> Column:
    """A number of the trust that is held against `truth`: empty where there is none, a dash where it is not defined."""

    def value(trusts: Mapping[str, Trust]) -> object:
        return getattr(trusts[truth], name) if truth in trusts else ""

    def text(number: object) -> str:
        return number if isinstance(number, str) else format(number, form)

    return Column(name=f"{truth}_{name}", title=title, kind="number", form=text, empty="-", value=value)


_LAYER = (
    Column(name="layer", title="layer", kind="text"),
    Column(name="num_elements", title="weights", kind="count"),
    Column(name="bits", title="bits", kind="count"),
    Column(name="prec1", title="Prec@1", kind="percent"),
    Column(name="delta_prec1", title="change", kind="points"),
    Column(name="flips", title="lost/won", kind="count", form=str, value=lambda row: f"{row.n10}/{row.n01}"),
    Column(name="disagreement", title="changed %", kind="percent"),
    Column(name="kl", title="KL", kind="number"),
    Column(name="delta_loss", title="loss", kind="number", form="+.4g"),
    Column(name="sqnr_db", title="SQNR dB", kind="number", form=".2f", empty="exact"),
    Column(name="mse", title="MSE", kind="number"),
    Column(name="weighted_mse", title="weighted MSE", kind="number"),
    Column(name="fisher", title="Fisher", kind="number"),
    Column(name="hessian", title="Hessian", kind="number"),
)
_WORST = (
    Column(name="layer", title="", kind="text"),
    Column(name="kl", title="", kind="number", form=lambda kl: f"KL {kl:.4g}"),
    Column(name="delta_prec1", title="", kind="points", form=lambda points: f"Prec@1 {points:+.2f}"),
    Column(name="sqnr_db", title="", kind="number", form=lambda value: f"SQNR {value:.1f} dB", empty="exact"),
)
_TRUST = (
    Column(name="measure", title="", kind="text", value=_title),
    Column(name="spearman", title="Spearman", kind="number", form=".2f", empty="-"),
    Column(name="kendall", title="Kendall", kind="number", form=".2f", empty="-"),
    Column(name="regret", title="regret %", kind="number", form=".1f", empty="-"),
)
