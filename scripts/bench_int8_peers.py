"""What `bench_int8.py` times: qexp's files in each runtime, and the same network by each runtime's own quantizer.

    onnxruntime own int8    `onnxruntime.quantization.quantize_static` of the fp32 file: QDQ, per channel, UINT8 and INT8
    torch own int8          torchao's PT2E with `X86InductorQuantizer`, compiled by Inductor as qexp's program is
    executorch own int8     the same with ExecuTorch's `XNNPACKQuantizer`, per channel, lowered as qexp's is
    openvino own int8       `nncf.quantize` of the fp32 file, its defaults
    litert own int8         ai-edge-quantizer's `static_wi8_ai8` of the fp32 file
All see the calibration images that qexp saw, and batch norm is folded for all. A quantizer whose package is not installed is left
out. nncf and ai-edge-quantizer are not in constraints.txt: `pip install nncf==3.4.0 ai-edge-quantizer==0.10.0` brings
them.
"""

from __future__ import annotations

import importlib.util
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn

from qexp.base.errors import UserError
from qexp.config.export import RUNTIMES
from qexp.deploy.coded_network import CodedNetwork
from qexp.deploy.onnx.qdq import export_qdq
from qexp.deploy.onnx.writer import INPUT
from qexp.deploy.pte.export import MOST_IMAGES, POINTS, PTE_SUFFIX, bound_images, export_pte, quiet, to_xnnpack
from qexp.deploy.runtimes import fast_kernels_saturate, open_runtime
from qexp.deploy.tflite.export import export_tflite
from qexp.deploy.tflite.run import TFLITE_SUFFIX
from qexp.deploy.tflite.writer import SIGNATURE
from qexp.deploy.torch_export import PROGRAM_SUFFIX, has_compiler, save_program

EAGER = "torch eager"
SUFFIXES = {"onnx": ".onnx", "program": PROGRAM_SUFFIX, "tflite": TFLITE_SUFFIX, "pte": PTE_SUFFIX}


@dataclass(frozen=True)
class Peer:
    """Something that runs images.

    `baseline` is the peer that its speedup is over, `own` the one by the runtime's own quantizer that qexp's int8 is held
    against, `num_bytes` those of its file.
    """

    run: Callable[[Tensor], Tensor]
    kind: Literal["fp32", "int8", "own"] = "fp32"
    baseline: str = EAGER
    own: str | None = None
    num_bytes: int | None = None


@dataclass(frozen=True)
class Work:
    """One network: as trained, folded, and quantized in simulation; with the images that calibrated it."""

    name: str
    model: nn.Module
    floats: CodedNetwork
    quantized: CodedNetwork
    calib: list[Tensor]
    dynamic: bool


def peers(work: Work, example: Tensor, chosen: dict[str, str], folder: Path) -> dict[str, Peer]:
    """Every peer of one network, torch eager first; what is left out is printed with its reason."""
    table = {EAGER: Peer(work.model)}
    if chosen["compiled"] == "true":
        table["torch compile"] = Peer(torch.compile(work.model, dynamic=False))
    paths = {kind: folder / f"{work.name}-{kind}.onnx" for kind in ("fp32", "int8")}
    for runtime in chosen["runtimes"].split(","):
        if work.dynamic and RUNTIMES[runtime].reads != "onnx":
            print(f"{work.name}: {runtime} is left out: its files have no range of each batch")
            continue
        try:
            table |= runtime_peers(runtime, work, example, paths, int(chosen["threads"]))
        except UserError as error:
            print(f"{work.name}: {runtime} is left out: {error}")
    return table


def runtime_peers(runtime: str, work: Work, example: Tensor, paths: dict[str, Path], threads: int) -> dict[str, Peer]:
    """qexp's fp32 and int8 in one runtime, and the int8 of its own quantizer."""
    reads = RUNTIMES[runtime].reads
    files = [
        write_file(network, example, paths[kind], reads, work.calib)
        for kind, network in (("fp32", work.floats), ("int8", work.quantized))
    ]
    plain, coded = (open_runtime(runtime, path, threads=threads).run for path in paths.values())
    own, baseline, name = own_peer(runtime, work, paths["fp32"], threads), f"{runtime} fp32", f"{runtime} own int8"
    has_own = isinstance(own, Peer)
    table = {
        baseline: Peer(plain, num_bytes=files[0].stat().st_size),
        f"{runtime} int8": Peer(coded, "int8", baseline, name if has_own else None, files[1].stat().st_size),
    }
    if not has_own:
        print(f"{work.name}: {name} is left out: {own}")
    return table | ({name: own} if has_own else {})


def write_file(network: CodedNetwork, example: Tensor, path: Path, reads: str, calib: list[Tensor]) -> Path:
    """The file of one kind beside the ONNX file's path, written once for all runtimes that read it."""
    target = path.with_suffix(SUFFIXES[reads])
    arguments = (network.network, example, network.weights, target)
    if target.exists():
        return target
    if reads == "onnx":
        export_qdq(*arguments)
    elif reads == "program":
        save_program(*arguments)
    elif reads == "tflite":
        with torch.no_grad():
            largest = float(network.network(calib[0]).abs().max())
        export_tflite(*arguments, largest_logit=largest)
    else:
        export_pte(*arguments, with_codes=False)
    return target


def own_peer(runtime: str, work: Work, fp32: Path, threads: int) -> Peer | str:
    """The network by the runtime's own quantizer, or why there is none."""
    row = OWN[runtime]
    if work.dynamic:
        return "its static quantization is no peer of ranges of each batch"
    if importlib.util.find_spec(row.package) is None:
        return f"{row.package} is not installed"
    try:
        return row.make(work, fp32, threads)
    except Exception as error:  # other people's quantizers have errors of their own, and the rest is worth its time
        lines = str(error).splitlines() or [""]
        return f"it failed with {type(error).__name__}: {lines[0]}"


def own_onnxruntime(work: Work, fp32: Path, threads: int) -> Peer:
    """`quantize_static` of the float file, run as qexp's file is."""
    path = quantize_static_file(fp32, fp32.parent, work.calib)
    run = open_runtime("onnxruntime", path, threads=threads).run
    return Peer(run, "own", "onnxruntime fp32", num_bytes=path.stat().st_size)


def quantize_static_file(fp32: Path, folder: Path, calib: list[Tensor]) -> Path:
    """What ONNX Runtime's own tool makes of the float file."""
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Reader(CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self.rows: Iterator[dict[str, object]] = ({"images": image} for image in singles(calib))

        def get_next(self) -> dict[str, object] | None:
            return next(self.rows, None)

    prepared, result = folder / "prepared.onnx", folder / "quantize_static.onnx"
    quant_pre_process(fp32, prepared, skip_symbolic_shape=True)
    types = {"activation_type": QuantType.QUInt8, "weight_type": QuantType.QInt8}
    quantize_static(prepared, result, Reader(), quant_format=QuantFormat.QDQ, per_channel=True, **types)
    return result


def own_executorch(work: Work, fp32: Path, threads: int) -> Peer:
    """PT2E with XNNPACK's quantizer, as a .pte file."""
    with quiet():
        from executorch.backends.xnnpack.quantizer.xnnpack_quantizer import XNNPACKQuantizer, get_symmetric_quantization_config

        quantizer = XNNPACKQuantizer().set_global(get_symmetric_quantization_config(is_per_channel=True))
        edge = to_xnnpack(exported(quantized(work, quantizer), work.calib), {POINTS: "[]"})
        bound_images(edge)
        path = fp32.with_name(f"{work.name}-own{PTE_SUFFIX}")
        path.write_bytes(edge.to_executorch().buffer)
    run = open_runtime("executorch", path, threads=threads).run
    return Peer(run, "own", "executorch fp32", num_bytes=path.stat().st_size)


def own_torch(work: Work, fp32: Path, threads: int) -> Peer:
    """PT2E with Inductor's quantizer for x86, compiled; of 7 bits for activations where the CPU lacks VNNI, as it advises."""
    if not has_compiler():
        raise RuntimeError("Inductor finds no C++ compiler")
    warnings.filterwarnings("ignore", module="torch")  # Inductor compiles at the first run of each shape
    with quiet():
        from torch._inductor import config
        from torchao.quantization.pt2e.quantizer import x86_inductor_quantizer as x86

        settings = x86.get_default_x86_inductor_quantization_config(reduce_range=fast_kernels_saturate())
        compiled = torch.compile(quantized(work, x86.X86InductorQuantizer().set_global(settings)), dynamic=False)
        torch.set_num_threads(threads)

    def run(images: Tensor) -> Tensor:
        with config.patch(freezing=True):
            return compiled(images)

    return Peer(run, "own", "torch fp32")


def singles(calib: list[Tensor]) -> list[np.ndarray]:
    """The calibration images one by one, [1, C, H, W]."""
    return [image[None].numpy() for batch in calib for image in batch]


def own_openvino(work: Work, fp32: Path, threads: int) -> Peer:
    """`nncf.quantize` of the float file, run as qexp's file is."""
    with quiet():
        import nncf
        import openvino

        images = singles(work.calib)
        model = nncf.quantize(openvino.Core().read_model(fp32), nncf.Dataset(images), subset_size=len(images))
        path = fp32.with_name(f"{work.name}-nncf.xml")
        openvino.save_model(model, path, compress_to_fp16=False)
    run = open_runtime("openvino", path, threads=threads).run
    return Peer(run, "own", "openvino fp32", num_bytes=sum(path.with_suffix(end).stat().st_size for end in (".xml", ".bin")))


def own_litert(work: Work, fp32: Path, threads: int) -> Peer:
    """ai-edge-quantizer's static recipe on the float file, images and logits left float as in qexp's file."""
    with quiet():
        from ai_edge_quantizer import quantizer, recipe

        tool = quantizer.Quantizer(fp32.with_suffix(TFLITE_SUFFIX), recipe.static_wi8_ai8())
        images = [
            {INPUT: batch[i : i + 1].movedim(1, -1).contiguous().numpy()} for batch in work.calib for i in range(len(batch))
        ]
        path = fp32.with_name(f"{work.name}-own{TFLITE_SUFFIX}")
        path.write_bytes(tool.quantize(tool.calibrate({SIGNATURE: images}, num_threads=threads)).quantized_model)
    run = open_runtime("litert", path, threads=threads).run
    return Peer(run, "own", "litert fp32", num_bytes=path.stat().st_size)


@torch.no_grad()
def quantized(work: Work, quantizer: object) -> nn.Module:
    """torchao's PT2E flow on the folded network: observers where the quantizer wants them, the calibration images, codes."""
    from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e

    observed = prepare_pt2e(exported(work.floats.network, work.calib).module(check_guards=False), quantizer)
    for batch in work.calib:
        observed(batch)
    return convert_pt2e(observed)


def exported(network: nn.Module, calib: list[Tensor]) -> torch.export.ExportedProgram:
    """A program of up to `MOST_IMAGES`; strict, since the quantizer for x86 finds no additions otherwise."""
    sizes = ({0: torch.export.Dim("N", min=1, max=MOST_IMAGES)},)
    return torch.export.export(network, (calib[0][:2],), dynamic_shapes=sizes, strict=True)


@dataclass(frozen=True)
class OwnQuantizer:
    """A runtime's own quantizer: the package that brings it, and what makes a peer of it."""

    package: str
    make: Callable[[Work, Path, int], Peer]


OWN = {
    "onnxruntime": OwnQuantizer("onnxruntime", own_onnxruntime),
    "openvino": OwnQuantizer("nncf", own_openvino),
    "torch": OwnQuantizer("torchao", own_torch),
    "litert": OwnQuantizer("ai_edge_quantizer", own_litert),
    "executorch": OwnQuantizer("torchao", own_executorch),
}
