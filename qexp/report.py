"""Tables and figures of one experiment: python -m qexp.report name=NAME [verify=true] [mixed=true] [metrics=[NAMES]].

Keys: name (the experiment), runs_dir=runs, results_dir=results, verify=false, mixed=false, metrics=[], titles=true, pdf=false,
format=text. Evaluations of different protocols (other test images, another number of them, prepared in another way) are
refused unless mixed=true puts them into one table, a letter telling them apart. titles=false draws figures without their
headings, pdf=true writes them as PDF too, for a paper. metrics=[per_class,confusion] adds what stored predictions give beside
the table: Prec@1 of each class, and what is predicted in place of what the float network says. format=latex, markdown or html
prints the tables alone, for a paper or a page. verify=true writes nothing: it recomputes the numbers of the tables in
results_dir/NAME from stored predictions, says which it could not, and ends with 1 where one is another.
"""

import sys
from dataclasses import dataclass, field
from pathlib import Path

from qexp.base.console import print_main, print_result
from qexp.base.errors import choose
from qexp.base.keyvalue import run_verb
from qexp.base.places import check_folder
from qexp.base.table import RENDERERS
from qexp.tracking.journal import find_journal


@dataclass(frozen=True, kw_only=True)
class ReportSettings:
    """What `qexp.report` takes.

    Args:
        name: the experiment.
        runs_dir: where journals and predictions lie.
        results_dir: parent of the folder that is written.
        verify: write nothing, and recompute the numbers of the tables.
        mixed: put evaluations of different protocols into one table.
        metrics: `per_class`, `confusion`: tables and figures of stored predictions.
        titles: figures have headings; false for a paper, whose captions say it.
        pdf: figures as PDF beside PNG and SVG.
        format: of what is printed: all of it as `text`, or the tables alone as `latex` (with booktabs), `markdown` or `html`.
    """

    name: str
    runs_dir: str = "runs"
    results_dir: str = "results"
    verify: bool = False
    mixed: bool = False
    metrics: list[str] = field(default_factory=list)
    titles: bool = True
    pdf: bool = False
    format: str = "text"


def run(settings: ReportSettings) -> int:
    """Write the report and print its table, or verify the one that is written; returns the exit code."""
    if settings.verify:
        from qexp.reporting.statistics.verify import verify_tables

        result = verify_tables(settings.name, runs_dir=Path(settings.runs_dir), results_dir=Path(settings.results_dir))
        recomputed = sum(result.equal.values())
        print_result(*result.lines, name=settings.name, equal=recomputed, wrong=result.wrong, left=result.left)
        return 1 if result.wrong else 0
    choose("format", settings.format, ["text", *RENDERERS])
    check_folder("results_dir", settings.results_dir, settings.name)
    find_journal(settings.runs_dir, settings.name)
    from qexp.reporting.report import write_report  # pandas takes seconds, and none of the above needs it

    runs_dir, results_dir = Path(settings.runs_dir), Path(settings.results_dir)
    written = write_report(
        settings.name,
        runs_dir=runs_dir,
        results_dir=results_dir,
        mixed=settings.mixed,
        metrics=settings.metrics,
        titles=settings.titles,
        pdf=settings.pdf,
    )
    if settings.format == "text":
        print_main(written.table, "")
        print_result(written.where("tables and figures"), *written.places, **written.as_event())
    else:
        text = "\n\n".join(RENDERERS[settings.format](table) for table in written.rounded)
        print_result(text, **written.as_event(), text=text)
    return 0


if __name__ == "__main__":
    sys.exit(run_verb(ReportSettings, run, __doc__))
