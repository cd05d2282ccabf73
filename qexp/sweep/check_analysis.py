"""What `python -m qexp.analyze` can be asked; torch-free, part of `qexp.sweep.check`."""

from __future__ import annotations

from pathlib import Path

from qexp.base.errors import UserError
from qexp.config.analyze import BUDGETS, TASKS
from qexp.config.root import Config
from qexp.config.search_space import candidates

ONE_LAYER = ("sensitivity", "allocate")  # tasks that quantize one layer at a time


def check_analysis(config: Config) -> None:
    """Raise UserError for what a task cannot do, and for what it needs and does not have."""
    if config.task is None:
        raise UserError("task", None, allowed=TASKS, remedy="qexp.analyze needs task=TASK.")
    if config.image is not None and config.task != "profile":
        raise UserError("image", config.image, allowed="null", remedy="Class scores are of task=profile.")
    if config.image is not None and not Path(config.image).is_file():
        raise UserError("image", config.image, allowed="a file that exists")
    if config.evaluate.metrics:
        remedy = "An analysis has its own: analyze.measure."
        raise UserError("evaluate.metrics", ", ".join(config.evaluate.metrics), allowed="[] in qexp.analyze", remedy=remedy)
    if config.task in ONE_LAYER:
        _check_one_layer(config)
    if config.task == "shrink":
        _check_shrink(config)
    if config.task == "allocate" and len(config.analyze.budgets) != 1:
        given = ", ".join(f"{name}={getattr(config.analyze, name)}" for name in config.analyze.budgets) or None
        allowed = f"exactly one of {', '.join(f'analyze.{name}' for name in BUDGETS)} for task=allocate"
        raise UserError("analyze", given, allowed=allowed)


def _check_shrink(config: Config) -> None:
    if config.analyze.max_loss is None:
        remedy = "The network that is looked for loses less: analyze.max_loss=0.5."
        raise UserError("analyze.max_loss", None, allowed="points of Prec@1 for task=shrink", remedy=remedy)
    if config.evaluate.keep == "none":
        remedy = "What was found is confirmed image by image."
        raise UserError("evaluate.keep", "none", allowed="last or all with task=shrink", remedy=remedy)
    _check_widths_alone(config)
    _check_shrink_images(config)


def _check_shrink_images(config: Config) -> None:
    """Refuse splits whose images a network learned from, or was chosen on, before they say something of it."""
    chosen, tested, calibrates = config.analyze.split, config.evaluate.split, config.calibrate.split
    if tested == "train":
        remedy = "The network was trained on them; evaluate.split=test says something of new images."
        raise UserError("evaluate.split", tested, allowed="test, select or calib for task=shrink", remedy=remedy)
    jobs = [one.config for one in candidates(config)]  # raises where lists do not go together
    if calibrates in (chosen, tested) and any(job.correct.needs_images or job.quantizes_activations for job in jobs):
        what = "analyze.split chooses" if calibrates == chosen else "evaluate.split tests"
        allowed = [split for split in ("calib", "train", "select", "test") if split not in (chosen, tested)]
        remedy = f"{what} the network on them, and a network looks better on images that it learned from."
        raise UserError("calibrate.split", calibrates, allowed=f"{' or '.join(allowed)} for task=shrink", remedy=remedy)


def _check_one_layer(config: Config) -> None:
    assert config.task is not None, "checked before"
    _check_widths_alone(config)
    if config.task == "sensitivity" and config.quant.activation.bits is not None:
        remedy = "Weights are quantized one at a time, all else float."
        allowed = f"null with task={config.task}"
        raise UserError("quant.activation.bits", config.quant.activation.bits, allowed=allowed, remedy=remedy)
    for width in config.analyze.tried(config.bits, config.task):
        try:
            config.quant.row.check_width(width)
        except UserError as error:
            key = "analyze.widths" if config.analyze.widths or config.task == "allocate" else "bits"
            raise UserError(key, width, allowed=error.allowed, remedy=error.remedy) from None


def _check_widths_alone(config: Config) -> None:
    """Refuse what leaves no width of weights to choose."""
    where = f"with task={config.task}"
    if config.mode != "int":
        raise UserError("mode", config.mode, allowed=f"int {where}", remedy="Only rounding to codes has a width to choose.")
    if config.float_only:
        raise UserError("float_only", True, allowed=f"false {where}")
    if any(rule.role == "activation" for rule in config.policy.rules or ()):
        remedy = "Weights alone are studied; quant.activation.bits=BITS quantizes activations beside an allocation."
        raise UserError("policy.rules", "role: activation", allowed=f"rules about weights {where}", remedy=remedy)
