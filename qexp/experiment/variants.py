"""The ways to quantize that a sweep asks for, told apart by content and named for people."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from qexp.base.errors import UserError
from qexp.base.files import hash_json
from qexp.base.label import AS_TRAINED, Label, draw_word, read_stored_label
from qexp.base.types import ActivationInfo, Plan, PlanRow, TensorInfo
from qexp.config.outcome import Outcome
from qexp.config.root import Config
from qexp.engine.evaluate import EVALUATOR_VERSION
from qexp.experiment import racing
from qexp.experiment.labels import label_of, one_label
from qexp.nn.fake_quant import CONTAINER
from qexp.policy.plan import make_plan
from qexp.policy.sizes import larger_than_float, plan_size_bytes
from qexp.ptq.calibration import CALIBRATION_VERSION, Calibration
from qexp.qat.convert import Converted
from qexp.quant.schemes import QUANTIZER_VERSION

FLOAT = Label(AS_TRAINED)
IN_BF16 = "bf16_forward"  # of labels, where evaluate.precision=bf16


@dataclass(frozen=True)
class Variant:
    """One quantized copy of every epoch.

    Args:
        named: what a person reads, in parts.
        key: hash of all that decides its numbers, the versions of quantizer and evaluator included.
        digits: the first of the key without what repeats a variant, its draw and its seed: they tell it from others in its label.
        config: of the first job that asked for it.
        plan: which tensor gets which quantizer.
        size_bytes: packed.
        notes: other jobs that ask for the same numbers.
        calibration: of `calibrate.file`, where the plan has static places.
        trained_bits: of a converted network, which is quantized as it was trained.
    """

    named: Label
    key: str
    digits: str
    config: Config
    plan: Plan
    size_bytes: int
    notes: tuple[str, ...] = ()
    calibration: Calibration | None = None
    trained_bits: int | None = None

    @property
    def label(self) -> str:
        """What a person reads."""
        return self.named.text

    @property
    def is_float(self) -> bool:
        """True for the network as trained, the reference."""
        return self.named == FLOAT

    @property
    def bits(self) -> int:
        """Width of the weights: 32 as trained, 16 cast to half, else as asked."""
        if self.trained_bits is not None:
            return self.trained_bits
        return 32 if self.is_float else 16 if self.config.mode == "half" else self.config.bits

    @property
    def is_built(self) -> bool:
        """True where the plain shadow cannot hold it."""
        return not self.is_float and (self.trained_bits is not None or is_built(self.config, self.plan))

    @property
    def corrections(self) -> dict[str, str]:
        """Row of each correction that its copy takes -> what labels call it."""
        return self.config.correct.words if self.is_built and self.trained_bits is None else {}

    @property
    def draw(self) -> int:
        """Which calibration images it learns from; 0 where it reads none."""
        draw = self.config.calibrate.draw
        return draw if draw_word(draw) in self.named.words else 0

    @property
    def alarms(self) -> list[str]:
        """What is suspicious of it before it runs."""
        return larger_than_float(self.plan)

    def after(self, outcomes: Mapping[str, Outcome]) -> Variant:
        """The variant named by what its corrections did: without those that changed nothing, and with its digits.

        So it is not taken for what it was meant to be, nor for the variant that asks for less.

        Args:
            outcomes: row of each correction -> what it did.
        """
        words = [words for name, words in self.corrections.items() if name in outcomes and not outcomes[name].done]
        idle = [word for several in words for word in several.split()]
        return replace(self, named=self.named.without(idle).with_word(self.digits)) if idle else self

    @property
    def structure(self) -> tuple[bool, str]:
        """What the module graph of the copy depends on: cast to half, and what is done to its input."""
        return self.plan.mode == "half", self.plan.input_quant


def make_variants(
    configs: Sequence[Config],
    tensors: Sequence[TensorInfo],
    activations: Callable[[bool], Sequence[ActivationInfo]] = lambda layers_only: (),
    *,
    layers: int | None = None,
) -> tuple[Variant, ...]:
    """The float network first, then one variant per distinct plan, in the order asked for.

    Jobs with equal plans (all widths of `mode=half`, say) are one variant with a note. `mode=float` controls of different widths
    have different plans and stay apart.

    Args:
        configs: of jobs that share a training.
        tensors: inventory of the network.
        activations: the places of its activations, everywhere or (True) at layers only; asked only where a job quantizes them.
        layers: version of how its layers became modules; None where they were.

    Raises:
        UserError: a policy that does not fit, a `calibrate.file` that is damaged or was not made for the plan, or two labels
            for one variant.
    """
    return plan_jobs(configs, tensors, activations, layers=layers)[0]


def plan_jobs(
    configs: Sequence[Config],
    tensors: Sequence[TensorInfo],
    activations: Callable[[bool], Sequence[ActivationInfo]] = lambda layers_only: (),
    *,
    layers: int | None = None,
) -> tuple[tuple[Variant, ...], tuple[str, ...]]:
    """The same, and the key of the variant that each job asks for, in their order; arguments and errors are those above."""
    untouched = Plan(rows=tuple(PlanRow(info, None, "", "float network") for info in tensors), mode="float32")
    of_float = _variant(FLOAT, configs[0], untouched)
    variants, asked = {of_float.key: of_float}, []
    for config in configs:
        if config.float_only:
            asked.append(of_float.key)
            continue
        plan = _plan(config, tensors, activations)
        reused = _reused(config, plan)
        variant = _variant(label_of(config, plan, reused), config, plan, reused, layers)
        asked.append(variant.key)
        twin = variants.setdefault(variant.key, variant)
        if twin is not variant:
            named = one_label(twin.named, variant.named)
            alike = named.generated == variant.named.generated and variant.bits == config.bits
            note = f"bits={config.bits} policy={config.policy.name} quant={config.quant.row.name} asks for the same numbers"
            variants[variant.key] = replace(twin, named=named, notes=twin.notes if alike else (*twin.notes, note))
    return tuple(_distinct([*variants.values()])), tuple(asked)


def _plan(config: Config, tensors: Sequence[TensorInfo], activations: Callable[[bool], Sequence[ActivationInfo]]) -> Plan:
    """What one job quantizes how."""
    grids = config.grids
    places = activations(grids.activation.layers_only) if config.quantizes_activations else ()
    try:
        return make_plan(tensors, policy=config.policy, quant=grids, bits=config.bits, mode=config.mode, activations=places)
    except UserError as error:
        if grids.name == config.quant.name:
            raise
        # The scheme is the method's, which is what was typed.
        allowed = error.allowed.replace(f"quant={grids.name}", f"qat={config.qat.name}")
        raise UserError(error.key, error.value, allowed=allowed, remedy=error.remedy) from None


def converted_variants(
    configs: Sequence[Config],
    converted: Converted,
    tensors: Sequence[TensorInfo],
    activations: Callable[[bool], Sequence[ActivationInfo]],
) -> tuple[Variant, ...]:
    """What a converted file holds: its weights with float activations, and quantized as it was trained.

    Args:
        configs: jobs that look at it; their dials have no say.
        converted: what the file holds.
        tensors: inventory of the network with the file's weights.
        activations: the places of the network's activations, everywhere or (True) at layers only.

    Raises:
        UserError: several jobs, whose dials would differ; a place that the network does not have; bf16 for quantized activations.
    """
    config = configs[0]
    if len(configs) > 1:
        remedy = "Its quantizers were trained with it: give no sweep over bits, mode, policy, quant, calibrate or correct."
        raise UserError("checkpoint", config.checkpoint, allowed="one job for a converted network", remedy=remedy)
    if config.evaluate.precision != "fp32" and converted.activations:
        remedy = "It simulates codes of activations, which bf16 is too coarse for."
        raise UserError("evaluate.precision", config.evaluate.precision, allowed="fp32 for this network", remedy=remedy)
    layers_only = any(spec.layers_only for spec, _ in converted.activations.values())
    places = {info.name: info for info in activations(layers_only)} if converted.activations else {}
    plan = converted.plan(tuple(tensors), places)
    untouched = Plan(rows=tuple(PlanRow(info, None, "", "as in the file") for info in tensors), mode="float32")
    trained = replace(_variant(read_stored_label(str(converted.about["label"])), config, plan), trained_bits=converted.bits)
    notes = (
        "the file's own quantizers: bits, mode, policy, quant, calibrate and correct have no say",
        "fp32 here is the file's own weights, quantized as they are, with float activations: delta and KL are to that",
    )
    return _variant(FLOAT, config, untouched), replace(trained, notes=notes)


def _reused(config: Config, plan: Plan) -> Calibration | None:
    """The ranges of `calibrate.file`; None where none are asked for, or none are static."""
    specs = {f"{CONTAINER}.{name}": spec for name, spec in plan.quantized_activations.items() if not spec.dynamic}
    if config.calibrate.file is None or not specs:
        return None
    calibration = Calibration.load(Path(config.calibrate.file))
    shapes = {f"{CONTAINER}.{row.info.name}": row.info.shape for row in plan.activations}
    calibration.check(specs, {name: shapes[name] for name in specs})
    return calibration


def _variant(named: Label, config: Config, plan: Plan, reused: Calibration | None = None, layers: int | None = None) -> Variant:
    evaluate: dict[str, object] = {"split": config.evaluate.split, "num_images": config.evaluate.num_images}
    if config.evaluate.until is not None:
        settings = {"margin": config.evaluate.margin, "block": config.evaluate.batch_size, "draw": racing.DRAW}
        evaluate["until"] = settings
        named = named if named == FLOAT else named.with_word(racing.WORD)
    if config.evaluate.precision != "fp32":
        evaluate["precision"] = config.evaluate.precision
        named = named if named == FLOAT else named.with_word(IN_BF16)
    if named != FLOAT:
        named = named.called(config.label, marks=[draw_word(config.calibrate.draw)])
    if config.evaluate.engine != "eager":  # whose numbers have the keys that they had before there was another
        evaluate["engine"] = config.evaluate.engine
    versions = {"quantizer": QUANTIZER_VERSION, "evaluator": EVALUATOR_VERSION}
    if layers is not None:
        versions["layers"] = layers
    preparation = _preparation(config, plan, reused)
    repeated = {name: value for name, value in preparation.items() if name not in ("draw", "seed")}
    key, shared = (
        hash_json({"plan": plan.hash, "evaluate": evaluate, "versions": versions, **({"preparation": read} if read else {})})
        for read in (preparation, repeated)
    )
    return Variant(named, key, shared[:4], config, plan, plan_size_bytes(plan), calibration=reused)


def is_built(config: Config, plan: Plan) -> bool:
    """True where a copy takes more than rounding each weight to the nearest code of its whole range."""
    if plan.mode not in ("int", "float"):
        return False
    return config.qat.is_on or bool(config.correct.asked) or config.calibrate.clips_weights or bool(plan.quantized_activations)


def _preparation(config: Config, plan: Plan, reused: Calibration | None) -> dict[str, object]:
    """What decides the numbers of a built copy beside its plan; settings that are not read stay out."""
    if not is_built(config, plan):
        return {}
    static = reused is None and any(not spec.dynamic for spec in plan.quantized_activations.values())
    calibrate, correct = config.calibrate.identity, config.correct
    methods = {"weights": calibrate["weights"], "activations": calibrate["name"] if static else None}
    read = config.calibrate.weight_method.read_settings
    if static:
        read |= config.calibrate.method.read_settings
    if static or correct.needs_images:
        read |= {"split", "num_images", "batch_size", *(["draw"] if config.calibrate.draw else [])}
    preparation: dict[str, object] = {"version": CALIBRATION_VERSION, **methods, **{key: calibrate[key] for key in sorted(read)}}
    if reused is not None:
        preparation["activations"] = {"file": reused.hash}  # of the content, wherever the file lies
    preparation |= correct.identity if correct.asked else {}
    return preparation | ({"seed": config.seed} if any(row.draws for row in correct.asked) else {})


def _distinct(variants: Sequence[Variant]) -> list[Variant]:
    """Labels made unique: variants that read alike but for their draw get their digits, which all draws of one share.

    So are those that typed labels stand for, which `qexp.experiment.typed_labels` looks at: they do not show it.
    """
    bare = [variant.named.generated.without([draw_word(variant.draw)]) for variant in variants]
    told: dict[Label, set[str]] = {}
    for variant, label in zip(variants, bare, strict=True):
        told.setdefault(label, set()).add(variant.digits)
    named = [
        replace(v, named=v.named.with_word(v.digits, marks=False)) if len(told[label]) > 1 else v
        for v, label in zip(variants, bare, strict=True)
    ]
    # Still alike where a draw only orders the images, and no label tells it.
    times, shown = Counter(v.named.generated for v in named), Counter(v.label for v in named)
    return [
        replace(v, named=v.named.with_word(v.key[:4], marks=shown[v.label] > 1)) if times[v.named.generated] > 1 else v
        for v in named
    ]
