"""The root configuration: strict, and hashed by exactly what decides a training's weights."""

import copy
import dataclasses
import math
from typing import get_type_hints

import pytest

from qexp.base.checks import bounds_of
from qexp.base.errors import UserErrors
from qexp.config.qat import IN_RECIPE
from qexp.config.root import Config
from qexp.config.validate import all_keys, validate
from qexp.experiment.identity import DIALS, group_key, training_hash, training_identity

NOT_OF_THE_WEIGHTS = {
    "train.checkpoint_every_steps",
    "data.root",
    "data.download",
    "data.workers",
    "data.storage",
    "data.classes",
    "data.label",
}


@pytest.fixture(scope="session")
def values(compose):
    return compose("data=digits", "train=smoke", "policy=rules", "policy.rules=[{match: conv1, bits: 3}]")


@pytest.fixture(scope="session")
def config(values):
    return validate(values)


def changed(config: Config, key: str) -> Config:
    """The configuration with another value under `key`; ranges are not looked at."""
    config = copy.deepcopy(config)
    *path, last = key.split(".")
    owner = config
    for name in path:
        owner = getattr(owner, name)
    object.__setattr__(owner, last, _another(getattr(owner, last)))
    return config


def _another(value):
    if isinstance(value, bool):
        return not value
    if isinstance(value, int | float):
        return value + 1
    return "other" if value is None else value + (value[:1] or ["other"])


def leaves(config: Config) -> list[str]:
    """Dotted keys that hold values, the elements of a list as one."""

    def walk(owner, prefix):
        for item in dataclasses.fields(owner):
            value = getattr(owner, item.name)
            if dataclasses.is_dataclass(value):
                yield from walk(value, f"{prefix}{item.name}.")
            else:
                yield prefix + item.name

    return list(walk(config, ""))


def test_exactly_the_training_keys_decide_the_hash(config):
    before = training_hash(config, "data")
    decide = {key for key in leaves(config) if training_hash(changed(config, key), "data") != before}
    groups = ("data.", "model.", "train.")
    expected = {key for key in leaves(config) if key.startswith(groups) or key in ("seed", "deterministic", "qat.name")}
    assert decide == expected - NOT_OF_THE_WEIGHTS
    assert len(expected) > 30


def test_under_qat_its_settings_decide_the_hash_too(values):
    config = validate({**values, "qat": {"name": "lsq"}})
    before = training_hash(config, "data", qat={"plan": "p", "start": "s"})
    # Keys of the recipe are put through its own checks, which other values here would fail.
    # A factory is a file that must exist: tests/experiment/test_own_method.py.
    keys = [
        key for key in leaves(config) if not key.startswith("train.") and key.rpartition(".")[2] not in (*IN_RECIPE, "factory")
    ]
    begun = {"plan": "p", "start": "s"}
    decide = {key for key in keys if training_hash(changed(config, key), "data", qat=begun) != before}
    # Policy and quant decide through the plan's hash.
    expected = {key for key in keys if key.startswith(("qat.", "calibrate.")) or key == "bits"}
    assert expected - {"calibrate.factory"} <= decide  # which only calibrate=custom reads
    assert not decide & {"evaluate.batch_size", "float_only", "name", "mode", "policy.name", "quant.name"}
    slower = validate({**values, "qat": {"name": "lsq", "lr": 1e-4}})
    assert training_hash(slower, "data", qat={"plan": "p", "start": "s"}) != before
    assert training_hash(config, "data", qat={"plan": "q", "start": "s"}) != before
    assert training_hash(config, "data", qat={"plan": "p", "start": None}) != before
    assert config.float_start == validate({**values, "float_only": True})


def test_quantization_aware_jobs_of_different_quantizers_are_groups_of_their_own(values):
    def key(**more):
        return group_key(validate({**values, "qat": {"name": "lsq"}, **more}))

    assert key() == key()
    assert (
        len({key(), key(bits=4), key(policy={"name": "first_last"}), key(quant={"weight": {"granularity": "per_channel"}})}) == 4
    )


def test_the_hash_covers_data_and_initial_weights(config):
    hashes = {
        training_hash(config, "a"),
        training_hash(config, "b"),
        training_hash(config, "a", "c"),
        training_hash(config, "a", "d"),
        training_hash(config, "a", "d", "e"),
    }
    assert len(hashes) == 5


def test_aliases_of_a_precision_are_one_training(values):
    def of(precision):
        return training_identity(validate({**values, "train": {**values["train"], "precision": precision}}))

    assert of("O0") == of("fp32")
    assert of("O1") == of("O3") == of("fp16") != of("fp32")


def test_only_the_dials_share_a_group(config):
    before = group_key(config)
    share = {key for key in leaves(config) if group_key(changed(config, key)) == before}
    assert share == {key for key in leaves(config) if key.split(".")[0] in DIALS} | {"data.label"}


def test_every_key_is_known_once(config):
    keys = list(all_keys())
    assert len(keys) == len(set(keys))
    assert set(leaves(config)) <= set(keys)
    assert {"policy.rules", "quant.weight.rounding", "train"} <= set(keys)


def broken(values, changes: dict) -> list[str]:
    values = copy.deepcopy(values)
    for key, value in changes.items():
        *path, last = key.split(".")
        owner = values
        for name in path:
            owner = owner[name]
        owner[last] = value
    with pytest.raises(UserErrors) as raised:
        validate(values)
    return [str(error) for error in raised.value.errors]


def test_all_mistakes_of_a_job_are_reported_together(values):
    errors = broken(values, {"bits": "8", "mode": "integer", "train.epochs": 0, "data.nam": 1, "quant.weight.rounding": "even"})
    assert len(errors) == 5
    text = "\n".join(errors)
    assert "bits=8: allowed is an integer" in text
    assert "mode=integer: allowed is one of int, float, half. Did you mean int?" in text
    assert "train.epochs=0" in text and "from 1 to 100000" in text
    assert "quant.weight.rounding=even" in text and "half_even" in text
    assert "data.nam=1: there is no such key. Did you mean data.name?" in text


@pytest.mark.parametrize(
    "key, value",
    [
        ("bits", "8"),
        ("bits", 8.0),
        ("bits", True),
        ("seed", "0"),
        ("deterministic", 1),
        ("deterministic", "true"),
        ("name", 5),
        ("train.lr", "0.1"),
        ("train.epochs", 1.0),
        ("data.mean", "0.5"),
        ("data.mean", [0.5, "0.5"]),
        ("policy.rules", [{"match": 3}]),
        ("policy.rules", [{"bits": "4"}]),
    ],
)
def test_types_are_strict(values, key, value):
    (message,) = broken(values, {key: value})
    assert message.startswith(key)


@pytest.mark.parametrize(
    "key, value",
    [
        ("bits", 0),
        ("bits", 17),
        ("seed", -1),
        ("device", "gpu"),
        ("device", "cpu:1"),
        ("device", "cuda:x"),
        ("name", ""),
        ("name", "a/b"),
        (
            "name",
            "..",
        ),
        ("policy.rules", [{"bits": 64}]),
        ("trajectory.keep", "every:0"),
        ("evaluate.split", "validation"),
        ("tracking.timeout_s", -1.0),
    ],
)
def test_ranges_are_held(values, key, value):
    (message,) = broken(values, {key: value})
    assert message.startswith(key) and "allowed is" in message


def test_every_bound_is_held_and_all_are_reported_in_one_pass(values):
    owners = {"": Config} | {f"{name}.": hint for name, hint in get_type_hints(Config).items() if dataclasses.is_dataclass(hint)}
    changes, expected = {}, set()
    for prefix, owner in owners.items():
        for name, bounds in bounds_of(owner).items():
            beyond = bounds.kind((bounds.high if bounds.low is None else bounds.low) - (0 if bounds.open_low else 1))
            is_list = "list" in str(get_type_hints(owner)[name])
            changes[f"{prefix}{name}"] = [beyond] if is_list else beyond
            expected.add(f"{prefix}{name}={beyond}: allowed is {bounds}")
    changes |= {"mode": "integer"}
    values = copy.deepcopy(values)
    for key in changes:
        values.setdefault(key.rpartition(".")[0], {}) if "." in key else None
    errors = broken(values, changes)
    assert expected <= set(errors) and len(expected) > 40
    assert any(error.startswith("mode=integer") for error in errors)


@pytest.mark.parametrize("value", [math.inf, -math.inf, math.nan])
@pytest.mark.parametrize("key", ["train.lr", "train.weight_decay", "tracking.timeout_s", "data.mean"])
def test_numbers_are_finite(values, key, value):
    (message,) = broken(values, {key: [value] if key == "data.mean" else value})
    assert message.startswith(key)
    assert "finite" in message


@pytest.mark.parametrize(
    "key, near",
    [
        ("bitz", "bits"),
        ("quant.bit", "bits"),
        ("train.learning_rate", "Known there: train.epochs"),
        ("data.rot", "data.root"),
        ("qant", "quant"),
    ],
)
def test_unknown_keys_name_the_nearest(values, key, near):
    (message,) = broken(values, {key: 4})
    assert message.startswith(f"{key}=4: there is no such key.")
    assert near in message


def test_an_unknown_key_of_a_rule(values):
    (message,) = broken(values, {"policy.rules": [{"match": "conv1", "bit": 4}]})
    assert "bit" in message and "no such key" in message


def test_a_missing_value_is_said(values):
    without = {key: value for key, value in values.items() if key != "name"}
    with pytest.raises(UserErrors, match="name=\\(missing\\)"):
        validate(without)


def test_an_experiment_speaks_after_the_command(compose):
    """What a command sets otherwise comes before its experiment: both speak of `export.runtime`."""
    assert compose(verb="export")["export"]["runtime"] == "onnxruntime"
    values = compose("experiment=int8_resnet20", verb="export")
    assert values["export"]["runtime"] == ["onnxruntime", "openvino"] and values["export"]["cost"] is False
    assert values["quant"]["weight"]["granularity"] == "per_channel" and values["correct"]["fold_bn"] is True
