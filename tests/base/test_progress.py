"""Where a command is: the levels, the time left, and when it is said."""

import json
import re
import threading
import time

import pytest

from qexp.base import progress, progress_shown
from qexp.base.console import print_main, speaking
from qexp.base.progress import Level, describe, phase, track
from qexp.base.progress_shown import shown


@pytest.fixture
def at_once(monkeypatch):
    """Every look shows something; returns what waits until a text was shown."""
    for name, value in {"SILENT_S": 0.0, "LOOK_S": 0.001, "FIRST_LINE_S": 0.0, "GROWTH": 0.0}.items():
        monkeypatch.setattr(progress_shown, name, value)
    looked = threading.Event()
    describe_once = progress.describe

    def described(levels, now):
        told = describe_once(levels, now)
        texts.append(told[0])
        looked.set()
        return told

    monkeypatch.setattr(progress_shown, "describe", described)
    texts = []

    def wait_for(text):
        for _ in range(5000):  # looks
            looked.clear()
            if any(text in shown_text for shown_text in texts):
                return
            if not looked.wait(60):
                break
        raise AssertionError(f"{text!r} was not shown: {texts[-1:]}")

    return wait_for


def test_levels_within_each_other(at_once, capsys):
    with shown():
        for seed in track([0, 1, 2], "training", note=lambda seed: f"seed={seed}"):
            for epoch in track(range(5, 9), "epoch", total=8, done=4):
                if (seed, epoch) == (1, 7):
                    with phase("calibration", "ends"):
                        for _ in track(range(2), "pass"):
                            at_once("training 2/3 (seed=1) · epoch 7/8 · calibration (ends) · pass 1/2")
                            break
                    at_once("training 2/3 (seed=1) · epoch 7/8 · ETA")
    lines = capsys.readouterr().out.splitlines()
    assert any(re.fullmatch(r"training 2/3 \(seed=1\) · epoch 7/8 · ETA \d+ s", line) for line in lines), lines


def test_a_level_of_one_item_says_nothing_beside_others():
    training, epoch = Level("training", 1), Level("epoch", 8)
    assert describe([training, epoch], time.monotonic())[0] == "epoch 1/8"
    assert describe([training], time.monotonic())[0] == "training 1/1"
    training.note = "seed=1"
    assert describe([training, epoch], time.monotonic())[0] == "training 1/1 (seed=1) · epoch 1/8"
    assert describe([Level("row")], time.monotonic())[0] == "row 1"


def clocked(monkeypatch):
    """The clock in the hands of the test."""
    now = [100.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    return now


def test_the_time_left_follows_from_what_was_done(monkeypatch):
    now = clocked(monkeypatch)
    trainings, epochs = Level("training", 3), Level("epoch", 4)
    assert describe([trainings, epochs], now[0])[1] is None, "nothing tells yet"
    now[0] += 10
    epochs.end_item()
    assert describe([epochs], now[0])[1] == 30.0
    trainings.went_within = True
    assert describe([trainings, epochs], now[0])[1] == 30.0 + 2 * 40.0, "a training is what was done of it and what is left"
    now[0] += 4
    assert describe([epochs], now[0])[1] == 26.0
    now[0] += 20
    assert describe([epochs], now[0])[1] == 20.0, "an epoch that takes longer is still the present one"


def test_stored_items_tell_nothing_of_the_others(monkeypatch):
    now = clocked(monkeypatch)
    trainings = Level("training", 10)
    for _ in range(8):  # stored: nothing within
        now[0] += 0.01
        trainings.end_item()
    trainings.went_within = True
    now[0] += 50
    assert describe([trainings], now[0])[1] is None, "no training that trained is over"
    epochs = Level("epoch", 2)
    now[0] += 5
    epochs.end_item()
    assert describe([trainings, epochs], now[0])[1] == pytest.approx(5 + 55 + 5)


def test_parts_weigh_what_they_hold(monkeypatch):
    now = clocked(monkeypatch)
    images = Level("image", 800)
    now[0] += 30
    images.end_item(300)
    assert images.text() == "image 301/800"
    assert describe([images], now[0])[1] == pytest.approx(50)
    images.end_item(500)
    assert images.text() == "image 800/800"


def test_a_loop_that_an_error_left_is_gone(at_once, capsys):
    """The traceback of a training that failed keeps its loops alive while the next one runs."""
    errors = []
    with shown():
        for number in track(range(2), "training"):
            try:
                for epoch in track("ab", "epoch"):
                    if number == 0:
                        raise ValueError
                    if epoch == "b":
                        at_once("training 2/2 · epoch 2/2")
            except ValueError as error:
                errors.append(error)
    assert errors and "epoch 1/2 · epoch" not in capsys.readouterr().out


def test_a_loop_of_another_thread_is_not_of_the_command(at_once):
    with shown():
        for _ in track(range(2), "training"):
            thread = threading.Thread(target=lambda: [at_once("training 1/2") for _ in track(range(3), "row of a feed")])
            thread.start()
            thread.join()
            assert [level.label for level in progress.open_levels()] == ["training"]
            break


@pytest.mark.parametrize("silent", ["quiet", "rank 1", "not shown", "paused"])
def test_silence_where_it_is_not_wanted(at_once, monkeypatch, capsys, silent):
    if silent == "rank 1":
        monkeypatch.setenv("RANK", "1")
    scope = speaking(quiet=silent == "quiet"), shown() if silent != "not shown" else speaking()
    with scope[0], scope[1]:
        with progress.paused() if silent == "paused" else speaking():
            assert list(track("abc", "x")) == ["a", "b", "c"]
            time.sleep(0.05)  # looks that show nothing
    assert capsys.readouterr() == ("", "")


def test_events_instead_of_lines(at_once, capsys):
    with speaking(as_json=True), shown():
        for _ in track("abc", "epoch", note=str):
            at_once("epoch 1/3 (a)")
            break
        print_main("a remark")
    out, err = capsys.readouterr()
    assert err == "a remark\n"
    event = json.loads(out.splitlines()[0])
    assert event["event"] == "progress" and event["levels"] == [{"label": "epoch", "at": 1, "total": 3, "note": "a"}]
    assert event["eta_s"] is None and event["elapsed_s"] >= 0 and event["text"] == "epoch 1/3 (a)"


def test_lines_come_ever_more_seldom(monkeypatch, capsys):
    now = clocked(monkeypatch)
    lines, levels = progress_shown._Lines(), [Level("epoch", 9)]
    times = []
    for _ in range(20 * 60 * 4):
        now[0] += 0.25
        lines.show(levels, now[0])
        if capsys.readouterr().out:
            times.append(now[0] - 100.0)
    gaps = [later - before for before, later in zip(times, times[1:], strict=False)]
    assert (
        times[0] == progress_shown.FIRST_LINE_S
        and gaps == sorted(gaps)
        and min(gaps) >= 10
        and max(gaps) <= progress_shown.LONGEST_S + 1
    )
