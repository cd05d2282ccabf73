"""Hydra's choices: those of the rows, each with the values of its group's `_base` file."""

import re
from pathlib import Path

import pytest
from hydra.core.config_store import ConfigStore

from qexp.sweep.compose import conf_dir

GROUPS = Path(__file__).parents[2] / "docs" / "choosing.md"


def choices(group):
    stored = ConfigStore.instance().repo.get(group, {})
    files = {path.stem for path in (conf_dir() / group).glob("[!_]*.yaml")}
    assert not files & {Path(name).stem for name in stored}, "a choice is a row or a file"
    return files | {Path(name).stem for name in stored}


@pytest.mark.parametrize("group", ["data", "train", "policy", "quant", "calibrate", "qat", "model"])
def test_the_page_of_groups_names_every_choice(group):
    (line,) = re.findall(rf"^\| `{group}` \| (.*)$", GROUPS.read_text(encoding="utf-8"), re.MULTILINE)
    named = set(re.findall(r"`(\w+)`", line))
    if group == "model":  # torchvision's are not listed, and the CIFAR networks by their depth
        named = {f"resnet{name}" if name.isdigit() else name for name in named}
        assert named <= choices(group) and {"resnet110", "custom"} <= named and len(choices(group)) > 80
    else:
        assert choices(group) <= named


CHOSEN = [("ste", "rounded"), ("lsq", "paper"), ("custom", None)]


@pytest.mark.parametrize(("name", "mask"), CHOSEN)
def test_a_choice_sets_what_its_row_says(name, mask, compose):
    values = compose(f"qat={name}")["qat"]
    assert (values["name"], values["mask"]) == (name, mask)
    assert set(values) == set(compose()["qat"])
