"""Settings of `python -m qexp.export`: where a network runs, what it is compared with, what is measured; torch-free."""

from __future__ import annotations

import os
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Literal, get_args

from qexp.base.catalog import Catalog, Info
from qexp.base.checks import Count, Natural, check_bounds
from qexp.base.errors import UserError, choose
from qexp.config.later import later
from qexp.config.read_where import ReadWhere
from qexp.quant.float_format import FloatFormat, parse_format

Requantization = Literal["float32", "fixed_point"]
REQUANTIZATIONS: tuple[Requantization, ...] = get_args(Requantization)
TARGETS = {  # of `export.target`: estimates from the TFLite file
    "mcu": "a microcontroller under TFLite Micro: bytes of flash and of RAM",
    "edgetpu": "Coral's Edge TPU: which operators its compiler would take",
}
FILE_GRANULARITIES = ("per_tensor", "per_channel")  # of weights whose codes a file can hold
FILE_FLOATS = {"e4m3fn": "FLOAT8E4M3FN", "e5m2": "FLOAT8E5M2"}  # format -> its type in ONNX, whatever its overflow


@dataclass(frozen=True, kw_only=True)
class RuntimeInfo(Info):
    """What runs an exported network. What it cannot run is in no row: every file is loaded into it before anything starts.

    Args:
        name: as in `export.runtime=NAME`, tables and MLflow's keys.
        summary: one line for people.
        code: import string of a function, `(path of the ONNX file, threads, codes to show) -> qexp.deploy.runtimes.Loaded`.
        distribution: whose version is recorded.
        module: that is imported.
        install: what to give pip where the module is missing.
        reads: the ONNX file, or beside it the program of `torch.export`, the TFLite file or that of ExecuTorch.
    """

    distribution: str
    module: str
    install: str
    reads: Literal["onnx", "program", "tflite", "pte"]


RUNTIMES = Catalog(
    "export.runtime",
    RuntimeInfo,
    (
        RuntimeInfo(
            name="onnxruntime", summary="ONNX Runtime, with its exact kernels where the fast ones would saturate.",
            code="qexp.deploy.runtimes:load_onnxruntime", distribution="onnxruntime", module="onnxruntime",
            install="qexp[deploy]", reads="onnx",
        ),
        RuntimeInfo(
            name="openvino", summary="OpenVINO, which computes in float32 what stays float.",
            code="qexp.deploy.runtimes:load_openvino", distribution="openvino", module="openvino", install="qexp[deploy]",
            reads="onnx",
        ),
        RuntimeInfo(
            name="torch", summary="The program of torch.export, compiled by Inductor where there is a C++ compiler.",
            code="qexp.deploy.runtimes:load_torch", distribution="torch", module="torch", install="torch", reads="program",
        ),
        RuntimeInfo(
            name="litert", summary="LiteRT, formerly TensorFlow Lite, with XNNPACK, on a .tflite file of int8.",
            code="qexp.deploy.runtimes:load_litert", distribution="ai-edge-litert", module="ai_edge_litert.interpreter",
            install="qexp[deploy]", reads="tflite",
        ),
        RuntimeInfo(
            name="executorch", summary="ExecuTorch with XNNPACK, on a .pte file of int8; the layer of the logits is float.",
            code="qexp.deploy.runtimes:load_executorch", distribution="executorch", module="executorch.runtime",
            install="qexp[deploy]", reads="pte",
        ),
    ),
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class ExportSettings:
    """What `qexp.export` does with a network beside evaluating it.

    Args:
        runtime: one of `RUNTIMES` or a list of them; an empty list writes the file and compares integers alone.
        simulate: what runtimes are compared with. `exact` rounds biases to steps of the accumulators, as the file does; `fast` is
            fake quantization as `qexp.evaluate` scores it.
        requantization: of the integer reference: `float32` as ONNX Runtime's kernels, `fixed_point` as hardware without floats.
        num_compared: images whose codes are compared layer by layer; the predictions of all are. None compares all.
        pack_int4: weights of 4 bits and less as INT4, two to a byte, which a CPU runtime computes with in float.
        unsigned: activations as UINT8, which CPU runtimes want; false writes INT8 and float biases, as TensorRT reads.
        cost: measure latency and memory.
        batch_sizes: of the latency, images.
        threads: of a runtime.
        repeats: timed runs at each batch size.
        warmup: runs before these, not timed.
        torch_export: write the simulated network as a program of `torch.export` too.
        integer_io: the TFLite file takes INT8 images and gives INT8 logits, as hardware without floats wants; else float32.
        target: `mcu`, `edgetpu` or a list of them: what the TFLite file would need of hardware that is not here, estimated.
        register: name of a registered model in MLflow that gets the file as a new version; None registers nothing.
        compare: file or files of other writers, .onnx or .tflite, of the same network: each runs in its runtime (onnxruntime or
            litert, which is then among `runtime`) on the images of the evaluation, and gets a row beside fp32, the simulation and
            qexp's file.
        folder: where files go, as `<folder>/<name>/<variant>/network.onnx`; None is `<runs_dir>/exports`.
    """

    runtime: str | list[str] = "onnxruntime"
    simulate: Literal["exact", "fast"] = "exact"
    requantization: Requantization = "float32"
    num_compared: Count | None = 500
    pack_int4: bool = False
    unsigned: bool = True
    cost: bool = True
    batch_sizes: Annotated[list[Count], ReadWhere("cost", True)] = field(default_factory=lambda: [1, 16])
    threads: Count = 1
    repeats: Annotated[Count, ReadWhere("cost", True)] = 50
    warmup: Annotated[Natural, ReadWhere("cost", True)] = 5
    torch_export: bool = False
    integer_io: bool = later(False)
    register: str | None = None
    folder: str | None = None
    compare: str | list[str] | None = later(None)
    target: str | list[str] | None = later(None)

    def __post_init__(self) -> None:
        """Check the names and the ranges."""
        for name in self.runtimes:
            choose("export.runtime", name, RUNTIMES)
        if len(set(self.runtimes)) < len(self.runtimes):
            raise UserError("export.runtime", ", ".join(self.runtimes), allowed="each runtime once")
        if not self.batch_sizes:
            raise UserError("export.batch_sizes", [], allowed="at least one size", remedy="export.cost=false measures none.")
        if len(set(self.batch_sizes)) < len(self.batch_sizes):
            raise UserError("export.batch_sizes", self.batch_sizes, allowed="each size once")
        check_bounds(self, "export")
        if self.integer_io and "litert" not in self.runtimes:
            allowed = "litert among the runtimes, whose file it is about"
            raise UserError("export.integer_io", True, allowed=allowed, remedy="Add export.runtime=litert.")
        for name in self.targets:
            choose("export.target", name, TARGETS)
        if self.targets and "litert" not in self.runtimes:
            allowed = "litert among the runtimes, of whose file it is an estimate"
            raise UserError("export.target", ", ".join(self.targets), allowed=allowed, remedy="Add export.runtime=litert.")
        for path in self.compared:
            if (runtime := runtime_of(path)) not in self.runtimes:
                allowed = f"files of the runtimes that are asked for, {', '.join(self.runtimes) or 'none'}"
                both = ",".join([*self.runtimes, runtime])
                raise UserError("export.compare", path, allowed=allowed, remedy=f"export.runtime=[{both}] runs it.")
        if self.register is not None and not _is_name(self.register):
            allowed = "letters, digits, spaces, '-', '_' and '.', as MLflow names a model"
            raise UserError("export.register", self.register, allowed=allowed)

    @property
    def runtimes(self) -> tuple[str, ...]:
        """The runtimes, as a tuple of names."""
        return (self.runtime,) if isinstance(self.runtime, str) else tuple(self.runtime)

    @property
    def compared(self) -> tuple[str, ...]:
        """The files of other writers, as a tuple; `~` is the user's folder."""
        paths = [self.compare] if isinstance(self.compare, str) else self.compare or []
        return tuple(os.path.expanduser(path) for path in paths)

    @property
    def targets(self) -> tuple[str, ...]:
        """The targets of estimates, each once."""
        return tuple(dict.fromkeys([self.target] if isinstance(self.target, str) else self.target or []))

    def folder_of(self, runs_dir: str, name: str) -> Path:
        """Where the files of an experiment go."""
        return (Path(self.folder) if self.folder is not None else Path(runs_dir) / "exports") / name


def float8_type(element: FloatFormat) -> str | None:
    """ONNX's name of the type that has the numbers of a format; None where a file has none.

    Args:
        element: the format; its overflow does not matter.

    >>> float8_type(parse_format("e4m3fn_nan")), float8_type(parse_format("e3m4"))
    ('FLOAT8E4M3FN', None)
    """
    types = {replace(parse_format(name), overflow="sat"): dtype for name, dtype in FILE_FLOATS.items()}
    return types.get(replace(element, overflow="sat"))


def runtime_of(path: str) -> str:
    """The runtime that runs a file of another writer, by its name.

    Raises:
        UserError: neither .onnx nor .tflite.
    """
    known = {".onnx": "onnxruntime", ".tflite": "litert"}
    suffix = Path(path).suffix.lower()
    if suffix not in known:
        raise UserError("export.compare", path, allowed="files that end with .onnx or .tflite")
    return known[suffix]


def _is_name(text: str) -> bool:
    """True for a name that needs no escape in `models:/NAME/1`."""
    return bool(text.strip()) and text == text.strip() and all(char.isalnum() or char in "-_. " for char in text)
