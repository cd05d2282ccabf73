"""What a slow or lost answer of MLflow's, a dead process and a full disk leave behind."""

import errno
import subprocess
import sys
from dataclasses import asdict, replace

import pytest

from qexp.base.errors import UserError
from qexp.base.files import SaveError
from qexp.tracking import rows
from qexp.tracking.journal import Journal
from qexp.tracking.mlflow_store import import_mlflow
from qexp.tracking.process import Process
from qexp.tracking.sender import Sender
from qexp.tracking.sync import sync

PARENT, W8, W4 = "a1b2c3d4", "a1b2c3d4/keyW8", "a1b2c3d4/keyW4"


@pytest.fixture
def client():
    return import_mlflow().MlflowClient


def living(store):
    return store.query("""select t.value from tags t join runs r on r.run_uuid = t.run_uuid
        where t.key = 'qexp.run' and r.lifecycle_stage = 'active' order by t.value""")


def test_a_run_whose_making_was_not_answered_is_found_again(journal, store, sweep, client, monkeypatch):
    journal.append(sweep())
    sound, lost = client.create_run, []

    def create_run(self, *args, **kwargs):
        run = sound(self, *args, **kwargs)
        if not lost:
            lost.append(run)
            raise OSError("read timed out")
        return run

    monkeypatch.setattr(client, "create_run", create_run)
    with pytest.raises(UserError, match="timed out; 14 rows of exp"):
        sync("exp", store.runs_dir, store.settings)
    assert sync("exp", store.runs_dir, store.settings) == [f"exp: 14 rows sent (sqlite:///{store.path})"]
    assert len(store.runs()) == 3 and store.runs()[PARENT][2] == lost[0].info.run_id
    assert store.count("metrics") == 36


@pytest.mark.parametrize("ended", [True, False], ids=["another look", "only the dead are looked for"])
def test_a_run_made_twice_becomes_one_with_all_points(journal, store, sweep, client, record, ended):
    """A server that hung makes a run after its client has asked again."""
    here = {"host": "h", "pid": 1, "start": "0"}
    if not ended:  # a process that is gone
        here = asdict(replace(Process.current(), start="another"))
    written = [row | {"process": here} if row["kind"] == "run" else row for row in sweep(end=ended)]
    journal.append(written)
    sync("exp", store.runs_dir, store.settings)
    api = client(tracking_uri=f"sqlite:///{store.path}")
    first = api.get_run(store.runs()[W8][2])
    tags = {key: first.data.tags[key] for key in ("qexp.run", "qexp.host", "qexp.pid", "qexp.process_start")}
    for earlier in (1, 0):  # one that is found before the sound one, and one after it
        api.create_run(first.info.experiment_id, start_time=first.info.start_time - earlier, tags=tags, run_name="W8")
    if ended:
        journal.append([rows.record_row(record("W8", 3))])
    assert len(living(store)) == 5
    sync("exp", store.runs_dir, store.settings)
    assert living(store) == [(PARENT,), (W4,), (W8,)]
    id_ = store.query("""select r.run_uuid from runs r join tags t on t.run_uuid = r.run_uuid
        where t.key = 'qexp.run' and t.value = 'a1b2c3d4/keyW8' and r.lifecycle_stage = 'active'""")[0][0]
    points = store.query(f"select step, value from metrics where run_uuid = '{id_}' and key = 'prec1' order by step")
    assert points == [(1, 81.0), (2, 82.0)] + ([(3, 83.0)] if ended else [])
    statuses = store.query("select distinct status from runs where lifecycle_stage = 'active'")
    assert statuses == [("FINISHED",)] if ended else [("KILLED",)]


def test_dead_runs_of_the_stores_other_experiments_are_closed_too(journal, store, sweep):
    dead = asdict(replace(Process.current(), start="another"))
    journal.append([row | {"process": dead} if row["kind"] == "run" else row for row in sweep(end=False)])
    sync_open(journal, store)
    assert {status for status, _, _ in store.runs().values()} == {"RUNNING"}
    Journal.of(store.runs_dir, "another").append(sweep(training="ffff"))
    sync("another", store.runs_dir, store.settings)
    states = {key: status for key, (status, _, _) in store.runs().items()}
    assert {key: states[key] for key in (PARENT, W8, W4)} == dict.fromkeys((PARENT, W8, W4), "KILLED")
    assert states["ffff"] == "FINISHED"
    ended = store.query(f"select end_time from runs where run_uuid = '{store.runs()[W8][2]}'")
    assert ended == [(1_000_002,)]  # its last point


def sync_open(journal, store):
    """Send everything, and leave the runs of dead processes as they are."""
    Sender(journal, experiment="exp", settings=store.settings, runs_dir=store.runs_dir).catch_up()


def test_a_full_disk_leaves_no_torn_row(journal):
    """Files of the process may not grow beyond 1000 bytes: whole rows arrive until then, and more once there is space."""
    code = """
import resource, sys
from qexp.base.files import SaveError
from qexp.tracking.journal import Journal
journal = Journal(sys.argv[1])
journal.append([{"n": 1, "text": "x" * 500}])
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, resource.RLIM_INFINITY))
for rows in ([{"n": 2, "text": "x" * 500}], [{"n": 3}, {"n": 4, "text": "x" * 500}]):
    try:
        journal.append(rows)
    except SaveError as error:
        print(error)
journal.append([{"n": 5}])
resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
journal.append([{"n": 6, "text": "x" * 500}])
"""
    done = subprocess.run([sys.executable, "-c", code, str(journal.path)], capture_output=True, text=True, timeout=900)
    assert (done.returncode, done.stderr) == (0, "")
    said = f"{journal.path} could not be saved: File too large. What was saved before is intact."
    assert len(done.stdout.splitlines()) == 2 and all(line.startswith(said) for line in done.stdout.splitlines())
    assert [row["n"] for row in journal.rows()] == [1, 3, 5, 6]


def test_a_disk_that_fails_at_the_last_moment_leaves_whole_rows(journal, monkeypatch):
    journal.append([{"n": 1}])

    def fsync(_):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("qexp.tracking.journal.os.fsync", fsync)
        with pytest.raises(SaveError, match="Free space on that disk and run the same command again"):
            journal.append([{"n": 2}])
    journal.append([{"n": 3}])
    assert [row["n"] for row in journal.rows()] == [1, 2, 3]
