"""`python -m qexp.analyze`: the job is checked, then its task runs."""

from __future__ import annotations

from typing import Any

from qexp.pipeline import allocate, profile, sensitivity
from qexp.pipeline.check import Sweep, check, check_read
from qexp.pipeline.check_analysis import check_analysis_read


def run(values: dict[str, Any], sweep: Sweep) -> None:
    """Check one job and answer its question.

    Args:
        values: resolved. sweep: where they come from.

    Raises:
        UserErrors, UserError: something is wrong with the job; nothing was written.
    """
    config = check([values], sweep.verb)[0]
    check_read([config], sweep.command)
    check_analysis_read(config, sweep.command)
    if config.task == "profile":
        profile.run(config, sweep)
    elif config.task == "sensitivity":
        sensitivity.run(config, sweep)
    else:
        allocate.run(config, values, sweep)
