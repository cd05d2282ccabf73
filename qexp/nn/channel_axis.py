"""Which dimension of a value its reader sums over: along it lie the blocks of block formats and the scales per channel.

A convolution sums over dimension 1, a linear layer over the last; a matrix product over the last of its first operand and the one
before it of its second. Where the value goes through reshapes and permutations first, the dimension is followed back.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from itertools import pairwise
from math import prod

from torch import fx, nn

from qexp.nn.graph import Traced
from qexp.nn.operators import MATRIX, function_name

_PASSES = ("keep", "relu", "concat")  # what may lie between a value's codes and their reader
_RESHAPES = ("view", "reshape", "flatten", "unflatten", "squeeze", "unsqueeze")


def channel_axis(traced: Traced, nodes: Sequence[fx.Node], readers: Sequence[fx.Node], others: Collection[fx.Node]) -> int:
    """The dimension of a batch's value that its first layer or matrix product sums over.

    Readers that disagree (of queries and keys, and of values, where one layer makes them) get the first one's. Of heads and their
    channels that were joined it is the channels'. Where none sums, or over a whole image that was flattened, it is 1 of [N, C],
    images and volumes, and else the last.

    Args:
        traced: of `qexp.nn.graph.trace`.
        nodes: whose values share a scale; the dimension is the first one's.
        readers: of the codes, in order of execution.
        others: nodes at which other codes begin.
    """
    shape = traced.values[nodes[0]].shape
    assert shape is not None
    for reader in readers:
        if traced.kind(reader) not in MATRIX:
            continue
        for operand, axis in _summed(traced, reader):
            axis_here = _followed_back(traced, operand, axis, nodes, others)
            if axis_here is not None and 0 < axis_here < len(shape):
                return axis_here
    return 1 if len(shape) in (2, 4, 5) else len(shape) - 1


def _summed(traced: Traced, reader: fx.Node) -> list[tuple[fx.Node, int]]:
    """The activations that a layer or product reads, each with its dimension that is summed over."""
    kind, summed = traced.kind(reader), []
    by_position = function_name(reader) in ("matmul", "bmm", "mm", "scaled_dot_product_attention")
    if function_name(reader) in ("einsum", "tensordot", "mv"):
        return []
    for operand in traced.operands(reader):
        rank = len(traced.values[operand].shape or ())
        second = [reader.kwargs.get("other"), reader.kwargs.get("mat2"), *reader.args[1:2]]
        if function_name(reader) == "scaled_dot_product_attention":  # its first product is with the keys' transpose
            second = [reader.kwargs.get("value"), *reader.args[2:3]]
        is_second = by_position and operand in second and operand is not (reader.args or (None,))[0]
        summed.append((operand, 1 if kind == "conv" else rank - 2 if is_second else rank - 1))
    return summed


def _followed_back(
    traced: Traced, node: fx.Node, axis: int | None, nodes: Sequence[fx.Node], others: Collection[fx.Node]
) -> int | None:
    """The dimension of one of `nodes` that became a dimension of a value; None where it is none of theirs."""
    while axis is not None and node not in nodes:
        operands = traced.operands(node)
        if node in others or not operands or traced.kind(node) not in _PASSES:
            return None
        axis = _axis_before(traced, node, axis)
        node = operands[0]
    return axis


def _axis_before(traced: Traced, node: fx.Node, axis: int) -> int | None:
    """The dimension of the operand that became a dimension of the result."""
    name, module = function_name(node), traced.module_of(node)
    before, after = (traced.values[value].shape for value in (traced.operands(node)[0], node))
    if before is None or after is None:  # several values, and one of them
        return axis + (name == "unbind" and axis >= _dims(node, len(before or ()))[0])
    rank = len(before)
    if isinstance(module, nn.Flatten | nn.Unflatten) or (module is None and name in _RESHAPES):
        return _axis_of_reshaped(before, after, axis)
    if module is None and name == "permute":
        return _dims(node, rank)[axis]
    if module is None and name in ("transpose", "swapaxes"):
        first, second = _dims(node, rank)
        return {first: second, second: first}.get(axis, axis)
    if module is None and name == "select":
        return axis + (axis >= _dims(node, rank)[0])
    if module is None and name == "getitem" and len(after) != rank:
        index = node.args[1] if isinstance(node.args[1], tuple) else (node.args[1],)
        if not all(isinstance(cut, int | slice) for cut in index):
            return None
        left = [place for place in range(rank) if place >= len(index) or isinstance(index[place], slice)]
        return left[axis]
    return axis if len(after) == rank and name not in ("t", "movedim", "rot90") else None


def _dims(node: fx.Node, rank: int) -> list[int]:
    """The dimensions that are arguments of a call, counted from the front; 0 where none are given."""
    given = [*node.args[1:], *node.kwargs.values()] or [0]
    flat = given[0] if isinstance(given[0], list | tuple) else given
    return [value % rank for value in flat if isinstance(value, int)]


def _axis_of_reshaped(before: Sequence[int], after: Sequence[int], axis: int) -> int | None:
    """The dimension that a dimension of the reshaped value was, lies within, or has as its innermost part.

    None where all of an image's dimensions were joined: [N, C, H, W] -> [N, C H W].

    >>> _axis_of_reshaped((1, 5, 24), (1, 5, 3, 8), 3), _axis_of_reshaped((1, 8, 1, 1), (1, 8), 1)
    (2, 1)
    >>> _axis_of_reshaped((1, 5, 3, 8), (1, 5, 24), 2), _axis_of_reshaped((1, 8, 4, 4), (1, 128), 1)
    (3, None)
    """
    low, high = prod(after[axis + 1 :]), prod(after[axis:])
    strides = [prod(before[place:]) for place in range(len(before) + 1)]
    for place, (outer, inner) in enumerate(pairwise(strides)):
        if inner <= low < outer and (high <= outer or len(after) > 2):
            return place
    return None
