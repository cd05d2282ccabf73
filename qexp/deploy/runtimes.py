"""Runtimes that run an exported network, each behind the same two calls: `run` for logits, `run_codes` for codes too.

ONNX Runtime and OpenVINO read the same ONNX file; torch reads the program of `qexp.deploy.torch_export` beside it, LiteRT the
file of `qexp.deploy.tflite.export`, ExecuTorch that of `qexp.deploy.pte.export`. All run on the CPU with a given number of
threads, in the arithmetic that they choose, but where speed would change what is computed. OpenVINO would take bfloat16 for what
is float wherever the CPU has it, and is set to float32. ONNX Runtime's kernels
for CPUs without VNNI add pairs of products in 16 bits, which saturates; there the exact kernels are selected. Only there: they
took 2.4 times as long for a resnet18 whose logits were the same to the bit.

A runtime that gives its codes as outputs may fuse less than one that runs the file as it is: OpenVINO adds a shortcut within the
convolution before it, rounding once less, but not where the convolution's own codes are an output.
"""

from __future__ import annotations

import functools
import importlib.metadata
import importlib.util
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

from qexp.base.errors import UserError, choose
from qexp.config.export import RUNTIMES
from qexp.deploy.activation_codes import CodeTensor
from qexp.deploy.onnx.writer import INPUT, OUTPUT, onnx_library
from qexp.deploy.pte.run import open_pte
from qexp.deploy.tflite.run import TFLITE_SUFFIX, open_tflite
from qexp.deploy.torch_export import PROGRAM_SUFFIX, open_program

RunBatch = Callable[[Tensor, bool], Sequence[Tensor]]
INTEGER_OPERATORS = ("QLinearConv", "ConvInteger", "QGemm", "QLinearMatMul", "MatMulInteger", "DynamicQuantizeMatMul")


@dataclass(frozen=True, eq=False)
class Loaded:
    """What the code of a runtime's row gives.

    Args:
        run_batch: (images, with codes?) -> logits, and the codes of each activation point behind them.
        integer_layers: gives the names of the layers that it computes in integers; None where the runtime does not tell.
        logit_step: of logits that it gives as codes; 0 of floats.
    """

    run_batch: RunBatch
    integer_layers: Callable[[], frozenset[str]] | None = None
    logit_step: float = 0.0


@dataclass(frozen=True, eq=False)
class Session:
    """An exported network in a runtime, loaded.

    Args:
        name: of the runtime.
        version: of the runtime.
        offsets: activation point -> what was added to its codes in the file, in order of execution.
        run_batch: of `Loaded`.
        integer_layers: of `Loaded`.
        logit_step: of `Loaded`.
    """

    name: str
    version: str
    offsets: Mapping[str, int]
    run_batch: RunBatch
    integer_layers: Callable[[], frozenset[str]] | None = None
    logit_step: float = 0.0

    def run(self, images: Tensor) -> Tensor:
        """Float32 [N, C, H, W] -> float32 [N, classes] logits."""
        return self.run_batch(images, False)[0]

    def run_codes(self, images: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        """The codes of each activation point of `outputs`, int32 as qexp numbers them, and the logits."""
        logits, *codes = self.run_batch(images, True)
        codes_by_point = {
            point: values.int() - offset for (point, offset), values in zip(self.offsets.items(), codes, strict=True)
        }
        return codes_by_point, logits


def installed_runtimes() -> tuple[str, ...]:
    """The runtimes whose packages are installed."""
    packages = {name: row.module.partition(".")[0] for name, row in RUNTIMES.items()}
    return tuple(name for name, package in packages.items() if importlib.util.find_spec(package) is not None)


def runtime_version(name: str) -> str:
    """The version of a runtime's package."""
    return importlib.metadata.version(RUNTIMES[name].distribution)


def check_installed(name: str) -> None:
    """Raise UserError for a runtime whose package is not installed."""
    if name not in installed_runtimes():
        remedy = f"Install it with: pip install '{RUNTIMES[name].install}'"
        raise UserError("export.runtime", name, allowed=installed_runtimes(), remedy=remedy)


def open_runtime(name: str, path: Path, *, threads: int = 1, outputs: Mapping[str, CodeTensor] | None = None) -> Session:
    """Load an exported network.

    Args:
        name: one of `RUNTIMES`.
        path: of the ONNX file; torch reads the program of the same name beside it.
        threads: of one run; for torch, of the process.
        outputs: activation point -> its codes in the file, of `Exported.codes`: what `run_codes` gives. Without, a file runs as
            it is, which is what to time.

    Raises:
        UserError: an unknown runtime, one whose package is not installed, or one that cannot load the network.
    """
    choose("export.runtime", name, RUNTIMES)
    check_installed(name)
    codes = dict(outputs or {})
    try:
        load = cast("Callable[[Path, int, Mapping[str, CodeTensor]], Loaded]", RUNTIMES.load(name))
        loaded = load(path, threads, codes)
    except UserError:
        raise
    except Exception as error:  # each runtime has errors of its own
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        message = max(lines, key=len, default=type(error).__name__)
        allowed = "a runtime that loads this network"
        raise UserError("export.runtime", name, allowed=allowed, remedy=f"It says: {message}") from error
    offsets = {point: tensor.offset for point, tensor in codes.items()}
    return Session(name, runtime_version(name), offsets, loaded.run_batch, loaded.integer_layers, loaded.logit_step)


# 64 times 255 * 127 is 255 steps of the result's grid; pairs of products that stop at 2^15 - 1 make it 129. The result has a
# grid since ONNX Runtime would compute the convolution in floats otherwise.
_PRODUCT = """<ir_version: 10, opset_import: ["": 21]> product (float[N,64,1,1] images) => (float[N,16,1,1] logits)
    <float s = {1.0}, uint8 z = {0}, int8[16,64,1,1] w = {%s}, int8 wz = {0}, float step = {8128.0}> {
        codes = QuantizeLinear(images, s, z)
        x = DequantizeLinear(codes, s, z)
        weight = DequantizeLinear(w, s, wz)
        sums = Conv(x, weight)
        sum_codes = QuantizeLinear(sums, step, z)
        logits = DequantizeLinear(sum_codes, step, z)
    }"""


def _product() -> bytes:
    """The file of a convolution whose sums show whether kernels saturate."""
    import onnx.parser

    model: bytes = onnx.parser.parse_model(_PRODUCT % ", ".join(["127"] * 1024)).SerializeToString()
    return model


def _loses(run: Callable[[Tensor], Tensor]) -> bool:
    """Whether `_product` loses something: images -> logits."""
    return bool((run(torch.full((1, 64, 1, 1), 255.0)) != 64 * 255 * 127).any())


@functools.cache
def saturates(name: str) -> bool:
    """Whether a runtime's integers saturate on this CPU as qexp runs it: a product shows it, not the name of a CPU.

    Args:
        name: of the runtime; one that reads no ONNX file is not tried.
    """
    if RUNTIMES[name].reads != "onnx":
        return False
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "product.onnx"
        path.write_bytes(_product())
        return _loses(open_runtime(name, path).run)


@functools.cache
def fast_kernels_saturate() -> bool:
    """Whether ONNX Runtime's fastest kernels saturate on this CPU, by the same product; qexp then takes the exact ones."""
    import onnxruntime

    session = onnxruntime.InferenceSession(_product(), providers=["CPUExecutionProvider"])
    return _loses(lambda images: torch.from_numpy(session.run(None, {INPUT: images.numpy()})[0]))


def load_onnxruntime(path: Path, threads: int, codes: Mapping[str, CodeTensor]) -> Loaded:
    """The file in ONNX Runtime; without codes as it is."""
    import onnxruntime

    options = onnxruntime_options(threads)
    model = show_codes(path, codes.values()) if codes else str(path)
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])

    def call(images: Tensor, with_codes: bool) -> list[Tensor]:
        names = None if with_codes else [OUTPUT]
        return [torch.from_numpy(array) for array in session.run(names, {INPUT: images.contiguous().numpy()})]

    return Loaded(call, lambda: _onnxruntime_integers(path))


def onnxruntime_options(threads: int) -> Any:
    """Options of a session: exact kernels where the fast ones saturate."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads, options.log_severity_level = threads, 1, 3
    if fast_kernels_saturate():
        options.add_session_config_entry("session.x64quantprecision", "1")
    return options


def graph_of_onnxruntime(path: Path) -> Any:
    """The graph that ONNX Runtime makes of a file, which is what runs."""
    import onnxruntime

    options = onnxruntime_options(1)
    with tempfile.TemporaryDirectory() as folder:
        options.optimized_model_filepath = str(Path(folder) / "lowered.onnx")
        onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        # Weights in files of their own are still those beside `path`: they are not looked for here.
        return onnx_library().load(options.optimized_model_filepath, load_external_data=False).graph


def _onnxruntime_integers(path: Path) -> frozenset[str]:
    """The layers whose weights integer operators read in the graph that ONNX Runtime makes of a file, and products by name."""
    integers = [node for node in graph_of_onnxruntime(path).node if node.op_type.startswith(INTEGER_OPERATORS)]
    inputs = {name for node in integers for name in node.input}
    return frozenset(name.partition(".weight.")[0] for name in inputs if ".weight." in name) | {node.name for node in integers}


def load_openvino(path: Path, threads: int, codes: Mapping[str, CodeTensor]) -> Loaded:
    """The file in OpenVINO; without codes as it is."""
    import openvino

    core = openvino.Core()
    model = core.read_model(show_codes(path, codes.values())) if codes else core.read_model(path)
    settings = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": threads, "NUM_STREAMS": 1}
    compiled = core.compile_model(model, "CPU", settings)
    request = compiled.create_infer_request()

    def call(images: Tensor, with_codes: bool) -> list[Tensor]:
        request.infer({INPUT: images.contiguous().numpy()})
        count = 1 + len(codes) if with_codes else 1
        return [torch.from_numpy(request.get_output_tensor(number).data.copy()) for number in range(count)]

    def integer_layers() -> frozenset[str]:
        about = [{key: str(node.rt_info[key].astype(str)) for key in keys} for node in compiled.get_runtime_model().get_ops()]
        kinds = ("Convolution", "FullyConnected", "MatMul")
        names = [one[keys[2]] for one in about if one[keys[0]] in kinds and one[keys[1]] in ("u8", "i8")]
        return frozenset(name.partition("/")[0] for text in names for name in text.split(","))

    keys = ("layerType", "runtimePrecision", "originalLayersNames")
    return Loaded(call, integer_layers)


def load_torch(path: Path, threads: int, codes: Mapping[str, CodeTensor]) -> Loaded:
    """The program beside the file."""
    torch.set_num_threads(threads)
    return Loaded(open_program(path.with_suffix(PROGRAM_SUFFIX), tuple(codes)))


def load_litert(path: Path, threads: int, codes: Mapping[str, CodeTensor]) -> Loaded:
    """The TFLite file beside the ONNX file."""
    call, session = open_tflite(
        path.with_suffix(TFLITE_SUFFIX), threads, {point: tensor.offset for point, tensor in codes.items()}
    )
    return Loaded(call, session.integer_layers, session.logit_step)


def load_executorch(path: Path, threads: int, codes: Mapping[str, CodeTensor]) -> Loaded:
    """The .pte file beside the ONNX file, or that which gives its codes."""
    return Loaded(*open_pte(path, threads, {point: tensor.offset for point, tensor in codes.items()}))


def show_codes(path: Path, codes: Iterable[CodeTensor]) -> bytes:
    """An exported file whose codes are outputs too, behind the logits, in the order of `codes`; for `InferenceSession`.

    Args:
        path: of the file.
        codes: of `Exported.codes`; qexp's are an output minus its offset.
    """
    onnx = onnx_library()
    model = onnx.shape_inference.infer_shapes(onnx.load(path))
    known = {info.name: info for info in model.graph.value_info}
    model.graph.output.extend(known[tensor.name] for tensor in codes)
    return model.SerializeToString()
