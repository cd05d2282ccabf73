"""Floats of 8 bits in a file: weights and activations as ONNX Runtime has them, bit for bit, and what is refused."""

import csv
import runpy
from pathlib import Path

import pytest
import torch
from torch import nn

from qexp.base.errors import UserError
from qexp.base.types import QuantSpec
from qexp.config.policy import PolicySettings
from qexp.config.quant import ActivationQuantSettings, QuantSettings, WeightQuantSettings
from qexp.deploy.float8 import float8_weight
from qexp.deploy.onnx.qdq import export_qdq
from qexp.nn.activation_points import activations
from qexp.nn.fake_quant import fake_quants, insert
from qexp.nn.graph import trace
from qexp.nn.inventory import inventory
from qexp.policy.plan import make_plan
from qexp.quant.schemes import quantize_

for library in ("onnx", "onnxruntime"):
    pytest.importorskip(library, reason=f"needs {library}: pip install 'qexp[deploy]'")

NETWORKS = Path(__file__).parents[1] / "networks.py"
FORMATS = {"e4m3fn": "FLOAT8E4M3FN", "e5m2": "FLOAT8E5M2"}
FLOATS = ("quant=minifloat", "quant.activation.scheme=minifloat")


class Small(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.second, self.head = nn.Conv2d(3, 4, 3), nn.ConvTranspose2d(4, 6, 2), nn.Linear(6, 5)

    def forward(self, x):
        first = torch.relu(self.conv(x))
        second = torch.relu(self.second(first))
        moved = nn.functional.max_pool2d(first[:, :, ::2, 1:], 1).permute(0, 2, 3, 1).flatten(1)  # what only moves numbers
        return self.head(second.mean((2, 3))) + moved[:, :5]


@torch.no_grad()
def exported(name, path, *, granularity="per_tensor", scaled=True):
    """A network in a format: its simulation, its numbers, its file; ranges are so small that values saturate."""
    torch.manual_seed(0)
    model, images = Small().eval(), torch.randn(4, 3, 8, 8)
    traced = trace(model, images[:1])
    how = {"format": name, "scaled": scaled}
    quant = QuantSettings(
        name="minifloat", weight=WeightQuantSettings(granularity=granularity, **how),
        activation=ActivationQuantSettings(scheme="minifloat", **how),
    )  # fmt: skip
    points = activations(traced, layers_only=quant.activation.layers_only)
    plan = make_plan(inventory(model, images[:1]), policy=PolicySettings(), quant=quant, bits=8, mode="int", activations=points)
    numbers, parameters = {}, dict(model.named_parameters())
    for tensor, spec in plan.quantized.items():
        source = parameters[tensor].clone()
        quantize_(parameters[tensor], source, spec)
        numbers[tensor] = float8_weight(tensor, parameters[tensor], source, spec)
    network = insert(traced, plan).eval()
    for module in fake_quants(network).values():
        if scaled:
            module.set_range(-0.7, 0.9)
    return network, images, numbers, export_qdq(network, images[:1], {}, path, in_float=numbers)


def run(path, images, *more):
    """The logits, and further tensors of the file."""
    import onnx
    import onnxruntime

    model = onnx.shape_inference.infer_shapes(onnx.load(path))
    known = {info.name: info for info in model.graph.value_info}
    model.graph.output.extend(known[name] for name in more)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return [torch.from_numpy(values) for values in session.run(None, {"images": images.numpy()})]


@pytest.mark.parametrize("granularity", ["per_tensor", "per_channel"])
@pytest.mark.parametrize("name", FORMATS)
def test_onnx_runtime_has_the_simulations_numbers(name, granularity, tmp_path):
    import onnx

    network, images, numbers, written = exported(name, tmp_path / "net.onnx", granularity=granularity)
    graph = onnx.load(written.path).graph
    weights = {"conv.weight", "second.weight", "head.weight"}
    assert {key: kind for key, kind in written.stored.items() if key in weights} == dict.fromkeys(weights, FORMATS[name])
    kinds = {one.name: onnx.TensorProto.DataType.Name(one.data_type) for one in graph.initializer}
    assert kinds["conv.weight.codes"] == kinds["input.zero_point"] == FORMATS[name] and kinds["conv.bias"] == "FLOAT"
    assert not written.codes and not written.biases
    points = [node.output[0] for node in graph.node if node.op_type == "DequantizeLinear" and node.output[0].endswith("values")]
    logits, *values = run(written.path, images, *weights, *points)
    for tensor, value in zip(weights, values, strict=False):
        assert torch.equal(value, network.state_dict()[tensor]), tensor
    assert len(points) == len(fake_quants(network))
    saw = {}
    for point, module in fake_quants(network).items():
        module.register_forward_hook(lambda _, inputs, output, point=point: saw.update({point: output.clone()}))
    with torch.no_grad():
        simulated = network(images)
    assert torch.equal(values[len(weights)], saw["input"])  # what the images became, saturated at both ends
    assert saw["input"].max() == values[len(weights)].max() < images.max()
    torch.testing.assert_close(logits, simulated, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", FORMATS)
def test_float_weights_stay_float_beside_activations_of_eight_bits(name, tmp_path):
    """ONNX Runtime makes codes of float weights that meet DequantizeLinear, unless the file keeps it from that."""
    network, images, _, _ = exported(name, tmp_path / "net.onnx")
    written = export_qdq(network, images[:1], {}, tmp_path / "floats.onnx")
    assert set(written.stored.values()) == {"FLOAT"}
    with torch.no_grad():
        torch.testing.assert_close(run(written.path, images)[0], network(images), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("name", "saturates", "large"), [("e4m3fn", 1, 448.0), ("e5m2_sat", 1, 57344.0), ("e5m2", 0, torch.inf)])
def test_unscaled_values_overflow_as_the_name_says(name, saturates, large, tmp_path):
    import onnx

    network, images, _, written = exported(name, tmp_path / "net.onnx", scaled=False)
    nodes = [node for node in onnx.load(written.path).graph.node if node.op_type == "QuantizeLinear"]
    assert {attribute.i for node in nodes for attribute in node.attribute if attribute.name == "saturate"} == {saturates}
    images[0, 0, 0, 0], images[0, 0, 0, 1], images[0, 0, 0, 2] = 1e6, -1e6, 463.9
    values = run(written.path, images, f"{nodes[0].output[0]}.values")[1]
    with torch.no_grad():
        expected = fake_quants(network)["input"](images)
    assert torch.equal(values, expected) and values[0, 0, 0, 0] == large == -values[0, 0, 0, 1]


def test_values_off_the_grid_are_named():
    spec = QuantSpec(scheme="minifloat", bits=8)
    with pytest.raises(UserError, match="w=1 values off their grid: allowed is numbers of e4m3fn times its scale"):
        float8_weight("w", torch.tensor([1.0, 0.999]), torch.tensor([1.0, 0.999]), spec)


@pytest.fixture
def checkpoint():
    torch.manual_seed(0)
    torch.save(runpy.run_path(str(NETWORKS))["tiny"](10, 1).state_dict(), "checkpoint.pt")


def test_weights_alone(cli, tiny, checkpoint):
    """Float activations beside weights of 8 bits, per tensor, on the format that is named."""
    more = ("quant=minifloat", "quant.weight.format=e5m2", "quant.activation.bits=null", "quant.weight.granularity=per_tensor")
    done = cli("checkpoint=checkpoint.pt", *tiny, *more, "export.cost=false", "evaluate.num_images=20", verb="export")
    assert done.code == 0, done.err
    with open("results/digits/stages.csv") as handle:
        stages = {row["name"]: row for row in csv.DictReader(handle)}
    assert list(stages) == ["fp32", "simulated", "onnxruntime"] and float(stages["onnxruntime"]["logit_sqnr_db"]) > 40


def test_a_file_of_floats_from_the_command_line(cli, tiny, checkpoint):
    pytest.importorskip("openvino", reason="needs openvino: pip install 'qexp[deploy]'")
    more = ("export.cost=false", "export.runtime=[onnxruntime,openvino]", "evaluate.num_images=40")
    done = cli("checkpoint=checkpoint.pt", *tiny, *FLOATS, *more, verb="export")
    assert done.code == 0, done.err
    with open("results/digits/stages.csv") as handle:
        stages = {row["name"]: row for row in csv.DictReader(handle)}
    assert list(stages) == ["fp32", "simulated", "onnxruntime", "openvino"]
    for runtime in ("onnxruntime", "openvino"):
        assert float(stages[runtime]["agreement"]) == 1 and float(stages[runtime]["logit_sqnr_db"]) > 40
        assert "no integer reference" in stages[runtime]["note"] and stages[runtime]["passed"] == ""
    with open("results/digits/layers.csv") as handle:
        assert {(row["weight_bits"], row["act_bits"]) for row in csv.DictReader(handle)} == {("8", "8")}


REFUSED = {
    "blocks": (["quant=mxfp4"], "quant=mxfp4: allowed is affine, "),
    "nvfp4": (["quant=nvfp4"], "quant=nvfp4: allowed is affine, "),
    "a format": ([*FLOATS, "quant.weight.format=e3m4"], "quant.weight.format=e3m4: allowed is e4m3fn or e5m2 in qexp.export"),
    "six bits": ([*FLOATS, "bits=6"], "quant.weight.format=e2m3: allowed is e4m3fn or e5m2"),
    "of activations": ([*FLOATS, "quant.activation.format=e3m4"], "quant.activation.format=e3m4: allowed is e4m3fn or e5m2"),
    "NaN": (
        [*FLOATS, "quant.weight.format=e4m3fn_nan", "quant.weight.scaled=false"], "quant.weight.format=e4m3fn_nan: allowed is"
    ),
    "floats times codes": (["quant=minifloat"], "quant.activation.scheme=affine: allowed is minifloat with quant=minifloat"),
    "codes times floats": ([FLOATS[1]], "quant=symmetric_restricted: allowed is minifloat with quant.activation.scheme"),
    "a runtime": ([*FLOATS, "export.runtime=[onnxruntime,litert]"], "export.runtime=litert: allowed is onnxruntime, openvino"),
    "a program": ([*FLOATS, "export.torch_export=true"], "export.torch_export=true: allowed is false with quant=minifloat"),
    "ranges of batches": ([*FLOATS, "quant.activation.dynamic=true"], "input.dynamic=true: allowed is False in QuantizeLinear"),
}  # fmt: skip


@pytest.mark.parametrize(("overrides", "message"), REFUSED.values(), ids=REFUSED)
def test_what_no_file_holds(cli, tiny, checkpoint, overrides, message):
    done = cli("checkpoint=checkpoint.pt", *tiny, "export.cost=false", *overrides, verb="export")
    assert (done.code, done.out) == (2, "")
    assert done.err.strip().splitlines()[1].strip().startswith(message) and not list(Path().rglob("*.onnx"))
