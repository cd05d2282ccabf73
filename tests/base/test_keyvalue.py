import json
import os
import signal
import sys
from dataclasses import dataclass

import pytest

from qexp.base.checks import check_range
from qexp.base.errors import UserError, UserErrors
from qexp.base.keyvalue import parse, run_verb


@dataclass(frozen=True, kw_only=True)
class Settings:
    name: str
    count: int = 1
    uri: str | None = None
    verify: bool = False

    def __post_init__(self):
        check_range("count", self.count, 1)


def test_values_have_their_types():
    assert parse(Settings, ["name=x", "count=3", "verify=true", "uri=null"]) == Settings(name="x", count=3, verify=True)


def test_a_switch_may_be_typed_as_a_flag():
    assert parse(Settings, ["name=x", "--verify"]) == parse(Settings, ["name=x", "verify=true"])
    for argument in ("--count", "--name", "--verify=true", "verify"):
        with pytest.raises(UserErrors, match="Write KEY=VALUE|Did you mean"):
            parse(Settings, ["name=x", argument])


@pytest.mark.parametrize("text", ["12345678", "1e234567", "0012", "true", "a,b", "[a", "a=b"])
def test_texts_are_taken_as_typed(text):
    assert parse(Settings, [f"name={text}"]).name == text


def test_all_mistakes_at_once():
    with pytest.raises(UserErrors) as raised:
        parse(Settings, ["nam=x", "count", "--verbose"])
    first, second, third = map(str, raised.value.errors)
    assert first.startswith("nam=") and "one of name, count, uri, verify" in first and "Did you mean name?" in first
    assert second.startswith("count=") and third.startswith("--verbose=")


@pytest.mark.parametrize(
    "arguments, message",
    [
        ([], "name=(missing)"),
        (["name="], "name=None"),
        (["name=x", "count=many"], "count=many: allowed is a valid integer"),
        (["name=x", "verify=perhaps"], "verify=perhaps"),
        (["name=x", "count=0"], "count=0: allowed is an integer of at least 1"),
    ],
)
def test_wrong_values(arguments, message):
    with pytest.raises(UserErrors) as raised:
        parse(Settings, arguments)
    assert str(raised.value).startswith(message)


def test_exit_codes(monkeypatch, capsys):
    def run(settings):
        if settings.count == 2:
            raise UserError("name", settings.name, allowed="another")
        return None

    for arguments, code in ((["name=x"], 0), (["name=x", "count=2"], 2), (["nme=x"], 2), (["--help"], 0), (["-h"], 0)):
        monkeypatch.setattr(sys, "argv", ["qexp.verb", *arguments])
        assert run_verb(Settings, run, "Does things.") == code
    out, err = capsys.readouterr()
    assert out.count("Does things.") == 2
    assert "qexp: name=x: allowed is another" in err and "Traceback" not in err


def test_the_users_folder(monkeypatch):
    monkeypatch.setenv("HOME", "/home/ann")
    assert parse(Settings, ["name=a", "uri=~/runs"]).uri == "/home/ann/runs"


@pytest.mark.parametrize(("signum", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_is_an_event_and_no_traceback(signum, code, monkeypatch, capsys):
    before = signal.getsignal(signum)
    monkeypatch.setattr("sys.argv", ["qexp.verb", "name=x", "--json"])
    assert run_verb(Settings, lambda settings: os.kill(os.getpid(), signum), "") == code
    out, err = capsys.readouterr()
    assert json.loads(out)["exit_code"] == code and err.count("\n") == 1 and f"stopped by {signum.name}" in err
    assert signal.getsignal(signum) == before
