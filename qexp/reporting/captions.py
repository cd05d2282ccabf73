"""What a report says of its figures: their captions, their place on the page. `drawn.py` draws them, and takes matplotlib."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

from qexp.reporting.frames.layers import allocation_figures, histogram_sheets
from qexp.reporting.page import Drawn, Section
from qexp.reporting.statistics.asked import IN_REPORTS, Made

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
