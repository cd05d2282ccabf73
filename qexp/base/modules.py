"""What a module holds."""

from __future__ import annotations

from torch import Tensor, nn


def named_tensors(module: nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers by all of their names.

    Args:
        module: that holds them.
    """
    return dict(module.named_parameters(remove_duplicate=False)) | dict(module.named_buffers(remove_duplicate=False))
