"""Groups: every element once, numbered channel by channel, and quantized as if it stood alone."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from qexp.base.errors import UserError
from qexp.base.types import QuantSpec
from qexp.quant.layout import layout_of
from qexp.quant.scheme_table import GRANULARITIES, SCHEMES
from qexp.quant.schemes import quantize_

SHAPES = st.lists(st.integers(1, 6), min_size=3, max_size=4).map(tuple)


def spec_of(granularity: str, *, axis: int = 0, group_size: int = 5, scheme: str = "affine", **others) -> QuantSpec:
    bits = min(max(4, SCHEMES[scheme].min_bits), SCHEMES[scheme].max_bits)
    size = group_size if granularity == "per_group" else None
    return QuantSpec(scheme=scheme, bits=bits, granularity=granularity, axis=axis, group_size=size, **others)


def groups(x: torch.Tensor, spec: QuantSpec) -> list[torch.Tensor]:
    """The definition, one group at a time."""
    if spec.granularity == "per_tensor":
        return [x.flatten()]
    if spec.granularity == "per_in_out_channel":
        return [kernel.flatten() for row in x for kernel in row]
    slices = [part.flatten() for part in x.unbind(spec.axis)]
    return slices if spec.granularity == "per_channel" else [group for part in slices for group in part.split(spec.group_size)]


@given(shape=SHAPES, axis=st.integers(-2, 1), granularity=st.sampled_from(GRANULARITIES), group_size=st.integers(1, 20))
def test_rows_are_the_groups_and_fold_inverts(shape, axis, granularity, group_size):
    x = torch.arange(float(torch.tensor(shape).prod())).reshape(shape)
    spec = spec_of(granularity, axis=axis, group_size=group_size)
    layout = layout_of(shape, spec)
    expected = groups(x, spec)
    parts = layout.rows(x)
    assert layout.num_groups == len(expected)
    firsts = layout.join([part[:, 0] for part in parts])
    assert firsts.tolist() == [group[0].item() for group in expected]
    assert sorted(tuple(row.tolist()) for part in parts for row in part) == sorted(tuple(group.tolist()) for group in expected)
    assert torch.equal(layout.fold(parts), x)
    assert all(torch.equal(first, part[:, 0]) for first, part in zip(layout.cut(firsts), parts, strict=True))


@pytest.mark.parametrize("view", ["contiguous", "channels_last", "transposed"])
@pytest.mark.parametrize(("granularity", "axis"), [("per_group", 0), ("per_group", 1), ("per_in_out_channel", 0)])
@pytest.mark.parametrize("scheme", [name for name in SCHEMES if name != "nvfp4"])  # whose groups share a scale
def test_each_group_is_quantized_alone(scheme, granularity, axis, view):
    x = torch.randn(4, 6, 3, 3, generator=torch.Generator().manual_seed(0))
    x = {"contiguous": x, "channels_last": x.to(memory_format=torch.channels_last), "transposed": x.transpose(0, 1)}[view]
    x = x.abs() if scheme == "unsigned_symmetric" else x
    for group_size in (8, 9):  # with a smaller last group, and without
        spec = spec_of(granularity, axis=axis, scheme=scheme, group_size=group_size)
        alone = spec_of("per_tensor", scheme=scheme)
        expected = [quantize_(torch.empty_like(group), group.contiguous(), alone) for group in groups(x, spec)]
        for target in (torch.empty(x.shape), torch.empty_like(x), x.clone()):
            source = target if target.stride() == x.stride() and torch.equal(target, x) else x
            quantized = groups(quantize_(target, source, spec), spec)
            assert all(torch.equal(group, alone) for group, alone in zip(quantized, expected, strict=True))


@pytest.mark.parametrize("scheme", ["linear", "affine", "symmetric_restricted", "ternary", "lut_kmeans"])
def test_a_tail_without_a_range_does_not_stop_the_tensor(scheme):
    x = torch.randn(1, 9, 1, generator=torch.Generator().manual_seed(0))
    x[0, 8] = 0
    quantized = quantize_(torch.empty_like(x), x, spec_of("per_group", group_size=4, scheme=scheme))
    assert quantized[0, 8] == 0


def test_an_error_leaves_the_target():
    x, target = torch.randn(3, 10), torch.ones(3, 10)
    x[2, 9] = float("nan")
    with pytest.raises(UserError, match="NaN"):
        quantize_(target, x, spec_of("per_group", group_size=4))
    assert (target == 1).all()


def test_axes_and_dimensions():
    assert layout_of((8, 3, 3, 3), spec_of("per_channel", axis=1)).num_groups == 3
    assert layout_of((), spec_of("per_channel")).num_groups == 1
    for shape, spec in [
        ((4,), spec_of("per_group")),
        ((4, 3), spec_of("per_in_out_channel")),
        ((4, 3), spec_of("per_channel", axis=2)),
    ]:
        with pytest.raises(UserError):
            layout_of(shape, spec)
    with pytest.raises(UserError, match="group_size=0"):
        layout_of((4, 3), spec_of("per_group", group_size=0))


def test_a_plan_needs_no_torch():
    code = "import sys, qexp.quant.storage, qexp.quant.scheme_table; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
