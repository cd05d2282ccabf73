"""What tracking costs in the step loop: the same training with MLflow on, off, and with a server that is down or hangs.

    python scripts/bench_tracking.py [--rounds 5] [--epochs 8] [--threads N] [--peers off,sqlite] [KEY=VALUE ...]

Peers, each a fresh process of `qexp.train` with the same settings (resnet20 on mnist5k, a copy of 4, 8 and 16 bits; further
KEY=VALUE go to all of them), in another order every round:
    off               tracking.enabled=false: the journal alone
    sqlite            the default store, made anew
    dead server       a port where nobody listens
    hanging server    a port that takes connections and never answers

Compared are the `seconds` of train.jsonl, which cover the training steps of an epoch and nothing else; evaluation, checkpoints
and the journal are outside. Per round, a peer's median epoch is divided by the median epoch of `off`, and so is the mean of its
later half, in which deliveries to MLflow (one in 15 s) have their share; printed are the medians of those ratios, and quartiles
of the first. The start of the process that feeds MLflow falls into the first epochs, once: what all epochs take longer is stated
beside, in seconds. So is the CPU time of the whole training process beyond that of `off`, which other programs hardly change;
that of the process that feeds MLflow is not in it. Where the clock of a shared machine varies by more than tracking costs, what
it costs is counted directly: `calls_ms`, the time that the training's process spends in calls of the feed until the sweep's end,
where it waits for MLflow, and `calls_share`, that over all epochs' seconds. The CSV in the results folder names the environment.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from datetime import date
from importlib import metadata
from pathlib import Path

from bench_quantize import processor

# `qexp.train`; at its end the seconds in calls of the feed, and the CPU time of this process without that of those it started.
PROGRAM = """
import atexit, runpy, sys, time
from qexp.tracking.feed import MlflowFeed
calls, notify = [], MlflowFeed.notify
def timed(feed):
    begun = time.perf_counter()
    notify(feed)
    calls.append(time.perf_counter() - begun)
MlflowFeed.notify = timed
atexit.register(lambda: print("\\nspent", sum(calls), time.process_time()))
runpy.run_module("qexp.train", run_name="__main__", alter_sys=True)
"""
JOB = ("model=resnet20", "data=mnist5k", "bits=4,8,16", "device=cpu", "seed=0")


def peers(hanging_port: int) -> dict[str, list[str]]:
    """Name -> the settings that tell it apart; `off` first."""
    return {
        "off": ["tracking.enabled=false"],
        "sqlite": [],
        "dead server": ["tracking.uri=http://127.0.0.1:9", "tracking.timeout_s=1"],
        "hanging server": [f"tracking.uri=http://127.0.0.1:{hanging_port}", "tracking.timeout_s=1"],
    }


@dataclass(frozen=True)
class Training:
    """Seconds of one training.

    Args:
        epochs: of the step loop, in every epoch.
        calls: of the feed, all of them.
        cpu: CPU time of its process.
    """

    epochs: list[float]
    calls: float
    cpu: float


def train(settings: list[str], threads: int) -> Training:
    """One training, in a folder of its own."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-c", PROGRAM, *settings, "-m"]
        environment = os.environ | {"OMP_NUM_THREADS": str(threads)}
        done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
        if done.returncode:
            sys.exit(f"{' '.join(settings)}\n{done.stdout}{done.stderr}")
        (log,) = Path(folder).glob("runs/trainings/*/train.jsonl")
        epochs = [json.loads(line)["seconds"] for line in log.read_text(encoding="utf-8").splitlines()]
        return Training(epochs, *map(float, done.stdout.rpartition("spent")[2].split()))


def measure(table: dict[str, list[str]], common: list[str], rounds: int, threads: int) -> dict[str, list[Training]]:
    """Peer -> its trainings, one for each round; the order is turned by one from round to round."""
    names = list(table)
    trainings: dict[str, list[Training]] = {name: [] for name in names}
    for number in range(rounds):
        turn = number % len(names)
        for name in names[turn:] + names[:turn]:
            trainings[name].append(train([*common, *table[name]], threads))
            epoch = statistics.median(trainings[name][-1].epochs)
            print(f"round {number + 1}/{rounds}  {name:<15} {epoch:.3f} s per epoch", flush=True)
    return trainings


def compare(trainings: list[Training], off: list[Training]) -> dict[str, float]:
    """Ratios of epochs to those of `off` in the same round, and what all of them and the process took beyond its share, s."""
    pairs = list(zip(trainings, off, strict=True))
    ratios = [statistics.median(one.epochs) / statistics.median(base.epochs) for one, base in pairs]
    low, middle, high = statistics.quantiles(ratios, n=4, method="inclusive")
    later = [sum(one.epochs[len(one.epochs) // 2 :]) / sum(base.epochs[len(base.epochs) // 2 :]) for one, base in pairs]
    return {
        "ratio_median": round(middle, 4),
        "ratio_q1": round(low, 4),
        "ratio_q3": round(high, 4),
        "ratio_later_half": round(statistics.median(later), 4),
        "all_epochs_extra_s": round(statistics.median(sum(one.epochs) - sum(base.epochs) for one, base in pairs), 3),
        "process_cpu_extra_s": round(statistics.median(one.cpu - base.cpu for one, base in pairs), 3),
        "calls_ms": round(1000 * statistics.median(one.calls for one in trainings), 2),
        "calls_share": round(statistics.median(one.calls / sum(one.epochs) for one in trainings), 6),
        "epoch_s": round(statistics.median(value for one in trainings for value in one.epochs), 4),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)), help="of torch; default: all cores")
    parser.add_argument("--results-dir", type=Path, default=Path("results/bench"))
    parser.add_argument("--peers", default="off,sqlite,dead server,hanging server", help="of those above, `off` among them")
    parser.add_argument("settings", nargs="*", metavar="KEY=VALUE")
    args = parser.parse_args()
    if args.rounds < 2:
        parser.error("--rounds: at least 2, for quartiles")
    chosen = args.peers.split(",")
    if "off" not in chosen or not {*chosen} <= {*peers(0)}:
        parser.error(f"--peers: off, and of {', '.join(peers(0))}")
    common = [*JOB, f"train.epochs={args.epochs}", *args.settings]
    environment = {
        "processor": processor("cpu"),
        "cores": len(os.sched_getaffinity(0)),
        "threads": args.threads,
        "torch": metadata.version("torch"),
        "mlflow": metadata.version("mlflow"),
        "load_at_start": round(os.getloadavg()[0], 2),
        "date": date.today().isoformat(),
    }
    print(f"{' '.join(common)}, {environment}, n={args.rounds} rounds")
    with socket.create_server(("127.0.0.1", 0), backlog=128) as hanging:
        table = {name: own for name, own in peers(hanging.getsockname()[1]).items() if name in chosen}
        trainings = measure(table, common, args.rounds, args.threads)
    rows = []
    for name, own in trainings.items():
        row = {"peer": name, **compare(own, trainings["off"]), "n": args.rounds, "epochs": args.epochs}
        rows.append(row | {"settings": " ".join(common)} | environment)
        print(
            f"{name:<15} {row['ratio_median']:.4f} x off  (quartiles {row['ratio_q1']:.4f} to {row['ratio_q3']:.4f}, "
            f"n={args.rounds})  later half {row['ratio_later_half']:.4f}  all epochs {row['all_epochs_extra_s']:+.2f} s  "
            f"CPU of the process {row['process_cpu_extra_s']:+.2f} s  calls {row['calls_ms']:.1f} ms, {row['calls_share']:.4%}"
        )
    words = (environment["processor"], f"{args.threads}threads", f"torch{environment['torch']}", environment["date"])
    text = "-".join(map(str, words)).lower()
    path = args.results_dir / f"tracking-{''.join(char if char.isalnum() or char in '-.' else '_' for char in text)}.csv"
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "w", newline="", encoding="utf-8") as handle:
        writer = csv.DictWriter(handle, fieldnames=list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    print(f"written: {path}")


if __name__ == "__main__":
    main()
