"""Settings of the tracking with MLflow; torch-free."""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from typing import Annotated

from annotated_types import Ge

from qexp.base.checks import check_bounds
from qexp.base.errors import UserError
from qexp.config.read_where import ReadWhere


@dataclass(frozen=True, kw_only=True)
class TrackingSettings:
    """Where MLflow's runs go.

    Args:
        enabled: send to MLflow; the journal is written in any case and `python -m qexp.sync` sends it later.
        uri: tracking store or server; None is SQLite at `<runs_dir>/mlflow.db`.
        timeout_s: how long the end of a sweep waits for MLflow to catch up, seconds.
        system_metrics: send what processor, memory, disk, network and GPUs do meanwhile, every ten seconds, as MLflow's own
            monitor measures it (needs psutil).
    """

    enabled: bool = True
    uri: Annotated[str | None, ReadWhere("enabled", True)] = None
    timeout_s: Annotated[float, Ge(0), ReadWhere("enabled", True)] = 60.0
    system_metrics: Annotated[bool, ReadWhere("enabled", True)] = False

    def __post_init__(self) -> None:
        """Check the ranges, and that what measures the machine is there."""
        check_bounds(self, "tracking")
        if self.enabled and self.system_metrics and importlib.util.find_spec("psutil") is None:
            allowed, remedy = "false where the package psutil is not installed", "pip install 'qexp[system]' brings it."
            raise UserError("tracking.system_metrics", self.system_metrics, allowed=allowed, remedy=remedy)
