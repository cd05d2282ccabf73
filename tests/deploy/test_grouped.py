"""Weights with a scale for each group in a file: blocks whose values are the simulation's, in each runtime that reads them."""

import pytest
import torch
from torch import nn

from qexp.base.errors import UserError
from qexp.base.types import QuantSpec
from qexp.config.export import ExportSettings
from qexp.deploy.coded_network import code_network
from qexp.deploy.files import float_note
from qexp.deploy.grouped import grouped_weight
from qexp.deploy.lower import Lowered
from qexp.deploy.onnx.qdq import export_qdq
from qexp.deploy.runtimes import open_runtime
from qexp.quant.schemes import quantize_

pytest.importorskip("onnx", reason="needs onnx: pip install 'qexp[deploy]'")


class Small(nn.Module):
    """A convolution, a transposed one whose channels are its second axis, a product of matrices, a linear layer."""

    def __init__(self):
        super().__init__()
        self.conv, self.second = nn.Conv2d(3, 4, 3), nn.ConvTranspose2d(4, 6, 2)
        self.mixed, self.head = nn.Linear(6, 7), nn.Linear(7, 5)

    def forward(self, x):
        second = torch.relu(self.second(torch.relu(self.conv(x))))
        return self.head(self.mixed(second.permute(0, 2, 3, 1)).mean((1, 2)))


def spec_of(axis=0, **how):
    return QuantSpec(**{"scheme": "symmetric_restricted", "bits": 4, "granularity": "per_group", "axis": axis, **how})


@torch.no_grad()
def exported(path, *, pack_int4, **how):
    """A network with groups in all weights: its simulation, its images, its file."""
    torch.manual_seed(0)
    model, images = Small().eval(), torch.randn(4, 3, 8, 8)
    parameters = dict(model.named_parameters())
    specs = {name: spec_of(int(name == "second.weight"), **how) for name in parameters if name.endswith("weight")}
    floats = Small()
    floats.load_state_dict(model.state_dict())
    for name, spec in specs.items():
        quantize_(parameters[name], parameters[name].clone(), spec)
    coded = code_network(model, images[:1], {name: (spec, None) for name, spec in specs.items()}, reference=floats)
    assert coded.in_float.keys() == specs.keys() and not coded.weights and not coded.kept_float
    written = export_qdq(coded.network, images[:1], {}, path, in_float=coded.in_float, pack_int4=pack_int4)
    return model(images), images, written


# 27 elements of a channel of `conv`, 16, 6 and 7 of the others: whole groups, a smaller last one, one group for a channel.
@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino"])
@pytest.mark.parametrize(
    ("how", "pack_int4", "stored"),
    [
        ({"group_size": 8}, True, "INT4"),
        ({"group_size": 3}, True, "INT4"),
        ({"group_size": 64}, True, "INT4"),
        ({"group_size": 8, "scheme": "affine"}, True, "INT4"),
        ({"group_size": 8}, False, "INT8"),
        ({"group_size": 8, "bits": 8}, True, "INT8"),
    ],
    ids=str,
)
def test_a_runtime_has_the_simulations_values(runtime, how, pack_int4, stored, tmp_path):
    pytest.importorskip(runtime, reason=f"needs {runtime}: pip install 'qexp[deploy]'")
    simulated, images, written = exported(tmp_path / "net.onnx", pack_int4=pack_int4, **how)
    assert {kind for name, kind in written.stored.items() if name.endswith("weight")} == {stored}
    torch.testing.assert_close(open_runtime(runtime, written.path).run(images), simulated, rtol=1e-4, atol=1e-5)


def test_codes_and_scales_are_qexps(tmp_path):
    onnx = pytest.importorskip("onnx")
    exported(tmp_path / "net.onnx", pack_int4=True, group_size=8)
    (graph,) = [onnx.load(tmp_path / "net.onnx").graph]
    shapes = {one.name: tuple(one.dims) for one in graph.initializer}
    assert shapes["conv.weight.codes"] == (4, 32) and shapes["conv.weight.scale"] == (4, 4), "27 elements in blocks of 8"
    assert shapes["second.weight.codes"] == (6, 16) and shapes["second.weight.scale"] == (6, 2), "channels first"
    sizes = {node.output[0]: attribute.i for node in graph.node for attribute in node.attribute if attribute.name == "block_size"}
    assert sizes == {"conv.weight": 8, "second.weight": 8, "mixed.weight": 6, "head.weight": 7}


@pytest.mark.parametrize(
    ("stored", "runtimes", "note"),
    [
        ("INT4 INT8", "openvino", "1 weight packed in 4 bits {0} and 1 weight {0}, computed with in float by openvino"),
        ("INT8 INT8", "openvino litert", "2 weights {0}, computed with in float by openvino; 2 weights in float32 for litert"),
        ("INT4 INT4", "litert", "2 weights packed in 4 bits {0}; 2 weights in float32 for litert"),
    ],
)
def test_each_weight_is_counted_once(stored, runtimes, note):
    weight, names = torch.tensor([[-7.0, 1.0, 14.0, 4.0]]), ("first", "second")
    coded = grouped_weight("w", weight, weight, spec_of(group_size=2))
    lowered = Lowered(None, {}, in_float=dict.fromkeys((*names, "not read"), coded))
    types = dict(zip(names, stored.split(), strict=True))
    said = float_note(lowered, types, ExportSettings(runtime=runtimes.split()))
    assert said == note.format("with a scale for each group")


def test_values_off_the_grid_are_named():
    weight = torch.tensor([[1.0, 0.999, 7.0, 3.0]])
    with pytest.raises(UserError, match="w=1 values off their grid"):
        grouped_weight("w", weight, torch.tensor([[7.0, 1.0, 7.0, 3.0]]), spec_of(group_size=2))
