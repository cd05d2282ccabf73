"""What a network's state dict holds, and which of it one forward reads, in which order.

Use is seen where torch dispatches an operator on a parameter's storage, so it is a fact about the tensor and not about the
module: `F.conv2d(x, self.conv.weight)` and attention's projections count although no module's `forward` is called. Rejected:
forward hooks, which call exactly those "not executed". A tensor that is read may still not reach the output: the weights-in-use
probe decides that.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter

from qexp.base.types import TensorInfo
from qexp.nn.graph import evaluating

_NORMS = (
    nn.modules.batchnorm._NormBase,  # batch and instance norm
    nn.LayerNorm,
    nn.GroupNorm,
    nn.RMSNorm,
)
_KINDS: tuple[tuple[tuple[type[nn.Module], ...], str], ...] = (
    ((nn.modules.conv._ConvNd,), "conv"),
    ((nn.Linear,), "linear"),
    (_NORMS, "norm"),
    ((nn.Embedding, nn.EmbeddingBag), "embedding"),
)
_STATISTICS = ("running_mean", "running_var")


def inventory(model: nn.Module, example: Tensor) -> tuple[TensorInfo, ...]:
    """List the tensors of `model.state_dict()` in its order, with kind, role and order of execution.

    Runs one forward in eval mode without gradients; modes, buffers and generators are as before afterwards. Entries that are no
    tensors are left out. Projections of `nn.MultiheadAttention` are linear weights. `constant` describes the weights as they are
    now: a fresh network's BN scales are constant, a trained one's are not (`as_trained`).

    Args:
        model: any module.
        example: [N, C, H, W] images as the network takes them, on its device; N = 1 suffices.
    """
    state = {name: value for name, value in model.state_dict().items() if isinstance(value, Tensor)}
    orders = _execution_orders(model, example, state)
    modules = dict(model.named_modules(remove_duplicate=False))
    seen: dict[tuple[object, ...], str] = {}
    rows = []
    for name, value in state.items():
        path, _, leaf = name.rpartition(".")
        owner = modules.get(path, model)
        kind, role = _kind_and_role(owner, leaf, value)
        memory = (value.data_ptr(), value.shape, value.stride(), value.dtype)
        first = seen.setdefault(memory, name) if value.numel() else name
        rows.append(
            TensorInfo(
                name=name,
                module=path,
                module_type=type(owner).__name__,
                kind=kind,
                role=role,
                shape=tuple(value.shape),
                dtype=str(value.dtype).removeprefix("torch."),
                channel_axis=int(isinstance(owner, nn.modules.conv._ConvTransposeNd) and leaf == "weight"),
                constant=is_constant(value),
                order=orders[name],
                tied_to=None if first == name else first,
            )
        )
    return tuple(rows)


def as_trained(tensors: tuple[TensorInfo, ...]) -> tuple[TensorInfo, ...]:
    """The inventory of a fresh network as it will be after training: weights and biases of several elements are not constant.

    A plan made before training needs it, since every BN scale then is 1 and every shift 0.
    """
    return tuple(
        replace(info, constant=False) if info.role in ("weight", "bias") and info.num_elements > 1 else info for info in tensors
    )


def is_constant(value: Tensor) -> bool:
    """True where there are elements and all are equal, so that no range quantizer is defined."""
    return value.numel() > 0 and bool((value == value.reshape(-1)[0]).all())


def _kind_and_role(owner: nn.Module, leaf: str, value: Tensor) -> tuple[str, str]:
    """Kind of the module and role of its entry `leaf`."""
    if isinstance(owner, nn.MultiheadAttention) and leaf.endswith(("proj_weight", "proj_bias")):
        return "linear", leaf.rpartition("_")[2]
    kind = next((kind for types, kind in _KINDS if isinstance(owner, types)), "other")
    if not (value.is_floating_point() or value.is_complex()):
        return kind, "counter"
    if kind == "norm" and leaf in _STATISTICS:
        return kind, "statistic"
    if leaf not in owner._parameters:
        return kind, "other"
    if leaf in ("weight", "bias"):
        return kind, leaf
    # A module of the researcher's own: what acts as a matrix or kernel is a weight, whatever its name.
    if kind == "other":
        return kind, "bias" if "bias" in leaf else "weight" if value.dim() > 1 else "other"
    return kind, "other"


def _execution_orders(model: nn.Module, example: Tensor, state: dict[str, Tensor]) -> dict[str, int]:
    """Name -> rank of the first operator that reads the tensor, -1 where none does.

    Counters and statistics that eval mode does not read take the place of their module.
    """
    recorder = _ReadRecorder({name: _ByteRange(value) for name, value in state.items()})
    buffers = [
        (module, name, buffer, buffer.clone())
        for module in model.modules()
        for name, buffer in module._buffers.items()
        if buffer is not None
    ]
    devices = [example.device] if example.is_cuda else []
    try:
        # no_grad rather than inference_mode: a network that caches a tensor would keep one that no training can use.
        with evaluating(model), torch.random.fork_rng(devices=devices), torch.no_grad(), recorder:
            model(example)
    finally:
        with torch.no_grad():
            for module, name, buffer, before in buffers:
                module._buffers[name] = buffer.copy_(before)
    used = recorder.first_use
    by_module: dict[str, int] = {}
    for name, first in used.items():
        path = name.rpartition(".")[0]
        by_module[path] = min(first, by_module.get(path, first))
    rank = {first: index for index, first in enumerate(sorted(set(used.values())))}
    orders = {}
    for name, value in state.items():
        position = used.get(name)
        if position is None and (not value.is_floating_point() or name.rpartition(".")[2] in _STATISTICS):
            position = by_module.get(name.rpartition(".")[0])
        orders[name] = -1 if position is None else rank[position]
    return orders


class _ByteRange:
    """The bytes that a tensor occupies, to recognize a read of it or of its views."""

    def __init__(self, value: Tensor) -> None:
        self.storage = value.untyped_storage().data_ptr() if value.numel() else 0
        reach = (
            sum((size - 1) * stride for size, stride in zip(value.shape, value.stride(), strict=True)) + 1 if value.numel() else 0
        )
        self.start = value.data_ptr()
        self.stop = self.start + reach * value.element_size()

    def overlaps(self, other: _ByteRange) -> bool:
        """True where both have a byte in common."""
        return self.start < other.stop and other.start < self.stop


class _ReadRecorder(TorchDispatchMode):
    """Notes which operator is the first to read each tensor's storage."""

    def __init__(self, ranges: dict[str, _ByteRange]) -> None:
        super().__init__()
        self.by_storage: dict[int, list[str]] = {}
        for name, span in ranges.items():
            if span.storage:
                self.by_storage.setdefault(span.storage, []).append(name)
        self.ranges = ranges
        self.first_use: dict[str, int] = {}
        self.position = 0

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """False: torch would load its compiler to keep it out of the method below, 1.5 s of a core for every command.

        It matters under torch.compile alone, where nothing is recorded.
        """
        return False

    def __torch_dispatch__(
        self, func: Callable[..., object], types: object, args: tuple[object, ...] = (), kwargs: dict[str, object] | None = None
    ) -> object:
        for value in self._dense((args, kwargs)):
            names = self.by_storage.get(value.untyped_storage().data_ptr(), ())
            if names:
                span = _ByteRange(value)
                for name in names:
                    if name not in self.first_use and self.ranges[name].overlaps(span):
                        self.first_use[name] = self.position
        self.position += 1
        return func(*args, **(kwargs or {}))

    @staticmethod
    def _dense(arguments: object) -> Iterator[Tensor]:
        """The strided tensors among an operator's arguments."""
        return (
            item for item in tree_iter(arguments) if isinstance(item, Tensor) and item.layout is torch.strided and item.numel()
        )
