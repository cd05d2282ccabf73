"""The results in a browser: python -m qexp.ui [name=NAME] [mlflow=true].

It opens results/index.html, which lists every experiment and is written anew from the tables that are there, or the page of NAME.
mlflow=true, or --mlflow, serves MLflow's UI on runs/mlflow.db instead, at the charts of the experiment NAME, or of the one that
ran last, until Ctrl-C. The path or address is printed in any case; without a display, or with open=false, nothing is opened.

Keys: name, mlflow=false, port=5000 (of MLflow's UI), results_dir=results, runs_dir=runs, open=true.
"""

import os
import signal
import sys
import webbrowser
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from annotated_types import Ge, Le

from qexp.base.console import print_main, print_result, report_error, speaks_json
from qexp.base.errors import UserError, nearest
from qexp.base.keyvalue import run_verb
from qexp.base.preemption import Preempted, listening

DISPLAYS = ("DISPLAY", "WAYLAND_DISPLAY", "BROWSER")  # without any, Linux' browsers are those that fill the terminal
STANDARD_ERROR = 2  # the descriptor


@dataclass(frozen=True, kw_only=True)
class UiSettings:
    """What `qexp.ui` takes.

    Args:
        name: the experiment; None opens the index of all, or in MLflow the one that ran last.
        mlflow: serve MLflow's UI in place of the pages in `results_dir`.
        port: of MLflow's UI.
        results_dir: parent of the folders of reports.
        runs_dir: where MLflow's store lies.
        open: open a browser; false prints the path or address alone.
    """

    name: str | None = None
    mlflow: bool = False
    port: Annotated[int, Ge(1), Le(65535)] = 5000
    results_dir: str = "results"
    runs_dir: str = "runs"
    open: bool = True


def run(settings: UiSettings) -> int:
    """Open a page, or serve MLflow's UI until the user ends it; returns the exit code."""
    if settings.mlflow:
        return _serve(settings)
    if settings.port != UiSettings.port:
        raise UserError("port", settings.port, allowed=f"{UiSettings.port}, as nothing is served", remedy="Add mlflow=true.")
    page = _page(Path(settings.results_dir), settings.name)
    print_result(str(page), page=page)
    _open(page.absolute().as_uri(), settings)
    return 0


def _page(results_dir: Path, name: str | None) -> Path:
    """The page of an experiment, or the index, written anew.

    Raises:
        UserError: there is none.
    """
    from qexp.reporting.index import write_index
    from qexp.reporting.indexed import PAGE, folders

    known = [folder.name for folder in folders(results_dir)]
    if not known:
        remedy = "A sweep writes them: python -m qexp.train bits=4,8 -m"
        raise UserError("results_dir", results_dir, allowed="a folder with results of experiments", remedy=remedy)
    if name is None:
        return write_index(results_dir)
    if name not in known:
        raise UserError("name", name, allowed=known, remedy=nearest(name, known))
    page = results_dir / name / PAGE
    if not page.is_file():
        remedy = f"python -m qexp.report name={name} writes it where the runs are."
        raise UserError("name", name, allowed=f"an experiment with a page at {page}", remedy=remedy)
    return page


def _serve(settings: UiSettings) -> int:
    """Serve MLflow's UI until Ctrl-C."""
    from qexp.tracking.server import ServerFailed, check_port, check_store, experiment_page, serving

    uri = check_store(settings.runs_dir)
    check_port(settings.port)
    try:
        with listening():
            page = experiment_page(uri, settings.name)
            with serving(uri, settings.port, log=STANDARD_ERROR if speaks_json() else None) as (address, server):
                print_result(f"{address}{page}   (Ctrl-C ends it)", address=f"{address}{page}")
                _open(f"{address}{page}", settings)
                code = server.wait()
    except Preempted as stop:
        if stop.signum == signal.SIGINT:  # the way to end it
            return 0
        raise
    except ServerFailed as error:
        report_error(error, f"qexp: {error}.", exit_code=1)
        return 1
    text = f"mlflow ui ended by itself with exit code {code}"
    report_error(text, f"qexp: {text}.", exit_code=1)
    return 1


def _open(address: str, settings: UiSettings) -> None:
    """Open an address where there is something to open it with."""
    if not settings.open:
        return
    if sys.platform != "linux" or any(os.environ.get(name) for name in DISPLAYS):
        webbrowser.open(address)
    else:
        print_main(f"There is no display here to open it on: {address}")


if __name__ == "__main__":
    sys.exit(run_verb(UiSettings, run, __doc__))
