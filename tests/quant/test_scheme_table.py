"""The settings and their files, what each scheme reads, and the hash of a spec."""

from __future__ import annotations

import re
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import yaml

from qexp.base.errors import UserError
from qexp.base.files import hash_json
from qexp.base.types import Plan, PlanRow, QuantSpec, TensorInfo
from qexp.config.policy import PolicySettings
from qexp.config.quant import QuantSettings, WeightQuantSettings
from qexp.policy.plan import make_plan
from qexp.quant.scheme_table import OWN_SETTINGS, SCHEMES, code_range

ROOT = Path(__file__).parents[2]
CONF, PAGE = ROOT / "conf" / "quant", ROOT / "docs" / "quantizers.md"


def info(shape: tuple[int, ...], name: str = "conv.weight", **others) -> TensorInfo:
    return TensorInfo(
        name=name, module="conv", module_type="Conv2d", kind="conv", role="weight", shape=shape, dtype="float32", **others
    )


def plan(*infos: TensorInfo, bits: int = 4, mode: str = "int", name: str = "affine", **weight) -> Plan:
    quant = QuantSettings(name=name, weight=WeightQuantSettings(**weight))
    return make_plan(infos, policy=PolicySettings(), quant=quant, bits=bits, mode=mode)


def test_the_base_holds_the_defaults():
    base = yaml.safe_load((CONF / "_base.yaml").read_text())
    assert base == asdict(QuantSettings())


def test_what_is_read_is_a_setting_of_a_scheme():
    assert {key for row in SCHEMES.values() for key in row.reads} == set(OWN_SETTINGS)
    for key in OWN_SETTINGS:
        assert hasattr(WeightQuantSettings(), key) and hasattr(QuantSpec(scheme="affine", bits=8), key)


def test_the_page_says_what_the_rows_say():
    """docs/quantizers.md: | name | map | codes | bits | zero exact | stored beside the codes, bytes |."""
    lines = [line.strip("|").split(" | ") for line in PAGE.read_text().splitlines() if line.startswith("| `")]
    assert [line[0].strip(" `") for line in lines] == list(SCHEMES)
    for (_, _, codes, bits, zero, stored), row in zip(lines, SCHEMES.values(), strict=True):
        low, high = row.min_bits, row.max_bits
        ends = codes.removeprefix("+-").replace("^", "**")
        written = [eval(part, {"b": high}) for part in re.split(" to |, ", ends)]
        written = [-written[0], written[0]] if codes.startswith("+-") else written
        assert (written[0], written[-1]) == row.code_range(high), row.name
        assert bits == (str(low) if low == high else f"{low}-{high}"), row.name
        assert zero == {"always": "yes", "never": "no"}.get(row.zero, f"with `{row.zero}`"), row.name
        assert eval(stored.partition(";")[0].replace("^", "**"), {"b": high}) == row.group_bytes(high), row.name


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"group_size": 1}, "group_size=1"),
        ({"rounding_seed": -1}, "rounding_seed=-1"),
        ({"fraction_bits": 65}, "fraction_bits=65"),
    ],
)
def test_ranges(settings, words):
    with pytest.raises(UserError, match=words):
        WeightQuantSettings(**settings)


def test_a_rounding_that_would_not_be_used_is_refused():
    with pytest.raises(UserError, match="half_even for quant=lut_kmeans"):
        QuantSettings(name="lut_kmeans", weight=WeightQuantSettings(rounding="floor"))
    QuantSettings(name="log2", weight=WeightQuantSettings(rounding="floor", level="companded"))


def test_code_ranges():
    assert code_range("symmetric", 8) == code_range("fixed_point", 8) == (-128, 127)
    assert code_range("pow2_scale", 3) == (-3, 3) and code_range("ternary", 2) == (-1, 1) and code_range("binary", 1) == (0, 1)
    assert code_range("scale_factor", 4) == (-8, 7) and code_range("scale_factor", 4, signed=False) == (0, 15)


def test_old_specs_keep_their_hash():
    """As computed before there were groups: stored evaluations are found again."""
    spec = QuantSpec(scheme="linear", bits=4)
    before = {"scheme": "linear", "bits": 4, "mode": "int", "granularity": "per_tensor", "axis": 0}
    before |= {"rounding": "half_even", "arithmetic": "reciprocal"}
    plain = Plan((PlanRow(info((4, 3, 3, 3)), spec, ""),))
    assert plain.hash == hash_json({"specs": {"conv.weight": before}, "mode": "int", "input": "none"})
    changes = {"group_size": 8, "rounding_seed": 1, "level": "companded", "signed": False}
    changes |= {"fraction_bits": 3, "pow2_round": "nearest", "pin_zero": True}
    hashes = {Plan((replace(plain.rows[0], spec=replace(spec, **{key: value})),)).hash for key, value in changes.items()}
    assert len(hashes | {plain.hash}) == 8


def test_granularity_falls_back_where_a_group_would_be_one_element():
    matrix, kernel = info((10, 20), "fc.weight"), info((4, 3, 3, 3))
    pairs = plan(matrix, kernel, granularity="per_in_out_channel")
    assert pairs.quantized["fc.weight"].granularity == "per_channel"
    assert pairs.quantized["conv.weight"] == QuantSpec(scheme="affine", bits=4, granularity="per_in_out_channel")
    assert "1 matrices are quantized per_channel" in " ".join(pairs.notes)
    grouped = plan(matrix, info((9,), "v.weight"), info((6, 4, 3, 3), channel_axis=1), granularity="per_group", group_size=8)
    assert [spec.granularity for spec in grouped.quantized.values()] == ["per_group", "per_tensor", "per_group"]
    assert [spec.group_size for spec in grouped.quantized.values()] == [8, None, 8]
    assert grouped.quantized["conv.weight"].axis == 1
    assert "1 vectors are quantized per tensor" in " ".join(grouped.notes)


def test_settings_that_a_scheme_does_not_read_make_no_other_plan():
    tensor = info((4, 3, 3, 3))
    odd = plan(tensor, fraction_bits=3, signed=False, group_size=9, rounding_seed=5)
    assert odd.hash == plan(tensor).hash
    assert "quant.weight.fraction_bits is not used by quant=affine" in odd.notes
    assert plan(tensor, name="fixed_point", fraction_bits=3).quantized["conv.weight"].fraction_bits == 3
    assert "negative values become 0" in " ".join(plan(tensor, name="unsigned_symmetric").notes)
    assert "negative values become 0" in " ".join(plan(tensor, name="scale_factor", signed=False).notes)


def test_the_seed_of_stochastic_rounding_is_of_the_setting_and_the_tensor():
    first, second = info((4, 3, 3, 3)), info((4, 3, 3, 3), "b.weight")
    seeds = [plan(first, second, rounding="stochastic", rounding_seed=seed).quantized for seed in (0, 0, 1)]
    assert seeds[0] == seeds[1]
    assert len({spec.rounding_seed for specs in seeds[1:] for spec in specs.values()}) == 4
    tied = info((4, 3, 3, 3), "c.weight", tied_to="conv.weight")
    result = plan(first, tied, rounding="stochastic").quantized
    assert result["c.weight"] == result["conv.weight"]


@pytest.mark.parametrize(
    ("name", "bits", "mode", "words"),
    [
        ("binary", 8, "int", "bits=8: allowed is exactly 1 for quant=binary"),
        ("ternary", 1, "int", "exactly 2"),
        ("log2", 9, "int", "at most 8 for quant=log2. At 9 bits"),
        ("lut_kmeans", 16, "int", "at most 8"),
        ("symmetric", 1, "int", "at least 2"),
        ("lut_quantile", 4, "float", "mode=float: allowed is int for quant=lut_quantile"),
        ("dorefa", 1, "float", "dorefa at 1 bit"),
    ],
)
def test_what_a_plan_refuses(name, bits, mode, words):
    with pytest.raises(UserError, match=words):
        plan(info((4, 3, 3, 3)), bits=bits, mode=mode, name=name)
