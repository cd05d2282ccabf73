"""What a quantization-aware training asks of the training loop beyond what a float training does."""

from __future__ import annotations

from dataclasses import replace

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from qexp.config.train import TrainSettings
from qexp.engine.hooks import TrainHooks
from qexp.qat.prepare import QatNetwork


def train_hooks(qat: QatNetwork, recipe: TrainSettings, teacher: nn.Module | None) -> TrainHooks:
    """Decay of quantizers' parameters, frozen batch norm, weights overwritten after each step, and distillation.

    Args:
        qat: what is trained.
        recipe: of the training.
        teacher: the float network, read where it is distilled from.
    """
    settings = qat.settings
    chosen = getattr(settings, settings.method.decay) if settings.method.decay is not None else 0.0
    # PACT regularizes alpha as it does weights: nothing else would ever bring it down.
    decay = recipe.weight_decay if chosen is None else chosen
    decays = {
        f"{path}.{name}": decay for path, quantizer in qat.quantizers() for name, _ in quantizer.named_parameters(recurse=False)
    }

    def freeze(epoch: int) -> None:
        if settings.freeze_bn_epoch is not None and epoch >= settings.freeze_bn_epoch:
            for module in qat.module.modules():
                if isinstance(module, _BatchNorm):
                    module.eval()

    hooks = TrainHooks(weight_decay=decays, on_epoch_start=freeze)
    if settings.method.overwrites_weights:
        hooks = replace(hooks, after_step=qat.overwrite_weights)
    if settings.distill_weight:
        assert teacher is not None, "distillation from a network that the training began from"
        hooks = replace(
            hooks,
            teacher=teacher,
            distill_weight=settings.distill_weight,
            distill_temperature=settings.distill_temperature,
        )
    return hooks
