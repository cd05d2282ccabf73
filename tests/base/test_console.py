"""What is printed when nobody reads."""

import os

from qexp.base.console import print_main, warn_main


def deaf():
    """A stream whose reader has left."""
    read, write = os.pipe()
    os.close(read)
    return os.fdopen(write, "w")


def test_a_reader_that_left_is_said_once_and_nothing_fails(monkeypatch, capsys):
    with deaf() as stream:
        monkeypatch.setattr("sys.stdout", stream)
        print_main("first", "second")
        print_main("third")
        stream.write("what a user's code prints")
    assert capsys.readouterr().err.count("standard output takes no more") == 1


def test_standard_error_may_be_gone_too(monkeypatch):
    with deaf() as out, deaf() as err:
        monkeypatch.setattr("sys.stdout", out)
        monkeypatch.setattr("sys.stderr", err)
        print_main("first")
        warn_main("second")
