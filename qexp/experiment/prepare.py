"""From checked settings to jobs that are ready to run.

Everything that can be wrong with a job once its settings are right is found here, for all jobs of a sweep before the first
starts: a missing data set, a corrupt image, a checkpoint that does not fit, a policy rule that matches nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import nn

from qexp.base.errors import UserError, UserErrors
from qexp.base.files import hash_file, hash_json
from qexp.base.progress import track
from qexp.base.types import ActivationInfo
from qexp.base.user_source import source_hash
from qexp.config.later import stored_values
from qexp.config.model import PRETRAINED, TORCHVISION, ModelSettings
from qexp.config.root import Config
from qexp.config.train import check_device
from qexp.data.load import DataSets
from qexp.engine.device import pick_device
from qexp.experiment.data_checks import (
    check_batch_norm,
    check_calibration,
    check_evaluation,
    check_metrics,
    check_pretrained,
    check_training,
    data_notes,
)
from qexp.experiment.identity import training_hash
from qexp.experiment.job import Prepared, evaluated_network, load_network, untrained_network
from qexp.experiment.memory import check_memory
from qexp.experiment.trial import Trial
from qexp.experiment.typed_labels import check_data_labels
from qexp.experiment.unprepared import Unprepared
from qexp.experiment.variants import Variant, converted_variants, plan_jobs
from qexp.models.pretrained import library_preprocessing
from qexp.nn.activation_points import activations
from qexp.nn.graph import trace
from qexp.nn.inventory import as_trained, inventory
from qexp.nn.made_weights import made_weights
from qexp.nn.plain_layers import computed_weights
from qexp.ptq.calibration import hash_tensors
from qexp.qat.convert import load_converted

if TYPE_CHECKING:
    from qexp.data.bundle import DataBundle


class Preparer:
    """Prepares the merged jobs of a process; data sets, and float trainings that several jobs begin from, are loaded once.

    Args:
        check_device: false where the jobs run on other machines: the leader of Slurm jobs may sit on a login node without a GPU.
    """

    def __init__(self, *, check_device: bool = True) -> None:
        self.data = DataSets()
        self._check_device = check_device
        self._starts: dict[str, Prepared] = {}
        self._tried: set[str] = set()  # networks that did what a job will ask of them

    def prepare(self, configs: Sequence[Config]) -> Prepared:
        """Load, build and plan one merged job.

        Args:
            configs: of jobs that share a training.

        Raises:
            UserError: data, network, checkpoint or policy do not fit, or the data set has two labels.
        """
        config = configs[0]
        if self._check_device:
            check_device(config.recipe, pick_device(config.device).type)
        check_data_labels(configs)
        bundle = self.data.of(config.data)
        class_count = config.model.num_classes or bundle.num_classes
        check_training(config, bundle)
        check_evaluation(config, bundle)
        check_pretrained(config, bundle)
        check_metrics(config, class_count)
        converted = None if config.checkpoint in (None, PRETRAINED) else load_converted(str(config.checkpoint))
        model, notes = load_network(config, bundle, converted)
        source = source_hash(config.model.factory) if config.model.factory is not None else None
        self._try(config, bundle, source, model, lambda: load_network(config, bundle, converted)[0])
        if config.qat.is_on and (names := made_weights(untrained_network(config, bundle))):
            remedy = f"Hooks or parametrizations make {', '.join(names[:5])} of other parameters; make them permanent first."
            raise UserError("qat", config.qat.name, allowed="none for this network", remedy=remedy)
        example = torch.zeros(1, *bundle.image_shape)
        if config.qat.is_on and (names := computed_weights(untrained_network(config, bundle), example)):
            remedy = f"Its forward computes {', '.join(names[:5])} of other tensors at each call, behind the quantizer's back."
            raise UserError("qat", config.qat.name, allowed="none for this network", remedy=remedy)
        plain = evaluated_network(config, bundle, model, converted)
        loaded, model = model, plain.network
        layers = plain.version
        if plain.computed:
            notes.append(f"made permanent what the network's forward computes: {', '.join(plain.computed)}")
        notes += data_notes(config, bundle, class_count)
        channels, height, width = bundle.image_shape
        if self._check_device and pick_device(config.device).type == "cpu":
            check_memory(config, model, bundle)
        tensors = inventory(model, torch.zeros(2, channels, height, width))
        if config.checkpoint is None:
            tensors = as_trained(tensors)
        traced = untrained_network(config, bundle) if converted is not None else model
        places = cache(lambda layers_only: _places(traced, bundle, layers_only))
        if converted is not None:
            variants = converted_variants(configs, converted, tensors, places)
            asked = tuple(variant.key for variant in variants[-1:])
        else:
            variants, asked = plan_jobs(configs, tensors, places, layers=layers)
            for variant in variants:
                check_calibration(variant, bundle)
        check_batch_norm(config, model)
        start = self._start(config)
        identify = _identity(config, self.data, variants, start, source, loaded)
        told, made = tuple(notes), (converted, layers, asked)
        prepared = Prepared(config, variants, tensors, identify, self.data, told, places, start, *made)
        if config.checkpoint is None:  # the plan says whether it is stored
            _ = prepared.training
        return prepared

    def _try(
        self, config: Config, bundle: DataBundle, source: str | None, model: nn.Module, build: Callable[[], nn.Module]
    ) -> None:
        """Use a network as the job will, once for all jobs that ask the same of it; raises UserError where that fails."""
        trial = Trial.of(config, bundle)
        key = hash_json([asdict(config.model), config.checkpoint, source, trial.key])
        if key not in self._tried:
            trial.run(model, build)
            self._tried.add(key)

    def _start(self, config: Config) -> Prepared | None:
        """The float training that a quantization-aware one begins from."""
        start = config.float_start
        if start is None:
            return None
        key = hash_json(asdict(start))
        if key not in self._starts:
            self._starts[key] = self.prepare([start])
        return self._starts[key]

    def prepare_all(self, groups: Sequence[Sequence[Config]]) -> list[Prepared]:
        """`prepare` for every group of jobs.

        Raises:
            Unprepared: all that is wrong with any of them.
        """
        prepared: list[Prepared] = []
        causes: dict[tuple[int, int], UserError | UserErrors] = {}
        for number, configs in enumerate(track(groups, "plan")):
            try:
                prepared.append(self.prepare(configs))
            except (UserErrors, UserError) as error:
                causes |= {(number, place): cause for place, cause in self._blame(configs, error).items()}
        if causes:
            raise Unprepared(causes)
        return prepared

    def identify_all(self, prepared: Sequence[Prepared], groups: Sequence[Sequence[int]]) -> None:
        """Have each prepared group of jobs know its hash, for which all its images are decoded unless that was done before.

        Args:
            prepared: the groups.
            groups: positions of the jobs of each.

        Raises:
            Unprepared: images are corrupt, or differ in size.
        """
        causes: dict[tuple[int, int], UserError | UserErrors] = {}
        for number, one in enumerate(prepared):
            try:
                _ = one.training
            except UserError as error:
                causes |= {(number, place): error for place in range(len(groups[number]))}
        if causes:
            raise Unprepared(causes)

    def _blame(self, configs: Sequence[Config], error: UserError | UserErrors) -> dict[int, UserError | UserErrors]:
        """Which jobs of a group are wrong: those that are wrong alone, or all of them where their data cannot be loaded."""
        alone: dict[int, UserError | UserErrors] = {}
        if len(configs) > 1 and configs[0].data in self.data:
            for place, config in enumerate(configs):
                try:
                    self.prepare([config])
                except (UserErrors, UserError) as own:
                    alone[place] = own
        return alone or dict.fromkeys(range(len(configs)), error)


def with_preprocessing(config: Config) -> Config:
    """What `Config` could not look up by itself: how images are prepared for a library's weights. It comes before `Preparer`.

    Raises:
        UserError: the library is missing, or does not know the network.
    """
    if not config.model.library_preprocessing:
        return config
    return replace(config, data=config.data.resolved(library_preprocessing(config.model)))


def _identity(
    config: Config,
    data: DataSets,
    variants: Sequence[Variant],
    start: Prepared | None,
    source: str | None,
    network: nn.Module,
) -> Callable[[], tuple[str, Mapping[str, str]]]:
    """What gives the hash of a training or a checkpoint, and what a training's is made of beside settings and data."""
    weights = config.model.weights
    weights_hash = None if weights in (None, PRETRAINED) else hash_file(Path(str(weights)))
    if weights == PRETRAINED and config.model.name not in TORCHVISION:  # trainings from torchvision's are stored by that word
        weights_hash = hash_tensors(network.state_dict())
    if config.checkpoint is None:
        begun: dict[str, str | None] = {}
        if config.qat.is_on:
            begun = {"plan": variants[1].plan.hash, "start": start.training if start is not None else None}
        rests_on = {"weights_hash": weights_hash, "source_hash": source} | {f"{key}_hash": text for key, text in begun.items()}
        listed = data.of(config.data).num_classes if config.data.classes is not None else None
        own = {key: text for key, text in rests_on.items() if text is not None}

        def identify() -> tuple[str, Mapping[str, str]]:
            content = data.of(config.data).fingerprint
            return training_hash(config, content, weights_hash, source, begun or None, num_listed=listed), own

        return identify
    model = stored_values(asdict(config.model), ModelSettings) | ({"source": source} if source else {})
    del model["weights"]
    content = hash_tensors(network.state_dict()) if config.checkpoint == PRETRAINED else hash_file(Path(config.checkpoint))
    return lambda: (hash_json({"checkpoint": content, "model": model, "data": data.of(config.data).fingerprint}), {})


def _places(model: nn.Module, bundle: DataBundle, layers_only: bool) -> tuple[ActivationInfo, ...]:
    return activations(trace(model, torch.zeros(1, *bundle.image_shape)), layers_only=layers_only)
