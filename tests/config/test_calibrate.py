"""Settings of the calibration: ranges, and the files of the group."""

from __future__ import annotations

from dataclasses import asdict, fields
from pathlib import Path

import pytest
import yaml

from qexp.base.errors import UserError
from qexp.config.calibrate import METHOD_NAMES, READS, WEIGHT_METHOD_NAMES, CalibrateSettings

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


def test_every_method_has_a_file_and_the_base_holds_the_defaults():
    assert {path.stem for path in CONF.glob("*.yaml")} == {"_base", *METHOD_NAMES}
    assert yaml.safe_load((CONF / "_base.yaml").read_text()) == asdict(CalibrateSettings())
    for name in METHOD_NAMES:
        text = (CONF / f"{name}.yaml").read_text()
        assert text.startswith("# ") and yaml.safe_load(text) == {"defaults": ["_base", "_self_"], "name": name}


def test_what_a_method_reads_exists():
    assert set(READS) <= {item.name for item in fields(CalibrateSettings)}
    assert {name for names in READS.values() for name in names} <= set(METHOD_NAMES)
    assert set(WEIGHT_METHOD_NAMES) <= set(METHOD_NAMES)
