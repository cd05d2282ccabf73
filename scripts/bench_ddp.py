"""Images per second of training and of evaluating, 2 ranks against 1 process; every way in one run, alternating.

    python scripts/bench_ddp.py [device=cpu] [model=resnet20] [batch_size=128] [rounds=5] [images=2048] [out=results/bench]

    1 process, 2 threads   qexp's `fit` and `evaluate`, as without torchrun on two cores
    1 process, 1 thread    the same on one core
    2 ranks, 1 thread      torchrun, gloo, half of every batch of `batch_size` images on each rank

device=cuda compares two GPUs (NCCL) with one; give it more images (100000) there. Each measurement is a fresh process or pair:
after a warm-up it trains on `images` images and then evaluates twice as many. Each round takes every way once, the first one in
turn, and its ratio is to the first line of the same round. Printed: the median ratio, its quartiles and the median images per
second. The CSV names the environment.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import time
from datetime import date
from pathlib import Path

import torch
from bench_common import WARM_STEPS, Stopwatch, Work, like_cifar, options, qexp_fit, quartiles, write_csv
from bench_quantize import processor, slug

from qexp.base import dist
from qexp.config.train import EvaluateSettings, TrainSettings
from qexp.data.load import load_data
from qexp.engine.evaluate import evaluate
from qexp.engine.seed import seed_everything

DEFAULTS = {
    "device": "cpu",
    "model": "resnet20",
    "batch_size": "128",
    "rounds": "5",
    "images": "2048",
    "out": "results/bench",
}
WAYS = {  # name -> ranks, threads of each; the first is the baseline
    "cpu": {"1 process, 2 threads": (1, 2), "1 process, 1 thread": (1, 1), "2 ranks, 1 thread": (2, 1)},
    "cuda": {"1 GPU": (1, 1), "2 GPUs": (2, 1)},
}
RESULT = "result: "
LIMIT_S = 600  # of one measurement


def measure_here(chosen: dict[str, str]) -> tuple[float, float]:
    """Images per second of training and of evaluating, over all ranks."""
    images, batch_size = int(chosen["images"]), int(chosen["batch_size"])
    seed_everything(0)
    device = torch.device("cuda", dist.local_rank()) if chosen["device"] == "cuda" else torch.device("cpu")
    steps = images // batch_size + WARM_STEPS
    bundle = load_data(like_cifar(num_train=steps * batch_size, num_test=2 * images))
    settings = TrainSettings(epochs=1, lr=0.05, batch_size=batch_size, weight_decay=5e-4)
    work = Work(bundle, chosen["model"], settings, steps, device)
    model, watch = work.build(), Stopwatch(work)
    qexp_fit(model, work, watch)
    model.eval()

    def scored(num_images: int) -> float:
        batches = bundle.eval_batches(
            "test",
            batch_size=EvaluateSettings().batch_size,
            device=device,
            num_images=num_images,
            rank=dist.rank(),
            world_size=dist.world_size(),
        )
        dist.barrier()
        began = time.perf_counter()
        result = evaluate({"fp32": model}, batches, class_count=bundle.num_classes)["fp32"]
        assert result.metrics.n == num_images, "some images were not evaluated"
        return num_images / (time.perf_counter() - began)

    scored(400)
    return watch.images / watch.seconds, scored(2 * images)


def worker(chosen: dict[str, str]) -> None:
    """One process of one measurement; rank 0 prints what came out."""
    if dist.launched():
        dist.init_from_env(chosen["device"])
    speeds = measure_here(chosen)
    if dist.rank() == 0:
        print(RESULT + json.dumps(speeds), flush=True)
    if dist.is_initialized():
        torch.distributed.destroy_process_group()


def start(ranks: int, threads: int, chosen: dict[str, str]) -> tuple[float, float]:
    """One measurement in processes of its own."""
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={ranks}"] if ranks > 1 else []
    command = [sys.executable, *launcher, __file__, "worker", *(f"{key}={value}" for key, value in chosen.items())]
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=LIMIT_S, check=False)
    lines = [line for line in done.stdout.splitlines() if line.startswith(RESULT)]
    if done.returncode != 0 or len(lines) != 1:
        raise SystemExit(f"{' '.join(command)} failed ({done.returncode}):\n{done.stdout}{done.stderr}")
    train, score = json.loads(lines[0].removeprefix(RESULT))
    return train, score


def main() -> None:
    if sys.argv[1:2] == ["worker"]:
        del sys.argv[1]
        worker(options(DEFAULTS))
        return
    chosen = options(DEFAULTS)
    if chosen["device"] == "cuda" and torch.cuda.device_count() < 2:
        raise SystemExit(f"device=cuda needs two GPUs; torch sees {torch.cuda.device_count()}")
    ways, rounds, load = WAYS[chosen["device"]], int(chosen["rounds"]), os.getloadavg()[0]
    environment = {
        "device": chosen["device"],
        "processor": processor(chosen["device"]),
        "cores": os.cpu_count(),
        "torch": torch.__version__,
    }
    print(f"{chosen['model']}, fp32, batch {chosen['batch_size']}, {environment}, load {load:.1f}, n={rounds} rounds")
    speeds: dict[str, list[tuple[float, float]]] = {name: [] for name in ways}
    names = list(ways)
    for number in range(rounds):
        first = number % len(names)
        for name in names[first:] + names[:first]:
            speeds[name].append(start(*ways[name], chosen))
    rows: list[dict[str, object]] = []
    for name in ways:
        row: dict[str, object] = {"way": name, "baseline": names[0]}
        for what, index in (("train", 0), ("evaluate", 1)):
            ratios = [one[index] / base[index] for one, base in zip(speeds[name], speeds[names[0]], strict=True)]
            low, middle, high = quartiles(ratios)
            speed = statistics.median(one[index] for one in speeds[name])
            print(f"{what:<9} {name:<21} {middle:6.3f} x (quartiles {low:.3f} to {high:.3f})  {speed:9.1f} images/s")
            row |= {
                f"{what}_ratio_median": round(middle, 4),
                f"{what}_ratio_q1": round(low, 4),
                f"{what}_ratio_q3": round(high, 4),
                f"{what}_images_per_s_median": round(speed, 1),
            }
        rows.append(
            {
                **row,
                "n": rounds,
                "ranks": ways[name][0],
                "threads": ways[name][1],
                "images": int(chosen["images"]),
                "model": chosen["model"],
                "batch_size": int(chosen["batch_size"]),
                **environment,
                "load_at_start": round(load, 2),
                "date": date.today().isoformat(),
            }
        )
    write_csv(Path(chosen["out"]) / f"ddp-{chosen['model']}-{slug(rows)}.csv", rows)


if __name__ == "__main__":
    main()
