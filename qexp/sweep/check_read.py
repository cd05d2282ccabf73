"""Typed settings that no job of a command reads, refused before anything starts; torch-free.

Who reads a setting stands at its field (`qexp.config.read_where`) or in the row of what reads it: a scheme's `reads`, a
correction's `settings`, an analysis' `READS`. What is put together of several groups is here, a function for each group. Settings
that an experiment's file sets are not meant: some of its cases may use them, and one of these may be run alone. Where one job of
a sweep reads a setting and another does not, that one has its default (`as_read`). Rejected: leaving what nobody reads out of the
hash of a training, which would give stored trainings other names.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import MISSING, fields, is_dataclass, replace
from typing import Any

from qexp.base.catalog import CUSTOM, is_own
from qexp.base.errors import UserError, UserErrors
from qexp.config.analyze import READS, SEARCHED
from qexp.config.correct import CORRECTIONS
from qexp.config.model import PRETRAINED
from qexp.config.policy import POLICIES
from qexp.config.qat import IN_RECIPE
from qexp.config.qat_methods import QAT_METHODS
from qexp.config.read_where import marks_of
from qexp.config.root import Config
from qexp.quant.scheme_table import OWN_SETTINGS, SCHEMES

_DIALS = ("bits", "mode", "label", "policy", "quant", "calibrate", "correct")  # of quantized copies
_IMAGES = ("split", "num_images", "draw", "batch_size")  # of calibrate, which images
_ASKS_NOTHING = ("null", "false")  # typed to take back what a file of values sets
# Setting, or group of settings -> the commands that read it.
_VERBS = {
    "train": ("train",), "trajectory": ("train",), "qat": ("train",), "data.augment": ("train",),
    "fresh": ("train", "export"), "label": ("train", "evaluate", "export"),
}  # fmt: skip
_TASKS = {f"analyze.{name}": tasks for name, tasks in READS.items()} | {
    "evaluate.split": ("profile", "allocate", "shrink"),
    **dict.fromkeys(("evaluate.keep", "evaluate.memory_mib", "tracking.uri", "tracking.timeout_s"), ("allocate", "shrink")),
}  # of qexp.analyze


def check_read(configs: Sequence[Config], typed: Mapping[str, str], verb: str) -> None:
    """Raise for typed settings that no job would read.

    Args:
        configs: of all jobs.
        typed: settings that were typed, as typed.
        verb: of the command.

    Raises:
        UserErrors: all of them.
    """
    errors = []
    for key, value in typed.items():
        if value in _ASKS_NOTHING:
            continue
        reasons = [reason for config in configs[:1] if (reason := why_unread(key, config, verb))]
        if reasons and all(why_unread(key, config, verb) for config in configs):
            errors.append(UserError(key, value, remedy=f"No job reads it: {reasons[0]}"))
    if errors:
        raise UserErrors(errors)


def why_unread(key: str, config: Config, verb: str) -> str:
    """Why nobody reads a setting in a job, a sentence; empty where somebody does.

    Args:
        key: of the setting, or of the group whose choice was typed.
        config: of the job.
        verb: of the command.
    """
    group, _, name = key.partition(".")
    if group in _DIALS and config.float_only:
        return ""  # it says itself that there are no copies; a control's command is often that of the copies, and float_only=true
    rule = _RULES.get(group, lambda *_: "")
    return (
        _by_verb(key, group, config, verb)
        or _by_copies(key, group, config)
        or rule(name or "name", config)
        or _by_field(key, config)
    )


def _by_verb(key: str, group: str, config: Config, verb: str) -> str:
    if key in ("train", "train.channels_last", "qat"):  # a recipe's memory format is that of an evaluation too
        return ""
    verbs = _VERBS.get(key) or _VERBS.get(group)
    if verbs is not None and verb not in verbs:
        return f"it is read by {' and '.join(f'python -m qexp.{name}' for name in verbs)}, not by qexp.{verb}."
    if verb == "analyze" and config.task == "shrink":
        searched = next((name for name, keys in SEARCHED.items() if key in keys), None)
        if searched is not None:
            return f"task=shrink tries those of analyze.{searched}."
    tasks = _TASKS.get(key)
    if verb == "analyze" and tasks is not None and config.task not in tasks:
        instead = " Layers are compared on analyze.split." if key == "evaluate.split" else ""
        return f"task={' and '.join(tasks)} would, not task={config.task}.{instead}"
    return ""


def _by_copies(key: str, group: str, config: Config) -> str:
    """Settings of quantized copies, where there are none."""
    if group in _DIALS and config.mode == "half" and key not in ("mode", "label", "quant.input"):
        return "mode=half casts every tensor to fp16, and quantizes none."
    return ""


def _by_field(key: str, config: Config) -> str:
    """What the mark at the field says."""
    path, _, name = key.rpartition(".")
    owner: object = config
    for part in path.split("."):
        owner = getattr(owner, part, None)
    kind: type = type(owner)
    mark = marks_of(kind).get(name)
    return "" if mark is None or mark.holds(owner) else f"it is read with {path}.{mark}."


def _bits(name: str, config: Config) -> str:
    own = [getattr(config.policy, key) for key in config.policy.info.reads if key.endswith("_bits") and key != "edge_bits"]
    if config.task == "allocate" or (config.task == "sensitivity" and config.analyze.widths):
        return "widths are those of analyze.widths."
    if own and all(own) and not (config.qat.is_on and config.qat.activations and config.quant.activation.bits is None):
        return f"policy={config.policy.name} has a width for every weight."
    return ""


def _data(name: str, config: Config) -> str:
    row, settings = config.data.info, config.data
    if settings.name != CUSTOM:
        unread = {"root": not row.needs_root, "download": not row.downloads, "workers": "stream" not in row.storage}
        if unread.get(name, False):
            return f"data={settings.name} does not."
    return ""


def _model(name: str, config: Config) -> str:
    settings = config.model
    if name not in ("weights", "pretrained") or config.checkpoint in (None, PRETRAINED, settings.weights):
        return ""
    return "" if settings.library_preprocessing or settings.preprocessing else "checkpoint holds the weights here."


def _train(name: str, config: Config) -> str:
    if name == "ema_decay" and config.qat.is_on and config.float_start is None:
        return "a quantization-aware training has no average of its weights."
    replaced = config.qat.is_on and name in IN_RECIPE and getattr(config.qat, name) is not None
    return f"qat.{name} stands in its place." if replaced and config.float_start is None else ""


def _policy(name: str, config: Config) -> str:
    if name == "name" or name.split(".")[0] in config.policy.info.reads:
        return ""
    readers = POLICIES.names_where(lambda row: name.split(".")[0] in row.reads)
    return f"policy={' or '.join(readers)} would, not policy={config.policy.name}."


def _quant(name: str, config: Config) -> str:
    group, _, setting = name.partition(".")
    row = config.grids.row
    if group == "activation" and setting != "bits" and not config.quantizes_activations:
        return "activations stay float: quant.activation.bits=BITS quantizes them."
    if (setting == "rounding" or name == "input") and config.mode == "float":
        return "mode=float is the control, which rounds nothing."
    if group == "weight" and setting in OWN_SETTINGS and setting not in row.reads:
        readers = SCHEMES.names_where(lambda scheme: setting in scheme.reads)
        return f"quant={' or '.join(readers)} would, not quant={row.name}."
    grid = config.quant.activation.row
    if group == "activation" and setting in ("format", "scaled", "block_size") and setting not in grid.reads:
        readers = SCHEMES.names_where(lambda scheme: setting in scheme.reads)
        return f"quant.activation.scheme={' or '.join(readers)} would, not {grid.name}."
    if name in ("weight.granularity", "weight.group_size") and row.block is not None:
        return f"quant={row.name} has blocks of {row.block_size(config.grids.weight.block_size)} with a scale each."
    if name == "activation.granularity" and grid.block is not None:
        return f"quant.activation.scheme={grid.name} has blocks of channels with a scale each."
    if name == "activation.arithmetic" and not grid.affine_activations:
        return f"quant.activation.scheme={grid.name} is no affine grid: it divides by its scale."
    if name == "weight.arithmetic" and not (row.onnx or is_own(config.grids.scheme)):
        return f"quant={row.name} is no affine grid: it divides by no scale."
    return ""


def _calibrate(name: str, config: Config) -> str:
    settings, qat = config.calibrate, config.qat
    static = config.quantizes_activations and not config.grids.activation.dynamic
    if qat.is_on:  # DoReFa-Net's images, and places of a method of the user's own, may ask for a range though the others do not
        row = qat.method
        ranges = static and (
            row.begins_with_range or row.squashed_weights or qat.first_step == "calibrated" or qat.name == CUSTOM
        )
    else:
        ranges = static and settings.file is None
    if name in ("weights", "factory"):
        return ""
    if name == "file":
        return "" if static else "it holds ranges of activations, and no job has static ones: give quant.activation.bits=BITS."
    if name in _IMAGES:
        wanted = ranges or config.correct.needs_images or qat.is_on or (config.task == "profile" and config.quantizes_activations)
        return "" if wanted else "no range and no correction needs images."
    read = settings.method.read_settings if ranges else frozenset[str]()
    if name in ({"name"} if ranges else set()) | read | settings.weight_method.read_settings:
        return ""
    if name == "name":
        if settings.file is not None and static:
            return "calibrate.file brings the ranges."
        if not config.grids.activation.row.takes_range(config.grids.activation.scaled):
            return f"quant.activation.scheme={config.grids.activation.scheme} takes its scales from the values as they come."
        if config.grids.activation.dynamic:
            return "with quant.activation.dynamic=true each batch has its own range; only calibrate.weights has a say."
        if qat.is_on and static:
            return f"qat={qat.name} says itself what it begins with."
        return "activations stay float: quant.activation.bits=BITS quantizes them, and calibrate.weights=METHOD is of weights."
    methods = [f"calibrate={settings.method.name}"] * ranges + [f"calibrate.weights={settings.weights}"]
    return f"{' and '.join(methods)} do not." if ranges else f"{methods[0]} does not, and activations have no ranges to find."


def _correct(name: str, config: Config) -> str:
    owners = [row for row in CORRECTIONS.values() if name in row.settings and name != row.switch]
    if owners and not any(row.is_on(config.correct) for row in owners):
        switches = [f"correct.{row.switch}" for row in owners]
        return f"{' and '.join(switches)} {'is' if len(switches) == 1 else 'are'} off."
    return ""


def _qat(name: str, config: Config) -> str:
    if name == "name":
        return ""
    if not config.qat.is_on:
        return f"nothing trains with quantization here: name a method, qat={' or '.join(QAT_METHODS)}."
    row = config.qat.method
    if name in ("scale_decay", "alpha_decay") and row.decay != name:
        return f"qat={config.qat.name} learns nothing that it decays."
    learned = row.decay is not None or not row.begins_with_range  # else ranges are observed
    if name == "momentum" and config.qat.name != CUSTOM and (learned or not config.qat.activations):
        return f"qat={config.qat.name} observes no range of activations."
    return ""


def _evaluate(name: str, config: Config) -> str:
    unread = name == "memory_mib" and "stream" not in config.data.info.storage
    return f"data={config.data.name} is not streamed." if unread else ""


def _export(name: str, config: Config) -> str:
    return "a float network has no codes of images and logits." if name == "integer_io" and config.float_only else ""


def as_read(config: Config) -> Config:
    """The job with every setting that nothing in it reads at its default, so that equal trainings have one name.

    A sweep types a key for all of its jobs, `train.schedule=cosine,step train.gamma=0.2`: its cosine is that of other commands.
    What no job reads is refused by `check_read`, which looks at what was typed.

    Args:
        config: of the job.
    """
    read: Config = _with_defaults(config, "", config)
    return read


def _with_defaults(owner: Any, path: str, config: Config) -> Any:
    """`as_read` of a group of settings. Rules beyond the marks at fields are asked for what is in a training's identity."""
    kind: type = type(owner)
    group, marks, changes = path.partition(".")[0], marks_of(kind), dict[str, Any]()
    for item in fields(owner):
        value = getattr(owner, item.name)
        if is_dataclass(value):
            changes[item.name] = _with_defaults(value, f"{path}.{item.name}".lstrip("."), config)
        elif (item.name in marks and not marks[item.name].holds(owner)) or (
            group in _NAMING and _RULES[group](item.name, config)
        ):
            default = item.default if item.default_factory is MISSING else item.default_factory()
            changes[item.name] = value if default is MISSING else default
    changes = {name: value for name, value in changes.items() if value != getattr(owner, name)}
    return replace(owner, **changes) if changes else owner


_NAMING = ("train", "qat")  # groups that name a training, whatever they hold
_RULES: dict[str, Callable[[str, Config], str]] = {
    "bits": _bits, "data": _data, "model": _model, "train": _train, "policy": _policy, "quant": _quant, "calibrate": _calibrate,
    "correct": _correct, "qat": _qat, "evaluate": _evaluate, "export": _export,
}  # fmt: skip
