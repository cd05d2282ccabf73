"""What is written down of a job's runs and of its evaluations: journal rows made from a job, its variants and their scores."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from typing import Any, TypedDict

from qexp.base import dist
from qexp.base.files import canonical_json
from qexp.config.later import stored_values
from qexp.config.metrics import FEW, asked
from qexp.config.metrics import described as metrics_text
from qexp.config.root import Config
from qexp.engine.evaluate import Evaluation
from qexp.engine.measures import Measure, against
from qexp.engine.trajectory import TrajectoryStore
from qexp.experiment import racing
from qexp.experiment.evaluator import Scored
from qexp.experiment.identity import training_identity
from qexp.experiment.job import Prepared
from qexp.experiment.variants import Variant
from qexp.policy.table import plan_rows
from qexp.quant.scheme_table import PER_BLOCK, grid_name
from qexp.tracking import environment, rows
from qexp.tracking.process import host
from qexp.tracking.record import CLASSES_FILE, COLUMNS, METRICS_FILE, Record, Sweep


class Described(TypedDict):
    """Of a run row, the arguments of `qexp.tracking.rows.run_row` that say what the run is."""

    parent: str | None
    name: str
    params: dict[str, rows.Scalar]
    artifacts: dict[str, str]
    planned_epochs: int | None
    data_label: str | None


def run_key(prepared: Prepared, variant: Variant) -> str:
    """Names a run: the training for its float network, else the training and the variant."""
    return rows.run_key(prepared.training, None if variant.is_float else variant.key)


def record_of(
    prepared: Prepared, item: Scored, epoch: int, *, float_network: Evaluation, device: str, versions: dict[str, str]
) -> Record:
    """One evaluation of one variant as a record.

    Args:
        prepared: the merged job.
        item: the variant and what it scored.
        epoch: after which the weights were taken.
        float_network: the evaluation of that of this epoch.
        device: what the evaluation ran on.
        versions: of the libraries that it ran with.
    """
    variant = item.variant
    config, is_float = variant.config, variant.is_float
    return Record(
        experiment=config.name,
        training=prepared.training,
        variant=variant.label,
        named=variant.named,
        variant_key=variant.key,
        bits=variant.bits,
        mode="fp32" if is_float else config.mode,
        policy="" if is_float else config.policy.name,
        quant=_method(prepared, variant),
        granularity="" if is_float or config.mode == "half" else _granularity(prepared, variant),
        input_quant=variant.plan.input_quant,
        seed=config.seed,
        epoch=epoch,
        **_measured(prepared, item, float_network),
        size_bytes=variant.size_bytes,
        split=config.evaluate.split,
        plan_hash=variant.plan.hash,
        data_hash=prepared.bundle.fingerprint,
        alarms=item.alarms,
        world_size=dist.world_size(),
        trained_by=_trained_by(prepared, epoch),
        **_beside_weights(variant),
        corrections=", ".join(_corrections(item)),
        corrected=dict(item.outcomes),
        draw=variant.draw,
        engine=engine_of(config),
        computed_by=item.computed_by,
        **_raced(item, float_network),
        device=device,
        time_ms=int(time.time() * 1000),
        versions=versions,
    )


def run_row(
    prepared: Prepared, variant: Variant, *, sweep: Sweep, device: str, versions: dict[str, str], git: str | None
) -> rows.Row:
    """The journal's row that opens the run of a variant: its parameters, tags and artifacts.

    Args:
        prepared: the merged job.
        variant: of it.
        sweep: where the job comes from.
        device: what it runs on.
        versions: of the libraries.
        git: revision of the checkout, None where there is none.
    """
    about = described(prepared, variant)
    tags = {
        "qexp.sweep": sweep.sweep,
        "qexp.command": sweep.command,
        "qexp.training": prepared.training,
        "qexp.data_hash": prepared.bundle.fingerprint,
        "qexp.plan_hash": variant.plan.hash,
        "qexp.device": device,
        "qexp.world_size": str(dist.world_size()),
        "qexp.host": host(),
        "qexp.cpu": environment.cpu_model(),
        "qexp.git": git or "none",
        **{f"qexp.version.{name}": text for name, text in versions.items()},
    }
    about["artifacts"] |= {"config.json": canonical_json(stored_values(asdict(variant.config), Config))}
    if not variant.is_float:
        about["artifacts"] |= {"plan.json": canonical_json(plan_rows(variant.plan))}
    return rows.run_row(run_key(prepared, variant), tags=tags, **about)


def described(prepared: Prepared, variant: Variant) -> Described:
    """What names and describes the run of a variant, whenever it is opened: all but where and how, its plan and all settings.

    Args:
        prepared: the merged job.
        variant: of it.
    """
    config = variant.config
    params = rows.flatten(training_identity(config))
    settings = stored_values({name: asdict(getattr(config, name)) for name in ("policy", "quant", "evaluate")}, Config)
    if not variant.is_float:
        dials = {"bits": variant.bits, "mode": config.mode, "policy": settings["policy"], "quant": settings["quant"]}
        params |= rows.flatten(dials)
    params |= rows.flatten({"evaluate": settings["evaluate"]})
    if config.evaluate.across is not None:
        params["evaluate.files"] = prepared.bundle.files(config.evaluate.split)
    if config.checkpoint is not None:
        params["checkpoint"] = config.checkpoint
    artifacts = {}
    if config.evaluate.metrics:
        artifacts[METRICS_FILE] = metrics_text(asked(config.evaluate.metrics))
    if config.evaluate.metrics or prepared.num_classes <= FEW:  # of which a report says what Prec@5 is worth
        artifacts[CLASSES_FILE] = canonical_json(prepared.bundle.class_names)
    return {
        "parent": None if variant.is_float else prepared.training,
        "name": f"{config.model.name} {prepared.training[:6]}" if variant.is_float else variant.label,
        "params": params,
        "artifacts": artifacts,
        "planned_epochs": config.recipe.epochs if config.checkpoint is None else None,
        "data_label": config.data.label,
    }


def _measured(prepared: Prepared, item: Scored, float_network: Evaluation) -> dict[str, Any]:
    """The metrics of a record, those that compare predictions among them, and beside them what was asked for."""
    metrics, measured = item.evaluation.metrics, prepared.measured
    predictions, reference = item.evaluation.predictions, float_network.predictions
    reference = reference if metrics.n == len(reference.index) else reference.of(predictions.index)
    values = asdict(metrics) | dict(metrics.extra) | against(measured, predictions, reference)
    empty = {one.row.name for one in measured if item.variant.is_float and one.row.on_float == "empty"}
    values = {one.row.name: None if one.row.name in empty else values[one.row.name] for one in measured}
    extra = {name: values.pop(name) for name in list(values) if name not in COLUMNS}
    return {**values, "n": metrics.n, "extra": extra, "sources": sources(measured)}


def engine_of(config: Config) -> str:
    """`evaluate.engine`, with a precision that is not fp32, as a record has it: nothing where networks run as they are."""
    engine, precision = config.evaluate.engine, config.evaluate.precision
    return f"{engine} {precision}" if precision != "fp32" else "" if engine == "eager" else engine


def _raced(item: Scored, float_network: Evaluation) -> dict[str, Any]:
    """What a record says of a test that stops evaluations."""
    settings, planned = item.variant.config.evaluate, float_network.metrics.n
    if settings.until is None:
        return {}
    decided = "" if item.sequential is None else racing.sentence(settings, item.sequential, planned)
    return {"until": racing.asked(settings), "num_planned": planned, "decided": decided}


def sources(measured: Sequence[Measure]) -> dict[str, str]:
    """Name of each metric of the user's own -> hash of its code."""
    return {one.row.name: one.source for one in measured if one.source is not None}


def _method(prepared: Prepared, variant: Variant) -> str:
    """The scheme of the weights, or the method that they were trained with."""
    config = variant.config
    if variant.is_float or config.mode == "half":
        return "" if variant.is_float else "half"
    if prepared.converted is not None:
        return str(prepared.converted.about["qat"])
    return config.qat.method.name if config.qat.is_on else config.quant.row.name


def _granularity(prepared: Prepared, variant: Variant) -> str:
    """What shares a range, as asked for or, of a converted network, as trained."""
    if prepared.converted is None:
        blocks = variant.config.quant.row.block is not None and variant.config.mode != "half" and not variant.is_float
        return PER_BLOCK if blocks else variant.config.quant.weight.granularity
    return next((spec.granularity for spec in variant.plan.quantized.values()), "")


def _trained_by(prepared: Prepared, epoch: int) -> str:
    """Numbers of ranks that trained the state, in the order of time."""
    if prepared.config.checkpoint is not None:
        return ""
    training = TrajectoryStore(prepared.config.runs_dir).open(prepared.training)
    return " then ".join(map(str, training.world_sizes(epoch)))


def _beside_weights(variant: Variant) -> dict[str, Any]:
    """What a record says of activations and ranges."""
    if not variant.is_built:
        return {}
    calibrate, specs = variant.config.calibrate, list(variant.plan.quantized_activations.values())
    trained = variant.config.qat.is_on or variant.trained_bits is not None
    if variant.calibration is not None:
        methods = sorted(set(variant.calibration.methods.values()))
        static = f"{'/'.join(methods)} of file {variant.calibration.hash}"
    else:
        static = calibrate.method.name if specs and not specs[0].dynamic else "dynamic" if specs else ""
    ranges = f"weights {calibrate.weight_method.name}" + (f", activations {static}" if static else "")
    return {
        "activation_bits": max((spec.bits for spec in specs), default=None),
        "activation_scheme": grid_name(specs[0]) if specs else "",
        "ranges": "as trained" if trained else ranges,
    }


def _corrections(item: Scored) -> Iterator[str]:
    """What was done beside rounding, in part where some declined: `fold_bn (26 of 49)`."""
    for name, word in item.variant.corrections.items():
        outcome = item.outcomes[name]
        if outcome.done:
            yield f"{word} ({outcome.done} of {outcome.count})" if outcome.declined else word
