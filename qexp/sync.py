"""Send to MLflow whatever it missed: python -m qexp.sync [name=NAME].

Keys: name (all experiments unless given), uri (SQLite at <runs_dir>/mlflow.db unless given), runs_dir=runs.
"""

import sys
from dataclasses import dataclass
from pathlib import Path

from qexp.base.console import print_result
from qexp.base.keyvalue import run_verb


@dataclass(frozen=True, kw_only=True)
class SyncSettings:
    """What `qexp.sync` takes.

    Args:
        name: the experiment; None takes all.
        uri: tracking store or server; None is SQLite at `<runs_dir>/mlflow.db`.
        runs_dir: where the journals lie.
    """

    name: str | None = None
    uri: str | None = None
    runs_dir: str = "runs"


def run(settings: SyncSettings) -> None:
    """Replay the journals, and print what was sent."""
    from qexp.config.tracking import TrackingSettings
    from qexp.tracking.sync import sync

    lines = sync(settings.name, runs_dir=Path(settings.runs_dir), settings=TrackingSettings(uri=settings.uri))
    print_result(*lines, text="\n".join(lines))


if __name__ == "__main__":
    sys.exit(run_verb(SyncSettings, run, __doc__))
