import json
import subprocess
import sys

import pytest

from qexp.tracking.journal import Journal
from qexp.tracking.record import MEASURED


def test_imports_nothing_heavy():
    code = (
        "import sys, qexp.tracking.journal, qexp.tracking.feed, qexp.tracking.sync;"
        "print([name for name in ('torch', 'mlflow', 'pandas', 'numpy', 'matplotlib') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_rows_come_back_in_order(journal):
    journal.append([{"n": 1}, {"n": 2}])
    journal.append([{"n": 3, "loss": float("inf")}])
    journal.append([])
    assert [row["n"] for row in journal.rows()] == [1, 2, 3]
    assert list(journal.rows())[2]["loss"] == float("inf")


def test_no_file_has_no_rows(journal):
    assert list(journal.rows()) == []
    assert journal.rows_from(0) == ([], 0)


def test_rows_from_goes_on_where_it_stopped(journal):
    journal.append([{"n": n} for n in range(5)])
    first, offset = journal.rows_from(0, limit=2)
    rest, end = journal.rows_from(offset)
    assert [row["n"] for row in first + rest] == [0, 1, 2, 3, 4]
    assert journal.rows_from(0, end=offset) == (first, offset)
    assert journal.rows_from(offset, end=offset) == ([], offset)
    assert journal.rows_from(end) == ([], end)
    journal.append([{"n": 5}])
    assert journal.rows_from(end)[0] == [{"n": 5}]


@pytest.mark.parametrize("torn", [b'{"n": 2, "na', b"\x00" * 4096, b"{", b'{"n": 2, "text": "' + b"x" * 200_000])
def test_torn_last_line_is_left_out_and_cut_off(journal, torn):
    journal.append([{"n": 1}])
    with open(journal.path, "ab") as handle:
        handle.write(torn)
    rows, offset = journal.rows_from(0)
    assert [row["n"] for row in rows] == [1]
    journal.append([{"n": 3}])
    assert [row["n"] for row in journal.rows()] == [1, 3]
    assert journal.rows_from(offset)[0] == [{"n": 3}]


def test_whole_last_line_without_newline_is_kept(journal):
    journal.append([{"n": 1}])
    with open(journal.path, "ab") as handle:
        handle.write(b'{"n": 2}')
    journal.append([{"n": 3}])
    assert [row["n"] for row in journal.rows()] == [1, 2, 3]


def test_torn_first_line(journal):
    journal.path.parent.mkdir(parents=True)
    journal.path.write_bytes(b'{"n"')
    journal.append([{"n": 1}])
    assert [row["n"] for row in journal.rows()] == [1]


def test_what_json_cannot_hold_writes_nothing(journal):
    journal.append([{"n": 1}])
    with pytest.raises(TypeError):
        journal.append([{"n": 2}, {"n": object()}])
    assert [row["n"] for row in journal.rows()] == [1]


@pytest.mark.parametrize("line", [b"hello", b"[1]", b'"text"', b"\xff\xfe", b""])
def test_foreign_line_is_named_once_and_left_out(journal, capsys, line):
    journal.append([{"n": 1}])
    with open(journal.path, "ab") as handle:
        handle.write(line + b"\n")
    journal.append([{"n": 2}])
    for _ in range(2):
        assert [row["n"] for row in journal.rows()] == [1, 2]
    assert capsys.readouterr().err.count("at byte 8 there is no whole row; that line is left out") == 1


@pytest.mark.parametrize(
    "row", [{}, {"run": "a"}, {"kind": None}, {"kind": ["run"]}, {"kind": "record", "run": "a"}, {"kind": "end"}]
)
def test_a_row_that_its_readers_could_not_read_is_left_out(row, tmp_path, capsys):
    """Of an experiment each row has a kind, and what that kind needs; of an evaluation's own file, what was measured."""
    whole = {"kind": "end", "run": "a", "status": "FINISHED", "time_ms": 1}
    journal = Journal.of(tmp_path, "x")
    journal.append([row, whole])
    assert [*journal.rows()] == [whole] and "there is no whole row" in capsys.readouterr().err
    measured = Journal("measured.jsonl", needs=MEASURED)
    measured.append([row, dict.fromkeys(MEASURED, 0)])
    assert [*measured.rows()] == [dict.fromkeys(MEASURED, 0)]


def test_processes_append_whole_rows(journal):
    code = """
import sys
from qexp.tracking.journal import Journal
journal = Journal(sys.argv[1])
for n in range(40):
    journal.append([{"who": sys.argv[2], "n": n, "text": "x" * 5000}])
"""
    workers = [subprocess.Popen([sys.executable, "-c", code, str(journal.path), str(who)]) for who in range(3)]
    assert [worker.wait() for worker in workers] == [0, 0, 0]
    seen = {}
    for row in journal.rows():
        seen.setdefault(row["who"], []).append(row["n"])
    assert seen == {str(who): list(range(40)) for who in range(3)}


def test_rows_are_one_json_object_per_line(journal):
    journal.append([{"text": "a\nb"}, {"n": 1}])
    assert [json.loads(line) for line in journal.path.read_text().splitlines()] == [{"text": "a\nb"}, {"n": 1}]
