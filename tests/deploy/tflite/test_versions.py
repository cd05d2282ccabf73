"""The versions of operators in a file, which are those that a runtime must have to read them as they are meant."""

import importlib.util
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from qexp.deploy.tflite import writer
from qexp.deploy.tflite.export import export_tflite
from qexp.deploy.tflite.versions import version_of

pytest.importorskip("ai_edge_litert", reason="needs LiteRT: pip install 'qexp[deploy]'")
spec = importlib.util.spec_from_file_location("tflite_networks", Path(__file__).with_name("networks.py"))
networks = importlib.util.module_from_spec(spec)
sys.modules["tflite_networks"] = networks
spec.loader.exec_module(networks)


@pytest.mark.alone
@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, {("CONV_2D", 3), ("CONV_2D", 6), ("TRANSPOSE", 4), ("DEPTHWISE_CONV_2D", 3), ("FULLY_CONNECTED", 5)}),
        ({"act_bits": 16, "scheme": "symmetric"},
         {("CONV_2D", 4), ("CONV_2D", 6), ("TRANSPOSE", 5), ("DEPTHWISE_CONV_2D", 5), ("FULLY_CONNECTED", 7)}),
    ],
)  # fmt: skip
def test_what_an_operator_does_may_need_a_later_version(quantized, tmp_path, options, expected):
    """Read from the bytes of the file."""
    torch.manual_seed(0)
    case = quantized(networks.Versions(), torch.randn(6, 3, 12, 12), **options)
    exported = export_tflite(case.network, case.images[:1], case.weights, tmp_path / "net.tflite", largest_logit=1.0)
    model = writer.unpack(exported.path.read_bytes())
    names = {number: name for name, number in vars(writer.schema_library().BuiltinOperator).items() if isinstance(number, int)}
    assert expected <= {(names[code.builtinCode], code.version) for code in model.operatorCodes}


@pytest.mark.parametrize(("steps", "version"), [((0.1, 0.1, 0.02), 2), ((2.0, 0.5, 1.0), 3), ((2.0, 2.0, 1.0), 3)])
def test_a_product_of_more_than_a_step(steps, version):
    """MUL of codes whose product comes in steps of one or more of its result's."""
    types = writer.schema_library().TensorType
    tensors = [
        SimpleNamespace(type=types.INT8, shape=[1], quantization=SimpleNamespace(scale=np.array([step], np.float32)))
        for step in steps
    ]
    assert version_of("MUL", types, tensors, {}) == version
