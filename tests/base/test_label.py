"""Labels in parts."""

import pytest

from qexp.base.errors import UserError
from qexp.base.label import Label, check_label, read_stored_label, told_apart


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


def test_a_typed_label_stands_before_what_tells_repeats():
    label = Label("int", (4,), (8,), ("e8", "n64", "draw_2")).called("ours", marks=["draw_2"])
    assert label.text == "ours draw_2" and label.widths == "W4A8"
    assert label.without(["draw_2"]).text == "ours"
    assert label.with_word("1f3a").with_word("1f3a").text == "ours draw_2 1f3a"
    hidden = label.with_word("1f3a", marks=False)
    assert hidden.text == "ours draw_2" and hidden.generated.text == "W4A8 int e8 n64 draw_2 1f3a"
    assert label.called(None) is label
    assert {"given", "marks"} <= label.as_row().keys() and label.generated.as_row().keys() == {
        "way", "weights", "activations", "words",
    }  # fmt: skip


def test_one_label_of_several_variants_says_what_each_is():
    mine, eight = Label("int", (4,)).called("ours"), Label("int", (8,)).called("ours")
    drawn = Label("int", (4,), words=("draw_1",)).called("ours", marks=["draw_1"])
    assert told_apart([mine, drawn], [0, 1]) == [mine, drawn]
    assert [label.text for label in told_apart([mine, drawn, eight], [0, 1, 0])] == [
        "ours (W4 int)",
        "ours draw_1 (W4 int)",
        "ours (W8 int)",
    ]
    posing = Label("half").called("W8 int")
    assert [label.text for label in told_apart([posing, eight.generated], [0, 0])] == ["W8 int (half)", "W8 int"]


@pytest.mark.parametrize("text", ["", " ", " ours", "ours ", "two\nlines", "a\tb", "\x1b[1m", "_hidden", "x" * 61, "fp32"])
def test_what_is_no_label_is_refused(text):
    with pytest.raises(UserError) as caught:
        check_label("label", text)
    assert caught.value.key == "label" and "\n" not in str(caught.value) and "allowed is" in str(caught.value)


@pytest.mark.parametrize("text", [None, "x" * 60, "4 bits, $5 | <b>", "FP32", "größer"])
def test_what_is_one_line_is_a_label(text):
    check_label("label", text)
