"""What every test stands on: one torch thread a process, no display, no telemetry, no rank left over from the shell."""

import os
from pathlib import Path

import pytest
from hypothesis import settings

# Before torch is imported: xdist runs a process a core, and results must not hang on how many cores there are.
os.environ["OMP_NUM_THREADS"] = "1"
os.environ["MPLBACKEND"] = "Agg"
os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"
for name in ("MLFLOW_TRACKING_URI", "RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"):
    os.environ.pop(name, None)

EXTRA_DATA = "QEXP_EXTRA_DATA"

# The same examples on every run, and no limit on time: a slow machine is no mistake.
settings.register_profile("qexp", deadline=None, derandomize=True)
settings.load_profile("qexp")


@pytest.fixture(autouse=True)
def _in_a_folder_of_its_own(tmp_path, monkeypatch):
    """Relative paths (`runs/`, `results/`) fall into the test's own folder, never into the checkout."""
    monkeypatch.chdir(tmp_path)


@pytest.fixture(scope="session")
def extra_data() -> Path:
    """The folder of data that no dependency bundles, named by an environment variable; the test skips where it is not set."""
    folder = os.environ.get(EXTRA_DATA)
    if not folder:
        pytest.skip(f"{EXTRA_DATA} names no folder of extra data (cifar10-jpeg/, resnet20-12fca82f.th)")
    path = Path(folder).expanduser()
    assert path.is_dir(), f"{EXTRA_DATA}={folder}: no such folder"
    return path.resolve()


def pytest_collection_modifyitems(config, items):
    """Tests marked `gpu` skip, and say why, where there is no CUDA device."""
    marked = [item for item in items if item.get_closest_marker("gpu")]
    if not marked:
        return
    import torch

    if not torch.cuda.is_available():
        for item in marked:
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))
