"""YAML of the user's that would grow without bound when its aliases are written out, refused before OmegaConf does that.

PyYAML reads `*name` as the same object once more, so a file of ten lines may stand for a billion values; OmegaConf copies each.

A sweep over groups is composed once for each choice of files, most of them the same: each file is read once, and what Hydra keeps
of all choices is not copied for each composition, which took half of its time.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from functools import cache
from pathlib import Path

from hydra._internal.core_plugins import file_config_source, structured_config_source
from hydra._internal.sources_registry import SourcesRegistry
from hydra.core.plugins import Plugins
from hydra.plugins.config_source import ConfigResult

from qexp.base.errors import UserError

MAX_VALUES = 100_000  # the largest file in conf/ has some hundred


@cache
def bound_yaml() -> None:
    """Have Hydra look at every file of values before it reads it, once a process."""
    Plugins.instance()  # which registers Hydra's own sources
    SourcesRegistry.instance().types["file"] = FileConfigSource
    SourcesRegistry.instance().types["structured"] = StructuredConfigSource


class StructuredConfigSource(structured_config_source.StructuredConfigSource):
    """Hydra's choices that are no files, by its name for them, which it compares."""

    def __deepcopy__(self, memo: Mapping[int, object]) -> StructuredConfigSource:
        """Itself: it holds the store of the process, which copies each choice that it gives."""
        return self


class FileConfigSource(file_config_source.FileConfigSource):
    """Hydra's files, by its name for them, as it takes no second source for a scheme.

    Args:
        provider: that Hydra names it by.
        path: of the folder.
    """

    _read: dict[tuple[str, int, int], ConfigResult] = {}  # of the process, by path, time and size

    def load_config(self, config_path: str) -> ConfigResult:
        """Read a file of values.

        Raises:
            UserError: with its aliases written out, it has more than `MAX_VALUES` values.
        """
        path = Path(self.path, self._normalize_file_name(config_path))
        if not path.is_file():
            return super().load_config(config_path)
        stat = path.stat()
        key = (str(path), stat.st_mtime_ns, stat.st_size)
        if key not in self._read:
            _check_aliases(path)
            self._read[key] = super().load_config(config_path)
        read = copy.copy(self._read[key])  # Hydra writes into what it is given
        read.config, read.header = copy.deepcopy(read.config), dict(read.header)
        return read


def _check_aliases(path: Path) -> None:
    """Raise for a file whose aliases stand for too much; what is no YAML at all, the loader says."""
    import yaml

    content = path.read_bytes()
    if b"&" not in content or b"*" not in content:
        return
    try:
        root = yaml.compose(content, Loader=yaml.SafeLoader)
    except (yaml.YAMLError, RecursionError):
        return
    if root is not None and _num_values(root, {}) > MAX_VALUES:
        remedy = "Its aliases (&name, *name) stand for more, or for themselves."
        raise UserError("file of values", path, allowed=f"at most {MAX_VALUES} values", remedy=remedy)


def _num_values(node: object, known: dict[int, float]) -> float:
    """Values of a YAML node with its aliases written out; infinite where it holds itself."""
    children = getattr(node, "value", None)
    if not isinstance(children, list):
        return 1
    if id(node) not in known:
        known[id(node)] = float("inf")  # until it is counted
        parts = [part for child in children for part in (child if isinstance(child, tuple) else (child,))]
        known[id(node)] = 1 + sum(_num_values(part, known) for part in parts)
    return known[id(node)]
