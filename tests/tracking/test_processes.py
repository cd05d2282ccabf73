"""Several processes on one store, and dead ones."""

import json
import subprocess
import sys

from qexp.config.tracking import TrackingSettings
from qexp.tracking import rows
from qexp.tracking.feed import MlflowFeed
from qexp.tracking.mlflow_store import open_store, store_uri
from qexp.tracking.sync import sync

PARENT, W8, W4 = "a1b2c3d4", "a1b2c3d4/keyW8", "a1b2c3d4/keyW4"
DEAD = TrackingSettings(uri="http://127.0.0.1:9", timeout_s=20)


def _feed(journal, store, **changes):
    return MlflowFeed(journal, experiment="exp", settings=store.settings, runs_dir=store.runs_dir, **changes)


def _write_in_another_process(journal_rows, journal, hold=False):
    """Append rows as another process, which then lives on or not."""
    code = (
        "import sys, json; from qexp.tracking.journal import Journal; from qexp.tracking.process import Process;"
        "from dataclasses import asdict; me = asdict(Process.current());"
        "rows = json.loads(sys.argv[1]);"
        "Journal(sys.argv[2]).append([r | {'process': me} if r['kind'] == 'run' else r for r in rows]);"
        "print('written', flush=True); input()"
    )
    command = [sys.executable, "-c", code, json.dumps(journal_rows), str(journal.path)]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "written\n"
    if not hold:
        process.kill()
        process.communicate()
    return process


def test_runs_of_dead_processes_become_killed(journal, store, sweep):
    living = _write_in_another_process(sweep(training="ffff", end=False), journal, hold=True)
    _write_in_another_process(sweep(end=False), journal)
    feed = _feed(journal, store)
    feed.start()
    assert feed.close() is None
    assert {key: status for key, (status, _, _) in store.runs().items()} == {
        PARENT: "KILLED", W8: "KILLED", W4: "KILLED", "ffff": "RUNNING", "ffff/keyW8": "RUNNING", "ffff/keyW4": "RUNNING",
    }  # fmt: skip
    ended = store.query(f"select end_time from runs where run_uuid = '{store.runs()[W8][2]}'")
    assert ended == [(1_000_002,)]  # its last row
    living.kill()
    living.communicate()
    journal.append(sweep(end=False))
    sync("exp", store.runs_dir, store.settings)
    states = {key: status for key, (status, _, _) in store.runs().items()}
    assert states[PARENT] == states[W8] == "RUNNING" and states["ffff"] == "KILLED"
    journal.append([rows.end_row(key, "FINISHED") for key in (PARENT, W8, W4)])
    sync("exp", store.runs_dir, store.settings)
    assert store.runs()[W8][0] == "FINISHED"


def test_four_processes_on_a_fresh_store(tmp_path, sweep):
    code = """
import json, sys
from qexp.tracking.feed import MlflowFeed
from qexp.tracking.journal import Journal
from qexp.config.tracking import TrackingSettings
journal = Journal.of(sys.argv[1], sys.argv[2])
feed = MlflowFeed(journal, experiment=sys.argv[2], settings=TrackingSettings(timeout_s=120), runs_dir=sys.argv[1])
feed.start()
for row in json.loads(sys.argv[3]):
    journal.append([row])
    feed.notify()
sys.exit(feed.close() or 0)
"""
    runs_dir = tmp_path / "fresh runs"
    jobs = [("one", "aa"), ("one", "bb"), ("one", "bb"), ("two", "cc")]  # two of them write the same runs
    workers = []
    for name, training in jobs:
        rows_of = json.dumps(sweep(training=training))
        command = [sys.executable, "-c", code, str(runs_dir), name, rows_of]
        workers.append(subprocess.Popen(command, stderr=subprocess.PIPE, text=True))
    outcomes = [(worker.communicate()[1], worker.returncode) for worker in workers]
    assert outcomes == [("", 0)] * 4
    assert [path.name for path in runs_dir.iterdir() if path.suffix == ".db"] == ["mlflow.db"]
    client = open_store(store_uri(None, runs_dir), runs_dir=runs_dir, experiment="one").client
    by_key = {}
    for experiment in ("one", "two"):
        for run in client.search_runs([client.get_experiment_by_name(experiment).experiment_id]):
            assert run.data.tags["qexp.run"] not in by_key
            by_key[run.data.tags["qexp.run"]] = run
            assert run.data.metrics["prec1"] == 82.0 and run.info.status == "FINISHED"
    assert by_key.keys() == {f"{training}{child}" for training in ("aa", "bb", "cc") for child in ("", "/keyW8", "/keyW4")}
    points = client.get_metric_history(by_key["bb/keyW8"].info.run_id, "prec1")
    assert [point.step for point in points] == [1, 2]
