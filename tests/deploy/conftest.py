"""What the tests of exported files share: quantized networks, and ONNX Runtime on their files."""

import collections
import copy
import importlib.util
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch

from qexp.config.policy import PolicySettings
from qexp.config.quant import ActivationQuantSettings, QuantSettings, WeightQuantSettings
from qexp.deploy.activation_codes import load_values_, simulated_codes
from qexp.deploy.onnx.qdq import export_qdq
from qexp.deploy.runtimes import fast_kernels_saturate, show_codes
from qexp.deploy.weight_codes import has_codes, weight_codes
from qexp.nn.activation_points import activations
from qexp.nn.fake_quant import fake_quants, insert, observed, observing
from qexp.nn.fold import fold_batch_norm
from qexp.nn.graph import trace
from qexp.nn.inventory import inventory
from qexp.policy.plan import make_plan
from qexp.quant.schemes import quantize_

GRAPHS = Path(__file__).parents[1] / "nn" / "graphs.py"


@pytest.fixture(scope="session")
def graphs():
    """The module tests/nn/graphs.py."""
    spec = importlib.util.spec_from_file_location("tests_nn_graphs_for_deploy", GRAPHS)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@dataclass(frozen=True, eq=False)
class Quantized:
    """A network whose weights and activations are quantized, and its weights' codes."""

    network: torch.nn.Module
    weights: dict
    images: torch.Tensor
    float_bytes: int

    def export(self, path, **options):
        return export_qdq(self.network, self.images[:1], self.weights, path, **options)

    def simulate(self, exported=None):
        """Codes of all places and logits; with the biases of the file where it is given."""
        if exported is not None:
            load_values_(self.network, exported.biases)
        return simulated_codes(self.network, self.images)


def quantize(
    model, images, *, weight_scheme="symmetric_restricted", bits=8, granularity="per_channel", fold=True, divide=True, **acts
):
    """A network, its batch norms at the statistics of the images, quantized as asked."""
    model.train()
    with torch.no_grad():
        for _ in range(20):
            model(images)
    model.eval()
    traced = trace(model, images[:1])
    network = fold_batch_norm(model).model if fold else copy.deepcopy(model)
    arithmetic = "divide" if divide else "reciprocal"
    quant = QuantSettings(
        name=weight_scheme,
        weight=WeightQuantSettings(granularity=granularity),
        activation=ActivationQuantSettings(bits=acts.pop("act_bits", bits), **acts),
    )
    points = activations(traced, layers_only=quant.activation.layers_only)
    tensors = inventory(model, images[:1])
    plan = make_plan(tensors, policy=PolicySettings(), quant=quant, bits=bits, mode="int", activations=points)
    parameters, weights = dict(network.named_parameters()), {}
    with torch.no_grad():
        for name, spec in plan.quantized.items():
            if name in parameters:
                if has_codes(spec):
                    weights[name] = weight_codes(parameters[name], spec)
                quantize_(parameters[name], parameters[name].clone(), spec)
    inserted = insert(traced, plan, network).eval()
    for module in fake_quants(inserted).values():
        module.spec = replace(module.spec, arithmetic=arithmetic)
    if not quant.activation.dynamic:
        _calibrate(inserted, observed(traced, layers_only=quant.activation.layers_only, network=network).eval(), images)
    size = sum(4 * value.numel() for value in model.state_dict().values() if value.is_floating_point())
    return Quantized(inserted, weights, images, size)


@torch.no_grad()
def _calibrate(inserted, watched, images):
    batches = collections.defaultdict(list)
    with observing(watched, lambda name, value: batches[name].append(value.flatten())):
        watched(images)
    for name, module in fake_quants(inserted).items():
        values = torch.cat(batches[name])
        module.set_range(values.min(), values.max())


@pytest.fixture(scope="session")
def quantized():
    """`quantize`, where the libraries of the extra `deploy` are installed."""
    for library in ("onnx", "onnxruntime"):
        pytest.importorskip(library, reason=f"needs {library}: pip install 'qexp[deploy]'")
    return quantize


@dataclass(frozen=True, eq=False)
class Ran:
    """What ONNX Runtime made of a file: logits, qexp's codes by place, and its own operators, counted."""

    logits: torch.Tensor
    codes: dict
    operators: collections.Counter


def run_onnx(exported, images, *, fused=True, threads=1):
    """Run a file as it stands, or (fused) as ONNX Runtime lowers it to integers."""
    import onnx
    import onnxruntime

    levels = onnxruntime.GraphOptimizationLevel
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = threads, 3
    options.graph_optimization_level = levels.ORT_ENABLE_ALL if fused else levels.ORT_DISABLE_ALL
    if fast_kernels_saturate():
        options.add_session_config_entry("session.x64quantprecision", "1")
    options.optimized_model_filepath = str(exported.path.with_suffix(".lowered.onnx"))
    session = onnxruntime.InferenceSession(show_codes(exported.path, exported.codes.values()), options)
    logits, *codes = session.run(None, {"images": images.numpy()})
    lowered = onnx.load(options.optimized_model_filepath).graph.node
    codes_by_point = {
        point: torch.from_numpy(value).int() - exported.codes[point].offset
        for point, value in zip(exported.codes, codes, strict=True)
    }
    return Ran(torch.from_numpy(logits), codes_by_point, collections.Counter(node.op_type for node in lowered))


@pytest.fixture(scope="session")
def run_file():
    """`run_onnx`."""
    return run_onnx
