"""The jobs that the overrides of a command line ask for: every combination of the swept values, or picks of them."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import OmegaConf

from qexp.base.errors import UserError
from qexp.config.sweeper import search_settings
from qexp.sweep.arguments import GROUP_KEYS
from qexp.sweep.composition import Composition, resolved, with_values, without_hydra
from qexp.sweep.types import Choices, Pick, Search

if TYPE_CHECKING:
    from hydra.core.override_parser.types import Override


class Combinations:
    """The jobs of a command line.

    Args:
        config_name: of the root file.
        overrides: as typed.
        extra_folder: of more YAML files, `--config-dir`.
    """

    def __init__(self, config_name: str, overrides: Sequence[str], extra_folder: str | None) -> None:
        from hydra._internal.config_loader_impl import get_overrides_dirname
        from hydra.core.global_hydra import GlobalHydra
        from hydra.core.override_parser.overrides_parser import OverridesParser

        loader: Any = GlobalHydra.instance().config_loader()
        self._parser = OverridesParser.create(config_loader=loader)
        self._config_name, self._typed = config_name, list(overrides)
        self._composed: dict[tuple[str, ...], Composition] = {}  # by the files chosen
        self._parsed: dict[str, Override] = {}  # by text
        self._is_group: dict[str, bool] = {}
        parsed = self._parse(self._typed)
        self._swept = [str(override.input_line) for override in parsed if override.is_sweep_override()]
        plain = [override for override in parsed if not override.is_sweep_override()]
        own = [override for override in plain if str(override.input_line).lstrip("+~").startswith("hydra")]
        self._hydra = [str(override.input_line) for override in own]
        if extra_folder is not None:
            if not Path(extra_folder).is_dir():
                raise UserError("--config-dir", extra_folder, allowed="a folder that exists")
            self._hydra.append(f"hydra.searchpath=['file://{Path(extra_folder).absolute()}']")
        # Asked itself, as the loader would copy every source for every question.
        _, self._files = loader._parse_overrides_and_create_caching_repo(config_name, self._hydra)
        for override in parsed:
            value = override.value()
            several = isinstance(value, list) and override.key_or_group not in GROUP_KEYS  # of which Hydra takes the last
            if self._chooses(override) and (several or isinstance(value, bool | int | float)):
                options = self._files.get_group_options(override.key_or_group)
                raise UserError(override.key_or_group, value, allowed=[name for name in options if name[0] != "_"])
        task = [override for override in plain if override not in own]
        files, settings = self._composition(task)
        self.base = with_values(files.with_hydra, settings)
        told = self.base.hydra  # the values too, as Hydra would have noted them
        told.overrides.task = [str(override.input_line) for override in task]
        told.job.override_dirname = get_overrides_dirname(task, **told.job.config.override_dirname)

    def single(self) -> Iterator[dict[str, object]]:
        """The one job of a command without `-m`."""
        if self._swept:
            key, _, value = self._swept[0].partition("=")
            raise UserError(key, value, allowed="one value", remedy="Several values are a sweep: add -m.")
        yield resolved(without_hydra(self.base))

    def sweep(self) -> Iterator[dict[str, object]]:
        """Every combination of the swept values, for each of the `cases`; what was typed comes after a case and wins."""
        sweeper = self.base.hydra.sweeper
        if not str(sweeper.get("_target_", "")).endswith(".BasicSweeper"):
            raise UserError(
                "hydra/sweeper", sweeper.get("_target_"), allowed="basic, optuna", remedy="qexp plans all jobs before any runs."
            )
        cases: Any = OmegaConf.to_object(self.base.cases) if OmegaConf.is_config(self.base.cases) else self.base.cases
        cases = [[]] if cases is None or cases == [] else cases
        lists = isinstance(cases, list) and all(isinstance(case, list) for case in cases)
        if not lists or not all(isinstance(word, str) for case in cases for word in case):
            raise UserError("cases", cases, allowed="a list of lists of KEY=VALUE")
        params = [f"{key}={value}" for key, value in (sweeper.params or {}).items()]
        own = set(self._hydra)
        typed = [text for text in self._typed if text not in own]
        for overrides in expand(self._parse([*params, *typed])):
            for case in cases:
                for job in expand(self._parse(case)):
                    files, settings = self._composition(self._parse([*job, *overrides]))
                    yield files.values(settings)

    def search(self, compose: Callable[[Sequence[Pick]], tuple[Mapping[str, object], ...]]) -> Search:
        """What `hydra/sweeper=optuna` chooses from: the swept keys.

        Raises:
            UserError: nothing is swept, or there are `cases`; `hydra.sweeper` is wrong.
        """
        space = {override.get_key_element(): choices_of(override) for override in self._parse(self._swept)}
        for key in space:
            if key.startswith("hydra"):
                raise UserError(key, "several values", allowed="one value, or a list: [prec1,loss]")
        if params := self.base.hydra.sweeper.get("params"):
            typed = " ".join(f"{key}={value}" for key, value in params.items())
            raise UserError("hydra.sweeper.params", "given", allowed="null with hydra/sweeper=optuna", remedy=f"Type it: {typed}")
        if not space:
            raise UserError(
                "hydra/sweeper", "optuna", allowed="basic", remedy="There is nothing to choose from: no key has several values."
            )
        if self.base.get("cases"):
            raise UserError(
                "cases", "given", allowed="null with hydra/sweeper=optuna", remedy="It chooses from the values of swept keys."
            )
        return Search(search_settings(resolved(self.base.hydra.sweeper)), space, compose)

    def picked(self, picks: Iterable[Pick]) -> Iterator[dict[str, object]]:
        """A job for each pick: the settings that are not swept, and its values of those that are."""
        own = {*self._hydra, *self._swept}
        fixed = [text for text in self._typed if text not in own]
        for pick in picks:
            files, settings = self._composition(self._parse([*fixed, *(f"{key}={value}" for key, value in pick.items())]))
            yield files.values(settings)

    def _parse(self, texts: Sequence[str]) -> list[Override]:
        """Overrides as Hydra reads them, each text once: its grammar takes milliseconds for a word."""
        for text in texts:
            if text not in self._parsed:
                (self._parsed[text],) = self._parser.parse_overrides([text])
        return [self._parsed[text] for text in texts]

    def _composition(self, overrides: Sequence[Override]) -> tuple[Composition, list[Override]]:
        """The files that the overrides choose, composed, and those overrides that set values.

        Args:
            overrides: none of Hydra's own settings.
        """
        import hydra

        files = tuple(str(override.input_line) for override in overrides if self._chooses(override))
        if files not in self._composed:
            config = hydra.compose(self._config_name, [*self._hydra, *files], return_hydra_config=True)
            self._composed[files] = Composition(config)
        return self._composed[files], [override for override in overrides if not self._chooses(override)]

    def _chooses(self, override: Override) -> bool:
        """True where it chooses a file of a group (`quant=affine`) and sets no value."""
        key = override.key_or_group
        if key not in self._is_group:
            self._is_group[key] = self._files.group_exists(key)
        return override.package is not None or (self._is_group[key] and not isinstance(override.value(), dict))


def choices_of(override: Override) -> Choices:
    """What a swept key may be, as typed."""
    value = override.value()
    if type(value).__name__ == "IntervalSweep":
        low, high = getattr(value, "start", None), getattr(value, "end", None)
        if not isinstance(low, int | float) or not isinstance(high, int | float) or low >= high:
            raise UserError(override.get_key_element(), override.input_line, allowed="interval(LOW,HIGH)")
        return float(low), float(high)
    return tuple(override.sweep_string_iterator())


def corners(space: Mapping[str, Choices]) -> list[Pick]:
    """Picks that have every value of every key at least once, the others at their first."""
    texts = {key: [str(value) for value in values] for key, values in space.items()}
    first = {key: values[0] for key, values in texts.items()}
    others = [first | {key: value} for key, values in texts.items() for value in values[1:]]
    return [first, *others]


def expand(overrides: Sequence[Override]) -> list[list[str]]:
    """Every combination of the values of some overrides; of a key that comes twice, the last, in the place of the first."""
    choices: dict[str, list[str]] = {}
    for override in overrides:
        key = override.get_key_element()
        if override.is_sweep_override():
            choices[key] = [f"{key}={value}" for value in override.sweep_string_iterator()]
        else:
            choices[key] = [str(override.input_line)]
    return [list(job) for job in itertools.product(*choices.values())]
