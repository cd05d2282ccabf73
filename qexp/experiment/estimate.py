"""What a sweep would cost, from a few measured steps, and the memory that it takes."""

from __future__ import annotations

import time
from collections.abc import Sequence

import torch

from qexp.base.console import print_main, print_result
from qexp.base.progress import track
from qexp.base.text import counted
from qexp.experiment.job import Prepared
from qexp.experiment.memory import evaluation_bytes
from qexp.experiment.messages import float_starts, is_stored
from qexp.experiment.qat_training import QatTraining


def estimate(prepared: Sequence[Prepared]) -> None:
    """Print time and disk that the sweep would take, from a few measured steps."""
    total_s, total_mib, starts, estimates = 0.0, 0.0, float_starts(prepared), []
    for one in track([*starts, *prepared], "estimate"):
        seconds, mib = cost_of(one)
        total_s, total_mib = total_s + seconds, total_mib + mib
        what = " for the float training to begin from" if one in starts else ""
        memory = evaluation_bytes(one.config, one.network(), one.bundle) / 2**30
        estimates.append({"training": one.training, "seconds": seconds, "mib": mib, "memory_gib": memory})
        here = f"about {seconds / 60:.1f} min and {mib:.1f} MiB here{what}"
        print_main(f"{one.training}: {here}; an evaluation takes about {memory:.1f} GiB of memory")
    begun = f" and {counted(len(starts), 'float training')} to begin from" if starts else ""
    whole = f"about {total_s / 60:.1f} min and {total_mib:.1f} MiB"
    line = f"in all: {counted(len(prepared), 'training')}{begun}, {whole}; nothing was started (plan_only)"
    print_result(line, started=False, seconds=total_s, mib=total_mib, trainings=estimates)


def cost_of(one: Prepared) -> tuple[float, float]:
    """Seconds and MiB of one merged job: measured seconds per image, times images and epochs."""
    config, bundle = one.config, one.bundle
    model = QatTraining(one, torch.device("cpu")).blank() if config.qat.is_on else one.network()
    channels, height, width = bundle.image_shape
    images = torch.randn(min(32, config.recipe.batch_size), channels, height, width)

    def step(train: bool) -> float:
        model.train(train)
        begin = time.perf_counter()
        with torch.set_grad_enabled(train):
            output = model(images)
            main = output if isinstance(output, torch.Tensor) else output[0]
            if train:
                main.sum().backward()
        return (time.perf_counter() - begin) / len(images)

    eval_s = min(step(False) for _ in range(4))
    num_eval = config.evaluate.num_images or bundle.split_sizes[config.evaluate.split]
    state_mib = sum(tensor.numel() * tensor.element_size() for tensor in model.state_dict().values()) / 2**20
    if config.checkpoint is not None:
        return eval_s * num_eval * len(one.variants), 0.0  # nothing trains: a step back would take memory that no evaluation does
    train_s = min(step(True) for _ in range(4))
    epochs = config.recipe.epochs
    kept = sum(config.trajectory.keeps(epoch, epochs) for epoch in range(1, epochs + 1))
    num_train = 0 if is_stored(one) else bundle.split_sizes["train"]
    return epochs * (train_s * num_train + eval_s * num_eval * len(one.variants)), state_mib * (kept + 4)
