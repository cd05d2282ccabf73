"""Every variant of one epoch, scored: quantize into a shadow, evaluate, compare with the float network, look for alarms."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from qexp.base import dist
from qexp.base.progress import track
from qexp.base.types import Batch
from qexp.config.correct import sentences
from qexp.config.outcome import Outcome
from qexp.engine.evaluate import Evaluation, evaluate
from qexp.engine.probe import check_in_use
from qexp.experiment import messages, racing
from qexp.experiment.build import Builder
from qexp.experiment.data_checks import data_alarms
from qexp.experiment.engine import Engine
from qexp.experiment.job import Prepared
from qexp.experiment.qat_training import QatTraining
from qexp.experiment.racing import UntilDecided
from qexp.experiment.variants import Variant
from qexp.nn.shadow import Shadow
from qexp.ptq.calibration import Calibration
from qexp.qat.convert import assemble
from qexp.stats.sequential import Sequential


@dataclass(frozen=True)
class Scored:
    """One variant of one epoch, named by what was done: its evaluation, what is suspicious, how it ran and what stopped it.

    `batch_size` counts the images of a forward pass.
    """

    variant: Variant
    evaluation: Evaluation
    alarms: tuple[str, ...]
    batch_size: int
    calibration: Calibration | None = None
    outcomes: Mapping[str, Outcome] = field(default_factory=dict)
    computed_by: str = ""
    sequential: Sequential | None = None


class Evaluator:
    """Scores variants of states of one network.

    One shadow per graph structure is allocated once and overwritten in place. A set in memory takes one pass per variant; a
    streamed set is decoded once for as many shadows as the memory budget allows.

    Args:
        prepared: the merged job.
        device: where the copies run.
        qat: of a quantization-aware training.
    """

    def __init__(self, prepared: Prepared, device: torch.device, qat: QatTraining | None = None) -> None:
        self.prepared, self.device, self._qat = prepared, device, qat
        self.settings = prepared.config.evaluate
        self.channels_last = prepared.config.evaluates_channels_last
        self._prototype = prepared.network().to(device)
        self._shadows: dict[tuple[bool, str], list[Shadow]] = {}
        self._start: Evaluation | None = None  # of the float network that a training began from, which stays as it is
        self._probed: dict[tuple[object, ...], tuple[str, ...]] = {}
        self._data_alarms = data_alarms(prepared.config, prepared.bundle)
        self._builder = Builder(prepared, self._prototype)
        # Of the state scored last; the built networks themselves are not kept.
        self._calibrations: dict[str, Calibration | None] = {}
        self._constant: dict[str, tuple[str, ...]] = {}  # of the state scored last
        self._outcomes: dict[str, Mapping[str, Outcome]] = {}  # of its corrections
        self._engine = Engine(prepared, self._batches_of, device)
        self._computed_by: dict[str, str] = {}  # of the state scored last
        self._sequential: dict[str, Sequential] = {}  # of the state scored last, where a test stopped evaluations
        self._reported: set[str] = set()  # variants whose corrections have said what they left alone

    def score(
        self,
        state: Mapping[str, Tensor],
        wanted: Sequence[Variant],
        known: Mapping[str, str],
        float_network: Evaluation | None = None,
        done: int = 0,
        total: int | None = None,
    ) -> list[Scored]:
        """Evaluate the float network and the wanted variants of one state dict; the float network comes first.

        Args:
            state: the weights as they were trained.
            wanted: variants to score.
            known: variant key -> digest of its logits for this state, of variants that were evaluated before.
            float_network: its evaluation by an earlier call with this state, which is not done again.
            done: networks that earlier calls with this state evaluated, for whoever waits.
            total: networks of all calls with this state; None where this is the only one.
        """
        if self._qat is None:
            state = self.prepared.baked(state)
        if not done:
            self._engine.begin_state()
        float_variant = self.prepared.variants[0]
        variants = [float_variant, *(variant for variant in wanted if not variant.is_float)]
        reference: Tensor | str | None = float_variant.key
        evaluations: dict[str, Evaluation] = {}
        float_network = float_network or self._start
        if float_network is not None:
            evaluations[float_variant.key], reference = float_network, float_network.logits
        waiting = [variant for variant in variants if variant.key not in evaluations]
        for chunk in track(self._chunks(waiting), "variant", total=total or len(waiting), done=done, size=len):
            models = self._load(state, chunk)
            choices = self._engine.choose(chunk, models)
            self._computed_by |= {key: choice.words for key, choice in choices.items()}
            with_float = float_variant in chunk
            stop = None
            if self.settings.until is not None and isinstance(reference, Tensor):
                stop = UntilDecided(self.settings, reference)
            scores = evaluate(
                models,
                self._batches(),
                class_count=self.prepared.num_classes,
                reference=reference,
                keep_logits=with_float,
                measured=self.prepared.measured,
                runs={key: choice.run for key, choice in choices.items() if choice.run is not None},
                stop=stop,
            )
            if stop is not None:
                self._sequential[chunk[0].key] = stop.seen
            if with_float:
                reference = scores[float_variant.key].logits
                if self._qat is not None and self._qat.begins_trained:
                    self._start = scores[float_variant.key]
            for variant in chunk:
                self._probe(variant, models[variant.key], state)
            evaluations |= scores
        digests = dict(known) | {key: evaluation.digest for key, evaluation in evaluations.items()}
        return [self._scored(variant, evaluations[variant.key], digests) for variant in variants]

    def _scored(self, variant: Variant, evaluation: Evaluation, digests: Mapping[str, str]) -> Scored:
        outcomes = self._outcomes.get(variant.key, {})
        alarms, calibration = self._alarms(variant, evaluation, digests), self._calibrations.get(variant.key)
        computed_by = self._computed_by.get(variant.key, "")
        seen = self._sequential.get(variant.key)
        at_once = self._engine.batch_size.images
        return Scored(variant.after(outcomes), evaluation, alarms, at_once, calibration, outcomes, computed_by, seen)

    def _batches(self) -> Iterator[Batch]:
        """Those of this rank."""
        return self._batches_of(self._engine.batch_size.images, dist.rank(), dist.world_size())

    def _batches_of(self, batch_size: int, rank: int = 0, world_size: int = 1) -> Iterator[Batch]:
        return self.prepared.bundle.eval_batches(
            self.settings.split,
            batch_size=batch_size,
            device=self.device,
            num_images=self.settings.num_images,
            rank=rank,
            world_size=world_size,
            draw=racing.DRAW,
            shuffled=self.settings.until is not None,
        )

    def _chunks(self, variants: Sequence[Variant]) -> Iterator[Sequence[Variant]]:
        size = 1
        if self.prepared.bundle.streamed and self.settings.until is None:  # which stops each variant by itself
            num_bytes = sum(tensor.numel() * tensor.element_size() for tensor in self._prototype.state_dict().values())
            size = max(1, self.settings.memory_mib * 2**20 // max(1, num_bytes))
        for start in range(0, len(variants), size):
            yield variants[start : start + size]

    def _load(self, state: Mapping[str, Tensor], chunk: Sequence[Variant]) -> dict[str, nn.Module]:
        """Overwrite one shadow per variant of the chunk with its quantized copy of `state`."""
        used: dict[tuple[bool, str], int] = {}
        models = {}
        for variant in chunk:
            if variant.is_built:
                models[variant.key] = self._build(state, variant)
                continue
            pool = self._shadows.setdefault(variant.structure, [])
            number = used.get(variant.structure, 0)
            if number == len(pool):
                half, input_quant = variant.structure
                pool.append(Shadow(self._prototype, half=half, input_quant=input_quant, channels_last=self.channels_last))
            values = self._qat.reference(state) if variant.is_float and self._qat is not None else state
            self._constant[variant.key] = pool[number].load(values, variant.plan)
            models[variant.key] = pool[number].module
            used[variant.structure] = number + 1
        return models

    def _build(self, state: Mapping[str, Tensor], variant: Variant) -> nn.Module:
        """A copy that is made anew."""
        trained = self._qat is not None or self.prepared.converted is not None
        module = self._trained(state) if trained else self._after_training(state, variant)
        if self.channels_last:
            module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # torch's stubs lack this form
        return module

    def _trained(self, state: Mapping[str, Tensor]) -> nn.Module:
        """The copy of a network that was trained with its quantization."""
        if self._qat is not None:
            return self._qat.build(state)
        assert self.prepared.converted is not None, "else it was not trained with its quantization"
        example = torch.zeros(1, *self.prepared.bundle.image_shape, device=self.device)
        return assemble(self.prepared.untrained().to(self.device), self.prepared.converted, example)

    def _after_training(self, state: Mapping[str, Tensor], variant: Variant) -> nn.Module:
        """The copy of a float network. What it draws, AdaRound's samples, is a function of the seed."""
        self._prototype.load_state_dict(state)
        self._prototype.eval()
        built = self._builder.build(variant)
        self._calibrations[variant.key], self._constant[variant.key] = built.calibration, built.constant
        self._outcomes[variant.key] = built.outcomes
        if variant.key not in self._reported:
            self._reported.add(variant.key)
            name = self.prepared.shown(variant.after(built.outcomes).named)
            messages.left_alone(name, [*sentences(built.outcomes, alarming=False), *built.notes])
        return built.module

    def _probe(self, variant: Variant, copy: nn.Module, state: Mapping[str, Tensor]) -> None:
        """Once per graph: is every quantized tensor that the float network's output depends on also used by the copy?

        The published numbers this project began with seem to come from a copy that was never executed. Variants that quantize
        the same tensors of the same graph share the answer.
        """
        if variant.is_float or self._graph(variant) in self._probed:
            return
        self._prototype.load_state_dict(self._qat.masters(state) if self._qat is not None else state)
        self._prototype.eval()
        images = next(iter(self._probe_batches())).images[:4]
        unused = check_in_use(self._prototype, copy, list(variant.plan.quantized), images)
        self._probed[self._graph(variant)] = (f"weights not in use: {_first_few(unused)}",) if unused else ()

    def _scores(self, calibration: Calibration) -> bool:
        """True where the images scored are of the split that the ranges were found on."""
        return calibration.split == self.settings.split and calibration.data_fingerprint == self.prepared.bundle.fingerprint

    def _foreign(self) -> list[str]:
        """What to say of a converted file on data that it was not trained on, as a forgotten `data=` gives it."""
        about = {} if self.prepared.converted is None else self.prepared.converted.about
        if about.get("data_fingerprint", self.prepared.bundle.fingerprint) == self.prepared.bundle.fingerprint:
            return []
        return [f"trained on other data than this: data={about['data']} with another content or split"]

    @staticmethod
    def _graph(variant: Variant) -> tuple[object, ...]:
        return (*variant.structure, *variant.plan.quantized)

    def _probe_batches(self) -> Iterator[Batch]:
        return self.prepared.bundle.eval_batches(self.settings.split, batch_size=4, device=self.device, num_images=4)

    def _alarms(self, variant: Variant, evaluation: Evaluation, digests: Mapping[str, str]) -> tuple[str, ...]:
        """What is suspicious: a label that says more than was done, weights that are constant or not in use, the logits."""
        alarms = [*sentences(self._outcomes.get(variant.key, {}), alarming=True), *variant.alarms]
        alarms += self._qat.alarms() if self._qat is not None and not variant.is_float else []
        alarms += self._probed.get(self._graph(variant), ())
        if self._constant.get(variant.key):
            alarms.append(f"constant, left unquantized: {_first_few(self._constant[variant.key])}")
        if not evaluation.metrics.finite:
            alarms.append("non-finite logits")
        if (calibration := self._calibrations.get(variant.key)) is not None:
            alarms += calibration.alarms(self.prepared.bundle.fingerprint)
            alarms += [f"scored on the {calibration.split} split that it was calibrated on"] * self._scores(calibration)
        alarms += self._foreign() + self._data_alarms
        if _is_int(variant):
            same = [
                other.after(self._outcomes.get(other.key, {})).label
                for other in self.prepared.variants
                if _is_int(other) and other.bits != variant.bits and digests.get(other.key) == evaluation.digest
            ]
            if same:
                alarms.append(f"bitwise the logits of {_first_few(same)}: no effect of the bit width")
        return tuple(alarms)


def _is_int(variant: Variant) -> bool:
    return variant.config.mode == "int" and not variant.is_float


def _first_few(names: Sequence[str]) -> str:
    """The first few names, and how many there are."""
    return ", ".join(names[:3]) + (f", ... ({len(names)})" if len(names) > 3 else "")
