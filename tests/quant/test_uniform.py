"""The compiled kernel and torch's blocks give the same bits; which one runs is decided as uniform.py says."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from qexp.base.compiler import built_library, cxx_compiler
from qexp.base.errors import UserError
from qexp.base.types import QuantSpec
from qexp.nn.fake_quantize import FakeQuantize
from qexp.quant import uniform
from qexp.quant.blocks import in_blocks
from qexp.quant.gradients import fake_quantize_learned
from qexp.quant.schemes import quantize_

SCHEMES = ("linear", "linear_raw", "affine", "symmetric", "symmetric_restricted", "pow2_scale", "fixed_point", "scale_factor")
ROUNDINGS = ("half_even", "half_up", "half_away", "floor", "ceil", "trunc")
needs_compiler = pytest.mark.skipif(cxx_compiler() is None, reason="no C++ compiler")


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """A cache that holds the library."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        if uniform.build_library(uniform._SOURCE) is None:
            pytest.skip("no C++ compiler")
        yield os.environ["XDG_CACHE_HOME"]


@pytest.fixture
def fresh(monkeypatch):
    """A process that has quantized nothing yet."""
    monkeypatch.setattr(uniform, "_COMPILED", uniform._Compiled())
    return uniform._COMPILED


@pytest.fixture
def compiled(fresh, built, monkeypatch):
    """The library, and a count of the tensors that it fills."""
    monkeypatch.setenv("XDG_CACHE_HOME", built)
    library = fresh.library(0)
    assert library is not None, "a library in the cache is taken at once"
    return library


def by_torch(monkeypatch, source, spec, limits=None):
    with monkeypatch.context() as patch:
        patch.setattr(uniform, "_is_plain", lambda x, out: False)
        return quantize_(torch.empty_like(source), source, spec, limits)


def same(a, b):
    return torch.equal(a.view(torch.int32), b.view(torch.int32))


@pytest.mark.parametrize("granularity", ["per_tensor", "per_channel", "per_group"])
@pytest.mark.parametrize("scheme", SCHEMES)
def test_all_bits_are_equal(compiled, fresh, monkeypatch, scheme, granularity):
    torch.manual_seed(0)
    source = torch.randn(6, 40, 3, 3) * torch.logspace(-3, 3, 6).reshape(-1, 1, 1, 1)
    source[0, 0] = 0.0  # zeros of both signs, ties
    source[0, 1] = -0.0
    if scheme != "affine" or granularity == "per_tensor":  # else a limit is zero, and torch does it
        source[5] = source[5].abs()
    source[1, 0] = torch.linspace(-0.004, 0.004, 9).reshape(3, 3)
    kinds = [(mode, rounding) for mode in ("int", "float") for rounding in ROUNDINGS if mode == "int" or rounding == "half_even"]
    specs = [
        QuantSpec(
            scheme=scheme, bits=5, mode=mode, granularity=granularity, group_size=32, rounding=rounding, arithmetic=arithmetic
        )
        for mode, rounding in kinds
        for arithmetic in (("reciprocal", "divide") if scheme == "affine" else ("reciprocal",))
    ]
    for spec in specs:
        expected = by_torch(monkeypatch, source, spec)
        for _ in range(2):  # the first of its kind goes both ways
            assert same(quantize_(torch.empty_like(source), source, spec), expected), spec
        assert same(quantize_(source.clone(memory_format=torch.channels_last), source, spec).contiguous(), expected), spec
    assert not fresh._given_up and len(fresh.tried) == len(specs)


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("axis", [None, 0])
def test_linear_at_once(compiled, fresh, monkeypatch, axis, threads):
    """A tensor of several pieces, a constant channel among others; what has no range is refused as by torch, and untouched."""
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    torch.manual_seed(0)
    source, spec = (
        torch.randn(3, 70_001),
        QuantSpec(scheme="linear", bits=8, granularity="per_channel" if axis == 0 else "per_tensor"),
    )
    source[1] = 0.3
    expected, target = by_torch(monkeypatch, source, spec), torch.empty_like(source)
    quantize_(target, source, spec)
    assert not uniform.linear_at_once(source.double(), target, (255.0, -128.0), "half_even", axis, raw=False)
    assert uniform.linear_at_once(source, target.zero_(), (255.0, -128.0), "half_even", axis, raw=False) and same(
        target, expected
    )
    for value in (torch.nan, torch.inf):
        odd = source.clone()
        odd[2, 69_000] = value
        with pytest.raises(UserError, match="NaN or infinity"):
            quantize_(odd, odd, spec)
        assert torch.equal(odd[0], source[0])
    for odd in (torch.tensor(0.3), torch.full((2, 9), 0.3), torch.tensor([[-3e38, 3e38] * 8] * 2)):
        with pytest.raises(UserError):
            quantize_(odd.clone(), odd, spec)


def test_limits_of_zero_are_left_to_torch(compiled, fresh, monkeypatch):
    """Of a channel without negative values; torch's choice between zeros of two signs is not that of the kernel."""
    torch.manual_seed(0)
    source, spec = torch.randn(4, 16).abs(), QuantSpec(scheme="affine", bits=4, granularity="per_channel")
    assert same(quantize_(torch.empty_like(source), source, spec), by_torch(monkeypatch, source, spec)) and not fresh.tried


@pytest.mark.parametrize("scheme", ["linear", "affine"])
def test_limits_clip_alike(compiled, fresh, monkeypatch, scheme):
    torch.manual_seed(0)
    source, spec = torch.randn(64, 64), QuantSpec(scheme=scheme, bits=3)
    limits = (torch.tensor(-1.0), torch.tensor(0.7))
    expected = by_torch(monkeypatch, source, spec, limits)
    assert all(same(quantize_(torch.empty_like(source), source, spec, limits), expected) for _ in range(2))
    assert fresh.tried


def test_activations_are_alike(compiled, fresh):
    torch.manual_seed(0)
    x = torch.randn(4, 8, 6, 6)
    x[0, 0, 0, 0] = torch.nan
    module = FakeQuantize("a", QuantSpec(scheme="affine", bits=4))
    module.set_range(-1.5, 2.0)
    with torch.no_grad():
        once, again, in_place = module(x), module(x), module(x.clone(), overwrite=True)
        with Watched():
            watched = module(x)  # by torch, since somebody looks at what runs
    assert fresh.tried == {("multiply", "half_even")}
    assert same(once, again) and same(once, in_place) and same(once, watched)


class Watched(TorchDispatchMode):
    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        return func(*args, **kwargs or {})


def test_ranges_of_rows(compiled):
    x = torch.randn(5, 77)
    low, high = uniform.row_ranges(x)
    assert torch.equal(low, x.amin(1)) and torch.equal(high, x.amax(1))
    x[3, 70] = torch.nan
    low, high = uniform.row_ranges(x)
    assert low.isnan().tolist() == high.isnan().tolist() == [False, False, False, True, False]
    assert uniform.row_ranges(torch.randn(5, 7)) is None and uniform.row_ranges(x.double()) is None
    assert uniform.row_ranges(torch.zeros(2, 9)) is None  # whose zeros may have two signs


@pytest.mark.parametrize("mask", ["paper", "rounded"])
@pytest.mark.parametrize("offset", [None, 0.1])
@pytest.mark.parametrize("num_elements", [300, 300_000])
def test_learned_steps_have_the_same_gradients(compiled, fresh, monkeypatch, mask, offset, num_elements):
    """To the last bit, of the values, of the step and of the offset; ties and ends among them, in one block and in several."""
    torch.manual_seed(0)
    values, slopes = torch.randn(num_elements), torch.randn(num_elements)
    values[:9] = torch.tensor([-0.5, -0.25, 0.0, -0.0, 0.125, 0.375, 0.75, 1.75, -2.0])

    def gradients():
        x, scale = values.clone().requires_grad_(), torch.tensor(0.25, requires_grad=True)
        extra = None if offset is None else torch.tensor(offset, requires_grad=True)
        y = fake_quantize_learned(x, scale, quant_min=-2, quant_max=7, gradient_factor=0.1, mask=mask, offset=extra)
        y.backward(slopes)
        return [y.detach(), x.grad, scale.grad, *([] if extra is None else [extra.grad])]

    with monkeypatch.context() as patch:
        patch.setattr(uniform, "_is_plain", lambda x, out: False)
        expected = gradients()
    for _ in range(2):
        assert all(map(same, gradients(), expected))
    assert ("learned", "half_even") in fresh.tried and not fresh._given_up


def double(x, out):
    torch.mul(x, 2.0, out=out)


def test_a_library_that_computes_something_else_is_not_used(compiled, fresh):
    kernel = uniform.UniformKernel(lambda x, out, *params: double(x, out), "multiply", None)
    x, params = torch.ones(16), (torch.tensor(1.0), -9.0, 9.0, torch.tensor(1.0))
    for _ in range(2):
        out = torch.empty(16)
        in_blocks(kernel, x, out, params, None)
        assert torch.equal(out, 2 * x)
    assert fresh._given_up and not fresh.tried


@needs_compiler
def test_it_is_built_once_it_pays(fresh, monkeypatch):
    monkeypatch.setattr(uniform, "WORTH", 3 * 64)
    source, spec, library = torch.randn(64), QuantSpec(scheme="linear", bits=8), built_library(uniform._SOURCE)
    expected = by_torch(monkeypatch, source, spec)
    for there in (False, False, True):
        assert same(quantize_(torch.empty_like(source), source, spec), expected)
        assert library.exists() is there
    assert fresh.tried == {("linear", "half_even")} and [*library.parent.iterdir()] == [library]


@pytest.mark.parametrize("how", ["no compiler", "no success", "no place", "no library"])
def test_without_it_blocks_do_it(fresh, monkeypatch, tmp_path, how):
    monkeypatch.setattr(uniform, "WORTH", 0)
    if how == "no compiler":
        monkeypatch.delenv("CXX", raising=False)
        monkeypatch.setenv("PATH", "")
    elif how == "no success":
        monkeypatch.setenv("CXX", "false")
    elif how == "no place":
        (tmp_path / "file").write_text("")
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    else:
        library: Path = built_library(uniform._SOURCE)
        library.parent.mkdir(parents=True)
        library.write_text("no library")
        monkeypatch.setenv("CXX", "false")
    source, spec = torch.randn(64), QuantSpec(scheme="linear", bits=8)
    for _ in range(2):
        assert same(quantize_(torch.empty_like(source), source, spec), by_torch(monkeypatch, source, spec))
    assert not fresh.tried and fresh._given_up


def test_a_library_that_differs_is_given_up_for_all_that_it_was_tried_on(compiled, fresh, monkeypatch):
    source, spec = torch.randn(4, 64), QuantSpec(scheme="linear", bits=8, granularity="per_channel")
    expected = by_torch(monkeypatch, source, spec)
    for _ in range(2):
        quantize_(torch.empty_like(source), source, spec)
    assert fresh.tried
    fresh.tell(("multiply", "half_even"), alike=False)
    assert same(quantize_(torch.empty_like(source), source, spec), expected) and not fresh.tried


@pytest.mark.parametrize("scheme", ["linear", "affine"])
def test_a_tensor_without_channels_is_refused_as_ever(fresh, scheme):
    with pytest.raises(UserError, match="at least one element"):
        quantize_(torch.empty(0, 9), torch.empty(0, 9), QuantSpec(scheme=scheme, bits=8, granularity="per_channel"))


def test_a_cache_that_may_not_be_entered_is_none(fresh, monkeypatch):
    def refused(self):
        raise PermissionError(str(self))

    monkeypatch.setattr(Path, "exists", refused)  # as Python 3.11 does for a folder of another user's
    assert fresh.library(0) is None
