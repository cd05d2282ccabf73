"""Half precision where fp16 kernels are slow: every operation's result rounded to fp16, computed and accumulated in float32.

On a GPU, a fp16 convolution multiplies fp16 operands, accumulates in float32 and stores fp16. torch's CPU kernels do the same, at
27 times the time of float32 for a ResNet-20 on 32 x 32 images (7 times in channels-last; torch 2.13, one core of an AMD EPYC with
AVX-512). Holding fp16 values in float32 tensors and rounding each result gives the same numbers but for the order of summation.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_iter


class RoundToHalf(TorchFunctionMode):
    """Within this scope every torch function rounds its float32 results to fp16, in place; results beyond 65504 become infinite.

    A view of an argument is left alone: it holds rounded values already, and may overlap itself.

    >>> with RoundToHalf():
    ...     float(torch.tensor([1.0]) / 3)
    0.333251953125
    """

    def __torch_function__(
        self, func: Callable[..., object], types: object, args: tuple[object, ...] = (), kwargs: dict[str, object] | None = None
    ) -> object:
        result = func(*args, **(kwargs or {}))
        results = [
            tensor
            for tensor in tree_iter(result)
            if isinstance(tensor, Tensor) and tensor.dtype == torch.float32 and tensor.numel()
        ]
        if results:
            arguments = [argument for argument in tree_iter((args, kwargs)) if isinstance(argument, Tensor)]
            owners = {tensor.untyped_storage().data_ptr() for tensor in arguments}
            for tensor in results:
                if tensor.untyped_storage().data_ptr() not in owners or any(tensor is other for other in arguments):
                    round_to_half_(tensor)
        return result


def round_to_half_(tensor: Tensor) -> Tensor:
    """Round the elements to fp16 values, in place and in the tensor's own dtype."""
    return tensor.copy_(tensor.half())
