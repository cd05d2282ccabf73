"""Questions about one checkpoint: python -m qexp.analyze task=profile checkpoint=FILE bits=4."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from qexp.sweep.main import run_command_line

if TYPE_CHECKING:
    from qexp.config.root import Config
    from qexp.sweep.jobs import JobLog
    from qexp.sweep.ranks import Ranks
    from qexp.sweep.types import Composed


def main() -> int:
    """Run one command line; returns the exit code."""
    return run_command_line("analyze", "analyze", _run)


def _run(composed: Composed, configs: Sequence[Config], log: JobLog, ranks: Ranks) -> None:
    from qexp.analysis.run import run  # only now, so that `--help` needs no torch

    run(composed, configs, log, ranks)


if __name__ == "__main__":
    sys.exit(main())
