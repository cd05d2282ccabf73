"""The exit code says what was done, whoever reads the output and whatever the user's code does."""

import contextlib
import csv
import importlib
import os
import sys
from pathlib import Path

import pytest


def test_a_training_goes_on_without_its_reader(tiny, monkeypatch):
    read, write = os.pipe()
    monkeypatch.setattr("sys.argv", ["qexp.train", *tiny, "bits=4"])
    with os.fdopen(read) as reader, os.fdopen(write, "w") as stream, contextlib.redirect_stdout(stream):
        reader.close()  # as `| head -1` does
        assert importlib.import_module("qexp.train").main() == 0
    with open("results/digits/table.csv") as handle:
        assert [row["variant"] for row in csv.DictReader(handle)] == ["fp32", "W4 int"]


@pytest.mark.parametrize("leave", ["import sys; sys.exit(0)", "raise KeyboardInterrupt"])
def test_a_file_that_leaves_python_starts_nothing(cli, tiny, leave):
    Path("leaves.py").write_text(f"{leave}\ndef make(): pass\n")
    done = cli(*tiny, "model.factory=leaves.py:make")
    assert done.code == 2 and "nothing was started" in done.err and "leaves.py:1" in done.err and "Traceback" not in done.err
    assert os.listdir() == ["leaves.py"]


def test_a_network_that_leaves_python_while_it_trains_has_failed(cli, tiny, monkeypatch):
    monkeypatch.setattr("qexp.engine.fit._Loop.epoch", lambda *args: sys.exit(0))
    done = cli(*tiny)
    assert done.code == 1 and "code of yours called sys.exit(0)" in done.err and "1 of 1 trainings failed" in done.err
