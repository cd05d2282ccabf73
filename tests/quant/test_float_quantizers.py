"""The schemes of small floats and of blocks: against a few lines of each standard with `ml_dtypes`' casts, block by block."""

from __future__ import annotations

import math

import ml_dtypes
import numpy as np
import pytest
import torch
from torch import Tensor

from qexp.base.errors import UserError
from qexp.base.types import QuantSpec
from qexp.quant.encoding import decode, encode
from qexp.quant.float_format import parse_format
from qexp.quant.layout import channel_blocks, layout_of
from qexp.quant.minifloat import round_to_format
from qexp.quant.packing import pack
from qexp.quant.scheme_table import SCHEMES
from qexp.quant.schemes import fit, quantize_
from qexp.quant.storage import stored_bytes

# Scheme -> cast of an element, its largest number, and the exponent of its largest power of two (OCP MX, table 1).
ELEMENTS = {
    "mxfp8_e4m3": (ml_dtypes.float8_e4m3fn, 448.0, 8), "mxfp8_e5m2": (ml_dtypes.float8_e5m2, 57344.0, 15),
    "mxfp6_e2m3": (ml_dtypes.float6_e2m3fn, 7.5, 2), "mxfp6_e3m2": (ml_dtypes.float6_e3m2fn, 28.0, 4),
    "mxfp4": (ml_dtypes.float4_e2m1fn, 6.0, 2),
}  # fmt: skip
BLOCKED = SCHEMES.names_where(lambda row: row.block is not None)


def spec_of(scheme: str, **others) -> QuantSpec:
    row = SCHEMES[scheme]
    others = {"bits": row.min_bits, "granularity": "per_block", "block_size": row.block_size(32), **others}
    return QuantSpec(scheme=scheme, **others)


def copy_of(x: Tensor, spec: QuantSpec, limits: tuple[Tensor, Tensor] | None = None) -> Tensor:
    return quantize_(torch.empty_like(x), x, spec, limits)


def weight(*shape: int) -> Tensor:
    """Channels of other sizes, one of zeros and one of very small numbers among them."""
    x = torch.randn(*shape, generator=torch.Generator().manual_seed(0))
    x *= torch.exp2(torch.linspace(-12, 3, shape[0])).reshape(-1, *[1] * (len(shape) - 1))
    x[1], x[2] = 0.0, x[2] * 1e-30
    return x


def blocks_of(x: np.ndarray, size: int) -> list[np.ndarray]:
    """The definition: each output channel in the order kh, kw, Cin, cut every `size` elements."""
    rows = [channel.ravel() for channel in np.moveaxis(x, 1, -1)]
    return [row[start : start + size] for row in rows for start in range(0, len(row), size)]


def mx(block: np.ndarray, scheme: str) -> np.ndarray:
    """OCP MX 1.0, section 6.3: the shared exponent, the quotients, what is beyond the largest number clamped to it."""
    if scheme in ELEMENTS:
        cast, largest, emax = ELEMENTS[scheme]
    else:  # MXINT8, of which 2^-6 is the step; block floating point alike
        cast, largest, emax = None, 127 / 64, 0
    peak = np.abs(block).max()
    exponent = -127 if peak == 0 else max(math.floor(math.log2(peak)) - emax, -127)
    quotients = np.clip(block.astype(np.float64) / 2.0**exponent, -largest, largest).astype(np.float32)
    elements = quotients.astype(cast).astype(np.float64) if cast else np.round(quotients.astype(np.float64) * 64) / 64
    return (elements * 2.0**exponent).astype(np.float32)


@pytest.mark.parametrize("shape", [(8, 40, 3, 3), (5, 64, 1, 1), (6, 70), (4, 1, 3, 3)])
@pytest.mark.parametrize("scheme", [*ELEMENTS, "mxint8"])
def test_mx_is_the_standards(scheme, shape):
    x = weight(*shape)
    copy = copy_of(x, spec_of(scheme))
    expected = [mx(block, scheme) for block in blocks_of(x.numpy(), 32)]
    for ours, theirs in zip(blocks_of(copy.numpy(), 32), expected, strict=True):
        np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize("scheme", [*ELEMENTS, "mxint8"])
def test_mx_is_gfloats(scheme):
    gfloat = pytest.importorskip("gfloat", reason="needs gfloat: pip install 'qexp[dev]'")
    from gfloat import formats

    info = getattr(formats, f"format_info_{'mxfp4_e2m1' if scheme == 'mxfp4' else scheme}")
    x = weight(10, 32)[3:]
    copy = copy_of(x, spec_of(scheme))
    for ours, block in zip(copy, x.double().numpy(), strict=True):
        np.testing.assert_array_equal(
            ours.numpy(), gfloat.quantize_block(info, block, gfloat.compute_scale_amax).astype(np.float32)
        )


def test_bfp_at_eight_bits_is_mxint8_and_otherwise_its_own_width():
    x = weight(8, 40, 3, 3)
    assert torch.equal(copy_of(x, spec_of("bfp", bits=8)), copy_of(x, spec_of("mxint8")))
    for bits, size in ((2, 8), (4, 16), (16, 100)):
        copy = copy_of(x, spec_of("bfp", bits=bits, block_size=size))
        for ours, block in zip(blocks_of(copy.numpy(), size), blocks_of(x.numpy(), size), strict=True):
            peak = np.abs(block).max()
            step = 2.0 ** (math.floor(math.log2(peak)) - (bits - 2)) if peak else 1.0
            most = 2 ** (bits - 1) - 1
            np.testing.assert_array_equal(ours, np.clip(np.round(block.astype(np.float64) / step), -most, most) * step)


def test_nvfp4_is_nvidias():
    """Two levels: t = max|x| / (6 * 448) for the tensor, e4m3(max|block| / 6 / t) for each block of 16."""
    x = weight(8, 40, 3, 3)
    copy = copy_of(x, spec_of("nvfp4"))
    tensor_scale = np.float32(np.float64(np.abs(x.numpy()).max()) / (6 * 448))
    zero = 0
    for ours, block in zip(blocks_of(copy.numpy(), 16), blocks_of(x.numpy(), 16), strict=True):
        scale = (np.abs(block).max() / np.float32(6) / tensor_scale).astype(ml_dtypes.float8_e4m3fn).astype(
            np.float32
        ) * tensor_scale
        zero += scale == 0
        expected = (block / scale).astype(ml_dtypes.float4_e2m1fn).astype(np.float32) * scale if scale else 0 * block
        np.testing.assert_array_equal(ours, expected)
    assert 0 < zero < 2 * len(blocks_of(x.numpy(), 16)) / 8 + 1  # the channels of zeros, and of numbers that no scale reaches
    params = fit(x, spec_of("nvfp4")).params
    assert torch.equal(round_to_format(params["block_scale"], parse_format("e4m3fn")), params["block_scale"])


@pytest.mark.parametrize("name", ["e4m3fn", "e5m2", "e3m4", "e2m1", "e5m10"])
def test_a_minifloat_reaches_its_largest_number_and_overflows_nowhere(name):
    element = parse_format(name)
    x = weight(8, 40, 3, 3)
    for granularity, dims in (("per_tensor", (0, 1, 2, 3)), ("per_channel", (1, 2, 3))):
        spec = QuantSpec(scheme="minifloat", bits=element.bits, format=name, granularity=granularity)
        copy = copy_of(x, spec)
        scale = (x.abs().amax(dims, keepdim=True).double() / element.max_value).float().clamp(min=torch.finfo().tiny)
        assert torch.equal(copy, round_to_format(x / scale, element, overflow="sat") * scale)
        reached, largest = copy.abs().amax(dims).reshape(-1), x.abs().amax(dims).reshape(-1)
        torch.testing.assert_close(reached[-5:], largest[-5:])
    limits = (torch.tensor(-0.5), torch.tensor(0.25))  # a range from outside: beyond it is its end
    clipped = copy_of(x, QuantSpec(scheme="minifloat", bits=element.bits, format=name), limits)
    assert clipped.isfinite().all() and clipped.abs().max() == pytest.approx(0.5)


@pytest.mark.parametrize(("name", "cast"), [("e4m3fn_nan", "float8_e4m3fn"), ("e5m2", "float8_e5m2"), ("e2m1", "float4_e2m1fn")])
def test_unscaled_is_the_cast_of_a_library(name, cast):
    x = torch.cat([torch.randn(1000, generator=torch.Generator().manual_seed(0)), torch.tensor([1e6, -450.0, 464.0])])
    spec = QuantSpec(scheme="minifloat", bits=parse_format(name).bits, format=name, scaled=False)
    theirs = torch.from_numpy(x.numpy().astype(getattr(ml_dtypes, cast)).astype(np.float32))
    encoded = encode(x, spec)
    for ours in (copy_of(x, spec), decode(encoded), decode(encoded.unpack(encoded.pack()))):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=0, equal_nan=True)
    with pytest.raises(UserError, match="minifloat has no clipping range"):
        copy_of(x, spec, (torch.tensor(-1.0), torch.tensor(1.0)))


@pytest.mark.parametrize("scheme", BLOCKED)
def test_codes_and_bytes(scheme):
    """A convolution of 8 x 40 x 3 x 3: 360 elements in each output channel, the last block smaller."""
    x, spec, row = weight(8, 40, 3, 3), spec_of(scheme), SCHEMES[scheme]
    encoded = encode(x, spec)
    copy = copy_of(x, spec)
    assert torch.equal(decode(encoded), copy) and torch.equal(decode(encoded.unpack(encoded.pack())), copy)
    assert len(pack(encoded.codes, spec.bits, signed=True)) == 8 * 360 * spec.bits // 8
    blocks = 8 * math.ceil(360 / spec.block_size)
    assert encoded.params["scale"].shape == (blocks,)
    assert stored_bytes(x.shape, spec) == 360 * spec.bits + blocks * 1 + (4 if scheme == "nvfp4" else 0)
    assert encoded.codes.abs().max() <= row.codes_of(spec)[1]


def test_blocks_run_along_the_reduction():
    """Which elements share a scale: of convolutions, transposed ones (output channels are axis 1), vectors; of activations."""
    for shape, axis, order in (((4, 6, 3, 3), 0, (0, 2, 3, 1)), ((4, 6, 3, 3), 1, (1, 2, 3, 0)), ((4, 54), 0, (0, 1))):
        x = torch.arange(math.prod(shape)).reshape(shape).float()
        layout = layout_of(shape, spec_of("mxfp4", axis=axis))
        parts = layout.rows(x)
        expected = [group for channel in x.permute(order).flatten(1) for group in channel.split(32)]
        firsts = layout.join([part[:, 0] for part in parts])
        assert firsts.tolist() == [group[0].item() for group in expected] and layout.num_groups == len(expected)
        assert {tuple(row.tolist()) for part in parts for row in part} == {tuple(group.tolist()) for group in expected}
        assert torch.equal(layout.fold(parts), x)
    assert layout_of((70,), spec_of("mxfp4")).num_groups == 3 and layout_of((), spec_of("mxfp4")).num_groups == 1
    assert layout_of((16, 1, 3, 3), spec_of("mxfp4")).num_groups == 16  # depthwise: the kernel of a channel is one block
    for shape, axis, order in (((2, 40, 3, 5), 1, (0, 2, 3, 1)), ((3, 7, 40), 2, (0, 1, 2)), ((3, 40), 1, (0, 1))):
        x = torch.arange(math.prod(shape)).reshape(shape)
        parts = channel_blocks(shape, axis, 32).rows(x)
        positions = x.permute(order).reshape(-1, 40)
        assert torch.equal(parts[0], positions[:, :32]) and torch.equal(parts[1], positions[:, 32:])
        assert torch.equal(channel_blocks(shape, axis, 32).fold(parts), x)
    with pytest.raises(UserError, match="block_size=0"):
        layout_of((4, 4), spec_of("mxfp4", block_size=0))


@pytest.mark.parametrize("view", [lambda x: x, lambda x: x.to(memory_format=torch.channels_last), lambda x: x.transpose(0, 1)])
@pytest.mark.parametrize("scheme", BLOCKED)
def test_memory_formats_and_controls(scheme, view):
    x = weight(8, 8, 5, 3)
    expected = copy_of(x, spec_of(scheme))
    given, axis = view(x), 1 if view(x).stride() == x.transpose(0, 1).stride() else 0
    assert torch.equal(view(expected), copy_of(given, spec_of(scheme, axis=axis)))
    control = copy_of(x, spec_of(scheme, mode="float"))
    most = 0.51 if scheme == "bfp" else 0.26  # cut off of a block's largest number; bfp has 2 bits here
    assert ((control - x).abs() <= most * x.abs() + 1e-30).all() and len(control.unique()) > 300


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ({"scheme": "mxfp4", "bits": 8}, "exactly 4 for quant=mxfp4. Its elements have 4 bits"),
        ({"scheme": "minifloat", "bits": 4, "format": "e4m3fn"}, "a format of 4 bits. e4m3fn has 8 bits"),
        ({"scheme": "minifloat", "bits": 2}, "at least 3"),
        ({"scheme": "minifloat", "bits": 8, "format": "e4m4"}, "e4m4 has 9 bits"),
    ],
)
def test_what_a_spec_may_not_ask(spec, words):
    with pytest.raises(UserError, match=words):
        quantize_(torch.empty(4), torch.randn(4), QuantSpec(**spec))


@pytest.mark.slow  # torchao alone takes many seconds to import
@pytest.mark.filterwarnings("ignore")  # its own
def test_a_million_values_are_torchaos():
    """Of the extra `bench`: its MX formats and its NVFP4 with a scale for the tensor."""
    missing = "needs torchao: pip install 'qexp[bench]'"
    mx_tensor = pytest.importorskip("torchao.prototype.mx_formats.mx_tensor", reason=missing)
    nvfp4_tensor = pytest.importorskip(
        "torchao.prototype.mx_formats.nvfp4_tensor", reason="needs torchao: pip install 'qexp[bench]'"
    )
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(4096, 256, generator=generator)
    x *= torch.exp2(torch.randint(-15, 10, (4096, 1), generator=generator).float())
    for scheme, dtype in (
        ("mxfp8_e4m3", torch.float8_e4m3fn), ("mxfp8_e5m2", torch.float8_e5m2), ("mxfp4", torch.float4_e2m1fn_x2),
    ):  # fmt: skip
        theirs = mx_tensor.MXTensor.to_mx(x, dtype, 32).dequantize(torch.float32)
        assert torch.equal(copy_of(x, spec_of(scheme)), theirs), scheme
    x = torch.randn(4096, 256, generator=generator)  # without blocks so small that it clamps their scales, and without exact ties
    x *= torch.exp2(torch.randint(-4, 3, (4096, 1), generator=generator).float())
    tensor_scale = nvfp4_tensor.per_tensor_amax_to_scale(x.abs().max())
    theirs = nvfp4_tensor.NVFP4Tensor.to_nvfp4(x, 16, tensor_scale).dequantize(torch.float32)
    assert torch.equal(copy_of(x, spec_of("nvfp4")), theirs)
