"""`python -m qexp.analyze`: the job is checked, then its task runs."""

from __future__ import annotations

from collections.abc import Mapping

from qexp.analysis import allocation, profile, sensitivity, shrink
from qexp.base.errors import UserError
from qexp.config.launcher import check_single, launcher_settings
from qexp.config.search_space import candidates
from qexp.experiment.prepare import with_preprocessing
from qexp.sweep.check import check
from qexp.sweep.check_read import check_read
from qexp.sweep.ranks import Ranks
from qexp.sweep.types import Composed
from qexp.tracking.record import Sweep

TASKS = {"profile": profile.run, "sensitivity": sensitivity.run, "allocate": allocation.run, "shrink": shrink.run}


def run(composed: Composed, sweep: Sweep, typed: Mapping[str, str], ranks: Ranks) -> None:
    """Check one job and answer its question.

    Args:
        composed: as Hydra left it.
        sweep: of the command.
        typed: settings that were typed, as typed.
        ranks: none but this process.

    Raises:
        UserErrors, UserError: something is wrong with the job; nothing was written.
    """
    if composed.is_sweep:
        remedy = "Give each key one value, without -m."
        raise UserError("-m", "given", allowed="a single job for qexp.analyze", remedy=remedy)
    check_single(launcher_settings(composed.launcher))
    config = with_preprocessing(check(composed.jobs, sweep.verb)[0])
    # A setting of task=shrink has to be read by one of its candidates.
    check_read([one.config for one in candidates(config)] if config.task == "shrink" else [config], typed, sweep.verb)
    assert config.task is not None, "the check refuses a job without a task"
    TASKS[config.task](config, sweep)
