"""A table of networks as int8 files: layers in integers, MACs, size, speed beside fp32 and ONNX Runtime's own quantization.

    python scripts/bench_networks.py data=FOLDER [networks=efficientnet_lite0,...,vit_b_16] [calib=32] [compare=32] [codes=8]
        [batch=1] [rounds=7] [forwards=2] [out=results/bench]

FOLDER holds `calib/` and `test/` by class, and `classes.tsv`. EfficientNet-Lite has its own weights and preprocessing; all others
random weights for 1000 classes, batch norm re-estimated on the calibration images. Of a random network agreement, MACs, size and
speed mean something, accuracy nothing. W8 per channel `symmetric_restricted`, A8 per tensor, min-max, batch norm folded.

The simulation, with the biases of the file, is compared with the integer reference and with the file in ONNX Runtime: predictions
on `compare` images, layer by layer on `codes` of them. Then three files are timed in ONNX Runtime, alternating: fp32 as qexp
writes it, int8 likewise, and what `onnxruntime.quantization.quantize_static` makes of the first (its preprocessing, QDQ, UINT8
and INT8, per channel, the same calibration images), each on one thread. What counts is the processor's time, which other work on
the machine lengthens less than the clock's; a ratio is that of one round. A network that fails is a line with the reason. The CSV
names the environment, and is complete after each network.
"""

from __future__ import annotations

import os
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, fields
from datetime import date
from importlib import metadata
from itertools import islice
from pathlib import Path

import torch
from bench_common import alternating, options, quartiles, write_csv
from bench_int8 import plan_of
from bench_int8_peers import quantize_static_file
from bench_ptq import qexp_peer, rounded
from bench_quantize import processor
from torch import Tensor

from qexp.base.types import Batch
from qexp.config.data import DataSettings
from qexp.config.model import NETWORKS, ModelSettings
from qexp.config.preprocessing import IMAGENET_MEAN, IMAGENET_STD, Preprocessing
from qexp.data.load import load_data
from qexp.deploy.activation_codes import load_values_, simulated_codes
from qexp.deploy.coded_network import CodedNetwork, code_network
from qexp.deploy.dead_channels import floor_dead_channels
from qexp.deploy.fidelity import planned_layers
from qexp.deploy.integer_network import integer_codes
from qexp.deploy.onnx.qdq import Exported, export_qdq
from qexp.deploy.runtimes import open_runtime
from qexp.deploy.stages import FLOAT, INTEGER, SIMULATED, Outcome, Stage, StageComparison
from qexp.models.build import build_model
from qexp.nn.fold import fold_batch_norm
from qexp.nn.macs import macs_per_layer
from qexp.ptq.bn_reestimation import reestimate_batch_norm_

NETWORKS_HERE = (
    "efficientnet_lite0,mobilenet_v2,mobilenet_v3_small,resnet50,shufflenet_v2_x1_0,densenet121,efficientnet_b0,googlenet,"
    "convnext_tiny,vit_b_16"
)
DEFAULTS = {
    "data": "",
    "networks": NETWORKS_HERE,
    "calib": "32",
    "compare": "32",
    "codes": "8",
    "batch": "1",
    "rounds": "7",
    "forwards": "2",
    "out": "results/bench",
}
RUNTIME, BATCH, SHAPE = "onnxruntime", 4, (3, 224, 224)
FP32, INT8, STATIC = "fp32", "int8", "quantize_static"


@dataclass(frozen=True)
class Work:
    """A network quantized, with the images that it is compared on, and its files."""

    weights: str
    network: CodedNetwork
    exported: Exported
    files: dict[str, Path]
    images: list[Batch]


def images_of(chosen: dict[str, str], how: Preprocessing, split: str, count: int) -> list[Batch]:
    """Images of a split as a network takes them."""
    folder = Path(chosen["data"])
    given = {field.name: getattr(how, field.name) for field in fields(how)}
    sizes = {"num_calib": int(chosen["calib"]), "num_test": int(chosen["compare"])}
    mean, std = list(given.pop("mean")), list(given.pop("std"))
    settings = DataSettings(
        name="imagefolder", root=str(folder), classes=str(folder / "classes.tsv"), mean=mean, std=std, **sizes, **given
    )
    batches = load_data(settings).eval_batches(split, batch_size=BATCH, device=torch.device("cpu"), num_images=count)
    return list(batches)


@torch.no_grad()
def work_of(name: str, chosen: dict[str, str], folder: Path) -> Work:
    """Build, calibrate, quantize and write one network."""
    row = NETWORKS[name] if name in NETWORKS else None
    own = row.preprocessing if row is not None else None
    settings = ModelSettings(name=name, pretrained=own is not None)
    how = own or Preprocessing(image_size=224, resize=256, crop="center", mean=IMAGENET_MEAN, std=IMAGENET_STD)
    calib = images_of(chosen, how, "calib", int(chosen["calib"]))
    model = build_model(settings, num_classes=1000, image_shape=SHAPE, seed=0).eval()
    if own is None:
        if name.startswith("vit"):
            torch.nn.init.normal_(model.heads.head.weight, std=0.02, generator=torch.Generator().manual_seed(0))  # else zeros
        reestimate_batch_norm_(model, calib)
    pixels = [batch.images for batch in calib]
    folded, example = fold_batch_norm(model).model.eval(), pixels[0][:1]
    plan = plan_of(folded, example, dynamic=False)
    module = qexp_peer(rounded(folded, plan), plan, pixels)
    coded = code_network(module, example, {tensor: (spec, None) for tensor, spec in plan.quantized.items()}, reference=folded)
    weights = floor_dead_channels(coded.network, coded.weights)
    floored = {key: weight.values for key, weight in weights.items() if weight is not coded.weights[key]}
    coded = CodedNetwork(coded.network, weights, coded.kept_float)
    files = {FP32: folder / "fp32.onnx", INT8: folder / "int8.onnx"}
    floats = code_network(folded, example, {})
    export_qdq(floats.network, example, floats.weights, files[FP32])
    exported = export_qdq(coded.network, example, coded.weights, files[INT8])
    load_values_(coded.network, floored | dict(exported.biases))
    images = images_of(chosen, how, "test", int(chosen["compare"]))
    files[STATIC] = quantize_static_file(files[FP32], folder, pixels)
    return Work("trained" if own is not None else "random", coded, exported, files, images)


@torch.no_grad()
def stages_of(work: Work, num_codes: int) -> tuple[Stage, ...]:
    """The simulation against the integer reference and the file."""
    network, weights, exported = work.network.network, work.network.weights, work.exported
    plain = open_runtime(RUNTIME, exported.path)
    with_codes = open_runtime(RUNTIME, exported.path, outputs=exported.codes)
    comparison = StageComparison(network, weights, (FLOAT, SIMULATED, INTEGER, RUNTIME))
    for batch in work.images:
        images = batch.images
        codes, logits = simulated_codes(network, images)
        integers = integer_codes(network, weights, images)
        outcomes = {FLOAT: Outcome(logits), SIMULATED: Outcome(logits), INTEGER: Outcome(integers[1])}
        outcomes[RUNTIME] = Outcome(plain.run(images))
        if num_codes > 0:
            shown = with_codes.run_codes(images)
            outcomes |= {SIMULATED: Outcome(logits, codes), INTEGER: Outcome(integers[1], integers[0])}
            outcomes[RUNTIME] = Outcome(outcomes[RUNTIME].logits, shown[0], shown[1])
        num_codes -= len(images)
        comparison.add(images, batch.labels, outcomes)
    return comparison.stages()


def timed(files: dict[str, Path], batch: Tensor, chosen: dict[str, str]) -> dict[str, list[float]]:
    """CPU seconds of a forward of each file in each round; the first round does not count."""
    runs: dict[str, Callable[[Tensor], Tensor]] = {
        name: open_runtime(RUNTIME, path).run if name != STATIC else static_run(path) for name, path in files.items()
    }
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for number, name in alternating(list(runs), int(chosen["rounds"])):
        runs[name](batch)
        start = time.process_time()
        for _ in range(int(chosen["forwards"])):
            runs[name](batch)
        if number >= 0:
            seconds[name].append((time.process_time() - start) / int(chosen["forwards"]))
    return seconds


def static_run(path: Path) -> Callable[[Tensor], Tensor]:
    """The other tool's file, with the options that qexp's have."""
    from qexp.deploy.runtimes import load_onnxruntime

    loaded = load_onnxruntime(path, 1, {})
    return lambda images: loaded.run_batch(images, False)[0]


def row_of(name: str, chosen: dict[str, str]) -> dict[str, object]:
    """Everything that is said of one network."""
    with tempfile.TemporaryDirectory() as folder:
        work = work_of(name, chosen, Path(folder))
        network, example = work.network.network, work.images[0].images[:1]
        stages = {stage.name: stage for stage in stages_of(work, int(chosen["codes"]))}
        macs, session = macs_per_layer(network, example), open_runtime(RUNTIME, work.exported.path)
        assert session.integer_layers is not None
        integers = session.integer_layers()
        planned = planned_layers(network, work.network.weights, example)
        missing = [layer for layer in macs if layer not in integers]
        batch = work.images[0].images[: int(chosen["batch"])]
        seconds = timed(work.files, batch, chosen)
        sizes = {kind: path.stat().st_size for kind, path in work.files.items()}
    over = {kind: [other / own for other, own in zip(seconds[kind], seconds[INT8], strict=True)] for kind in (FP32, STATIC)}
    stage = stages[RUNTIME]
    return {
        "network": name,
        "weights": work.weights,
        "layers": len(macs),
        "layers_planned": len(planned),
        "layers_integer": len(macs) - len(missing),
        "macs_million": round(sum(macs.values()) / 1e6, 1),
        "macs_integer_pct": round(100 * (1 - sum(macs[layer] for layer in missing) / sum(macs.values())), 2),
        "file_bytes": sizes[INT8],
        "times_smaller": round(sizes[FP32] / sizes[INT8], 2),
        **{f"{kind}_ms": round(1e3 * statistics.median(seconds[kind]), 2) for kind in work.files},
        **{f"speedup_over_{kind}": round(quartiles(over[kind])[1], 3) for kind in over},
        **{
            f"speedup_over_{kind}_{end}": round(quartiles(over[kind])[at], 3)
            for kind in over
            for end, at in (("q1", 0), ("q3", 2))
        },
        "equal_integer_pct": round(100 * stages[INTEGER].agreement, 1),
        "equal_runtime_pct": round(100 * stage.agreement, 1),
        "passes_integer": stages[INTEGER].passed,
        "passes_runtime": stage.passed,
        "failed_layer": stage.failed_layer or stages[INTEGER].failed_layer or "",
        "layer_steps": stage.layer_steps,
        "n": stage.n,
        "n_codes": stage.n_codes,
        "float_layers": " ".join(missing),
        "reason": "",
    }


def main() -> None:
    chosen = options(DEFAULTS)
    if not chosen["data"]:
        raise SystemExit("data=FOLDER is needed: calib/ and test/ by class, and classes.tsv")
    torch.set_num_threads(1)
    environment: dict[str, object] = {"processor": processor("cpu"), "threads": 1}
    environment |= {library: metadata.version(library) for library in ("torch", "onnxruntime")}
    settings = {key: int(chosen[key]) for key in ("calib", "batch", "rounds", "forwards")}
    rows: list[dict[str, object]] = []
    for name in chosen["networks"].split(","):
        load = os.getloadavg()[0]
        try:
            row = row_of(name, chosen)
        except Exception as error:  # a network that fails is a line
            first = next(iter(str(error).splitlines()), "")
            row = {"network": name, "reason": f"{type(error).__name__}: {first}"}
        rows.append(row | settings | environment | {"load_at_start": round(load, 2), "date": date.today().isoformat()})
        keys = list(dict.fromkeys(key for one in rows for key in one))
        print(" ".join(f"{key}={row[key]}" for key in islice(row, 25) if row[key] not in ("", None)), flush=True)
        write_csv(Path(chosen["out"]) / "networks.csv", [{key: one.get(key, "") for key in keys} for one in rows])


if __name__ == "__main__":
    main()
