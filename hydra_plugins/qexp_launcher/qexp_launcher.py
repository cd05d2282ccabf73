"""Hydra's launcher and sweeper for qexp: they compose the jobs of a sweep and launch none.

Hydra composes one job per combination of the swept values. Launched one by one they would train the same network again for
every bit width. This launcher composes all of them and hands them back (`qexp.sweep.compose`); jobs that choose the same files of
`conf/` are copies of one composition with their values put in, as composing takes a fifth of a second. Once Hydra is done,
`qexp.sweep.run` checks them before anything starts, groups them by what they train, and runs the groups.
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Sequence
from pathlib import Path

from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.config_store import ConfigStore
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.core.utils import JobReturn, JobStatus, configure_log, setup_globals
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, open_dict

from qexp.config.launcher import DEFAULTS

# Hydra finds plugins by class path; the only `_target_`s of the project. Plain dicts: Hydra executes plugin modules without
# registering them, where a dataclass cannot resolve its annotations.
_HERE = "hydra_plugins.qexp_launcher.qexp_launcher"
_LAUNCHER = {"_target_": f"{_HERE}.QexpLauncher", **DEFAULTS}
_SWEEPER = {"_target_": f"{_HERE}.QexpSweeper", "max_batch_size": None, "params": None}
ConfigStore.instance().store(group="hydra/launcher", name="qexp", node=_LAUNCHER, provider="qexp")
ConfigStore.instance().store(group="hydra/sweeper", name="qexp", node=_SWEEPER, provider="qexp")


class QexpSweeper(BasicSweeper):
    """Hydra's own sweeper without its trial composition of every job, which the launcher composes in any case."""

    def validate_batch_is_legal(self, batch: Sequence[Sequence[str]]) -> None:
        """Nothing: a job that cannot be composed is found in the launcher, before any of them starts."""


class QexpLauncher(Launcher):
    """Composes all jobs of a sweep and passes them on.

    Args:
        settings: `hydra.launcher`, which `qexp.sweep.run` validates, as Hydra would wrap what is raised here.
    """

    def __init__(self, **settings: object) -> None:
        self.config: DictConfig | None = None
        self.task_function: TaskFunction | None = None
        self.hydra_context: HydraContext | None = None
        self.composed: dict[tuple[str, ...], DictConfig] = {}  # by the files that were chosen
        self._groups: dict[str, bool] = {}

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Hydra's hook: keep what `launch` needs."""
        self.config, self.task_function, self.hydra_context = config, task_function, hydra_context

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        """Compose every job and pass their values to Hydra's task, which keeps them."""
        from qexp.sweep.compose import resolved
        from qexp.sweep.types import Composed

        assert self.config is not None and self.task_function is not None, "Hydra calls setup before launch"
        setup_globals()
        own = self.config.hydra
        configure_log(own.hydra_logging, own.verbose)
        folder = Path(str(own.sweep.dir))
        folder.mkdir(parents=True, exist_ok=True)
        asked = [[*case, *overrides] for overrides in job_overrides for case in _expand_cases(self.config)]
        jobs = tuple(resolved(self._compose(overrides)) for overrides in asked)
        self.task_function(Composed(jobs, resolved(own.launcher), folder, is_sweep=True))
        return [_completed() for _ in jobs]

    def _compose(self, overrides: Sequence[str]) -> DictConfig:
        """The values of one job."""
        parsed = OverridesParser.create().parse_overrides(list(overrides))
        choices = tuple(str(override.input_line) for override in parsed if self._chooses(override))
        if choices not in self.composed:
            self.composed[choices] = self._compose_choices(choices)
        config = copy.deepcopy(self.composed[choices])
        # As Hydra does behind a composition; it has no public name for it.
        ConfigLoaderImpl._apply_overrides_to_config([override for override in parsed if not self._chooses(override)], config)
        config.cases = None
        return config

    def _compose_choices(self, choices: Sequence[str]) -> DictConfig:
        """The values of the files that some jobs choose."""
        assert self.config is not None and self.hydra_context is not None
        config = self.hydra_context.config_loader.load_sweep_config(self.config, list(choices))
        with open_dict(config):
            del config["hydra"]
        return config

    def _chooses(self, override: Override) -> bool:
        """True for what chooses a file of values (`quant=affine`), not a value."""
        key = override.key_or_group
        if key not in self._groups:
            assert self.hydra_context is not None
            options = self.hydra_context.config_loader.get_group_options(key, results_filter=None)
            self._groups[key] = override.is_hydra_override() or bool(options)
        return override.package is not None or self._groups[key]


def _expand_cases(config: DictConfig) -> list[list[str]]:
    """The sets of overrides of `cases`, several values swept within each; what was typed comes after them and wins."""
    return [job for case in config.cases or [[]] for job in _expand(list(case))]


def _expand(overrides: list[str]) -> list[list[str]]:
    """Every combination of the values of some overrides, as Hydra's own sweeper makes them."""
    parsed = OverridesParser.create().parse_overrides(overrides)
    choices = [
        [f"{override.get_key_element()}={value}" for value in override.sweep_string_iterator()]
        if override.is_sweep_override()
        else [str(override.input_line)]
        for override in parsed
    ]
    return [list(job) for job in itertools.product(*choices)]


def _completed() -> JobReturn:
    """What Hydra is told of a job: that nothing is left to do."""
    result = JobReturn()
    result.status = JobStatus.COMPLETED
    result.return_value = None
    return result
