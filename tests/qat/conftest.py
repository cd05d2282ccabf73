"""What the tests of quantization-aware training share: networks, and the way from one to a trained module."""

import importlib.util
from pathlib import Path

import pytest


def _load(path: Path):
    spec = importlib.util.spec_from_file_location(f"tests_qat_{path.stem}", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def graphs():
    """The module tests/nn/graphs.py: small networks whose activation points are known."""
    return _load(Path(__file__).parents[1] / "nn" / "graphs.py")


@pytest.fixture(scope="session")
def kit():
    """The module tests/qat/kit.py."""
    return _load(Path(__file__).with_name("kit.py"))
