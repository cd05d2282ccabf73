"""Journals of a small sweep, and a tracking store that is copied instead of made anew, which takes seconds."""

import shutil
import sqlite3

import pytest

from qexp.config.tracking import TrackingSettings
from qexp.tracking import rows
from qexp.tracking.journal import Journal, journal_path
from qexp.tracking.mlflow_store import import_mlflow
from qexp.tracking.record import Record

# SQLAlchemy deprecates a loader that MLflow 3.17 uses.
NOLOAD = "ignore:The ``noload`` loader strategy is deprecated:DeprecationWarning"


def pytest_collection_modifyitems(items):
    """Let MLflow be imported in any test of this folder."""
    for item in items:
        if "tracking" in item.path.parts:
            item.add_marker(pytest.mark.filterwarnings(NOLOAD))


def make_record(variant="W8", epoch=1, *, training="a1b2c3d4", **changes):
    """One record; prec1 grows with the epoch and falls with the variant's name length."""
    is_float = variant == "fp32"
    values = dict(
        experiment="exp",
        training=training,
        variant=variant,
        variant_key=f"key{variant}",
        bits=32 if is_float else int(variant[1:]),
        mode="float" if is_float else "int",
        policy="uniform",
        quant="linear",
        granularity="per_tensor",
        input_quant="none",
        seed=0,
        epoch=epoch,
        prec1=80.0 + epoch,
        prec5=99.0,
        loss=0.5 / epoch,
        delta_prec1=0.0 if is_float else -0.5,
        n=1000,
        kl=None if is_float else 0.01,
        logit_sqnr_db=None if is_float else 20.0,
        size_bytes=1000,
        split="test",
        plan_hash=f"plan{variant}",
        data_hash="data",
        time_ms=1_000_000 + epoch,
    )
    return Record(**(values | changes))


def sweep_rows(variants=("W8", "W4"), epochs=2, *, training="a1b2c3d4", end=True):
    """The rows of one training and its variants, as a sweep writes them."""
    out = [rows.sweep_row("s1", command="train", versions={"torch": "2"}, host="h", git=None, time_ms=1)]
    params = {"train.lr": 0.1, "train.epochs": epochs, "seed": 0, "checkpoint": None, "nesterov": True}
    out.append(rows.run_row(training, name="resnet20", params=params, artifacts={"config.yaml": "seed: 0\n"}, time_ms=2))
    keys = [training]
    for variant in variants:
        keys.append(rows.run_key(training, f"key{variant}"))
        own_params = params | {"bits": int(variant[1:])}
        out.append(rows.run_row(keys[-1], parent=training, name=variant, params=own_params, tags={"qexp.sweep": "s1"}, time_ms=3))
    for epoch in range(1, epochs + 1):
        out.append(rows.metrics_row(training, step=epoch, values={"train_loss": 1.0 / epoch, "lr": 0.1}, time_ms=10 + epoch))
        for variant in ("fp32", *variants):
            out.append(rows.record_row(make_record(variant, epoch, training=training)))
    if end:
        out += [rows.end_row(key, "FINISHED", time_ms=2_000_000) for key in keys]
    return out


@pytest.fixture
def record():
    return make_record


@pytest.fixture
def sweep():
    return sweep_rows


@pytest.fixture
def journal(tmp_path):
    return Journal(journal_path(tmp_path / "runs", "exp"))  # of any rows, where an experiment's have a kind


@pytest.fixture(scope="session")
def template_store(tmp_path_factory):
    """A fresh SQLite store, made once."""
    import warnings

    path = tmp_path_factory.mktemp("store") / "mlflow.db"
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The ``noload``", DeprecationWarning)
        import_mlflow().MlflowClient(tracking_uri=f"sqlite:///{path}").search_experiments()
    return path


class Views:
    """Looks into the store behind MLflow's back."""

    def __init__(self, runs_dir):
        self.runs_dir = runs_dir
        self.path = runs_dir / "mlflow.db"
        self.settings = TrackingSettings(timeout_s=60)

    def query(self, text):
        with sqlite3.connect(self.path) as connection:
            return connection.execute(text).fetchall()

    def count(self, table):
        return self.query(f"select count(*) from {table}")[0][0]

    def runs(self):
        """Run key -> (status, parent's run id, run id)."""
        text = """select k.value, r.status, p.value, r.run_uuid from runs r
            join tags k on k.run_uuid = r.run_uuid and k.key = 'qexp.run'
            left join tags p on p.run_uuid = r.run_uuid and p.key = 'mlflow.parentRunId'"""
        runs = self.query(text)
        assert len({row[0] for row in runs}) == len(runs), "a run was made twice"
        return {key: (status, parent, run_id) for key, status, parent, run_id in runs}

    def points(self, run, name):
        """Steps and values of one metric of one run, by step."""
        run_id = self.runs()[run][2]
        return self.query(f"select step, value from metrics where run_uuid='{run_id}' and key='{name}' order by step, timestamp")

    def tag(self, run, key):
        values = self.query(f"select value from tags where run_uuid='{self.runs()[run][2]}' and key='{key}'")
        return values[0][0] if values else None

    def param(self, run, key):
        return self.query(f"select value from params where run_uuid='{self.runs()[run][2]}' and key='{key}'")[0][0]


@pytest.fixture
def store(tmp_path, template_store):
    """The default store of `tmp_path / 'runs'`, empty and ready."""
    (tmp_path / "runs").mkdir()
    shutil.copy(template_store, tmp_path / "runs" / "mlflow.db")
    return Views(tmp_path / "runs")
