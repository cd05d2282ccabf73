"""Kept copies are logged models that MLflow ranks; data sets are inputs of runs; what is sent twice is there once."""

import json

import pytest

from qexp.tracking import rows
from qexp.tracking.mlflow_store import import_mlflow
from qexp.tracking.sync import sync

PARENT, W8 = "a1b2c3d4", "a1b2c3d4/keyW8"
VARIANTS = {"fp32": 90.0, "W8": 89.5, "W4": 71.0}


@pytest.fixture
def kept(sweep, record):
    """Rows of a sweep whose last epoch is kept."""
    rows_of = []
    for row in sweep():
        if row["kind"] == "run":
            row["params"] |= {"data.name": "digits", "evaluate.split": "test"}
            row["tags"]["qexp.data_hash"] = "0f0c492b"
            row["planned_epochs"] = 2
        if row["kind"] == "record" and row["epoch"] == 2:
            scored = record(row["variant"], 2, prec1=VARIANTS[row["variant"]], predictions="p.safetensors", data_hash="0f0c492b")
            row = rows.record_row(scored)
        rows_of.append(row)
    return rows_of


@pytest.fixture
def client(store):
    return import_mlflow().MlflowClient(tracking_uri=f"sqlite:///{store.path}")


def ranked(client, **search):
    experiment = client.get_experiment_by_name("exp").experiment_id
    order = [{"field_name": "metrics.prec1", "ascending": False}]
    return client.search_logged_models([experiment], order_by=order, **search)


def test_copies_are_ranked_by_their_metrics(journal, store, kept, client):
    journal.append(kept)
    sync("exp", store.runs_dir, store.settings)
    models = ranked(client)
    assert [model.name for model in models] == ["fp32 epoch 2", "W8 epoch 2", "W4 epoch 2"]
    assert {str(model.status) for model in models} == {"READY"}
    assert [(model.params["bits"], model.params["epoch"], model.params["n"]) for model in models][1] == ("8", "2", "1000")
    of_w8 = {metric.key: metric for metric in models[1].metrics}
    assert of_w8["prec1"].value == 89.5 and of_w8["kl"].value == 0.01
    assert (of_w8["prec1"].dataset_name, of_w8["prec1"].dataset_digest) == ("test", "0f0c492b")
    run = client.get_run(store.runs()[W8][2])
    assert models[1].source_run_id == run.info.run_id
    assert [(output.model_id, output.step) for output in run.outputs.model_outputs] == [(models[1].model_id, 2)]
    assert [model.name for model in ranked(client, filter_string="metrics.prec1 > 80")] == ["fp32 epoch 2", "W8 epoch 2"]
    assert len(ranked(client, datasets=[{"dataset_name": "test", "dataset_digest": "0f0c492b"}])) == 3


def test_the_data_are_inputs(journal, store, kept, client):
    journal.append(kept)
    sync("exp", store.runs_dir, store.settings)
    inputs = {}
    for key, (_, _, run_id) in store.runs().items():
        given = client.get_run(run_id).inputs.dataset_inputs
        inputs[key] = {(one.dataset.name, one.dataset.digest, one.tags[0].value) for one in given}
        assert all(json.loads(one.dataset.profile)["data"] == "digits" for one in given)
    evaluated = ("test", "0f0c492b", "evaluation")
    assert inputs[W8] == {evaluated} and inputs[PARENT] == {("train", "0f0c492b", "training"), evaluated}


def test_sent_twice_they_are_there_once(journal, store, kept, client):
    journal.append(kept)
    tables = ("logged_models", "logged_model_metrics", "datasets", "inputs", "metrics")
    counts = []
    for _ in range(2):
        sync("exp", store.runs_dir, store.settings)
        counts.append([store.count(table) for table in tables])
        journal.path.with_name("exp.mlflow.json").unlink()
    assert counts[0] == counts[1] and counts[0][0] == 3


def test_what_a_killed_process_left_open_is_finished(journal, store, kept, client, monkeypatch):
    class Killed(BaseException):
        pass

    def die(*_args, **_values):
        raise Killed

    journal.append(kept)
    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr("qexp.tracking.copies.KeptCopies._finish", die)
        sync("exp", store.runs_dir, store.settings)
    assert [str(model.status) for model in ranked(client)] == ["PENDING"]
    sync("exp", store.runs_dir, store.settings)
    assert {str(model.status) for model in ranked(client)} == {"READY"} and store.count("logged_models") == 3
    for model in ranked(client):
        assert [one.model_id for one in client.get_run(model.source_run_id).outputs.model_outputs] == [model.model_id]


def test_epochs_that_are_not_kept_make_no_model(journal, store, sweep, client):
    journal.append(sweep())
    sync("exp", store.runs_dir, store.settings)
    assert not ranked(client) and store.count("datasets") == 0
