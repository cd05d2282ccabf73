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


def write_sensitivity(found: Sensitivity, folder: Path) -> list[Path]:
    """Write all files of an analysis; returns what was written."""
    texts = {
        "sensitivity.csv": csv_text(layer_frame(found)),
        "trust.csv": csv_text(pd.DataFrame([asdict(each) for each in found.trust])),
        "sensitivity.md": markdown(found),
    }
    for name, text in texts.items():
        write_text_atomic(folder / name, text)
    paths = [folder / name for name in texts]
    for stem, figure in draw(found):
        paths += save(figure, folder / "figures" / stem)
    for old in (folder / "figures").glob("*.*"):
        if old not in paths:
            old.unlink(missing_ok=True)
    return paths


def layer_frame(found: Sensitivity) -> pd.DataFrame:
    """One row per layer and width with every number, and the layer's Hessian trace."""
    rows = []
    for each in found.layers:
        trace, error = found.traces.get(each.layer, (None, None))
        rows.append({"variant": found.label} | asdict(each) | {"hessian_trace": trace, "hessian_trace_se": error})
    return pd.DataFrame(rows)


def markdown(found: Sensitivity) -> str:
    """The whole of `sensitivity.md`."""
    layers = {each.layer for each in found.layers}
    parts = [
        f"# {found.label}: one layer at a time",
        f"{found.subject}, `{found.checkpoint}`. {len(layers)} layers, each quantized alone, all else float, on {found.images}; "
        f"the float network's Prec@1 there is {found.prec1:.2f}.",
    ]
    parts += ["  \n".join(found.notes)] if found.notes else []
    header = [("layer", True), ("weights", False), ("bits", False), ("Prec@1", False), ("change", False), ("lost/won", False)]
    header += [(name, False) for name in ("changed %", "KL", "loss", "SQNR dB", "MSE", "weighted MSE", "Fisher", "Hessian")]
    parts += ["## Layers", markdown_table(header, [_cells(each) for each in found.layers])]
    parts.append(
        "`change` is in points against the float network on the same images, `lost/won` the images that became wrong and right, "
        "`changed` the share of predictions that changed. KL is the mean of KL(float || quantized), `loss` the rise of the "
        "cross-entropy, both in nats. The columns from SQNR on are told without running the quantized network."
    )
    parts += ["## Which measure can be trusted", *(_trust_table(found, bits) for bits in _widths(found))]
    parts.append(
        "Rank correlations over the layers, Spearman's rho and Kendall's tau, with what was measured. Regret: a quarter of the "
        "layers stays float, those that the measure calls worst; the KL of the others, less that of the best such choice, in "
        "percent of the KL of all."
    )
    return "\n\n".join([*parts, "## How this was made", f"`{found.command}`"]) + "\n"


def summary(found: Sensitivity) -> str:
    """What the screen shows: the worst layers, and how far each measure can be trusted."""
    lines = ["", f"{found.label}: Prec@1 of the float network {found.prec1:.2f} on {found.images}"]
    lines += [f"  {note}" for note in found.notes]
    for bits in _widths(found):
        worst = sorted((each for each in found.layers if each.bits == bits), key=lambda each: -each.kl)[:NUM_WORST]
        lines += ["", f"most sensitive at {bits} bits:"]
        rows = [(each.layer, f"KL {each.kl:.4g}", f"Prec@1 {each.delta_prec1:+.2f}", _sqnr(each)) for each in worst]
        lines += indented(rows)
        lines += ["", f"rank correlation with measured KL at {bits} bits:"]
        rows = [("", "Spearman", "Kendall", "regret %")]
        rows += [(TITLES[each.measure], *_numbers(each)) for each in _of(found, bits, "kl")]
        lines += indented(rows)
    return "\n".join(lines)


def _widths(found: Sensitivity) -> list[int]:
    return sorted({each.bits for each in found.layers})


def _of(found: Sensitivity, bits: int, truth: str) -> Sequence[Trust]:
    return [each for each in found.trust if each.bits == bits and each.truth == truth]


def _trust_table(found: Sensitivity, bits: int) -> str:
    """Measures by what they are held against, at one width."""
    header = [(f"{bits} bits", True), ("layers", False)]
    header += [(f"{way} with {TITLES[truth]}", False) for truth in MEASURED for way in ("rho", "tau")] + [("regret %", False)]
    rows = []
    for measure in ("kl", "loss", *PROXIES):
        of = {each.truth: each for each in found.trust if each.bits == bits and each.measure == measure}
        pairs = [_numbers(of[truth])[:2] if truth in of else ["", ""] for truth in MEASURED]
        regret = _numbers(of["kl"])[2] if "kl" in of else ""
        rows.append(
            [TITLES[measure], str(next(iter(of.values())).num_layers), *(cell for pair in pairs for cell in pair), regret]
        )
    return markdown_table(header, rows)


def _numbers(each: Trust) -> list[str]:
    pair = ["-" if value is None else f"{value:.2f}" for value in (each.spearman, each.kendall)]
    return [*pair, "-" if each.regret is None else f"{each.regret:.1f}"]


def _cells(each: LayerLoss) -> list[str]:
    numbers = (each.mse, each.weighted_mse, each.fisher, each.hessian)
    return [
        each.layer,
        str(each.num_elements),
        str(each.bits),
        f"{each.prec1:.2f}",
        f"{each.delta_prec1:+.2f}",
        f"{each.n10}/{each.n01}",
        f"{each.disagreement:.2f}",
        f"{each.kl:.4g}",
        f"{each.delta_loss:+.4g}",
        "exact" if each.sqnr_db is None else f"{each.sqnr_db:.2f}",
        *("" if value is None else f"{value:.4g}" for value in numbers),
    ]


def _sqnr(each: LayerLoss) -> str:
    return "exact" if each.sqnr_db is None else f"SQNR {each.sqnr_db:.1f} dB"
