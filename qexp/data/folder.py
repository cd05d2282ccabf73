"""Image files in a tree `root/train/<class>/**`, `root/test/<class>/**`: listing and decoding.

Files are sorted by class, then by folder within it, then by name, as torchvision's `ImageFolder` sorts them; that is the order of
the set. Every image is made RGB of 8 bits; values of 16 bits are scaled to 8, not cut.
"""

from __future__ import annotations

import os
import struct
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageFile
from torch import Tensor

from qexp.base.errors import UserError, nearest
from qexp.config.data import DataSettings
from qexp.config.preprocessing import Preprocessing
from qexp.data.file_hashes import content_hashes
from qexp.data.preprocess import preprocess
from qexp.data.splits import Part

EXTENSIONS = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".gif", ".ppm", ".pgm", ".tif", ".tiff", ".webp"})
# what PIL raises on files that are truncated, garbled or no images
DECODE_ERRORS = (OSError, SyntaxError, ValueError, struct.error, Image.DecompressionBombError)


@dataclass(frozen=True)
class FilePart:
    """One half of a tree.

    Args:
        paths: its files.
        labels: [N] int64, of the files.
    """

    paths: tuple[Path, ...]
    labels: Tensor


@dataclass(frozen=True)
class Tree:
    """A tree of image files.

    Args:
        root: its folder.
        parts: those for which the tree has a folder.
        class_names: names of the classes, by label: of `data.classes`, else of the folders.
    """

    root: Path
    parts: dict[Part, FilePart]
    class_names: tuple[str, ...]

    def file_hashes(self, part: Part, workers: int) -> Iterator[str]:
        """Of the content of a part's files, in their order."""
        return content_hashes(self.root, self.parts[part].paths, workers)

    @property
    def first(self) -> Path:
        """The first file, by which others are judged."""
        return next(iter(self.parts.values())).paths[0]


def scan_tree(settings: DataSettings, test_names: Sequence[str] = ("test", "val")) -> Tree:
    """List the files below `data.root`.

    A tree to evaluate on alone has no `train/`; a folder `calib/` beside the others holds images for calibration.

    Args:
        settings: `root`, `classes` and `num_test` are used.
        test_names: names for the folder of the test part, of which the first that exists is taken.

    Raises:
        UserError: a folder is missing or empty, or a part has a class that the class list, or the first part, lacks.
    """
    assert settings.root is not None, "checked with the settings"
    root = Path(settings.root)
    if not root.is_dir():
        raise UserError("data.root", settings.root, allowed="an existing folder")
    test = next((root / name for name in test_names if (root / name).is_dir()), None)
    folders: dict[Part, Path] = {"train": root / "train", "test": test or root / test_names[0], "calib": root / "calib"}
    present = {part: _class_folders(folder) for part, folder in folders.items() if folder.is_dir()}
    if "train" not in present and "test" not in present:
        allowed = "a folder with train/<class>/*, test/<class>/* or val/<class>/*"
        raise UserError(
            "data.root", settings.root, allowed=allowed, remedy=f"{folders['train']} and {folders['test']} are missing."
        )
    if test is None and settings.num_test is None:
        remedy = f"{folders['test']} is missing; data.num_test=N cuts a test split from the training images."
        raise UserError("data.root", settings.root, allowed="a folder with test/<class>/*", remedy=remedy)
    first = next(iter(present))
    labels, names = _class_list(settings.classes) if settings.classes is not None else ({}, ())
    if settings.classes is None:
        labels, names = {name: label for label, name in enumerate(present[first])}, present[first]
    for part, classes in present.items():
        for name in classes:
            if name not in labels:
                where = settings.classes or folders[first]
                remedy = f"{folders[part]}/{name} has no counterpart in {where}. {nearest(name, labels)}".rstrip()
                raise UserError("data.root", settings.root, allowed="a tree whose classes are all known", remedy=remedy)
    parts = {part: _list_files(folders[part], classes, labels) for part, classes in present.items()}
    return Tree(root, parts, names)


def _class_list(file: str) -> tuple[dict[str, int], tuple[str, ...]]:
    """Class folder -> label, and the names of all classes: a line each, the folder's name, a tab, the class's name for people.

    A name that several classes bear is followed by the folder's.
    """
    try:
        text = Path(file).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError("data.classes", file, allowed="a text file in UTF-8", remedy=f"{error}.") from error
    rows = [line.split("\t") for line in text.splitlines() if line.strip()]
    folders = [row[0].strip() for row in rows]
    if not rows or any(len(row) != 2 for row in rows) or len(set(folders)) != len(folders):
        allowed = "a file of one line a class, in the order of the labels: its folder, a tab, its name; each folder once"
        raise UserError("data.classes", file, allowed=allowed)
    count = Counter(row[1].strip() for row in rows)
    names = tuple(f"{name.strip()} ({folder})" if count[name.strip()] > 1 else name.strip() for folder, name in rows)
    return {folder: label for label, folder in enumerate(folders)}, names


def _class_folders(folder: Path) -> tuple[str, ...]:
    """Names of the class folders, sorted; hidden ones are none."""
    names = sorted(entry.name for entry in os.scandir(folder) if entry.is_dir() and not entry.name.startswith("."))
    if not names:
        raise UserError("data.root", folder, allowed="a folder with one folder of images per class", remedy="It has no folders.")
    return tuple(names)


def _list_files(folder: Path, present: Iterable[str], class_labels: Mapping[str, int]) -> FilePart:
    """The image files of the classes `present`, sorted by class and name."""
    paths: list[Path] = []
    labels: list[int] = []
    for name in present:
        files = _images_below(folder / name)
        if not files:
            remedy = f"Known endings: {' '.join(sorted(EXTENSIONS))}."
            raise UserError("data.root", folder / name, allowed="a class folder that holds images", remedy=remedy)
        paths += files
        labels += [class_labels[name]] * len(files)
    return FilePart(tuple(paths), torch.tensor(labels, dtype=torch.int64))


def _images_below(folder: Path) -> list[Path]:
    """The image files of a class: in its folder and in those within, sorted by folder and name; hidden folders are none."""
    files: dict[str, list[str]] = {}
    for inner, folders, names in os.walk(folder, followlinks=True):
        folders[:] = [name for name in folders if not name.startswith(".")]
        files[inner] = sorted(name for name in names if Path(name).suffix.lower() in EXTENSIONS)
    return [Path(inner, name) for inner in sorted(files) for name in files[inner]]


def open_rgb(path: Path) -> Image.Image:
    """Decode one file to RGB of 8 bits.

    Of a grey or RGB(A) file of 16 bits a channel, v becomes round(v / 257), so that 65535 is 255.

    Raises:
        OSError, ValueError and others of `DECODE_ERRORS`: the file is corrupt, or of pixels whose full scale it does not say.
    """
    with Image.open(path) as file:
        raw = _raw_mode(file)
        if file.mode.startswith("I;16") and ";16" in raw or file.mode == "I" and file.format == "PPM":
            return Image.fromarray(_to_8_bits(np.asarray(file))).convert("RGB")
        if file.mode.startswith(("I", "F")):
            raise ValueError(f"mode {file.mode} has more than 8 bits per channel, and their full scale is unknown")
        if ";16" in raw:
            return _open_deep(path, raw)
        image = (
            file.convert("RGBA") if file.mode == "P" and "transparency" in file.info else file
        )  # PIL warns about the direct way
        return image.convert("RGB")


def _raw_mode(file: ImageFile.ImageFile) -> str:
    """How PIL calls the pixels as they lie in a file, `RGB;16B`; empty where its decoder does not say."""
    args = file.tile[0][3] if file.tile else ""
    first = args[0] if isinstance(args, tuple) and args else args
    return first if isinstance(first, str) else ""


def _open_deep(path: Path, raw: str) -> Image.Image:
    """A file of colours of 16 bits, of which PIL keeps the high bytes; read in the other byte order, it gives the low ones."""
    layout, _, order = raw.partition(";16")
    if layout not in ("RGB", "RGBA", "RGBX") or order not in ("B", "L", "N"):
        raise ValueError(f"pixels {raw} have more than 8 bits per channel")
    swapped = f"{layout};16{'L' if order == 'B' or (order == 'N' and sys.byteorder == 'big') else 'B'}"
    with Image.open(path) as high, Image.open(path) as low:
        tiles: list[Any] = low.tile  # of PIL's own class, or plain tuples, as its version may be
        tiles[:] = [(*tile[:3], (swapped, *tile[3][1:]) if isinstance(tile[3], tuple) else swapped) for tile in tiles]
        values = np.asarray(high)[..., :3].astype(np.uint16) * 256 + np.asarray(low)[..., :3]
    return Image.fromarray(_to_8_bits(values))


def _to_8_bits(values: np.ndarray) -> np.ndarray:
    """round(v / 257) of integers from 0 to 65535, uint8."""
    return ((values.astype(np.uint32) + 128) // 257).astype(np.uint8)


def decode(path: Path, how: Preprocessing) -> Tensor:
    """One file as [3, H, W] uint8, resized and cut."""
    return preprocess(open_rgb(path), how)


def corrupt(path: Path, error: BaseException) -> UserError:
    """The error that names a file which does not decode."""
    return UserError("image", path, allowed="a readable image", remedy=f"PIL says: {error}. Replace or remove the file.")


def different_sizes(path: Path, shape: Sequence[int], first: Path, first_shape: Sequence[int]) -> UserError:
    """The error that names two files of different sizes, (channels, height, width)."""
    sizes = f"{first} has {first_shape[2]} x {first_shape[1]} pixels and {path} has {shape[2]} x {shape[1]}."
    return UserError("data.image_size", None, allowed="an integer, as the images differ in size", remedy=sizes)
