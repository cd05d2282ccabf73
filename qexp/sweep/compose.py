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
import os
import shlex
import sys
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from qexp.base.console import print_result
from qexp.base.errors import UserError
from qexp.config.sweeper import OPTUNA
from qexp.sweep.arguments import hydra_error
from qexp.sweep.combinations import Combinations, corners
from qexp.sweep.composition import resolved
from qexp.sweep.config_store import store_choices
from qexp.sweep.help import COMMAND, dotted, explained, overview
from qexp.sweep.places import expand_places
from qexp.sweep.types import Composed, Pick

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
    try:
        with _jobs(config_name, asked) as jobs:
            base = jobs.base
            HydraConfig.instance().set_config(base)  # for values that interpolate ${hydra:...}
            own = base.hydra
            if not isinstance(own.launcher, DictConfig):
                raise UserError("hydra.launcher", own.launcher, allowed="settings", remedy="Choose one: hydra/launcher=qexp.")
            if own.job.get("chdir"):
                raise UserError("hydra.job.chdir", own.job.chdir, allowed="false", remedy="Paths mean the folder of the command.")
            configure_log(own.job_logging, own.verbose)
            is_sweep = asked.multirun or own.mode == RunMode.MULTIRUN
            search = jobs.search(partial(_picked, config_name, asked)) if is_sweep and own.sweeper.get("name") == OPTUNA else None
            composed = jobs.picked(corners(search.space)) if search else jobs.sweep() if is_sweep else jobs.single()
            values = tuple(map(expand_places, composed))
            place = Path(str(own.sweep.dir if is_sweep else own.run.dir)).expanduser()
            if not values:
                raise UserError("-m", "0 jobs", allowed="at least one job", remedy="Some range or list of values is empty.")
            return Composed(values, resolved(own.launcher), place, is_sweep, search)
    except UserError:
        raise
    except Exception as error:  # Hydra, OmegaConf and PyYAML raise what they please at a value or a file of the user's
        raise hydra_error(error) from error


@contextlib.contextmanager
def _jobs(config_name: str, asked: argparse.Namespace) -> Iterator[Combinations]:
    """The jobs of a command line, while Hydra is there to compose them."""
    import hydra

    folder = Path(asked.config_path).absolute() if asked.config_path else conf_dir()
    with hydra.initialize_config_dir(str(folder), version_base="1.3"):
        yield Combinations(asked.config_name or config_name, asked.overrides, asked.config_dir)


def _picked(config_name: str, asked: argparse.Namespace, picks: Sequence[Pick]) -> tuple[Mapping[str, object], ...]:
    """Compose the jobs of some picks, once the command runs."""
    from hydra.core.hydra_config import HydraConfig

    try:
        with _jobs(config_name, asked) as jobs:
            HydraConfig.instance().set_config(jobs.base)
            return tuple(map(expand_places, jobs.picked(picks)))
    except UserError:
        raise
    except Exception as error:
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


def _answer(config_name: str, asked: argparse.Namespace) -> None:
    """Say what a command asks for and runs nothing of: our own help, or let Hydra answer, without passwords."""
    import hydra

    if asked.help:
        lines = list(_help(config_name, asked.overrides))
        print_result(*lines, text="\n".join(lines))
        return
    os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra raises instead of printing and leaving with 1
    if asked.shell_completion:
        sys.argv[0] = COMMAND  # what the shell completes; Hydra's script for `python FILE` knows no modules
    answer = hydra.main(version_base="1.3", config_path=str(conf_dir()), config_name=config_name)(lambda config: None)
    text = io.StringIO()
    try:
        with contextlib.redirect_stdout(text):
            answer()
    finally:
        answered = text.getvalue().removesuffix("\n")
        if asked.shell_completion:  # the verb is the command's own, and no key to type
            between = "\n" if "\n" in answered else " "
            answered = between.join(word for word in answered.split(between) if word != "verb=")
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
