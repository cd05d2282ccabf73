"""What a quantization-aware training asks of the training loop beyond what a float training does."""

from __future__ import annotations

from torch import nn

from qexp.config.train import TrainSettings
from qexp.engine.hooks import TrainHooks
from qexp.qat.prepare import QatNetwork
from qexp.qat.quantizers import ClippedRange


def train_hooks(qat: QatNetwork, recipe: TrainSettings, teacher: nn.Module | None) -> TrainHooks:
    """Decay of quantizers' parameters, frozen batch norm, weights overwritten after each step, and distillation.

    Args:
        qat: what is trained.
        recipe: of the training.
        teacher: the float network, read where it is distilled from.
    """
    settings = qat.settings
    decays = {}
    for path, quantizer in qat.quantizers():
        decay = settings.scale_decay
        if isinstance(quantizer, ClippedRange):
            # PACT regularizes alpha as it does weights: nothing else would ever bring it down.
            decay = recipe.weight_decay if settings.alpha_decay is None else settings.alpha_decay
        decays |= {f"{path}.{name}": decay for name, _ in quantizer.named_parameters(recurse=False)}

    def freeze(epoch: int) -> None:
        if settings.freeze_bn_epoch is not None and epoch >= settings.freeze_bn_epoch:
            for module in qat.module.modules():
                if isinstance(module, nn.modules.batchnorm._BatchNorm):
                    module.eval()

    more = {"after_step": qat.overwrite_weights} if settings.name == "every_step" else {}
    if settings.distill_weight:
        assert teacher is not None, "distillation from a network that the training began from"
        more |= {
            "teacher": teacher,
            "distill_weight": settings.distill_weight,
            "distill_temperature": settings.distill_temperature,
        }
    return TrainHooks(weight_decay=decays, on_epoch_start=freeze, **more)
