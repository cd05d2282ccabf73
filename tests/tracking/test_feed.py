import json
import os
from pathlib import Path

import pytest

from qexp.base.errors import UserError, UserErrors
from qexp.config.tracking import TrackingSettings
from qexp.tracking import rows
from qexp.tracking.feed import Feeds, MlflowFeed
from qexp.tracking.journal import Journal
from qexp.tracking.mlflow_runs import MlflowRuns
from qexp.tracking.mlflow_store import ENVIRONMENT_DEFAULTS, import_mlflow, store_uri, why
from qexp.tracking.sender import Sender
from qexp.tracking.sync import sync

PARENT, W8, W4 = "a1b2c3d4", "a1b2c3d4/keyW8", "a1b2c3d4/keyW4"
DEAD = TrackingSettings(uri="http://127.0.0.1:9", timeout_s=300)


def _feed(journal, store, **changes):
    return MlflowFeed(journal, experiment="exp", settings=store.settings, runs_dir=store.runs_dir, **changes)


def test_a_sweep_arrives(journal, store, sweep, tmp_path):
    feed = _feed(journal, store)
    feed.start()
    figure = tmp_path / "prec1_by_epoch.png"
    figure.write_bytes(b"png")
    for row in sweep():
        journal.append([row])
        feed.notify()
    feed.log_files(None, [figure, tmp_path / "gone.png"])
    assert feed.close() is None
    runs = store.runs()
    assert runs.keys() == {PARENT, W8, W4}
    assert {status for status, _, _ in runs.values()} == {"FINISHED"}
    assert runs[PARENT][1] is None and runs[W8][1] == runs[W4][1] == runs[PARENT][2]
    assert store.points(W4, "prec1") == [(1, 81.0), (2, 82.0)]
    assert store.points(PARENT, "prec5") == [(1, 99.0), (2, 99.0)]
    assert store.points(PARENT, "train_loss") == [(1, 1.0), (2, 0.5)]
    assert store.param(W8, "bits") == "8" and store.param(W8, "train.lr") == "0.1"
    assert store.param(PARENT, "checkpoint") == "null" and store.param(PARENT, "nesterov") == "true"
    assert store.tag(W8, "qexp.sweep") == "s1"
    times = store.query(f"select start_time, end_time from runs where run_uuid = '{runs[W8][2]}'")
    assert times == [(3, 2_000_000)]
    artifacts = store.runs_dir / "mlartifacts" / "exp" / runs[PARENT][2] / "artifacts"
    assert (artifacts / "config.yaml").read_text() == "seed: 0\n"
    assert (artifacts / "report" / "prec1_by_epoch.png").read_bytes() == b"png"


def test_replay_without_progress_doubles_nothing(journal, store, sweep):
    journal.append(sweep())
    assert sync("exp", store.runs_dir, store.settings) == [f"exp: 14 rows sent (sqlite:///{store.path})"]
    counts = [store.count(table) for table in ("metrics", "runs", "params", "tags")]
    assert counts[0] == 2 * (2 + 4 + 6 + 6)
    assert sync("exp", store.runs_dir, store.settings) == [f"exp: nothing was missing (sqlite:///{store.path})"]
    progress = journal.path.with_name("exp.mlflow.json")
    for damage in (progress.unlink, lambda: progress.write_text("{torn"), lambda: progress.write_text("[]")):
        damage()
        assert sync("exp", store.runs_dir, store.settings) == [f"exp: 14 rows sent (sqlite:///{store.path})"]
        assert [store.count(table) for table in ("metrics", "runs", "params", "tags")] == counts
        assert {status for status, _, _ in store.runs().values()} == {"FINISHED"}


def test_the_same_sweep_again_reuses_its_runs(journal, store, sweep, record):
    journal.append(sweep())
    sync(None, store.runs_dir, store.settings)
    before, points = store.runs(), store.count("metrics")
    reused = [row | {"reused": True, "time_ms": 5_000_000} if row["kind"] == "record" else row for row in sweep(end=False)]
    journal.append(reused)
    sync(None, store.runs_dir, store.settings)
    assert store.count("metrics") == points
    assert {key: value[2] for key, value in store.runs().items()} == {key: value[2] for key, value in before.items()}
    assert {status for status, _, _ in store.runs().values()} == {"RUNNING"}


def test_another_journal_into_the_same_store_finds_the_runs(journal, store, sweep, tmp_path):
    journal.append(sweep())
    sync("exp", store.runs_dir, store.settings)
    there = tmp_path / "another machine"
    Journal.of(there, "exp").append(sweep(variants=("W8", "W2")))
    sync("exp", there, TrackingSettings(uri=f"sqlite:///{store.path}"))
    assert store.runs().keys() == {PARENT, W8, W4, "a1b2c3d4/keyW2"}


def test_a_store_made_anew_gets_everything(journal, store, sweep, template_store):
    journal.append(sweep())
    sync("exp", store.runs_dir, store.settings)
    progress = journal.path.with_name("exp.mlflow.json")
    entry = json.loads(progress.read_text())
    entry[f"sqlite:///{store.path}"]["experiment"] = "1 made 0"
    progress.write_text(json.dumps(entry))
    assert sync("exp", store.runs_dir, store.settings) == [f"exp: 14 rows sent (sqlite:///{store.path})"]


def test_a_journal_made_anew_is_sent_from_its_start(journal, store, sweep):
    journal.append(sweep())
    sync("exp", store.runs_dir, store.settings)
    journal.path.unlink()
    journal.append([rows.sweep_row("s2", command="other", versions={}, host="h", git=None), *sweep(training="ffff")[1:]])
    sync("exp", store.runs_dir, store.settings)
    assert "ffff/keyW8" in store.runs()


def test_what_was_deleted_in_mlflow_comes_back_when_run_again(journal, store, sweep):
    journal.append(sweep())
    sync("exp", store.runs_dir, store.settings)
    client = import_mlflow().MlflowClient(tracking_uri=f"sqlite:///{store.path}")
    client.delete_run(store.runs()[W8][2])
    client.delete_experiment(client.get_experiment_by_name("exp").experiment_id)
    journal.append(sweep())
    sync("exp", store.runs_dir, store.settings)
    assert store.query("select lifecycle_stage from experiments where name = 'exp'") == [("active",)]
    assert {stage for (stage,) in store.query("select lifecycle_stage from runs")} == {"active"}


def test_what_was_deleted_in_mlflow_is_sent_anew_although_all_was_sent(journal, store, sweep):
    journal.append(sweep())
    sync("exp", store.runs_dir, store.settings)
    sender = Sender(journal, experiment="exp", settings=store.settings, runs_dir=store.runs_dir)
    counts = [store.count(table) for table in ("metrics", "runs", "params", "tags")]
    client = import_mlflow().MlflowClient(tracking_uri=f"sqlite:///{store.path}")
    assert sender.has_all()
    client.delete_run(store.runs()[W8][2])
    assert not sender.has_all() and sender.behind() == 14
    sync("exp", store.runs_dir, store.settings)
    assert {stage for (stage,) in store.query("select lifecycle_stage from runs")} == {"active"}
    assert [store.count(table) for table in ("metrics", "runs", "params", "tags")] == counts and sender.has_all()
    double = client.create_run(client.get_experiment_by_name("exp").experiment_id, tags={"qexp.run": W8}).info.run_id
    client.set_terminated(double)
    client.delete_run(double)
    assert sender.has_all(), "another of its key is there"


def test_long_and_changed_params_are_noted(journal, store):
    long = "x" * 9000
    many = {f"key{n}": n for n in range(250)}
    journal.append([rows.run_row(PARENT, name="t", params=many | {"policy.rules": long}, tags={"note": long})])
    journal.append([rows.run_row(PARENT, name="t", params={"key3": 30, "new": True}), rows.end_row(PARENT, "FAILED")])
    sync("exp", store.runs_dir, store.settings)
    assert store.param(PARENT, "policy.rules") == "x" * 6000
    assert store.tag(PARENT, "qexp.truncated_params") == "policy.rules"
    assert store.tag(PARENT, "qexp.later_params") == "key3=30"
    assert store.param(PARENT, "key3") == "3" and store.param(PARENT, "new") == "true" and store.count("params") == 252
    assert len(store.tag(PARENT, "note")) == 5000
    assert store.runs()[PARENT][0] == "FAILED"


def test_more_points_than_a_request_takes(journal, store):
    journal.append([rows.run_row(PARENT, name="t", params={})])
    journal.append(rows.metrics_row(PARENT, step=step, values={"a": step, "b": -step}, time_ms=step) for step in range(1, 1201))
    assert sync("exp", store.runs_dir, store.settings)[0].startswith("exp: 1201 rows sent")
    assert store.count("metrics") == 2400


def test_rows_of_an_unopened_run_are_not_lost(journal, store, record):
    journal.append([rows.record_row(record("W8"))])
    sync("exp", store.runs_dir, store.settings)
    assert store.runs().keys() == {PARENT, W8}
    assert store.points(W8, "prec1") == [(1, 81.0)]
    assert {status for status, _, _ in store.runs().values()} == {"FINISHED"}


def test_a_dead_server_neither_raises_nor_blocks_and_sync_sends_later(journal, store, sweep, capfd):
    feed = MlflowFeed(journal, experiment="exp", settings=DEAD, runs_dir=store.runs_dir)
    feed.start()
    journal.append(sweep())
    feed.notify()
    message = feed.close()
    command = f"python -m qexp.sync name=exp uri=http://127.0.0.1:9 runs_dir={store.runs_dir}"
    assert message == f"MLflow is behind by 14 rows (server not reachable: Connection refused); {command} sends them"
    with pytest.raises(UserError, match="Connection refused; 14 rows of exp are still to be sent"):
        sync("exp", store.runs_dir, DEAD)
    assert sync("exp", store.runs_dir, store.settings) == [f"exp: 14 rows sent (sqlite:///{store.path})"]
    assert len(store.runs()) == 3
    assert capfd.readouterr() == ("", "")


def test_a_failure_in_the_middle_loses_and_doubles_nothing(journal, store, sweep, monkeypatch):
    journal.append(sweep())
    sender = Sender(journal, experiment="exp", settings=store.settings, runs_dir=store.runs_dir)
    with monkeypatch.context() as patch:
        patch.setattr(MlflowRuns, "log_texts", lambda *_: (_ for _ in ()).throw(OSError("disk full")))
        with pytest.raises(OSError, match="disk full"):
            sender.catch_up()
    assert sender.behind() == 14
    assert sender.catch_up() == 14 and sender.behind() == 0
    assert store.count("metrics") == 36 and len(store.runs()) == 3
    artifacts = store.runs_dir / "mlartifacts" / "exp" / store.runs()[PARENT][2] / "artifacts"
    assert (artifacts / "config.yaml").is_file()


def test_a_stopped_command_says_what_it_still_waits_for(journal, store, tmp_path, capfd):
    for settings, said in ((store.settings, "MLflow has 5 s to take what is measured\n"), (TrackingSettings(enabled=False), "")):
        feeds = Feeds()
        feed = feeds._feeds["runs", "exp"] = MlflowFeed(journal, experiment="exp", settings=settings, runs_dir=store.runs_dir)
        feed.start()
        feeds.close(hurry=True)
        assert capfd.readouterr().out == said


def test_off_does_nothing(journal, tmp_path, sweep):
    feed = MlflowFeed(journal, experiment="exp", settings=TrackingSettings(enabled=False), runs_dir=tmp_path / "runs")
    feed.start()
    journal.append(sweep())
    feed.notify()
    assert feed.close() is None
    assert not (tmp_path / "runs" / "mlflow.db").exists()


def test_the_user_may_set_mlflows_variables(monkeypatch):
    for key in ENVIRONMENT_DEFAULTS:
        monkeypatch.delenv(key, raising=False)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "77")
    import_mlflow()
    assert os.environ["MLFLOW_HTTP_REQUEST_TIMEOUT"] == "77"
    assert os.environ["MLFLOW_DISABLE_TELEMETRY"] == os.environ["MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT"] == "true"


def test_uris():
    assert store_uri(None, "runs") == f"sqlite:///{Path('runs').absolute() / 'mlflow.db'}"
    assert store_uri("http://host:5000", "runs") == "http://host:5000"


def test_reasons():
    assert why(ModuleNotFoundError("No module named 'boto3'", name="boto3")) == "boto3 is not installed"
    assert why(OSError("HTTPSConnectionPool: Read timed out. (read timeout=10)")) == "server not reachable: timed out"
    assert why(ValueError("no\nsuch  thing")) == "ValueError: no such thing"


def test_sync_of_an_unknown_name(tmp_path, journal):
    journal.append([{"kind": "sweep"}])
    with pytest.raises(UserError, match="one of exp"):
        sync("exq", tmp_path / "runs", TrackingSettings())
    assert "nothing to send" in sync(None, tmp_path / "elsewhere", TrackingSettings())[0]


def test_a_journal_without_a_row_leaves_nothing_behind(tmp_path, sweep):
    folder = tmp_path / "runs" / "journal"
    folder.mkdir(parents=True)
    (folder / "noise.jsonl").write_bytes(b"\x00\xff{\nnot a row\n")
    (folder / "folder.jsonl").mkdir()
    for name in ("noise", "folder", None):
        with pytest.raises((UserError, UserErrors), match=r"noise.*whole row|folder.jsonl"):
            sync(name, tmp_path / "runs", TrackingSettings())
        assert sorted(os.listdir(folder)) == ["folder.jsonl", "noise.jsonl"] and os.listdir(tmp_path / "runs") == ["journal"]
    (folder / "begun.jsonl").touch()
    assert sync("begun", tmp_path / "runs", TrackingSettings()) == ["begun: its journal is empty, nothing to send"]
    assert os.listdir(tmp_path / "runs") == ["journal"] and len(os.listdir(folder)) == 3
