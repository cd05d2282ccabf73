"""What tracking costs in the step loop: the same training with MLflow on, off, and with a server that is down or hangs.

    python scripts/bench_tracking.py [--rounds 5] [--epochs 8] [--threads N] [KEY=VALUE ...]

Peers, each a fresh process of `qexp.train` with the same settings (resnet20 on mnist5k, a copy of 4, 8 and 16 bits; further
KEY=VALUE go to all of them), in another order every round:
    off               tracking.enabled=false: the journal alone
    sqlite            the default store, made anew
    dead server       a port where nobody listens
    hanging server    a port that takes connections and never answers

Compared are the `seconds` of train.jsonl, which cover the training steps of an epoch and nothing else; evaluation, checkpoints
and the journal are outside. Per round, a peer's median epoch is divided by the median epoch of `off`; printed are the median of
those ratios and their quartiles. The import of mlflow falls into the first epoch of a process, once; what that epoch takes longer
is stated beside, in seconds. The CSV in the results folder names the environment.
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
from datetime import date
from importlib import metadata
from pathlib import Path

from bench_quantize import processor

JOB = ("model=resnet20", "data=mnist5k", "bits=4,8,16", "device=cpu", "seed=0")


def peers(hanging_port: int) -> dict[str, list[str]]:
    """Name -> the settings that tell it apart; `off` first."""
    return {
        "off": ["tracking.enabled=false"],
        "sqlite": [],
        "dead server": ["tracking.uri=http://127.0.0.1:9", "tracking.timeout_s=1"],
        "hanging server": [f"tracking.uri=http://127.0.0.1:{hanging_port}", "tracking.timeout_s=1"],
    }


def epoch_seconds(settings: list[str], threads: int) -> list[float]:
    """Seconds of the step loop in every epoch of one training, in a folder of its own."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "qexp.train", *settings, "-m"]
        environment = os.environ | {"OMP_NUM_THREADS": str(threads)}
        done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
        if done.returncode:
            sys.exit(f"{' '.join(command)}\n{done.stdout}{done.stderr}")
        (log,) = Path(folder).glob("runs/trainings/*/train.jsonl")
        return [json.loads(line)["seconds"] for line in log.read_text(encoding="utf-8").splitlines()]


def measure(table: dict[str, list[str]], common: list[str], rounds: int, threads: int) -> dict[str, list[list[float]]]:
    """Peer -> epoch seconds of every round; the order is turned by one from round to round."""
    names = list(table)
    found: dict[str, list[list[float]]] = {name: [] for name in names}
    for number in range(rounds):
        turn = number % len(names)
        for name in names[turn:] + names[:turn]:
            found[name].append(epoch_seconds([*common, *table[name]], threads))
            print(f"round {number + 1}/{rounds}  {name:<15} {statistics.median(found[name][-1]):.3f} s per epoch", flush=True)
    return found


def compare(times: list[list[float]], off: list[list[float]]) -> dict[str, float]:
    """Ratios of median epochs to those of `off` in the same round, and what the first epoch took beyond its share, s."""
    ratios = [statistics.median(one) / statistics.median(base) for one, base in zip(times, off, strict=True)]
    low, middle, high = statistics.quantiles(ratios, n=4, method="inclusive")
    extra = [one[0] - base[0] for one, base in zip(times, off, strict=True)]
    return {
        "ratio_median": round(middle, 4),
        "ratio_q1": round(low, 4),
        "ratio_q3": round(high, 4),
        "first_epoch_extra_s": round(statistics.median(extra), 3),
        "epoch_s": round(statistics.median(value for one in times for value in one), 4),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)), help="of torch; default: all cores")
    parser.add_argument("--results-dir", type=Path, default=Path("results/bench"))
    parser.add_argument("settings", nargs="*", metavar="KEY=VALUE")
    args = parser.parse_args()
    if args.rounds < 2:
        parser.error("--rounds: at least 2, for quartiles")
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
        found = measure(peers(hanging.getsockname()[1]), common, args.rounds, args.threads)
    rows = []
    for name, times in found.items():
        row = {"peer": name, **compare(times, found["off"]), "n": args.rounds, "epochs": args.epochs}
        rows.append(row | {"settings": " ".join(common)} | environment)
        print(
            f"{name:<15} {row['ratio_median']:.4f} x off  (quartiles {row['ratio_q1']:.4f} to {row['ratio_q3']:.4f}, "
            f"n={args.rounds})  first epoch {row['first_epoch_extra_s']:+.2f} s"
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
