"""What a merged job needs before it runs: data, network, plans, and the place of its training in the store.

Everything that can be wrong with a job once it has passed `check` is found here, for all jobs of a sweep before the first
starts: a missing data set, a corrupt image, a checkpoint that does not fit, a policy rule that matches nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from qexp.base import dist
from qexp.base.errors import UserError, UserErrors
from qexp.base.factory import source_hash
from qexp.base.files import hash_file, hash_json
from qexp.base.journal_files import CONVERTED
from qexp.base.nouns import ActivationInfo, Batch, TensorInfo
from qexp.calibrate.settings import CalibrateSettings
from qexp.data.load import load_data
from qexp.engine.settings import check_device
from qexp.models.build import build_model
from qexp.models.weights import load_weights
from qexp.nn.graph import trace
from qexp.nn.inventory import as_trained, inventory
from qexp.nn.places import activations
from qexp.pipeline.identity import training_hash
from qexp.pipeline.variants import Variant, converted_variants, make_variants
from qexp.qat.convert import Converted, load_converted, plain_network
from qexp.schema import Config

if TYPE_CHECKING:
    from qexp.data.bundle import DataBundle

SHARED = 0.005  # of the images to calibrate on: more that are scored as well are refused
_BUNDLES: dict[str, DataBundle] = {}  # by hash of the data settings
_PREPARED: dict[str, Prepared] = {}  # by hash of the jobs
_ELSEWHERE = False  # the jobs run on other machines, of whose devices nothing is known here


def expect_other_machines() -> None:
    """Leave it to the jobs to check their device: the leader of Slurm jobs may sit on a login node without a GPU."""
    global _ELSEWHERE
    _ELSEWHERE = True


def pick_device(wanted: str) -> torch.device:
    """The device of this rank: `auto` takes the GPU of its local rank where there is one."""
    if wanted == "auto":
        wanted = "cuda" if torch.cuda.is_available() else "cpu"
    if wanted.startswith("cuda") and not torch.cuda.is_available():
        raise UserError("device", wanted, allowed="cpu here", remedy="This torch sees no GPU.")
    if wanted == "cuda":
        wanted = f"cuda:{dist.local_rank() % torch.cuda.device_count()}"
    return torch.device(wanted)


@dataclass(frozen=True)
class Prepared:
    """A merged job, ready to run.

    Args:
        config: of the first job; what trains is the same in all. variants: distinct ways to quantize, as asked for.
        tensors: the inventory of the network. training: hash of the training, or of the checkpoint.
        notes: what loading weights has to say. places: of its activations, everywhere or (True) at layers only; found when first
            asked for. start: the float training that a quantization-aware one begins from. converted: the checkpoint, where such
            a training made it.
    """

    config: Config
    variants: tuple[Variant, ...]
    tensors: tuple[TensorInfo, ...]
    training: str
    notes: tuple[str, ...] = ()
    places: Callable[[bool], Sequence[ActivationInfo]] = lambda layers_only: ()
    start: Prepared | None = None
    converted: Converted | None = None

    @property
    def bundle(self) -> DataBundle:
        """The data."""
        return data_of(self.config)

    @property
    def num_classes(self) -> int:
        """Width of the logits."""
        return self.config.model.num_classes or self.bundle.num_classes

    @property
    def folder(self) -> Path:
        """Where this training (or checkpoint) keeps what it knows."""
        kind = "trainings" if self.config.checkpoint is None else "checkpoints"
        return Path(self.config.runs_dir) / kind / self.training

    def network(self) -> torch.nn.Module:
        """The network as training begins, or with the checkpoint's weights; on the CPU."""
        return _network(self.config, self.bundle, self.converted)[0]

    def calibration_images(
        self, settings: CalibrateSettings, device: torch.device, *, rank: int = 0, world_size: int = 1
    ) -> Iterator[Batch]:
        """This rank's share of the images that a job calibrates on; by default all of them."""
        return self.bundle.eval_batches(
            settings.split,
            batch_size=settings.batch_size,
            num_images=settings.num_images,
            device=device,
            rank=rank,
            world_size=world_size,
        )

    def untrained(self) -> torch.nn.Module:
        """The network before any file is read into it; on the CPU."""
        return _untrained(self.config, self.bundle)


def data_of(config: Config) -> DataBundle:
    """The data set of a job, loaded once for all jobs that share it; the two last used stay in memory."""
    key = hash_json(asdict(config.data))
    if key not in _BUNDLES:
        while len(_BUNDLES) >= 2:
            del _BUNDLES[next(iter(_BUNDLES))]
        _BUNDLES[key] = load_data(config.data)
    return _BUNDLES[key]


def _untrained(config: Config, bundle: DataBundle) -> torch.nn.Module:
    num_classes = config.model.num_classes or bundle.num_classes
    if num_classes < bundle.num_classes:
        raise UserError("model.num_classes", num_classes, allowed=f"at least the data set's {bundle.num_classes}")
    return build_model(config.model, num_classes=num_classes, image_shape=bundle.image_shape, seed=config.seed)


def _network(config: Config, bundle: DataBundle, converted: Converted | None) -> tuple[torch.nn.Module, list[str]]:
    model, notes = _untrained(config, bundle), []
    if converted is not None:
        own, here = (converted.about.get("model"), converted.about.get("data")), (config.model.name, config.data.name)
        try:
            return plain_network(model, converted), []
        except UserError as error:
            allowed = f"a file converted from model={here[0]} data={here[1]}"
            remedy = f"It holds another network: give model={own[0]} data={own[1]}. {error.remedy}"
            raise UserError("checkpoint", config.checkpoint, allowed=allowed, remedy=remedy) from None
    for key, path in (("model.weights", config.model.weights), ("checkpoint", config.checkpoint)):
        if path is not None and path != "DEFAULT":
            try:
                notes += load_weights(model, path, key=key)
            except UserError as error:
                beside = Path(path).parent.parent / CONVERTED
                if not beside.is_file():
                    raise
                remedy = f"It was trained with its quantization; what became of it is in {beside}, for qexp.evaluate."
                raise UserError(key, path, allowed=error.allowed, remedy=remedy) from None
    return model, notes


def prepare(configs: Sequence[Config]) -> Prepared:
    """Load, build and plan one merged job; the same jobs again are answered from memory."""
    key = hash_json([asdict(config) for config in configs])
    if key not in _PREPARED:
        config = configs[0]
        if not _ELSEWHERE:
            check_device(config.recipe, pick_device(config.device).type)
        bundle = data_of(config)
        _check_evaluation(config, bundle)
        converted = None if config.checkpoint is None else load_converted(config.checkpoint)
        model, notes = _network(config, bundle, converted)
        channels, height, width = bundle.image_shape
        tensors = inventory(model, torch.zeros(2, channels, height, width))
        if config.checkpoint is None:
            tensors = as_trained(tensors)
        traced = _untrained(config, bundle) if converted is not None else model
        places = cache(lambda layers_only: _places(traced, bundle, layers_only))
        if converted is not None:
            variants = converted_variants(configs, converted, tensors, places)
        else:
            variants = make_variants(configs, tensors, places)
            for variant in variants:
                _check_calibration(variant, bundle)
        start = None if config.float_start is None else prepare([config.float_start])
        training = _identity(config, bundle, variants, start)
        _PREPARED[key] = Prepared(config, variants, tensors, training, tuple(notes), places, start, converted)
    return _PREPARED[key]


class Unprepared(UserErrors):
    """What is wrong with some jobs of a sweep, each mistake once.

    Args:
        causes: (number of the group, place in it) of each job that cannot be prepared -> why.
    """

    def __init__(self, causes: Mapping[tuple[int, int], UserError | UserErrors]) -> None:
        self.causes = dict(causes)
        found = [item for cause in self.causes.values() for item in (cause.errors if isinstance(cause, UserErrors) else [cause])]
        super().__init__({str(error): error for error in found}.values())


def prepare_all(groups: Sequence[Sequence[Config]]) -> list[Prepared]:
    """`prepare` for every group; raises one `Unprepared` for all that is wrong with any."""
    prepared, causes = [], {}
    for number, configs in enumerate(groups):
        try:
            prepared.append(prepare(configs))
        except (UserErrors, UserError) as error:
            causes |= {(number, place): cause for place, cause in _blame(configs, error).items()}
    if causes:
        raise Unprepared(causes)
    return prepared


def _blame(configs: Sequence[Config], error: UserError | UserErrors) -> dict[int, UserError | UserErrors]:
    """Which jobs of a group are wrong: those that are wrong alone, or all of them where their data cannot be loaded."""
    alone: dict[int, UserError | UserErrors] = {}
    if len(configs) > 1 and hash_json(asdict(configs[0].data)) in _BUNDLES:
        for place, config in enumerate(configs):
            try:
                prepare([config])
            except (UserErrors, UserError) as own:
                alone[place] = own
    return alone or dict.fromkeys(range(len(configs)), error)


def _identity(config: Config, bundle: DataBundle, variants: Sequence[Variant], start: Prepared | None) -> str:
    weights = config.model.weights
    weights_hash = hash_file(Path(weights)) if weights not in (None, "DEFAULT") else None
    source = source_hash(config.model.factory) if config.model.factory is not None else None
    if config.checkpoint is None:
        begun = None
        if config.qat.is_on:
            begun = {"plan": variants[1].plan.hash, "start": start.training if start is not None else None}
        return training_hash(config, bundle.fingerprint, weights_hash, source, begun)
    model = {key: value for key, value in asdict(config.model).items() if key != "weights"} | (
        {"source": source} if source else {}
    )
    subject = {"checkpoint": hash_file(Path(config.checkpoint)), "model": model, "data": bundle.fingerprint}
    return hash_json(subject)


def _places(model: torch.nn.Module, bundle: DataBundle, layers_only: bool) -> tuple[ActivationInfo, ...]:
    return activations(trace(model, torch.zeros(1, *bundle.image_shape)), layers_only=layers_only)


def _check_calibration(variant: Variant, bundle: DataBundle) -> None:
    """Raise UserError where a variant needs calibration images that the data set does not have."""
    settings = variant.config.calibrate
    static = variant.calibration is None and any(not spec.dynamic for spec in variant.plan.quantized_activations.values())
    if not variant.is_built or not (static or variant.config.correct.needs_images or variant.config.qat.reestimate_bn):
        return
    size = bundle.split_sizes.get(settings.split, 0)
    if size == 0:
        remedy = f"Set data.num_{settings.split}=N." if settings.split in ("calib", "select") else ""
        raise UserError("calibrate.split", settings.split, allowed="a split that holds images", remedy=remedy)
    _check_apart(variant.config, bundle)
    if settings.num_images is not None and settings.num_images > size:
        allowed = f"at most {size}, the size of the {settings.split} split"
        raise UserError("calibrate.num_images", settings.num_images, allowed=allowed)


def _check_apart(config: Config, bundle: DataBundle) -> None:
    """Raise UserError where images to calibrate on are scored too; published sets hold a copy or two, and those pass."""
    calibrated, scored = config.calibrate.split, config.evaluate.split
    if calibrated == scored:
        return  # asked for by name, and stamped on every number
    count, size = bundle.num_shared(calibrated, scored), bundle.split_sizes[calibrated]
    if count > SHARED * size:
        remedy = f"{count} of its {size} images are in the {scored} split too, byte for byte. Take them out of one of the two."
        raise UserError(
            "calibrate.split", calibrated, allowed=f"images that evaluate.split={scored} does not score", remedy=remedy
        )


def _check_evaluation(config: Config, bundle: DataBundle) -> None:
    size = bundle.split_sizes.get(config.evaluate.split, 0)
    if size == 0:
        remedy = f"Set data.num_{config.evaluate.split}=N." if config.evaluate.split in ("calib", "select") else ""
        raise UserError("evaluate.split", config.evaluate.split, allowed="a split that holds images", remedy=remedy)
    wanted = config.evaluate.num_images
    if wanted is not None and wanted > size:
        raise UserError("evaluate.num_images", wanted, allowed=f"at most {size}, the size of the {config.evaluate.split} split")
