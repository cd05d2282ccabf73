import copy

import hydra
import pytest
from hydra.errors import HydraException
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from qexp.base.errors import UserError, UserErrors
from qexp.sweep.arguments import check_arguments, hydra_error, typed_settings
from qexp.sweep.check import check, group
from qexp.sweep.compose import conf_dir


@pytest.fixture(scope="session")
def values(compose):
    return compose("data=digits", "train=smoke")


def job(values, **changes):
    values = copy.deepcopy(values)
    for key, value in changes.items():
        *path, last = key.split("__")
        owner = values
        for name in path:
            owner = owner[name]
        owner[last] = value
    return values


def messages(error: UserErrors) -> list[str]:
    return str(error).splitlines()


@pytest.mark.parametrize(
    "argument",
    [
        "bits=4", "+bits=4", "++bits=4", "~bits", "data=cifar10", "data.root=/x", "quant.weight.rounding=floor", "experiment=x",
        "hydra.verbose=true", "hydra/launcher=basic", "policy.rules.0.bits=4", "policy.rules=[{match: conv1, bits: 4}]",
        "name='a=b'", "-m", "--config-dir", "--cfg=job", "/some/folder",
    ],
)  # fmt: skip
def test_known_arguments_pass(argument):
    check_arguments(typed_settings([argument]))


@pytest.mark.parametrize(
    "argument, near",
    [
        ("bitz=4", "Did you mean bits?"),
        ("+quant.bit=4", "Did you mean bits?"),
        ("++quant.bit=4", "Did you mean bits?"),
        ("+quant.wait.rounding=floor", "Did you mean quant.weight.rounding?"),
        ("~bitz", "Did you mean bits?"),
        ("bitz=1,2,3", "Did you mean bits?"),
        ("train.epoch=3", "Did you mean train.epochs?"),
        ("threads=4", "Did you mean export.threads?"),
        ("nonsense=1", "Did you mean export.unsigned or seed or "),
        ("zzz=1", "there is no such key. --help lists groups and first keys, docs/keys.md every key."),
    ],
)
def test_unknown_keys_are_refused_before_hydra_sees_them(argument, near):
    with pytest.raises(UserErrors) as raised:
        check_arguments(typed_settings(["seed=1", argument, "-m"]))
    (message,) = messages(raised.value)
    assert "there is no such key" in message and near in message


def test_what_the_command_chooses_is_not_typed():
    with pytest.raises(UserErrors, match=r"^verb=export\. The command chooses it: python -m qexp\.export"):
        check_arguments({"verb": "export"})


def test_words_that_are_no_overrides_are_named_together():
    with pytest.raises(UserErrors) as raised:
        typed_settings(["bits=[4", "seed=1", "name=a=b"])
    first, second = messages(raised.value)
    assert first.startswith("command line=bits=[4") and second.startswith("command line=name=a=b")


def test_all_unknown_keys_are_named_at_once():
    with pytest.raises(UserErrors) as raised:
        check_arguments({"bitz": "4", "sed": "1", "bits": "4"})
    assert len(raised.value.errors) == 2


def test_the_last_of_six_jobs_is_named(values):
    with pytest.raises(UserErrors) as raised:
        check([job(values, bits=bits) for bits in (4, 5, 6, 7, 8, 64)], "train")
    assert messages(raised.value) == ["bits=64: allowed is an integer from 1 to 16 (job #5 of 6)"]


def test_mistakes_of_several_jobs_are_merged(values):
    jobs = [job(values, bits=0), job(values, mode="x"), job(values, bits=0), job(values, bits=4, train__lr=float("inf"))]
    with pytest.raises(UserErrors) as raised:
        check(jobs, "train")
    lines = messages(raised.value)
    assert len(lines) == 3
    assert "bits=0: allowed is an integer from 1 to 16 (job #0, #2 of 4)" in lines
    assert any(line.startswith("mode=x") and line.endswith("(job #1 of 4)") for line in lines)
    assert any(line.startswith("train.lr=inf") and line.endswith("(job #3 of 4)") for line in lines)


def test_a_mistake_of_all_jobs_needs_no_numbers(values):
    with pytest.raises(UserErrors) as raised:
        check([job(values, bits=bits, mode="x") for bits in (4, 8)], "train")
    (line,) = messages(raised.value)
    assert "job #" not in line


def test_what_belongs_to_one_verb(values, tmp_path):
    file = tmp_path / "weights.pt"
    file.touch()
    with pytest.raises(UserErrors, match="model.pretrained=FILE"):
        check([job(values, checkpoint=str(file))], "train")
    with pytest.raises(UserErrors, match="qexp.evaluate needs checkpoint=FILE"):
        check([values], "evaluate")
    with pytest.raises(UserErrors, match="a file that exists"):
        check([job(values, checkpoint=str(tmp_path / "none.pt"))], "evaluate")
    assert check([job(values, checkpoint=str(file))], "evaluate")[0].checkpoint == str(file)


def test_preprocessing_is_compared_of_one_network_and_of_files(values, tmp_path):
    across = job(values, evaluate__across="preprocessing")
    with pytest.raises(UserErrors, match=r"evaluate.across=preprocessing: allowed is null for data=digits\."):
        check([across], "train")
    files = job(across, data__name="imagefolder", data__root=str(tmp_path))
    with pytest.raises(UserErrors, match=r"evaluate.across=preprocessing: allowed is null in qexp.train\."):
        check([files], "train")


@pytest.mark.parametrize("download", [False, True])
def test_missing_places(values, download):
    with pytest.raises(UserErrors, match="model.weights=/no/where.pt"):
        check([job(values, model__weights="/no/where.pt", data__download=download)], "train")
    check([job(values, model__name="resnet18", model__weights="DEFAULT")], "train")


def test_jobs_are_grouped_by_what_they_train(values):
    dials = [job(values, bits=4), job(values, train__lr=0.5), job(values, mode="half"), job(values, quant__name="affine")]
    assert group(check(dials, "train")) == [[0, 2, 3], [1]]
    apart = [values, job(values, fresh=True), job(values, evaluate__num_images=7), job(values, name="other"), job(values, seed=1)]
    assert group(check(apart, "train")) == [[0], [1], [2], [3], [4]]


def hydras(*overrides) -> UserError:
    with (
        pytest.raises((HydraException, OmegaConfBaseException)) as raised,
        hydra.initialize_config_dir(str(conf_dir()), version_base="1.3"),
    ):
        OmegaConf.to_container(hydra.compose("config", list(overrides)), resolve=True)
    return hydra_error(raised.value)


def test_a_group_that_has_no_such_option():
    error = hydras("data=cifer10")
    assert str(error).startswith("data=cifer10: allowed is cifar10, cifar100, custom, digits")
    assert error.remedy == "Did you mean cifar10?"
    assert "_base" not in str(error)


def test_a_group_with_many_options_is_not_listed():
    text = str(hydras("model=resnet21"))
    assert text.startswith("model=resnet21: allowed is one of ")
    assert "Did you mean resnet" in text
    assert len(text) < 200


@pytest.mark.parametrize("override", ["bits=[4", "bits=4=", "seed", "train.lr=${x}"])
def test_what_hydra_cannot_read_is_said_in_one_line(override):
    text = str(hydras(override))
    assert text.startswith("command line=")
    assert "\n" not in text and "full_key" not in text
    assert (override if "$" not in override else "train.lr") in text
