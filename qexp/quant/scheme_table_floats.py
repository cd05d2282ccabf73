"""The rows of floating-point formats and of blocks that share a scale; torch-free."""

from __future__ import annotations

from qexp.quant.scheme_info import SchemeInfo, format_codes, restricted

_FLOAT, _BLOCKS = "qexp.quant.float_quantizers:", "qexp.quant.block_quantizers:"
_EIGHT, _SIX, _FOUR = (f"Its elements have {bits} bits." for bits in (8, 6, 4))

# fmt: off
FLOAT_ROWS = (
    SchemeInfo(
        name="minifloat", code=_FLOAT + "Minifloat",
        summary="A small floating-point format, quant.weight.format, times a scale that brings max|x| to its largest number; "
                "zero is exact.",
        min_bits=3, max_bits=16, why_max="", codes=restricted, ends="magnitude", undefined_on="zero", zero="always",
        rounds=True, even_steps=False, control_min_bits=3, reads=("format", "scaled"), dequantizes=True,
        group_bytes=lambda bits: 4, tensor_bytes=0, block=None, covers_ends=True, activations=True, onnx=False),
    SchemeInfo(
        name="mxfp8_e4m3", code=_BLOCKS + "Mxfp8E4m3",
        summary="OCP MXFP8: e4m3fn in blocks of 32 that share a power of two; zero is exact.",
        min_bits=8, max_bits=8, why_max=_EIGHT, codes=format_codes("e4m3fn"), ends="none", undefined_on="nothing", zero="always",
        rounds=True, even_steps=False, control_min_bits=8, reads=(), dequantizes=True,
        group_bytes=lambda bits: 1, tensor_bytes=0, block=32, covers_ends=False, activations=True, onnx=False),
    SchemeInfo(
        name="mxfp8_e5m2", code=_BLOCKS + "Mxfp8E5m2",
        summary="OCP MXFP8: e5m2 in blocks of 32 that share a power of two; zero is exact.",
        min_bits=8, max_bits=8, why_max=_EIGHT, codes=format_codes("e5m2"), ends="none", undefined_on="nothing", zero="always",
        rounds=True, even_steps=False, control_min_bits=8, reads=(), dequantizes=True,
        group_bytes=lambda bits: 1, tensor_bytes=0, block=32, covers_ends=False, activations=True, onnx=False),
    SchemeInfo(
        name="mxfp6_e2m3", code=_BLOCKS + "Mxfp6E2m3",
        summary="OCP MXFP6: e2m3 in blocks of 32 that share a power of two; zero is exact.",
        min_bits=6, max_bits=6, why_max=_SIX, codes=restricted, ends="none", undefined_on="nothing", zero="always",
        rounds=True, even_steps=False, control_min_bits=6, reads=(), dequantizes=True,
        group_bytes=lambda bits: 1, tensor_bytes=0, block=32, covers_ends=False, activations=True, onnx=False),
    SchemeInfo(
        name="mxfp6_e3m2", code=_BLOCKS + "Mxfp6E3m2",
        summary="OCP MXFP6: e3m2 in blocks of 32 that share a power of two; zero is exact.",
        min_bits=6, max_bits=6, why_max=_SIX, codes=restricted, ends="none", undefined_on="nothing", zero="always",
        rounds=True, even_steps=False, control_min_bits=6, reads=(), dequantizes=True,
        group_bytes=lambda bits: 1, tensor_bytes=0, block=32, covers_ends=False, activations=True, onnx=False),
    SchemeInfo(
        name="mxfp4", code=_BLOCKS + "Mxfp4",
        summary="OCP MXFP4: e2m1 in blocks of 32 that share a power of two; zero is exact.",
        min_bits=4, max_bits=4, why_max=_FOUR, codes=restricted, ends="none", undefined_on="nothing", zero="always",
        rounds=True, even_steps=False, control_min_bits=4, reads=(), dequantizes=True,
        group_bytes=lambda bits: 1, tensor_bytes=0, block=32, covers_ends=False, activations=True, onnx=False),
    SchemeInfo(
        name="mxint8", code=_BLOCKS + "Bfp",
        summary="OCP MXINT8: even steps in blocks of 32 that share a power of two; zero is exact.",
        min_bits=8, max_bits=8, why_max=_EIGHT, codes=restricted, ends="none", undefined_on="nothing", zero="always",
        rounds=True, even_steps=True, control_min_bits=8, reads=(), dequantizes=True,
        group_bytes=lambda bits: 1, tensor_bytes=0, block=32, covers_ends=False, activations=True, onnx=False),
    SchemeInfo(
        name="nvfp4", code=_BLOCKS + "Nvfp4",
        summary="NVIDIA's NVFP4: e2m1 in blocks of 16 with an e4m3fn scale each, under one scale for the tensor; zero is exact.",
        min_bits=4, max_bits=4, why_max=_FOUR, codes=restricted, ends="none", undefined_on="nothing", zero="always",
        rounds=True, even_steps=False, control_min_bits=4, reads=(), dequantizes=True,
        group_bytes=lambda bits: 1, tensor_bytes=4, block=16, covers_ends=True, activations=True, onnx=False),
    SchemeInfo(
        name="bfp", code=_BLOCKS + "Bfp",
        summary="Block floating point: even steps in blocks of quant.weight.block_size that share a power of two; zero is exact.",
        min_bits=2, max_bits=16, why_max="", codes=restricted, ends="none", undefined_on="nothing", zero="always",
        rounds=True, even_steps=True, control_min_bits=2, reads=("block_size",), dequantizes=True,
        group_bytes=lambda bits: 1, tensor_bytes=0, block=0, covers_ends=False, activations=True, onnx=False),
)
# fmt: on
