"""How a tensor falls into groups that share their quantization parameters; torch-free, since a plan counts them too.

A tensor is seen as [channels, size] and each channel is cut into groups of `group` elements, of which the last may be smaller.
Groups are numbered channel by channel, and every tensor of parameters is [num_groups] in that order (or [num_groups, levels]).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING

from qexp.base.errors import UserError, choose
from qexp.base.types import QuantSpec
from qexp.quant.scheme_table import GRANULARITIES, PER_BLOCK

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Layout:
    """The groups of one tensor.

    Args:
        shape: of the tensor.
        axis: which of its dimensions comes first in [channels, size].
        channels: number of rows.
        size: elements of a row.
        group: elements that share parameters, at most `size`.
        inner: which of its dimensions comes last in [channels, size]; None where they come as they lie.
    """

    shape: tuple[int, ...]
    axis: int
    channels: int
    size: int
    group: int
    inner: int | None = None

    @property
    def order(self) -> tuple[int, ...] | None:
        """The dimensions in the order of [channels, size]; None where it is that of the tensor."""
        dims = range(len(self.shape))
        first = [] if self.axis == self.inner else [self.axis]
        rest = [dim for dim in dims if dim not in (self.axis, self.inner)]
        order = (*first, *rest, *([] if self.inner is None else [self.inner]))
        return order if self.shape and order != tuple(dims) else None

    @property
    def full(self) -> int:
        """Groups of full size in a channel."""
        return self.size // self.group

    @property
    def tail(self) -> int:
        """Elements of the smaller last group of a channel; 0 where there is none."""
        return self.size % self.group

    @property
    def num_groups(self) -> int:
        """Number of groups."""
        return self.channels * (self.full + bool(self.tail))

    def rows(self, x: Tensor) -> list[Tensor]:
        """The groups as rows of equal length: [channels * full, group], and [channels, tail] where there is a tail."""
        order = self.order
        flat = (x if order is None else x.permute(order)).reshape(self.channels, self.size)
        if not self.tail:
            return [flat.reshape(-1, self.group)]
        cut = self.full * self.group
        return [flat[:, :cut].reshape(-1, self.group), flat[:, cut:].contiguous()]

    def fold(self, parts: Sequence[Tensor]) -> Tensor:
        """The tensor again, from what `rows` gave."""
        flat = parts[0]
        if self.tail:
            cut = self.full * self.group
            flat = parts[0].new_empty(self.channels, self.size)
            flat[:, :cut] = parts[0].reshape(self.channels, cut)
            flat[:, cut:] = parts[1]
        order = self.order
        if order is None:
            return flat.reshape(self.shape)
        back = sorted(range(len(order)), key=order.__getitem__)
        return flat.reshape([self.shape[dim] for dim in order]).permute(back)

    def cut(self, param: Tensor) -> list[Tensor]:
        """Parameters of all groups -> those of each part of `rows`; a 0-d tensor serves all."""
        if not self.tail or param.dim() == 0:
            return [param] * (1 + bool(self.tail))
        table = param.reshape(self.channels, self.full + 1, *param.shape[1:])
        return [table[:, : self.full].flatten(0, 1), table[:, self.full]]

    def join(self, params: Sequence[Tensor]) -> Tensor:
        """Parameters of each part -> those of all groups."""
        if not self.tail:
            return params[0]
        rest = params[0].shape[1:]
        table = params[0].new_empty(self.channels, self.full + 1, *rest)
        table[:, : self.full] = params[0].reshape(self.channels, self.full, *rest)
        table[:, self.full] = params[1]
        return table.flatten(0, 1)


def layout_of(shape: Sequence[int], spec: QuantSpec) -> Layout:
    """The groups that `spec` makes of a tensor.

    `per_tensor`: one. `per_channel`: one for each index along `spec.axis`. `per_group`: `spec.group_size` consecutive elements of
    each such slice, flattened in the order of the remaining dimensions (Cin, kh, kw). `per_in_out_channel`: one for each index
    along the first two dimensions. `per_block`: `spec.block_size` consecutive elements of each slice along `spec.axis`, in the
    order in which a matrix product reads them: kernel positions, and within each the input channels (kh, kw, Cin), a transposed
    convolution's too; a vector is one slice. A 0-d tensor is one group.

    Raises:
        UserError: an unknown granularity, an axis that the tensor does not have, a tensor of too few dimensions, no group size.

    >>> layout_of((4, 3, 3, 3), QuantSpec(scheme="affine", bits=4, granularity="per_group", group_size=8)).num_groups
    16
    """
    shape = tuple(shape)
    if spec.granularity == PER_BLOCK:
        return _blocks(shape, spec)
    choose("quant.weight.granularity", spec.granularity, GRANULARITIES)
    count = prod(shape)
    if spec.granularity == "per_tensor" or (spec.granularity == "per_channel" and not shape):
        return Layout(shape, 0, 1, count, max(count, 1))
    needed = {"per_channel": 1, "per_group": 2, "per_in_out_channel": 3}[spec.granularity]
    if len(shape) < needed:
        raise UserError(
            "quant.weight.granularity", spec.granularity, allowed=f"a tensor of at least {needed} dimensions, not {list(shape)}"
        )
    if spec.granularity == "per_in_out_channel":
        size = prod(shape[2:])
        return Layout(shape, 0, shape[0] * shape[1], size, max(size, 1))
    if not -len(shape) <= spec.axis < len(shape):
        raise UserError("axis", spec.axis, allowed=f"an axis of a tensor of shape {list(shape)}")
    axis = spec.axis % len(shape)
    size = prod(length for dim, length in enumerate(shape) if dim != axis)
    group = max(size, 1)
    if spec.granularity == "per_group":
        if spec.group_size is None or spec.group_size < 1:
            raise UserError("quant.weight.group_size", spec.group_size, allowed="an integer of at least 1")
        group = min(group, spec.group_size)
    return Layout(shape, axis, shape[axis], size, group)


def _blocks(shape: tuple[int, ...], spec: QuantSpec) -> Layout:
    """The blocks of a weight."""
    if spec.block_size < 1:
        raise UserError("quant.weight.block_size", spec.block_size, allowed="an integer of at least 1")
    count = prod(shape)
    if len(shape) < 2:
        return Layout(shape, 0, 1, count, min(max(count, 1), spec.block_size))
    axis = spec.axis % len(shape)
    size = count // max(shape[axis], 1)
    return Layout(shape, axis, shape[axis], size, min(max(size, 1), spec.block_size), inner=1 if axis == 0 else 0)


def channel_blocks(shape: Sequence[int], axis: int, block_size: int) -> Layout:
    """The blocks of an activation: `block_size` consecutive channels at each position of each image.

    Args:
        shape: of a batch.
        axis: of its channels.
        block_size: elements of a block; the last of a position may be smaller.

    >>> channel_blocks((2, 40, 3, 3), 1, 32).num_groups
    36
    """
    shape = tuple(shape)
    inner = axis % len(shape)
    size = shape[inner]
    return Layout(shape, inner, prod(shape) // max(size, 1), size, min(max(size, 1), block_size), inner=inner)
