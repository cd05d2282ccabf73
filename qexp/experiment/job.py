"""A merged job, ready to run: its data, network, plans, and the place of its training in the store."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from qexp.base.errors import UserError
from qexp.base.label import Label, common_words
from qexp.base.types import ActivationInfo, Batch, TensorInfo
from qexp.config.calibrate import CalibrateSettings
from qexp.config.model import PRETRAINED
from qexp.config.root import Config
from qexp.data.load import DataSets
from qexp.engine.measures import Measure, measures
from qexp.experiment.variants import Variant, make_variants
from qexp.models.build import build_model
from qexp.models.weights import load_weights
from qexp.nn.made_weights import bake_weights_, made_weights
from qexp.nn.plain_layers import PlainLayers, with_plain_layers
from qexp.qat.convert import Converted, plain_network
from qexp.tracking.journal import CONVERTED

if TYPE_CHECKING:
    from qexp.data.bundle import DataBundle


@dataclass(frozen=True)
class Prepared:
    """A merged job, ready to run.

    Args:
        config: of the first job; what trains is the same in all.
        variants: distinct ways to quantize, as asked for.
        tensors: the inventory of the network.
        identify: gives the hash of the training, or of the checkpoint, and the hashes that a training's is made of beside its
            settings and data. That of data in files needs all their pixels, which the plan of an evaluation does not wait for.
        notes: what loading weights has to say.
        places: of its activations, everywhere or (True) at layers only; found when first asked for.
        start: the float training that a quantization-aware one begins from.
        converted: the checkpoint, where such a training made it.
        data: the sets that this process holds.
        layers: version of how its layers became modules; None where they were.
        asked: key of the variant that each of the merged jobs asks for, in their order.
        common: words that the labels of all copies of the command have: lines of the screen leave them out.
    """

    config: Config
    variants: tuple[Variant, ...]
    tensors: tuple[TensorInfo, ...]
    identify: Callable[[], tuple[str, Mapping[str, str]]] = field(repr=False)
    data: DataSets = field(repr=False)
    notes: tuple[str, ...] = ()
    places: Callable[[bool], Sequence[ActivationInfo]] = lambda layers_only: ()
    start: Prepared | None = None
    converted: Converted | None = None
    layers: int | None = None
    asked: tuple[str, ...] = ()
    common: tuple[str, ...] = ()

    @cached_property
    def _identity(self) -> tuple[str, Mapping[str, str]]:
        return self.identify()

    def shown(self, named: Label) -> str:
        """A label on the screen: what tells it from the command's other copies.

        Args:
            named: the whole label.
        """
        return named.without(self.common).text

    @property
    def training(self) -> str:
        """Hash of the training, or of the checkpoint.

        Raises:
            UserError: an image is corrupt, or of another size than the others.
        """
        return self._identity[0]

    @property
    def rests_on(self) -> Mapping[str, str]:
        """Hashes that the training's is made of, beside its settings and data."""
        return self._identity[1]

    @property
    def bundle(self) -> DataBundle:
        """The data."""
        return self.data.of(self.config.data)

    @property
    def num_classes(self) -> int:
        """Width of the logits."""
        return self.config.model.num_classes or self.bundle.num_classes

    @cached_property
    def measured(self) -> tuple[Measure, ...]:
        """What its evaluations measure: code and source of the user's own as they were when the job began."""
        return measures(self.config.evaluate.metrics)

    @property
    def folder(self) -> Path:
        """Where this training (or checkpoint) keeps what it knows."""
        kind = "trainings" if self.config.checkpoint is None else "checkpoints"
        return Path(self.config.runs_dir) / kind / self.training

    def variants_of(self, configs: Sequence[Config]) -> tuple[Variant, ...]:
        """The float network and what jobs ask of this one, as they are planned; not for a converted checkpoint."""
        return make_variants(configs, self.tensors, self.places, layers=self.layers)

    def network(self) -> torch.nn.Module:
        """The network as training begins, or with the checkpoint's weights, its layers modules and all weights parameters.

        On the CPU. One that trains with its quantization keeps its layers as they are written.
        """
        return self._evaluated(load_network(self.config, self.bundle, self.converted)[0])

    def _evaluated(self, network: torch.nn.Module) -> torch.nn.Module:
        """Its layers as modules, if they are at the beginning.

        Raises:
            UserError: not at these weights; by their names alone its own could be taken for those that its layers multiply by.
        """
        if self.layers is None:
            return network
        plain = evaluated_network(self.config, self.bundle, network, self.converted)
        if not plain.changed:
            remedy = "Its forward computes weights, or something else, in another way than it did with the weights it began with."
            allowed = "a network whose layers can be made modules with any weights"
            raise UserError(*self.config.model.named, allowed=allowed, remedy=remedy)
        return plain.network

    def trained_network(self) -> torch.nn.Module:
        """The same as it trains: weights that it makes of other parameters are not parameters yet."""
        return load_network(self.config, self.bundle, self.converted, bake=False)[0]

    def baked(self, state: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """A state of `trained_network` as one of `network`; a checkpoint's is one already."""
        if self.config.checkpoint is not None or not self._rewrites:
            return state
        network = self.trained_network()
        network.load_state_dict(state)
        bake_weights_(network, torch.zeros(1, *self.bundle.image_shape))
        return self._evaluated(network).state_dict()

    @cached_property
    def _rewrites(self) -> bool:
        """True where evaluations take another state than training has."""
        return self.layers is not None or bool(made_weights(self.trained_network()))

    def calibration_images(
        self, settings: CalibrateSettings, device: torch.device, *, rank: int = 0, world_size: int = 1
    ) -> Iterator[Batch]:
        """This rank's share of the images that a job calibrates on; by default all of them."""
        return self.bundle.eval_batches(
            settings.split,
            batch_size=settings.batch_size,
            num_images=settings.num_images,
            draw=settings.draw,
            device=device,
            rank=rank,
            world_size=world_size,
        )

    def untrained(self) -> torch.nn.Module:
        """The network before any file is read into it; on the CPU."""
        return untrained_network(self.config, self.bundle)


def with_common_words(prepared: Sequence[Prepared]) -> list[Prepared]:
    """The merged jobs of a command, which know the words that the labels of all its copies have.

    Args:
        prepared: all of them.
    """
    labels = [variant.named for one in prepared for variant in one.variants[1:]]
    common = common_words(labels) if len({*labels}) > 1 else ()
    return [replace(one, common=common) for one in prepared]


def untrained_network(config: Config, bundle: DataBundle) -> torch.nn.Module:
    """The network of a job before any file is read into it.

    Raises:
        UserError: it has fewer classes than the data, or cannot be built.
    """
    num_classes = config.model.num_classes or bundle.num_classes
    if num_classes < bundle.num_classes:
        raise UserError("model.num_classes", num_classes, allowed=f"at least the data set's {bundle.num_classes}")
    return build_model(config.model, num_classes=num_classes, image_shape=bundle.image_shape, seed=config.seed)


def evaluated_network(
    config: Config, bundle: DataBundle, network: torch.nn.Module, converted: Converted | None = None
) -> PlainLayers:
    """A network as it is evaluated: with its layers as modules, unless it trains with its quantization.

    Args:
        config: of the job.
        bundle: its data.
        network: all of whose weights are parameters.
        converted: the checkpoint, where a quantization-aware training made it.
    """
    if config.qat.is_on or converted is not None:
        return PlainLayers(network)
    return with_plain_layers(network, torch.zeros(1, *bundle.image_shape))


def load_network(
    config: Config, bundle: DataBundle, converted: Converted | None, *, bake: bool = True
) -> tuple[torch.nn.Module, list[str]]:
    """The network of a job with the weights of its files, and notes on what was mended.

    Args:
        config: of the job.
        bundle: its data.
        converted: the checkpoint, where a quantization-aware training made it.
        bake: make parameters of the weights that hooks or parametrizations make.

    Raises:
        UserError: a file that does not fit the network.
    """
    model, notes = untrained_network(config, bundle), []
    if converted is not None:
        own, here = (converted.about.get("model"), converted.about.get("data")), (config.model.name, config.data.name)
        try:
            return plain_network(model, converted), []
        except UserError as error:
            allowed = f"a file converted from model={here[0]} data={here[1]}"
            remedy = f"It holds another network: give model={own[0]} data={own[1]}. {error.remedy}"
            raise UserError("checkpoint", config.checkpoint, allowed=allowed, remedy=remedy) from None
    for key, path in ((config.model.weights_name, config.model.weights), ("checkpoint", config.checkpoint)):
        if path not in (None, PRETRAINED) and not (key == "checkpoint" and path == config.model.weights):  # which is loaded
            try:
                notes += load_weights(model, path, key=key, entry=config.model.weights_key)
            except UserError as error:
                beside = Path(path).parent.parent / CONVERTED
                if not beside.is_file():
                    raise
                remedy = f"It was trained with its quantization; what became of it is in {beside}, for qexp.evaluate."
                raise UserError(key, path, allowed=error.allowed, remedy=remedy) from None
    names = bake_weights_(model, torch.zeros(1, *bundle.image_shape)) if bake else ()
    return model, notes + ([f"made permanent what hooks or parametrizations make: {', '.join(names)}"] if names else [])
