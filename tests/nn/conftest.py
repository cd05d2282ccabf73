"""What the tests of graphs share: small networks whose activation points are known, and ways to look at them."""

import importlib.util
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def graphs():
    """The module tests/nn/graphs.py."""
    spec = importlib.util.spec_from_file_location("tests_nn_graphs", Path(__file__).with_name("graphs.py"))
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
