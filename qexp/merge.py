"""Stores of several machines become one: python -m qexp.merge from=[DIR,DIR,...] into=DIR [report=false].

Keys: from (folders that hold runs/ and results/, or one of these themselves), into (the folder that gets both), report=true. The
union of trainings, evaluations, predictions, exported files and journals is a function of what is in them: their order does not
matter, what is equal is kept once, and where two stores have other numbers for one measurement both are named, nothing is
written, and the exit code is 2. What into holds already is part of the union, so a merge that was stopped goes on with the same
command, and so does one whose sources have grown. Sources are not changed. report=false writes no tables and figures.
"""

import sys
from dataclasses import dataclass, field
from pathlib import Path

from qexp.base.console import print_main, print_result
from qexp.base.errors import UserError
from qexp.base.keyvalue import run_verb
from qexp.base.places import check_folder
from qexp.base.text import counted


@dataclass(frozen=True, kw_only=True)
class MergeSettings:
    """What `qexp.merge` takes.

    Args:
        from_: `from`: the folders whose union is wanted.
        into: the folder that gets it.
        report: write tables, figures and page of each experiment again.
    """

    from_: list[str] = field(default_factory=list)
    into: str
    report: bool = True


def run(settings: MergeSettings) -> None:
    """Merge, and say what became of it."""
    from qexp.merging.merge import Merged, merge

    check_folder("into", settings.into, "runs")
    merged: Merged = merge(settings.from_, settings.into, results=settings.report)
    assert merged.into.runs is not None and merged.into.results is not None
    what = [counted(merged.num_trainings, "training"), counted(merged.num_evaluations, "evaluation")]
    done = f"{counted(merged.num_written, 'file')} written" if merged.num_written else "nothing to do, all of it was there"
    lines = [f"{settings.into}: {', '.join(what)}; {done}"]
    lines += [f"  {name}: {counted(count, 'record')}" for name, count in merged.num_records.items()]
    made = _write_reports(list(merged.num_records), merged.into.runs, merged.into.results) if settings.report else set()
    others = [path for path in merged.left_out if merged.into.results / path not in made]
    if others:
        lines.append(f"left out, as they differ and are made again by qexp.analyze and qexp.export: {', '.join(others)}")
    print_result(
        *lines,
        folder=settings.into,
        trainings=merged.num_trainings,
        evaluations=merged.num_evaluations,
        written=merged.num_written,
        records=merged.num_records,
        left_out=others,
    )
    if merged.num_records:
        print_main(f"MLflow: python -m qexp.sync runs_dir={merged.into.runs}")


def _write_reports(names: list[str], runs_dir: Path, results_dir: Path) -> set[Path]:
    """Write the report of each experiment that has one, and the index of all; returns the files."""
    from qexp.reporting.index import write_index
    from qexp.reporting.report import write_report

    files: set[Path] = set()
    for name in names:
        try:
            report = write_report(name, runs_dir=runs_dir, results_dir=results_dir)
        except UserError as error:
            print_main(f"  {name}: no report: {error}")
            continue
        files |= {*report.tables, *report.figures}
    if results_dir.is_dir():
        print_main(f"index: {write_index(results_dir)}")
    return files


if __name__ == "__main__":
    sys.exit(run_verb(MergeSettings, run, __doc__))
