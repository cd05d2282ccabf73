"""The figures of a report: which are drawn, their captions, their place on the page."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

import pandas as pd
from matplotlib.figure import Figure

from qexp.base.progress import track
from qexp.reporting.figures.accuracy import prec1_by_bits, prec1_by_epoch
from qexp.reporting.figures.confusion import draw_matrix
from qexp.reporting.figures.cost import prec1_by_bops, prec1_by_cost, prec1_by_size
from qexp.reporting.figures.layers import sensitivity_map, sqnr_map
from qexp.reporting.figures.loss import loss_by_epoch
from qexp.reporting.figures.style import save
from qexp.reporting.figures.variants import prec1_by_variant
from qexp.reporting.frames.layers import allocation_figures, histogram_sheets, load_layers
from qexp.reporting.page import Drawn, Section
from qexp.reporting.statistics.asked import IN_REPORTS, Made
from qexp.tracking.row_types import ExportRow

CAPTIONS = {
    "prec1_by_epoch": (
        "How quantizable the network is as it trains",
        "After each epoch a copy of the weights is quantized and scored; only quantization-aware training is changed by "
        "it. A band is one accuracy's own interval, or one standard deviation over seeds. Variants answer for the same "
        "images: the table compares them, overlapping bands do not.",
    ),
    "loss_by_epoch": (
        "What quantizing costs as it trains",
        "Points against the float network of the same epoch; each width has a scale of its own. A clear interval compares image "
        "by image. Where the predictions of an epoch were not kept (`evaluate.keep=all` keeps them), it is faint and rests on "
        "both accuracies alone, which makes it too wide rather than too narrow.",
    ),
    "prec1_by_bits": (
        "What each bit costs",
        "The last epoch. A bar is the 95 % Wilson interval of an accuracy alone, or one standard deviation over repeated seeds.",
    ),
    "prec1_by_variant": (
        "Every variant",
        "The last epoch, each with the 95 % Wilson interval of its accuracy alone.",
    ),
    "prec1_by_size": (
        "What a byte buys",
        "Stored size counts packed codes, scales, zero points, codebooks and what stays float. Where an interval reaches "
        "over the front, it is not certain which variant stands on it.",
    ),
    "prec1_by_cost": (
        "What a millisecond buys",
        "Exported files in their runtimes, as `qexp.export` measured them, with the 95 % Wilson interval of each accuracy alone.",
    ),
    "prec1_by_bops": (
        "What a bit operation buys",
        "Multiply-accumulates of exported networks, each times the widths of weight and activation. It is a count, not a time: "
        "what a runtime makes of it is its own matter.",
    ),
    "weight_sqnr": (
        "What each layer keeps of its weights",
        "Signal to quantization noise as `qexp.analyze` measured it; a layer with little of it need not be one that matters.",
    ),
    "layer_sensitivity": (
        "What each layer costs",
        "Each layer quantized alone, as `qexp.analyze task=sensitivity` measured it: the divergence of the network's predictions "
        "from the float network's.",
    ),
}
SECTIONS: dict[str, Section] = {  # where a figure stands, if not with the results
    "prec1_by_cost": "deployment",
    "prec1_by_bops": "deployment",
    "weight_sqnr": "layers",
    "layer_sensitivity": "layers",
}
BITS = "The widths that were chosen, and one for all layers: a bar is a layer. `qexp.analyze task=allocate` drew it."
HISTOGRAMS = "Values of each tensor, the levels of its grid and what lies beyond, as `qexp.analyze task=profile` found them."


def remove_others(folder: Path, drawn: Collection[Path]) -> None:
    """Take away the figures of an earlier report that are not drawn now: they show other numbers."""
    for path in (folder / "figures").glob("*.*"):
        if path not in drawn and _figure_of(path.stem) in {*CAPTIONS, *IN_REPORTS}:
            path.unlink(missing_ok=True)


def _figure_of(stem: str) -> str:
    """The figure that a file is a page of: `prec1_by_variant` of `prec1_by_variant_2`."""
    return re.sub(r"_\d+$", "", stem)


def _titled(stem: str, caption: tuple[str, str]) -> tuple[str, str]:
    """A page's title and caption; those of further pages are numbered."""
    number = stem.removeprefix(_figure_of(stem)).removeprefix("_")
    return (f"{caption[0]}, page {number}", caption[1]) if number else caption


def on_page(drawn: Mapping[str, Sequence[Path]], made: Made, folder: Path) -> list[Drawn]:
    """What the page shows of figures and of histograms that profiles left in the folder."""
    captions = CAPTIONS | {row.name: (row.title, row.summary) for row in made.matrices}
    titled = {stem: _titled(stem, captions[_figure_of(stem)]) for stem in drawn}
    figures = [Drawn(paths[-1], *titled[stem], SECTIONS.get(stem, "results")) for stem, paths in drawn.items()]
    figures += [Drawn(path, "Bits of each layer", BITS, "layers") for path in allocation_figures(folder)]
    sheets = histogram_sheets(folder)
    return figures + [Drawn(path, f"Histograms: {label}", HISTOGRAMS, "layers", folded=True) for label, path in sheets]


def _variant_pages(records: pd.DataFrame) -> dict[str, Figure]:
    """The figures of all variants by stem: a second page is `prec1_by_variant_2`."""
    pages: dict[str, Figure] = {}
    while (figure := prec1_by_variant(records, len(pages) + 1)) is not None:
        pages["prec1_by_variant" + (f"_{len(pages) + 1}" if pages else "")] = figure
    return pages


def draw(
    records: pd.DataFrame, exports: Sequence[ExportRow], made: Made, folder: Path, kinds: Sequence[str], titled: bool
) -> dict[str, list[Path]]:
    """Draw the figures; returns their files by stem, none where nothing was evaluated.

    Args:
        records: of `load_records`.
        exports: of `load_exports`.
        made: the matrices that were asked for.
        folder: of the report, where analyses of the layers lie.
        kinds: of files, SVG last.
        titled: figures have headings.
    """
    if records.empty:
        return {}
    by_epoch = prec1_by_epoch(records) if records.groupby("training")["epoch"].nunique().max() > 1 else None
    drawn: dict[str, Figure | None] = {
        "prec1_by_epoch": by_epoch,
        "loss_by_epoch": loss_by_epoch(records),
        "prec1_by_bits": prec1_by_bits(records),
    }
    drawn |= _variant_pages(records)
    drawn |= {"prec1_by_size": prec1_by_size(records), "prec1_by_cost": prec1_by_cost(exports)}
    layers = load_layers(folder)
    drawn |= {
        "prec1_by_bops": prec1_by_bops(exports),
        "weight_sqnr": sqnr_map(layers),
        "layer_sensitivity": sensitivity_map(layers),
    }
    drawn |= {row.name: draw_matrix(matrix) for row, matrix in made.matrices.items()}
    wanted = {stem: figure for stem, figure in drawn.items() if figure is not None}
    return {
        stem: save(figure, folder / "figures" / stem, kinds, titled=titled) for stem, figure in track(wanted.items(), "figure")
    }
