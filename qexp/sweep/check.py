"""All jobs of a sweep, validated before the first of them starts; torch-free.

`check` turns composed values into `Config`s and reports every mistake of every job together; `group` puts the jobs that share
a training side by side. What needs the data or the network (a policy that matches nothing, a corrupt image) is found by
`qexp.experiment.prepare`, also before anything runs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from qexp.base.catalog import CUSTOM
from qexp.base.compiler import cxx_compiler
from qexp.base.errors import UserError, UserErrors, once
from qexp.config.export import FILE_FLOATS, FILE_GRANULARITIES, RUNTIMES, float8_type
from qexp.config.model import PRETRAINED
from qexp.config.quant import ActivationQuantSettings, WeightQuantSettings
from qexp.config.root import Config
from qexp.config.validate import validate
from qexp.experiment.identity import group_key
from qexp.quant.float_format import format_at
from qexp.quant.scheme_table import SCHEMES
from qexp.sweep.check_analysis import check_analysis
from qexp.sweep.check_read import as_read
from qexp.sweep.places import check_folders

FLOATS = "minifloat"  # the scheme whose formats of 8 bits a file may hold


class InvalidJobs(UserErrors):
    """What is wrong with the settings of some jobs of a sweep, each mistake once.

    Args:
        causes: number of each invalid job -> its mistakes.
        num_jobs: of the sweep.
    """

    def __init__(self, causes: Mapping[int, UserErrors], num_jobs: int) -> None:
        self.causes = dict(causes)
        errors = [(number, str(error)) for number, cause in self.causes.items() for error in cause.errors]
        super().__init__([ValueError(text) for text in _merge(errors, num_jobs)])

    @property
    def mistakes(self) -> list[UserError]:
        """All of them, whichever jobs they are of."""
        return once(mistake for cause in self.causes.values() for mistake in cause.mistakes)


def check(jobs: Sequence[Mapping[str, object]], verb: str) -> list[Config]:
    """Validate every job, once for all that follows; what a job does not read has its default there.

    Args:
        jobs: resolved values, one mapping per job.
        verb: `train`, `evaluate`, `analyze` or `export`.

    Raises:
        InvalidJobs: all mistakes of all jobs.
    """
    configs, causes = [], {}
    for number, values in enumerate(jobs):
        try:
            config = _with_checkpoint(validate(values), verb)
            _check_verb(config, verb)
            configs.append(as_read(replace(config, label=None) if verb == "analyze" else config))
        except UserErrors as errors:
            causes[number] = errors
        except UserError as error:
            causes[number] = UserErrors([error])
    if causes:
        raise InvalidJobs(causes, len(jobs))
    return configs


def _with_checkpoint(config: Config, verb: str) -> Config:
    """Where nothing trains, `model.pretrained` names the network to look at, unless `checkpoint` does."""
    if verb == "train" or config.checkpoint is not None or config.model.weights is None:
        return config
    return replace(config, checkpoint=PRETRAINED if config.model.is_pretrained else config.model.weights)


def _check_verb(config: Config, verb: str) -> None:
    if verb != "evaluate" and config.evaluate.across is not None:
        remedy = "It compares evaluations of one network: python -m qexp.evaluate."
        raise UserError("evaluate.across", config.evaluate.across, allowed=f"null in qexp.{verb}", remedy=remedy)
    if verb != "evaluate" and config.evaluate.until is not None:
        remedy = (
            "It stops evaluations of one network: python -m qexp.evaluate. task=shrink of qexp.analyze has a race of its own."
        )
        raise UserError("evaluate.until", config.evaluate.until, allowed=f"null in qexp.{verb}", remedy=remedy)
    if verb not in ("train", "evaluate") and config.evaluate.batch_size is None:
        raise UserError("evaluate.batch_size", None, allowed=f"an integer in qexp.{verb}")
    if verb not in ("train", "evaluate") and config.evaluate.precision != "fp32":
        remedy = "What it compares with is computed in fp32 or in integers."
        raise UserError("evaluate.precision", config.evaluate.precision, allowed=f"fp32 in qexp.{verb}", remedy=remedy)
    if config.evaluate.engine != "eager":
        _check_engine(config.evaluate.engine, verb)
    if verb == "analyze":
        check_analysis(config)
    elif (asked := config.task or config.image) is not None:
        key = "task" if config.task else "image"
        raise UserError(key, asked, allowed=f"null in qexp.{verb}", remedy="It belongs to python -m qexp.analyze.")
    if verb in ("evaluate", "analyze", "export"):
        if config.checkpoint is None:
            remedy = f"qexp.{verb} needs checkpoint=FILE, or model.pretrained=true for networks whose weights ship."
            raise UserError("checkpoint", None, allowed="a state-dict file", remedy=remedy)
        if not (config.model.is_pretrained if config.checkpoint == PRETRAINED else Path(config.checkpoint).is_file()):
            key = config.model.weights_name if config.checkpoint == config.model.weights else "checkpoint"
            raise UserError(key, config.checkpoint, allowed="a file that exists")
        if config.qat.is_on:
            raise no_training(config.qat.name, verb)
    elif config.checkpoint is not None:
        raise UserError(
            "checkpoint", config.checkpoint, allowed="null in qexp.train", remedy="To start from it: model.pretrained=FILE."
        )
    if verb == "export":
        check_export(config)
    if config.calibrate.file is not None and not Path(config.calibrate.file).is_file():
        raise UserError("calibrate.file", config.calibrate.file, allowed="a file that exists")
    if config.cases is not None:
        raise UserError("cases", config.cases, allowed="null in a single job", remedy="Several cases are a sweep: add -m.")
    root = None if config.data.download else config.data.root
    weights = None if config.model.is_pretrained else config.model.weights
    for key, text in (("data.root", root), ("data.classes", config.data.classes), (config.model.weights_name, weights)):
        if text is not None and not Path(text).exists():
            fetched = key == "data.root" and config.data.name != CUSTOM and config.data.info.downloads
            remedy = "data.download=true fetches the images." if fetched else ""
            raise UserError(key, text, allowed="a path that exists", remedy=remedy)
    check_folders(config, verb)


def _check_engine(engine: str, verb: str) -> None:
    """Refuse another engine where numbers must be exact, and a compiled one where nothing compiles."""
    if verb not in ("train", "evaluate"):
        remedy = "Its comparisons need numbers that are equal to the last bit."
        raise UserError("evaluate.engine", engine, allowed=f"eager in qexp.{verb}", remedy=remedy)
    if engine == "compiled" and cxx_compiler() is None:
        remedy = "Install one (apt install g++), or name it in CXX; evaluate.engine=auto runs networks as they are without."
        raise UserError("evaluate.engine", engine, allowed="auto or eager without a C++ compiler", remedy=remedy)


def no_training(method: str, verb: str) -> UserError:
    """What to say where a command that does not train is given a training method."""
    remedy = "It trains: python -m qexp.train model.weights=FILE qat.init=checkpoint begins from a file."
    return UserError("qat", method, allowed=f"none in qexp.{verb}", remedy=remedy)


def check_export(config: Config) -> None:
    """Refuse what no file of codes holds; a network that was trained with its quantization is looked at when its file is read."""
    activation = config.quant.activation
    if config.quant.input != "none":
        remedy = "An exported network takes the images as they are."
        raise UserError("quant.input", config.quant.input, allowed="none in qexp.export", remedy=remedy)
    if config.float_only:
        return
    if config.mode != "int":
        remedy = "A file holds codes; the float network is exported with float_only=true."
        raise UserError("mode", config.mode, allowed="int in qexp.export", remedy=remedy)
    if config.quant.row.name == FLOATS:
        check_export_of_floats(config)
    elif not config.quant.row.onnx:
        remedy = f"QuantizeLinear has a uniform grid that holds zero, or floats of 8 bits ({', '.join(FILE_FLOATS)})."
        allowed = f"{', '.join(SCHEMES.names_where(lambda row: row.onnx))}, {FLOATS} in qexp.export"
        raise UserError("quant", config.quant.row.name, allowed=allowed, remedy=remedy)
    elif config.quantizes_activations and activation.scheme == FLOATS:
        remedy = "Codes and floats are not multiplied by any runtime's kernel."
        raise UserError("quant", config.quant.row.name, allowed=f"{FLOATS} with quant.activation.scheme={FLOATS}", remedy=remedy)
    elif config.quantizes_activations and not activation.row.onnx:
        remedy = "No runtime computes convolutions in it."
        allowed = f"{', '.join(SCHEMES.names_where(lambda row: row.activations and row.onnx))} in qexp.export"
        raise UserError("quant.activation.scheme", activation.scheme, allowed=allowed, remedy=remedy)
    check_export_of_granularity(config)
    if activation.rounding != "half_even":
        remedy = "QuantizeLinear rounds so."
        raise UserError("quant.activation.rounding", activation.rounding, allowed="half_even in qexp.export", remedy=remedy)


def check_export_of_granularity(config: Config) -> None:
    """Refuse weights whose scales no file holds, and groups where a file beside the ONNX file is asked for."""
    granularity, export = config.quant.weight.granularity, config.export
    readers = RUNTIMES.names_where(lambda row: row.reads == "onnx")
    has_blocks = {*export.runtimes} <= {*readers} and not export.torch_export and config.quant.row.name != FLOATS
    allowed = (*FILE_GRANULARITIES, "per_group") if has_blocks else FILE_GRANULARITIES
    if granularity in allowed:
        return
    remedy = "A file has a scale for each."
    if granularity == "per_group" and config.quant.row.name != FLOATS:
        remedy = f"Only ONNX files have a scale for each group: {', '.join(readers)} without export.torch_export run these."
    raise UserError("quant.weight.granularity", granularity, allowed=f"{' or '.join(allowed)} in qexp.export", remedy=remedy)


def check_export_of_floats(config: Config) -> None:
    """Refuse what no file of floats of 8 bits holds, with quant=minifloat."""
    weight, activation, export = config.quant.weight, config.quant.activation, config.export
    if config.quantizes_activations and activation.scheme != FLOATS:
        allowed = f"{FLOATS} with quant={FLOATS} in qexp.export"
        remedy = "quant.activation.bits=null leaves activations float."
        raise UserError("quant.activation.scheme", activation.scheme, allowed=allowed, remedy=remedy)
    grids: list[tuple[str, WeightQuantSettings | ActivationQuantSettings, int | None]] = [("weight", weight, config.bits)]
    grids += [("activation", activation, activation.bits)] if config.quantizes_activations else []
    for key, grid, bits in grids:
        element = format_at(grid.format, bits, f"quant.{key}.format") if bits is not None else None
        lost = element is not None and not grid.scaled and element.overflow == "nan"
        if element is not None and (float8_type(element) is None or lost):
            why = "ONNX Runtime makes 448 of some numbers that overflow."
            remedy = why if lost else "No other format has a type that runtimes read."
            allowed = f"{' or '.join(FILE_FLOATS)} in qexp.export"
            raise UserError(f"quant.{key}.format", element.name, allowed=allowed, remedy=remedy)
    readers = RUNTIMES.names_where(lambda row: row.reads == "onnx")
    others = [name for name in export.runtimes if name not in readers]
    if others:
        raise UserError("export.runtime", others[0], allowed=f"{', '.join(readers)} with quant={FLOATS}")
    if export.torch_export:
        raise UserError("export.torch_export", True, allowed=f"false with quant={FLOATS}")


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
