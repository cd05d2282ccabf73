"""TFLite files: what their bytes hold, what LiteRT computes of them with XNNPACK and without, and what no file holds."""

import importlib.util
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from qexp.base.errors import UserError
from qexp.deploy.activation_codes import code_nodes, simulated_codes
from qexp.deploy.coded_network import code_network
from qexp.deploy.integer_network import integer_codes
from qexp.deploy.runtimes import open_runtime
from qexp.deploy.stages import FLOAT, INTEGER, SIMULATED, Outcome, StageComparison
from qexp.deploy.tflite import writer
from qexp.deploy.tflite.export import export_tflite
from qexp.deploy.tflite.run import TfliteSession
from qexp.deploy.weight_codes import accumulator_scale, bias_codes

pytest.importorskip("ai_edge_litert", reason="needs LiteRT: pip install 'qexp[deploy]'")
spec = importlib.util.spec_from_file_location("tflite_networks", Path(__file__).with_name("networks.py"))
networks = importlib.util.module_from_spec(spec)
sys.modules["tflite_networks"] = networks
spec.loader.exec_module(networks)


def images(n=6, size=12, seed=1):
    return torch.randn(n, 3, size, size, generator=torch.Generator().manual_seed(seed))


def written(quantized, network, folder, **options):
    """A quantized network with the biases of its files, and both files."""
    torch.manual_seed(0)
    case = quantized(network, images(), **options)
    exported = case.export(folder / "net.onnx")
    logits = case.simulate(exported)[1]
    largest = float(logits.abs().max())
    return (
        case,
        exported,
        export_tflite(case.network, case.images[:1], case.weights, folder / "net.tflite", largest_logit=largest),
    )


def compared(case, exported, *, delegate=True):
    """The stage of LiteRT, judged layer by layer, and that of the integers."""
    codes, logits = simulated_codes(case.network, case.images)
    integers = integer_codes(case.network, case.weights, case.images)
    session = TfliteSession(exported.path.with_suffix(".tflite"), points=tuple(codes), delegate=delegate)
    mine, *shown = session.run(case.images)
    own = {
        point: values - place[1] for (point, values), place in zip(zip(codes, shown, strict=True), session.places, strict=True)
    }
    comparison = StageComparison(case.network, case.weights, (FLOAT, SIMULATED, INTEGER, "litert"))
    outcomes = {FLOAT: Outcome(logits), SIMULATED: Outcome(logits, codes), INTEGER: Outcome(integers[1], integers[0])}
    comparison.add(case.images, logits.argmax(1), outcomes | {"litert": Outcome(mine, own)})
    return comparison.stages()[-1], session


@pytest.mark.alone
@pytest.mark.parametrize(
    ("name", "options", "floats"),
    [
        ("Plain", {}, set()),
        ("Plain", {"act_bits": 4}, set()),
        ("Plain", {"bits": 4, "granularity": "per_tensor"}, set()),
        ("Plain", {"scheme": "symmetric"}, set()),
        ("Pools", {}, {"gate"}),
        ("Pools", {"act_bits": 5}, {"gate"}),
        ("Joined", {}, set()),
        ("Joined", {"act_bits": 4}, set()),
        ("Functions", {}, {"stem", "conv", "head"}),
    ],
)
def test_every_layer_gives_the_codes_of_integers(quantized, tmp_path, name, options, floats):
    """By XNNPACK; a layer before a sigmoid or another function has no codes of its result, and is float."""
    case, exported, _ = written(quantized, getattr(networks, name)(), tmp_path, **options)
    stage, session = compared(case, exported)
    assert (stage.failed_layer, stage.agreement) == (None, 1.0) and stage.logit_sqnr_db > 40
    layers = {weight.removesuffix(".weight") for weight in case.weights}
    assert layers - session.integer_layers() == floats and session.integer_layers() <= layers


@pytest.mark.alone
@pytest.mark.parametrize("name", ["Plain", "Pools"])
def test_kernels_without_xnnpack_differ_by_a_step(quantized, tmp_path, name):
    """Their multipliers are integers, and ties go away from zero: one step, in more codes."""
    case, exported, _ = written(quantized, getattr(networks, name)(), tmp_path)
    stage, _ = compared(case, exported, delegate=False)
    assert stage.layer_steps == 1 and stage.differ_pct > 0 and stage.logit_sqnr_db > 30


@pytest.mark.alone
@pytest.mark.parametrize("name", ["Plain", "Pools"])
def test_sixteen_bits(quantized, tmp_path, name):
    """INT16 codes beside INT8 weights: kernels whose multipliers have 15 bits, so that 1 or 2 of 65 536 steps are lost."""
    case, exported, _ = written(quantized, getattr(networks, name)(), tmp_path, act_bits=16, scheme="symmetric")
    stage, session = compared(case, exported)
    assert stage.max_steps <= 3 and stage.layer_steps <= 2 and stage.agreement == 1.0 and stage.logit_sqnr_db > 70
    assert {"stem", "head"} <= session.integer_layers()


@pytest.mark.alone
def test_the_runtime_is_a_row_and_takes_any_number_of_images(quantized, tmp_path):
    case, exported, _ = written(quantized, networks.Plain(), tmp_path)
    codes, logits = simulated_codes(case.network, case.images)
    session = open_runtime("litert", exported.path, outputs=exported.codes)
    mine, with_codes = session.run_codes(case.images)
    assert list(mine) == list(codes) and session.version[0].isdigit()
    assert all((mine[point] - codes[point]).abs().max() <= 1 for point in codes)
    for number in (1, 5, 6):
        assert torch.allclose(session.run(case.images[:number]), logits[:number], atol=0.02)
    assert with_codes.shape == logits.shape


def test_the_signature_calls_the_network_by_the_names_of_its_ends(quantized, tmp_path):
    from ai_edge_litert.interpreter import Interpreter

    case, exported, _ = written(quantized, networks.Plain(), tmp_path)
    path = exported.path.with_suffix(".tflite")
    runner = Interpreter(model_path=str(path)).get_signature_runner("serving_default")
    logits = runner(images=case.images[:1].movedim(1, -1).contiguous().numpy())["logits"]
    assert np.array_equal(logits, open_runtime("litert", path).run(case.images[:1]).numpy())


@pytest.mark.alone
def test_bytes_hold_codes_scales_and_operators(quantized, tmp_path):
    """Read back by the schema alone: the weight turned, its scales, the bias in steps of the accumulator, SAME and PAD."""
    case, _, exported = written(quantized, networks.Plain(), tmp_path)
    content = exported.path.read_bytes()
    assert content[4:8] == b"TFL3" and len(content) == exported.size_bytes
    model = writer.unpack(content)
    graph, kinds = model.subgraphs[0], writer.schema_library().BuiltinOperator
    tensors = {writer.text(tensor.name): tensor for tensor in graph.tensors}

    def values(name, dtype):
        return np.frombuffer(bytes(model.buffers[tensors[name].buffer].data), dtype).reshape(tensors[name].shape)

    for name, order in (("stem", (0, 2, 3, 1)), ("grouped", (0, 2, 3, 1)), ("depthwise", (1, 2, 3, 0))):
        weight, tensor = case.weights[f"{name}.weight"], tensors[f"{name}.weight"]
        assert np.array_equal(values(f"{name}.weight", np.int8), weight.codes.permute(order).numpy())
        assert np.array_equal(tensor.quantization.scale, weight.qparams.scale.numpy())
        assert not tensor.quantization.zeroPoint.any() and tensor.quantization.quantizedDimension == order.index(0)
    points = writer.metadata(model, writer.POINTS)
    grid = tensors[points["relu"][0]].quantization
    source = case.network.get_submodule(str(code_nodes(case.network)["relu"].target))
    step = accumulator_scale(source.qparams, case.weights["grouped.weight"].qparams)
    assert np.array_equal(values("grouped.bias", np.int32), bias_codes(case.network.grouped.bias, step).numpy())
    assert np.array_equal(tensors["grouped.bias"].quantization.scale, step.numpy()) and grid.zeroPoint[0] == -128
    head = case.weights["head.weight"].codes.reshape(5, 8, 2, 2).permute(0, 2, 3, 1).flatten(1)
    assert np.array_equal(values("head.weight", np.int8), head.numpy())
    ran = [model.operatorCodes[operator.opcodeIndex].builtinCode for operator in graph.operators]
    names = {number: name for name, number in vars(kinds).items() if isinstance(number, int)}
    assert [names[code] for code in ran] == [
        "QUANTIZE", "PAD", "CONV_2D", "CONV_2D", "PAD", "DEPTHWISE_CONV_2D", "CONV_2D", "PADV2", "MAX_POOL_2D", "RESHAPE",
        "QUANTIZE", "FULLY_CONNECTED", "DEQUANTIZE",
    ]  # fmt: skip


@pytest.mark.alone
@torch.no_grad()
@pytest.mark.parametrize("name", ["Plain", "Pools", "Functions"])
def test_float_networks_are_float(tmp_path, name):
    """What latency is compared with."""
    torch.manual_seed(0)
    network = getattr(networks, name)().eval()
    traced = code_network(network, images()[:1], {}).network
    exported = export_tflite(traced, images()[:1], {}, tmp_path / "net.tflite")
    session = TfliteSession(exported.path)
    torch.testing.assert_close(session.run(images())[0], network(images()), rtol=1e-4, atol=1e-5)
    assert session.integer_layers() == frozenset() and set(exported.stored.values()) == {"FLOAT"}


class Sequence(nn.Module):
    def __init__(self, layer):
        super().__init__()
        self.stem, self.layer, self.head = nn.Conv2d(3, 4, 3), layer, nn.Linear(4, 5)

    def forward(self, x):
        return self.head(self.layer(self.stem(x)).mean((2, 3)))


@pytest.mark.parametrize(
    ("layer", "options", "message"),
    [
        (nn.ReLU(), {"weight_scheme": "affine", "granularity": "per_tensor"},
         r"stem\.weight=codes .*in TFLite.*symmetric_restricted"),
        (nn.ReLU(), {"weight_scheme": "symmetric"}, r"weight=codes from -128 to 127: allowed is weights from -127"),
        (nn.ReLU(), {"dynamic": True}, r"dynamic=true: allowed is false in TFLite.*export\.runtime=onnxruntime"),
        (nn.ReLU(), {"act_bits": 16}, r"INT16 with zero point 0.*quant\.activation\.scheme=symmetric"),
        (nn.ReflectionPad2d(1), {}, r"export=layer \(ReflectionPad2d\): .*pads otherwise"),
        (nn.ConvTranspose2d(4, 4, 2), {}, r"export=layer \(ConvTranspose2d\): .*no way to write it"),
        (nn.Mish(), {}, r"export=layer \(Mish\): allowed is an operator that qexp writes to TFLite"),
    ],
)  # fmt: skip
def test_what_no_file_holds_is_refused_by_name(quantized, tmp_path, layer, options, message):
    torch.manual_seed(0)
    case = quantized(Sequence(layer), images(), **options)
    with pytest.raises(UserError, match=message):
        export_tflite(case.network, case.images[:1], case.weights, tmp_path / "net.tflite")
    assert not list(tmp_path.iterdir())


def test_a_missing_package_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "ai_edge_litert", None)
    with pytest.raises(UserError, match=r"export\.runtime=litert: .*ai-edge-litert.*pip install 'qexp\[deploy\]'"):
        writer.schema_library()


def test_a_file_that_was_not_written_is_named(tmp_path):
    with pytest.raises(UserError, match=r"export\.runtime=litert: .*net\.tflite"):
        open_runtime("litert", tmp_path / "net.onnx")


@pytest.mark.alone
def test_integers_at_both_ends(quantized, tmp_path):
    """INT8 images and logits: the same codes, and logits within half a step of the largest over 127."""
    case, exported, _ = written(quantized, networks.Plain(), tmp_path)
    codes, logits = simulated_codes(case.network, case.images)
    largest, target = float(logits.abs().max()), tmp_path / "net.tflite"
    export_tflite(case.network, case.images[:1], case.weights, target, largest_logit=largest, integer_io=True)
    model = writer.unpack(target.read_bytes())
    graph, types = model.subgraphs[0], writer.schema_library().TensorType
    assert [graph.tensors[number].type for number in (graph.inputs[0], graph.outputs[0])] == [types.INT8, types.INT8]
    session = open_runtime("litert", exported.path, outputs=exported.codes)
    mine, shown = session.run_codes(case.images)
    assert session.logit_step == pytest.approx(1.25 * largest / 127)
    assert all((mine[point] - codes[point]).abs().max() <= 1 for point in codes)
    assert (shown - logits).abs().max() <= 0.51 * session.logit_step
    floats = code_network(networks.Plain().eval(), images()[:1], {}).network
    with pytest.raises(UserError, match=r"export\.integer_io=true: allowed is a plan that gives the images codes"):
        export_tflite(floats, images()[:1], {}, target, integer_io=True)
