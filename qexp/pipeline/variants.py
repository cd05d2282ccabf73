"""The ways to quantize that a sweep asks for, told apart by content and named for people."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from qexp.base.files import hash_json
from qexp.base.nouns import FLOAT_VARIANT, ActivationInfo, Plan, PlanRow, TensorInfo
from qexp.calibrate.result import CALIBRATION_VERSION
from qexp.calibrate.settings import READS
from qexp.engine.evaluate import EVALUATOR_VERSION
from qexp.policy.plan import make_plan
from qexp.policy.table import plan_size_bytes
from qexp.quant.schemes import QUANTIZER_VERSION
from qexp.schema import Config


@dataclass(frozen=True)
class Variant:
    """One quantized copy of every epoch.

    Args:
        label: what a person reads. key: hash of all that decides its numbers, the versions of quantizer and evaluator included.
        config: of the first job that asked for it. plan: which tensor gets which quantizer. size_bytes: packed.
        notes: other jobs that ask for the same numbers.
    """

    label: str
    key: str
    config: Config
    plan: Plan
    size_bytes: int
    notes: tuple[str, ...] = ()

    @property
    def is_float(self) -> bool:
        """True for the network as trained, the reference."""
        return self.label == FLOAT_VARIANT

    @property
    def bits(self) -> int:
        """Width of the weights: 32 as trained, 16 cast to half, else as asked."""
        return 32 if self.is_float else 16 if self.config.mode == "half" else self.config.bits

    @property
    def is_built(self) -> bool:
        """True where the plain shadow cannot hold it."""
        return not self.is_float and is_built(self.config, self.plan)

    @property
    def structure(self) -> tuple[bool, str]:
        """What the module graph of the copy depends on: cast to half, and what is done to its input."""
        return self.plan.mode == "half", self.plan.input_quant


def make_variants(
    configs: Sequence[Config],
    tensors: Sequence[TensorInfo],
    activations: Callable[[bool], Sequence[ActivationInfo]] = lambda dynamic: (),
) -> tuple[Variant, ...]:
    """The float network first, then one variant per distinct plan, in the order asked for.

    Jobs with equal plans (all widths of `mode=half`, say) are one variant with a note. `mode=float` controls of different widths
    have different plans and stay apart.

    Args:
        configs: of jobs that share a training. tensors: inventory of the network.
        activations: the places of its activations, static or (True) dynamic; asked only where a job quantizes activations.
    """
    untouched = Plan(rows=tuple(PlanRow(info, None, "", "float network") for info in tensors), mode="float32")
    variants = [_variant(FLOAT_VARIANT, configs[0], untouched)]
    for config in configs:
        places = activations(config.quant.activation.dynamic) if asks_for_activations(config) else ()
        plan = make_plan(
            tensors, policy=config.policy, quant=config.quant, bits=config.bits, mode=config.mode, activations=places
        )
        found = _variant(label(config, plan), config, plan)
        twin = next((number for number, other in enumerate(variants) if other.key == found.key), None)
        if twin is None:
            variants.append(found)
        elif variants[twin].label == found.label and found.bits == config.bits:
            continue
        else:
            note = f"bits={config.bits} policy={config.policy.name} quant={config.quant.name} asks for the same numbers"
            variants[twin] = replace(variants[twin], notes=(*variants[twin].notes, note))
    return tuple(_distinct(variants))


def _variant(name: str, config: Config, plan: Plan) -> Variant:
    evaluate = {"split": config.evaluate.split, "num_images": config.evaluate.num_images}
    versions = {"quantizer": QUANTIZER_VERSION, "evaluator": EVALUATOR_VERSION}
    key = hash_json({"plan": plan.hash, "evaluate": evaluate, "versions": versions, **_preparation(config, plan)})
    return Variant(name, key, config, plan, plan_size_bytes(plan))


def asks_for_activations(config: Config) -> bool:
    """True where a job gives activations a width."""
    rules = config.policy.rules or () if config.policy.name == "rules" else ()
    return config.mode != "half" and (
        config.quant.activation.bits is not None or any(rule.role == "activation" for rule in rules)
    )


def is_built(config: Config, plan: Plan) -> bool:
    """True where a copy takes more than rounding each weight to the nearest code of its whole range."""
    if plan.mode not in ("int", "float"):
        return False
    return bool(config.correct.names) or config.calibrate.weights != "minmax" or bool(plan.quantized_activations)


def _preparation(config: Config, plan: Plan) -> dict[str, Any]:
    """What decides the numbers of a built copy beside its plan; settings that are not read stay out."""
    if not is_built(config, plan):
        return {}
    static = any(not spec.dynamic for spec in plan.quantized_activations.values())
    calibrate, correct = asdict(config.calibrate), config.correct
    methods = {"weights": calibrate.pop("weights"), "activations": calibrate.pop("name") if static else None}
    read = {key for key, readers in READS.items() if set(methods.values()) & set(readers)}
    if static or correct.needs_images:
        read |= {"split", "num_images", "batch_size"}
    found: dict[str, Any] = {"version": CALIBRATION_VERSION, **methods, **{key: calibrate[key] for key in sorted(read)}}
    if correct.names:
        values = asdict(correct)
        unread = (() if correct.adaround else ("adaround_",)) + (() if correct.rescale_log10 else ("rescale_",))
        found |= {key: value for key, value in values.items() if not key.startswith(unread)}
        found |= {"seed": config.seed} if correct.adaround else {}
    return {"preparation": found}


def _distinct(variants: Sequence[Variant]) -> list[Variant]:
    """Labels made unique: two variants that read alike get their key's first digits."""
    labels = [variant.label for variant in variants]
    return [replace(v, label=f"{v.label} {v.key[:4]}") if labels.count(v.label) > 1 else v for v in variants]


def label(config: Config, plan: Plan) -> str:
    """The dials, then whatever differs from the defaults: `W4 int`, `half`, `W4 int conv_linear c4 l8`, `W4/8 int rules`."""
    # Rules may leave nothing at the width of the dial, so what they chose is said instead.
    widths = {spec.bits for spec in plan.quantized.values()} if config.policy.name == "rules" else {config.bits}
    places = sorted({spec.bits for spec in plan.quantized_activations.values()})
    activations = f"A{'/'.join(map(str, places))}" if places else ""
    parts = ["half"] if config.mode == "half" else [f"W{'/'.join(map(str, sorted(widths)))}{activations}", config.mode]
    policy, quant, weight = config.policy, config.quant, config.quant.weight
    if policy.name != "uniform" and config.mode != "half":
        parts.append(policy.name)
        if policy.name == "conv_linear":
            parts += [f"c{policy.conv_bits or config.bits}", f"l{policy.linear_bits or config.bits}"]
        if policy.name == "first_last":
            parts.append(f"e{policy.edge_bits}")
    if config.mode != "half":
        parts += [quant.name] if quant.name != "linear" else []
        parts += [weight.granularity] if weight.granularity != "per_tensor" else []
        if weight.rounding != "half_even" and config.mode == "int":
            drawn = weight.rounding == "stochastic" and weight.rounding_seed
            parts.append(f"{weight.rounding}_{weight.rounding_seed}" if drawn else weight.rounding)
        parts += [weight.arithmetic] if weight.arithmetic != "reciprocal" else []
        parts += _preparation_words(config, plan)
    parts += [f"input_{quant.input}"] if quant.input != "none" and config.mode != "float" else []
    return " ".join(parts)


def _preparation_words(config: Config, plan: Plan) -> list[str]:
    """Ranges and corrections that are not the defaults: `w_mse dynamic fold_bn bias_empirical n256`."""
    calibrate, correct, specs = config.calibrate, config.correct, plan.quantized_activations.values()
    words = [f"w_{calibrate.weights}"] if calibrate.weights != "minmax" else []
    if specs:
        words += ["dynamic"] if any(spec.dynamic for spec in specs) else [calibrate.name] if calibrate.name != "minmax" else []
        words += [f"a_{config.quant.activation.scheme}"] if config.quant.activation.scheme != "affine" else []
    images = calibrate.num_images is not None and (correct.needs_images or any(not spec.dynamic for spec in specs))
    return [*words, *correct.names, *([f"n{calibrate.num_images}"] if images else [])]
