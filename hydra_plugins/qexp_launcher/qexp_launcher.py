"""Hydra's launcher and sweeper for qexp: they compose the jobs of a sweep and launch none.

Hydra composes one job per combination of the swept values. Launched one by one they would train the same network again for
every bit width. This launcher composes all of them, each once, and hands them back (`qexp.sweep.compose`). Once Hydra is done,
`qexp.sweep.run` checks them before anything starts, groups them by what they train, and runs the groups.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.config_store import ConfigStore
from hydra.core.override_parser.overrides_parser import OverridesParser
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
        jobs = tuple(resolved(self._compose(overrides, initial_job_idx + k)) for k, overrides in enumerate(asked))
        self.task_function(Composed(jobs, resolved(own.launcher), folder, is_sweep=True))
        return [_completed() for _ in jobs]

    def _compose(self, overrides: Sequence[str], number: int) -> DictConfig:
        """The values of one job."""
        assert self.config is not None and self.hydra_context is not None
        config = self.hydra_context.config_loader.load_sweep_config(self.config, list(overrides))
        with open_dict(config):
            config.cases = None
            config.hydra.job.id = number
            config.hydra.job.num = number
            del config["hydra"]
        return config


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
