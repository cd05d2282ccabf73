"""What the tests of analyses share: small networks whose activation points are known."""

import importlib.util
from pathlib import Path

import pytest

GRAPHS = Path(__file__).parents[1] / "nn" / "graphs.py"


@pytest.fixture(scope="session")
def graphs():
    """The module tests/nn/graphs.py."""
    spec = importlib.util.spec_from_file_location("tests_nn_graphs_for_analysis", GRAPHS)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
