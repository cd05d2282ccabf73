"""Our rows of every kind: fields of the right types, code that is found, claims that hold with each other."""

from dataclasses import fields
from importlib import metadata
from string import Formatter

import pytest

from qexp.base.catalog import Catalog
from qexp.base.checks import check_types
from qexp.config.calibrate import RANGE_METHODS
from qexp.config.correct import CORRECTIONS
from qexp.config.data import DATASETS, DataSettings
from qexp.config.export import RUNTIMES
from qexp.config.metrics import METRICS, OWN, check_row
from qexp.config.model import NETWORKS
from qexp.config.policy import POLICIES, PolicySettings
from qexp.config.qat_methods import QAT_METHODS
from qexp.quant.scheme_table import SCHEMES

CATALOGS: tuple[Catalog, ...] = (
    SCHEMES, RANGE_METHODS, CORRECTIONS, QAT_METHODS, POLICIES, METRICS, RUNTIMES, DATASETS, NETWORKS,
)  # fmt: skip
ROWS = [pytest.param(catalog, name, id=f"{catalog.key}={name}") for catalog in CATALOGS for name in catalog]


@pytest.mark.parametrize(("catalog", "name"), ROWS)
def test_a_row_is_whole(catalog, name):
    row = catalog[name]
    check_types(row)
    assert row.summary.endswith(".") and "\n" not in row.summary
    assert isinstance(row.code, str) and callable(row.load())


@pytest.mark.parametrize("name", METRICS)
def test_a_metric_does_not_contradict_itself(name, monkeypatch):
    monkeypatch.setattr("qexp.config.metrics.OWN", {key: getattr(METRICS[name], key) for key in OWN})
    check_row(METRICS[name], METRICS[name].load())


@pytest.mark.parametrize("name", POLICIES)
def test_a_policy_reads_what_it_says(name):
    row = POLICIES[name]
    assert set(row.reads) <= {field.name for field in fields(PolicySettings)} - {"name"}
    assert {key for _, key, _, _ in Formatter().parse(row.label) if key} <= set(row.reads)


@pytest.mark.parametrize("name", RUNTIMES)
def test_a_runtime_names_what_is_installed(name):
    assert metadata.version(RUNTIMES[name].distribution)


@pytest.mark.parametrize("name", DATASETS)
def test_a_set_can_be_held_as_it_says(name):
    row = DATASETS[name]
    assert set(row.storage) <= {"auto", "ram", "stream"} and row.storage[0] == DataSettings.storage
    streams = "streaming:" in row.code
    assert streams == ("stream" in row.storage)
