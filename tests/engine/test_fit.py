import math
import random
import signal
from typing import NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from qexp.base import preemption
from qexp.base.errors import UserError
from qexp.base.types import Batch
from qexp.engine.fit import fit
from qexp.engine.trainer import DivergenceError

CPU = torch.device("cpu")


def test_it_learns(train):
    _, ends = train(epochs=6)
    assert [end.epoch for end in ends] == [1, 2, 3, 4, 5, 6]
    assert ends[-1].train_loss < 0.3 * ends[0].train_loss
    assert ends[-1].train_prec1 > 95
    assert ends[-1].lr < ends[0].lr


def test_the_same_seed_gives_the_same_weights_and_another_order_does_not(train, problem):
    first, _ = train()
    assert problem.equal(first, train()[0])
    assert not problem.equal(first, train(batches=lambda epoch, first: problem.train_batches(epoch + 1))[0])


@pytest.mark.parametrize(
    "changes",
    [
        {}, {"channels_last": True}, {"precision": "bf16"}, {"schedule": "step", "milestones": [3]},
        {"optimizer": "adamw", "lr": 0.01}, {"ema_decay": 0.9},
    ],
)  # fmt: skip
def test_a_resume_is_bit_exact(train, problem, changes):
    whole, uninterrupted = train(problem.network(dropout=0.5), **changes)
    saved = []
    train(problem.network(dropout=0.5), until=2, on_epoch_end=lambda end: saved.append(problem.stored(end.state)), **changes)
    assert saved[-1].epoch == 2
    resumed, ends = train(problem.network(dropout=0.5, seed=9), start=saved[-1], **changes)
    assert [end.epoch for end in ends] == [3, 4]
    assert problem.equal(whole, resumed)
    for name, value in uninterrupted[-1].model_state.items():
        assert torch.equal(value, ends[-1].model_state[name]), name


@pytest.mark.parametrize("changes", [{}, {"accumulate": 3}, {"precision": "bf16"}, {"ema_decay": 0.9, "optimizer": "adamw"}])
def test_a_resume_within_an_epoch_is_bit_exact(train, problem, changes):
    states = []

    def keep(state, end):
        if end is None:
            states.append(problem.stored(state))

    whole, ends = train(problem.network(dropout=0.5), checkpoint_every_steps=3, on_checkpoint=keep, **changes)
    assert [(state.epoch, state.step, state.images) for state in states] == [(epoch, 3, 96) for epoch in range(4)]
    assert problem.equal(whole, train(problem.network(dropout=0.5), **changes)[0])
    for state in states[1:3]:
        resumed, rest = train(problem.network(dropout=0.5, seed=9), start=state, **changes)
        assert problem.equal(whole, resumed)
        curves = [[(end.epoch, end.train_loss, end.train_prec1, end.lr) for end in some] for some in (ends[state.epoch :], rest)]
        assert curves[0] == curves[1]


@pytest.mark.parametrize("signum", preemption.SIGNALS)
@pytest.mark.parametrize("step", [1, 3, 4])
def test_a_signal_saves_at_the_next_step_and_the_training_goes_on_exactly(train, problem, signum, step):
    whole, _ = train(problem.network(dropout=0.5))
    states, sent = [], []

    def batches(epoch, first):
        for number, batch in enumerate(problem.train_batches(epoch, first), first + 1):
            if (epoch, number) == (2, step) and not sent:
                sent.append(signum)
                signal.raise_signal(signum)
            yield batch

    def keep(state, end):
        states.append(problem.stored(state))

    with preemption.listening(), pytest.raises(preemption.Preempted) as raised:
        train(problem.network(dropout=0.5), batches=batches, on_checkpoint=keep)
    assert raised.value.exit_code == 128 + signum
    assert (states[-1].epoch, states[-1].step) == ((1, step) if step < 4 else (2, 0))
    assert problem.equal(whole, train(problem.network(dropout=0.5, seed=9), start=states[-1])[0])


def test_a_second_interrupt_does_not_wait(train, problem):
    def batches(epoch, first):
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)
        yield from problem.train_batches(epoch, first)

    saved = []
    with preemption.listening(), pytest.raises(preemption.Preempted):
        train(batches=batches, on_checkpoint=lambda state, end: saved.append(state))
    assert saved == []


def test_what_the_callback_draws_does_not_change_the_training(train, problem):
    def disturb(end):
        torch.rand(3), random.random(), np.random.rand()
        model.eval()

    model = problem.network(dropout=0.5)
    train(model, on_epoch_end=disturb)
    assert problem.equal(model, train(problem.network(dropout=0.5))[0])


def test_a_finished_training_is_left_alone(train, problem):
    model, ends = train()
    again, none = train(problem.network(seed=5), start=problem.stored(ends[-1].state))
    assert none == []
    assert problem.equal(model, again)


@pytest.mark.parametrize("accumulate", [2, 5])
def test_accumulated_gradients_are_those_of_the_whole_batch(train, problem, accumulate):
    whole, ends = train(problem.network(norm=False))
    parts, others = train(problem.network(norm=False), accumulate=accumulate)
    for name, value in whole.state_dict().items():
        torch.testing.assert_close(parts.state_dict()[name], value, rtol=1e-4, atol=1e-5)
    assert others[-1].train_loss == pytest.approx(ends[-1].train_loss, rel=1e-4)


def test_one_step_is_torchs_own(train, problem):
    model = problem.network()
    oracle = problem.network()
    batch = next(iter(problem.train_batches(1)))
    changes = {"schedule": "constant", "weight_decay": 0.01, "label_smoothing": 0.1, "nesterov": False}
    optimizer = torch.optim.SGD(oracle.parameters(), lr=0.1, momentum=0.9, weight_decay=0.01)
    nn.functional.cross_entropy(oracle(batch.images), batch.labels, label_smoothing=0.1).backward()
    optimizer.step()
    options = {"steps_per_epoch": 1, "device": CPU, "progress": False}
    fit(model, lambda epoch, first: [batch], problem.settings(epochs=1, **changes), **options)
    for name, value in oracle.state_dict().items():
        torch.testing.assert_close(model.state_dict()[name], value)


class Outputs(NamedTuple):
    logits: Tensor
    aux: Tensor | None


class WithAux(nn.Module):
    def __init__(self, problem):
        super().__init__()
        self.main, self.side = problem.network(), problem.network(seed=1)

    def forward(self, x):
        return Outputs(self.main(x), self.side(x)) if self.training else self.main(x)


def test_auxiliary_heads_add_three_tenths_of_their_loss(train, problem):
    model, ends = train(WithAux(problem), epochs=1)
    assert not torch.equal(model.side[-1].weight, problem.network(seed=1)[-1].weight)
    alone, side = train(epochs=1)[1], train(problem.network(seed=1), epochs=1)[1]
    # The main head alone takes the same steps; the side head takes steps of 0.3 the size.
    assert ends[0].train_prec1 == alone[0].train_prec1
    assert alone[0].train_loss < ends[0].train_loss < alone[0].train_loss + 0.6 * side[0].train_loss


def test_divergence_names_epoch_and_step(train, problem):
    def batches(epoch, first):
        for step, batch in enumerate(problem.train_batches(epoch)):
            poisoned = epoch == 2 and step == 1
            yield batch._replace(images=batch.images * math.inf) if poisoned else batch

    with pytest.raises(DivergenceError, match=r"epoch 2, step 2\b.*Lower train\.lr=0\.1"):
        train(batches=batches)


def test_fp16_needs_a_gpu(train):
    with pytest.raises(UserError, match="train.precision=O1: allowed is fp32 or bf16 on the CPU"):
        train(precision="O1")


def test_an_opt_level_says_what_it_maps_to(train, capsys):
    train(precision="O0", epochs=1)
    assert "train.precision=O0 (an apex opt level) maps to fp32" in capsys.readouterr().out


def test_a_line_per_epoch_where_there_is_no_terminal(problem, capsys):
    options = {"steps_per_epoch": problem.steps_per_epoch, "device": CPU}
    fit(problem.network(), problem.train_batches, problem.settings(epochs=2), **options)
    lines = capsys.readouterr().out.splitlines()
    assert [line.split("  ")[0] for line in lines] == ["epoch 1/2", "epoch 2/2"]


def test_a_missing_batch_is_our_own_fault(train, problem):
    with pytest.raises(AssertionError, match="epoch 1 had 3 batches, not 4"):
        train(batches=lambda epoch, first: list(problem.train_batches(epoch))[:3])


def test_an_empty_slice_leaves_no_trace(problem):
    """What rank 1 does when the last batch has no image for it, here without other ranks."""
    model = problem.network()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    nothing = torch.empty(0, dtype=torch.int64)
    batch = Batch(torch.empty(0, 1, 8, 8), nothing, nothing, 1)
    settings = problem.settings(epochs=1, weight_decay=0.0)
    fit(model, lambda epoch, first: [batch], settings, steps_per_epoch=1, device=CPU, progress=False)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*torch.jit.script_method.*:DeprecationWarning")
def test_a_compiled_training_keeps_bare_names(train, problem):
    model, ends = train(compile=True, epochs=1)
    assert list(ends[0].model_state) == list(problem.network().state_dict())
    assert ends[0].train_loss == pytest.approx(train(epochs=1)[1][0].train_loss, rel=1e-3)
