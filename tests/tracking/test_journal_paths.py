import pytest

from qexp.base.errors import UserError
from qexp.tracking.journal import find_journal, journal_names, journal_path, read_rows


def test_unknown_experiment_lists_those_there_are(tmp_path):
    with pytest.raises(UserError, match=r"python -m qexp.train first"):
        find_journal(tmp_path, "mnist5k")
    for name in ("mnist5k", "cifar10.v2"):
        path = journal_path(tmp_path, name)
        path.parent.mkdir(exist_ok=True)
        path.write_text('{"n": 1}\n')
    assert journal_names(tmp_path) == ["cifar10.v2", "mnist5k"]
    with pytest.raises(UserError, match=r"one of cifar10.v2, mnist5k. Did you mean mnist5k\?"):
        find_journal(tmp_path, "mnist")
    assert read_rows(find_journal(tmp_path, "cifar10.v2"))[0] == [{"n": 1}]


def test_rows_are_read_in_parts(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text('{"n": 1}\n{"n": 2}\n{"n": 3}\n{"n": 4')
    assert read_rows(path, limit=1) == ([{"n": 1}], 9)
    assert read_rows(path, 9) == ([{"n": 2}, {"n": 3}], 27)
    assert read_rows(path, 9, end=18) == ([{"n": 2}], 18)
    assert read_rows(path, 27) == ([], 27)
    assert read_rows(tmp_path / "none.jsonl") == ([], 0)
