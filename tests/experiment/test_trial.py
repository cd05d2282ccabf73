"""Networks that would fail, or mean nothing, once they are copied, trained or evaluated again: refused before anything starts."""

from pathlib import Path

import pytest

from qexp.base.errors import UserError, UserErrors
from qexp.experiment.prepare import Preparer
from qexp.sweep.check import check

NETWORKS = '''
import torch
from torch import nn
from torch.nn import functional as F

CALLS, KEPT = [], []


class Base(nn.Module):
    def __init__(self, num_classes=10):
        super().__init__()
        self.body = nn.Linear(64, 12)
        self.head = nn.Linear(12, num_classes)

    def features(self, x):
        return F.relu(self.body(x.flatten(1)))

    def forward(self, x):
        return self.head(self.features(x))


class Auxiliary(Base):
    """As GoogLeNet: the logits of an auxiliary head while it trains."""

    def forward(self, x):
        logits = super().forward(x)
        return (logits, 0.5 * logits, None) if self.training else logits


class Features(Base):
    def forward(self, x):
        return super().forward(x), self.features(x)


class Frozen(Base):
    def __init__(self):
        super().__init__()
        self.requires_grad_(False)


class Detached(Base):
    def forward(self, x):
        return super().forward(x).detach()


class FailsInTraining(Base):
    def forward(self, x):
        if self.training:
            raise KeyError("labels")
        return super().forward(x)


class TwoImages(Base):
    def forward(self, x):
        return super().forward(x.view(2, -1))


class Squeezed(Base):
    def forward(self, x):
        return super().forward(x).squeeze()


class Dropout(Base):
    def forward(self, x):
        return self.head(F.dropout(self.features(x), 0.5))


class NoCopy(Base):
    def __deepcopy__(self, memo):
        raise TypeError("cannot copy")


class Grows(Base):
    def forward(self, x):
        if self.training:
            self.register_buffer("seen", torch.zeros(1))
        return super().forward(x)


class HiddenValues(Base):
    def __init__(self):
        super().__init__()
        CALLS.append(1)
        self.scale = len(CALLS)

    def forward(self, x):
        return self.scale * super().forward(x)


def other_each_time():
    CALLS.append(1)
    return nn.Sequential(nn.Flatten(), *(nn.Linear(64, 64) for _ in CALLS), nn.Linear(64, 10))


def the_same_again():
    KEPT.append(Base())
    return KEPT[0]


def norm():
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 12), nn.BatchNorm1d(12), nn.Linear(12, 10))
'''


@pytest.fixture(scope="module")
def networks(tmp_path_factory):
    path = tmp_path_factory.mktemp("networks") / "nets.py"
    path.write_text(NETWORKS)
    return path


@pytest.fixture(scope="module")
def preparer():
    return Preparer()


@pytest.fixture
def prepare(job, preparer, networks):
    def run(name, verb="train", **changes):
        factory = {"model.factory": f"{networks}:{name}"}
        return preparer.prepare(check([job(factory | {key.replace("__", "."): value for key, value in changes.items()})], verb))

    return run


@pytest.mark.parametrize("name", ["Base", "Auxiliary", "norm"])
def test_a_network_that_works_is_tried_once(prepare, preparer, name):
    before = len(preparer._tried)
    assert prepare(name).training == prepare(name).training
    assert len(preparer._tried) == before + 1


@pytest.mark.parametrize(
    "name, reason",
    [
        ("Features", r"Beside logits \[2, 10\] it returned \[2, 12\]"),
        ("Frozen", "parameters to train"),
        ("Detached", "No gradient reaches them"),
        ("FailsInTraining", "that can be trained. It raised KeyError: 'labels'"),
        ("TwoImages", "that can be evaluated. It raised RuntimeError"),
        ("Dropout", "repeats in eval mode.*F.dropout"),
        ("NoCopy", "copy.deepcopy copies. It raised TypeError: cannot copy"),
        ("Grows", "In training it got or lost seen"),
        ("HiddenValues", "must be a parameter or a buffer"),
        ("other_each_time", r"differ in \d.bias"),
        ("the_same_again", "the same tensors again"),
    ],
)
def test_what_would_fail_later_is_refused(prepare, networks, name, reason):
    with pytest.raises(UserError, match=rf"(?s)^model.factory={networks}:{name}: allowed is .*({reason})"):
        prepare(name)
    assert not Path("runs").exists()


def test_one_image_alone_is_tried_where_the_recipe_leaves_one(prepare):
    prepare("norm", data__num_train=256)
    with pytest.raises(UserError, match="train.batch_size=64: allowed is .*more than 1 value.*train.batch_size=65 does with 257"):
        prepare("norm", data__num_train=257)
    prepare("Base", data__num_train=257)
    with pytest.raises(UserError, match="train.batch_size=64"):
        prepare("norm", train__accumulate=64)


def test_one_image_is_scored_alone_where_the_split_leaves_one(prepare):
    prepare("Squeezed")
    with pytest.raises(UserError, match=r"model.factory=.*For 1 image it returned \[10\]"):
        prepare("Squeezed", evaluate__num_images=101)


def test_a_plan_finds_it_too(cli, tiny, networks):
    done = cli(*tiny, f"model.factory={networks}:Detached", "plan_only=true")
    assert done.code == 2 and "No gradient reaches them" in done.err and "nothing was started" in done.err


def test_a_checkpoint_is_not_tried_in_training(prepare, tmp_path):
    import torch

    torch.save({name: torch.rand(shape) for name, shape in SHAPES.items()}, tmp_path / "w.pt")
    assert prepare("Frozen", "evaluate", checkpoint=str(tmp_path / "w.pt")).variants
    with pytest.raises((UserError, UserErrors), match="repeats in eval mode"):
        prepare("Dropout", "evaluate", checkpoint=str(tmp_path / "w.pt"))


SHAPES = {"body.weight": (12, 64), "body.bias": (12,), "head.weight": (10, 12), "head.bias": (10,)}
