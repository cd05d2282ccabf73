"""Progress on a real terminal and in a real pipe."""

import json
import os
import pty
import queue
import re
import signal
import subprocess
import sys

import pytest

from qexp.base import preemption, progress_shown


def on_a_terminal(*command, width=120, until=None, env=None):
    """What a command writes on a pseudo-terminal, and its exit code; with `until` it gets Ctrl-C once that was written."""
    import fcntl
    import struct
    import termios

    leader, follower = pty.openpty()
    fcntl.ioctl(follower, termios.TIOCSWINSZ, struct.pack("HHHH", 24, width, 0, 0))
    process = subprocess.Popen(command, stdin=follower, stdout=follower, stderr=follower, env=env, start_new_session=True)
    os.close(follower)
    seen, asked = b"", False
    try:
        while chunk := os.read(leader, 4096):
            seen += chunk
            if until is not None and not asked and re.search(until, seen.decode(errors="replace")):
                process.send_signal(signal.SIGINT)
                asked = True
    except OSError:  # the other end is closed
        pass
    os.close(leader)
    return seen.decode(), process.wait(timeout=600)


SLOW = """
import sys, time, warnings
from qexp.base.console import print_main, warn_main
from qexp.base.progress import track
from qexp.base.progress_shown import shown
with shown():
    for number in track(range(2), "training"):
        for step in track(range(8), "epoch"):
            time.sleep(0.4)
            if step % 3 == 0:
                print_main(f"line {number} {step}"); warn_main("warned"); warnings.warn("of a library")
                print("in two ", end=""); print("parts")
"""


def screen(text):
    """The lines that a terminal shows in the end: what stands before a carriage return is written over."""
    lines = []
    for line in text.replace("\r\n", "\n").split("\n"):
        shown_line = ""
        for part in line.split("\r"):
            shown_line = part + shown_line[len(part) :]
        lines.append(shown_line.rstrip())
    return lines


def test_a_bar_on_a_terminal_and_lines_above_it():
    text, code = on_a_terminal(sys.executable, "-c", SLOW)
    assert code == 0
    assert re.search(r"training 2/2 · epoch \d/8 · ETA \d s [█▏▎▍▌▋▊▉ ]+", text)
    lines = screen(text)
    for wanted in ("line 0 0", "line 1 6", "warned", "in two parts"):
        assert wanted in lines, f"{wanted!r} is broken or gone: {lines}"
    assert any(line.endswith("UserWarning: of a library") for line in lines)
    assert not any("epoch" in line for line in lines), "no bar stays"


def test_a_narrow_terminal_and_one_without_our_letters():
    text, code = on_a_terminal(sys.executable, "-c", SLOW, width=30)
    assert code == 0 and all(len(line) < 30 for line in re.split(r"[\r\n]", text) if "training" in line)
    env = {**os.environ, "PYTHONIOENCODING": "ascii"}
    text, code = on_a_terminal(sys.executable, "-c", SLOW, env=env)
    assert code == 0 and "training 2/2 - epoch" in text and text.isascii()


FORKED = """
import os, sys
from qexp.base.progress_shown import shown
with shown():
    print("parent", type(sys.stdout).__name__)
    child = os.fork()
    if not child:
        print("child", type(sys.stdout).__name__, flush=True)
        os._exit(0)
    os.waitpid(child, 0)
"""


def test_a_forked_process_writes_as_before():
    """The thread that draws is not in it, and may have held the lock."""
    text, code = on_a_terminal(sys.executable, "-c", FORKED)
    assert code == 0 and screen(text)[:2] == ["parent _Above", "child TextIOWrapper"]


LOGS = """
import logging, os, signal, sys, threading
from qexp.base import progress_shown
from qexp.base.progress import track
progress_shown.SILENT_S = 0.0
with progress_shown.shown():
    logging.basicConfig(stream=sys.stdout, format="%(message)s")
    bar, held = sys.stdout._bar, threading.Event()
    for _ in track(range(2), "step"):
        while bar._bar is None:
            pass
    def hold():
        with bar.lock:
            held.set()
            threading.Event().wait()
    threading.Thread(target=hold, daemon=True).start()
    held.wait()
    child = os.fork()
    if not child:
        signal.alarm(60)
        logging.warning("logged by the child")
        os._exit(0)
    print("status", os.waitpid(child, 0)[1], file=bar._out, flush=True)
    os._exit(0)
"""


def test_a_forked_process_logs_although_the_lock_is_held():
    """A handler of logging holds the stream that the parent's bar is on."""
    text, code = on_a_terminal(sys.executable, "-c", LOGS)
    assert code == 0 and "logged by the child" in text and "status 0" in text


DOWNLOAD = """
import sys
from qexp.base.progress_shown import shown
with shown():
    longest = 0
    for number in range(1000):
        sys.stderr.write(f"\\rdownload {number}")
        sys.stderr.flush()
        longest = max(longest, len(sys.stderr._rest))
    sys.stderr.write("\\n")
    print("kept", longest)
"""


def test_the_bar_of_others_is_kept_as_it_is_now():
    text, code = on_a_terminal(sys.executable, "-c", DOWNLOAD)
    assert code == 0 and screen(text)[:2] == ["download 999", "kept 12"] and "download 998" not in text


def test_no_bar_in_a_pipe():
    done = subprocess.run([sys.executable, "-c", SLOW], capture_output=True, text=True, check=True)
    assert "\r" not in done.stdout + done.stderr and "ETA" not in done.stderr
    assert [line for line in done.stdout.splitlines() if line.startswith("line")][:2] == ["line 0 0", "line 0 3"]


def test_a_signal_that_waits_for_the_next_step_is_said_at_once(monkeypatch):
    said = queue.Queue()
    monkeypatch.setattr(progress_shown, "print_main", said.put)
    with preemption.listening(), progress_shown.shown(), preemption.deferred():
        signal.raise_signal(signal.SIGTERM)
        assert said.get(timeout=600) == progress_shown.STOPPING
    assert said.empty() and not preemption.is_awaited()


LONG = ("-m", "qexp.train", "data=digits", "model=resnet8", "train=smoke", "train.epochs=10000", "bits=4", "device=cpu")
LONG += ("tracking.enabled=false", "trajectory.keep=last")


@pytest.mark.slow
def test_a_training_on_a_terminal():
    text, code = on_a_terminal(sys.executable, *LONG, until=r"epoch (?!1/)\d+/10000 · (batch \d+/\d+|variant [12]/2)")
    assert code == 130, text
    lines = screen(text)
    assert any(line.startswith("epoch 1/10000  loss") for line in lines), "a line of an epoch is whole"
    assert "qexp: stopped by SIGINT. The same command goes on where this one stopped." in lines


@pytest.mark.slow
def test_a_training_in_a_pipe_says_events():
    process = subprocess.Popen([sys.executable, *LONG, "--json"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    events = []
    for line in process.stdout:
        events.append(json.loads(line))
        if events[-1]["event"] == "progress" and events[-1]["levels"][0]["label"] == "training":
            process.send_signal(signal.SIGINT)
            break
    out, _ = process.communicate(timeout=600)
    events += map(json.loads, out.splitlines())
    assert process.returncode == 130
    assert events[-1]["event"] == "error" and events[-1]["exit_code"] == 130
    told = next(event for event in events if event["event"] == "progress" and event["levels"][0]["label"] == "training")
    assert [level["label"] for level in told["levels"]][:2] == ["training", "epoch"] and told["levels"][1]["total"] == 10000
