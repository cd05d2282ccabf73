"""`qexp.ui`: what it opens, prints and refuses. tests/integration/test_mlflow_ui.py starts MLflow's server."""

import socket
import sys
import webbrowser
from pathlib import Path

import pytest

from qexp import ui
from qexp.base.keyvalue import run_verb

ROW = "training,variant,prec1,n,data,model\nt,W8 int,90.5,1000,set,net\n"


@pytest.fixture
def opened(monkeypatch):
    """The addresses that a browser was asked for, on a machine with a display."""
    addresses = []
    monkeypatch.setattr(webbrowser, "open", addresses.append)
    monkeypatch.setenv("DISPLAY", ":0")
    return addresses


@pytest.fixture
def give(monkeypatch, capsys):
    """Run a command line: `give("name=x")` -> code, out, err."""

    def run(*words):
        monkeypatch.setattr(sys, "argv", ["qexp.ui", *words])
        return run_verb(ui.UiSettings, ui.run, ui.__doc__), *capsys.readouterr()

    return run


def experiment(name, page=True):
    folder = Path("results", name)
    folder.mkdir(parents=True)
    (folder / "table.csv").write_text(ROW)
    if page:
        (folder / "report.html").write_text("")


def test_it_opens_the_index_or_a_page(opened, give):
    experiment("one")
    assert give() == (0, "results/index.html\n", "")
    assert "W8 int" in Path("results/index.html").read_text(encoding="utf-8")
    assert give("name=one") == (0, "results/one/report.html\n", "")
    assert opened == [Path(path).absolute().as_uri() for path in ("results/index.html", "results/one/report.html")]


def test_it_prints_alone_where_asked_and_where_there_is_no_display(opened, give, monkeypatch):
    experiment("one")
    assert give("open=false")[:2] == (0, "results/index.html\n") and opened == []
    for name in ui.DISPLAYS:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(sys, "platform", "linux")
    code, out, _ = give()
    assert code == 0 and opened == []
    address = Path("results/index.html").absolute().as_uri()
    assert out.splitlines() == ["results/index.html", f"There is no display here to open it on: {address}"]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["name=oen"], "Did you mean one?"),
        (["name=two"], "an experiment with a page at results/two/report.html"),
        (["results_dir=nowhere"], "results_dir=nowhere: allowed is a folder with results"),
        (["port=0"], "port=0"),
        (["port=5077"], "port=5077: allowed is 5000, as nothing is served. Add mlflow=true."),
        (["mlflow=true"], "runs_dir=runs: allowed is a folder with MLflow's store"),
        (["nam=x"], "Did you mean name?"),
    ],
)
def test_mistakes_are_one_message(opened, give, words, said):
    experiment("one")
    experiment("two", page=False)
    code, out, err = give(*words)
    assert code == 2 and out == "" and said in err and len(err.splitlines()) == 1 and opened == []
    assert not Path("runs").exists() and not Path("nowhere").exists()


def test_a_port_that_is_taken(give):
    Path("runs").mkdir()
    Path("runs/mlflow.db").write_bytes(b"")
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        code, out, err = give("mlflow=true", f"port={port}")
    assert code == 2 and out == "" and f"port={port}: allowed is a free port" in err and len(err.splitlines()) == 1
