"""What the distributed tests run on each of two ranks, and once more in a single process: python two_ranks.py OUT_DIR."""

import sys
from pathlib import Path

import torch
from torch import nn

from qexp.base import dist
from qexp.base.control import ControlChannel
from qexp.base.types import Batch
from qexp.config.train import TrainSettings
from qexp.engine.evaluate import evaluate
from qexp.engine.fit import fit
from qexp.engine.hooks import NO_HOOKS, TrainHooks
from qexp.engine.seed import seed_everything

CPU = torch.device("cpu")
NUM_TRAIN, BATCH, NUM_TEST, EVAL_BATCH = 65, 16, 50, 8  # the last training batch holds one image: rank 1's slice is empty


def images(count: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, 4, (count,), generator=generator)
    pattern = torch.nn.functional.one_hot(labels, 4).float().view(-1, 1, 2, 2)
    return pattern.repeat(1, 1, 4, 4) + 0.3 * torch.randn(count, 1, 8, 8, generator=generator), labels


def train_batches(epoch: int, first: int = 0):
    """Uneven slices: rank 0 takes the first 11 of 16 images."""
    x, y = images(NUM_TRAIN, 0)
    for chosen in torch.randperm(NUM_TRAIN, generator=torch.Generator().manual_seed(epoch)).split(BATCH)[first:]:
        mine = chosen
        if dist.world_size() == 2:
            mine = chosen[:11] if dist.rank() == 0 else chosen[11:]
        yield Batch(x[mine], y[mine], mine, len(chosen))


def eval_batches():
    """Whole batches, dealt out in turn."""
    x, y = images(NUM_TEST, 1)
    for number, chosen in enumerate(torch.arange(NUM_TEST).split(EVAL_BATCH)):
        if number % dist.world_size() == dist.rank():
            yield Batch(x[chosen], y[chosen], chosen, len(chosen))


def network(norm: bool) -> nn.Module:
    torch.manual_seed(3)
    layers = [nn.Conv2d(1, 6, 3, padding=1), nn.BatchNorm2d(6) if norm else nn.Identity(), nn.ReLU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Linear(96, 4))


def quantized_like() -> nn.Module:
    from parametrized import scaled  # beside this file, which pytest imports from elsewhere

    return scaled(network(True))


def every_hook(model: nn.Module) -> TrainHooks:
    """With batch norm frozen, ranks whose slices differ compute what one process does."""

    @torch.no_grad()
    def clamp():
        for parameter in model.parameters():
            parameter.clamp_(-0.25, 0.25)

    decay = {name: 0.0 for name, _ in model.named_parameters() if "scale" in name} | {"1.bias": 0.1}
    teacher = nn.Sequential(nn.AdaptiveAvgPool2d(2), nn.Flatten())  # the pattern itself
    return TrainHooks(
        weight_decay=decay,
        on_epoch_start=lambda epoch: model.get_submodule("1").eval(),
        after_step=clamp,
        teacher=teacher,
        distill_weight=0.5,
        distill_temperature=2.0,
    )


CASES = {
    "plain": (lambda: network(False), 1, lambda model: NO_HOOKS),
    "accumulate": (lambda: network(False), 3, lambda model: NO_HOOKS),
    "norm": (lambda: network(True), 2, lambda model: NO_HOOKS),
    "hooks": (lambda: network(True), 1, every_hook),
    "parametrized": (quantized_like, 1, every_hook),
}


def settings(**changes) -> TrainSettings:
    return TrainSettings(**{"epochs": 2, "lr": 0.1, "batch_size": BATCH, **changes})


def run(out: Path) -> None:
    group = dist.init_from_env("cpu") if dist.launched() else None
    result = {}
    for name, (make, accumulate, hooks) in CASES.items():
        seed_everything(0)
        model, losses = make(), []
        fit(
            model,
            train_batches,
            settings(accumulate=accumulate),
            steps_per_epoch=5,
            device=CPU,
            on_epoch_end=lambda end, losses=losses: losses.append(end.train_loss),
            hooks=hooks(model),
            progress=False,
        )
        evaluation = evaluate({name: model.eval()}, eval_batches(), class_count=4, keep_logits=True)[name]
        plain = evaluate({name: make().eval()}, eval_batches(), class_count=4)[name]
        result[name] = {
            "state": dict(model.state_dict()),
            "losses": losses,
            "metrics": vars(evaluation.metrics),
            "untrained": {**vars(plain.metrics), "digest": plain.digest, "log_prob": plain.predictions.log_prob},
        }
    if group is not None:
        channel = ControlChannel(group.control, group.rank, group.world_size)
        if group.rank == 0:
            channel.send(0, "job")
        result["received"] = "job" if group.rank == 0 else channel.receive(0)
        result["agreed"] = channel.agree(0, ok=group.rank == 0, message="no disk")
        result["agreed_later"] = channel.agree(1, ok=True)
        dist.barrier()
    torch.save(result, out / f"{dist.world_size()}.{dist.rank()}.pt")


if __name__ == "__main__":
    run(Path(sys.argv[1]))
