"""The figures of a report: which are drawn; their captions are in `captions.py`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pandas as pd
from matplotlib.figure import Figure

from qexp.base.progress import track
from qexp.reporting.figures.accuracy import prec1_by_bits, prec1_by_epoch
from qexp.reporting.figures.confusion import draw_matrix
from qexp.reporting.figures.cost import prec1_by_bops, prec1_by_cost, prec1_by_size
from qexp.reporting.figures.layers import sensitivity_map, sqnr_map
from qexp.reporting.figures.loss import loss_by_epoch
from qexp.reporting.figures.style import KINDS, PAPER, save
from qexp.reporting.figures.variants import prec1_by_variant
from qexp.reporting.frames.layers import load_layers
from qexp.reporting.statistics.asked import Made
from qexp.tracking.row_types import ExportRow


def _variant_pages(records: pd.DataFrame) -> dict[str, Figure]:
    """The figures of all variants by stem: a second page is `prec1_by_variant_2`."""
    pages: dict[str, Figure] = {}
    while (figure := prec1_by_variant(records, len(pages) + 1)) is not None:
        pages["prec1_by_variant" + (f"_{len(pages) + 1}" if pages else "")] = figure
    return pages


def draw(
    records: pd.DataFrame, exports: Sequence[ExportRow], made: Made, folder: Path, *, pdf: bool, titled: bool
) -> dict[str, list[Path]]:
    """Draw the figures; returns their files by stem, none where nothing was evaluated.

    Args:
        records: of `load_records`.
        exports: of `load_exports`.
        made: the matrices that were asked for.
        folder: of the report, where analyses of the layers lie.
        pdf: as PDF too.
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
    kinds, figures = PAPER if pdf else KINDS, folder / "figures"
    return {stem: save(figure, figures / stem, kinds, titled=titled) for stem, figure in track(wanted.items(), "figure")}
