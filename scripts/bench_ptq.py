"""Evaluating a W8A8 network with static activations, over fp32 and beside other libraries; every peer in one run, alternating.

    python scripts/bench_ptq.py [networks=resnet18,resnet20,mobilenet_v2] [rounds=11] [forwards=3] [threads=N] [out=results/bench]

Random weights, batch norm re-estimated on the calibration images. Weights are rounded beforehand, once, for all peers alike
(`symmetric_restricted`, 8 bits, per tensor); what is timed is the forward pass with 8-bit activations, per tensor:
    fp32, folded                  the float network with batch norm folded
    qexp                          `qexp.nn.fake_quant.insert` on the network as trained, as `qexp.evaluate` runs it
    torch fake_quantize           the same places, each calling `torch.fake_quantize_per_tensor_affine` with numbers
    qexp, folded                  the same with batch norm folded, as the libraries have it
    torchao FakeQuantize          PT2E: `prepare_pt2e` with its `FakeQuantize` modules, then `disable_observer`
    torchao convert_pt2e          PT2E: its quantize and dequantize operators; a dequantize of its own for every reader
    brevitas QuantIdentity        its `ShiftedUint8ActPerTensorFloat` at qexp's places, timed in `quant_inference_mode`
    brevitas quantize             its flow, `brevitas.graph.quantize.quantize`, timed the same way, quantized weights cached
    fp32, compiled                the network by its program, as `evaluate.engine=compiled` runs it; where there is a compiler
    qexp, compiled                qexp's likewise
None of the others is compiled. All but brevitas' flow quantize at qexp's places: torchao leaves the choice to a backend's
Quantizer, and the one here names them. brevitas' flow chooses for itself: results of padding and the logits are places too, and
what an add reads has one scale. Ranges are of the calibration images' float activations, all of them; in brevitas all but the
outermost 0.001 %. The flow's codes are symmetric.

First all peers must have logits as far from fp32's as qexp's are, and the number of quantizations in one forward is counted.
Then each round runs every peer once, the first one in turn. A ratio is to the same round's fp32, batch norm apart. Printed: the
median ratio, its quartiles, the median time of a forward. The CSV names the environment.
"""

from __future__ import annotations

import copy
import importlib.util
import math
import os
import statistics
import time
from datetime import date
from importlib import metadata
from pathlib import Path

import torch
from bench_common import alternating, options, quartiles, write_csv
from bench_ptq_libraries import Counted, brevitas_peers, calls, replaced, torchao_peers
from bench_quantize import processor, slug
from torch import Tensor, nn
from torch.nn import functional as F

from qexp.base.compiler import cxx_compiler
from qexp.base.types import Batch, Plan
from qexp.config.calibrate import CalibrateSettings
from qexp.config.model import ModelSettings
from qexp.config.policy import PolicySettings
from qexp.config.quant import ActivationQuantSettings, QuantSettings
from qexp.engine.compiled import Programs
from qexp.models.build import build_model
from qexp.nn.activation_points import activations
from qexp.nn.fake_quant import CONTAINER, fake_quants, insert, observed
from qexp.nn.fake_quantize import FakeQuantize
from qexp.nn.fold import fold_batch_norm
from qexp.nn.graph import trace
from qexp.nn.inventory import inventory
from qexp.policy.plan import make_plan
from qexp.ptq.bn_reestimation import reestimate_batch_norm_
from qexp.ptq.calibrate import calibrate
from qexp.quant.schemes import quantize_

DEFAULTS = {
    "networks": "resnet18,resnet20,mobilenet_v2",
    "rounds": "11",
    "forwards": "3",
    "threads": str(torch.get_num_threads()),
    "out": "results/bench",
}
SHAPES = {"resnet20": (100, 3, 32, 32)}  # of a batch; the others:
IMAGENET = (8, 3, 224, 224)
SAME_WITHIN_DB = 6.0  # a peer's error on the logits is at most twice and at least half that of qexp's
CALIB_BATCHES = 4
LIBRARIES = {"torchao": ("torchao",), "brevitas": ("brevitas", "onnx")}  # brevitas.export imports onnx and does not ask for it


def installed(library: str) -> bool:
    return all(importlib.util.find_spec(name) is not None for name in LIBRARIES[library])


class TorchFakeQuantize(nn.Module):
    """torch's own operator in a `FakeQuantize`'s place, its numbers read beforehand."""

    def __init__(self, module: FakeQuantize) -> None:
        super().__init__()
        self.numbers = (float(module.scale), int(module.zero_point), module.quant_min, module.quant_max)

    def forward(self, x: Tensor, overwrite: bool = False) -> Tensor:
        return torch.fake_quantize_per_tensor_affine(x, *self.numbers)


def images(shape: tuple[int, ...], seed: int) -> Tensor:
    """Images that differ in the large and in the small, so that logits differ too."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.randn(*shape[:2], 8, 8, generator=generator)
    return F.interpolate(coarse, shape[2:], mode="bilinear") + 0.3 * torch.randn(shape, generator=generator)


def plan_of(network: nn.Module, example: Tensor) -> Plan:
    """8 bits per tensor for every convolution and linear weight and every place."""
    places = activations(trace(network, example))
    quant = QuantSettings(name="symmetric_restricted", activation=ActivationQuantSettings(bits=8))
    return make_plan(inventory(network, example), policy=PolicySettings(), quant=quant, bits=8, mode="int", activations=places)


@torch.no_grad()
def rounded(network: nn.Module, plan: Plan) -> nn.Module:
    """A copy with the planned weights at their codes' values."""
    twin = copy.deepcopy(network)
    tensors = dict(twin.named_parameters())
    for name, spec in plan.quantized.items():
        quantize_(tensors[name], tensors[name], spec)
    return twin


def qexp_peer(network: nn.Module, plan: Plan, calib: list[Tensor]) -> nn.Module:
    """Fake quantization at the planned places of a network whose weights are rounded, as qexp's Builder puts it."""
    traced = trace(network, calib[0][:1])
    module = insert(traced, plan).eval()
    names = {f"{CONTAINER}.{name}": spec for name, spec in plan.quantized_activations.items()}
    batches = [Batch(each, torch.zeros(len(each)), torch.arange(len(each)), len(each)) for each in calib]
    found = calibrate(
        observed(traced).eval(), lambda: batches, names, CalibrateSettings(), split="calib", data_fingerprint="random"
    )
    for name, place in fake_quants(module).items():
        place.set_range(*found.ranges[f"{CONTAINER}.{name}"])
    return module


def peers(name: str, calib: list[Tensor]) -> dict[str, Counted]:
    """Every peer for one network, fp32 first."""
    shape = calib[0].shape
    network = build_model(ModelSettings(name=name), num_classes=10, image_shape=tuple(shape[1:]), seed=0).eval()
    batches = [Batch(each, torch.zeros(len(each)), torch.arange(len(each)), len(each)) for each in calib]
    reestimate_batch_norm_(network, batches)
    folded = fold_batch_norm(network).model
    plan, plan_folded = plan_of(network, calib[0][:1]), plan_of(folded, calib[0][:1])
    weights = rounded(folded, plan_folded)
    qexp = qexp_peer(rounded(network, plan), plan, calib)
    table = {
        "fp32": (network, 0),
        "fp32, folded": (folded, 0),
        "qexp": (qexp, calls(qexp, FakeQuantize, calib[0])),
    }
    other = replaced(qexp, TorchFakeQuantize)
    table["torch fake_quantize"] = (other, calls(other, TorchFakeQuantize, calib[0]))
    qexp = qexp_peer(weights, plan_folded, calib)
    table["qexp, folded"] = (qexp, calls(qexp, FakeQuantize, calib[0]))
    if installed("torchao"):
        table |= torchao_peers(weights, calib)
    if installed("brevitas"):
        table |= brevitas_peers(weights, qexp, calib)
    if cxx_compiler() is not None:
        programs = Programs()
        for peer in ("fp32", "qexp"):
            module, count = table[peer]
            begin = time.perf_counter()
            table[f"{peer}, compiled"] = (programs.run_of(module, calib[0]), count)
            print(f"{name}, {peer}: compiled in {time.perf_counter() - begin:.1f} s, less where torch's cache has it")
    return table


def sqnr_db(reference: Tensor, logits: Tensor) -> float:
    """10 log10(sum ref^2 / sum (ref - this)^2)."""
    noise = (reference.double() - logits.double()).square().sum()
    return 10 * math.log10(reference.double().square().sum() / noise) if noise else math.inf


def check_same_work(table: dict[str, Counted], batch: Tensor) -> dict[str, tuple[float, float]]:
    """Peer -> dB of its logits to fp32's and to those of qexp, folded; refuses peers that err otherwise than qexp."""
    with torch.inference_mode():
        logits = {name: network(batch).clone() for name, (network, _) in table.items()}
    found = {name: (sqnr_db(logits["fp32"], each), sqnr_db(logits["qexp, folded"], each)) for name, each in logits.items()}
    for name, (_, count) in table.items():
        if name.startswith("fp32"):
            continue
        off = found[name][0] - found["qexp"][0]
        if not abs(off) <= SAME_WITHIN_DB or not count:
            raise SystemExit(f"{name} does other work than qexp: {count} quantizations, logits {off:+.1f} dB nearer to fp32's")
    return found


def measure(table: dict[str, Counted], batch: Tensor, rounds: int, forwards: int) -> dict[str, list[float]]:
    """Seconds of one forward of every peer in every round, after one round that does not count."""
    seconds: dict[str, list[float]] = {name: [] for name in table}
    with torch.inference_mode():
        for number, name in alternating(list(table), rounds):
            network = table[name][0]
            start = time.perf_counter()
            for _ in range(forwards):
                network(batch)
            if number >= 0:
                seconds[name].append((time.perf_counter() - start) / forwards)
    return seconds


def compare(name: str, rounds: int, forwards: int, environment: dict[str, object]) -> list[dict[str, object]]:
    """Measure and print one network; one CSV row per peer."""
    shape = SHAPES.get(name, IMAGENET)
    table = peers(name, [images(shape, seed) for seed in range(1, 1 + CALIB_BATCHES)])
    batch = images(shape, 0)
    found = check_same_work(table, batch)
    load = os.getloadavg()[0]
    print(f"{name}, {list(shape)}, {environment}, load {load:.1f}, n={rounds} rounds of {forwards} forwards")
    seconds = measure(table, batch, rounds, forwards)
    rows: list[dict[str, object]] = []
    for peer, times in seconds.items():
        low, middle, high = quartiles([one / base for one, base in zip(times, seconds["fp32"], strict=True)])
        row = {
            "model": name,
            "peer": peer,
            "ratio_median": round(middle, 4),
            "ratio_q1": round(low, 4),
            "ratio_q3": round(high, 4),
            "median_ms": round(statistics.median(times) * 1e3, 3),
            "num_quantizations": table[peer][1],
            "sqnr_fp32_db": round(found[peer][0], 1),
            "sqnr_qexp_folded_db": round(found[peer][1], 1),
            "batch": "x".join(map(str, shape)),
            "n": rounds,
            "forwards": forwards,
        }
        print(
            f"{peer:<22} {middle:6.3f} x fp32 (quartiles {low:.3f} to {high:.3f}) {row['median_ms']:9.2f} ms,"
            f" {table[peer][1]:3d} quantizations, logits {found[peer][0]:.1f} dB to fp32, {found[peer][1]:.1f} dB to qexp folded"
        )
        rows.append(row | environment | {"load_at_start": round(load, 2), "date": date.today().isoformat()})
    return rows


def main() -> None:
    chosen = options(DEFAULTS)
    torch.set_num_threads(int(chosen["threads"]))
    environment = {"processor": processor("cpu"), "threads": torch.get_num_threads(), "torch": torch.__version__}
    for library, names in LIBRARIES.items():
        if not installed(library):
            print(f"{library} is left out, not installed: pip install -c constraints.txt {' '.join(names)}")
        environment[library] = metadata.version(library) if installed(library) else ""
    rows = []
    for name in chosen["networks"].split(","):
        rows += compare(name, int(chosen["rounds"]), int(chosen["forwards"]), environment)
    write_csv(Path(chosen["out"]) / f"ptq-{slug(rows)}.csv", rows)


if __name__ == "__main__":
    main()
