import warnings

import pytest
import torch
from torch import nn
from torch.optim.lr_scheduler import ConstantLR, CosineAnnealingLR, LinearLR, MultiStepLR, SequentialLR

from qexp.config.train import TrainSettings
from qexp.engine.optim import lr_at, make_optimizer, set_lr

STEPS = 7


def torchs(settings):
    """The same schedule by torch's own schedulers."""
    warmup, total = settings.warmup_epochs * STEPS, settings.epochs * STEPS
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=settings.lr)
    after = {
        "cosine": lambda: CosineAnnealingLR(optimizer, T_max=total - warmup),
        "step": lambda: MultiStepLR(optimizer, [m * STEPS - warmup for m in settings.milestones], settings.gamma),
        "constant": lambda: ConstantLR(optimizer, factor=1),
    }[settings.schedule]()
    scheduler = after
    if warmup:
        rise = LinearLR(optimizer, start_factor=1 / warmup, total_iters=warmup - 1)
        scheduler = SequentialLR(optimizer, [rise, after], milestones=[warmup])
    rates = []
    for _ in range(total):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # SequentialLR passes itself an epoch, which it deprecates
            scheduler.step()
    return rates


@pytest.mark.parametrize("warmup", [0, 2])
@pytest.mark.parametrize("schedule", ["cosine", "step", "constant"])
def test_rates_are_those_of_torchs_schedulers(schedule, warmup):
    settings = TrainSettings(
        epochs=9, lr=0.3, batch_size=1, schedule=schedule, warmup_epochs=warmup, milestones=[4, 6], gamma=0.2
    )
    rates = [lr_at(step, STEPS, settings) for step in range(9 * STEPS)]
    assert rates == pytest.approx(torchs(settings), rel=1e-6)
    assert max(rates) == pytest.approx(0.3)


def test_optimizer_takes_what_is_trainable():
    net = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    net[0].bias.requires_grad_(False)
    optimizer = make_optimizer(net, TrainSettings(epochs=1, lr=0.3, batch_size=1, momentum=0.8, weight_decay=0.02))
    (group,) = optimizer.param_groups
    assert len(group["params"]) == 3
    chosen = {key: group[key] for key in ("lr", "momentum", "nesterov", "weight_decay", "fused")}
    assert chosen == {"lr": 0.3, "momentum": 0.8, "nesterov": True, "weight_decay": 0.02, "fused": True}
    set_lr(optimizer, 0.5)
    assert group["lr"] == 0.5


def test_parameters_with_a_decay_of_their_own_form_groups_in_the_order_of_the_network():
    net = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2), nn.Linear(2, 2))
    net[2].weight = net[0].weight  # two names, either will do
    net[2].bias.requires_grad_(False)
    settings = TrainSettings(epochs=1, lr=0.3, batch_size=1, weight_decay=0.02)
    optimizer = make_optimizer(net, settings, {"1.weight": 0.0, "2.weight": 0.0, "1.bias": 0.5})
    names = {id(parameter): name for name, parameter in net.named_parameters()}
    groups = [
        (group["weight_decay"], [names[id(parameter)] for parameter in group["params"]]) for group in optimizer.param_groups
    ]
    assert groups == [(0.0, ["0.weight", "1.weight"]), (0.02, ["0.bias"]), (0.5, ["1.bias"])]
    assert {group["fused"] for group in optimizer.param_groups} == {True}
    set_lr(optimizer, 0.5)
    assert {group["lr"] for group in optimizer.param_groups} == {0.5}


def test_a_decay_for_a_parameter_that_does_not_exist_is_our_own_fault():
    settings = TrainSettings(epochs=1, lr=0.3, batch_size=1)
    with pytest.raises(AssertionError, match=r"unknown parameters \['scale'\]"):
        make_optimizer(nn.Linear(2, 2), settings, {"bias": 0.0, "scale": 0.0})
