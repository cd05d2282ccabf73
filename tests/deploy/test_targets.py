"""Estimates for hardware that is not here: the arena of TFLite Micro, and the operators that an Edge TPU takes."""

import csv
import runpy
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

from qexp.base.errors import UserError
from qexp.config.export import ExportSettings
from qexp.deploy import export
from qexp.deploy.targets import Lifetime, arena_bytes, estimates, place

NETWORKS = Path(__file__).parents[1] / "networks.py"


class Shortcut(nn.Module):
    """A shortcut over one convolution; where `silu` is true a SiLU before the last."""

    def __init__(self, silu):
        super().__init__()
        self.silu = silu
        self.first, self.second, self.last = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 8, 1), nn.Conv2d(8, 4, 1)
        self.head = nn.Linear(4, 4)

    def forward(self, x):
        x = F.relu(self.first(x))
        x = F.relu(x + self.second(x))
        x = F.relu(self.last(F.silu(x) if self.silu else x))
        return self.head(x.mean((2, 3)))


@pytest.fixture
def tflite(quantized, tmp_path):
    """Writes the file of `Shortcut`; its images are 8 x 8."""
    pytest.importorskip("ai_edge_litert", reason="needs ai-edge-litert: pip install 'qexp[deploy]'")
    from qexp.deploy.tflite.export import export_tflite

    def write(silu=False, integer_io=True):
        torch.manual_seed(0)
        case = quantized(Shortcut(silu), torch.randn(4, 3, 8, 8))
        export_tflite(case.network, case.images[:1], case.weights, tmp_path / "net.tflite", integer_io=integer_io)
        return tmp_path / "net.tflite"

    return write


lifetimes = st.builds(
    lambda size, first, length: Lifetime(size, first, first + length), st.integers(1, 100), st.integers(0, 8), st.integers(0, 4)
)


@given(st.lists(lifetimes, max_size=12))
def test_what_lives_at_once_shares_no_byte(tensors):
    offsets = place(tensors)
    for number, (one, start) in enumerate(zip(tensors, offsets, strict=True)):
        assert start % 16 == 0
        for other, other_start in zip(tensors[:number], offsets[:number], strict=True):
            apart = start + one.size <= other_start or other_start + other.size <= start
            assert apart or one.last < other.first or other.last < one.first


def test_the_arena_of_a_shortcut_by_hand(tflite):
    """Images of 3 x 64 bytes, maps of 8 x 64: the sum needs the map before, the convolution's, and its own at once."""
    from qexp.deploy.tflite.writer import unpack

    path = tflite()
    assert arena_bytes(unpack(path.read_bytes())) == 3 * 8 * 64
    (row,) = estimates(("mcu",), path, 81.5, {})
    assert (row.flash_bytes, row.arena_bytes, row.prec1) == (path.stat().st_size, 3 * 8 * 64, 81.5)


def test_an_edge_tpu_takes_what_stands_before_the_first_operator_that_it_lacks(tflite):
    macs = {"first": 30, "second": 40, "last": 25, "head": 5}

    def row(**options):
        (made,) = estimates(("edgetpu",), tflite(**options), 50.0, macs)
        return made

    whole = row()
    assert whole.num_mapped == whole.num_operators and whole.mapped_macs_pct == 100 and not whole.first_fallback
    part = row(silu=True)
    assert 0 < part.num_mapped < part.num_operators and part.mapped_macs_pct == 70
    assert part.first_fallback.startswith("DEQUANTIZE ") and part.reason == "no operator of the Edge TPU"
    none = row(integer_io=False)
    assert none.num_mapped == 0 and none.mapped_macs_pct == 0 and none.reason == "FLOAT32 where it takes INT8 alone"


def test_a_target_is_of_literts_file():
    with pytest.raises(UserError, match=r"export\.target=mcu: .*Add export\.runtime=litert"):
        ExportSettings(target="mcu")
    with pytest.raises(UserError, match=r"export\.target=edgetpuu: .*Did you mean edgetpu"):
        ExportSettings(runtime="litert", target=["mcu", "edgetpuu"])


@pytest.mark.alone
def test_targets_stand_in_the_tables_and_measure_nothing_anew(cli, tiny, monkeypatch):
    for library in ("onnx", "ai_edge_litert"):
        pytest.importorskip(library, reason=f"needs {library}: pip install 'qexp[deploy]'")
    torch.save(runpy.run_path(str(NETWORKS))["tiny"](10, 1).state_dict(), "checkpoint.pt")
    command = ("checkpoint=checkpoint.pt", *tiny, "export.runtime=litert", "export.integer_io=true", "export.cost=false")
    assert cli(*command, verb="export").code == 0
    monkeypatch.setattr(export._ExportJob, "measure", lambda self: pytest.fail("measured again"))
    done = cli(*command, "export.target=[mcu,edgetpu]", verb="export")
    assert done.code == 0, done.err
    with open("results/digits/targets.csv") as handle:
        rows = {row["target"]: row for row in csv.DictReader(handle)}
    with open("results/digits/stages.csv") as handle:
        prec1 = next(row["prec1"] for row in csv.DictReader(handle) if row["name"] == "litert")
    (path,) = Path("runs/exports/digits").glob("W8A8*/network.tflite")
    assert {row["prec1"] for row in rows.values()} == {prec1}
    assert float(rows["mcu"]["flash_bytes"]) == path.stat().st_size and float(rows["mcu"]["arena_bytes"]) > 64
    assert rows["edgetpu"]["num_mapped"] == rows["edgetpu"]["num_operators"]
    assert "target (estimate)" in done.out and "nothing ran on these targets" in Path("results/digits/stages.md").read_text()
