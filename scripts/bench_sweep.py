"""What a sweep costs beyond what it cannot avoid: one training, and one pass of the plain network per variant and epoch.

    python scripts/bench_sweep.py [epochs=8] [rounds=2] [compiled=false] [threads=N] [clock=wall] [out=results/bench]

In one warm process, alternating: (floor) qexp's training with 12 plain evaluations after each epoch, written here by hand, and
(sweep) the whole of `qexp.train` for 12 variants: check, plan, journal, MLflow, quantization, probe, per-image statistics,
report. With compiled=true the sweep trains and evaluates compiled (`train.compile=true evaluate.engine=compiled`); the floor
stays as it is, and what torch compiled in the warming up is at hand, on disk. `clock=cpu` counts the time of the processors, of
this process and of those it started and that ended, for a machine that others use; with threads=1 it is what the clock on the
wall would show on a quiet one. Each sweep starts a process that feeds MLflow, whose time `cpu` counts, and waits for it at the
end. Also stated: start-up of a fresh process, which loads no MLflow itself, and 12 separate trainings with one evaluation per
epoch each, from the same measurements.
"""

from __future__ import annotations

import csv
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from bench_common import options

from qexp.config.validate import validate
from qexp.data.load import load_data
from qexp.engine.fit import fit
from qexp.models.build import build_model
from qexp.sweep.check import check
from qexp.sweep.combinations import Combinations
from qexp.sweep.compose import conf_dir
from qexp.sweep.group import Resources
from qexp.sweep.jobs import JobLog, ask_for
from qexp.sweep.launchers import run_in_turn
from qexp.sweep.run import run_sweep
from qexp.tracking import environment
from qexp.tracking.record import Sweep

BITS, MODES = (2, 3, 4, 6, 8, 12), ("int", "float")
DEFAULTS = {
    "epochs": "8",
    "rounds": "2",
    "compiled": "false",
    "threads": str(torch.get_num_threads()),
    "clock": "wall",
    "out": "results/bench",
}


def processor_time() -> float:
    """Seconds, user and system, of this process and of its children that ended."""
    used = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(each.ru_utime + each.ru_stime for each in used)


CLOCKS: dict[str, Callable[[], float]] = {"wall": time.perf_counter, "cpu": processor_time}


def compose(overrides: list[str]) -> list[dict]:
    """The values of each job, composed as `qexp.train` composes them."""
    from hydra import initialize_config_dir

    from qexp.sweep.config_store import store_choices

    store_choices()
    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        return list(Combinations("config", overrides, None).sweep())


def floor(values: dict, clock: Callable[[], float]) -> tuple[float, float]:
    """Seconds of evaluating, and in all: one training, 12 passes of the plain network after each epoch."""
    config = validate(values)
    bundle = load_data(config.data)
    model = build_model(config.model, num_classes=bundle.num_classes, image_shape=bundle.image_shape, seed=config.seed)
    evaluating: list[float] = []

    def evaluate_plainly(_) -> None:
        began = clock()
        model.eval()
        with torch.inference_mode():
            for _ in range(len(BITS) * len(MODES)):
                correct = 0
                for batch in bundle.eval_batches("test", batch_size=config.evaluate.batch_size, device="cpu"):
                    correct += int((model(batch.images).argmax(1) == batch.labels).sum())
        evaluating.append(clock() - began)

    began = clock()
    fit(
        model,
        lambda epoch, _: bundle.train_batches(epoch=epoch, batch_size=config.train.batch_size, seed=0, device="cpu"),
        config.train,
        steps_per_epoch=bundle.steps_per_epoch(config.train.batch_size),
        device=torch.device("cpu"),
        on_epoch_end=evaluate_plainly,
        progress=False,
    )
    return sum(evaluating), clock() - began


def sweep(epochs: int, folder: str, compiled: bool, clock: Callable[[], float]) -> float:
    """Seconds of the same training and 12 variants through qexp, in a store of its own."""
    more = ["train.compile=true", "evaluate.engine=compiled"] if compiled else []
    began = clock()
    swept = [f"bits={','.join(map(str, BITS))}", f"mode={','.join(MODES)}"]
    jobs = compose([*swept, f"train.epochs={epochs}", f"runs_dir={folder}/runs", f"results_dir={folder}/results", *more])
    info = Sweep(sweep="bench", command="bench_sweep", verb="train")
    with Resources() as resources:
        log = JobLog(ask_for(jobs), info)
        run_sweep(check(jobs, "train"), log, resources, partial(run_in_turn, resources=resources))
    return clock() - began


def main() -> None:
    chosen = options(DEFAULTS)
    epochs, rounds, compiled = int(chosen["epochs"]), int(chosen["rounds"]), chosen["compiled"] == "true"
    torch.set_num_threads(int(chosen["threads"]))
    clock = CLOCKS[chosen["clock"]]
    began = clock()
    subprocess.run([sys.executable, "-c", "import qexp.sweep.run"], check=True)
    start_up = clock() - began
    (values,) = compose([f"train.epochs={epochs}"])
    with tempfile.TemporaryDirectory() as folder:
        sweep(2, f"{folder}/warm", compiled, clock)  # imports, MLflow's store, the allocator
        rows = []
        for number in range(rounds):
            evaluate, whole = floor(values, clock)
            rows.append((whole - evaluate, evaluate, whole, sweep(epochs, f"{folder}/{number}", compiled, clock)))
            print(f"round {number + 1}: {rows[-1][3] / whole:.3f} of the floor", flush=True)
    ratio = statistics.median(row[3] / row[2] for row in rows)
    separate = statistics.median(12 * (row[0] + row[1] / 12) / row[3] for row in rows)
    train, evaluate, whole, swept = (statistics.median(column) for column in zip(*rows, strict=True))
    result = {
        "training_s": round(train, 2),
        "plain_evaluations_s": round(evaluate, 2),
        "floor_s": round(whole, 2),
        "sweep_s": round(swept, 2),
        "sweep_over_floor": round(ratio, 3),
        "separate_trainings_over_sweep": round(separate, 2),
        "start_up_s": round(start_up, 2),
        "compiled": compiled,
        "variants": 12,
        "epochs": epochs,
        "rounds": rounds,
        "clock": chosen["clock"],
        "threads": torch.get_num_threads(),
        "cpu": environment.cpu_model(),
        **{f"version_{name}": text for name, text in environment.versions().items()},
        "date": time.strftime("%Y-%m-%d"),
    }
    print(f"floor (training + 12 plain evaluations an epoch)  {whole:7.1f} s  1.000")
    print(
        f"sweep of 12 variants                              {swept:7.1f} s  {ratio:.3f} of the floor (rounds: "
        + ", ".join(f"{row[3] / row[2]:.3f}" for row in rows)
        + ")"
    )
    print(
        f"12 separate trainings                             {12 * (train + evaluate / 12):7.1f} s  {separate:.2f} times the sweep"
    )
    print(f"start-up of a fresh process                       {start_up:7.1f} s  not counted above")
    way = "-compiled" if compiled else ""
    path = Path(chosen["out"]) / f"bench-sweep{way}-cpu{os.cpu_count()}-torch{torch.__version__.split('+')[0]}.csv"
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "w", newline="") as handle:
        writer = csv.DictWriter(handle, result)
        writer.writeheader()
        writer.writerow(result)
    print(path)


if __name__ == "__main__":
    main()
