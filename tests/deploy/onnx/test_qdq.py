"""Exported files in ONNX Runtime, as they stand and lowered to integers, against the simulation they were written from."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from qexp.deploy.onnx.qdq import export_qdq
from qexp.deploy.runtimes import open_runtime
from qexp.models.cifar_resnet import CifarResNet
from qexp.nn.fake_quant import fake_quants
from qexp.nn.graph import trace


def images(n=8, size=16, seed=1):
    return torch.randn(n, 3, size, size, generator=torch.Generator().manual_seed(seed))


def sqnr_db(reference, other):
    return float(10 * torch.log10(reference.double().square().sum() / (reference.double() - other).square().sum()))


class Inverted(nn.Module):
    """A block of mobilenet_v2: expansion, depthwise convolution, linear bottleneck, shortcut."""

    def __init__(self, channels=8, expanded=24):
        super().__init__()
        self.block = nn.Sequential(
            *(nn.Conv2d(channels, expanded, 1, bias=False), nn.BatchNorm2d(expanded), nn.ReLU6(inplace=True)),
            *(nn.Conv2d(expanded, expanded, 3, padding=1, groups=expanded, bias=False), nn.BatchNorm2d(expanded), nn.ReLU6()),
            *(nn.Conv2d(expanded, channels, 1, bias=False), nn.BatchNorm2d(channels)),
        )

    def forward(self, x):
        return x + self.block(x)


def mobile():
    stem = (nn.Conv2d(3, 8, 3, 2, 1, bias=False), nn.BatchNorm2d(8), nn.ReLU6())
    return nn.Sequential(*stem, Inverted(), Inverted(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(0.2), nn.Linear(8, 5))


class Shuffled(nn.Module):
    """A block of shufflenet_v2: split, concatenation, channels shuffled by reshaping."""

    def __init__(self):
        super().__init__()
        self.stem, self.branch, self.head = nn.Conv2d(3, 8, 3), nn.Conv2d(4, 4, 3, padding=1), nn.Linear(8 * 16, 5)

    def forward(self, x):
        x = F.max_pool2d(F.relu(self.stem(x)), 2, ceil_mode=True)
        left, right = x.chunk(2, dim=1)
        x = torch.cat((left, F.relu(self.branch(right))), dim=1)
        n, c, h, w = x.size()
        x = x.view(n, 2, c // 2, h, w).transpose(1, 2).contiguous().view(n, -1, h, w)
        x = F.pad(x, (0, 1, 1, 0))[:, :, ::2, ::2]
        return self.head(F.adaptive_avg_pool2d(x, 4).flatten(1))


class Functions(nn.Module):
    """Weights that functions read, arithmetic with constants, and activation functions."""

    def __init__(self):
        super().__init__()
        self.kernel, self.matrix = nn.Parameter(torch.randn(6, 3, 3, 3) / 5), nn.Parameter(torch.randn(5, 6) / 3)
        self.shift, self.norm = nn.Parameter(torch.randn(1, 6, 1, 1)), nn.BatchNorm2d(6)
        self.mix = nn.Conv2d(6, 6, 1)

    def forward(self, x):
        x = self.norm(F.conv2d(x, self.kernel, stride=2) * 2 + self.shift)
        x = F.silu(x) + F.gelu(x).tanh() - F.leaky_relu(x, 0.1) / 3 + F.hardtanh(x, -0.5, 0.7)
        x = self.mix(F.hardswish(x) * F.hardsigmoid(x)).permute(0, 2, 3, 1)[:, -1, ...]
        return F.linear(x.mean(1), self.matrix).softmax(-1)


class Tokens(nn.Module):
    """Pixels as tokens: layer norms and linear layers of three dimensions, as in a mixer or a transformer without attention."""

    def __init__(self):
        super().__init__()
        self.pool, self.embed, self.norm = nn.AvgPool2d(3, 2, 1, count_include_pad=False), nn.Conv2d(3, 8, 2, 2), nn.LayerNorm(8)
        self.mix, self.act, self.out, self.head = nn.Linear(8, 16), nn.GELU(), nn.Linear(16, 8, bias=False), nn.Linear(8, 5)

    def forward(self, x):
        x = self.embed(self.pool(x)).flatten(2).transpose(1, 2)
        x = x + self.out(self.act(self.mix(self.norm(x))))
        x = F.layer_norm(x, (8,), self.norm.weight, eps=1e-4)
        return self.head(x.mean(dim=1))


@pytest.fixture
def networks(graphs):
    """Name -> a network that is new."""
    return {
        "residual": graphs.Residual,
        "inception": graphs.Inception,
        "mobile": mobile,
        "shuffled": Shuffled,
        "functions": Functions,
        "tokens": Tokens,
    }


INTEGER = {
    "residual": {"QLinearConv": 2, "QLinearAdd": 1, "QGemm": 1, "Conv": 0, "FusedConv": 0},
    "mobile": {"QLinearConv": 7, "QLinearAdd": 2, "QLinearGlobalAveragePool": 1, "QGemm": 1, "Conv": 0, "FusedConv": 0},
    "inception": {"QLinearConv": 4, "QLinearConcat": 1, "QLinearMul": 1, "QGemm": 1},
    "shuffled": {"QLinearConv": 2, "QLinearConcat": 1, "QGemm": 1, "Conv": 0, "FusedConv": 0},
    "functions": {"QLinearConv": 1},
    "tokens": {"QLinearConv": 1, "QLinearAveragePool": 1, "QGemm": 1},
}


@pytest.mark.parametrize("name", INTEGER)
def test_the_file_has_the_simulations_codes(quantized, run_file, networks, name, tmp_path):
    torch.manual_seed(0)
    case = quantized(networks[name](), images())
    exported = case.export(tmp_path / "net.onnx")
    codes, logits = case.simulate(exported)
    assert list(codes) == list(exported.codes) and exported.notes == (
        ("unused.weight: no layer of the graph reads it as it is; not written as codes",)
        if name == "residual" and "unused.weight" in case.weights
        else ()
    )
    for fused in (False, True):
        ran = run_file(exported, case.images, fused=fused)
        differences = {point: (ran.codes[point] - codes[point]).abs() for point in codes}
        assert all(int(difference.max()) <= 1 for difference in differences.values())
        assert sum(int(difference.sum()) for difference in differences.values()) <= 1e-4 * sum(
            difference.numel() for difference in differences.values()
        )
        assert torch.equal(ran.logits.argmax(1), logits.argmax(1)) and sqnr_db(logits, ran.logits) > 45
    assert {kind: ran.operators[kind] for kind in INTEGER[name]} == INTEGER[name]


def test_resnet20_runs_in_integers(quantized, run_file, tmp_path):
    torch.manual_seed(0)
    case = quantized(CifarResNet(20), images(16, 32), divide=False)
    exported = case.export(tmp_path / "resnet20.onnx", about={"model": "resnet20"})
    assert len(exported.notes) == 1 and "ties may differ" in exported.notes[0]
    assert case.float_bytes / exported.size_bytes > 3.5  # of 1.08 MB; larger networks come to 3.97
    ran = run_file(exported, case.images)
    assert (ran.operators["QLinearConv"], ran.operators["QLinearAdd"], ran.operators["QGemm"]) == (19, 9, 1)
    assert not ran.operators["Conv"] and ran.operators["QuantizeLinear"] <= 3
    logits = case.simulate()[1]
    assert torch.equal(ran.logits.argmax(1), logits.argmax(1)) and sqnr_db(logits, ran.logits) > 35
    for n in (1, 5):  # any number of images
        assert torch.allclose(run_file(exported, case.images[:n]).logits, ran.logits[:n], atol=1e-5)


def test_scales_zero_points_and_codes_are_qexps(quantized, tmp_path):
    torch.manual_seed(0)
    case = quantized(mobile(), images())
    path = case.export(tmp_path / "net.onnx").path
    import onnx

    model = onnx.load(path)
    tensors = {tensor.name: torch.from_numpy(onnx.numpy_helper.to_array(tensor).copy()) for tensor in model.graph.initializer}
    for name, module in fake_quants(case.network).items():
        assert torch.equal(tensors[f"{name}.scale"], module.scale)
        assert int(tensors[f"{name}.zero_point"]) == int(module.zero_point) + 128
    for name, weight in case.weights.items():
        assert tensors[f"{name}.codes"].dtype == torch.int8 and torch.equal(tensors[f"{name}.codes"].int(), weight.codes)
        assert torch.equal(tensors[f"{name}.scale"], weight.qparams.scale)
    assert (model.producer_name, model.opset_import[0].version) == ("qexp", 21)
    dimensions = model.graph.input[0].type.tensor_type.shape.dim
    assert [dimension.dim_param or dimension.dim_value for dimension in dimensions] == ["N", 3, 16, 16]
    assert not any(node.op_type in ("Relu", "Clip") for node in model.graph.node), "saturation does what they do"


def test_powers_of_two_leave_no_difference_at_all(quantized, run_file, graphs, tmp_path):
    torch.manual_seed(0)
    case = quantized(graphs.Residual(), images(), scheme="pow2_scale", act_bits=6)
    for module in fake_quants(case.network).values():
        module.scale.copy_(torch.exp2(torch.log2(module.scale).ceil()))
    exported = case.export(tmp_path / "net.onnx")
    codes, logits = case.simulate(exported)
    ran = run_file(exported, case.images, fused=True)
    assert all(torch.equal(ran.codes[point], codes[point]) for point in codes)
    assert torch.allclose(ran.logits, logits, rtol=1e-6)


@pytest.mark.parametrize("divide", [False, True])
def test_ties_are_divided(quantized, run_file, graphs, divide, tmp_path):
    torch.manual_seed(0)
    case = quantized(graphs.Residual(), images(), divide=divide)
    scale = fake_quants(case.network)["input"].scale.fill_(0.0371)
    exported, ties = case.export(tmp_path / "net.onnx"), torch.arange(-100, 100) + 0.5
    x = (ties * scale).repeat(4)[:768].reshape(1, 3, 16, 16)
    difference = run_file(exported, x).codes["input"] - type(case)(case.network, {}, x, 0).simulate()[0]["input"]
    assert bool(difference.any()) != divide and difference.abs().max() <= 1
    assert bool(exported.notes and "ties may differ" in exported.notes[-1]) != divide


@pytest.mark.parametrize(("scheme", "unsigned"), [("symmetric", False), ("symmetric", True), ("unsigned_symmetric", True)])
def test_other_grids_of_activations(quantized, run_file, graphs, scheme, unsigned, tmp_path):
    torch.manual_seed(0)
    case = quantized(graphs.Residual(), images(), scheme=scheme)
    exported = case.export(tmp_path / "net.onnx", unsigned=unsigned)
    codes, _ = case.simulate(exported)
    ran = run_file(exported, case.images)
    # Biases beside signed codes are float in the file, and ONNX Runtime rounds them itself: another code here and there.
    most, mean = (1, 1e-3) if unsigned else (2, 0.1)
    for point, mine in codes.items():
        difference = (ran.codes[point] - mine).abs()
        assert difference.max() <= most and difference.float().mean() < mean
    assert ran.operators["QLinearConv"] == 2 or not unsigned  # ONNX Runtime leaves INT8 pairs alone where codes have two readers


@pytest.mark.parametrize("pack_int4", [False, True])
def test_four_bits(quantized, run_file, graphs, pack_int4, tmp_path):
    torch.manual_seed(0)
    case = quantized(graphs.Residual(), images(), bits=4)
    exported = case.export(tmp_path / "net.onnx", pack_int4=pack_int4)
    assert exported.stored["conv2.weight"] == ("INT4" if pack_int4 else "INT8")
    codes, logits = case.simulate(exported)
    for fused in (False, True):
        ran = run_file(exported, case.images, fused=fused)
        assert all((ran.codes[point] - codes[point]).abs().max() <= 1 for point in codes)
        assert all(ran.codes[point].min() >= -8 and ran.codes[point].max() <= 7 for point in codes)
        assert sqnr_db(logits, ran.logits) > 30
    assert ran.operators["QLinearConv"] == (0 if pack_int4 else 2)


@pytest.mark.parametrize("granularity", ["per_tensor", "per_channel"])
def test_openvino_runs_packed_codes(quantized, graphs, granularity, tmp_path):
    torch.manual_seed(0)
    case = quantized(graphs.Residual(), images(), bits=4, granularity=granularity)
    plain, packed = (case.export(tmp_path / f"{name}.onnx", pack_int4=name == "packed") for name in ("plain", "packed"))
    sizes = [(tmp_path / f"{name}.onnx").stat().st_size for name in ("plain", "packed")]
    assert plain.stored["conv2.weight"] == "INT8" and packed.stored["conv2.weight"] == "INT4" and sizes[1] < sizes[0]
    codes, logits = case.simulate(packed)
    ran_codes, ran_logits = open_runtime("openvino", tmp_path / "packed.onnx", outputs=packed.codes).run_codes(case.images)
    assert all((ran_codes[point] - codes[point]).abs().max() <= 1 for point in codes)
    assert sqnr_db(logits, ran_logits) > 30


@pytest.mark.parametrize(
    "options",
    [{"act_bits": 16}, {"weight_scheme": "affine", "granularity": "per_tensor"}, {"places": "layers"}, {"fold": False}],
    ids=str,
)
def test_other_ways_to_quantize(quantized, run_file, graphs, options, tmp_path):
    torch.manual_seed(0)
    case = quantized(graphs.Residual(), images(), **options)
    exported = case.export(tmp_path / "net.onnx")
    codes, logits = case.simulate(exported)
    for fused in (False, True):
        ran = run_file(exported, case.images, fused=fused)
        assert all((ran.codes[point] - codes[point]).abs().max() <= (4 if options.get("act_bits") else 1) for point in codes)
        assert sqnr_db(logits, ran.logits) > 45


def test_a_float_network_is_written_too(quantized, run_file, graphs, tmp_path):
    torch.manual_seed(0)
    model = graphs.Inception().eval()
    network = trace(model, images(1)).build()
    exported = export_qdq(network, images(1), {}, tmp_path / "net.onnx")
    assert not exported.codes and not exported.notes
    assert torch.allclose(run_file(exported, images()).logits, model(images()), atol=1e-5)


def test_weights_without_codes_stay_float(quantized, run_file, graphs, tmp_path):
    torch.manual_seed(0)
    case = quantized(graphs.Residual(), images(), weight_scheme="linear")
    exported = case.export(tmp_path / "net.onnx")
    assert not case.weights and set(exported.stored.values()) == {"FLOAT"}
    assert sqnr_db(case.simulate()[1], run_file(exported, case.images).logits) > 45


def test_a_bias_beyond_32_bits_is_added_in_float(quantized, run_file, graphs, tmp_path):
    torch.manual_seed(0)
    net = graphs.Residual()
    with torch.no_grad():
        net.conv1.weight[0] *= 1e-9  # a channel that is dead but for its shift
        net.bn1.bias[0] = 3.0
    case = quantized(net, images())
    exported = case.export(tmp_path / "net.onnx")
    assert any(note.startswith("conv1.bias: added in float") for note in exported.notes)
    assert "conv1.bias" not in exported.biases and "conv2.bias" in exported.biases
    codes, logits = case.simulate(exported)
    for fused in (False, True):
        assert sqnr_db(logits, run_file(exported, case.images, fused=fused).logits) > 45


def test_codes_may_be_all_that_a_network_returns(quantized, run_file, tmp_path):
    """An average of one pixel is that pixel, so that the last DequantizeLinear is read by nothing but the output."""
    torch.manual_seed(0)
    case = quantized(nn.Sequential(nn.Conv2d(3, 5, 16), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()), images())
    exported = case.export(tmp_path / "net.onnx")
    assert sqnr_db(case.simulate(exported)[1], run_file(exported, case.images).logits) > 40
