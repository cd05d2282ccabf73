"""All jobs of a sweep, validated before the first of them starts; torch-free.

`check` turns composed values into `Config`s and reports every mistake of every job together; `group` puts the jobs that share
a training side by side. What needs the data or the network (a policy that matches nothing, a corrupt image) is found by
`qexp.pipeline.prepare`, also before anything runs.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qexp.base.errors import UserError, UserErrors, nearest
from qexp.deploy.settings import FILE_GRANULARITIES, FILE_SCHEMES
from qexp.pipeline.check_analysis import check_analysis
from qexp.pipeline.identity import group_key
from qexp.qat.settings import METHODS
from qexp.schema import Config, UnknownKey, all_keys, validate

GROUP_KEYS = ("experiment",)  # groups without settings of their own


@dataclass(frozen=True)
class Sweep:
    """Where the jobs come from: recorded with every run.

    Args:
        sweep: id, the time it began and a few random digits. command: as typed. verb: `train`, `evaluate`, `analyze`,
            `export`, or `start`, for a float training that others begin from.
    """

    sweep: str
    command: str
    verb: str


def check_arguments(arguments: Sequence[str], verb: str = "train") -> None:
    """Raise for overrides whose key no setting has, before Hydra sees them.

    Hydra itself accepts `+quant.bit=4` (it even suggests it) and would then hand on a value that nobody reads.
    """
    known = [*all_keys(), *GROUP_KEYS]
    errors: list[UserError] = []
    for argument in arguments:
        match = re.match(r"^(?:\+\+|\+|~)?([A-Za-z_][\w./@-]*)(?:=|$)", argument)
        if match is None or argument.startswith("-"):
            continue
        key = match[1].split("@")[0]
        owner = key.split(".")[0]
        if owner in ("export", "analyze") and verb != owner:
            errors.append(UserError(key, argument.partition("=")[2], remedy=f"It belongs to python -m qexp.{owner}."))
            continue
        if key == "verb":  # a group of conf/, so the help lists it
            remedy = "The command chooses it: python -m qexp.export, qexp.analyze."
            errors.append(UserError(key, argument.partition("=")[2], remedy=remedy))
            continue
        if key == "qat" and verb == "export" and not argument.endswith("=none"):  # else what its conf/ sets is refused first
            errors.append(_no_training(argument.partition("=")[2], verb))
            continue
        if key.split(".")[0].split("/")[0] == "hydra" or key in known or _inside_list(key):
            continue
        errors.append(UnknownKey(key, argument.partition("=")[2]))
    if errors:
        raise UserErrors(errors)


def _inside_list(key: str) -> bool:
    """True for an element of a list-valued setting, `policy.rules.0.bits`."""
    return re.match(r"^[\w.]+\.\d+(\.|$)", key) is not None


def check(jobs: Sequence[Mapping[str, Any]], verb: str) -> list[Config]:
    """Validate every job; raise one `UserErrors` for all mistakes of all jobs.

    Args:
        jobs: resolved values, one mapping per job. verb: `train`, `evaluate`, `analyze` or `export`.
    """
    configs, errors = [], []
    for number, values in enumerate(jobs):
        try:
            config = validate(values)
            _check_verb(config, verb)
            configs.append(config)
        except UserErrors as found:
            errors += [(number, str(error)) for error in found.errors]
        except UserError as found:
            errors.append((number, str(found)))
    if errors:
        raise UserErrors([ValueError(text) for text in _merge(errors, len(jobs))])
    return configs


def check_read(configs: Sequence[Config], command: str) -> None:
    """Raise for typed settings that no job of the sweep would read.

    What an experiment's file sets is not meant: some of its cases may use it, and one of them may be run alone.

    Args:
        configs: of all jobs. command: as typed.
    """
    typed = dict(match.groups() for word in shlex.split(command) if (match := re.match(r"\+{0,2}([\w.]+)=(.*)", word)))
    errors = []
    if not any(config.qat.is_on for config in configs):
        remedy = f"Nothing trains with quantization here: name a method, qat={' or '.join(METHODS)}."
        errors = [UserError(key, value, remedy=remedy) for key, value in typed.items() if key.startswith("qat.")]
    if "calibrate.file" in typed and not any(map(_has_static_activations, configs)):
        remedy = "It holds ranges of activations, and no job has static ones: give quant.activation.bits=BITS."
        errors.append(UserError("calibrate.file", typed["calibrate.file"], remedy=remedy))
    if "calibrate" in typed and all(config.grids.activation.dynamic for config in configs):
        remedy = "With quant.activation.dynamic=true each batch has its own range; only calibrate.weights has a say."
        errors.append(UserError("calibrate", typed["calibrate"], remedy=remedy))
    if errors:
        raise UserErrors(errors)


def _has_static_activations(config: Config) -> bool:
    """True where a job quantizes activations within ranges that are found beforehand."""
    activation, rules = config.grids.activation, config.policy.rules or ()
    return not activation.dynamic and (activation.bits is not None or any(rule.role == "activation" for rule in rules))


def _check_verb(config: Config, verb: str) -> None:
    if verb == "analyze":
        check_analysis(config)
    elif (asked := config.task or config.image) is not None:
        key = "task" if config.task else "image"
        raise UserError(key, asked, allowed=f"null in qexp.{verb}", remedy="It belongs to python -m qexp.analyze.")
    if verb in ("evaluate", "analyze", "export"):
        if config.checkpoint is None:
            raise UserError("checkpoint", None, allowed="a state-dict file", remedy=f"qexp.{verb} needs checkpoint=FILE.")
        if not Path(config.checkpoint).is_file():
            raise UserError("checkpoint", config.checkpoint, allowed="a file that exists")
        if config.qat.is_on:
            raise _no_training(config.qat.name, verb)
    elif config.checkpoint is not None:
        raise UserError(
            "checkpoint", config.checkpoint, allowed="null in qexp.train", remedy="To start from it: model.weights=FILE."
        )
    if verb == "export":
        _check_export(config)
    if config.calibrate.file is not None and not Path(config.calibrate.file).is_file():
        raise UserError("calibrate.file", config.calibrate.file, allowed="a file that exists")
    if config.cases is not None:
        raise UserError("cases", config.cases, allowed="null in a single job", remedy="Several cases are a sweep: add -m.")
    root = None if config.data.download else config.data.root
    weights = None if config.model.weights == "DEFAULT" else config.model.weights
    for key, text in (("data.root", root), ("model.weights", weights)):
        if text is not None and not Path(text).expanduser().exists():
            raise UserError(key, text, allowed="a path that exists")


def _no_training(method: str, verb: str) -> UserError:
    remedy = "It trains: python -m qexp.train model.weights=FILE qat.init=checkpoint begins from a file."
    return UserError("qat", method, allowed=f"none in qexp.{verb}", remedy=remedy)


def _check_export(config: Config) -> None:
    """Refuse what no file of codes holds; a network that was trained with its quantization is looked at when its file is read."""
    weight, activation = config.quant.weight, config.quant.activation
    if config.quant.input != "none":
        remedy = "An exported network takes the images as they are."
        raise UserError("quant.input", config.quant.input, allowed="none in qexp.export", remedy=remedy)
    if config.float_only:
        return
    if config.mode != "int":
        remedy = "A file holds codes; the float network is exported with float_only=true."
        raise UserError("mode", config.mode, allowed="int in qexp.export", remedy=remedy)
    if config.quant.name not in FILE_SCHEMES:
        remedy = "QuantizeLinear has a uniform grid that holds zero."
        raise UserError("quant", config.quant.name, allowed=f"{', '.join(FILE_SCHEMES)} in qexp.export", remedy=remedy)
    if weight.granularity not in FILE_GRANULARITIES:
        allowed = f"{' or '.join(FILE_GRANULARITIES)} in qexp.export"
        raise UserError("quant.weight.granularity", weight.granularity, allowed=allowed, remedy="A file has a scale for each.")
    if activation.rounding != "half_even":
        remedy = "QuantizeLinear rounds so."
        raise UserError("quant.activation.rounding", activation.rounding, allowed="half_even in qexp.export", remedy=remedy)


def refuse_sweep(verb: str) -> None:
    """Raise for the verb that looks at one checkpoint and one way to quantize it at a time."""
    if verb == "analyze":
        raise UserError("-m", "given", allowed="a single job for qexp.analyze", remedy="Give each key one value, without -m.")


def _merge(errors: Sequence[tuple[int, str]], num_jobs: int) -> list[str]:
    """One line per distinct mistake, with the jobs that make it."""
    jobs_of: dict[str, list[int]] = {}
    for number, text in errors:
        jobs_of.setdefault(text, []).append(number)
    lines = []
    for text, numbers in jobs_of.items():
        if num_jobs == 1 or len(numbers) == num_jobs:
            lines.append(text)
        else:
            lines.append(f"{text} (job {', '.join(f'#{number}' for number in numbers)} of {num_jobs})")
    return lines


def group(configs: Sequence[Config]) -> list[list[int]]:
    """Positions of the jobs, those that share a training together, in order of first appearance."""
    groups: dict[str, list[int]] = {}
    for position, config in enumerate(configs):
        groups.setdefault(group_key(config), []).append(position)
    return list(groups.values())


def hydra_error(error: Exception) -> UserError:
    """Say one of Hydra's or OmegaConf's errors in our form."""
    missing = getattr(error, "missing_cfg_file", None)
    if missing:
        folder, _, name = missing.rpartition("/")
        choices = [option for option in error.options or () if not option.startswith("_")]
        shown = ", ".join(choices) if len(choices) < 30 else f"one of {len(choices)} (python -m qexp.train --help lists them)"
        return UserError(folder, name, allowed=shown or "an option of the group", remedy=nearest(name, choices))
    cause = error.__cause__
    lines = [line.strip() for line in f"{error}\n{cause if cause else ''}".splitlines() if line.strip()]
    kept = [
        line for line in dict.fromkeys(lines) if not line.startswith(("To append to your config", "full_key:", "object_type="))
    ]
    ambiguous = re.search(r"Ambiguous value for argument '([^']*)'", str(error))
    if ambiguous:
        key, _, value = ambiguous[1].partition("=")
        return UserError(key, value, allowed="one value", remedy="Several values are a sweep: add -m.")
    subject = getattr(error, "override", None) or getattr(error, "full_key", None) or "(not understood)"
    return UserError("command line", subject, allowed="KEY=VALUE and -m", remedy=" ".join(kept))
