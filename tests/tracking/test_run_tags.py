"""What MLflow's UI says of a run by itself."""

import sqlite3

import pytest

from qexp.tracking import rows
from qexp.tracking.run_tags import description, source_tags
from qexp.tracking.sync import sync

COMMAND = "torchrun --nproc-per-node=2 -m qexp.train data=digits bits=4,8 -m"
PARAMS = {"model.name": "resnet20", "data.name": "digits", "seed": 3}


def row(parent=None, params=PARAMS, **tags):
    return {"run": "a", "parent": parent, "params": params, "tags": {key.replace("_", "."): value for key, value in tags.items()}}


def test_the_verb_is_the_source_whoever_started_it():
    tags = source_tags(row(qexp_command=COMMAND, qexp_git="abc123-dirty"))
    assert tags == {"mlflow.source.type": "LOCAL", "mlflow.source.name": "qexp.train", "mlflow.source.git.commit": "abc123"}
    assert "mlflow.source.git.commit" not in source_tags(row(qexp_command=COMMAND, qexp_git="none"))


def test_a_row_of_another_writer_has_no_source():
    assert source_tags(row()) == source_tags(row(qexp_command="python study.py")) == {}


def test_a_training_is_described_with_its_command():
    text = description(row(qexp_command=COMMAND))["mlflow.note.content"]
    assert text.startswith("resnet20 on digits, seed 3.") and text.endswith(f"\n\n    {COMMAND}")


@pytest.mark.parametrize("other", [row("a", qexp_command=COMMAND), row(params={}, qexp_command=COMMAND), row()], ids=range(3))
def test_what_is_no_training_of_a_sweep_is_not_described(other):
    assert description(other) == {}


def test_a_description_is_written_once(journal, store):
    again = rows.run_row("a", name="t", params=PARAMS, tags={"qexp.command": COMMAND})
    journal.append([again])
    sync("exp", store.runs_dir, store.settings)
    assert store.tag("a", "mlflow.source.name") == "qexp.train"
    assert COMMAND in store.tag("a", "mlflow.note.content")
    with sqlite3.connect(store.path) as connection:
        connection.execute("update tags set value = 'mine' where key = 'mlflow.note.content'")
    journal.append([again | {"name": "renamed"}])
    sync("exp", store.runs_dir, store.settings)
    assert store.tag("a", "mlflow.note.content") == "mine"
    assert store.query("select name from runs") == [("renamed",)]


def colors(store):
    return {run: store.tag(run, "mlflow.runColor") for run in store.runs()}


def test_variants_of_a_training_differ_in_colour_and_keep_theirs(journal, store, sweep):
    journal.append(sweep())
    sync("exp", store.runs_dir, store.settings)
    before = colors(store)
    assert before == {"a1b2c3d4": "#000000", "a1b2c3d4/keyW8": "#E69F00", "a1b2c3d4/keyW4": "#56B4E9"}
    journal.append(sweep(("W2", "W8", "W4")))
    sync("exp", store.runs_dir, store.settings)
    assert colors(store) == before | {"a1b2c3d4/keyW2": "#009E73"}
