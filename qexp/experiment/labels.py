"""What people read of a variant: its dials, then whatever is not as by default."""

from __future__ import annotations

from qexp.base.types import Plan
from qexp.config.qat import QatSettings
from qexp.config.quant import ActivationQuantSettings
from qexp.config.root import Config
from qexp.ptq.calibration import Calibration


def label(config: Config, plan: Plan, reused: Calibration | None = None) -> str:
    """The dials, then whatever differs from the defaults: `W4 int`, `half`, `W4 int conv_linear c4 l8`, `W4/8 int rules`."""
    # Rules may leave nothing at the width of the dial, so what they chose is said instead.
    widths = {spec.bits for spec in plan.quantized.values()} if config.policy.name == "rules" else {config.bits}
    places = sorted({spec.bits for spec in plan.quantized_activations.values()})
    activations = f"A{'/'.join(map(str, places))}" if places else ""
    way = config.qat.name if config.qat.is_on else config.mode
    parts = ["half"] if config.mode == "half" else [f"W{'/'.join(map(str, sorted(widths)))}{activations}", way]
    policy, quant, weight = config.policy, config.quant, config.quant.weight
    if policy.name != "uniform" and config.mode != "half":
        parts.append(policy.name)
        if policy.name == "conv_linear":
            parts += [f"c{policy.conv_bits or config.bits}", f"l{policy.linear_bits or config.bits}"]
        if policy.name == "first_last":
            parts.append(f"e{policy.edge_bits}")
    if config.mode != "half":
        parts += [quant.row.name] if quant.name != "linear" else []
        parts += [weight.granularity] if weight.granularity != "per_tensor" else []
        if weight.rounding != "half_even" and config.mode == "int":
            drawn = weight.rounding == "stochastic" and weight.rounding_seed
            parts.append(f"{weight.rounding}_{weight.rounding_seed}" if drawn else weight.rounding)
        parts += [weight.arithmetic] if weight.arithmetic != "reciprocal" else []
        parts += _training_words(config) if config.qat.is_on else _preparation_words(config, plan, reused)
    parts += [f"input_{quant.input}"] if quant.input != "none" and config.mode != "float" else []
    return " ".join(parts)


def _preparation_words(config: Config, plan: Plan, reused: Calibration | None) -> list[str]:
    """Ranges and corrections that are not the defaults: `w_mse dynamic fold_bn bias_empirical n256`, a file's `ranges_1f3a9c`."""
    calibrate, correct, specs = config.calibrate, config.correct, plan.quantized_activations.values()
    words = [f"w_{calibrate.weights}"] if calibrate.weights != "minmax" else []
    if specs:
        method = calibrate.name if reused is None else f"ranges_{reused.hash[:6]}"
        words += ["dynamic"] if any(spec.dynamic for spec in specs) else [method] if method != "minmax" else []
        words += ["layers"] if any(spec.layers_only for spec in specs) else []
        words += [f"a_{config.quant.activation.scheme}"] if config.quant.activation.scheme != "affine" else []
    static = reused is None and any(not spec.dynamic for spec in specs)
    images = calibrate.num_images is not None and (correct.needs_images or static)
    return [*words, *correct.names, *([f"n{calibrate.num_images}"] if images else [])]


def _training_words(config: Config) -> list[str]:
    """Settings of quantization-aware training that are not the defaults: `rounded bn_folded distill_0.5`."""
    qat, activation = config.qat, config.quant.activation
    words = [f"a_{activation.scheme}"] if activation.scheme != ActivationQuantSettings.scheme else []
    words += ["all_places"] if activation.places == "all" else []
    words += [config.calibrate.name] if config.calibrate.name != "minmax" else []
    words += [qat.mask] if qat.mask != QatSettings.mask else []
    words += ["bn_folded"] if qat.batch_norm == "folded" else []
    words += ["bn_frozen"] if qat.freeze_bn_epoch is not None else []
    words += ["reestimate_bn"] if qat.reestimate_bn else []
    return [*words, *([f"distill_{qat.distill_weight:g}"] if qat.distill_weight else [])]
