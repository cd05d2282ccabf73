"""Hydra composes the jobs of a command. It runs none of them.

Composing takes a fifth of a second, so it is done once for all jobs that choose the same files of `conf/`, and each puts its
values into that (`composition.py`). Hydra's own way, `hydra.main` with a launcher and a sweeper, was tried and left: it composes
a command once to learn its mode, once to run it and each job of a sweep twice, leads from the entry to the launcher and back for
each training, and leaves folders of notes behind commands that were refused. It still answers `--help`, `--cfg`, `--info` and
shells' completion.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import itertools
import os
import shlex
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig, OmegaConf

from qexp.base.console import print_result
from qexp.base.errors import UserError
from qexp.sweep.arguments import GROUP_KEYS, hydra_error
from qexp.sweep.composition import Composition, resolved, with_values, without_hydra
from qexp.sweep.config_store import store_choices
from qexp.sweep.help import dotted, explained, overview
from qexp.sweep.places import expand_places
from qexp.sweep.types import Composed

if TYPE_CHECKING:
    from hydra.core.override_parser.types import Override

_ANSWERS = ("help", "hydra_help", "cfg", "info", "shell_completion", "experimental_rerun")  # options that ask and run nothing


def conf_dir() -> Path:
    """The folder of YAML values: inside the installed package, or at the top of a checkout."""
    package = Path(__file__).resolve().parents[1]
    shipped = package / "conf"
    return shipped if shipped.is_dir() else package.parent / "conf"


def compose(config_name: str) -> Composed | None:
    """Read `sys.argv` and compose; None where it asks for something else, such as `--help`.

    Args:
        config_name: of the root file in `conf/`.

    Raises:
        UserError: the command line or a file of values is wrong, whatever Hydra raises; several values without `-m`; no job;
            another sweeper than Hydra's own.
    """
    import hydra
    from hydra._internal.utils import get_args_parser
    from hydra.core.hydra_config import HydraConfig
    from hydra.core.utils import configure_log
    from hydra.types import RunMode

    from qexp.sweep.bounded_yaml import bound_yaml

    store_choices()
    bound_yaml()
    asked = _parsed(get_args_parser(), sys.argv[1:])
    if asked is None:
        return None
    if any(getattr(asked, name) for name in _ANSWERS):
        _answer(config_name, asked)
        return None
    folder = Path(asked.config_path).absolute() if asked.config_path else conf_dir()
    try:
        with hydra.initialize_config_dir(str(folder), version_base="1.3"):
            jobs = _Jobs(asked.config_name or config_name, asked.overrides, asked.config_dir)
            base = jobs.base
            HydraConfig.instance().set_config(base)  # for values that interpolate ${hydra:...}
            own = base.hydra
            if not isinstance(own.launcher, DictConfig):
                raise UserError("hydra.launcher", own.launcher, allowed="settings", remedy="Choose one: hydra/launcher=qexp.")
            if own.job.get("chdir"):
                raise UserError("hydra.job.chdir", own.job.chdir, allowed="false", remedy="Paths mean the folder of the command.")
            configure_log(own.job_logging, own.verbose)
            is_sweep = asked.multirun or own.mode == RunMode.MULTIRUN
            values = tuple(map(expand_places, jobs.sweep() if is_sweep else jobs.single()))
            place = Path(str(own.sweep.dir if is_sweep else own.run.dir)).expanduser()
            if not values:
                raise UserError("-m", "0 jobs", allowed="at least one job", remedy="Some range or list of values is empty.")
            return Composed(values, resolved(own.launcher), place, is_sweep)
    except UserError:
        raise
    except Exception as error:  # Hydra, OmegaConf and PyYAML raise what they please at a value or a file of the user's
        raise hydra_error(error) from error


def _parsed(parser: argparse.ArgumentParser, arguments: Sequence[str]) -> argparse.Namespace | None:
    """What a command line asks for; None where the parser has answered itself (`--version`).

    Raises:
        UserError: it does not know an option.
    """
    said, why = io.StringIO(), io.StringIO()
    try:
        with contextlib.redirect_stdout(said), contextlib.redirect_stderr(why):
            return parser.parse_args(arguments)
    except SystemExit as end:
        if end.code:
            reason = why.getvalue().strip().rpartition(": error: ")[2]
            raise UserError("command line", shlex.join(arguments), allowed="KEY=VALUE and -m", remedy=f"{reason}.") from None
    text = said.getvalue().removesuffix("\n")
    print_result(text, text=text)
    return None


class _Jobs:
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
                "hydra/sweeper", sweeper.get("_target_"), allowed="basic", remedy="qexp plans all jobs before any runs."
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


def _answer(config_name: str, asked: argparse.Namespace) -> None:
    """Say what a command asks for and runs nothing of: our own help, or let Hydra answer, without passwords."""
    import hydra

    if asked.help:
        lines = list(_help(config_name, asked.overrides))
        print_result(*lines, text="\n".join(lines))
        return
    os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra raises instead of printing and leaving with 1
    answer = hydra.main(version_base="1.3", config_path=str(conf_dir()), config_name=config_name)(lambda config: None)
    text = io.StringIO()
    try:
        with contextlib.redirect_stdout(text):
            answer()
    finally:
        answered = text.getvalue().removesuffix("\n")
        print_result(answered, text=answered)


def _help(config_name: str, words: Sequence[str]) -> Iterator[str]:
    """The lines of `--help`, with the values of a command without overrides."""
    verb = "train" if config_name == "config" else config_name
    values = composed_values(config_name)
    options = group_options()
    yield from explained(words, options, values) if words else overview(verb, options, values)


def composed_values(config_name: str) -> dict[str, object]:
    """Dotted key -> value, of a command without overrides.

    Args:
        config_name: of its root file in `conf/`.
    """
    import hydra

    store_choices()
    with hydra.initialize_config_dir(str(conf_dir()), version_base="1.3"):
        values = OmegaConf.to_container(hydra.compose(config_name), resolve=True)
    assert isinstance(values, dict), "a job is a mapping"
    return dotted({str(key): value for key, value in values.items()})


def group_options() -> dict[str, list[str]]:
    """Group -> its choices."""
    import hydra
    from hydra.core.global_hydra import GlobalHydra

    store_choices()
    with hydra.initialize_config_dir(str(conf_dir()), version_base="1.3"):
        loader: Any = GlobalHydra.instance().config_loader()
        groups = [name for name in loader.list_groups("") if name not in ("hydra", "verb")]
        return {name: [option for option in loader.get_group_options(name) if option[0] != "_"] for name in groups}
