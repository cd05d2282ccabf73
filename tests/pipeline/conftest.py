"""Prepared jobs of the smallest kind."""

import copy

import pytest

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
