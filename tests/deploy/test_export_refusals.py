"""What `qexp.export` refuses: one clear message each, exit code 2, and no file."""

import runpy
from pathlib import Path

import pytest
import torch

from qexp.deploy import runtimes

for library in ("onnx", "onnxruntime"):
    pytest.importorskip(library, reason=f"needs {library}: pip install 'qexp[deploy]'")

NETWORKS = Path(__file__).parents[1] / "networks.py"
SORTING = """
import torch
from torch import nn


class Sorting(nn.Module):
    def __init__(self, num_classes, in_channels):
        super().__init__()
        self.conv, self.head = nn.Conv2d(in_channels, 4, 3), nn.Linear(4, num_classes)

    def forward(self, x):
        return self.head(torch.sort(self.conv(x).mean((2, 3)))[0])
"""


@pytest.fixture
def refused(cli, tiny):
    """Run the command, which must end at once; gives its one message."""
    torch.manual_seed(0)
    torch.save(runpy.run_path(str(NETWORKS))["tiny"](10, 1).state_dict(), "checkpoint.pt")

    def run(*overrides, checkpoint="checkpoint.pt"):
        arguments = [] if checkpoint is None else [f"checkpoint={checkpoint}"]
        done = cli(*arguments, *tiny, "export.cost=false", *overrides, verb="export")
        assert (done.code, done.out) == (2, "")
        first, message = done.err.strip().splitlines()
        assert first == "qexp: nothing was started."
        assert not list(Path().rglob("*.onnx*")) and not Path("runs/journal").exists() and not Path("runs/checkpoints").exists()
        return message.strip()

    return run


REFUSED = {
    "a scheme": (["quant=log2"], "quant=log2: allowed is affine, symmetric"),
    "a granularity": (
        ["quant.weight.granularity=per_in_out_channel"],
        "quant.weight.granularity=per_in_out_channel: allowed is per_tensor or per_channel or per_group in qexp.export",
    ),
    "groups in another file": (
        ["quant.weight.granularity=per_group", "export.runtime=[onnxruntime,litert]"],
        "quant.weight.granularity=per_group: allowed is per_tensor or per_channel in qexp.export. Only ONNX files have a scale",
    ),
    "a zero point for each channel": (["quant=affine"], "0.weight=a zero point for each channel: allowed is one for all"),
    "the control": (["mode=float"], "mode=float: allowed is int in qexp.export"),
    "rounded images": (["quant.input=int"], "quant.input=int: allowed is none in qexp.export"),
    "rounding": (["quant.activation.rounding=floor"], "quant.activation.rounding=floor: allowed is half_even"),
    "a program with the range of each batch": (
        ["quant.activation.dynamic=true", "export.torch_export=true"],
        "quant.activation.dynamic=true: allowed is false in a program of torch.export",
    ),
    "few bits with the range of each batch": (["quant.activation.dynamic=true", "bits=4"], "input.bits=4: allowed is 8"),
    "training": (["qat=lsq"], "qat=lsq: allowed is none in qexp.export. It trains"),
    "an unknown runtime": (["export.runtime=tensorrt"], "export.runtime=tensorrt: allowed is one of"),
    "a runtime twice": (["export.runtime=[torch,torch]"], "export.runtime=torch, torch: allowed is each runtime once"),
    "a name for no model": (["export.register=a/b"], "export.register=a/b: allowed is letters"),
    "a key that is none": (["export.runtimes=torch"], "export.runtimes=torch: there is no such key. Did you"),
}  # fmt: skip


@pytest.mark.parametrize(("overrides", "message"), REFUSED.values(), ids=REFUSED)
def test_one_message(refused, overrides, message):
    assert refused(*overrides).startswith(message)


def test_another_networks_checkpoint(refused):
    torch.save({"conv.weight": torch.zeros(3)}, "other.pt")
    assert "a state dict that fits Sequential" in refused(checkpoint="other.pt")
    assert "qexp.export needs checkpoint=FILE" in refused(checkpoint=None)


def test_an_operator_that_cannot_be_written(refused):
    Path("nets.py").write_text(SORTING)
    torch.save(runpy.run_path("nets.py")["Sorting"](10, 1).state_dict(), "sorting.pt")
    message = refused("model.factory=nets.py:Sorting", checkpoint="sorting.pt")
    assert message.startswith("export=sort (sort): allowed is an operator that qexp writes to ONNX")


def test_a_runtime_that_is_not_installed(refused, monkeypatch):
    monkeypatch.setattr(runtimes, "installed_runtimes", lambda: ("onnxruntime", "torch"))
    message = refused("export.runtime=[onnxruntime,openvino]")
    assert message.startswith("export.runtime=openvino: allowed is one of onnxruntime, torch")
    assert "pip install 'qexp[deploy]'" in message


@pytest.mark.parametrize("verb", ["train", "evaluate"])
def test_its_keys_belong_to_it(cli, tiny, verb):
    for argument in ("export.runtime=torch", "+export.runtime=torch"):
        done = cli(*tiny, argument, verb=verb)
        assert done.code == 2 and "export.runtime=torch. It belongs to python -m qexp.export." in done.err


def test_it_runs_in_one_process(cli, tiny, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    done = cli(*tiny, verb="export")
    assert done.code == 2 and "qexp.export runs in one process" in done.err
