"""The steps of uniform quantizers by a compiled kernel (`uniform.cpp`), which goes once over memory; by torch until it pays.

Both give the same bits, so which one runs is no part of any key: the steps of the first tensor of each kind go both ways, and a
library that differs is not used again; that its ranges are torch's is seen by tests alone. A library in the
user's cache is taken at once. It is built, which takes a second or two, by a process that has given torch's blocks `WORTH`
elements, and never where there is no compiler: no short command waits.

Rejected: torch.compile, which takes ten times as long to build as the kernel, checks its guards in each call, and is one more
program for each scheme and layout; `torch.utils.cpp_extension`, whose headers take half a minute to compile.
"""

from __future__ import annotations

import ctypes
import math
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from qexp.base.compiler import build_library, built_library
from qexp.quant.affine import Operation, fake_quantize_steps

FORMS = ("linear", "linear_raw", "multiply", "divide", "scale_factor")  # the order is that of uniform.cpp, as that of
ROUNDING_NAMES = (None, "half_even", "half_up", "half_away", "floor", "ceil", "trunc")
# Elements through torch's blocks before a kernel is built: some three seconds of one core, of which the kernel takes one.
WORTH = 1 << 30
SHORTEST = 8  # elements of a channel that lie together; with fewer, each has a call of its own

_SOURCE = Path(__file__).with_suffix(".cpp")
_OWN = (Tensor, torch.nn.Parameter)  # other classes may have operators of their own
_Pointers, _Strides, _Numbers = ctypes.c_void_p * 4, ctypes.c_int64 * 4, ctypes.c_float * 4  # as many as a form has at most
_Five = ctypes.c_float * 5


Limit = Tensor | float  # one for all channels, or one for each
LearnedNumbers = tuple[Tensor, Limit, Limit, Limit, Limit]  # 1 / scale, limits of R(v), limits of v inside
Pair = Callable[[], tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class UniformKernel:
    """The steps of a uniform quantizer on float32 blocks: `kernel(x, out, *params)`, with params broadcast along the channels.

    Args:
        steps: they in torch.
        form: they in uniform.cpp, of `FORMS`, with the same parameters in the same order.
        rounding: a name in `ROUNDINGS`, or None.
        numbers: what the form has besides its parameters.
    """

    steps: Callable[..., None]
    form: str
    rounding: str | None
    numbers: tuple[float, ...] = ()

    def __call__(self, x: Tensor, out: Tensor, *params: Tensor | float) -> None:
        """Run the steps in torch."""
        self.steps(x, out, *params)


def affine_kernel(operation: Operation, rounding: Operation | None, name: str) -> UniformKernel:
    """`fake_quantize_steps` on blocks; its parameters are the operand, the limits of the steps and the scale.

    Args:
        operation: of `scaling`.
        rounding: of `rounding_of`, None for the control.
        name: of the rounding where there is one.
    """

    def steps(x: Tensor, out: Tensor, operand: Tensor, low: Tensor | float, high: Tensor | float, scale: Tensor) -> None:
        fake_quantize_steps(x, operation, operand, rounding, low, high, scale, out=out)

    return UniformKernel(steps, "multiply" if operation is torch.mul else "divide", None if rounding is None else name)


def run_uniform(
    kernel: UniformKernel, x: Tensor, out: Tensor, params: Sequence[Tensor | float], axis: int | None, blocks: Callable[[], None]
) -> None:
    """Fill `out`, by the compiled kernel where it can and may, else by `blocks`.

    Args:
        kernel: what is done.
        x: contiguous float32.
        out: likewise, of equal shape; may be x.
        params: of the kernel; numbers, 0-d or [channels].
        axis: channel axis, None per tensor.
        blocks: does the same by torch.
    """
    call = _call(kernel, x, out, params, axis) if _is_plain(x, out) else None
    library = None if call is None else _COMPILED.library(x.numel())
    if call is None or library is None:
        blocks()
    elif (kernel.form, kernel.rounding) in _COMPILED.tried:
        call(library, out)
        if not out.is_inference():
            torch.autograd.graph.increment_version(out)  # as every operator of torch's that writes
    else:
        compiled = torch.empty_like(out)
        call(library, compiled)
        blocks()
        _COMPILED.tell((kernel.form, kernel.rounding), alike=_same_bits(compiled, out))


def linear_at_once(
    source: Tensor, target: Tensor, constants: tuple[float, float], rounding: str | None, axis: int | None, *, raw: bool
) -> bool:
    """Quantize by `linear` within the tensor's own range, whole in one call; False where the steps shall go one by one.

    Args:
        source: float32; contiguous, its first dimension that of the channels.
        target: likewise, of equal shape; may be source.
        constants: of `linear_constants`.
        rounding: a name in `ROUNDINGS`, or None.
        axis: channel axis, None per tensor.
        raw: the codes.
    """
    kind = ("linear_raw" if raw else "linear", rounding)
    if kind not in _COMPILED.tried or axis not in (None, 0) or not _is_plain(source, target) or not source.numel():
        return False
    channels = 1 if axis is None or not source.dim() else len(source)
    if not (source.is_contiguous() and target.is_contiguous()) or source.numel() // channels < SHORTEST:
        return False
    library, params = _COMPILED.library(0), source.new_empty(4 * channels)
    assert library is not None, "what was tried is there"
    failed: int = library.qexp_linear(
        source.data_ptr(), target.data_ptr(), channels, source.numel() // channels, raw, ROUNDING_NAMES.index(rounding),
        _Numbers(*constants, -math.inf, math.inf), params.data_ptr(), torch.get_num_threads(),
    )  # fmt: skip
    if not failed and not target.is_inference():
        torch.autograd.graph.increment_version(target)
    return not failed


def run_learned(
    x: Tensor,
    grad: Tensor,
    numbers: tuple[Tensor, Limit, Limit, Limit, Limit],
    passed: Tensor | None,
    moved: Tensor | None,
    steps: Pair,
) -> tuple[Tensor, Tensor]:
    """LSQ's backward pass but for its sums: the gradient inside, and R(v) clamped less v inside; compiled or by `steps`.

    Args:
        x: float32.
        grad: of equal shape.
        numbers: 1 / scale, the limits of R(v), those of v inside.
        passed: where to write the first.
        moved: where to write the second.
        steps: does the same by torch.
    """
    kind = ("learned", "half_even")
    if numbers[0].dim() or any(isinstance(limit, Tensor) for limit in numbers[1:]) or not x.numel() or not _is_plain(x, grad):
        return steps()
    library = _COMPILED.library(x.numel()) if x.is_contiguous() and grad.is_contiguous() else None
    if library is None:
        return steps()
    tried = kind in _COMPILED.tried
    outs = [torch.empty_like(x) if out is None or not tried else out for out in (passed, moved)]
    library.qexp_learned(
        x.data_ptr(), grad.data_ptr(), outs[0].data_ptr(), outs[1].data_ptr(), x.numel(),
        _Five(*map(float, numbers)), torch.get_num_threads(),
    )  # fmt: skip
    if not tried:
        by_torch = steps()
        _COMPILED.tell(kind, alike=all(map(_same_bits, outs, by_torch)))
        return by_torch
    return outs[0], outs[1]


def _same_bits(a: Tensor, b: Tensor) -> bool:
    return torch.equal(a.view(torch.int32), b.view(torch.int32))


def build() -> bool:
    """Build and take the library now, whatever it is worth; returns whether it is there."""
    return _COMPILED.library(WORTH) is not None


def row_ranges(x: Tensor) -> tuple[Tensor, Tensor] | None:
    """Smallest and largest element of each row in one pass, as `qexp.quant.ranges.extremes` gives them; None where torch shall.

    Args:
        x: float32, its first dimension that of the rows.
    """
    size = x[0].numel() if x.dim() and len(x) else 0
    if size < SHORTEST or not _is_plain(x, x) or not x.is_contiguous() or (library := _COMPILED.library(0)) is None:
        return None
    low, high = x.new_empty(len(x)), x.new_empty(len(x))
    library.qexp_ranges(x.data_ptr(), len(x), size, low.data_ptr(), high.data_ptr(), torch.get_num_threads())
    # Zeros of two signs are equal, and which of them is the smallest is torch's own.
    return (low, high) if bool(low.all()) and bool(high.all()) else None


class _Compiled:
    """The library of a process: whether it is there, and which of its forms have been held against torch."""

    def __init__(self) -> None:
        self.tried: set[tuple[str, str | None]] = set()
        self._elements = 0
        self._library: ctypes.CDLL | None = None
        self._looked = self._given_up = False

    def library(self, num_elements: int) -> ctypes.CDLL | None:
        """The library, if it is built or now pays; counts the elements that torch is left with."""
        if self._library is not None or self._given_up:
            return self._library
        self._elements += num_elements
        if not self._looked:
            self._looked = True
            there = built_library(_SOURCE)  # in a folder that may be another user's, at which Path.exists would raise
            self._load(there if there is not None and os.path.exists(there) else None)
        if self._library is None and self._elements >= WORTH:
            self._load(build_library(_SOURCE))
            self._given_up = self._library is None
        return self._library

    def _load(self, path: Path | None) -> None:
        """Take a library; one that cannot be loaded counts as none."""
        if path is None:
            return
        try:
            library = ctypes.CDLL(str(path))
            pointer, size, number = ctypes.c_void_p, ctypes.c_int64, ctypes.c_int32
            sizes, numbers = [size] * 3, [number] * 3
            library.qexp_uniform.argtypes = [pointer, pointer, *sizes, *numbers, pointer, pointer, pointer, number]
            library.qexp_ranges.argtypes = [pointer, size, size, pointer, pointer, number]
            library.qexp_linear.argtypes = [pointer, pointer, size, size, number, number, pointer, pointer, number]
            library.qexp_learned.argtypes = [pointer, pointer, pointer, pointer, size, pointer, number]
            library.qexp_learned.restype = None
            library.qexp_uniform.restype = library.qexp_ranges.restype = None
        except (OSError, AttributeError):
            return
        self._library = library

    def tell(self, kind: tuple[str, str | None], *, alike: bool) -> None:
        """A kind went both ways: from now on by the library, or nothing by it any more."""
        if alike:
            self.tried.add(kind)
        else:
            self._library, self._given_up = None, True
            self.tried.clear()


_COMPILED = _Compiled()


def _is_plain(x: Tensor, out: Tensor) -> bool:
    """True where both are memory of the CPU and nobody looks at the operators that run."""
    if torch.compiler.is_compiling() or torch.jit.is_tracing():
        return False
    if torch._C._len_torch_dispatch_stack() or torch._C._len_torch_function_stack():  # as the probe does, and emulated half
        return False
    return all(type(one) in _OWN and one.is_cpu and one.dtype == torch.float32 for one in (x, out))


def _call(
    kernel: UniformKernel, x: Tensor, out: Tensor, params: Sequence[Tensor | float], axis: int | None
) -> Callable[[ctypes.CDLL, Tensor], None] | None:
    """The call of a library that fills a tensor; None where it would not do what torch does."""
    if kernel.rounding not in ROUNDING_NAMES or not x.numel():
        return None
    before, channels, size = (1, 1, x.numel()) if axis is None else _sizes(x, axis)
    if channels > 1 and size < SHORTEST:
        return None
    if kernel.form in ("multiply", "divide") and any(
        isinstance(limit, Tensor) and not bool(limit.all()) for limit in params[1:3]
    ):
        return None  # between zeros of two signs torch chooses otherwise where limits are tensors
    values, strides = [], []
    for param in params:
        value = param if isinstance(param, Tensor) else torch.tensor(param, dtype=torch.float32)
        stride = int(value.numel() > 1)
        if not (value.is_cpu and value.dtype == torch.float32 and value.is_contiguous()) or (stride and len(value) != channels):
            return None
        values.append(value)
        strides.append(stride)

    def call(library: ctypes.CDLL, out: Tensor) -> None:
        library.qexp_uniform(
            x.data_ptr(), out.data_ptr(), before, channels, size,
            FORMS.index(kernel.form), ROUNDING_NAMES.index(kernel.rounding), len(values),
            _Pointers(*(value.data_ptr() for value in values)), _Strides(*strides), _Numbers(*kernel.numbers),
            torch.get_num_threads(),
        )  # fmt: skip

    return call


def _sizes(x: Tensor, axis: int) -> tuple[int, int, int]:
    """Elements before the channel axis, channels, elements behind it."""
    axis %= x.dim()
    return x.shape[:axis].numel(), x.shape[axis], x.shape[axis + 1 :].numel()
