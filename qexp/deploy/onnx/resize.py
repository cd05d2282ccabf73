"""Operators that change the number of pixels or channels by moving or mixing values: resizing, shuffles."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from qexp.deploy.onnx.node import OnnxNode, Value


def resize(node: OnnxNode) -> str | Value:
    """Resize of the spatial dimensions: nearest, linear and cubic, as torch places pixels.

    Rejected: sizes with `axes`, which ONNX Runtime 1.31 reads as none.
    """
    x, mode = node.activation(), str(node.argument(3, "mode", "nearest"))
    before, after = x.shape[2:], node.shape[2:]
    if node.module is None and node.argument(6, "antialias", False):
        node.refuse("it resizes with antialiasing")
    if not _is_exact(before, after, node.argument(2, "scale_factor")) and not node.argument(5, "recompute_scale_factor", False):
        node.refuse("its scale_factor gives no whole number of pixels")
    if before == after:
        return x
    place = "align_corners" if node.argument(4, "align_corners", False) else "half_pixel"
    attributes: dict[str, object]
    if mode == "nearest":
        attributes = {"mode": "nearest", "coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"}
    elif mode == "nearest-exact":
        attributes = {"mode": "nearest", "coordinate_transformation_mode": "half_pixel", "nearest_mode": "round_prefer_ceil"}
    elif mode in ("linear", "bilinear", "trilinear"):
        attributes = {"mode": "linear", "coordinate_transformation_mode": place}
    elif mode == "bicubic":
        attributes = {"mode": "cubic", "coordinate_transformation_mode": place, "cubic_coeff_a": -0.75}
    else:
        node.refuse(f"its mode is {mode}")
    scales = torch.tensor([1.0, 1.0, *(size / count for size, count in zip(after, before, strict=True))])
    return node.emit("Resize", x.name, "", node.context.writer.tensor(f"{node.name}.scales", scales), **attributes)


def nearest(node: OnnxNode) -> str | Value:
    """Resize to values that were there."""
    return resize(node)


def _is_exact(before: Sequence[int], after: Sequence[int], factor: float | Sequence[float] | None) -> bool:
    """True where torch steps by the ratio of the sizes, as ONNX does, and not by a factor that was rounded to them."""
    if factor is None:
        return True
    factors = factor if isinstance(factor, Sequence) else [factor] * len(before)
    return all(size * one == result for size, one, result in zip(before, factors, after, strict=True))


def channel_shuffle(node: OnnxNode) -> str:
    """Channels of groups in turn: [N, G, C/G, H, W] transposed."""
    x, groups = node.activation(), int(node.argument(1, "groups"))
    return _rearranged(node, x, (groups, x.shape[1] // groups, *x.shape[2:]), (2, 1, *range(3, len(x.shape) + 1)))


def pixel_shuffle(node: OnnxNode) -> str:
    """Channels become pixels: [N, C, r, r, H, W] to [N, C, H, r, W, r]."""
    x, factor = node.activation(), int(node.argument(1, "upscale_factor"))
    channels, height, width = x.shape[1:]
    return _rearranged(node, x, (channels // factor**2, factor, factor, height, width), (1, 4, 2, 5, 3))


def pixel_unshuffle(node: OnnxNode) -> str:
    """Pixels become channels: [N, C, H, r, W, r] to [N, C, r, r, H, W]."""
    x, factor = node.activation(), int(node.argument(1, "downscale_factor"))
    channels, height, width = x.shape[1:]
    return _rearranged(node, x, (channels, height // factor, factor, width // factor, factor), (1, 3, 5, 2, 4))


def _rearranged(node: OnnxNode, x: Value, shape: Sequence[int], order: Sequence[int]) -> str:
    """Reshape to [N, *shape], Transpose, Reshape to the result."""
    parts = node.emit("Reshape", x.name, node.integers(0, *shape))
    moved = node.emit("Transpose", parts, perm=[0, *order])
    return node.emit("Reshape", moved, node.integers(0, *node.shape[1:]))
