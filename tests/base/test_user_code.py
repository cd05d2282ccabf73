"""Functions named on the command line."""

import sys

import pytest

from qexp.base.errors import UserError
from qexp.base.user_code import call_factory, exits_are_errors, load_factory


def test_module_and_file(tmp_path):
    assert load_factory("data.factory", "qexp.base.user_code:load_factory") is load_factory
    (tmp_path / "neighbour_of_mine.py").write_text("VALUE = 7\n")
    path = tmp_path / "mine.v2.py"
    path.write_text("from neighbour_of_mine import VALUE\n\ndef make():\n    return VALUE\n")
    make = load_factory("data.factory", f"{path}:make")
    assert make() == 7
    assert load_factory("data.factory", f"{path}:make") is make
    assert sys.modules[make.__module__].make is make
    path.write_text("def make():\n    return 8\n")
    assert load_factory("data.factory", f"{path}:make")() == 8


def test_relative_file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.py").write_text("def make():\n    return 1\n")
    assert load_factory("data.factory", "mine.py:make")() == 1


@pytest.mark.parametrize("text", ["", "module", ":f", "module:", "module:f()", "a b:c d"])
def test_malformed(text):
    with pytest.raises(UserError, match="package.module:function or file.py:function"):
        load_factory("data.factory", text)


def test_not_found(tmp_path):
    for text, message in [
        ("qexp.no_such_room:f", "no module qexp.no_such_room"),
        ("no_such_package.deep.er:f", "no module no_such_package on"),
        ("qexp.base.user_code:load_factor", "Did you mean load_factory?"),
        ("qexp.base.user_code:xyz", "It has: "),
        (f"{tmp_path}/none.py:f", "There is no file"),
        ("qexp.tracking.record:FLOAT_VARIANT", "of type str"),
    ]:
        with pytest.raises(UserError, match=message):
            load_factory("data.factory", text)


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("import no_such_package\n", r"ModuleNotFoundError.*broken.py:1"),
        ("x = 1\ny = x / 0\n", r"ZeroDivisionError: .*broken.py:2"),
        ("def make(:\n", r"SyntaxError.*broken.py:1"),
    ],
)
def test_code_that_fails_on_import(tmp_path, code, message):
    path = tmp_path / "broken.py"
    path.write_text(code)
    with pytest.raises(UserError, match=message):
        load_factory("data.factory", f"{path}:make")
    path.write_text("def make():\n    return 1\n")
    assert load_factory("data.factory", f"{path}:make")() == 1


def test_call_passes_what_is_taken(tmp_path):
    (tmp_path / "mine.py").write_text(
        "def none():\n    return {}\n"
        "def one(*, a, extra=2):\n    return {'a': a}\n"
        "def all(**rest):\n    return rest\n"
        "def much(a, /, b, c):\n    return {}\n"
    )
    offered = {"a": 1, "b": 2}
    calls = {name: call_factory("k", f"{tmp_path}/mine.py:{name}", offered=offered) for name in ("none", "one", "all")}
    assert calls == {"none": {}, "one": {"a": 1}, "all": offered}
    with pytest.raises(UserError, match="nothing but a, b. Give a, c a default"):
        call_factory("k", f"{tmp_path}/mine.py:much", offered=offered)


@pytest.mark.parametrize("leave", ["raise SystemExit", "import sys; sys.exit(0)", "raise KeyboardInterrupt"])
def test_a_file_that_leaves_python_is_a_mistake_of_its_own(tmp_path, leave):
    (tmp_path / "at_import.py").write_text(f"{leave}\ndef make(): pass\n")
    (tmp_path / "when_called.py").write_text(f"def make():\n    {leave}\n")
    with pytest.raises(UserError, match=r"Importing it raised (SystemExit|KeyboardInterrupt).*at_import.py:1"):
        load_factory("model.factory", f"{tmp_path}/at_import.py:make")
    with pytest.raises(UserError, match=r"Calling it raised (SystemExit|KeyboardInterrupt).*when_called.py:2"):
        call_factory("model.factory", f"{tmp_path}/when_called.py:make", offered={})


def test_leaving_python_later_is_an_error():
    with pytest.raises(RuntimeError, match=r"code of yours called sys.exit\(0\)"), exits_are_errors():
        sys.exit(0)
