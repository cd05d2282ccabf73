"""The few types that travel between packages: frozen, flat, free of torch at import.

Shapes: N images, C classes (logits) or channels (images), H W pixels.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from functools import cached_property
from math import prod
from pathlib import PurePath
from typing import TYPE_CHECKING, NamedTuple

from qexp.base.files import hash_json

if TYPE_CHECKING:
    from torch import Tensor


class Batch(NamedTuple):
    """Images ready for a network, on its device.

    Args:
        images: [N, C, H, W] float32, normalized.
        labels: [N] int64.
        positions: [N] int64, of each image in its split (stable over epochs, ranks and batch sizes).
        num_global: images in this step over all ranks; N where there is one rank.
        mixed_with: [N] int64, the label of what each image was mixed with; None where nothing was.
        share: of `labels` in a mixed image, 0 to 1; the rest is that of `mixed_with`.
    """

    images: Tensor
    labels: Tensor
    positions: Tensor
    num_global: int
    mixed_with: Tensor | None = None
    share: float = 1.0


@dataclass(frozen=True, kw_only=True)
class QuantSpec:
    """How one tensor is quantized.

    Args:
        scheme: name in `qexp.quant.scheme_table.SCHEMES` (`linear`, `affine`, `symmetric`, ...), or the text of a user's
            function; `half` where mode is.
        bits: width of the codes, 1 to 16.
        mode: `int` rounds to the grid; `float` is the control, the same map and clamp without rounding; `half` casts to fp16.
        granularity: `per_tensor`, `per_channel`, `per_group` or `per_in_out_channel`; `per_block` of schemes with blocks of their
            own.
        axis: the output-channel axis where granularity is `per_channel`, `per_group` or `per_block` (0; of a transposed conv 1);
            of an activation its channels.
        rounding: name in `qexp.quant.rounding.ROUNDINGS`.
        arithmetic: `reciprocal` multiplies by 1/scale as torch does, `divide` divides by scale as ONNX does.
        group_size: elements of a group where granularity is `per_group`.
        rounding_seed: of the generator where rounding is `stochastic`.
        level: of `log2` and `quadratic`, as in `qexp.config.quant.WeightQuantSettings`, where the next four are described too.
        signed: of `scale_factor`.
        fraction_bits: of `fixed_point`.
        pow2_round: of `pow2_scale`.
        pin_zero: of the `lut` schemes.
        dynamic: of an activation: its range is each batch's as it comes.
        layers_only: of an activation: only what layers read is quantized.
        source: of a user's own scheme: `qexp.base.user_source.source_hash` of its code.
        format: of `minifloat`, a name of `qexp.quant.float_format`; empty for the default of the width.
        scaled: of `minifloat`: false takes values as they are.
        block_size: elements of a block where granularity is `per_block`.
    """

    scheme: str
    bits: int
    mode: str = "int"
    granularity: str = "per_tensor"
    axis: int = 0
    rounding: str = "half_even"
    arithmetic: str = "reciprocal"
    group_size: int | None = None
    rounding_seed: int = 0
    level: str = "nearest"
    signed: bool = True
    fraction_bits: int | None = None
    pow2_round: str = "ceil"
    pin_zero: bool = False
    dynamic: bool = False
    layers_only: bool = False
    source: str = ""
    format: str = ""
    scaled: bool = True
    block_size: int = 0

    @property
    def identity(self) -> dict[str, object]:
        """What a hash covers: the fields that every spec has had, and the later ones where they are not at their default.

        So a field that is added leaves the hashes of the specs that do not use it, and with them stored evaluations, as they are.
        Of a user's own scheme file and function are named, not where the file lies.
        """
        values = {field.name: getattr(self, field.name) for field in fields(self)} | {"scheme": PurePath(self.scheme).name}
        return {
            field.name: values[field.name]
            for field in fields(self)
            if field.name in _FIRST_FIELDS or values[field.name] != field.default
        }


_FIRST_FIELDS = ("scheme", "bits", "mode", "granularity", "axis", "rounding", "arithmetic")


@dataclass(frozen=True)
class QParams:
    """What maps codes back to values: x = (code - zero_point) * scale.

    Args:
        scale: float32, 0-d (per tensor) or [channels].
        zero_point: same shape as scale; integral where the scheme represents zero exactly.
        quant_min: smallest code.
        quant_max: largest code.
        axis: channel axis, None per tensor.
    """

    scale: Tensor
    zero_point: Tensor
    quant_min: int
    quant_max: int
    axis: int | None = None


@dataclass(frozen=True, kw_only=True)
class TensorInfo:
    """One entry of a state dict, as a policy sees it.

    Args:
        name: key in the state dict.
        module: qualified name of the module that owns it.
        module_type: the class name of that module (`Conv2d`).
        kind: `conv`, `linear`, `norm`, `embedding` or `other`, by module type.
        role: `weight`, `bias`, `statistic` (BN running mean and variance), `counter` (integer buffers) or `other`.
        shape: as stored.
        dtype: as stored (`float32`).
        channel_axis: output-channel axis of a weight.
        constant: all elements equal, so a range quantizer is undefined on it.
        order: position of its first use in one forward; -1 if that forward never reads it.
        tied_to: the earlier name under which the same storage is listed; None where there is none.
    """

    name: str
    module: str
    module_type: str
    kind: str
    role: str
    shape: tuple[int, ...]
    dtype: str
    channel_axis: int = 0
    constant: bool = False
    order: int = 0
    tied_to: str | None = None

    @property
    def num_elements(self) -> int:
        """Number of elements."""
        return prod(self.shape)


@dataclass(frozen=True)
class PlanRow:
    """What happens to one tensor.

    Args:
        info: the tensor.
        spec: its quantizer; None where it is left alone.
        rule: what chose the quantizer.
        reason: why it is left alone; empty where it is quantized.
    """

    info: TensorInfo
    spec: QuantSpec | None
    rule: str
    reason: str = ""


@dataclass(frozen=True, kw_only=True)
class ActivationInfo:
    """One activation point, where activations become codes, as a policy sees it: a value, or several that share a scale.

    Args:
        name: path of the module or function whose value it is (`layer1.0.relu`, `layer1.0.add`), of a concatenation that joins
            several (`inception3a.cat`), or `input`, the images.
        producers: names of all values that get the codes.
        operator: what makes these values (`conv+norm+relu`, `add`, `concat`, `image`).
        consumers: names of the operators that read the codes.
        kinds: of the consumers (`conv`, `linear`, `matmul`, `attention`, `add`, `multiply`, `concat`, `pool`).
        layers: state-dict names of the weights that the codes are multiplied with, or that lie in what is not entered.
        shape: of one image's value.
        channel_axis: of a batch's value.
        non_negative: no value is below zero, whatever the images.
        norm: the batch norm that, followed by at most a ReLU or ReLU6, makes the value; None where there is none.
        order: position in the order of execution; -1 where the layer that it names is not executed.
        executed: false for a layer that the forward never calls.
        entered: false for the products inside an operator that is not looked into, as attention.
    """

    name: str
    producers: tuple[str, ...] = ()
    operator: str = ""
    consumers: tuple[str, ...] = ()
    kinds: tuple[str, ...] = ()
    layers: tuple[str, ...] = ()
    shape: tuple[int, ...] = ()
    channel_axis: int = 1
    non_negative: bool = False
    norm: str | None = None
    order: int = 0
    executed: bool = True
    entered: bool = True


@dataclass(frozen=True)
class ActivationRow:
    """What happens to one activation.

    Args:
        info: the activation point.
        spec: its quantizer; None where it is left float.
        rule: what chose the quantizer.
        reason: why it is left float; empty where it is quantized.
    """

    info: ActivationInfo
    spec: QuantSpec | None
    rule: str
    reason: str = ""


@dataclass(frozen=True)
class Plan:
    """Tensor name -> quantizer and the rule that chose it, for a whole state dict.

    Args:
        rows: one per state-dict entry, in its order.
        mode: `int`, `float` or `half`.
        input_quant: what is done to the network's input: `none`, `int`, ...
        notes: sentences for the reader (settings that were not used, tensors that would have been destroyed).
        activations: one row per activation point of the network's graph; none where activations stay float.
    """

    rows: tuple[PlanRow, ...]
    mode: str = "int"
    input_quant: str = "none"
    notes: tuple[str, ...] = ()
    activations: tuple[ActivationRow, ...] = ()

    @cached_property
    def quantized(self) -> dict[str, QuantSpec]:
        """Name -> spec of the tensors that are quantized."""
        return {row.info.name: row.spec for row in self.rows if row.spec is not None}

    @property
    def quantized_activations(self) -> dict[str, QuantSpec]:
        """Name -> spec of the activations that are quantized."""
        return {row.info.name: row.spec for row in self.activations if row.spec is not None}

    @cached_property
    def hash(self) -> str:
        """Names everything that decides the numbers: specs, mode, input, activations; not rule names nor notes."""
        specs = {name: spec.identity for name, spec in self.quantized.items()}
        activations = {row.info.name: [row.spec.identity, row.info.producers] for row in self.activations if row.spec}
        parts = {"specs": specs, "mode": self.mode, "input": self.input_quant}
        if activations:  # a plan without them keeps the hash that it has always had
            parts["activations"] = activations
        return hash_json(parts)


@dataclass(frozen=True, kw_only=True)
class Metrics:
    """One evaluation; what the numbers are, and their units, is in their rows in `qexp.config.metrics`.

    Args:
        prec1: percent.
        prec5: percent; of all classes if there are fewer than five.
        loss: nats.
        n: number of images.
        kl: against the reference, nats; None without one.
        logit_sqnr_db: against the reference, dB; None without one, or where both are bitwise equal.
        finite: all logits were finite.
        extra: metrics that were asked for, by name.
    """

    prec1: float
    prec5: float
    loss: float
    n: int
    kl: float | None = None
    logit_sqnr_db: float | None = None
    finite: bool = True
    extra: Mapping[str, float | None] = field(default_factory=dict)
