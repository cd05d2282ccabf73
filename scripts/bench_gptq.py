"""GPTQ, GPFQ and Qronos beside brevitas' `layerwise` flow: accuracy and time, on one folded network, grid and set of images.

    python scripts/bench_gptq.py checkpoint=FILE data=FOLDER [settings=4pc,3pc,4pt] [methods=gptq,gpfq,qronos] [calib=128]
        [images=1000] [threads=N] [out=results/bench]

FILE: ResNet-20 trained on CIFAR-10; FOLDER: a tree of JPEG files (train/<class>/*.jpg, test/<class>/*.jpg). `3pc` is 3 bits per
channel, `4pt` 4 bits per tensor; the first layer has 8 bits. Weights alone are quantized, `symmetric_restricted`, min-max: in
brevitas `Int8WeightPerChannelFloat` or `Int8WeightPerTensorFloat` with steps taken once from the weights
(`parameter_from_stats`), as qexp's are; by default brevitas takes them anew from weights that have moved. Both networks rounded
to nearest are compared first, and the command ends where they differ. Everything else is each library's default: inputs as they
lie in the kernel, damping of 1 % of the mean diagonal in GPTQ of both, in Qronos 1 % in qexp and 1e-6 of the largest singular
value in brevitas.

Both go through the calibration images in the same batches. For each setting and method qexp and brevitas run one after the other,
the first in turn, in one process; what counts is the processor's time of the whole correction, divided by the layers. The CSV
names the environment.
"""

from __future__ import annotations

import copy
import importlib.util
import time
import warnings
from collections.abc import Callable
from datetime import date
from importlib import metadata
from pathlib import Path

import torch
from bench_common import options, write_csv
from bench_quantize import processor, slug
from torch import nn

from qexp.base.types import Batch, QuantSpec
from qexp.config.data import DataSettings
from qexp.config.preprocessing import IMAGENET_MEAN, IMAGENET_STD
from qexp.data.load import load_data
from qexp.models.cifar_resnet import CifarResNet
from qexp.models.weights import load_weights
from qexp.nn.fold import fold_batch_norm
from qexp.ptq.error_feedback import error_feedback_
from qexp.quant.schemes import quantize_

DEFAULTS = {
    "checkpoint": "",
    "data": "",
    "settings": "4pc,3pc,4pt",
    "methods": "gptq,gpfq,qronos",
    "calib": "128",
    "images": "1000",
    "threads": str(torch.get_num_threads()),
    "out": "results/bench",
}
LIBRARIES = ("brevitas", "unfoldNd")
FIRST_BITS, BATCH = 8, 64
Correct = Callable[[], None]


def layers_of(network: nn.Module) -> dict[str, nn.Conv2d | nn.Linear]:
    return {name: module for name, module in network.named_modules() if isinstance(module, nn.Conv2d | nn.Linear)}


def specs_of(network: nn.Module, bits: int, granularity: str) -> dict[str, QuantSpec]:
    """Weight -> its quantizer; the first layer has its own width."""
    widths = {name: bits if number else FIRST_BITS for number, name in enumerate(layers_of(network))}
    return {
        f"{name}.weight": QuantSpec(scheme="symmetric_restricted", bits=width, granularity=granularity)
        for name, width in widths.items()
    }


@torch.no_grad()
def qexp_peer(network: nn.Module, specs: dict[str, QuantSpec], batches: list[Batch], method: str) -> tuple[nn.Module, Correct]:
    """A copy rounded to nearest, and what corrects it."""
    twin = copy.deepcopy(network)
    for name, spec in specs.items():
        quantize_(twin.get_parameter(name).data, network.get_parameter(name).data, spec)

    def correct() -> None:
        done = error_feedback_(twin, network, specs, batches, method)
        assert len(done.rows) == len(specs), done.notes

    return twin, correct


@torch.no_grad()
def brevitas_peer(
    network: nn.Module, specs: dict[str, QuantSpec], batches: list[Batch], method: str
) -> tuple[nn.Module, Correct]:
    """The same by brevitas."""
    warnings.filterwarnings("ignore", module="brevitas|torch")
    import brevitas.nn as qnn
    from brevitas.graph.gpfq import gpfq_mode
    from brevitas.graph.gptq import gptq_mode
    from brevitas.graph.qronos import Qronos
    from brevitas.graph.quantize import layerwise_quantize
    from brevitas.quant import Int8WeightPerChannelFloat, Int8WeightPerTensorFloat

    twin = copy.deepcopy(network)
    for name, spec in specs.items():
        made = Int8WeightPerChannelFloat if spec.granularity == "per_channel" else Int8WeightPerTensorFloat
        how = {"weight_quant": made, "weight_bit_width": spec.bits, "weight_scaling_impl_type": "parameter_from_stats"}
        how |= {"input_quant": None, "output_quant": None, "bias_quant": None, "return_quant_tensor": False}
        others = [other.removesuffix(".weight") for other in specs if other != name]
        layers = {nn.Conv2d: (qnn.QuantConv2d, how), nn.Linear: (qnn.QuantLinear, how)}
        twin = layerwise_quantize(twin, compute_layer_map=layers, name_blacklist=others)
    twin(batches[0].images)  # takes the steps from the weights

    def correct() -> None:
        modes = {
            "gptq": lambda: gptq_mode(twin, use_quant_activations=False),
            "gpfq": lambda: gpfq_mode(twin, use_quant_activations=False),
            "qronos": lambda: gpfq_mode(twin, use_quant_activations=False, algorithm_impl=Qronos),
        }
        with torch.no_grad(), modes[method]() as mode:
            for _ in range(mode.num_layers):
                for batch in batches:
                    mode.model(batch.images)
                mode.update()

    return twin, correct


@torch.no_grad()
def prec1(network: nn.Module, batches: list[Batch]) -> float:
    right = sum(int((network(batch.images).argmax(1) == batch.labels).sum()) for batch in batches)
    return 100 * right / sum(len(batch.images) for batch in batches)


@torch.no_grad()
def check_same_grid(one: nn.Module, other: nn.Module, batch: Batch) -> None:
    """End the command where the networks rounded to nearest are not the same."""
    logits = [network(batch.images) for network in (one, other)]
    error = float((logits[0] - logits[1]).abs().max() / logits[0].abs().max())
    if not error < 1e-3:
        raise SystemExit(f"brevitas rounds to another grid than qexp: logits rounded to nearest differ by {error:.1e}")


def main() -> None:
    chosen = options(DEFAULTS)
    missing = [name for name in LIBRARIES if importlib.util.find_spec(name) is None]
    if missing:
        raise SystemExit(f"not installed: {', '.join(missing)}: pip install -c constraints.txt -e '.[bench]'")
    torch.set_num_threads(int(chosen["threads"]))
    sizes = {"num_calib": int(chosen["calib"]), "num_select": 0, "num_test": int(chosen["images"])}
    data = DataSettings(name="imagefolder", root=chosen["data"], mean=list(IMAGENET_MEAN), std=list(IMAGENET_STD), **sizes)
    bundle = load_data(data)
    calib, test = (
        list(bundle.eval_batches(split, batch_size=BATCH, device=torch.device("cpu"), num_images=None))
        for split in ("calib", "test")
    )
    model = CifarResNet(20)
    load_weights(model, chosen["checkpoint"])
    network = fold_batch_norm(model.eval(), calib[0].images[:1]).model.eval()
    environment = {
        "processor": processor("cpu"), "threads": torch.get_num_threads(), "torch": torch.__version__,
        "brevitas": metadata.version("brevitas"), "date": date.today().isoformat(),
    }  # fmt: skip
    float_prec1 = prec1(network, test)
    print(f"fp32 {float_prec1:.2f}, {environment}, n={chosen['images']}, calib={chosen['calib']}")
    rows: list[dict[str, object]] = []
    makers = {"qexp": qexp_peer, "brevitas": brevitas_peer}
    for setting in chosen["settings"].split(","):
        specs = specs_of(network, int(setting[0]), {"pc": "per_channel", "pt": "per_tensor"}[setting[1:]])
        for number, method in enumerate(chosen["methods"].split(",")):
            peers = {name: make(network, specs, calib, method) for name, make in makers.items()}
            check_same_grid(peers["qexp"][0], peers["brevitas"][0], calib[0])
            nearest = prec1(peers["qexp"][0], test)
            for name in list(peers)[:: -1 if number % 2 else 1]:
                start = time.process_time()
                peers[name][1]()
                seconds = time.process_time() - start
                row = {
                    "setting": setting, "method": method, "peer": name, "prec1": round(prec1(peers[name][0], test), 2),
                    "nearest": round(nearest, 2), "fp32": round(float_prec1, 2), "n": int(chosen["images"]),
                    "calib": int(chosen["calib"]), "layers": len(specs), "cpu_seconds": round(seconds, 1),
                    "cpu_ms_per_layer": round(1000 * seconds / len(specs), 1),
                }  # fmt: skip
                print("{setting} {method:<7} {peer:<9} Prec@1 {prec1:6.2f} {cpu_ms_per_layer:8.1f} ms a layer".format(**row))
                rows.append(row | environment)
    write_csv(Path(chosen["out"]) / f"gptq-{slug(rows)}.csv", rows)


if __name__ == "__main__":
    main()
