"""`python -m qexp.analyze`: the task of its job runs."""

from __future__ import annotations

from collections.abc import Sequence

from qexp.analysis import allocation, profile, sensitivity, shrink
from qexp.config.launcher import check_single, launcher_settings
from qexp.config.root import Config
from qexp.experiment.prepare import with_preprocessing
from qexp.sweep.jobs import JobLog
from qexp.sweep.ranks import Ranks
from qexp.sweep.types import Composed

TASKS = {"profile": profile.run, "sensitivity": sensitivity.run, "allocate": allocation.run, "shrink": shrink.run}


def run(composed: Composed, configs: Sequence[Config], log: JobLog, ranks: Ranks) -> None:
    """Answer the question of one job.

    Args:
        composed: as Hydra left it.
        configs: of its one job, checked.
        log: of the same job; its command is the analysis'.
        ranks: none but this process.

    Raises:
        UserErrors, UserError: something is wrong with the job; nothing was written.
    """
    check_single(launcher_settings(composed.launcher))
    config = with_preprocessing(configs[0])
    assert config.task is not None, "the check refuses a job without a task"
    TASKS[config.task](config, log.sweep)
