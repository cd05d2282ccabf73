"""A training step with 4-bit weights and activations over a float step, beside other libraries; peers alternate in one run.

    python scripts/bench_qat.py [networks=resnet18,resnet20,mobilenet_v2] [device=auto] [compile=auto] [rounds=11] [steps=1]
                                [threads=N] [peers=NAME;NAME] [clock=wall] [out=results/bench]

`device` is cpu, cuda or auto (cpu, and cuda where there is one); `compile` is no, yes, both or auto (both on a GPU, else no).
A step is forward, cross-entropy, backward and fused SGD on one batch of random images, in float32; weights are random, batch norm
re-estimated on the batch. All peers quantize the weights of all convolutions and linear layers, and what these read, per tensor:
    float                   the network as it is
    qexp lsq, ste, ...      `qexp.qat.prepare`, as `qexp.train qat=...` trains it, batch norm unfolded
    qexp lsq, folded        the same with weights quantized as batch norm will scale them
    torch fake_quantize     `torch.fake_quantize_per_tensor_affine` in place of ste's quantizers, its numbers read beforehand: no
                            range is observed
    torch learnable         `torch._fake_quantize_learnable_per_tensor_affine` in place of lsq's, with lsq's scales
    torchao fused observer  PT2E: `prepare_qat_pt2e` with `FusedMovingAvgObsFakeQuantize`, as its own recipes have it (ste)
    torchao learnable       PT2E with its `LearnableFakeQuantize` (lsq)
    brevitas                `QuantConv2d`, `QuantLinear` and `QuantIdentity` with its defaults: activations' scales are learned,
                            weights' ranges found at each step
    brevitas learned        the same with learned scales of weights too (lsq)
`prepare_qat_pt2e` cannot but simulate folded batch norm: torchao's peers do what `qexp lsq, folded` does. brevitas finds an
activation's range in its first step and learns from then on. `torchao.quantization.qat` is left out: it has linear layers and
embeddings, but no convolution.

First every peer must quantize as many tensors as qexp does and give all of the float network's weights a gradient; torch's peers
must have the logits, in eval mode, of the methods that they stand in for. Then each round runs every peer once, the first one in
turn. A ratio is to the same round's float step, compiled if the peer is. Printed: the median ratio, its quartiles, the median
time of a step. The aim is on resnet18: lsq at most 1.5 on a CPU and, compiled, 1.3 on a GPU, ahead of torchao and brevitas. The
CSV names the environment. `peers` are those to run beside float and `qexp lsq`, all by default. `clock=cpu` counts the time of
the process's processors, for a machine that others use: what they take is not counted, what they evict from its caches is.
"""

from __future__ import annotations

import gc
import os
import statistics
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from datetime import date
from importlib import metadata
from pathlib import Path

import torch
from bench_common import alternating, options, quartiles, write_csv
from bench_ptq import LIBRARIES, images, installed, sqnr_db
from bench_qat_peers import BITS, builders
from bench_quantize import processor, slug
from bench_train import devices
from torch import Tensor, nn
from torch.nn import functional as F

from qexp.base.allocator import keep_freed_memory
from qexp.base.types import Batch
from qexp.config.model import ModelSettings
from qexp.models.build import build_model
from qexp.nn.graph import evaluating
from qexp.ptq.bn_reestimation import reestimate_batch_norm_
from qexp.quant import uniform

DEFAULTS = {
    "networks": "resnet18,resnet20,mobilenet_v2",
    "device": "auto",
    "compile": "auto",
    "rounds": "11",
    "steps": "1",
    "threads": str(torch.get_num_threads()),
    "peers": "",
    "clock": "wall",
    "out": "results/bench",
}
SHAPES = {"resnet20": (64, 3, 32, 32)}  # of a batch on the CPU; the others:
SMALL_IMAGES = (32, 3, 64, 64)
GPU_SHAPES = {"resnet20": (256, 3, 32, 32)}
IMAGENET = (64, 3, 224, 224)
STANDS_FOR = {"torch fake_quantize": "qexp ste", "torch learnable": "qexp lsq"}
SAME_LOGITS_DB = 40.0
AIMS = {"cpu": ("resnet18", False, 1.5), "cuda": ("resnet18", True, 1.3)}  # network, compiled, qexp lsq over float


@dataclass
class Peer:
    """A network that is trained.

    Args:
        module: in training mode. num_quantizations: of weights and activations in one forward. run: it, or it compiled.
    """

    module: nn.Module
    num_quantizations: int
    run: Callable[[Tensor], Tensor]
    optimizer: torch.optim.Optimizer

    def step(self, batch: Tensor, labels: Tensor) -> Tensor:
        """One training step; the logits before it."""
        self.optimizer.zero_grad()
        logits = self.run(batch)
        F.cross_entropy(logits, labels).backward()
        self.optimizer.step()
        return logits.detach()


def peer(module: nn.Module, num_quantizations: int, compiled: bool) -> Peer:
    run = torch.compile(module) if compiled else module
    rates = {"lr": 1e-4, "momentum": 0.9, "weight_decay": 5e-4}
    return Peer(module, num_quantizations, run, torch.optim.SGD(module.parameters(), **rates, fused=True))


def peers(
    network: nn.Module, batch: Tensor, labels: Tensor, compiled: bool, chosen: str
) -> tuple[dict[str, Peer], dict[str, float]]:
    """Every chosen peer that trains, and the dB of its first logits to those of float; says why another does not."""
    table: dict[str, Peer] = {}
    logits: dict[str, Tensor] = {}
    stand_ins: dict[str, Tensor] = {}
    makers = builders(network, batch)
    names = list(makers) if not chosen else ["float", "qexp lsq", *(name.strip() for name in chosen.split(";"))]
    if unknown := [name for name in names if name not in makers]:
        raise SystemExit(f"peers={chosen}: {', '.join(unknown)} unknown; known are {'; '.join(makers)}")
    for name in dict.fromkeys(names):
        make = makers[name]
        try:
            table[name] = peer(*make(), compiled)
            if name in {*STANDS_FOR, *STANDS_FOR.values()}:
                with evaluating(table[name].module), torch.no_grad():
                    stand_ins[name] = table[name].module(batch)
            logits[name] = table[name].step(batch, labels)
        except Exception as error:  # of whatever kind a library has
            if name == "float" or name.startswith("qexp"):
                raise
            table.pop(name, None)
            print(f"{name} is left out, it does not train: {type(error).__name__}: {' '.join(str(error).split())[:200]}")
    for name, each in table.items():
        check(name, each, table, logits[name])
    for name, method in STANDS_FOR.items():
        if {name, method} <= stand_ins.keys() and (off := sqnr_db(stand_ins[method], stand_ins[name])) < SAME_LOGITS_DB:
            raise SystemExit(f"{name} computes otherwise than {method}: {off:.1f} dB")
    return table, {name: sqnr_db(logits["float"], each) for name, each in logits.items()}


def check(name: str, each: Peer, table: dict[str, Peer], logits: Tensor) -> None:
    """Refuse to compare a peer that does other work than qexp."""
    wanted = 0 if name == "float" else table["qexp lsq"].num_quantizations
    if each.num_quantizations != wanted:
        raise SystemExit(f"{name} quantizes {each.num_quantizations} tensors in a forward, qexp {wanted}")
    trained = sum(one.numel() for one in each.module.parameters() if one.dim() > 1 and one.grad is not None and one.grad.any())
    expected = sum(one.numel() for one in table["float"].module.parameters() if one.dim() > 1)
    if trained != expected or not bool(logits.isfinite().all()):
        raise SystemExit(f"{name} does not train: {trained} of {expected} weights have a gradient")


def measure(table: dict[str, Peer], batch: Tensor, labels: Tensor, rounds: int, steps: int, clock: str) -> dict[str, list[float]]:
    """Seconds of one step of every peer in every round, after one round that does not count."""
    seconds: dict[str, list[float]] = {name: [] for name in table}
    gc.collect()
    for number, name in alternating(list(table), rounds):
        start = now(batch.device, clock)
        for _ in range(steps):
            table[name].step(batch, labels)
        if number >= 0:
            seconds[name].append((now(batch.device, clock) - start) / steps)
    return seconds


def now(device: torch.device, clock: str) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.process_time() if clock == "cpu" else time.perf_counter()


def compare(
    name: str, device: str, compiled: bool, rounds: int, steps: int, environment: dict[str, object], chosen: str = ""
) -> list[dict[str, object]]:
    """Measure and print one network; one CSV row per peer."""
    shape = SHAPES.get(name, SMALL_IMAGES) if device == "cpu" else GPU_SHAPES.get(name, IMAGENET)
    network = build_model(ModelSettings(name=name), num_classes=10, image_shape=tuple(shape[1:]), seed=0).to(device)
    batch = images(shape, 0).to(device)
    labels = (torch.arange(len(batch)) % 10).to(device)
    reestimate_batch_norm_(network, [Batch(batch, labels, torch.arange(len(batch)), len(batch))])
    table, to_float = peers(network, batch, labels, compiled, chosen)
    environment = {"device": device, "processor": processor(device)} | environment
    load = os.getloadavg()[0]
    how = "compiled" if compiled else "not compiled"
    print(f"{name}, {list(shape)}, {how}, {environment}, load {load:.1f}, n={rounds} rounds of {steps} steps")
    seconds = measure(table, batch, labels, rounds, steps, str(environment["clock"]))
    rows: list[dict[str, object]] = []
    for each, times in seconds.items():
        low, middle, high = quartiles([one / base for one, base in zip(times, seconds["float"], strict=True)])
        row = {
            "model": name,
            "peer": each,
            "compiled": compiled,
            "ratio_median": round(middle, 4),
            "ratio_q1": round(low, 4),
            "ratio_q3": round(high, 4),
            "median_ms": round(statistics.median(times) * 1e3, 3),
            "num_quantizations": table[each].num_quantizations,
            "sqnr_float_db": round(to_float[each], 1),
            "bits": BITS,
            "batch": "x".join(map(str, shape)),
            "n": rounds,
            "steps": steps,
        }
        print(
            f"{each:<24} {middle:6.3f} x float (quartiles {low:.3f} to {high:.3f}) {row['median_ms']:9.2f} ms,"
            f" {table[each].num_quantizations:3d} quantizations, logits {to_float[each]:.1f} dB to float"
        )
        rows.append(row | environment | {"load_at_start": round(load, 2), "date": date.today().isoformat()})
    print_aim(name, device, compiled, rows)
    return rows


def print_aim(name: str, device: str, compiled: bool, rows: list[dict[str, object]]) -> None:
    """How qexp's lsq stands to the aim, where there is one."""
    model, with_compile, aim = AIMS[device]
    if (name, compiled) != (model, with_compile):
        return
    ratios = {str(row["peer"]): float(row["ratio_median"]) for row in rows}
    mine = ratios["qexp lsq"]
    others = [ratio for each, ratio in ratios.items() if each.startswith(("torchao", "brevitas"))]
    print(f"aim, lsq at most {aim} x float: {mine:.3f}, {'met' if mine <= aim else 'missed'}")
    if others:
        print(f"aim, ahead of torchao and brevitas ({min(others):.3f} at best): {'met' if mine < min(others) else 'missed'}")


def compilations(chosen: str, device: str) -> tuple[bool, ...]:
    """What `compile=` stands for on a device."""
    table = {"no": (False,), "yes": (True,), "both": (False, True), "auto": (False,) if device == "cpu" else (False, True)}
    if chosen not in table:
        raise SystemExit(f"compile={chosen}: one of {', '.join(table)}")
    return table[chosen]


def main() -> None:
    chosen = options(DEFAULTS)
    torch.set_num_threads(int(chosen["threads"]))
    warnings.filterwarnings("ignore", module="torch|torchao|brevitas")
    if chosen["clock"] not in ("wall", "cpu"):
        raise SystemExit(f"clock={chosen['clock']}: one of wall, cpu")
    keep_freed_memory()  # as every command does
    uniform.build()  # as a training does once it pays
    environment: dict[str, object] = {"threads": torch.get_num_threads(), "clock": chosen["clock"], "torch": torch.__version__}
    for library, names in LIBRARIES.items():
        if not installed(library):
            print(f"{library} is left out, not installed: pip install -c constraints.txt {' '.join(names)}")
        environment[library] = metadata.version(library) if installed(library) else ""
    rows = []
    for device in devices(chosen["device"]):
        for name in chosen["networks"].split(","):
            for compiled in compilations(chosen["compile"], device):
                counts = int(chosen["rounds"]), int(chosen["steps"])
                rows += compare(name, device, compiled, *counts, environment, chosen["peers"])
                torch.compiler.reset()
    write_csv(Path(chosen["out"]) / f"qat-{slug(rows)}.csv", rows)


if __name__ == "__main__":
    main()
