"""Settings of the network; torch-free."""

from __future__ import annotations

from dataclasses import dataclass

from qexp.base.checks import Count, check_bounds
from qexp.base.errors import UserError


@dataclass(frozen=True, kw_only=True)
class ModelSettings:
    """Which network.

    Args:
        name: a CIFAR ResNet (`resnet8` `20` `32` `44` `56` `110`), a torchvision classification network, or `custom`.
        factory: `package.module:function` or `file.py:function` for `custom`; called with `num_classes` and `in_channels`
            as far as it takes them, returns a `torch.nn.Module`.
        weights: a state-dict file to start from (or `DEFAULT` for torchvision's own where there is a network).
        num_classes: None takes the data set's.
    """

    name: str
    factory: str | None = None
    weights: str | None = None
    num_classes: Count | None = None

    def __post_init__(self) -> None:
        """Check the ranges and what belongs together."""
        check_bounds(self, "model")
        if self.name == "custom" and self.factory is None:
            raise UserError("model.factory", None, allowed="package.module:function or file.py:function")
        if self.name != "custom" and self.factory is not None:
            raise UserError("model.factory", self.factory, allowed="null", remedy="It belongs to model=custom.")
