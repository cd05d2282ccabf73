"""The jobs that choose the same files of `conf/`: one composition of Hydra's, and for each job the values that it puts in.

To copy a composition and to resolve the copy took most of the time of composing a sweep. So its values are resolved once; what a
job sets, and what interpolates, is asked of the composition itself while the job's values are in it, and put back after. A job
shares all groups that it does not change with the others. Whatever adds, deletes, sets a list or a mapping, or interpolates, is
put in by Hydra's own way, into a copy.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig, ListConfig, OmegaConf, open_dict

if TYPE_CHECKING:
    from hydra.core.override_parser.types import Override

Path = tuple[str, ...]  # of a value: its groups, and its key


class Composition:
    """What Hydra composed for a choice of files.

    Args:
        config: as composed, with Hydra's own settings.
    """

    def __init__(self, config: DictConfig) -> None:
        self.with_hydra, self.without_hydra = config, without_hydra(config)
        self._bases: dict[tuple[str, ...], _Base | None] = {}  # by the overrides that are put into a copy

    def values(self, overrides: Sequence[Override]) -> dict[str, object]:
        """The resolved values of the job that puts these in.

        Args:
            overrides: none that chooses a file.
        """
        plain = [override for override in overrides if _is_plain(override)]
        others = [override for override in overrides if not _is_plain(override)]
        key = tuple(str(override.input_line) for override in others)
        if key not in self._bases:
            self._bases[key] = self._base(others)
        base = self._bases[key]
        if base is None or not all(base.holds(override, others) for override in plain):
            return resolved(_one_job(self.without_hydra, overrides))
        return base.values(plain)

    def _base(self, overrides: Sequence[Override]) -> _Base | None:
        """The composition with some values put in; None where a job may be resolved and this not."""
        try:
            return _Base(_one_job(self.without_hydra, overrides))
        except Exception:  # whatever Hydra and OmegaConf raise; a job that is as wrong says so itself
            return None


class _Base:
    """A composition that values are put into one by one, and taken out again.

    Args:
        config: with Hydra's way for all overrides that are not plain.
    """

    def __init__(self, config: DictConfig) -> None:
        self._config = config
        self._resolved = resolved(config)
        self._interpolations = list(_interpolations(config))

    def holds(self, override: Override, others: Sequence[Override]) -> bool:
        """True where it changes a value that is there, and that no other override, nor an interpolated group, reaches."""
        key = str(override.key_or_group)
        path = tuple(key.split("."))
        near = [tuple(str(other.key_or_group).split(".")) for other in others]
        near += [place for place, is_group in self._interpolations if is_group]
        if any(path[: len(place)] == place or place[: len(path)] == path for place in near):
            return False
        group: Any = self._resolved
        for name in path[:-1]:
            group = group.get(name) if isinstance(group, dict) else None
        return isinstance(group, dict) and path[-1] in group and not isinstance(group[path[-1]], dict | list)

    def values(self, overrides: Sequence[Override]) -> dict[str, object]:
        """The resolved values with these put in."""
        nodes = {path: self._node(path) for path in (_path(override) for override in overrides)}
        before = {path: node._value() for path, node in nodes.items()}
        try:
            put_in(overrides, self._config)
            places = dict.fromkeys([*nodes, *(place for place, _ in self._interpolations)])
            changed = {place: self._ask(place) for place in places}
        finally:
            for path, value in before.items():
                self._node(path)._set_value(value)
        return _changed(self._resolved, changed)

    def _node(self, path: Path) -> Any:
        """The node of a value, which keeps an interpolation as it is written."""
        parent = OmegaConf.select(self._config, ".".join(path[:-1])) if path[1:] else self._config
        return parent._get_node(path[-1])

    def _ask(self, path: Path) -> object:
        """A value as it is now, with what it interpolates."""
        value = OmegaConf.select(self._config, ".".join(path), throw_on_missing=True, throw_on_resolution_failure=True)
        if not OmegaConf.is_config(value):
            return value
        return _with_text_keys(OmegaConf.to_container(value, resolve=True, throw_on_missing=True))


def _path(override: Override) -> Path:
    return tuple(str(override.key_or_group).split("."))


def _is_plain(override: Override) -> bool:
    """True for `key=value` of a number, a word or nothing, without interpolation."""
    if override.is_add() or override.is_force_add() or override.is_delete() or override.package is not None:
        return False
    value, key = override.value(), str(override.key_or_group)
    is_word = isinstance(value, str) and "${" not in value and value != "???"
    return (is_word or value is None or isinstance(value, bool | int | float)) and not set("[]@") & set(key)


def _interpolations(config: DictConfig | ListConfig, before: Path = ()) -> Iterator[tuple[Path, bool]]:
    """Where a configuration interpolates, and whether that is a group or a list, which one value of it does not answer for."""
    inside: Any = config  # typed as if a mapping had places
    for key in range(len(config)) if isinstance(config, ListConfig) else list(config.keys()):
        node: Any = inside._get_node(key)
        path, is_group = (*before, str(key)), isinstance(node, DictConfig | ListConfig)
        if node._is_interpolation():
            yield path, is_group
        elif isinstance(node, ListConfig) and next(_interpolations(node), None):
            yield path, True
        elif isinstance(node, DictConfig) and not node._is_none() and not node._is_missing():
            yield from _interpolations(node, path)


def _changed(values: Mapping[str, object], changes: Mapping[Path, object]) -> dict[str, object]:
    """The values with some of them changed; groups without a change are the same objects."""
    result = dict(values)
    below: dict[str, dict[Path, object]] = {}
    for path, value in changes.items():
        if path[1:]:
            below.setdefault(path[0], {})[path[1:]] = value
        else:
            result[path[0]] = value
    for name, inner in below.items():
        group = result[name]
        assert isinstance(group, dict), name
        result[name] = _changed(group, inner)
    return result


def _one_job(config: DictConfig, overrides: Sequence[Override]) -> DictConfig:
    """A copy with values put in, which is no sweep any more."""
    config = with_values(config, overrides)
    config.cases = None
    return config


def with_values(config: DictConfig, overrides: Sequence[Override]) -> DictConfig:
    """A copy with values put in."""
    config = copy.deepcopy(config)
    put_in(overrides, config)
    return config


def put_in(overrides: Sequence[Override], config: DictConfig) -> None:
    """Put values in, as Hydra does behind a composition; it has no public name."""
    from hydra._internal.config_loader_impl import ConfigLoaderImpl

    ConfigLoaderImpl._apply_overrides_to_config(list(overrides), config)


def without_hydra(config: DictConfig) -> DictConfig:
    """The same values without Hydra's own."""
    config = copy.copy(config)
    with open_dict(config):
        del config["hydra"]
    return config


def resolved(config: DictConfig) -> dict[str, object]:
    """The values of a job with all interpolations resolved."""
    values = OmegaConf.to_container(config, resolve=True, throw_on_missing=True)
    assert isinstance(values, dict), "a job is a mapping"
    return {str(key): _with_text_keys(value) for key, value in values.items()}


def _with_text_keys(value: object) -> object:
    """The same, with keys as text: YAML takes numbers for keys, `bits={4: 5}`, and no setting does."""
    if isinstance(value, dict):
        return {str(key): _with_text_keys(inner) for key, inner in value.items()}
    return [_with_text_keys(inner) for inner in value] if isinstance(value, list) else value
