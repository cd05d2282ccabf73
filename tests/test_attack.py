"""scripts/attack.py: what it calls a failure, and a part of its commands in this process."""

import contextlib
import importlib
import io
import os
import runpy
import sys
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import pytest
from annotated_types import Gt, Le

SCRIPTS = Path(__file__).parents[1] / "scripts"
# Kinds of commands that take but a moment; those of the small commands and slips of the pen take none.
RUN = {
    "train": ("typo", "wrong type", "out of range", "null", "list", "YAML", "function", "place", "checkpoint", "sweep"),
    "evaluate": ("typo", "out of range"),
    "export": ("typo", "null"),
    "analyze": ("typo", "list"),
}


@pytest.fixture(scope="module")
def attack():
    """The script as a module."""
    before = list(sys.path)
    sys.path.append(str(SCRIPTS))
    module = importlib.import_module("attack")
    yield module
    sys.path[:] = before


@pytest.fixture(scope="module")
def ground(attack, tmp_path_factory):
    """A working folder that is as it was before each command."""
    folder = tmp_path_factory.mktemp("attack")
    importlib.import_module("attack_files").make_template(folder / "template")
    return attack.Ground(folder / "template", folder / "work")


@pytest.fixture
def run(ground, monkeypatch):
    """Runs a command in this process."""

    def run(one):
        monkeypatch.chdir(ground.folder)
        monkeypatch.setattr("sys.argv", ["qexp", *one.words])
        said = io.StringIO()
        with (
            contextlib.redirect_stdout(said),
            contextlib.redirect_stderr(said),
            warnings.catch_warnings(action="ignore"),
            pytest.raises(SystemExit) as ended,
        ):
            runpy.run_module(f"qexp.{one.verb}", run_name="__main__")
        os.environ.pop("HYDRA_FULL_ERROR", None)
        return ended.value.code, said.getvalue()

    return run


def some(attack, template):
    """Commands of every verb and of many kinds, from another place of their list each."""
    alike = {}
    for one in attack.all_attacks(template):
        kinds = RUN.get(one.verb, ("typo", "wrong type", "null", "list"))
        if one.kind in kinds and (one.want == "refused" or one.kind == "sweep"):
            alike.setdefault((one.verb, one.kind), []).append(one)
    for turn, ((verb, kind), ones) in enumerate(alike.items()):
        yield ones[17 * turn % len(ones)]
        if (kind == "typo" or verb in attack.SMALL) and len(ones) > 1:
            yield ones[(17 * turn + 1) % len(ones)]


def test_a_part_of_the_commands(attack, ground, run):
    chosen = list(some(attack, ground.template))
    assert len(chosen) >= 35 and {one.verb for one in chosen} == set(attack.BASE)
    assert {str(one): why for one in chosen if (why := ground.try_one(one, run))} == {}


RIGHT = "qexp: nothing was started.\n  bits=99: allowed is an integer from 1 to 16\n"


@pytest.mark.parametrize(
    ("answer", "left", "why"),
    [
        ((2, RIGHT), [], ""),
        ((0, ""), [], "accepted"),
        ((1, RIGHT), [], "exit code 1"),
        ((None, ""), [], "no end"),
        ((2, f"{RIGHT}Traceback (most recent call last)"), [], "traceback"),
        ((2, RIGHT), ["runs"], "left behind: ['runs']"),
        ((2, RIGHT.replace("bits", "bit")), [], "does not name bits"),
        ((2, RIGHT.replace("99", "98")), [], "does not name 99"),
        ((2, "qexp: nothing was started.\n  bits=99\n"), [], "neither what is allowed nor a remedy"),
        ((2, RIGHT + 10 * "more\n"), [], "11 lines of message"),
    ],
)
def test_what_is_a_failure(attack, answer, left, why):
    wrong = attack.Attack("train", "out of range", ("bits=99",), "refused", "bits", ("99",))
    judged = attack.judge(wrong, answer, left)
    assert judged.startswith(why) and bool(judged) == bool(why)


def test_what_is_right_must_pass(attack):
    right = attack.Attack("train", "sweep", ("bits=4,8", "-m", "plan_only=true"), "lawful", "bits")
    assert attack.judge(right, (0, "planned"), []) == ""
    assert attack.judge(right, (2, RIGHT), []).startswith("refused") and attack.judge(right, (0, ""), ["runs"])


def test_a_new_key_is_attacked(attack):
    cases = importlib.import_module("attack_cases")

    @dataclass
    class Later:
        names: list[str]
        pair: Literal["a", "b"] | None = None
        share: Annotated[float, Gt(0), Le(1)] | None = 0.5

    tried = {key.name: {one.words[-1]: one.want for one in cases.attacks_on("sync", key)} for key in cases.keys_of(Later)}
    assert tried["share"] == {
        **dict.fromkeys(("share=text", "share=true", "share={a: 1}", "share=[1,2]", "share=nan", "share=inf"), "refused"),
        **{"share=0": "refused", "share=2": "refused", "share=null": "either", "shaer=5": "refused"},
    }
    assert tried["pair"]["pair=nosuch"] == tried["names"]["names=null"] == tried["names"]["names=[[1]]"] == "refused"
