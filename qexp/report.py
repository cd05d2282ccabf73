"""Tables and figures of one experiment: python -m qexp.report name=NAME.

Keys: name (the experiment), runs_dir=runs, results_dir=results.
"""

import sys
from dataclasses import dataclass
from pathlib import Path

from qexp.pipeline.verbs import run_verb


@dataclass(frozen=True, kw_only=True)
class ReportSettings:
    """What `qexp.report` takes."""

    name: str
    runs_dir: str = "runs"
    results_dir: str = "results"


def run(settings: ReportSettings) -> None:
    """Write the report and print its table."""
    from qexp.reporting.report import write_report

    written = write_report(settings.name, runs_dir=Path(settings.runs_dir), results_dir=Path(settings.results_dir))
    print(f"{written.table}\n\ntables and figures: {written.folder}/")


if __name__ == "__main__":
    sys.exit(run_verb(ReportSettings, run, __doc__))
