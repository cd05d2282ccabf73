"""Images per second of qexp's `fit`, over a bare hand-written loop and beside `lightning`; every peer in one run, alternating.

    python scripts/bench_train.py [device=auto] [precision=fp32] [model=resnet20] [batch_size=128] [rounds=11] [seconds=5]
                                  [threads=N] [compile=no] [clock=wall] [out=results/bench]

`device` is cpu, cuda or auto (cpu, and cuda where there is one); `precision` is fp32, bf16 or both (`fp32,bf16`).
All peers train the same network from the same weights on the same batches of `DataBundle.train_batches` (images like CIFAR's,
decoded before, cropped and mirrored on the device), with fused SGD and the same learning rates:
    bare loop   forward, backward, step, and nothing else
    qexp        `qexp.engine.fit.fit`: it also counts loss and Prec@1, looks for divergence and keeps what a resume needs
    lightning   `L.Trainer(barebones=True)`: no logger, no checkpoints, no bar, no sanity check; automatic optimization
With `compile=yes` qexp runs with `train.compile=true` and lightning with a network of `torch.compile`, too.

First a few steps by each must give the same weights. Then each round runs every peer once, the first one in turn, for about
`seconds`; the clock starts two steps into the training and stops after the last epoch's end. A ratio is to the same round's bare
loop, which is eager. `clock=cpu` counts the time of the process's processors, for a machine that others use. Printed: the median
ratio, its quartiles and the median images per second. The CSV names the environment.
"""

from __future__ import annotations

import gc
import importlib.util
import logging
import os
import statistics
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import replace
from datetime import date
from pathlib import Path

import torch
from bench_common import CLOCKS, STEPS_PER_EPOCH, WARM_STEPS, Stopwatch, Work, like_cifar, options, qexp_fit, quartiles, write_csv
from bench_quantize import processor, slug
from torch import Tensor, nn
from torch.nn import functional as F

from qexp.base.torchvision_compat import torchvision
from qexp.base.types import Batch
from qexp.config.train import TrainSettings
from qexp.data.load import load_data
from qexp.engine.seed import seed_everything

# Norm of the difference over norm of the update after a few steps: 0 on CPUs, rounding on GPUs; other images make it 0.4.
SAME_WITHIN = {"fp32": 0.05, "bf16": 0.2}
DEFAULTS = {
    "device": "auto",
    "precision": "fp32",
    "model": "resnet20",
    "batch_size": "128",
    "rounds": "11",
    "seconds": "5",
    "threads": str(torch.get_num_threads()),
    "compile": "no",
    "clock": "wall",
    "out": "results/bench",
}


Peer = Callable[[nn.Module, Work, Stopwatch], None]
Clock = Callable[[], float]


def fused_sgd(model: nn.Module, settings: TrainSettings) -> torch.optim.Optimizer:
    return torch.optim.SGD(
        model.parameters(),
        lr=settings.lr,
        momentum=settings.momentum,
        nesterov=settings.nesterov,
        weight_decay=settings.weight_decay,
        fused=True,
    )


def bare_loop(model: nn.Module, work: Work, watch: Stopwatch) -> None:
    model.train()
    optimizer = fused_sgd(model, work.settings)
    rates = iter([work.rate(step) for step in range(work.settings.epochs * work.steps)])
    bf16 = work.settings.precision == "bf16"
    scope = torch.autocast(work.device.type, dtype=torch.bfloat16) if bf16 else nullcontext()
    for epoch in range(1, work.settings.epochs + 1):
        for batch in watch.batches(epoch):
            optimizer.param_groups[0]["lr"] = next(rates)
            optimizer.zero_grad()
            with scope:
                loss = F.cross_entropy(model(batch.images).float(), batch.labels)
            loss.backward()
            optimizer.step()
    watch.stop()


def qexp_compiled(model: nn.Module, work: Work, watch: Stopwatch) -> None:
    qexp_fit(model, replace(work, settings=replace(work.settings, compile=True)), watch)


def lightning_peer(*, compiled: bool = False) -> Peer | None:
    """`lightning`'s turn, or None where it is not installed."""
    if importlib.util.find_spec("lightning") is None:
        return None
    torchvision()  # which lightning imports, and so fails where that alone would
    import lightning as L  # noqa: N812

    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module="lightning")

    class Module(L.LightningModule):
        def __init__(self, model: nn.Module, work: Work, watch: Stopwatch) -> None:
            super().__init__()
            self.model, self.work, self.watch = torch.compile(model) if compiled else model, work, watch

        def training_step(self, batch: Batch, _: int) -> Tensor:
            return F.cross_entropy(self.model(batch.images).float(), batch.labels)

        def configure_optimizers(self) -> dict[str, object]:
            optimizer = fused_sgd(self.model, self.work.settings)
            rates = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: self.work.rate(step) / self.work.settings.lr)
            return {"optimizer": optimizer, "lr_scheduler": {"scheduler": rates, "interval": "step"}}

        def on_train_epoch_end(self) -> None:
            if self.current_epoch + 1 == self.work.settings.epochs:
                self.watch.stop()

    class Batches:
        """The trainer's current epoch; with a length lightning does not ask for a batch before its turn."""

        def __init__(self, trainer: L.Trainer, watch: Stopwatch) -> None:
            self.trainer, self.watch = trainer, watch

        def __len__(self) -> int:
            return self.watch.work.steps

        def __iter__(self) -> Iterator[Batch]:
            return self.watch.batches(self.trainer.current_epoch + 1)

    def train(model: nn.Module, work: Work, watch: Stopwatch) -> None:
        trainer = L.Trainer(
            accelerator="gpu" if work.device.type == "cuda" else "cpu",
            devices=1,
            max_epochs=work.settings.epochs,
            precision="bf16-mixed" if work.settings.precision == "bf16" else "32-true",
            barebones=True,
        )
        trainer.fit(Module(model, work, watch), Batches(trainer, watch))

    return train


def run(peer: Peer, work: Work, clock: Clock = time.perf_counter) -> tuple[float, nn.Module]:
    """Images per second, and the network as trained."""
    model, watch = work.build(), Stopwatch(work, clock)
    gc.collect()
    peer(model, work, watch)
    return watch.images / watch.seconds, model


def check_same_work(peers: dict[str, Peer], work: Work) -> None:
    """Refuse to compare peers that do not train alike; warms all of them up."""
    few = work.cut(6)
    before = flat(few.build())
    after = {name: flat(run(peer, few)[1]) for name, peer in peers.items()}
    bare = after["bare loop"]
    for name, weights in after.items():
        off = float((weights - bare).norm() / (bare - before).norm())
        if not off <= SAME_WITHIN[work.settings.precision]:
            raise SystemExit(f"{name} trains otherwise than the bare loop: its update differs by {off:.3g} of it")


def flat(model: nn.Module) -> Tensor:
    return torch.cat([parameter.detach().double().flatten().cpu() for parameter in model.parameters()])


def measure(peers: dict[str, Peer], work: Work, rounds: int, clock: Clock) -> dict[str, list[float]]:
    """Images per second of every peer in every round."""
    rates: dict[str, list[float]] = {name: [] for name in peers}
    names = list(peers)
    for number in range(rounds):
        first = number % len(names)
        for name in names[first:] + names[:first]:
            rates[name].append(run(peers[name], work, clock)[0])
    return rates


def devices(name: str) -> list[str]:
    """The devices that `device=NAME` stands for."""
    if name == "cuda" and not torch.cuda.is_available():
        raise SystemExit("device=cuda: torch sees no GPU here")
    return ["cpu", *(["cuda"] if torch.cuda.is_available() else [])] if name == "auto" else [name]


def compare(peers: dict[str, Peer], work: Work, rounds: int, seconds: float, clock: str) -> list[dict[str, object]]:
    """Measure and print one device and precision; one CSV row per peer and baseline."""
    precision, batch_size, device = work.settings.precision, work.settings.batch_size, work.device.type
    load = os.getloadavg()[0]
    check_same_work(peers, work)
    probe = work.cut(10)
    work = work.cut(max(WARM_STEPS + 2, round(seconds * run(bare_loop, probe)[0] / batch_size) + WARM_STEPS))
    environment = {
        "clock": clock,
        "device": device,
        "processor": processor(device),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
    }
    timed = work.settings.epochs * work.steps - WARM_STEPS
    print(f"{work.model}, {precision}, batch {batch_size}, {timed} steps, {environment}, load {load:.1f}, n={rounds} rounds")
    rates = measure(peers, work, rounds, CLOCKS[clock])
    ours = (("qexp", "lightning"), ("qexp compiled", "lightning compiled"))
    pairs = [(name, "bare loop") for name in peers] + [pair for pair in ours if {*pair} <= peers.keys()]
    rows: list[dict[str, object]] = []
    for name, base in pairs:
        low, middle, high = quartiles([one / other for one, other in zip(rates[name], rates[base], strict=True)])
        speed = statistics.median(rates[name])
        print(f"{name:<18} {middle:6.3f} x {base:<18} (quartiles {low:.3f} to {high:.3f})  {speed:9.1f} images/s")
        rows.append(
            {
                "peer": name,
                "baseline": base,
                "ratio_median": round(middle, 4),
                "ratio_q1": round(low, 4),
                "ratio_q3": round(high, 4),
                "images_per_s_median": round(speed, 1),
                "n": rounds,
                "timed_steps": timed,
                "model": work.model,
                "precision": precision,
                "batch_size": batch_size,
                **environment,
                "load_at_start": round(load, 2),
                "date": date.today().isoformat(),
            }
        )
    return rows


def main() -> None:
    chosen = options(DEFAULTS)
    torch.set_num_threads(int(chosen["threads"]))
    seed_everything(0)
    batch_size = int(chosen["batch_size"])
    peers: dict[str, Peer] = {"bare loop": bare_loop, "qexp": qexp_fit}
    if chosen["compile"] == "yes":
        peers["qexp compiled"] = qexp_compiled
    if (train := lightning_peer()) is not None:
        peers["lightning"] = train
        if chosen["compile"] == "yes" and (other := lightning_peer(compiled=True)) is not None:
            peers["lightning compiled"] = other
    else:
        print("lightning is not installed (pip install -c constraints.txt -e '.[bench]'); it is left out")
    bundle = load_data(like_cifar(num_train=STEPS_PER_EPOCH * batch_size))
    rows = []
    for device in devices(chosen["device"]):
        for precision in chosen["precision"].split(","):
            settings = TrainSettings(epochs=1, lr=0.05, batch_size=batch_size, weight_decay=5e-4, precision=precision)
            work = Work(bundle, chosen["model"], settings, STEPS_PER_EPOCH, torch.device(device))
            rows += compare(peers, work, int(chosen["rounds"]), float(chosen["seconds"]), chosen["clock"])
    write_csv(Path(chosen["out"]) / f"train-{chosen['model']}-{slug(rows)}.csv", rows)


if __name__ == "__main__":
    main()
