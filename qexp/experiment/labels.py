"""What people read of a variant: its dials, then whatever is not as by default."""

from __future__ import annotations

from collections.abc import Iterable

from qexp.base.errors import UserError
from qexp.base.label import Label, draw_word
from qexp.base.types import Plan, QuantSpec
from qexp.config.calibrate import CalibrateSettings
from qexp.config.policy import PolicySettings
from qexp.config.qat import QatSettings
from qexp.config.quant import BLOCK_SIZE, ActivationQuantSettings, WeightQuantSettings
from qexp.config.root import Config
from qexp.ptq.calibration import Calibration
from qexp.quant.scheme_table import SchemeInfo


def label_of(config: Config, plan: Plan, reused: Calibration | None = None) -> Label:
    """The dials, then whatever differs from the defaults: `W4 int`, `half`, `W4 int conv_linear c4 l8`, `W4/8 int rules`."""
    policy, quant, weight = config.policy, config.quant, config.quant.weight
    seen = [f"input_{quant.input}"] if quant.input != "none" and config.mode != "float" else []
    if config.mode == "half":
        return Label("half", words=tuple(seen))
    # Rules may leave nothing at the width of the dial, so what they chose is said instead.
    widths = {spec.bits for spec in plan.quantized.values()} if policy.own_rules else {config.bits}
    places = {spec.bits for spec in plan.quantized_activations.values()}
    words: list[str] = []
    if policy.name != PolicySettings.name:
        chosen = {key: getattr(policy, key) or config.bits for key in policy.info.reads}
        words += [policy.name, *policy.info.label.format(**chosen).split()]
    words += [quant.row.name] if quant.name != "linear" else []
    words += _format_words(quant.row, weight, plan.quantized.values())
    words += [weight.granularity] if weight.granularity != "per_tensor" and quant.row.block is None else []
    if weight.rounding != "half_even" and config.mode == "int":
        drawn = weight.rounding == "stochastic" and weight.rounding_seed
        words.append(f"{weight.rounding}_{weight.rounding_seed}" if drawn else weight.rounding)
    words += [weight.arithmetic] if weight.arithmetic != "reciprocal" else []
    words += _training_words(config) if config.qat.is_on else _preparation_words(config, plan, reused)
    way = config.qat.method.name if config.qat.is_on else config.mode
    return Label(way, tuple(sorted(widths)), tuple(sorted(places)), (*words, *seen))


def one_label(first: Label, other: Label) -> Label:
    """The label of a variant that two jobs ask for: the one that was typed, if any was.

    Args:
        first: of the job that asked first.
        other: of the other one.

    Raises:
        UserError: both were given one, and not the same.
    """
    if first.given and other.given not in ("", first.given):
        remedy = f"Two jobs ask for the same numbers ({first.generated.text}), which have one row: give one label."
        raise UserError("label", other.given, allowed=first.given, remedy=remedy)
    return first if first.given else first.called(other.given, marks=other.marks)


def _preparation_words(config: Config, plan: Plan, reused: Calibration | None) -> list[str]:
    """Ranges and corrections that are not the defaults: `w_mse dynamic fold_bn bias_empirical n256`, a file's `ranges_1f3a9c`."""
    calibrate, correct, specs = config.calibrate, config.correct, plan.quantized_activations.values()
    words = [f"w_{calibrate.weight_method.name}"] if calibrate.clips_weights else []
    if specs:
        method = _ranges_word(calibrate) if reused is None else [f"ranges_{reused.hash[:6]}"]
        words += ["dynamic"] if any(spec.dynamic for spec in specs) else method
        words += ["layers"] if any(spec.layers_only for spec in specs) else []
        activation = config.quant.activation
        words += [f"a_{activation.scheme}"] if activation.scheme != "affine" else []
        words += [f"a_{word}" for word in _format_words(activation.row, activation, specs)]
    static = reused is None and any(not spec.dynamic for spec in specs)
    images = calibrate.num_images is not None and (correct.needs_images or static)
    words += [*" ".join(correct.words.values()).split(), *([f"n{calibrate.num_images}"] if images else [])]
    return [*words, *([draw_word(calibrate.draw)] if images and calibrate.draw else [])]


def _format_words(
    row: SchemeInfo, settings: WeightQuantSettings | ActivationQuantSettings, specs: Iterable[QuantSpec]
) -> list[str]:
    """The formats of a scheme that has some, the width's default too, and blocks that are no default: `e4m3fn`, `e2m1/e4m3fn`."""
    formats = {spec.format: spec.bits for spec in specs if spec.format}
    words = ["/".join(sorted(formats, key=lambda name: formats[name]))] if "format" in row.reads and formats else []
    words += ["unscaled"] if "scaled" in row.reads and not settings.scaled else []
    return words + ([f"b{settings.block_size}"] if "block_size" in row.reads and settings.block_size != BLOCK_SIZE else [])


def _ranges_word(calibrate: CalibrateSettings) -> list[str]:
    """The method for activations, where it is not the default."""
    return [calibrate.method.name] if calibrate.name != CalibrateSettings.name else []


def _training_words(config: Config) -> list[str]:
    """Settings of quantization-aware training that are not the defaults: `rounded bn_folded distill_0.5`."""
    qat, activation = config.qat, config.quant.activation
    words = [f"a_{activation.scheme}"] if activation.scheme != ActivationQuantSettings.scheme else []
    words += ["all_places"] if activation.places == "all" else []
    words += _ranges_word(config.calibrate)
    words += [qat.gradient_mask] if qat.gradient_mask != QatSettings.mask else []
    words += ["bn_folded"] if qat.batch_norm == "folded" else []
    words += ["bn_frozen"] if qat.freeze_bn_epoch is not None else []
    words += ["reestimate_bn"] if qat.reestimate_bn else []
    return [*words, *([f"distill_{qat.distill_weight:g}"] if qat.distill_weight else [])]
