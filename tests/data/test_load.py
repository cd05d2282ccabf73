"""Settings, the YAML of every set, mean and std."""

from pathlib import Path
from typing import get_args, get_type_hints

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from qexp.base.catalog import CUSTOM
from qexp.base.errors import UserError
from qexp.config.data import DATASETS, OWN, DataSettings
from qexp.data.load import load_data

CONF = Path(__file__).resolve().parents[2] / "conf"


def compose_data(name):
    """`conf/data/NAME.yaml` as it is placed under `data`."""
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return OmegaConf.to_container(compose(overrides=[f"+data={name}"]).data, resolve=True)


def test_every_set_has_a_loader_and_a_file():
    assert {*DATASETS, CUSTOM} == {path.stem for path in (CONF / "data").glob("[!_]*.yaml")}
    assert all(callable(row.load()) for row in (*DATASETS.values(), OWN))


@pytest.mark.parametrize("name", [*DATASETS, CUSTOM])
def test_yaml_lists_every_key_with_valid_values(name):
    values = compose_data(name)
    hints = get_type_hints(DataSettings)
    assert set(values) == set(hints) and values["name"] == name
    for key in ("augment", "storage"):
        assert values[key] in get_args(hints[key])
    if name != CUSTOM and DATASETS[name].needs_root and values["root"] is None:
        with pytest.raises(UserError, match="data.root=None"):
            DataSettings(**values)
        values["root"] = "somewhere"
    if name == CUSTOM:
        values["factory"] = "mine.py:load"
    DataSettings(**values)
    assert (CONF / "data" / f"{name}.yaml").read_text().startswith("# ")


@pytest.mark.parametrize(
    ("name", "sizes", "shape"),
    [
        ("mnist5k", {"train": 3500, "calib": 250, "select": 250, "test": 1000}, (1, 28, 28)),
        ("digits", {"train": 1237, "calib": 100, "select": 100, "test": 360}, (1, 8, 8)),
        ("fake", {"train": 1024, "calib": 64, "select": 64, "test": 256}, (3, 32, 32)),
    ],
)
def test_defaults_of_the_bundled_sets(name, sizes, shape):
    data = load_data(DataSettings(**compose_data(name)))
    assert data.split_sizes == sizes and data.image_shape == shape and data.num_classes == len(data.class_names) == 10
    batch = next(data.train_batches(epoch=0, batch_size=500, seed=0, device="cpu"))
    limit = 0.4 if data.mean == (0.1307,) else 0.1  # padding and cropping adds background
    assert abs(float(batch.images.mean())) < limit and abs(float(batch.images.std()) - 1) < 0.15


def test_mean_and_std_fit_the_channels():
    bundle = load_data(DataSettings(name="fake", num_test=10, mean=[0.5], std=[0.2]))
    assert bundle.mean == (0.5, 0.5, 0.5) and bundle.std == (0.2, 0.2, 0.2)
    with pytest.raises(UserError, match=r"data.mean=\[0.1, 0.2\]: allowed is a list of 3 numbers"):
        load_data(DataSettings(name="fake", num_test=10, mean=[0.1, 0.2], std=[0.2, 0.2]))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"name": "imagefolder"}, "data.root=None: allowed is a folder"),
        ({"name": "digits", "resize": 9}, "data.resize=9: allowed is null for data=digits. imagefolder, imagenet read it"),
        (
            {"name": "imagefolder", "root": "x", "crop": "center"},
            "data.crop=center: allowed is given together with data.image_size",
        ),
        (
            {"name": "imagefolder", "root": "x", "crop": "none", "resize": 8},
            "data.resize=8: allowed is null without data.crop=center",
        ),
        ({"name": "imagenet", "root": "x", "resize": 100}, "data.resize=100: allowed is at least data.image_size, 224"),
        ({"name": "imagefolder", "root": "x", "resize": 8, "image_size": 4}, "data.resize=8: allowed is null without data.crop"),
        (
            {"name": "imagefolder", "root": "x", "interpolation": "bicubic"},
            "data.interpolation=bicubic: allowed is given together with data.image_size",
        ),
        (
            {"name": "imagenet", "root": "x", "interpolation": "lanczos", "antialias": False},
            "data.antialias=False: allowed is true with data.interpolation=lanczos",
        ),
        ({"name": "digits", "num_classes": 5}, "data.num_classes=5: allowed is null"),
        ({"name": "digits", "factory": "a:b"}, "data.factory=a:b: allowed is null"),
        ({"name": "digits", "storage": "stream"}, "data.storage=stream: allowed is one of auto, ram"),
        ({"name": "imagenet", "root": "x", "storage": "ram"}, "data.storage=ram: allowed is one of auto, stream"),
        ({"name": "custom"}, "data.factory=None"),
        ({"name": "digits", "mean": [0.5]}, "data.std=None: allowed is given together with data.mean"),
        ({"name": "digits", "num_calib": -1}, "data.num_calib=-1: allowed is an integer of at least 0"),
    ],
)
def test_settings_that_do_not_fit_the_set(values, message):
    with pytest.raises(UserError) as caught:
        DataSettings(**values).resolved(None)
    assert message.replace("=False", "=false") in str(caught.value)
