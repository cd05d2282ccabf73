"""The libraries that `bench_ptq.py` compares with: how each simulates 8-bit activations on a network with rounded weights."""

from __future__ import annotations

import copy
import logging
import warnings
from collections.abc import Callable

import torch
from torch import Tensor, fx, nn

from qexp.nn.fake_quant import CONTAINER, fake_quants
from qexp.nn.fake_quantize import FakeQuantize

Counted = tuple[nn.Module, int]  # a network and how many quantizations of activations one forward runs


class Called(nn.Module):
    """A module in a `FakeQuantize`'s place."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, x: Tensor, overwrite: bool = False) -> Tensor:
        return self.module(x)


def replaced(network: nn.Module, make: Callable[[FakeQuantize], nn.Module]) -> nn.Module:
    """A copy of qexp's network with other modules at its places."""
    twin = copy.deepcopy(network)
    for name, module in fake_quants(twin).items():
        parent, _, leaf = f"{CONTAINER}.{name}".rpartition(".")
        setattr(twin.get_submodule(parent), leaf, make(module))
    return twin


def calls(network: nn.Module, kind: type[nn.Module] | tuple[type[nn.Module], ...], batch: Tensor) -> int:
    """How often one forward calls modules of a kind."""
    seen: list[nn.Module] = []
    modules = [module for module in network.modules() if isinstance(module, kind) and getattr(module, "is_quant_enabled", True)]
    handles = [module.register_forward_hook(lambda module, *_: seen.append(module)) for module in modules]
    with torch.no_grad():
        network(batch)
    for handle in handles:
        handle.remove()
    return len(seen)


INTEGER = ("conv2d", "linear", "add", "add_", "mul", "cat", "adaptive_avg_pool2d", "avg_pool2d", "mean")


KEEP = ("max_pool2d", "slice", "pad", "constant_pad_nd", "flatten", "view", "reshape", "dropout")


def torchao_quantizer(readers: tuple[str, ...], keep: tuple[str, ...], activation: object, weight: object = None) -> object:
    """A PT2E `Quantizer` that asks for quantization where qexp has it, by `QuantizationSpec`s.

    What an operator of `readers` reads is quantized, before operators of `keep`, which pass codes on; its weight if given a spec.
    """
    from torchao.quantization.pt2e.quantizer import QuantizationAnnotation, Quantizer

    class Places(Quantizer):
        def annotate(self, model: fx.GraphModule) -> fx.GraphModule:
            for node in model.graph.nodes:
                if self._name(node) in readers:
                    for value in node.all_input_nodes:
                        self._mark(value, node)
                    if weight is not None:
                        annotation(node).input_qspec_map[node.args[1]] = weight
            return model

        def _mark(self, value: fx.Node, reader: fx.Node) -> None:
            while self._name(value) in keep:
                value, reader = value.all_input_nodes[0], value
            if value.op != "get_attr":
                annotation(reader).input_qspec_map[value] = activation

        @staticmethod
        def _name(node: fx.Node) -> str:
            return node.target.__name__.partition(".")[0] if node.op == "call_function" else ""

        def validate(self, model: fx.GraphModule) -> None:
            pass

    def annotation(node: fx.Node) -> QuantizationAnnotation:
        return node.meta.setdefault("quantization_annotation", QuantizationAnnotation(_annotated=True))

    return Places()


def torchao_peers(network: nn.Module, calib: list[Tensor]) -> dict[str, Counted]:
    """torchao's two ways to simulate, at qexp's places of a network whose weights are rounded."""
    for name in ("torchao", "torch.utils._pytree"):
        logging.getLogger(name).setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module="torchao|torch")
    from torchao.quantization.pt2e import FakeQuantize as AoFakeQuantize
    from torchao.quantization.pt2e import MinMaxObserver, disable_fake_quant, disable_observer, enable_fake_quant
    from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e
    from torchao.quantization.pt2e.quantizer import QuantizationSpec

    def prepared(constructor: Callable[..., nn.Module]) -> nn.Module:
        spec = QuantizationSpec(torch.uint8, constructor, 0, 255, torch.per_tensor_affine)
        exported = torch.export.export(network, (calib[0],)).module()
        module = prepare_pt2e(exported, torchao_quantizer(INTEGER, KEEP, spec))
        module.apply(disable_fake_quant)  # ranges are those of the float activations, as in all peers
        for batch in calib:
            module(batch)
        return module.apply(enable_fake_quant).apply(disable_observer)

    with torch.no_grad():
        simulated = prepared(AoFakeQuantize.with_args(observer=MinMaxObserver))
        converted = convert_pt2e(prepared(MinMaxObserver))
    count = sum(".quantize_per_tensor" in str(node.target) for node in converted.graph.nodes)
    return {
        "torchao FakeQuantize": (simulated, calls(simulated, AoFakeQuantize, calib[0])),
        "torchao convert_pt2e": (converted, count),
    }


def brevitas_peers(network: nn.Module, qexp: nn.Module, calib: list[Tensor]) -> dict[str, Counted]:
    """brevitas at qexp's places, and its flow for a graph; both on rounded weights, of which its own 8-bit ones are equal."""
    warnings.filterwarnings("ignore", module="brevitas|torch")
    from brevitas.export.inference import quant_inference_mode
    from brevitas.fx.brevitas_tracer import symbolic_trace
    from brevitas.graph.calibrate import QuantizationStatusManager, calibration_mode
    from brevitas.graph.quantize import COMPUTE_LAYER_MAP, preprocess_for_quantize, quantize
    from brevitas.nn import QuantIdentity
    from brevitas.proxy.runtime_quant import ActQuantProxyFromInjector
    from brevitas.quant import ShiftedUint8ActPerTensorFloat

    # Biases stay float, as in all peers.
    layers = {kind: (made[0], {**made[1], "bias_quant": None}) if made else None for kind, made in COMPUTE_LAYER_MAP.items()}
    with torch.no_grad():
        graph = symbolic_trace(copy.deepcopy(network).eval())
        for node in list(graph.graph.nodes):
            if node.op == "call_module" and isinstance(graph.get_submodule(node.target), nn.Identity):
                node.replace_all_uses_with(node.args[0])  # where a batch norm was; brevitas would quantize before it, too
                graph.graph.erase_node(node)
            elif node.target == "mean" and "dim" in node.kwargs:  # brevitas 0.13 fails at mean(dim=...), not at mean(...)
                node.args, node.kwargs = (*node.args, node.kwargs["dim"]), {k: v for k, v in node.kwargs.items() if k != "dim"}
        graph.recompile()
        prepared = preprocess_for_quantize(graph, trace_model=False, relu6_to_relu=False)
        flow = quantize(prepared, compute_layer_map=layers).eval()
        QuantizationStatusManager.disable_return_quant_tensor(flow)  # it cannot be sliced, and timed forwards have none
    identity = replaced(qexp, lambda _: Called(QuantIdentity(act_quant=ShiftedUint8ActPerTensorFloat)))
    found: dict[str, Counted] = {}
    for name, module in (("brevitas QuantIdentity", identity), ("brevitas quantize", flow)):
        with torch.no_grad():
            with calibration_mode(module):
                for batch in calib:
                    module(batch)
            found[name] = module, calls(module, ActQuantProxyFromInjector, calib[0])
            quant_inference_mode(module, cache_quant_weight=True).__enter__()  # for the rest of the process
            module(calib[0])
    return found
