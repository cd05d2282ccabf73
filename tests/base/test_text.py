"""Notes put together by their reason."""

import copy
import pickle

import pytest

from qexp.base.text import Note, by_reason, without_passwords


def test_a_note_is_its_text_and_a_copy_has_its_parts():
    note = Note("bn1", "not folded: it is alone")
    assert note == "bn1: not folded: it is alone"
    for same in (copy.deepcopy(note), pickle.loads(pickle.dumps(note))):
        assert (same, same.layer, same.reason) == (note, "bn1", "not folded: it is alone")


def test_a_text_with_a_colon_is_no_note_on_a_layer():
    assert by_reason(["the file says: no", Note("a", "left"), Note("b", "left")]) == ["the file says: no", "left (a; b)"]


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("postgresql+psycopg2://u:p@h/db", "postgresql+psycopg2://u@h/db"),
        ("http://u:p@ss@h, http://v:q@i", "http://u@h, http://v@i"),
        ("mssql://h/db?UID=u&PWD=p&timeout=3", "mssql://h/db?UID=u&PWD=***&timeout=3"),
        ('{"uri":"http://host:5000","to":"a@b"}', '{"uri":"http://host:5000","to":"a@b"}'),
        ("sqlite:////tmp/a:b@c.db", "sqlite:////tmp/a:b@c.db"),
        ("http://host:5000/a@b?name=key", "http://host:5000/a@b?name=key"),
    ],
)
def test_without_passwords(text, shown):
    assert without_passwords(text) == shown
