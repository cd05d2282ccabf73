"""The verb: what it writes, what it prints, what it refuses."""

import csv
import sys
from pathlib import Path

import pytest

from qexp import study
from qexp.base.keyvalue import parse, run_verb
from qexp.config.study import StudySettings
from qexp.studies import scalar
from qexp.studies.outcome import Bars, Check, Outcome


@pytest.fixture
def verb(monkeypatch, capsys):
    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["qexp.study", *arguments])
        return run_verb(StudySettings, study.run, study.__doc__), *capsys.readouterr()

    return run


def read(path: Path) -> list[dict[str, str]]:
    with open(path, newline="") as handle:
        return list(csv.DictReader(handle))


def outcome(passed: bool) -> Outcome:
    return Outcome(
        headline="One is two.",
        subject="nothing",
        rows=({"a": 1, "b": 0.5, "c": None}, {"a": 2, "b": 1.0, "c": "x|y"}),
        shown=("a", "c"),
        checks=(Check(name="claim", expected="two", measured="one", passed=passed, n=12),),
        figures=(Bars(stem="bars", title="t", x_label="x", values={"p": 1.0, "q": 2.0}, marked={"m": 1.5}),),
        notes=("A note.",),
    )


@pytest.mark.parametrize("passed", [True, False])
def test_files_and_exit_code(verb, monkeypatch, passed):
    monkeypatch.setattr(scalar, "run", lambda settings: outcome(passed))
    code, out, _ = verb("name=scalar", "checkpoint=far/away/net.pt")
    folder = Path("results/scalar")
    assert code == (0 if passed else 1) and ("pass" if passed else "FAIL") in out and "One is two." in out
    assert [row["c"] for row in read(folder / "table.csv")] == ["", "x|y"]
    (check,) = read(folder / "checks.csv")
    assert check["expected"] == "two" and check["n"] == "12"
    text = (folder / "table.md").read_text()
    assert "x\\|y" in text and "- A note." in text and "checkpoint=net.pt" in text and "far/away" not in text
    assert (folder / "figures" / "bars.png").stat().st_size > 1000 and (folder / "figures" / "bars.svg").exists()


def test_fixed_point_by_the_command_line(verb):
    code, out, _ = verb("name=fixed_point")
    assert code == 0 and "a bundled digit" in out and "128 / 2 = 64" in out
    assert {path.name for path in Path("results/fixed_point/figures").iterdir()} == {
        f"frame_{side}.{kind}" for side in ("min", "max") for kind in ("png", "svg")
    }


def test_refusals(verb):
    code, _, err = verb("name=seed_puzle")
    assert code == 2 and "seed_puzzle" in err
    code, _, err = verb("name=scalar", "data.rot=x")
    assert code == 2 and "Did you mean data.root?" in err
    code, _, err = verb("name=scalar", "num_images=0")
    assert code == 2 and "num_images=0" in err


def test_dotted_keys():
    settings = parse(StudySettings, ["name=x", "data.root=12", "data.mean=[0.5,0.25,0.125]", "data.num_calib=7"])
    assert settings.data.root == "12" and settings.data.mean == [0.5, 0.25, 0.125] and settings.data.num_calib == 7
    assert settings.data.std == [0.229, 0.224, 0.225]
