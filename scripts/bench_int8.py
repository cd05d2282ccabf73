"""Networks in real int8 over fp32, in each runtime and beside torch; every peer in one run, alternating.

    python scripts/bench_int8.py [networks=resnet18,resnet50,mobilenet_v2] [dynamic=convnext_tiny] [batches=1,16] [size=224]
        [runtimes=onnxruntime,openvino,torch,litert,executorch] [compiled=true] [rounds=11] [forwards=3] [threads=N]
        [clock=wall] [out=results/bench]

Random weights, 1000 classes, batch norm re-estimated on the calibration images and folded. Peers:
    torch eager            the float network as it was trained, batch norm in place
    torch compile          the same, `torch.compile`; not with compiled=false
    NAME fp32              the float network with batch norm folded, written by qexp, in that runtime
    NAME int8              the same quantized by qexp: weights `symmetric_restricted` per channel, activations affine per tensor
    NAME own int8          the same quantized by the runtime's own quantizer (`bench_int8_peers.py`), where there is one
`torch` as a runtime is the program of torch.export with qexp's codes, compiled by Inductor; its fp32 is the float program alike.
`dynamic` names networks whose linear layers alone are quantized, with each batch's range; only ONNX files hold these.

First all peers of one kind must have the same logits: fp32 those of torch eager, int8 those of the simulation. Numbers by another
quantizer are others; a peer whose logits are nowhere near those of torch eager is left out. Then each round runs every peer once,
the first one in turn: a rest, a forward that does not count, then `forwards` that do.
A speedup is a peer's baseline over it in the same round: the runtime's own fp32 for int8, torch eager for all else. `over_own` is
qexp's speedup over that of the runtime's own quantizer, of the same round: at least 0.95 is aimed at. `cores` is processor time
over the clock's, which shows how many threads ran. `clock=cpu` takes the processor's time for all else too, for a machine that
others use, with threads=1. Printed: the median speedup, its quartiles, `over_own` alike, the median time of a forward, the size
of the file. The CSV names the environment.
"""

from __future__ import annotations

import math
import os
import statistics
import tempfile
import time
from dataclasses import dataclass, field
from datetime import date
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path

import torch
from bench_common import CLOCKS, alternating, options, quartiles, write_csv
from bench_int8_peers import EAGER, OWN, Peer, Work, peers
from bench_ptq import images, qexp_peer, rounded, sqnr_db
from bench_quantize import processor, slug
from torch import Tensor, nn

from qexp.base.types import Batch, Plan
from qexp.config.export import RUNTIMES
from qexp.config.model import ModelSettings
from qexp.config.policy import PolicySettings, RuleSettings
from qexp.config.quant import ActivationQuantSettings, QuantSettings, WeightQuantSettings
from qexp.deploy.coded_network import code_network
from qexp.deploy.runtimes import fast_kernels_saturate, installed_runtimes, runtime_version
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
    "clock": "wall",
    "out": "results/bench",
}
CALIB_BATCHES, CALIB_SIZE = 2, 8
REST_S = 0.3
# Least logit SQNR: of fp32 to torch eager, of int8 to its simulation, of another quantizer's int8 to torch eager. Deep networks
# with random weights amplify a code that rounds the other way at a tie, resnet50 to some 4 dB; other logits altogether would
# have none. The proof is in the fidelity stages, layer by layer.
LEAST_DB = {"fp32": 60.0, "int8": 3.0, "own": 1.0}
OVER_OWN = 0.95  # what is aimed at


@dataclass
class Times:
    """Of one peer, by round: seconds of a forward, and the processor's seconds over these."""

    seconds: list[float] = field(default_factory=list)
    cores: list[float] = field(default_factory=list)


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
    floats, quantized = code_network(folded, example, {}), code_network(module, example, grids, reference=folded)
    return Work(name, model, floats, quantized, calib, dynamic)


def check_same_work(work: Work, table: dict[str, Peer], batch: Tensor) -> dict[str, float]:
    """Peer -> dB of its logits to torch eager's, of qexp's int8 to the simulation's; refuses files that do other work.

    Peers by other quantizers that do are left out.
    """
    with torch.inference_mode():
        reference, simulated = work.model(batch), work.quantized.network(batch)
        found = {}
        for name, peer in table.items():
            decibels = sqnr_db(simulated if peer.kind == "int8" else reference, peer.run(batch).clone())
            if decibels >= LEAST_DB[peer.kind]:
                found[name] = decibels
            elif peer.kind == "own":
                print(f"{work.name}: {name} is left out: its logits are {decibels:.1f} dB to those of {EAGER}")
            else:
                raise SystemExit(f"{work.name}, {name} does other work: logits {decibels:.1f} dB to the others'")
    return found


def measure(table: dict[str, Peer], batch: Tensor, chosen: dict[str, str]) -> dict[str, Times]:
    """One forward of every peer in every round, after one round that does not count."""
    times, rounds, forwards = {name: Times() for name in table}, int(chosen["rounds"]), int(chosen["forwards"])
    with torch.inference_mode():
        for number, name in alternating(list(table), rounds):
            time.sleep(REST_S)  # idle threads of the pool that ran before still spin, on the cores of this one
            table[name].run(batch)
            begin = {clock: now() for clock, now in CLOCKS.items()}
            for _ in range(forwards):
                table[name].run(batch)
            elapsed = {clock: now() - begin[clock] for clock, now in CLOCKS.items()}
            if number >= 0:
                times[name].seconds.append(elapsed[chosen["clock"]] / forwards)
                times[name].cores.append(elapsed["cpu"] / elapsed["wall"])
    return times


def ratio(name: str, table: dict[str, Times], of: str | None) -> tuple[float, float, float]:
    """Quartiles of another peer's seconds over this one's in the same round; NaN where there is no other."""
    if of is None:
        return math.nan, math.nan, math.nan
    return quartiles([other / own for other, own in zip(table[of].seconds, table[name].seconds, strict=True)])


def compare(
    work: Work, table: dict[str, Peer], batch: Tensor, chosen: dict[str, str], environment: dict[str, object]
) -> list[dict[str, object]]:
    """Measure and print one network at one batch size; one CSV row per peer."""
    rounds, forwards = int(chosen["rounds"]), int(chosen["forwards"])
    decibels, load = check_same_work(work, table, batch), os.getloadavg()[0]
    shape, kind = "x".join(map(str, batch.shape)), "dynamic" if work.dynamic else "static"
    print(f"{work.name}, {kind}, {shape}, {environment}, load {load:.1f}, n={rounds} rounds of {forwards} forwards")
    table = {name: table[name] for name in decibels}
    times = measure(table, batch, chosen)
    rows: list[dict[str, object]] = []
    for name, peer in table.items():
        low, middle, high = ratio(name, times, peer.baseline)
        own = peer.own if peer.own in table else None
        over = dict(zip(("q1", "median", "q3"), ratio(name, times, own), strict=True))
        row = {
            "model": work.name,
            "quantization": kind,
            "peer": name,
            "baseline": peer.baseline,
            "speedup_median": round(middle, 4),
            "speedup_q1": round(low, 4),
            "speedup_q3": round(high, 4),
            **{f"over_own_{end}": "" if own is None else round(over[end], 4) for end in ("median", "q1", "q3")},
            "median_ms": round(statistics.median(times[name].seconds) * 1e3, 3),
            "clock": chosen["clock"],
            "cores": round(statistics.median(times[name].cores), 2),
            "file_bytes": peer.num_bytes or "",
            "times_smaller": times_smaller(peer, table),
            "sqnr_db": round(decibels[name], 1),
            "batch": shape,
            "n": rounds,
            "forwards": forwards,
        }
        print(line_of(row), flush=True)
        rows.append(row | environment | {"load_at_start": round(load, 2), "date": date.today().isoformat()})
    return rows


def times_smaller(peer: Peer, table: dict[str, Peer]) -> float | str:
    """How many times as large the file of a peer's baseline is; empty where one of them has none."""
    other = table[peer.baseline].num_bytes
    return round(other / peer.num_bytes, 3) if other and peer.num_bytes else ""


def line_of(row: dict[str, object]) -> str:
    """One peer for the screen."""
    text = (
        f"{row['peer']:<20} {row['speedup_median']:6.2f} x {row['baseline']:<16} (quartiles {row['speedup_q1']:.2f} to"
        f" {row['speedup_q3']:.2f}) {row['median_ms']:9.2f} ms, {row['cores']:.1f} cores, {row['sqnr_db']:.1f} dB"
    )
    if row["over_own_median"] != "":
        text += f", {row['over_own_median']:.2f} x own ({row['over_own_q1']:.2f} to {row['over_own_q3']:.2f})"
    if row["times_smaller"] != "":
        text += f", file {row['times_smaller']:.2f} x smaller ({row['file_bytes'] / 1e6:.1f} MB)"
    return text


def verdict(rows: list[dict[str, object]]) -> str:
    """Which of qexp's int8 are below what is aimed at beside the runtime's own quantizer."""
    held = [row for row in rows if row["over_own_median"] != ""]
    below = [row for row in held if row["over_own_median"] < OVER_OWN]
    named = "; ".join(f"{row['model']} {row['batch']} {row['peer']} {row['over_own_median']:.2f}" for row in below)
    kept = f"{len(held) - len(below)} of {len(held)} int8 peers have at least {OVER_OWN} of the own quantizer's speedup"
    where = "; only reported, as this CPU has neither VNNI nor AMX" if fast_kernels_saturate() else ""
    return f"{kept}{where}{f'; below: {named}' if below else ''}"


def main() -> None:
    chosen = options(DEFAULTS)
    torch.set_num_threads(int(chosen["threads"]))
    environment: dict[str, object] = {
        "processor": processor("cpu"),
        "threads": int(chosen["threads"]),
        "torch": torch.__version__,
    }
    used = chosen["runtimes"].split(",")
    environment |= {name: runtime_version(name) if name in used else "" for name in RUNTIMES if name != "torch"}
    for row in OWN.values():  # runtimes that quantize by themselves are there already
        is_used = any(other.package == row.package and name in used for name, other in OWN.items())
        environment.setdefault(row.package, metadata.version(row.package) if is_used and find_spec(row.package) else "")
    if missing := [name for name in RUNTIMES if name not in installed_runtimes()]:
        print(f"left out, not installed: {', '.join(missing)}; pip install 'qexp[deploy]'")
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
            print(verdict(rows))
            write_csv(Path(chosen["out"]) / f"int8-{slug(rows)}.csv", rows)


if __name__ == "__main__":
    main()
