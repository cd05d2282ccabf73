"""Prepared jobs of the smallest kind."""

import copy
import runpy
from pathlib import Path

import pytest
import torch

from qexp.pipeline.check import Sweep, check
from qexp.pipeline.prepare import prepare


@pytest.fixture(scope="session")
def tiny_values(compose, tiny):
    """Values of one tiny job."""
    return compose(*tiny)


@pytest.fixture(scope="session")
def job(tiny_values):
    """Values of a tiny job with changes: `job({"bits": 4, "train.lr": 0.5})`."""

    def make(changes=None, values=tiny_values):
        values = copy.deepcopy(values)
        for key, value in (changes or {}).items():
            *path, last = key.split(".")
            owner = values
            for name in path:
                owner = owner[name]
            owner[last] = value
        return values

    return make


@pytest.fixture(scope="session")
def prepared(job):
    """A merged job of the given changes, prepared."""

    def make(*changes):
        return prepare(check([job(change) for change in changes or ({},)], "train"))

    return make


@pytest.fixture
def sweep():
    return Sweep(sweep="s1", command="python -m qexp.train", verb="train")


@pytest.fixture
def network():
    """A small network whose batch norm has statistics, in eval mode; what `qexp.analyze` is asked about."""
    make = runpy.run_path(str(Path(__file__).parents[1] / "networks.py"))["tiny"]
    torch.manual_seed(0)
    network = make(10, 1)
    network[1].running_mean.uniform_(-0.2, 0.2)
    network[1].running_var.uniform_(0.5, 2)
    return network.eval()
