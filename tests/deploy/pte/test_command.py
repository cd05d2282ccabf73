"""`python -m qexp.export export.runtime=executorch`, from the command line to its file and tables."""

import csv
import runpy
from pathlib import Path

import pytest
import torch

from qexp.base.text import size_text

for library in ("onnx", "executorch"):
    pytest.importorskip(library, reason=f"needs {library}: pip install 'qexp[deploy]'")

NETWORKS = Path(__file__).parents[2] / "networks.py"
FOLDER = Path("runs/exports/digits/W8A8_int_symmetric_restricted_per_channel_fold_bn")


@pytest.fixture
def run(cli, tiny):
    """Run the command on a small network."""
    torch.manual_seed(0)
    network = runpy.run_path(str(NETWORKS))["tiny"](10, 1)
    torch.save(network.state_dict(), "checkpoint.pt")
    return lambda *overrides: cli("checkpoint=checkpoint.pt", *tiny, "export.runtime=executorch", *overrides, verb="export")


def table(name):
    with open(Path("results/digits") / name) as handle:
        return list(csv.DictReader(handle))


@pytest.mark.slow
@pytest.mark.alone
def test_stages_and_sizes(run):
    done = run("export.cost=false")
    assert done.code == 0, done.err
    stage = next(row for row in table("stages.csv") if row["name"] == "executorch")
    assert float(stage["agreement"]) > 0.98 and int(stage["layer_steps"]) <= 1 and not stage["failed_layer"]
    assert (stage["num_integer"], stage["num_planned"]) == ("1", "2") and stage["float_layers"]
    assert f"in float: {stage['float_layers']}" in done.out
    sizes = [size_text((folder / "network.pte").stat().st_size) for folder in (FOLDER, FOLDER.parent / "fp32")]
    assert ", ExecuTorch {}, fp32 {} (".format(*sizes) in Path("results/digits/stages.md").read_text()
    again = run("export.cost=false")
    assert "exported and measured before" in again.out


def test_what_it_cannot_hold_starts_nothing(run):
    done = run("quant=symmetric")
    assert done.code == 2 and "codes from -128 to 127: allowed is weights from -127 to 127 in XNNPACK" in done.err
    assert not list(Path().rglob("*.pte")) and not Path("runs/journal").exists()
