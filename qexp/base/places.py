"""Folders that will be written to, tried before hours of work say that they cannot be."""

from __future__ import annotations

import contextlib
import os
import tempfile
from pathlib import Path

from qexp.base.errors import UserError

NAME_BYTES = 255  # of a file or folder, on the usual file systems
_PROBE = bytes(4096)
_FILES = (
    ".csv",
    ".md",
    ".html",
    ".safetensors",
    ".jsonl",
    ".json",
    ".svg",
    ".png",
    ".pdf",
    ".tex",
)  # what is written into these folders
_FIGURES = "figures"  # the one folder in them whose files have fixed names


def check_names(key: str, path: str) -> None:
    """Raise UserError for a path that no file system holds."""
    if any(len(os.fsencode(part)) > NAME_BYTES for part in Path(path).parts):
        raise UserError(key, f"{path[:40]}...", allowed=f"a path whose names have at most {NAME_BYTES} bytes each")


def check_folder(key: str, folder: str, within: str) -> None:
    """Write to a folder within a folder, or to what is there of the way to it; nothing is left behind.

    Args:
        key: that names the folder.
        folder: its value.
        within: what will be made there.

    Raises:
        UserError: a file, a full disk, no permission, no name; a folder by the name of a file, `table.csv`.
    """
    if not folder:
        raise UserError(key, "(empty)", allowed="a folder", remedy="The working directory is `.`")
    check_names(key, str(Path(folder, within)))
    place = Path(folder, within)
    _check_kinds(key, folder, place)
    try:
        while not _exists(place):
            place = place.parent
        with tempfile.TemporaryFile(dir=place, buffering=0) as handle:  # it has no name where the system can do that
            handle.write(_PROBE)
    except OSError as error:
        remedy = f"{place}: {error.strerror}."
        raise UserError(key, folder, allowed="a folder that can be written to", remedy=remedy) from error


def _check_kinds(key: str, folder: str, place: Path) -> None:
    """Raise where a folder has the name of a file, or a file that of the folder of figures."""
    figures = place / _FIGURES
    wrong = {figures: "a folder"} if figures.is_file() else {}
    for inside in (place, figures):
        with contextlib.suppress(OSError):  # not there, or said by the trial of the folder itself
            wrong |= {path: "a file" for path in inside.iterdir() if path.suffix in _FILES and path.is_dir()}
    for path, kind in wrong.items():
        raise UserError(key, folder, allowed="a folder that can be written to", remedy=f"{path} would be {kind}: move it away.")


def _exists(path: Path) -> bool:
    """True where there is anything, be it a link to nowhere."""
    try:
        path.lstat()
    except (FileNotFoundError, NotADirectoryError):
        return False
    return True
