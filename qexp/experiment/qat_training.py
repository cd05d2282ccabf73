"""A quantization-aware training: where it begins, what `fit` is given, and the copy that is evaluated."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from qexp.base import dist
from qexp.base.types import Batch
from qexp.config.correct import CORRECTIONS
from qexp.config.outcome import Outcome
from qexp.engine.hooks import TrainHooks
from qexp.engine.trajectory import TrajectoryStore
from qexp.experiment.job import Prepared
from qexp.experiment.variants import Variant
from qexp.ptq.bn_reestimation import reestimate_batch_norm_
from qexp.qat.convert import Converted, assemble, convert, save_converted
from qexp.qat.hooks import train_hooks
from qexp.qat.initialise import initialise
from qexp.qat.prepare import QatNetwork, prepare


class QatTraining:
    """One quantization-aware training.

    Args:
        prepared: its merged job.
        device: where it trains and is evaluated.
    """

    def __init__(self, prepared: Prepared, device: torch.device) -> None:
        self.prepared, self.device, self.config = prepared, device, prepared.config
        self.variant: Variant = prepared.variants[1]
        self._start: dict[str, Tensor] | None = None
        self._copy: QatNetwork | None = None  # that states are loaded into, to be converted
        self._plain: nn.Module | None = None  # the float network that they are converted to, never changed

    def begin(self, *, calibrate: bool) -> tuple[nn.Module, TrainHooks]:
        """The module to train and what the loop is to do besides; a collective.

        Args:
            calibrate: give the quantizers their first values; a state that is resumed has them.
        """
        network = self._float_network()
        network.load_state_dict(self.start_state())
        qat = self._prepare(network)
        if calibrate:
            initialise(qat, self._calibration_images, self.config.calibrate)
            dist.broadcast_state(qat.module)  # sums on a GPU may differ in their last bit from rank to rank
        teacher = None
        if self.config.qat.distill_weight:
            teacher = self._float_network()
            teacher.load_state_dict(self.start_state())
        return qat.module.train(), train_hooks(qat, self.config.recipe, teacher)

    def blank(self) -> nn.Module:
        """The module to train before anything in it has values: to be measured, not to be trained."""
        return self._prepare(self._float_network()).module

    def start_state(self) -> dict[str, Tensor]:
        """The float network's weights as the training begins; a collective the first time."""
        if self._start is None:
            start = self.prepared.start
            if start is None:
                self._start = {name: value.clone() for name, value in self.prepared.network().state_dict().items()}
            else:
                training = TrajectoryStore(Path(self.config.runs_dir)).open(start.training)
                self._start = dist.from_main(lambda: training.load_epoch(start.config.recipe.epochs))
        return self._start

    @property
    def begins_trained(self) -> bool:
        """True where it begins from a trained float network, with which all epochs are compared."""
        return self.config.qat.init != "none"

    def reference(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The float network that a copy is compared with: what it began from; begun with random weights, its own masters."""
        return self.start_state() if self.begins_trained else self._loaded(state).masters()

    def masters(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The float weights that a state holds."""
        return self._loaded(state).masters()

    def convert(self, state: Mapping[str, Tensor]) -> Converted:
        """What a state is worth without the training around it; on all ranks alike."""
        qat, config = self._loaded(state), self.config
        refine = None
        if config.qat.reestimate_bn:
            refine = lambda network: reestimate_batch_norm_(network, list(self._calibration_images()))  # noqa: E731
        about = {
            "model": config.model.name,
            "data": config.data.name,
            "data_fingerprint": self.prepared.bundle.fingerprint,
            "label": self.variant.named.generated.text,  # the file is hashed
            "qat": config.qat.method.name,
            "bits": config.bits,
            "training": self.prepared.training,
        }
        return convert(qat, self._plain_network(), about, refine)

    def build(self, state: Mapping[str, Tensor]) -> nn.Module:
        """The quantized network of a state, in eval mode."""
        return assemble(self._plain_network(), self.convert(state), self._example())

    def alarms(self) -> list[str]:
        """What its settings could not do to the network that was built last."""
        qat = self._copy
        if qat is None or not qat.unfolded:
            return []
        outcome = Outcome.of(len(qat.norms), qat.unfolded)
        return [f"qat.batch_norm=folded: {CORRECTIONS['fold_bn'].sentence(outcome)}"]

    def save(self, state: Mapping[str, Tensor], path: Path) -> None:
        """Write the converted file; a collective, which rank 0 writes."""
        converted = self.convert(state)
        if dist.rank() == 0:
            save_converted(path, converted)

    def _loaded(self, state: Mapping[str, Tensor]) -> QatNetwork:
        if self._copy is None:
            self._copy = self._prepare(self._float_network())
        self._copy.module.load_state_dict(state)
        return self._copy

    def _prepare(self, network: nn.Module) -> QatNetwork:
        return prepare(network, self.variant.plan, self.config.qat, self._example())

    def _float_network(self) -> nn.Module:
        return self.prepared.network().to(self.device)

    def _plain_network(self) -> nn.Module:
        if self._plain is None:
            self._plain = self._float_network()
        return self._plain

    def _example(self) -> Tensor:
        return torch.zeros(1, *self.prepared.bundle.image_shape, device=self.device)

    def _calibration_images(self) -> Iterable[Batch]:
        return self.prepared.calibration_images(self.config.calibrate, self.device)
