"""Networks in real int8 over fp32, in each runtime and beside torch; every peer in one run, alternating.

    python scripts/bench_int8.py [networks=resnet18,resnet50,mobilenet_v2] [dynamic=convnext_tiny] [batches=1,16] [size=224]
        [runtimes=onnxruntime,openvino,torch] [compiled=true] [rounds=11] [forwards=3] [threads=N] [out=results/bench]

Random weights, 1000 classes, batch norm re-estimated on the calibration images and folded. Peers:
    torch eager            the float network as it was trained, batch norm in place
    torch compile          the same, `torch.compile`; not with compiled=false
    NAME fp32              the float network with batch norm folded, written by qexp, in that runtime
    NAME int8              the same quantized by qexp: weights `symmetric_restricted` per channel, activations affine per tensor
`torch` as a runtime is the program of torch.export with qexp's codes, compiled by Inductor; its fp32 is the float program alike.
`dynamic` names networks whose linear layers alone are quantized, with each batch's range; torch runs none of these in int8.

First all peers of one kind must have the same logits: fp32 those of torch eager, int8 those of the simulation. Then each round
runs every peer once, the first one in turn: a rest, a forward that does not count, then `forwards` that do.
A speedup is a peer's baseline over it in the same round: the runtime's own fp32 for int8, torch eager for all else. Printed: the
median speedup, its quartiles, the median time of a forward, the size of the file. The CSV names the environment.
"""

from __future__ import annotations

import math
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import date
from importlib import metadata
from pathlib import Path

import torch
from bench_common import alternating, options, quartiles, write_csv
from bench_ptq import images, qexp_peer, rounded, sqnr_db
from bench_quantize import processor, slug
from torch import Tensor, nn

from qexp.base.types import Batch, Plan
from qexp.config.model import ModelSettings
from qexp.config.policy import PolicySettings, RuleSettings
from qexp.config.quant import ActivationQuantSettings, QuantSettings, WeightQuantSettings
from qexp.deploy.coded_network import CodedNetwork, code_network
from qexp.deploy.onnx.qdq import export_qdq
from qexp.deploy.runtimes import installed_runtimes, open_runtime
from qexp.deploy.torch_export import PROGRAM_SUFFIX, save_program
from qexp.models.build import build_model
from qexp.nn.activation_points import activations
from qexp.nn.fake_quant import insert
from qexp.nn.fold import fold_batch_norm
from qexp.nn.graph import trace
from qexp.nn.inventory import inventory
from qexp.policy.plan import make_plan
from qexp.ptq.bn_reestimation import reestimate_batch_norm_

DEFAULTS = {
    "networks": "resnet18,resnet50,mobilenet_v2",
    "dynamic": "convnext_tiny",
    "batches": "1,16",
    "size": "224",
    "runtimes": ",".join(installed_runtimes()),
    "compiled": "true",
    "rounds": "11",
    "forwards": "3",
    "threads": str(torch.get_num_threads()),
    "out": "results/bench",
}
EAGER = "torch eager"
CALIB_BATCHES, CALIB_SIZE = 2, 8
REST_S = 0.3
# Least logit SQNR: of fp32 to torch eager, of int8 to its simulation. Deep networks with random weights amplify a code that
# rounds the other way at a tie, resnet50 to some 4 dB; other logits altogether would have none. The proof is in the fidelity
# stages, layer by layer.
FLOAT_DB, INT8_DB = 60.0, 3.0


@dataclass(frozen=True)
class Peer:
    """Something that runs images; `baseline` is the peer that its speedup is over, `num_bytes` those of its file."""

    run: Callable[[Tensor], Tensor]
    baseline: str = EAGER
    num_bytes: int | None = None


@dataclass(frozen=True)
class Work:
    """One network: as trained, folded, and quantized in simulation."""

    name: str
    model: nn.Module
    floats: CodedNetwork
    quantized: CodedNetwork
    dynamic: bool


def plan_of(network: nn.Module, example: Tensor, *, dynamic: bool) -> Plan:
    """8 bits for every weight and place; of a dynamic one for linear layers alone."""
    acts = ActivationQuantSettings(bits=8, dynamic=dynamic)
    quant = QuantSettings(name="symmetric_restricted", weight=WeightQuantSettings(granularity="per_channel"), activation=acts)
    places = activations(trace(network, example), layers_only=dynamic)
    linear = [RuleSettings(kind="linear"), RuleSettings(kind="conv", role="activation", keep=True)]
    policy = PolicySettings(name="rules", rules=linear) if dynamic else PolicySettings()
    return make_plan(inventory(network, example), policy=policy, quant=quant, bits=8, mode="int", activations=places)


@torch.no_grad()
def work_of(name: str, size: int, *, dynamic: bool) -> Work:
    """A network with random weights and batch norm statistics of the calibration images, and its quantized copy."""
    calib = [images((CALIB_SIZE, 3, size, size), seed) for seed in range(1, 1 + CALIB_BATCHES)]
    model = build_model(ModelSettings(name=name), num_classes=1000, image_shape=(3, size, size), seed=0).eval()
    reestimate_batch_norm_(model, [Batch(each, torch.zeros(len(each)), torch.arange(len(each)), len(each)) for each in calib])
    folded, example = fold_batch_norm(model).model.eval(), calib[0][:1]
    plan = plan_of(folded, example, dynamic=dynamic)
    weights = rounded(folded, plan)
    module = insert(trace(weights, example), plan).eval() if dynamic else qexp_peer(weights, plan, calib)
    grids = {tensor: (spec, None) for tensor, spec in plan.quantized.items()}
    return Work(name, model, code_network(folded, example, {}), code_network(module, example, grids, reference=folded), dynamic)


def peers(work: Work, example: Tensor, chosen: dict[str, str], folder: Path) -> dict[str, Peer]:
    """Every peer of one network, torch eager first."""
    found = {EAGER: Peer(work.model)}
    if chosen["compiled"] == "true":
        found["torch compile"] = Peer(torch.compile(work.model, dynamic=False))
    for kind, each in (("fp32", work.floats), ("int8", work.quantized)):
        path = folder / f"{work.name}-{kind}.onnx"
        export_qdq(each.network, example, each.weights, path)
        for runtime in chosen["runtimes"].split(","):
            file = path
            if runtime == "torch":
                if kind == "int8" and work.dynamic:
                    continue
                file = path.with_suffix(PROGRAM_SUFFIX)
                save_program(each.network, example, each.weights, file)
            session = open_runtime(runtime, path, threads=int(chosen["threads"]))
            baseline = EAGER if kind == "fp32" else f"{runtime} fp32"
            found[f"{runtime} {kind}"] = Peer(session.run, baseline, file.stat().st_size)
    return found


def check_same_work(work: Work, table: dict[str, Peer], batch: Tensor) -> dict[str, float]:
    """Peer -> dB of its logits to torch eager's, of int8 to the simulation's; refuses peers that compute something else."""
    with torch.inference_mode():
        reference, simulated = work.model(batch), work.quantized.network(batch)
        found = {}
        for name, peer in table.items():
            is_int8 = name.endswith("int8")
            found[name] = sqnr_db(simulated if is_int8 else reference, peer.run(batch).clone())
            if not found[name] >= (INT8_DB if is_int8 else FLOAT_DB):
                raise SystemExit(f"{work.name}, {name} does other work: logits {found[name]:.1f} dB to the others'")
    return found


def measure(table: dict[str, Peer], batch: Tensor, rounds: int, forwards: int) -> dict[str, list[float]]:
    """Seconds of one forward of every peer in every round, after one round that does not count."""
    seconds: dict[str, list[float]] = {name: [] for name in table}
    with torch.inference_mode():
        for number, name in alternating(list(table), rounds):
            time.sleep(REST_S)  # idle threads of the pool that ran before still spin, on the cores of this one
            table[name].run(batch)
            start = time.perf_counter()
            for _ in range(forwards):
                table[name].run(batch)
            if number >= 0:
                seconds[name].append((time.perf_counter() - start) / forwards)
    return seconds


def compare(
    work: Work, table: dict[str, Peer], batch: Tensor, chosen: dict[str, str], environment: dict[str, object]
) -> list[dict[str, object]]:
    """Measure and print one network at one batch size; one CSV row per peer."""
    rounds, forwards = int(chosen["rounds"]), int(chosen["forwards"])
    decibels, load = check_same_work(work, table, batch), os.getloadavg()[0]
    shape, kind = "x".join(map(str, batch.shape)), "dynamic" if work.dynamic else "static"
    print(f"{work.name}, {kind}, {shape}, {environment}, load {load:.1f}, n={rounds} rounds of {forwards} forwards")
    seconds = measure(table, batch, rounds, forwards)
    rows: list[dict[str, object]] = []
    for name, peer in table.items():
        low, middle, high = quartiles([base / one for base, one in zip(seconds[peer.baseline], seconds[name], strict=True)])
        own = peer.num_bytes
        smaller = table[peer.baseline].num_bytes / own if own and table[peer.baseline].num_bytes else math.nan
        row = {
            "model": work.name,
            "quantization": kind,
            "peer": name,
            "baseline": peer.baseline,
            "speedup_median": round(middle, 4),
            "speedup_q1": round(low, 4),
            "speedup_q3": round(high, 4),
            "median_ms": round(statistics.median(seconds[name]) * 1e3, 3),
            "file_bytes": own or "",
            "times_smaller": "" if math.isnan(smaller) else round(smaller, 3),
            "sqnr_db": round(decibels[name], 1),
            "batch": shape,
            "n": rounds,
            "forwards": forwards,
        }
        size = "" if math.isnan(smaller) else f", file {smaller:.2f} x smaller ({own / 1e6:.1f} MB)"
        print(
            f"{name:<18} {middle:6.2f} x {peer.baseline:<18} (quartiles {low:.2f} to {high:.2f}) {row['median_ms']:9.2f} ms,"
            f" {decibels[name]:.1f} dB{size}",
            flush=True,
        )
        rows.append(row | environment | {"load_at_start": round(load, 2), "date": date.today().isoformat()})
    return rows


def main() -> None:
    chosen = options(DEFAULTS)
    torch.set_num_threads(int(chosen["threads"]))
    environment: dict[str, object] = {
        "processor": processor("cpu"),
        "threads": int(chosen["threads"]),
        "torch": torch.__version__,
    }
    for library in ("onnxruntime", "openvino"):
        used = library in chosen["runtimes"].split(",")
        environment[library] = metadata.version(library) if used else ""
    if missing := {"onnxruntime", "openvino"} - set(installed_runtimes()):
        print(f"left out, not installed: {', '.join(sorted(missing))}; pip install 'qexp[deploy]'")
    kinds = [(name, False) for name in chosen["networks"].split(",")] + [(name, True) for name in chosen["dynamic"].split(",")]
    rows, size = [], int(chosen["size"])
    try:
        for name, dynamic in kinds:
            if not name:
                continue
            work = work_of(name, size, dynamic=dynamic)
            with tempfile.TemporaryDirectory() as folder:
                table = peers(work, images((1, 3, size, size), 0), chosen, Path(folder))
                for batch in chosen["batches"].split(","):
                    rows += compare(work, table, images((int(batch), 3, size, size), 0), chosen, environment)
            torch.compiler.reset()
    finally:
        if rows:
            write_csv(Path(chosen["out"]) / f"int8-{slug(rows)}.csv", rows)


if __name__ == "__main__":
    main()
