"""What the engine asks of a network whose weights `torch.nn.utils.parametrize` makes, in a `torch.fx` graph."""

import copy

import pytest
import torch
from torch.nn.utils import parametrize

from qexp.base.compiler import cxx_compiler
from qexp.engine.hooks import TrainHooks

compiled = pytest.mark.skipif(cxx_compiler() is None, reason="torch.compile needs a C++ compiler")


@pytest.fixture
def network(problem, parametrized):
    return lambda seed=0: parametrized.scaled(problem.network(dropout=0.5, seed=seed))


def names(network):
    return list(network().state_dict())


def test_the_state_holds_parameters_and_buffers_of_the_weights(network):
    tensors = names(network)
    for layer in ("0", "6"):
        prefix = f"{layer}.parametrizations.weight"
        assert {f"{layer}.bias", f"{prefix}.original", f"{prefix}.0.scale", f"{prefix}.0.ready", f"{prefix}.0.seen"} <= {*tensors}
    assert not any("limits" in name for name in tensors)


def test_a_copy_shares_nothing_and_loads_its_originals_state(problem, network):
    model, x = network().eval(), problem.images[:4]
    twin = copy.deepcopy(model)
    assert torch.equal(twin(x), model(x))
    expected = model(x)
    with torch.no_grad():
        twin.get_submodule("0").parametrizations.weight[0].scale.mul_(3)
    assert torch.equal(model(x), expected) and not torch.equal(twin(x), expected)
    twin.load_state_dict(problem_state(model))
    assert torch.equal(twin(x), expected)
    assert problem.equal(model, twin)


def problem_state(model):
    return {name: value.clone() for name, value in model.state_dict().items()}


def test_a_resume_is_bit_exact(train, problem, network):
    states = []

    def run(seed=0, **options):
        decay = {name: 0.0 for name, _ in network().named_parameters() if name.endswith("scale")}
        return train(network(seed), hooks=TrainHooks(weight_decay=decay), checkpoint_every_steps=3, **options)

    whole, _ = run(on_checkpoint=lambda state, end: states.append(problem.stored(state)))
    scale = whole.get_submodule("0").parametrizations.weight[0].scale
    assert scale.dim() == 0 and scale.item() != pytest.approx(0.05, rel=1e-3)  # it learns
    for state in states[1:4]:
        assert problem.equal(whole, run(seed=9, start=state)[0])


@pytest.mark.slow
@compiled
@pytest.mark.filterwarnings("ignore:.*torch.jit.script_method.*:DeprecationWarning")
def test_a_compiled_training_is_the_same_but_for_rounding(train, problem, parametrized):
    def network():
        return parametrized.scaled(problem.network())

    def run(**changes):
        model = network()

        def freeze(epoch):
            model.get_submodule("1").train(epoch < 2)

        hooks = TrainHooks(on_epoch_start=freeze, teacher=problem.network(seed=7), distill_weight=0.5, distill_temperature=2.0)
        return train(model, hooks=hooks, epochs=2, lr=0.02, **changes)

    (plain, expected), (model, ends) = run(), run(compile=True)
    assert list(ends[0].model_state) == names(network)
    assert parametrize.is_parametrized(model.get_submodule("0"), "weight")
    assert [end.train_loss for end in ends] == pytest.approx([end.train_loss for end in expected], rel=1e-2)
    for layer in ("0", "6"):
        mine, its = (network.get_submodule(layer).parametrizations.weight[0] for network in (model, plain))
        assert mine.ready and mine.seen == its.seen
        torch.testing.assert_close(mine.scale, its.scale, rtol=1e-2, atol=1e-4)
