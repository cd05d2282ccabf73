"""What an analysis leaves in its folder: texts and `figures/`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

from matplotlib.figure import Figure

from qexp.base.files import write_texts
from qexp.reporting.figures.style import PAPER, save


def write_analysis(
    folder: Path,
    texts: Mapping[str, str],
    figures: Iterable[tuple[str, Figure]],
    pictures: Iterable[tuple[str, Figure]] = (),
) -> list[Path]:
    """Write texts and figures, and remove figures of an earlier analysis; returns what was written.

    Args:
        folder: where all files go.
        texts: as of `write_texts`.
        figures: with the stems of their files.
        pictures: likewise; many, and read one at a time: PNG alone.
    """
    paths = write_texts(folder, texts)
    for kinds, group in ((PAPER, figures), (("png",), pictures)):
        for stem, figure in group:
            paths += save(figure, folder / "figures" / stem, kinds)
    for old in (folder / "figures").glob("*.*"):
        if old not in paths:
            old.unlink(missing_ok=True)
    return paths
