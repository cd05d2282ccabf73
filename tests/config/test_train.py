from dataclasses import fields
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from qexp.base.errors import UserError
from qexp.config.train import TrainSettings, check_device, check_precision
from qexp.sweep.config_store import store_choices

CONF = Path(__file__).parents[2] / "conf"
NAMES = sorted(path.stem for path in (CONF / "train").glob("*.yaml") if not path.stem.startswith("_"))


@pytest.mark.parametrize("name", NAMES)
def test_every_choice_of_train_sets_every_key(name):
    store_choices()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        values = OmegaConf.to_container(compose(overrides=[f"+train={name}"]), throw_on_missing=True, resolve=True)["train"]
    assert list(values) == [item.name for item in fields(TrainSettings)]
    TrainSettings(**values)


def test_fp16_is_for_cuda():
    for precision in ("fp32", "bf16", "O0"):
        check_precision(precision, "cpu")
    check_precision("fp16", "cuda")
    with pytest.raises(UserError, match="device=cuda"):
        check_precision("O2", "cpu")


def test_compiling_on_the_cpu_needs_a_compiler(monkeypatch):
    recipe = TrainSettings(epochs=1, lr=0.1, batch_size=8, compile=True)
    monkeypatch.setattr("qexp.config.train.cxx_compiler", lambda: "g++")
    check_device(recipe, "cpu")
    monkeypatch.setattr("qexp.config.train.cxx_compiler", lambda: None)
    check_device(recipe, "cuda")
    with pytest.raises(UserError, match=r"train.compile=.*apt install g\+\+"):
        check_device(recipe, "cpu")
