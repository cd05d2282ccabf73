"""`python -m qexp.export export.runtime=litert`, from the command line to its file and tables."""

import csv
import runpy
from pathlib import Path

import pytest
import torch

from qexp.deploy import runtimes

for library in ("onnx", "ai_edge_litert"):
    pytest.importorskip(library, reason=f"needs {library}: pip install 'qexp[deploy]'")

NETWORKS = Path(__file__).parents[2] / "networks.py"
FOLDER = Path("runs/exports/digits/W8A8_int_symmetric_restricted_per_channel_fold_bn")


@pytest.fixture
def run(cli, tiny):
    """Run the command on a small network."""
    torch.manual_seed(0)
    network = runpy.run_path(str(NETWORKS))["tiny"](10, 1)
    network[1].running_var.uniform_(0.5, 2)
    torch.save(network.state_dict(), "checkpoint.pt")
    return lambda *overrides: cli("checkpoint=checkpoint.pt", *tiny, "export.runtime=litert", *overrides, verb="export")


def table(name):
    with open(Path("results/digits") / name) as handle:
        return list(csv.DictReader(handle))


@pytest.mark.alone
def test_stages_sizes_and_cost(run):
    done = run("export.batch_sizes=[2]", "export.repeats=2", "export.warmup=0", "export.threads=1")
    assert done.code == 0, done.err
    stages = {row["name"]: row for row in table("stages.csv")}
    assert stages["litert"]["passed"] == "True" and float(stages["litert"]["agreement"]) > 0.98
    assert (stages["litert"]["num_integer"], stages["litert"]["num_planned"]) == ("2", "2")
    costs = {row["network"]: row for row in table("cost.csv")}
    for network, column, folder in (("quantized", "tflite_bytes", FOLDER), ("fp32", "fp32_tflite_bytes", FOLDER.parent / "fp32")):
        assert int(costs[network][column]) == (folder / "network.tflite").stat().st_size
        assert float(costs[network]["median_ms"]) > 0 and int(costs[network]["peak_bytes"]) > 0
    assert ", TFLite " in Path("results/digits/stages.md").read_text()
    again = run("export.batch_sizes=[2]", "export.repeats=2", "export.warmup=0")
    assert "exported and measured before" in again.out


def test_what_it_cannot_hold_starts_nothing(run, monkeypatch):
    done = run("quant=symmetric")
    assert done.code == 2 and "codes from -128 to 127: allowed is weights from -127 to 127" in done.err
    assert not list(Path().rglob("*.tflite")) and not Path("runs/journal").exists()
    monkeypatch.setattr(runtimes, "installed_runtimes", lambda: ("onnxruntime",))
    monkeypatch.setitem(__import__("sys").modules, "ai_edge_litert", None)
    done = run()
    assert done.code == 2 and "pip install 'qexp[deploy]'" in done.err
