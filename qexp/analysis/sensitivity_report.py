"""What single layers cost a network: `sensitivity.csv`, `trust.csv`, `sensitivity.md`, `figures/`, and on the screen."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import pandas as pd

from qexp.analysis.results import LayerLoss, Sensitivity, Trust
from qexp.analysis.sensitivity_figures import draw
from qexp.base.files import write_text_atomic
from qexp.config.analyze import MEASURED, PROXIES
from qexp.reporting.figures.style import save
from qexp.reporting.tables.render import csv_text, indented, markdown_table

NUM_WORST = 5
TITLES = {
    "kl": "KL", "loss": "loss", "prec1": "Prec@1", "sqnr": "weight SQNR", "mse": "weight MSE", "weighted_mse": "weighted MSE",
    "fisher": "Fisher", "hessian": "Hessian trace",
}  # fmt: skip


def write_sensitivity(sensitivity: Sensitivity, folder: Path) -> list[Path]:
    """Write all files of an analysis; returns what was written."""
    texts = {
        "sensitivity.csv": csv_text(layer_frame(sensitivity)),
        "trust.csv": csv_text(pd.DataFrame([asdict(trust) for trust in sensitivity.trust])),
        "sensitivity.md": markdown(sensitivity),
    }
    for name, text in texts.items():
        write_text_atomic(folder / name, text)
    paths = [folder / name for name in texts]
    for stem, figure in draw(sensitivity):
        paths += save(figure, folder / "figures" / stem)
    for old in (folder / "figures").glob("*.*"):
        if old not in paths:
            old.unlink(missing_ok=True)
    return paths


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
    header = [("layer", True), ("weights", False), ("bits", False), ("Prec@1", False), ("change", False), ("lost/won", False)]
    header += [(name, False) for name in ("changed %", "KL", "loss", "SQNR dB", "MSE", "weighted MSE", "Fisher", "Hessian")]
    parts += ["## Layers", markdown_table(header, [_cells(loss) for loss in sensitivity.layers])]
    parts.append(
        "`change` is in points against the float network on the same images, `lost/won` the images that became wrong and right, "
        "`changed` the share of predictions that changed. KL is the mean of KL(float || quantized), `loss` the rise of the "
        "cross-entropy, both in nats. The columns from SQNR on are told without running the quantized network."
    )
    parts += ["## Which measure can be trusted", *(_trust_table(sensitivity, bits) for bits in _widths(sensitivity))]
    parts.append(
        "Rank correlations over the layers, Spearman's rho and Kendall's tau, with what was measured. Regret: a quarter of the "
        "layers stays float, those that the measure calls worst; the KL of the others, less that of the best such choice, in "
        "percent of the KL of all."
    )
    return "\n\n".join([*parts, "## How this was made", f"`{sensitivity.command}`"]) + "\n"


def summary(sensitivity: Sensitivity) -> str:
    """The text for the screen: the worst layers, and how far each measure can be trusted."""
    lines = ["", f"{sensitivity.label}: Prec@1 of the float network {sensitivity.prec1:.2f} on {sensitivity.images}"]
    lines += [f"  {note}" for note in sensitivity.notes]
    for bits in _widths(sensitivity):
        worst = sorted((loss for loss in sensitivity.layers if loss.bits == bits), key=lambda loss: -loss.kl)[:NUM_WORST]
        lines += ["", f"most sensitive at {bits} bits:"]
        lines += indented([(loss.layer, f"KL {loss.kl:.4g}", f"Prec@1 {loss.delta_prec1:+.2f}", _sqnr(loss)) for loss in worst])
        lines += ["", f"rank correlation with measured KL at {bits} bits:"]
        trusts = [(TITLES[trust.measure], *_numbers(trust)) for trust in _of(sensitivity, bits, "kl")]
        lines += indented([("", "Spearman", "Kendall", "regret %"), *trusts])
    return "\n".join(lines)


def _widths(sensitivity: Sensitivity) -> list[int]:
    return sorted({loss.bits for loss in sensitivity.layers})


def _of(sensitivity: Sensitivity, bits: int, truth: str) -> Sequence[Trust]:
    return [trust for trust in sensitivity.trust if trust.bits == bits and trust.truth == truth]


def _trust_table(sensitivity: Sensitivity, bits: int) -> str:
    """Measures by what they are held against, at one width."""
    header = [(f"{bits} bits", True), ("layers", False)]
    header += [(f"{way} with {TITLES[truth]}", False) for truth in MEASURED for way in ("rho", "tau")] + [("regret %", False)]
    rows = []
    for measure in ("kl", "loss", *PROXIES):
        of = {trust.truth: trust for trust in sensitivity.trust if trust.bits == bits and trust.measure == measure}
        pairs = [_numbers(of[truth])[:2] if truth in of else ["", ""] for truth in MEASURED]
        regret = _numbers(of["kl"])[2] if "kl" in of else ""
        rows.append(
            [TITLES[measure], str(next(iter(of.values())).num_layers), *(cell for pair in pairs for cell in pair), regret]
        )
    return markdown_table(header, rows)


def _numbers(trust: Trust) -> list[str]:
    pair = ["-" if value is None else f"{value:.2f}" for value in (trust.spearman, trust.kendall)]
    return [*pair, "-" if trust.regret is None else f"{trust.regret:.1f}"]


def _cells(loss: LayerLoss) -> list[str]:
    numbers = (loss.mse, loss.weighted_mse, loss.fisher, loss.hessian)
    return [
        loss.layer,
        str(loss.num_elements),
        str(loss.bits),
        f"{loss.prec1:.2f}",
        f"{loss.delta_prec1:+.2f}",
        f"{loss.n10}/{loss.n01}",
        f"{loss.disagreement:.2f}",
        f"{loss.kl:.4g}",
        f"{loss.delta_loss:+.4g}",
        "exact" if loss.sqnr_db is None else f"{loss.sqnr_db:.2f}",
        *("" if value is None else f"{value:.4g}" for value in numbers),
    ]


def _sqnr(loss: LayerLoss) -> str:
    return "exact" if loss.sqnr_db is None else f"SQNR {loss.sqnr_db:.1f} dB"
