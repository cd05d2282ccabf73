"""Files of ExecuTorch: the simulation's codes, which layers are integers, and what XNNPACK does not hold."""

import importlib.util
import sys

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from qexp.base.errors import UserError
from qexp.deploy.int8_files import signed
from qexp.deploy.pte.export import MOST_IMAGES, PTE_SUFFIX, export_pte
from qexp.deploy.pte.run import open_pte
from qexp.nn.fake_quant import fake_quants

needs_executorch = pytest.mark.skipif(
    importlib.util.find_spec("executorch") is None, reason="needs executorch: pip install 'qexp[deploy]'"
)


class Mixed(nn.Module):
    """A ReLU6, a max pooling, a shortcut, and a SiLU, before which no layer has codes."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1, groups=2)
        self.third, self.head = nn.Conv2d(8, 8, 1), nn.Linear(8, 5)

    def forward(self, x):
        x = F.max_pool2d(F.relu6(self.first(x)), 2)
        x = F.silu(self.third(F.relu(x + self.second(x))))
        return self.head(x.mean((2, 3)))


def images(n=MOST_IMAGES + 3):
    return torch.randn(n, 3, 16, 16, generator=torch.Generator().manual_seed(1))


@needs_executorch
@pytest.mark.slow
@pytest.mark.alone
def test_codes_of_few_bits_and_layers_left_float(quantized, tmp_path):
    """XNNPACK's quantizers saturate at 8 bits: codes of 4 keep their ends by a clamp behind them."""
    torch.manual_seed(0)
    case = quantized(Mixed(), images(), act_bits=4, granularity="per_tensor", divide=False)
    codes, logits = case.simulate(case.export(tmp_path / "net.onnx"))  # with biases in steps of the accumulators
    written = export_pte(case.network, case.images, case.weights, tmp_path / "net.pte", about={"label": "x"})
    assert written.integer_layers == {"first", "second"} and written.size_bytes == (tmp_path / "net.pte").stat().st_size
    offsets = dict.fromkeys(codes, 0)
    run, integer_layers = open_pte(tmp_path / "net.onnx", 1, offsets)
    result, *mine = run(case.images, True)
    assert integer_layers() == written.integer_layers
    quantizers = fake_quants(case.network)
    for (point, expected), values in zip(codes.items(), mine, strict=True):
        assert signed(quantizers[point].qparams)[1] == 0, "4 bits need not be moved"
        difference = (values - expected).abs()
        assert difference.max() <= 1 and difference.float().mean() < 1e-3, point
    assert torch.allclose(result, logits, atol=0.05 * float(logits.abs().max()))
    plain, _ = open_pte(tmp_path / "net.onnx", 1, {})
    assert torch.equal(plain(case.images[:1], False)[0], result[:1])


def test_what_it_cannot_hold_is_named(quantized, tmp_path):
    """Before anything of ExecuTorch is asked for."""
    torch.manual_seed(0)
    refused = {
        r"codes from -128 to 127: allowed is weights from -127 to 127 in XNNPACK": {"weight_scheme": "symmetric"},
        r"zero point is 0 in XNNPACK": {"weight_scheme": "affine", "granularity": "per_tensor"},
        r"\.bits=16: allowed is at most 8 in XNNPACK": {"act_bits": 16},
        r"\.dynamic=true: allowed is false in XNNPACK": {"dynamic": True},
    }
    for message, options in refused.items():
        case = quantized(Mixed(), images(2), **options)
        with pytest.raises(UserError, match=message):
            export_pte(case.network, case.images, case.weights, tmp_path / "net.pte")
    assert not list(tmp_path.iterdir())


def test_where_it_is_missing_its_extra_is_named(quantized, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "executorch.exir", None)
    monkeypatch.setitem(sys.modules, "executorch.backends.xnnpack.partition.xnnpack_partitioner", None)
    case = quantized(Mixed(), images(2))
    with pytest.raises(UserError, match=r"export\.runtime=executorch: .*pip install 'qexp\[deploy\]'"):
        export_pte(case.network, case.images, case.weights, tmp_path / "net.pte")


@needs_executorch
def test_a_file_that_was_not_written_is_named(tmp_path):
    with pytest.raises(UserError, match=r"export\.runtime=executorch: .*net\.pte"):
        open_pte(tmp_path / f"net{PTE_SUFFIX}", 1, {})
