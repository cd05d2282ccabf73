"""Hydra's launcher for qexp: jobs that share a training become one job.

Hydra composes one job per combination of the swept values. Launched one by one they would train the same network again for
every bit width. This launcher receives all of them, has them validated before anything starts, groups them by what they
train, and launches one merged job per group, here or where `hydra.launcher.inner` says.
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hydra.core.config_store import ConfigStore
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.utils import JobReturn, JobStatus, configure_log, run_job, setup_globals
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf, open_dict

from qexp.pipeline.settings import DEFAULTS

# Hydra finds a launcher by this class path; the only `_target_` of the project. A plain dict: Hydra executes plugin modules
# without registering them, where a dataclass cannot resolve its annotations.
_NODE = {"_target_": "hydra_plugins.qexp_launcher.qexp_launcher.QexpLauncher", **DEFAULTS}
ConfigStore.instance().store(group="hydra/launcher", name="qexp", node=_NODE, provider="qexp")


class QexpLauncher(Launcher):
    """Validate all jobs, group them by training, run one merged job per group.

    Args:
        settings: `hydra.launcher`; `launch` validates it, as Hydra would wrap what is raised here.
    """

    def __init__(self, **settings: Any) -> None:
        self.config: DictConfig | None = None
        self.task_function: TaskFunction | None = None
        self.hydra_context: HydraContext | None = None

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Hydra's hook: keep what `launch` needs."""
        self.config, self.task_function, self.hydra_context = config, task_function, hydra_context

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        """Compose every job, hand their values to the story, and run the groups that it asks for."""
        from qexp.pipeline import check, entry, launchers, prepare, story

        check.refuse_sweep(entry.sweep().verb)
        settings = launchers.launcher_settings(OmegaConf.to_container(self.config.hydra.launcher, resolve=True))
        if settings.inner == "submitit_slurm":
            prepare.expect_other_machines()
        setup_globals()
        configure_log(self.config.hydra.hydra_logging, self.config.hydra.verbose)
        folder = Path(str(self.config.hydra.sweep.dir))
        folder.mkdir(parents=True, exist_ok=True)
        asked = [[*case, *overrides] for overrides in job_overrides for case in self._cases()]
        composed = [self._compose(overrides, initial_job_idx + k) for k, overrides in enumerate(asked)]
        values = [_values(config) for config in composed]
        returns: list[JobReturn | None] = [None] * len(composed)

        def run_here(positions: Sequence[int]) -> None:
            result = self._run_merged(composed[positions[0]], [values[position] for position in positions])
            for position in positions:
                returns[position] = result
            if result.status == JobStatus.FAILED:
                raise result._return_value  # the property would print Hydra's own line before it raises the same

        def launch_groups(groups: Sequence[Sequence[int]]) -> launchers.Outcomes:
            if settings.inner == "basic":
                return launchers.in_turn(run_here, groups)
            jobs = [[values[position] for position in positions] for positions in groups]
            return launchers.side_by_side(jobs, entry.sweep(), settings, folder)

        story.run_sweep(values, entry.sweep(), launch=launch_groups)
        return [result if result is not None else _not_here() for result in returns]

    def _run_merged(self, config: DictConfig, jobs: list[dict[str, Any]]) -> JobReturn:
        """Run jobs that share a training as one of Hydra's, in this process."""
        merged = copy.deepcopy(config)
        with open_dict(merged):
            merged.jobs = jobs
        return run_job(
            hydra_context=self.hydra_context,
            task_function=self.task_function,
            config=merged,
            job_dir_key="hydra.sweep.dir",
            job_subdir_key="hydra.sweep.subdir",
        )

    def _cases(self) -> list[list[str]]:
        """The sets of overrides of `cases`, several values swept within each; what was typed comes after them and wins."""
        return [job for case in self.config.cases or [[]] for job in _expand(list(case))]

    def _compose(self, overrides: Sequence[str], number: int) -> DictConfig:
        config = self.hydra_context.config_loader.load_sweep_config(self.config, list(overrides))
        with open_dict(config):
            config.cases = None
            config.hydra.job.id = number
            config.hydra.job.num = number
        return config


def _expand(overrides: list[str]) -> list[list[str]]:
    """Every combination of the values of some overrides, as Hydra's own sweeper makes them."""
    parsed = OverridesParser.create().parse_overrides(overrides)
    choices = [
        [f"{each.get_key_element()}={value}" for value in each.sweep_string_iterator()]
        if each.is_sweep_override()
        else [str(each.input_line)]
        for each in parsed
    ]
    return [list(job) for job in itertools.product(*choices)]


def _values(config: DictConfig) -> dict[str, Any]:
    """The job's own values, resolved, without Hydra's."""
    own = copy.copy(config)
    with open_dict(own):
        del own["hydra"]
    return OmegaConf.to_container(own, resolve=True, throw_on_missing=True)


def _not_here() -> JobReturn:
    """What Hydra is told of a job that a worker ran, or that `plan_only` kept from running."""
    result = JobReturn()
    result.status = JobStatus.COMPLETED
    result.return_value = None
    return result
