"""Settings of the calibration: ranges, and the files of the group."""

from __future__ import annotations

import math
from dataclasses import asdict
from pathlib import Path

import pytest
import yaml

from qexp.base.errors import UserError
from qexp.config.calibrate import RANGE_METHODS, CalibrateSettings
from qexp.config.later import stored_values
from qexp.config.root import Config

CONF = Path(__file__).resolve().parents[2] / "conf" / "calibrate"


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("num_images", 0),
        ("batch_size", 0),
        ("percentile", 50.0),
        ("percentile", 100.1),
        ("momentum", 1.5),
        ("momentum", -0.1),
        ("norm", 0.1),
        ("num_candidates", 1),
        ("num_bins", 100),
        ("num_sigmas", 0.0),
    ],
)
def test_ranges(key, value):
    with pytest.raises(UserError, match=f"calibrate.{key}={value}"):
        CalibrateSettings(**{key: value})


def test_the_base_holds_the_defaults():
    assert yaml.safe_load((CONF / "_base.yaml").read_text()) == asdict(CalibrateSettings())


def test_what_a_method_reads_exists():
    assert {name for row in RANGE_METHODS.values() for name in row.read_settings} <= set(asdict(CalibrateSettings()))


@pytest.mark.parametrize(
    "values, message",
    [
        ({"name": "custom"}, "calibrate.factory=None: allowed is package.module:function or file.py:function"),
        ({"factory": "mine.py:f"}, "calibrate.factory=mine.py:f: allowed is null. It belongs to calibrate=custom"),
        ({"name": "percentil"}, "calibrate.name=percentil: allowed is one of .* Did you mean percentile?"),
        ({"weights": "bn"}, "calibrate.weights=bn: allowed is one of aciq, custom, kl, .*minmax, .*percentile"),
    ],
)
def test_methods_that_do_not_exist(values, message):
    with pytest.raises(UserError, match=message):
        CalibrateSettings(**values)


def test_what_is_hashed_of_settings_without_a_method_of_ones_own_is_what_it_always_was():
    assert CalibrateSettings(name="kl").identity == {
        key: value for key, value in asdict(CalibrateSettings(name="kl")).items() if key not in ("factory", "draw")
    }
    assert CalibrateSettings(name="kl", draw=2).identity == CalibrateSettings(name="kl").identity | {"draw": 2}


def test_a_later_setting_is_stored_where_it_is_not_at_its_default():
    values = {"name": "x", "calibrate": {"name": "kl", "factory": None}, "odd": math.nan}
    stored = stored_values(values, Config)
    assert stored["calibrate"] == {"name": "kl"} and list(stored) == ["name", "calibrate", "odd"]
    own = {"calibrate": {"name": "custom", "factory": "mine.py:f"}}
    assert stored_values(own, Config) == own
