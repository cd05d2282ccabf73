import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from qexp.engine.hooks import TrainHooks
from qexp.engine.loss import AUX_WEIGHT


def no_hooks(model, problem):
    return TrainHooks()


def own_decay(model, problem):
    return TrainHooks(weight_decay={"0.weight": 0.0, "6.bias": 0.3})


def clamped(model, problem):
    @torch.no_grad()
    def clamp():
        for parameter in model.parameters():
            parameter.clamp_(-0.125, 0.125)

    return TrainHooks(after_step=clamp)


def frozen_norm(model, problem):
    def freeze(epoch):
        model[1].train(epoch < 2)

    return TrainHooks(on_epoch_start=freeze)


def distilled(model, problem):
    return TrainHooks(teacher=problem.network(seed=7), distill_weight=0.6, distill_temperature=2.0)


HOOKS = [own_decay, clamped, frozen_norm, distilled]


@pytest.mark.parametrize("make", HOOKS)
def test_a_resume_is_bit_exact_with_each_hook(train, problem, make):
    states = []

    def run(seed=0, **options):
        model = problem.network(dropout=0.5, seed=seed)
        return train(model, hooks=make(model, problem), checkpoint_every_steps=3, **options)

    whole, ends = run(on_checkpoint=lambda state, end: states.append(problem.stored(state)))
    assert not problem.equal(whole, train(problem.network(dropout=0.5))[0])  # the hook does something
    assert [(state.epoch, state.step) for state in states[1:4]] == [(1, 0), (1, 3), (2, 0)]
    for state in states[1:4]:
        resumed, rest = run(seed=9, start=state)
        assert problem.equal(whole, resumed)
        curves = [[(end.epoch, end.train_loss, end.train_prec1, end.lr) for end in some] for some in (ends[state.epoch :], rest)]
        assert curves[0] == curves[1]


def test_a_decay_of_its_own_is_torchs(train, problem):
    oracle = problem.network()
    mine = [oracle[0].weight, oracle[6].bias]
    others = [parameter for parameter in oracle.parameters() if all(parameter is not other for other in mine)]
    groups = [{"params": mine[:1], "weight_decay": 0.0}, {"params": mine[1:], "weight_decay": 0.3}, {"params": others}]
    optimizer = torch.optim.SGD(groups, lr=0.1, momentum=0.9, nesterov=True, weight_decay=0.01)
    for batch in problem.train_batches(1):
        optimizer.zero_grad()
        F.cross_entropy(oracle(batch.images), batch.labels).backward()
        optimizer.step()
    hooks = own_decay(None, problem)
    model, _ = train(epochs=1, schedule="constant", weight_decay=0.01, hooks=hooks)
    plain, _ = train(epochs=1, schedule="constant", weight_decay=0.01)
    for name, value in oracle.state_dict().items():
        torch.testing.assert_close(model.state_dict()[name], value)
    assert not torch.allclose(plain[6].bias, oracle[6].bias)


def test_what_follows_a_step_follows_each_of_them(train, problem):
    model, steps = problem.network(), []
    clamp = clamped(model, problem).after_step

    def after_step():
        before = max(float(parameter.detach().abs().max()) for parameter in model.parameters())
        clamp()
        steps.append(before > 0.125)

    extents = []

    def on_checkpoint(state, end):
        extents.append(max(float(value.abs().max()) for name, value in state.model.items() if "1." not in name))

    hooks = TrainHooks(after_step=after_step)
    train(model, hooks=hooks, accumulate=2, checkpoint_every_steps=1, on_checkpoint=on_checkpoint)
    assert len(steps) == 4 * problem.steps_per_epoch and sum(steps) > 1
    assert len(extents) == len(steps) and max(extents) <= 0.125


def test_an_epochs_start_is_told_again_when_it_is_resumed_in_its_middle(train, problem):
    epochs, states = [], []

    def run(model, **options):
        def on_epoch_start(epoch):
            assert all(module.training for module in model.modules())
            epochs.append(epoch)
            model[1].train(epoch < 2)

        return train(model, hooks=TrainHooks(on_epoch_start=on_epoch_start), checkpoint_every_steps=2, **options)

    whole, ends = run(problem.network(), on_checkpoint=lambda state, end: states.append(problem.stored(state)))
    assert epochs == [1, 2, 3, 4]
    (middle,) = [state for state in states if (state.epoch, state.step) == (1, 2)]
    (first,) = [state for state in states if (state.epoch, state.step) == (1, 0)]
    for name in ("1.running_mean", "1.running_var", "1.num_batches_tracked"):
        assert torch.equal(whole.state_dict()[name], first.model[name])
    epochs.clear()
    assert problem.equal(whole, run(problem.network(seed=9), start=middle)[0])
    assert epochs == [2, 3, 4]


@pytest.mark.parametrize("share", [0.3, 1.0])
def test_one_distilled_step_is_the_formula(train, problem, share):
    oracle, teacher = problem.network(), problem.network(seed=7).eval()
    batch = next(iter(problem.train_batches(1)))
    batches = [batch] * problem.steps_per_epoch
    optimizer = torch.optim.SGD(oracle.parameters(), lr=0.1, momentum=0.9)
    losses = []
    for _ in batches:
        optimizer.zero_grad()
        logits = oracle(batch.images)
        p, q = (teacher(batch.images).detach() / 3).softmax(1), (logits / 3).softmax(1)
        distance = (p * (p / q).log()).sum(1).mean()
        loss = (1 - share) * F.cross_entropy(logits, batch.labels, label_smoothing=0.1) + share * 9 * distance
        loss.backward()
        losses.append(loss.item())
        optimizer.step()
    hooks = TrainHooks(teacher=problem.network(seed=7), distill_weight=share, distill_temperature=3.0)
    changes = {"epochs": 1, "schedule": "constant", "weight_decay": 0.0, "nesterov": False, "label_smoothing": 0.1}
    model, ends = train(batches=lambda epoch, first: batches, hooks=hooks, **changes)
    assert ends[0].train_loss == pytest.approx(sum(losses) / len(losses), rel=1e-5)
    for name, value in oracle.state_dict().items():
        torch.testing.assert_close(model.state_dict()[name], value, rtol=1e-4, atol=1e-6)


def test_a_network_has_nothing_to_learn_from_itself(train, problem):
    student = problem.network(norm=False)
    start = copy.deepcopy(student)
    hooks = TrainHooks(teacher=copy.deepcopy(student), distill_weight=1.0, distill_temperature=4.0)
    model, ends = train(student, hooks=hooks, epochs=1, weight_decay=0.0)
    assert ends[0].train_loss == pytest.approx(0, abs=1e-6)
    for name, value in start.state_dict().items():
        torch.testing.assert_close(model.state_dict()[name], value, rtol=0, atol=1e-6)


def test_accumulated_distillation_is_that_of_the_whole_batch(train, problem):
    hooks = distilled(None, problem)
    whole, ends = train(problem.network(norm=False), hooks=hooks)
    parts, others = train(problem.network(norm=False), hooks=hooks, accumulate=5)
    for name, value in whole.state_dict().items():
        torch.testing.assert_close(parts.state_dict()[name], value, rtol=1e-4, atol=1e-5)
    assert others[-1].train_loss == pytest.approx(ends[-1].train_loss, rel=1e-4)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_the_teacher_is_left_as_it_was(train, problem, precision):
    teacher = problem.network(dropout=0.5, seed=7).train()
    before = copy.deepcopy(teacher)
    hooks = TrainHooks(teacher=teacher, distill_weight=0.5)
    train(hooks=hooks, epochs=1, precision=precision)
    assert problem.equal(before, teacher)
    assert all(parameter.grad is None for parameter in teacher.parameters())
    assert not any(module.training for module in teacher.modules())


def test_a_weight_of_zero_is_no_distillation(train, problem):
    hooks = TrainHooks(teacher=problem.network(seed=7))
    assert problem.equal(train(hooks=hooks)[0], train()[0])


class TwoHeads(nn.Module):
    def __init__(self, problem):
        super().__init__()
        self.main, self.side = problem.network(norm=False), problem.network(norm=False, seed=1)

    def forward(self, x):
        return (self.main(x), self.side(x)) if self.training else self.main(x)


def test_only_the_main_head_is_distilled(train, problem):
    teacher = TwoHeads(problem)
    changes = {"epochs": 1, "weight_decay": 0.0, "schedule": "constant"}
    hooks = TrainHooks(teacher=teacher, distill_weight=1.0)
    both, _ = train(TwoHeads(problem), hooks=hooks, **changes)
    assert problem.equal(both.side, problem.network(norm=False, seed=1))
    half, _ = train(TwoHeads(problem), hooks=TrainHooks(teacher=teacher, distill_weight=0.5), **changes)
    alone, _ = train(problem.network(norm=False, seed=1), lr=0.1 * 0.5 * AUX_WEIGHT, **{**changes, "schedule": "constant"})
    for name, value in alone.state_dict().items():
        torch.testing.assert_close(half.side.state_dict()[name], value, rtol=1e-4, atol=1e-6)


def test_a_teacher_that_is_trained_itself_is_our_own_fault(train, problem):
    model = problem.network()
    with pytest.raises(AssertionError, match="a teacher that is trained itself"):
        train(model, hooks=TrainHooks(teacher=nn.Sequential(model[0]), distill_weight=0.5))


@pytest.mark.parametrize("options", [{"distill_weight": 0.5}, {"distill_weight": 1.5}, {"distill_temperature": 0.0}])
def test_impossible_distillation_is_our_own_fault(options):
    with pytest.raises(AssertionError, match="distillation"):
        TrainHooks(**options)


@pytest.mark.parametrize("make", [no_hooks, own_decay])
def test_a_parameter_without_a_gradient_stays_as_it_is(train, problem, make):
    def network(seed=0):
        model = problem.network(seed=seed)
        model.register_parameter("unused", nn.Parameter(torch.tensor(0.5)))
        return model

    saved = []
    model = network()
    whole, _ = train(model, hooks=make(model, problem), on_epoch_end=lambda end: saved.append(problem.stored(end.state)))
    assert whole.unused.item() == 0.5
    assert problem.equal(whole, train(network(9), hooks=make(model, problem), start=saved[1])[0])
