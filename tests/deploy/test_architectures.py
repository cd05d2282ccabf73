"""torchvision's networks: each is written, loaded by ONNX Runtime, and predicts as its simulation does."""

import pytest
import torch

from qexp.config.model import ModelSettings
from qexp.deploy.activation_codes import load_values_, simulated_codes
from qexp.deploy.coded_network import code_network
from qexp.deploy.integer_network import integer_codes
from qexp.deploy.onnx.qdq import export_qdq
from qexp.deploy.runtimes import open_runtime
from qexp.deploy.stages import FLOAT, INTEGER, SIMULATED, Outcome, StageComparison
from qexp.models.build import build_model

SLOW = pytest.mark.slow


def images(n=2, size=32, seed=1):
    return torch.randn(n, 3, size, size, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(
    ("name", "size", "float_convs"),
    [
        ("resnet18", 32, 0),
        ("mobilenet_v2", 32, 0),
        pytest.param("googlenet", 96, 0, marks=SLOW),  # its last average is over an odd number of codes: no ties
        pytest.param("densenet121", 32, 0, marks=SLOW),
        pytest.param("efficientnet_b0", 32, 65, marks=SLOW),
        pytest.param("convnext_tiny", 32, 19, marks=SLOW),
    ],
)
def test_networks_pass_every_stage(quantized, run_file, name, size, float_convs, tmp_path):
    """ONNX Runtime has integer kernels for convolutions whose results are quantized; not where SiLU or a norm comes between."""
    torch.manual_seed(0)
    model = build_model(ModelSettings(name=name), num_classes=10, image_shape=(3, size, size), seed=0)
    case = quantized(model, images(size=size))
    exported = case.export(tmp_path / "net.onnx")
    assert case.float_bytes / exported.size_bytes > 3.3
    load_values_(case.network, exported.biases)
    codes, logits = simulated_codes(case.network, case.images)
    integers = integer_codes(case.network, case.weights, case.images)
    with_codes = open_runtime("onnxruntime", exported.path, outputs=exported.codes).run_codes(case.images)
    plain = open_runtime("onnxruntime", exported.path).run(case.images)
    comparison = StageComparison(case.network, case.weights, (FLOAT, SIMULATED, INTEGER, "onnxruntime"))
    outcomes = {FLOAT: Outcome(logits), SIMULATED: Outcome(logits, codes), INTEGER: Outcome(integers[1], integers[0])}
    comparison.add(case.images, logits.argmax(1), outcomes | {"onnxruntime": Outcome(plain, with_codes[0], with_codes[1])})
    for stage in comparison.stages()[2:]:
        assert (stage.passed, stage.failed_layer) == (True, None)
        # Where random weights leave two classes nearly equal (densenet121), a code that rounded the other way may choose.
        assert stage.agreement == 1.0 or stage.logit_sqnr_db > 15
    operators = run_file(exported, case.images).operators
    assert operators["QLinearConv"] and operators["Conv"] + operators["FusedConv"] == float_convs


@SLOW
def test_linear_layers_of_convnext_with_each_batchs_range(quantized, tmp_path):
    """Its blocks are linear layers of four dimensions; their weights are most of the file."""
    torch.manual_seed(0)
    model = build_model(ModelSettings(name="convnext_tiny"), num_classes=10, image_shape=(3, 32, 32), seed=0)
    case = quantized(model, images(), dynamic=True)
    exported = case.export(tmp_path / "net.onnx")
    assert case.float_bytes / exported.size_bytes > 3.5
    logits = case.simulate()[1]
    ran = open_runtime("onnxruntime", exported.path).run(case.images)
    assert torch.equal(ran.argmax(1), logits.argmax(1))
    network = code_network(model.eval(), case.images[:1], {}).network
    floats = export_qdq(network, case.images[:1], {}, tmp_path / "float.onnx")
    assert floats.size_bytes > 3.5 * exported.size_bytes
