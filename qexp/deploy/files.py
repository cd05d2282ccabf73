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
from qexp.deploy.grouped import GroupedWeight
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


def float_note(lowered: Lowered, stored: Mapping[str, str], settings: ExportSettings) -> str | None:
    """Which weights runtimes compute with in float, though the ONNX file has codes of them; None where there is nothing to say.

    Args:
        lowered: what was written.
        stored: state-dict name -> type in the ONNX file, `Exported.stored`.
        settings: of the export.
    """
    if not (lowered.weights or lowered.in_float):
        return None
    packed = {name for name, dtype in stored.items() if dtype in PACKED_TYPES}
    grouped = {name for name, weight in lowered.in_float.items() if isinstance(weight, GroupedWeight) and name in stored}
    kinds = {
        "packed in 4 bits": packed - grouped,
        "packed in 4 bits with a scale for each group": packed & grouped,
        "with a scale for each group": grouped - packed,
    }
    of_onnx = [name for name in settings.runtimes if RUNTIMES[name].reads == "onnx"]
    others = [name for name in settings.runtimes if name not in of_onnx]
    text = " and ".join(f"{counted(len(names), 'weight')} {how}" for how, names in kinds.items() if names)
    texts = [text + (f", computed with in float by {' and '.join(of_onnx)}" if of_onnx else "")] if text else []
    if grouped and others:
        texts.append(f"{counted(len(grouped), 'weight')} in float32 for {' and '.join(others)}")
    if packed - grouped and others:
        texts.append(f"not packed for {' and '.join(others)}")
    if settings.pack_int4 and not packed:
        texts.append("export.pack_int4=true packs nothing, as no weight has codes of 4 bits or less")
    return "; ".join(texts) or None


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
