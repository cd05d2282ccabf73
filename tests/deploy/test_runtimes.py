"""The runtimes on one network: what they compute, what they show, and what is said where one is missing."""

import sys

import pytest
import torch

from qexp.base.errors import UserError
from qexp.config.export import RUNTIMES
from qexp.deploy import alarms, runtimes, torch_export
from qexp.deploy.activation_codes import CodeTensor
from qexp.deploy.alarms import failures
from qexp.deploy.onnx.qdq import export_qdq
from qexp.deploy.pte.export import PTE_SUFFIX, export_pte
from qexp.deploy.runtimes import Session, fast_kernels_saturate, installed_runtimes, open_runtime, saturates
from qexp.deploy.stages import Stage
from qexp.deploy.tflite.export import export_tflite
from qexp.deploy.tflite.run import TFLITE_SUFFIX
from qexp.deploy.torch_export import PROGRAM_SUFFIX, save_program

TESTED_ALONE = ("onnxruntime", "torch")


def images(n=6, size=16, seed=1):
    return torch.randn(n, 3, size, size, generator=torch.Generator().manual_seed(seed))


def sqnr_db(reference, other):
    return float(10 * torch.log10(reference.double().square().sum() / (reference.double() - other).square().sum()))


@pytest.fixture
def case(quantized, graphs, tmp_path):
    """A quantized network, its file, and its program beside it."""
    torch.manual_seed(0)
    network_case = quantized(graphs.Residual(), images())
    exported = network_case.export(tmp_path / "net.onnx")
    network_case.simulate(exported)  # with the file's biases from here on, the program too
    if "litert" in installed_runtimes():
        export_tflite(
            network_case.network, network_case.images[:1], network_case.weights, exported.path.with_suffix(TFLITE_SUFFIX)
        )
    save_program(network_case.network, network_case.images, network_case.weights, exported.path.with_suffix(PROGRAM_SUFFIX))
    return network_case, exported


def check(case, name):
    """A runtime's codes and logits are the simulation's, for any number of images, with codes shown and without."""
    network_case, exported = case
    codes, logits = network_case.simulate(exported)
    with_outputs, plain = open_runtime(name, exported.path, outputs=exported.codes), open_runtime(name, exported.path)
    assert with_outputs.name == name and with_outputs.version[0].isdigit()
    mine, with_codes = with_outputs.run_codes(network_case.images)
    assert list(mine) == list(codes)
    for point, expected in codes.items():
        assert mine[point].dtype == torch.int32 and mine[point].shape == expected.shape
        difference = (mine[point] - expected).abs()
        assert difference.max() <= 2 and difference.float().mean() < 1e-3  # a tie upstream moves what is behind it
    for session in (with_outputs, plain):
        assert sqnr_db(logits, session.run(network_case.images)) > 40
    assert sqnr_db(logits, with_codes) > 40 and with_codes.dtype == torch.float32
    single = plain.run(network_case.images[2:3])
    assert single.shape == (1, 5) and sqnr_db(logits[2:3], single) > 35
    assert plain.run_codes(network_case.images)[0] == {}


def test_onnx_runtime(case):
    check(case, "onnxruntime")


def test_onnx_runtimes_exact_kernels_are_for_cpus_that_need_them(case, monkeypatch):
    """Whichever kernels this CPU has, both ways give the same logits: the fast ones are taken only where they lose nothing."""
    network_case, exported = case
    as_asked = open_runtime("onnxruntime", exported.path).run(network_case.images)
    monkeypatch.setattr(runtimes, "fast_kernels_saturate", lambda: True)
    assert torch.equal(open_runtime("onnxruntime", exported.path).run(network_case.images), as_asked)


def skip_where_products_saturate():
    """Only ONNX Runtime can be told to take exact kernels where the fast ones saturate."""
    if fast_kernels_saturate():
        pytest.skip("this CPU has no VNNI: its kernels add pairs of 8-bit products in 16 bits, which saturates")


@pytest.mark.alone
@pytest.mark.parametrize(
    "name", [name for name in RUNTIMES if name not in ("onnxruntime", "torch")]
)  # which have tests of their own
def test_other_runtimes(case, name):
    if name not in installed_runtimes():
        pytest.skip(f"needs {name}: pip install '{RUNTIMES[name].install}'")
    if RUNTIMES[name].reads == "onnx":
        skip_where_products_saturate()
    if RUNTIMES[name].reads == "pte":  # here alone, since lowering takes seconds
        network_case, exported = case
        export_pte(network_case.network, network_case.images, network_case.weights, exported.path.with_suffix(PTE_SUFFIX))
    check(case, name)


def test_torch_runs_the_program_as_it_is_without_a_compiler(case, monkeypatch):
    monkeypatch.setattr(torch_export, "has_compiler", lambda: False)
    check(case, "torch")


@pytest.mark.alone
@pytest.mark.skipif(not torch_export.has_compiler(), reason="needs a C++ compiler")
def test_torch_compiles_to_integers(case):
    """Not only the same numbers: oneDNN's quantized convolution is what is called."""
    from torch._inductor.utils import run_and_get_code

    network_case, exported = case
    session = open_runtime("torch", exported.path, outputs=exported.codes)
    _, written = run_and_get_code(session.run, network_case.images)
    assert sum(text.count("= torch.ops.onednn.qconv") for text in written) == 2
    assert sum(text.count("= torch.ops.onednn.qlinear") for text in written) == 1
    skip_where_products_saturate()
    check(case, "torch")


def test_codes_are_numbered_as_qexps():
    """An offset of the file is taken off again, in the order of the places."""
    session = Session("x", "1", {"a": 128, "b": 0}, lambda x, _: [x, torch.tensor([128, 0]).to(torch.uint8), torch.tensor([3])])
    codes, logits = session.run_codes(torch.ones(1))
    assert codes["a"].tolist() == [0, -128] and codes["b"].tolist() == [3] and logits.item() == 1


def test_a_runtime_that_is_not_installed_is_named(monkeypatch, tmp_path):
    monkeypatch.setattr(runtimes.importlib.util, "find_spec", lambda name: None if name == "openvino" else sys.modules["torch"])
    assert installed_runtimes() == tuple(name for name in RUNTIMES if name != "openvino")
    with pytest.raises(
        UserError, match=r"export\.runtime=openvino: .*one of .*onnxruntime, .*torch.*pip install 'qexp\[deploy\]'"
    ):
        open_runtime("openvino", tmp_path / "net.onnx")
    with pytest.raises(UserError, match=r"export\.runtime=onnxruntme: .*Did you mean onnxruntime"):
        open_runtime("onnxruntme", tmp_path / "net.onnx")


def test_a_program_that_was_not_saved_is_named(tmp_path):
    with pytest.raises(UserError, match=r"export\.runtime=torch: .*net\.pt2"):
        open_runtime("torch", tmp_path / "net.onnx", outputs={"a": CodeTensor("a", 0)})


@pytest.mark.parametrize("name", [name for name, row in RUNTIMES.items() if row.reads == "onnx"])
def test_a_runtime_tells_which_layers_it_has_in_integers(quantized, graphs, tmp_path, name):
    if name not in installed_runtimes():
        pytest.skip(f"needs {name}: pip install '{RUNTIMES[name].install}'")
    torch.manual_seed(0)
    network_case = quantized(graphs.Residual(), images())
    exported = network_case.export(tmp_path / "net.onnx")
    assert {"conv1", "conv2", "head"} <= open_runtime(name, exported.path).integer_layers()
    weights = {key: codes for key, codes in network_case.weights.items() if key != "conv2.weight"}
    exported = export_qdq(network_case.network, network_case.images, weights, tmp_path / "part.onnx")
    ran = open_runtime(name, exported.path).integer_layers()
    assert {"conv1", "head"} <= ran and "conv2" not in ran


@pytest.mark.parametrize("name", [name for name in installed_runtimes() if RUNTIMES[name].reads == "onnx"])
def test_the_product_that_shows_saturation_runs_in_integers(name, tmp_path):
    """In floats it would never lose anything, and be no trial."""
    path = tmp_path / "product.onnx"
    path.write_bytes(runtimes._product())
    assert open_runtime(name, path).integer_layers()
    assert runtimes._loses(lambda images: open_runtime(name, path).run(images / 2))


def test_saturation_is_tried_and_told(monkeypatch):
    """ONNX Runtime never loses a sum, since exact kernels are taken where the fast ones do; another runtime's alarm says why."""
    assert not saturates("onnxruntime") and not saturates("torch")
    stage = Stage(
        "openvino", 10.0, 50.0, 6, 0.1, 0.0, None, None, layer_steps=67, failed_layer="relu", num_failed=1, passed=False
    )
    for state, told in ((True, True), (False, False)):
        monkeypatch.setattr(alarms, "saturates", lambda name, state=state: state)
        (text,) = failures(stage)
        assert text.startswith("openvino, first at relu: at most 67 steps from integers, 1 is allowed")
        assert ("saturate" in text and "VNNI" in text and "bits=7" in text) is told


def test_no_runtime_makes_codes_of_weights_that_stay_float(quantized, graphs, tmp_path):
    """ONNX Runtime does so by default, with ranges of its own, wherever a float weight meets DequantizeLinear."""
    torch.manual_seed(0)
    network_case = quantized(graphs.Residual(), images())
    exported = export_qdq(network_case.network, network_case.images, {}, tmp_path / "float_weights.onnx")
    with torch.no_grad():
        logits = network_case.network(network_case.images)
    assert sqnr_db(logits, open_runtime("onnxruntime", exported.path).run(network_case.images)) > 80
