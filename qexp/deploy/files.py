"""The files of one network: the ONNX file, and beside it what its runtimes read instead, all with the same codes and values."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from pathlib import Path

import torch

from qexp.base.outputs import main_output
from qexp.base.text import counted
from qexp.config.export import RUNTIMES, ExportSettings
from qexp.deploy.activation_codes import load_values_
from qexp.deploy.lower import Lowered, example_of
from qexp.deploy.onnx.qdq import Exported, export_qdq
from qexp.deploy.pte.export import PTE_CODES_SUFFIX, PTE_SUFFIX, export_pte
from qexp.deploy.tflite.export import export_tflite
from qexp.deploy.tflite.run import TFLITE_SUFFIX
from qexp.deploy.torch_export import PROGRAM_SUFFIX, save_program
from qexp.experiment.job import Prepared
from qexp.experiment.variants import Variant

FILE = "network.onnx"
PROGRAM = str(Path(FILE).with_suffix(PROGRAM_SUFFIX))
TFLITE = str(Path(FILE).with_suffix(TFLITE_SUFFIX))
PTE = str(Path(FILE).with_suffix(PTE_SUFFIX))
PTE_CODES = str(Path(FILE).with_suffix(PTE_CODES_SUFFIX))
PACKED_TYPES = ("INT4", "UINT4")  # two codes to a byte


def files_of(variant: Variant) -> tuple[str, ...]:
    """Names of the files of a variant: those that its runtimes read, and those that are asked for."""
    settings, reads = variant.config.export, {RUNTIMES[name].reads for name in variant.config.export.runtimes}
    is_read = {FILE: True, PROGRAM: settings.torch_export or "program" in reads, TFLITE: "tflite" in reads}
    is_read |= {PTE: "pte" in reads, PTE_CODES: "pte" in reads and not variant.is_float and bool(variant.plan.activations)}
    return tuple(name for name, wanted in is_read.items() if wanted)


def write_files(prepared: Prepared, variant: Variant, lowered: Lowered, path: Path, *, is_trial: bool = False) -> Exported:
    """Write the ONNX file, and the others beside it.

    Args:
        prepared: the merged job.
        variant: of the job.
        lowered: what to write.
        path: of the ONNX file.
        is_trial: nothing was measured yet: look at no images.

    Raises:
        UserError: what a file cannot hold.
    """
    settings, example, names = variant.config.export, example_of(prepared), files_of(variant)
    config = variant.config
    # The bytes are hashed, so what people call the variant and its data is none of it.
    about = {
        "label": variant.named.generated.text,
        "model": config.model.name,
        "data": config.data.name,
        "key": variant.key,
    }
    exported = export_qdq(
        lowered.network,
        example,
        lowered.weights,
        path,
        pack_int4=settings.pack_int4,
        unsigned=settings.unsigned,
        in_float=lowered.in_float,
        about=about,
    )
    if PROGRAM in names or PTE in names:
        network = copy.deepcopy(lowered.network)
        load_values_(network, lowered.values_in(exported.biases))
        if PROGRAM in names:
            save_program(network, example, lowered.weights, path.with_suffix(PROGRAM_SUFFIX), unsigned=settings.unsigned)
        if PTE in names:
            with_codes = PTE_CODES in names and not is_trial
            export_pte(network, example, lowered.weights, path.with_suffix(PTE_SUFFIX), with_codes=with_codes, about=about)
    if TFLITE in names:
        largest = 1.0 if is_trial or variant.is_float else largest_logit(prepared, variant, lowered)
        target = path.with_suffix(TFLITE_SUFFIX)
        whole = settings.integer_io and not variant.is_float
        export_tflite(lowered.network, example, lowered.weights, target, largest_logit=largest, integer_io=whole, about=about)
    return exported


def packing_note(stored: Mapping[str, str], settings: ExportSettings) -> str | None:
    """What packed weights mean for the runtimes that are asked for; None where none are asked for.

    Args:
        stored: state-dict name -> type in the ONNX file, `Exported.stored`.
        settings: of the export.

    >>> packing_note({"fc.weight": "INT4"}, ExportSettings(pack_int4=True, runtime=["onnxruntime", "litert"]))
    '1 weight is packed as INT4, which onnxruntime computes with in float; the files of litert are not packed'
    """
    if not settings.pack_int4:
        return None
    packed = [dtype for dtype in stored.values() if dtype in PACKED_TYPES]
    if not packed:
        return "export.pack_int4=true packs nothing here: no weight has codes of 4 bits or less"
    reads_onnx = {name: RUNTIMES[name].reads == "onnx" for name in settings.runtimes}
    computing, others = ([name for name, reads in reads_onnx.items() if reads is wanted] for wanted in (True, False))
    text = f"{counted(len(packed), 'weight')} {'is' if len(packed) == 1 else 'are'} packed as {' and '.join(sorted({*packed}))}"
    if computing:
        text += f", which {' and '.join(computing)} {'computes' if len(computing) == 1 else 'compute'} with in float"
    return text + (f"; the files of {' and '.join(others)} are not packed" if others else "")


@torch.no_grad()
def largest_logit(prepared: Prepared, variant: Variant, lowered: Lowered) -> float:
    """The largest absolute logit of the first batch of calibration images.

    Args:
        prepared: the merged job.
        variant: of the job.
        lowered: the network that gives it.
    """
    images = next(iter(prepared.calibration_images(variant.config.calibrate, torch.device("cpu")))).images
    return float(main_output(lowered.network(images)).abs().max())
