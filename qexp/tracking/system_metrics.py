"""What the machine does while a network is trained or evaluated, by MLflow's own monitor: processor, memory, disk, network, GPUs.

These numbers are no results: they go to MLflow alone. The journal has none of them, so `qexp.sync` brings none back to a store
that was deleted. Rejected: `mlflow.enable_system_metrics_logging`, which follows the runs of MLflow's fluent interface; these are
opened by its client.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from qexp.tracking.process import Process
from qexp.tracking.rows import Row

if TYPE_CHECKING:
    from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor


class SystemMetrics:
    """The monitors of the runs that one process opened; every call may raise what MLflow raises.

    Args:
        uri: of MLflow's store.
        enabled: False monitors nothing.
        owner: that process, of this machine.
    """

    def __init__(self, uri: str, *, enabled: bool, owner: Process) -> None:
        self._uri, self._enabled, self._owner = uri, enabled, owner
        self._monitors: dict[str, SystemMetricsMonitor] = {}  # by key of the run

    def begin(self, row: Row, id_of: Callable[[str], str]) -> None:
        """Monitor from now on, where the run is that of a training or a checkpoint, and of the owner.

        Args:
            row: of the run, whoever sent it to MLflow.
            id_of: gives MLflow's id of a run by its key.
        """
        key = row["run"]
        if not self._enabled or key in self._monitors or row["parent"] is not None or not self._owns(row):
            return
        from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor

        self._monitors[key] = SystemMetricsMonitor(id_of(key), resume_logging=True, tracking_uri=self._uri)
        self._monitors[key].start()

    def end(self, key: str) -> None:
        """Send what was measured of a run, before it is ended in MLflow."""
        if monitor := self._monitors.pop(key, None):
            monitor.finish()

    def end_all(self) -> None:
        """The same for all runs that are still on."""
        for key in list(self._monitors):
            self.end(key)

    def _owns(self, row: Row) -> bool:
        """True for a run that the owner opened, and did not find in the journal of another."""
        process = row.get("process")
        return process is not None and Process(process["host"], process["pid"], process["start"]) == self._owner
