"""Notes put together by their reason."""

import copy
import pickle

from qexp.base.text import Note, by_reason


def test_a_note_is_its_text_and_a_copy_has_its_parts():
    note = Note("bn1", "not folded: it is alone")
    assert note == "bn1: not folded: it is alone"
    for same in (copy.deepcopy(note), pickle.loads(pickle.dumps(note))):
        assert (same, same.layer, same.reason) == (note, "bn1", "not folded: it is alone")


def test_a_text_with_a_colon_is_no_note_on_a_layer():
    assert by_reason(["the file says: no", Note("a", "left"), Note("b", "left")]) == ["the file says: no", "left (a; b)"]
