"""The process that feeds MLflow: what it does when told, and what becomes of it when something is killed, by real signals."""

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time

import pytest

from qexp.config.tracking import TrackingSettings
from qexp.tracking import feeder, process
from qexp.tracking.feed import MlflowFeed
from qexp.tracking.mlflow_runs import MlflowRuns
from qexp.tracking.process import Process
from qexp.tracking.sender import Sender
from qexp.tracking.sync import sync

PARENT, W8, W4 = "a1b2c3d4", "a1b2c3d4/keyW8", "a1b2c3d4/keyW4"
LIMIT_S = 900  # on whatever is waited for; reached only where something is wrong
PATIENT = TrackingSettings(timeout_s=LIMIT_S)

# Writes the first half of the rows, and the others once it is interrupted; a feed of its own follows.
WRITER = """
import json, signal, sys
from qexp.config.tracking import TrackingSettings
from qexp.tracking.feed import MlflowFeed
from qexp.tracking.journal import Journal
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell lets what it starts in the background ignore it
runs_dir, rows = sys.argv[1], json.loads(sys.argv[2])
journal = Journal.of(runs_dir, "exp")
feed = MlflowFeed(journal, experiment="exp", settings=TrackingSettings(timeout_s=900), runs_dir=runs_dir)
feed.start()
first = feed._process.pid
journal.append(rows[:len(rows) // 2])
print(first, flush=True)
try:
    sys.stdin.read()
except KeyboardInterrupt:
    journal.append(rows[len(rows) // 2:])
    print(feed._process.pid == first, feed.close(), "mlflow" in sys.modules, flush=True)
"""


def wait_for(what, reached):
    """Until `reached()` is true."""
    deadline = time.monotonic() + LIMIT_S
    while not reached():
        assert time.monotonic() < deadline, f"waited in vain for {what}"
        time.sleep(0.05)


def feed_of(journal, store, settings=PATIENT):
    return MlflowFeed(journal, experiment="exp", settings=settings, runs_dir=store.runs_dir)


def sender_of(journal, store):
    return Sender(journal, experiment="exp", settings=store.settings, runs_dir=store.runs_dir)


def assert_complete(store):
    """The rows of `sweep` are there, once."""
    assert {key: status for key, (status, _, _) in store.runs().items()} == dict.fromkeys((PARENT, W8, W4), "FINISHED")
    assert store.points(W4, "prec1") == [(1, 81.0), (2, 82.0)] and store.count("metrics") == 36


@pytest.fixture
def writer(store, sweep):
    """A process that writes rows, with a feed; in a group of its own, as a command in a terminal."""
    command = [sys.executable, "-c", WRITER, str(store.runs_dir), json.dumps(sweep())]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, process_group=0
    ) as started:
        yield started
        started.kill()


def test_rows_are_sent_without_a_call(journal, store, sweep, monkeypatch):
    sent, closing, said = threading.Event(), threading.Event(), []
    monkeypatch.setattr(feeder, "PAUSE_S", 0.05)
    monkeypatch.setattr(MlflowRuns, "close", lambda *_: sent.set())
    sender = sender_of(journal, store)
    thread = threading.Thread(target=lambda: said.append(feeder.follow(sender, closing, lambda: False)))
    thread.start()  # there is no journal yet
    try:
        journal.append(sweep())
        assert sent.wait(LIMIT_S)
    finally:
        closing.set()
        thread.join()
    assert said == [""]


def test_a_failing_store_is_tried_again(journal, store, sweep, monkeypatch):
    calls, closing = [], threading.Event()
    sound = Sender.catch_up

    def catch_up(self, *args, **kwargs):
        calls.append(1)
        if len(calls) == 1:
            raise OSError("database is locked")
        return sound(self, *args, **kwargs)

    monkeypatch.setattr(feeder, "LAST_PAUSE_S", 0.0)
    monkeypatch.setattr(Sender, "catch_up", catch_up)
    journal.append(sweep())
    closing.set()
    assert feeder.follow(sender_of(journal, store), closing, lambda: False) == ""
    assert_complete(store)


def test_it_gives_up_at_the_end_and_says_why(journal, store, monkeypatch):
    closing = threading.Event()
    monkeypatch.setattr(feeder, "LAST_PAUSE_S", 0.0)
    monkeypatch.setattr(Sender, "catch_up", lambda *_, **__: (_ for _ in ()).throw(OSError("disk full")))
    closing.set()
    assert feeder.follow(sender_of(journal, store), closing, lambda: False) == "OSError: disk full"


def test_nothing_is_sent_once_nobody_waits_for_it(journal, store, sweep):
    journal.append(sweep())
    assert feeder.follow(sender_of(journal, store), threading.Event(), lambda: True) == ""
    assert store.count("runs") == 0


def test_an_order_comes_as_it_was_given(tmp_path):
    settings = TrackingSettings(uri="http://ann:secret@host:5000", timeout_s=7)
    order = feeder.Order(experiment="é\n", runs_dir=str(tmp_path), settings=settings, owner=Process.current())
    line = order.as_line()
    assert line.count(b"\n") == 1 and feeder.Order.of_line(line) == order


def test_a_server_that_never_answers_is_left_with_nothing_of_the_process(journal, store, sweep):
    journal.append(sweep())
    open_before = len(os.listdir("/dev/fd"))
    with socket.create_server(("127.0.0.1", 0)) as server:
        uri = f"http://127.0.0.1:{server.getsockname()[1]}"
        feed = feed_of(journal, store, TrackingSettings(uri=uri, timeout_s=0.05))
        feed.start()
        pid = feed._process.pid
        assert "behind by 14 rows (no answer within 0.05 s)" in feed.close()
    with pytest.raises(ProcessLookupError):  # a zombie would have the number still
        os.kill(pid, 0)
    assert len(os.listdir("/dev/fd")) == open_before


def test_a_system_that_starts_no_process_fails_no_training(journal, store, sweep, monkeypatch):
    monkeypatch.setattr(sys, "executable", str(store.runs_dir / "gone"))
    feed = feed_of(journal, store)
    feed.start()
    journal.append(sweep())
    feed.notify()
    assert "behind by 14 rows (no process could be started: No such file or directory)" in feed.close()


def test_a_path_that_a_users_file_put_on_the_search_path_fails_no_training(journal, store, sweep, monkeypatch, tmp_path):
    monkeypatch.setattr(sys, "path", [*sys.path, tmp_path])  # Python itself passes over what is no text
    feed = feed_of(journal, store)
    feed.start()
    journal.append(sweep())
    assert feed.close() is None
    assert_complete(store)


def test_killed_twice_it_is_told_of_once_and_sync_sends_the_rest(journal, store, sweep):
    feed, written = feed_of(journal, store), sweep()
    feed.start()
    first = feed._process
    first.kill()
    first.wait(LIMIT_S)
    journal.append(written[:6])
    feed.notify()
    second = feed._process
    assert second.pid != first.pid
    wait_for("the first rows", lambda: store.runs().keys() == {PARENT, W8, W4} and store.points(PARENT, "train_loss"))
    second.kill()
    second.wait(LIMIT_S)
    journal.append(written[6:])
    feed.notify()
    assert feed._process is second, "what ended two would end a third"
    message = feed.close()
    assert "its process was ended by signal 9); python -m qexp.sync name=exp" in message
    sync("exp", store.runs_dir, store.settings)
    assert_complete(store)


def test_ctrl_c_and_a_schedulers_signals_leave_it_at_work(writer, store):
    pid = int(writer.stdout.readline())
    assert os.getpgid(pid) != os.getpgid(writer.pid), "Ctrl-C would end it before it can ignore it"
    wait_for("the first rows", lambda: PARENT in store.runs())
    for signum in (signal.SIGINT, signal.SIGTERM):
        os.kill(pid, signum)
    os.killpg(writer.pid, signal.SIGINT)
    said, complaints = writer.communicate(timeout=LIMIT_S)
    assert (said, complaints, writer.returncode) == ("True None False\n", "", 0)
    assert_complete(store)


def test_it_ends_with_a_parent_that_is_killed(writer):
    pid = int(writer.stdout.readline())
    one = Process(process.host(), pid, process._start(pid) or "")
    assert not one.dead
    writer.kill()
    wait_for("its end", lambda: one.dead)
