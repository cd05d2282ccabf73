"""Settings of quantizers: what a floating-point format or a scheme with blocks sets, and what contradicts it."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest

from qexp.base.errors import UserError, UserErrors
from qexp.base.types import ActivationInfo, PlanRow, TensorInfo
from qexp.config.policy import PolicySettings
from qexp.config.quant import ActivationQuantSettings, QuantSettings, WeightQuantSettings
from qexp.config.validate import validate
from qexp.experiment.labels import label_of
from qexp.policy.activations import activation_spec
from qexp.policy.plan import make_plan
from qexp.policy.sizes import plan_size_bytes, row_bytes
from qexp.policy.table import plan_rows, print_plan
from qexp.sweep.check import check

CONV = TensorInfo(
    name="conv.weight", module="conv", module_type="Conv2d", kind="conv", role="weight", shape=(8, 40, 3, 3), dtype="float32"
)
POINT = ActivationInfo(name="relu", shape=(40, 5, 5), channel_axis=1, layers=("conv.weight",))


@pytest.fixture(scope="module")
def values(compose):
    return compose("data=digits", "train=smoke", "model=resnet8")


def job(values: dict, changes: dict) -> dict:
    """The values of a job, with dotted keys changed."""
    made = copy.deepcopy(values)
    for key, value in changes.items():
        *path, last = key.split(".")
        group = made
        for part in path:
            group = group[part]
        group[last] = value
    return made


def plan(name: str, bits: int, *infos: TensorInfo, policy: str = "uniform", **weight):
    quant = QuantSettings(name=name, weight=WeightQuantSettings(**weight))
    return make_plan(infos or (CONV,), policy=PolicySettings(name=policy), quant=quant, bits=bits, mode="int")


@pytest.mark.parametrize(
    ("overrides", "bits"),
    [
        (("quant=affine",), 8), (("quant=affine", "bits=5"), 5), (("quant=mxfp4",), 4), (("quant=binary",), 1),
        (("quant=minifloat",), 8), (("quant=minifloat", "bits=6"), 6), (("quant=minifloat", "quant.weight.format=e2m3"), 6),
        (("quant=bfp",), 8),
    ],
)  # fmt: skip
def test_bits_left_out_are_those_of_the_format(compose, overrides, bits):
    assert compose(*overrides)["bits"] == bits


def test_activations_are_quantized_by_a_scheme_or_format_of_one_width():
    for settings, bits, dynamic in (
        ({"scheme": "mxfp4"}, 4, True), ({"scheme": "minifloat"}, None, False), ({"scheme": "bfp", "bits": 6}, 6, True),
        ({"scheme": "minifloat", "format": "e3m4"}, 8, False), ({"scheme": "minifloat", "bits": 8, "scaled": False}, 8, True),
        ({"scheme": "affine"}, None, False),
    ):  # fmt: skip
        asked = ActivationQuantSettings(**settings)
        assert (asked.bits, asked.dynamic, asked.layers_only) == (bits, dynamic, dynamic), settings


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"scheme": "mxfp4", "bits": 8}, "bits=8: allowed is 4, or left out"),
        ({"scheme": "mxfp4", "places": "all"}, "places=all: allowed is layers with quant.activation.scheme=mxfp4"),
        ({"scheme": "mxfp4", "granularity": "per_channel"}, "per_tensor, which is not read.*blocks of 32 channels"),
        ({"scheme": "bfp", "bits": 4, "block_size": 1}, "block_size=1"),
        ({"scheme": "minifloat", "bits": 4, "format": "e4m3fn"}, "quant.activation.format=e4m3fn: allowed is a format of 4 bits"),
        ({"scheme": "minifloat", "format": "e4m3fn_inf"}, "no infinities"),
        ({"scheme": "log2", "bits": 4}, "one of .*mxfp4"),
    ],
)
def test_what_activations_may_not_ask(settings, words):
    with pytest.raises(UserError, match=words):
        ActivationQuantSettings(**settings)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"quant.name": "mxfp4", "calibrate.weights": "mse"}, "calibrate.weights=mse: allowed is minmax.*no range to clip"),
        ({"quant.name": "minifloat", "quant.weight.scaled": False, "calibrate.weights": "mse"}, "scaled=false takes the values"),
        ({"quant.name": "minifloat", "calibrate.weights": "kl"}, "calibrate.weights=kl: .*quant=minifloat"),
        (
            {"quant.activation.scheme": "minifloat", "quant.activation.bits": 8, "calibrate.name": "kl"},
            "calibrate=kl: .*minifloat",
        ),
        ({"qat.name": "lsq", "quant.activation.scheme": "mxfp4"}, "quant.activation.scheme=mxfp4: allowed is affine"),
        ({"qat.name": "lsq", "quant.name": "mxfp4"}, "quant=mxfp4: allowed is"),
    ],
)
def test_what_a_job_may_not_ask(values, changes, words):
    with pytest.raises(UserErrors, match=words):
        validate(job(values, changes))


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (("quant=mxfp4",), "quant=mxfp4: allowed is affine, .* in qexp.export"),
        (("quant=minifloat",), "quant.activation.scheme=affine: allowed is minifloat with quant=minifloat"),
        (("quant.activation.scheme=mxfp8_e4m3",), "quant.activation.scheme=mxfp8_e4m3: allowed is affine, .*No runtime"),
    ],
)
def test_export_names_what_it_cannot_write(compose, tmp_path, overrides, words):
    (tmp_path / "a.pt").touch()
    own = ("quant.activation.bits=null",) if "activation" in overrides[0] else ()
    with pytest.raises(UserErrors, match=words):
        check([compose("data=digits", f"checkpoint={tmp_path / 'a.pt'}", *own, *overrides, verb="export")], "export")


def test_a_plan_says_format_and_blocks():
    (row,) = plan_rows(plan("minifloat", 8))
    assert (row["scheme"], row["bits"], row["size_bytes"]) == ("minifloat e4m3fn", 8, 8 * 360 + 4)
    assert plan("minifloat", 8, format="e4m3fn_sat").hash == plan("minifloat", 8).hash  # the same format by another name
    assert plan("minifloat", 8, format="e4m3").hash != plan("minifloat", 8).hash
    blocked = plan("mxfp4", 4)
    (row,) = plan_rows(blocked)
    assert (row["granularity"], row["axis"], row["group_size"], row["size_bytes"]) == ("per_block", 0, 32, 1440 + 8 * 12)
    assert "mxfp4 per_block 32 axis 0" in "\n".join(print_plan(blocked).body)
    assert plan("mxfp4", 4, granularity="per_channel").hash == blocked.hash  # which blocks do not read
    transposed = replace(CONV, channel_axis=1)
    assert plan("bfp", 6, transposed, block_size=16).quantized["conv.weight"].axis == 1
    assert plan_size_bytes(plan("bfp", 6, transposed, block_size=16)) == 2880 * 6 // 8 + 40 * 5  # 72 = 4 * 16 + 8
    assert row_bytes(PlanRow(CONV, plan("nvfp4", 4).quantized["conv.weight"], "")) == 1440 + 8 * 23 + 4
    bias = replace(CONV, name="b.weight", shape=(70,))
    assert plan("mxfp4", 4, CONV, bias).quantized["b.weight"].granularity == "per_block"


def test_edges_of_another_width_go_with_a_format_of_theirs():
    first, last = CONV, replace(CONV, name="last.weight", order=2)
    middle = replace(CONV, name="middle.weight", order=1)
    wide = plan("minifloat", 4, first, middle, last, policy="first_last").quantized
    assert [spec.format for spec in wide.values()] == ["e4m3fn", "e2m1", "e4m3fn"]
    for name, weight in (("mxfp4", {}), ("minifloat", {"format": "e2m1"})):
        with pytest.raises(UserError, match="exactly 4 for quant=mxfp4|a format of 8 bits"):
            plan(name, 4, first, middle, last, policy="first_last", **weight)
    with pytest.raises(UserError, match="quant.activation.bits=8: allowed is 4 .*relu is given 8"):
        activation_spec(POINT, ActivationQuantSettings(scheme="mxfp4"), 8)


def test_labels_say_what_was_asked_for(values):
    def words(bits, **weight):
        config = validate(
            job(values, {"bits": bits} | {f"quant.{key.replace('__', '.')}": value for key, value in weight.items()})
        )
        made = make_plan((CONV,), policy=config.policy, quant=config.quant, bits=config.bits, mode="int")
        return label_of(config, made).words

    assert words(4, name="mxfp4", weight__granularity="per_channel") == ("mxfp4",)
    assert words(8, name="minifloat", weight__format="e3m4", weight__scaled=False) == ("minifloat", "e3m4", "unscaled")
    assert words(4, name="bfp", weight__block_size=16) == ("bfp", "b16")
