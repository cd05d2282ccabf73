"""Settings of the tracking with MLflow; torch-free."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from annotated_types import Ge

from qexp.base.checks import check_bounds
from qexp.config.read_where import ReadWhere


@dataclass(frozen=True, kw_only=True)
class TrackingSettings:
    """Where MLflow's runs go.

    Args:
        enabled: send to MLflow; the journal is written in any case and `python -m qexp.sync` sends it later.
        uri: tracking store or server; None is SQLite at `<runs_dir>/mlflow.db`.
        timeout_s: how long the end of a sweep waits for MLflow to catch up, seconds.
    """

    enabled: bool = True
    uri: Annotated[str | None, ReadWhere("enabled", True)] = None
    timeout_s: Annotated[float, Ge(0), ReadWhere("enabled", True)] = 60.0

    def __post_init__(self) -> None:
        """Check the ranges."""
        check_bounds(self, "tracking")
