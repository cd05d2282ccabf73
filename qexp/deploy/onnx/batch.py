"""Which dimension of each value of a network counts images: found by running it on two numbers of them.

A file runs any number of images, so a reshape in it may not name that number. In most networks dimension 0 has it; attention also
holds [3, N, ...] (queries, keys, values) and [N windows, ...]. Rejected: to look for a dimension of the example's size, which 3
queries, keys and values have as well.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, fx
from torch.utils._pytree import tree_iter

from qexp.deploy.graph_call import Constant
from qexp.deploy.onnx.node import Value
from qexp.nn.graph import GraphNetwork, evaluating

BATCH = 3  # images of the example that is written


@torch.no_grad()
def run_of_fewer(network: GraphNetwork, example: Tensor) -> tuple[dict[fx.Node, Any], dict[fx.Node, Any]]:
    """What one image less than `BATCH` gives: node -> shape of its value, of several values a tuple; and what is no activation.

    The second has numbers, sizes and tensors made of parameters, as they are.

    Args:
        network: any graph.
        example: [1 or more, C, H, W].
    """
    run = _Shapes(network)
    with evaluating(network):
        run.run(torch.cat([example[:1]] * (BATCH - 1)))
    return run.shapes, run.settled


def batch_axis(shape: tuple[int, ...], fewer: tuple[int, ...]) -> int | None:
    """The one dimension whose size goes with the number of images; None where none or several do.

    Args:
        shape: of a value on `BATCH` images.
        fewer: on one less.

    >>> batch_axis((3, 3, 5), (3, 2, 5)), batch_axis((12, 5), (8, 5)), batch_axis((3, 5), (3, 5))
    (1, 0, None)
    """
    axes = [axis for axis, (size, other) in enumerate(zip(shape, fewer, strict=True)) if size != other]
    if len(axes) != 1 or shape[axes[0]] * (BATCH - 1) != fewer[axes[0]] * BATCH:
        return None
    return axes[0]


def reshape_sizes(result: Any, fewer: Any, before: Any, fewer_before: Any) -> tuple[int, ...]:
    """The shape of a result as Reshape takes it: 0 or -1 where images are counted, which are any number; else empty.

    Args:
        result: what an operator gave.
        fewer: its shape on one image less.
        before: the value in the file that the operator reads.
        fewer_before: its shape on one image less.
    """
    axis = batch_axis(tuple(result.shape), fewer) if isinstance(result, Tensor) else None
    if axis is None:
        return ()
    stays = axis == 0 and isinstance(before, Value) and before.shape[:1] == result.shape[:1]
    stays = stays and batch_axis(before.shape, fewer_before) == 0
    return (*result.shape[:axis], 0 if stays else -1, *result.shape[axis + 1 :])


def made_constant(result: Tensor, fewer: Tensor) -> Constant | None:
    """What parameters make; where it is repeated for each image (a class token) once, and marked. None where it goes otherwise.

    Args:
        result: on `BATCH` images.
        fewer: on one image less.
    """
    if result.shape == fewer.shape:
        return Constant(result.clone()) if torch.equal(result, fewer) else None
    if result.dim() != fewer.dim() or batch_axis(tuple(result.shape), tuple(fewer.shape)) != 0:
        return None
    repeated = bool((result == result[:1]).all()) and torch.equal(result[:1], fewer[:1])
    return Constant(result[:1].clone(), per_image=True) if repeated else None


def goes_with_images(value: Any, now: Any, fewer: Any) -> bool:
    """True for a number, sizes or a constant that another number of images changes, so that no file can hold it.

    Args:
        value: in the file; None of a tensor that `made_constant` has no way for.
        now: on `BATCH` images.
        fewer: on one image less.
    """
    return value is None if isinstance(now, Tensor) else not _has_tensors(now) and bool(now != fewer)


def _has_tensors(value: Any) -> bool:
    return any(isinstance(leaf, Tensor) for leaf in tree_iter(value))


class _Shapes(fx.Interpreter):
    """Runs a graph and notes the shape of each value, and what no image goes into."""

    def __init__(self, network: GraphNetwork) -> None:
        super().__init__(network)
        self.extra_traceback = False
        self.shapes: dict[fx.Node, Any] = {}
        self.settled: dict[fx.Node, Any] = {}

    def run_node(self, n: fx.Node) -> Any:
        result = super().run_node(n)
        self.shapes[n] = fx.node.map_aggregate(result, lambda value: value.shape if isinstance(value, Tensor) else value)
        reads_images = any(operand not in self.settled for operand in n.all_input_nodes)
        if n.op != "placeholder" and not (reads_images and _has_tensors(result)):
            self.settled[n] = result.clone() if isinstance(result, Tensor) else result
        return result
