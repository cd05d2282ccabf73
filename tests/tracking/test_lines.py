import json

import pytest

from qexp.tracking import lines, rows
from qexp.tracking.lines import Lines


def _text(row):
    return json.dumps(row, separators=(",", ":"))


@pytest.fixture
def texts(record):
    """Rows of evaluations, of a run and of another one."""
    return [_text(rows.record_row(record(variant, epoch=epoch))) for variant in ("W8", "W4") for epoch in range(1, 4)]


def test_lines_are_read_as_json_is(texts):
    reader = Lines()
    for text in texts:
        row = reader.parse(text + "\n")
        assert row == json.loads(text) and list(row) == list(json.loads(text))
    assert len(reader._known) < 3 * len(texts), "nothing was read by parts"


@pytest.mark.parametrize(
    "change",
    [
        lambda text: text.replace('"prec1":', '"prec1":{"a":1,"epoch":2,"size_bytes":3},"other":'),
        lambda text: text.replace('"kind":"record",', '"kind":"record","note":"\\",\\"epoch\\":",'),
        lambda text: text.replace('"kind":"record",', '"kind":"record","deep":{"a":1,"epoch":7},'),
        lambda text: text.replace('"time_ms":', '"time_ms": '),
        lambda text: text.replace('"epoch":', '"epoch":1,"epoch":'),
        lambda text: text.replace('"loss":', '"loss":NaN,"other":'),
        lambda text: _text({"kind": "record", "run": "a", "epoch": 1}),
    ],
)
def test_a_line_of_another_form_is_the_same_object(change, texts):
    text = change(texts[0])
    assert repr(Lines().parse(text)) == repr(json.loads(text))


@pytest.mark.parametrize(
    "change",
    [
        lambda text: text[:-1],
        lambda text: text + "}",
        lambda text: text.replace('"time_ms":', '"time_ms":0'),
        lambda text: text.replace(',"epoch":', ',,"epoch":'),
        lambda text: text.replace('"size_bytes":', '"size_bytes":,'),
    ],
)
def test_what_is_no_json_is_refused(change, texts):
    with pytest.raises(ValueError):
        Lines().parse(change(texts[0]))


def test_what_is_known_does_not_grow_without_end(texts, monkeypatch):
    monkeypatch.setattr(lines, "MOST_KNOWN", 4)
    reader = Lines()
    for number in range(10):
        reader.parse(texts[0].replace('"device":"', f'"device":"{number}'))
    assert len(reader._known) <= 4
