"""A granularity that saves nothing is an alarm, before anything is quantized."""

import pytest

from qexp.base.types import Plan, PlanRow, QuantSpec, TensorInfo
from qexp.policy.sizes import larger_than_float, plan_size_bytes
from qexp.policy.table import print_plan


def plan(shape, other=(4, 4, 3, 3), **spec):
    infos = [
        TensorInfo(name=name, module="", module_type="", kind="conv", role="weight", shape=size, dtype="float32")
        for name, size in (("narrow", shape), ("wide", other))
    ]
    return Plan(tuple(PlanRow(info, QuantSpec(scheme="linear", **spec), "") for info in infos))


@pytest.mark.parametrize(
    ("shape", "spec", "is_alarm"),
    [
        ((8, 4, 1, 1), {"bits": 4, "granularity": "per_in_out_channel"}, True),  # a range of 8 bytes for each element
        ((8, 4, 3, 3), {"bits": 4, "granularity": "per_in_out_channel"}, False),
        ((8, 8), {"bits": 16, "granularity": "per_group", "group_size": 4}, True),  # 8 bytes of codes, 8 of range, 16 in float
        ((8, 8), {"bits": 15, "granularity": "per_group", "group_size": 4}, False),
        ((2, 1), {"bits": 8, "granularity": "per_channel"}, True),
        ((1, 1), {"bits": 8}, False),  # no range is coarser
        ((8, 4, 1, 1), {"bits": 4, "granularity": "per_in_out_channel", "mode": "float"}, False),
    ],
)
def test_ranges_that_take_what_codes_save(shape, spec, is_alarm):
    alarms = larger_than_float(plan(shape, **spec))
    assert len(alarms) == is_alarm and all("(narrow" in text for text in alarms)


def test_it_says_how_much_and_stands_in_the_printed_plan():
    narrow = plan((8, 4, 1, 1), bits=4, granularity="per_in_out_channel")
    (alarm,) = larger_than_float(narrow)
    assert alarm == "1 of 2 tensors take 272 bytes with their per_in_out_channel ranges, 128 bytes in float (narrow)"
    assert plan_size_bytes(Plan(narrow.rows[:1])) == 16 + 32 * 8
    assert f"! {alarm}" in print_plan(narrow).remarks
