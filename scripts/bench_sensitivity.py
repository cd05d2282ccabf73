"""One layer at a time on ResNet-20, 20 layers at 6 widths: from kept float activations, over 120 whole evaluations.

    python scripts/bench_sensitivity.py [checkpoint=FILE] [data=FOLDER] [images=400] [batch=100] [rounds=1] [threads=1]
        [budget=1024] [out=results/bench]

`data` is a folder of images, of which the test split is read; without it images are random, without `checkpoint` weights are.
Each network has one weight at its 2 to 8 bits' values (`symmetric_restricted`, per channel). What is timed is
`qexp.engine.evaluate` on decoded images as `qexp.analyze` calls it, tracing and the checks included, by the time of the process's
processors, since other work on the machine is not counted there. Each round does all networks both ways, one after the other;
their digests, which name all logits bit by bit, must be equal. Printed: a line for each way and round,
with its ratio. The CSV names the environment.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Iterator
from datetime import date
from pathlib import Path

import torch
from bench_common import like_cifar, options, write_csv
from bench_quantize import processor, slug
from torch import Tensor, nn

from qexp.analysis.prefix import Prefix
from qexp.base.types import Batch, QuantSpec
from qexp.config.data import DataSettings
from qexp.config.preprocessing import IMAGENET_MEAN, IMAGENET_STD
from qexp.data.load import load_data
from qexp.engine.evaluate import Evaluation, evaluate
from qexp.models.cifar_resnet import CifarResNet
from qexp.models.weights import load_weights
from qexp.quant.schemes import quantize_

DEFAULTS = {
    "checkpoint": "", "data": "", "images": "400", "batch": "100", "rounds": "1", "threads": "1", "budget": "1024",
    "out": "results/bench",
}  # fmt: skip
WIDTHS = (2, 3, 4, 5, 6, 8)


def copies(network: nn.Module) -> Iterator[nn.Module]:
    """The networks with one quantized weight, layer by layer, as `task=sensitivity` goes through them."""
    for name, module in network.named_modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            for bits in WIDTHS:
                twin = copy.deepcopy(network)
                weight = twin.get_submodule(name).weight
                with torch.no_grad():
                    quantize_(weight, weight, QuantSpec(scheme="symmetric_restricted", bits=bits, granularity="per_channel"))
                yield twin


def timed(measure: Callable[[], Evaluation]) -> tuple[float, str]:
    """Seconds of the process's processors, and the digest."""
    start = time.process_time()
    digest = measure().digest
    return time.process_time() - start, digest


def compare(network: nn.Module, batches: list[Batch], budget: int) -> tuple[float, float, int]:
    """Seconds of whole evaluations and of those from kept activations, all networks; and how many networks."""

    def run(twin: nn.Module, call: Callable[[], Callable[[Tensor], object]]) -> Evaluation:
        return evaluate({"": twin}, batches, class_count=10, runs={"": call()})[""]

    start = time.process_time()
    prefix = Prefix(network, batches[0].images[:1], budget)
    whole, reused, count = 0.0, time.process_time() - start, 0
    for twin in copies(network):
        seconds, digest = timed(lambda twin=twin: run(twin, lambda: twin))
        whole += seconds
        seconds, other = timed(lambda twin=twin: run(twin, lambda: prefix.run_of(twin)))
        reused += seconds
        if digest != other:
            raise SystemExit(f"network {count}: other logits from kept activations")
        count += 1
    return whole, reused, count


def main() -> None:
    chosen = options(DEFAULTS)
    torch.set_num_threads(int(chosen["threads"]))
    size = int(chosen["images"])
    sizes = {"num_calib": 0, "num_select": 0, "num_test": size}
    tree = DataSettings(
        name="imagefolder", root=chosen["data"] or None, mean=list(IMAGENET_MEAN), std=list(IMAGENET_STD), **sizes
    )
    bundle = load_data(tree if chosen["data"] else like_cifar(1, size))
    given = {"batch_size": int(chosen["batch"]), "num_images": None, "device": torch.device("cpu")}
    batches = list(bundle.eval_batches("test", **given))
    network = CifarResNet(20).eval()
    if chosen["checkpoint"]:
        load_weights(network, chosen["checkpoint"])
    about = {
        "images": sum(len(batch.labels) for batch in batches), "batch": int(chosen["batch"]), "budget_mib": int(chosen["budget"]),
        "processor": processor("cpu"), "threads": torch.get_num_threads(), "torch": torch.__version__,
        "date": date.today().isoformat(),
    }  # fmt: skip
    rows: list[dict[str, object]] = []
    for number in range(int(chosen["rounds"])):
        whole, reused, count = compare(network, batches, int(chosen["budget"]))
        for way, seconds in (("whole", whole), ("kept activations", reused)):
            told = f"{seconds:8.1f} s of processor time, {seconds / whole:.3f}; digests equal"
            print(f"round {number}, {count} networks, {way:<16} {told}")
            rows.append({"round": number, "networks": count, "way": way, "cpu_seconds": round(seconds, 2),
                         "ratio": round(seconds / whole, 4)} | about)  # fmt: skip
    write_csv(Path(chosen["out"]) / f"sensitivity-resnet20-{slug(rows)}.csv", rows)


if __name__ == "__main__":
    main()
