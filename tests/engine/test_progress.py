from qexp.engine import progress
from qexp.engine.progress import track


def test_lines_where_there_is_no_terminal(monkeypatch, capsys):
    monkeypatch.setattr(progress, "LINE_EVERY_S", 0.0)
    assert list(track("abc", label="epoch 1/2", total=3)) == ["a", "b", "c"]
    assert capsys.readouterr().out.splitlines() == ["epoch 1/2: 1/3", "epoch 1/2: 2/3", "epoch 1/2: 3/3"]


def test_a_bar_on_a_terminal(monkeypatch, capsys):
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    assert list(track("abc", label="epoch 1/2", total=3)) == ["a", "b", "c"]
    assert "epoch 1/2" in capsys.readouterr().err


def test_silence_where_it_is_not_wanted(monkeypatch, capsys):
    monkeypatch.setattr(progress, "LINE_EVERY_S", 0.0)
    assert list(track("abc", label="x", enabled=False)) == ["a", "b", "c"]
    monkeypatch.setenv("RANK", "1")
    assert list(track("abc", label="x")) == ["a", "b", "c"]
    assert capsys.readouterr() == ("", "")
