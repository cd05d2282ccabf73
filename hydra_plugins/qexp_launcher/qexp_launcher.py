"""Hydra's launcher for qexp: jobs that share a training become one job.

Hydra composes one job per combination of the swept values. Launched one by one they would train the same network again for
every bit width. This launcher receives all of them, has them validated before anything starts, groups them by what they
train, and launches one merged job per group.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hydra.core.config_store import ConfigStore
from hydra.core.utils import JobReturn, JobStatus, configure_log, run_job, setup_globals
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf, open_dict

# Hydra finds a launcher by this class path; the only `_target_` of the project. A plain dict: Hydra executes plugin modules
# without registering them, where a dataclass cannot resolve its annotations.
_NODE = {"_target_": "hydra_plugins.qexp_launcher.qexp_launcher.QexpLauncher"}
ConfigStore.instance().store(group="hydra/launcher", name="qexp", node=_NODE, provider="qexp")


class QexpLauncher(Launcher):
    """Validate all jobs, group them by training, run one merged job per group in this process."""

    def __init__(self) -> None:
        self.config: DictConfig | None = None
        self.task_function: TaskFunction | None = None
        self.hydra_context: HydraContext | None = None

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Hydra's hook: keep what `launch` needs."""
        self.config, self.task_function, self.hydra_context = config, task_function, hydra_context

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        """Compose every job, hand their values to the story, and run the groups that it asks for."""
        from qexp.pipeline import entry, story

        setup_globals()
        configure_log(self.config.hydra.hydra_logging, self.config.hydra.verbose)
        Path(str(self.config.hydra.sweep.dir)).mkdir(parents=True, exist_ok=True)
        composed = [self._compose(overrides, initial_job_idx + k) for k, overrides in enumerate(job_overrides)]
        values = [_values(config) for config in composed]
        returns: list[JobReturn | None] = [None] * len(composed)

        def launch_group(positions: Sequence[int]) -> None:
            merged = copy.deepcopy(composed[positions[0]])
            with open_dict(merged):
                merged.jobs = [values[position] for position in positions]
            result = run_job(
                hydra_context=self.hydra_context,
                task_function=self.task_function,
                config=merged,
                job_dir_key="hydra.sweep.dir",
                job_subdir_key="hydra.sweep.subdir",
            )
            for position in positions:
                returns[position] = result
            if result.status == JobStatus.FAILED:
                raise result._return_value  # the property would print Hydra's own line before it raises the same

        story.run_sweep(values, entry.sweep(), launch=launch_group)
        return [result if result is not None else _not_run() for result in returns]

    def _compose(self, overrides: Sequence[str], number: int) -> DictConfig:
        config = self.hydra_context.config_loader.load_sweep_config(self.config, list(overrides))
        with open_dict(config):
            config.hydra.job.id = number
            config.hydra.job.num = number
        return config


def _values(config: DictConfig) -> dict[str, Any]:
    """The job's own values, resolved, without Hydra's."""
    own = copy.copy(config)
    with open_dict(own):
        del own["hydra"]
    return OmegaConf.to_container(own, resolve=True, throw_on_missing=True)


def _not_run() -> JobReturn:
    """What Hydra is told of a job that `plan_only` kept from running."""
    result = JobReturn()
    result.status = JobStatus.COMPLETED
    result.return_value = None
    return result
