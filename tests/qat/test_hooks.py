import pytest
import torch
from torch import nn

from qexp.config.train import TrainSettings
from qexp.qat.hooks import train_hooks

RECIPE = TrainSettings(epochs=1, lr=0.1, batch_size=8, weight_decay=0.05)
NORMS = nn.modules.batchnorm._BatchNorm


def test_what_quantizers_learn_does_not_decay_unless_asked(graphs, kit):
    for name, parts in (("lsq", {"scale"}), ("lsq_plus", {"scale", "offset"})):
        case = kit.prepared(graphs.Residual(), graphs.images(), name=name, ready=False)
        decays = train_hooks(case.qat, RECIPE, None).weight_decay
        learned = {key for key, _ in case.qat.module.named_parameters() if key.rpartition(".")[2] in parts}
        assert set(decays) == learned and set(decays.values()) == {0.0} and learned
    case = kit.prepared(graphs.Residual(), graphs.images(), name="lsq", scale_decay=0.3, ready=False)
    assert set(train_hooks(case.qat, RECIPE, None).weight_decay.values()) == {0.3}


@pytest.mark.parametrize(("given", "decay"), [(None, 0.05), (0.0, 0.0), (0.2, 0.2)])
def test_alpha_decays_as_weights_do_unless_told_otherwise(graphs, kit, given, decay):
    case = kit.prepared(graphs.Residual(), graphs.images(), name="pact", alpha_decay=given, ready=False)
    expected = {f"activation_fake_quant.{place}.alpha": decay for place in ("input", "pool", "dropout")}
    assert train_hooks(case.qat, RECIPE, None).weight_decay == expected


def test_folded_weights_scales_are_named_as_the_optimizer_names_them(graphs, kit):
    case = kit.prepared(graphs.Residual(), graphs.images(), batch_norm="folded")
    names = dict(case.qat.module.named_parameters())
    decays = train_hooks(case.qat, RECIPE, None).weight_decay
    assert set(decays) <= set(names) and "conv1.parametrizations.weight.0.quantizer.scale" in decays


def test_batch_norm_freezes_at_its_epoch(graphs, kit):
    case = kit.prepared(graphs.Residual(), graphs.images(), freeze_bn_epoch=3)
    module, hooks = case.qat.module, train_hooks(case.qat, RECIPE, None)
    for epoch, frozen in ((1, False), (2, False), (3, True), (4, True)):
        module.train()
        hooks.on_epoch_start(epoch)
        assert [part.training for part in module.modules() if isinstance(part, NORMS)] == [not frozen] * 2
        assert all(part.training for part in module.modules() if not isinstance(part, NORMS) and part is not module)
    before = case.qat.network.bn1.running_mean.clone()
    gamma = case.qat.network.bn1.weight
    module(case.images).square().sum().backward()
    assert torch.equal(case.qat.network.bn1.running_mean, before) and bool(gamma.grad.any())
    never = kit.prepared(graphs.Residual(), graphs.images())
    never.qat.module.train()
    train_hooks(never.qat, RECIPE, None).on_epoch_start(1000)
    assert never.qat.network.bn1.training


def test_only_every_step_overwrites(graphs, kit):
    case = kit.prepared(graphs.Residual(), graphs.images(), name="every_step")
    with torch.no_grad():
        case.qat.network.conv1.weight.add_(torch.linspace(0, 1, 216).view(8, 3, 3, 3))
    train_hooks(case.qat, RECIPE, None).after_step()
    assert case.qat.network.conv1.weight.unique().numel() <= 16
    other = kit.prepared(graphs.Residual(), graphs.images(), name="ste")
    before = {name: value.clone() for name, value in other.qat.module.state_dict().items()}
    train_hooks(other.qat, RECIPE, None).after_step()
    assert all(torch.equal(value, before[name]) for name, value in other.qat.module.state_dict().items())


def test_distillation_is_from_the_teacher_that_is_given(graphs, kit):
    case = kit.prepared(graphs.Residual(), graphs.images(), distill_weight=0.4, distill_temperature=3.0)
    teacher = graphs.Residual()
    hooks = train_hooks(case.qat, RECIPE, teacher)
    assert (hooks.teacher, hooks.distill_weight, hooks.distill_temperature) == (teacher, 0.4, 3.0)
    with pytest.raises(AssertionError, match="distillation from a network"):
        train_hooks(case.qat, RECIPE, None)
    without = kit.prepared(graphs.Residual(), graphs.images())
    assert train_hooks(without.qat, RECIPE, teacher).teacher is None
