"""Ranges of each batch: DynamicQuantizeLinear and products of integers in the file, and the same arithmetic in the simulation."""

import collections

import pytest
import torch
from torch import nn

from qexp.base.errors import UserError
from qexp.deploy.activation_codes import simulated_codes
from qexp.deploy.integer_network import integer_codes
from qexp.deploy.runtimes import fast_kernels_saturate, open_runtime
from qexp.deploy.stages import FLOAT, INTEGER, SIMULATED, Outcome, StageComparison


def images(n=6, size=8, seed=1):
    return torch.randn(n, 3, size, size, generator=torch.Generator().manual_seed(seed))


def sqnr_db(reference, other):
    return float(10 * torch.log10(reference.double().square().sum() / (reference.double() - other).square().sum()))


class Perceptron(nn.Module):
    """Linear layers of two and three dimensions, one without a bias."""

    def __init__(self):
        super().__init__()
        self.embed, self.mix, self.norm = nn.Linear(3 * 8, 32), nn.Linear(32, 32, bias=False), nn.LayerNorm(32)
        self.hidden, self.head = nn.Linear(8 * 32, 24), nn.Linear(24, 5)

    def forward(self, x):
        x = torch.relu(self.embed(x.transpose(1, 2).flatten(2)))
        x = self.norm(x + self.mix(x))
        return self.head(torch.relu(self.hidden(x.flatten(1))))


@pytest.mark.parametrize(
    "options",
    [{}, {"weight_scheme": "affine", "granularity": "per_tensor"}, {"bits": 4, "act_bits": 8}, {"divide": False}],
    ids=str,
)
def test_linear_layers_are_integer_products(quantized, run_file, options, tmp_path):
    torch.manual_seed(0)
    case = quantized(Perceptron(), images(), dynamic=True, **options)
    exported = case.export(tmp_path / "net.onnx")
    assert not exported.notes and {exported.stored[f"{name}.weight"] for name in ("embed", "mix", "hidden", "head")} <= {"INT8"}
    codes, logits = case.simulate(exported)
    assert list(codes) == list(exported.codes)
    # Without VNNI ONNX Runtime's fast kernels saturate, and only its optimizer takes the exact ones instead.
    for fused in (True,) if fast_kernels_saturate() else (False, True):
        ran = run_file(exported, case.images, fused=fused)
        differences = [(ran.codes[point] - codes[point]).abs() for point in codes]
        assert all(difference.max() <= 1 and difference.float().mean() < 2e-3 for difference in differences)
        assert sqnr_db(logits, ran.logits) > 40
    assert ran.operators["MatMulIntegerToFloat"] + ran.operators["DynamicQuantizeMatMul"] == 4
    assert not ran.operators["MatMul"] and not ran.operators["Gemm"]


def test_each_batch_has_its_own_range(quantized, tmp_path):
    torch.manual_seed(0)
    case = quantized(Perceptron(), images(), dynamic=True)
    exported = case.export(tmp_path / "net.onnx")
    session = open_runtime("onnxruntime", exported.path, outputs=exported.codes)
    for scale in (1, 100):
        codes, _ = session.run_codes(case.images * scale)
        expected, _ = simulated_codes(case.network, case.images * scale)
        assert codes["flatten"].min() == -128 and codes["flatten"].max() == 127
        assert (codes["flatten"] - expected["flatten"]).abs().max() <= 1


def test_the_comparison_judges_layers_with_each_batchs_range(quantized, tmp_path):
    torch.manual_seed(0)
    case = quantized(Perceptron(), images(), dynamic=True)
    exported = case.export(tmp_path / "net.onnx")
    session = open_runtime("onnxruntime", exported.path, outputs=exported.codes)
    comparison = StageComparison(case.network, case.weights, (FLOAT, SIMULATED, INTEGER, "onnxruntime"))
    for batch in case.images.split(3):
        codes, logits = simulated_codes(case.network, batch)
        integers = integer_codes(case.network, case.weights, batch)
        outcomes = {FLOAT: Outcome(logits), SIMULATED: Outcome(logits, codes), INTEGER: Outcome(integers[1], integers[0])}
        mine = session.run_codes(batch)
        comparison.add(batch, logits.argmax(1), outcomes | {"onnxruntime": Outcome(mine[1], mine[0])})
    assert [stage.passed for stage in comparison.stages()] == [None, None, True, True]


def test_convolutions_stay_float_and_are_named(quantized, run_file, graphs, tmp_path):
    torch.manual_seed(0)
    case = quantized(graphs.Residual(), images(), dynamic=True)
    exported = case.export(tmp_path / "net.onnx")
    assert exported.notes == (
        "conv1: computed in float, on codes with each batch's range",
        "conv2: computed in float, on codes with each batch's range",
    )
    assert exported.stored["conv1.weight"] == exported.stored["head.weight"] == "INT8"
    codes, logits = case.simulate(exported)
    ran = run_file(exported, case.images)
    assert all((ran.codes[point] - codes[point]).abs().max() <= 1 for point in codes) and sqnr_db(logits, ran.logits) > 40
    kinds = collections.Counter(ran.operators)
    assert kinds["MatMulIntegerToFloat"] + kinds["DynamicQuantizeMatMul"] == 1 and kinds["Conv"] + kinds["FusedConv"] == 2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"act_bits": 6}, r"flatten\.bits=6: allowed is 8 in DynamicQuantizeLinear"),
        ({"scheme": "symmetric"}, r"flatten\.scheme=symmetric: allowed is affine in DynamicQuantizeLinear"),
    ],
    ids=str,
)
def test_other_grids_of_each_batch_are_refused(quantized, options, message, tmp_path):
    torch.manual_seed(0)
    case = quantized(Perceptron(), images(), dynamic=True, **options)
    with pytest.raises(UserError, match=message):
        case.export(tmp_path / "net.onnx")
    assert not list(tmp_path.iterdir())


def test_a_dynamic_file_is_smaller_and_has_no_float_matrix(quantized, tmp_path):
    import onnx

    torch.manual_seed(0)
    exported = quantized(Perceptron(), images(), dynamic=True).export(tmp_path / "net.onnx")
    kinds = {tensor.name: tensor.data_type for tensor in onnx.load(exported.path).graph.initializer if len(tensor.dims) == 2}
    assert set(kinds.values()) == {onnx.TensorProto.INT8} and len(kinds) == 4
