"""Labels in parts."""

import pytest

from qexp.base.label import Label, read_stored_label


@pytest.mark.parametrize(
    "label",
    [
        Label("fp32"),
        Label("half", words=("input_int",)),
        Label("int", (4,)),
        Label("lsq", (2, 4), (4, 8), ("first_last", "e8", "1f3a")),
        Label("int", (), (8,), ("rules",)),  # rules that leave all weights float
    ],
    ids=lambda label: label.text,
)
def test_what_was_stored_as_text_has_the_same_parts(label):
    assert read_stored_label(label.text) == label


def test_words_that_all_have_can_be_left_out():
    label = Label("int", (4,), (), ("per_channel", "e8"))
    assert label.without(["e8", "other"]).text == "W4 int per_channel"
    assert label.with_word("#a1b2c3").text == "W4 int per_channel e8 #a1b2c3"
