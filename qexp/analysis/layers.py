"""One checkpoint, its layers quantized one at a time or each at a width of its own; what was measured is kept and not done again.

`<runs_dir>/checkpoints/<hash>/sensitivity.jsonl` holds a row for whatever was measured, appended as soon as it is known. A row's
key covers all that decides its numbers, so an analysis that was interrupted, or that gets more widths, goes on.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from functools import cache, cached_property, partial
from typing import Any

import torch
from torch import Tensor, nn

from qexp.analysis import proxies
from qexp.analysis.layer_policy import rules
from qexp.analysis.prefix import Prefix
from qexp.analysis.results import LayerLoss
from qexp.base.errors import UserError
from qexp.base.files import hash_json
from qexp.base.label import Label
from qexp.base.progress import phase
from qexp.base.types import Batch, PlanRow
from qexp.config.correct import CorrectSettings, sentences
from qexp.config.later import stored_values
from qexp.config.policy import PolicySettings
from qexp.config.root import Config
from qexp.engine.evaluate import Evaluation, evaluate
from qexp.engine.probe import check_in_use
from qexp.experiment.build import Built, quantized_copy
from qexp.experiment.data_checks import check_analysis_images
from qexp.experiment.prepare import Preparer
from qexp.experiment.stored_numbers import UNCHANGED, as_stored, changed, circumstances
from qexp.experiment.variants import Variant
from qexp.policy.table import plan_rows
from qexp.tracking.journal import Journal

PROXY_VERSION = 1  # part of the keys of proxies; raise it when the same network comes to have others
FILE = "sensitivity.jsonl"


def selecting(config: Config, *, activations: bool = False) -> Config:
    """The job as layers are compared: scored on `analyze.split`, by default with float activations.

    Args:
        config: of the job.
        activations: quantize them as the job says.
    """
    scored = replace(config.evaluate, split=config.analyze.split, num_images=config.analyze.num_images)
    quant = config.quant
    if not activations:
        quant = replace(quant, activation=replace(quant.activation, bits=None))
    return replace(config, evaluate=scored, quant=quant)


@dataclass(frozen=True, eq=False)
class _FloatNetwork:
    """The float network's evaluation, and what was estimated with its gradients.

    Args:
        evaluation: on the images that layers are compared on.
        fisher: parameter -> E[g^2].
        power: module -> mean square of each of its input channels.
    """

    evaluation: Evaluation
    fisher: Mapping[str, Tensor]
    power: Mapping[str, Tensor]


class Layers:
    """The layers that a job quantizes, and what each costs.

    Args:
        config: of the job.
        device: where networks run.
        preparer: makes the job ready.

    Raises:
        UserError: the split has too few images, the checkpoint was trained with its quantization, or the policy does not fit.
    """

    def __init__(self, config: Config, device: torch.device, preparer: Preparer) -> None:
        self.config, self.device = config, device
        check_analysis_images(config, preparer.data.of(config.data))
        self.prepared = preparer.prepare([selecting(config)])
        if self.prepared.converted is not None:
            remedy = "That file's quantizers were trained with it and stay as they are."
            raise UserError("checkpoint", config.checkpoint, allowed=f"a plain state dict for task={config.task}", remedy=remedy)
        self.base = self.prepared.variants[-1]
        self.rows = layers_of(self.base)
        self.names = tuple(row.info.name for row in self.rows)
        self.journal = Journal(self.prepared.folder / FILE, needs=("kind", "key", "values"))
        self._stored = {(row["kind"], row["key"]): row for row in self.journal.rows()}
        self._network = self.prepared.network().to(device).eval()
        self._prefix = cache(lambda: Prefix(self._network, next(iter(self._batches(1))).images, config.analyze.reuse_mib))

    @property
    def images(self) -> str:
        """What is scored, in words."""
        return f"{self._num_images} {self.config.analyze.split} images"

    @property
    def _num_images(self) -> int:
        size = self.prepared.bundle.split_sizes[self.config.analyze.split]
        return min(self.config.analyze.num_images or size, size)

    def variant(self, policy: PolicySettings, *, activations: bool = False) -> Variant:
        """What another policy makes of the network, scored on the same images.

        Args:
            policy: gives layers their widths.
            activations: quantize these too, as the job says.
        """
        wanted = replace(selecting(self.config, activations=activations), policy=policy)
        return self.prepared.variants_of([wanted])[-1]

    def alarms(self) -> list[str]:
        """What is suspicious of a copy with all layers quantized: weights that are not in use or constant."""
        built = self._whole
        images = next(iter(self._batches(4))).images[:4]
        unused = check_in_use(self._network, built.module, self.names, images)
        alarms = [f"ALARM: {text}" for text in (*sentences(built.outcomes, alarming=True), *self.base.alarms)]
        alarms += [f"ALARM: weights not in use: {', '.join(unused)}"] if unused else []
        return alarms + ([f"constant, left unquantized: {', '.join(built.constant)}"] if built.constant else [])

    def loss(self, row: PlanRow, bits: int) -> LayerLoss:
        """One layer at one width; measured now if it is not stored.

        Args:
            row: of the layer in the plan.
            bits: its width.
        """
        variant = self.variant(rules([row], {row.info.name: bits}))
        proxy_key = hash_json({**self._estimate_settings, "variant": variant.key})
        built, name = cache(lambda: self._build(variant)), row.info.name
        scores = self._known("loss", variant.key, lambda: self._score(built().module), layer=name, bits=bits)
        estimates = self._known("proxy", proxy_key, lambda: self._estimate(row, built()), layer=name, bits=bits)
        size = next(tensor["size_bytes"] for tensor in plan_rows(variant.plan) if tensor["name"] == name)
        return LayerLoss(layer=name, bits=bits, num_elements=row.info.num_elements, size_bytes=size, **scores, **estimates)

    def network_scores(self, variant: Variant) -> dict[str, Any]:
        """The scores of a variant of `variant()`, fields of `LayerLoss`; measured if they are not stored."""
        return self._known("loss", variant.key, lambda: self._score(self._build(variant).module))

    def traces(self) -> dict[str, tuple[float, float]]:
        """Layer -> Hessian trace and its standard error; estimated for all layers at once if one is not stored."""
        keys = {name: hash_json({**self._estimate_settings, "trace": name}) for name in self._learned}
        if any(("trace", key) not in self._stored for key in keys.values()):
            settings = self.config.analyze
            batches, probes = self._batches(self._proxy_images), settings.probes
            with phase("traces of the Hessian"):
                traces = proxies.hessian_traces(self._reference, self._learned, batches, probes=probes, seed=self.config.seed)
            for name, (trace, error) in traces.items():
                self._known("trace", keys[name], partial(dict, trace=trace, error=error), layer=name)
        rows = {name: self._stored["trace", key]["values"] for name, key in keys.items()}
        return {name: (row["trace"], row["error"]) for name, row in rows.items()}

    @property
    def _estimate_settings(self) -> dict[str, object]:
        """What else decides estimates: images, draws, and what was done to the network before rounding."""
        settings, correct = self.config.analyze, self.config.correct
        return {
            "version": PROXY_VERSION,
            "split": settings.split,
            "num_images": self._proxy_images,
            "probes": settings.probes,
            "seed": self.config.seed,
            "correct": stored_values(asdict(correct), CorrectSettings) if correct.asked else {},
        }

    @property
    def _proxy_images(self) -> int:
        return min(self.config.analyze.proxy_images, self._num_images)

    @cached_property
    def _whole(self) -> Built:
        """A copy with all layers quantized."""
        return self._build(self.base)

    @property
    def named(self) -> Label:
        """What all layers quantized are called, by what was done."""
        return self.base.after(self._whole.outcomes).named

    @property
    def _reference(self) -> nn.Module:
        """The float network that weights are quantized from: folded and equalized where the job asks for it."""
        return self._whole.reference

    @cached_property
    def _learned(self) -> tuple[str, ...]:
        """The layers that have gradients."""
        known = dict(self._reference.named_parameters(remove_duplicate=False))
        return tuple(name for name in self.names if name in known)

    @cached_property
    def _float(self) -> _FloatNetwork:
        """Computed once a process, and only where something is missing."""
        owners = [row.info.module for row in self.rows]
        evaluation = self._evaluate(self._network, reference=None)
        self._check_unchanged(evaluation)
        with phase("Fisher information"):
            fisher = proxies.fisher_diagonal(self._reference, self._learned, self._batches(self._proxy_images))
        return _FloatNetwork(evaluation, fisher, proxies.input_power(self._reference, owners, self._batches(self._proxy_images)))

    def _check_unchanged(self, evaluation: Evaluation) -> None:
        """Raise UserError where stored rows are of another network than this; keep what the next command compares with."""
        key, now = self.prepared.variants[0].key, circumstances(self.device, self.config.evaluate.batch_images)
        stored = self._stored.get(("reference", key))
        if difference := changed(stored and stored["values"], evaluation, now):
            remedy = f"{difference} To measure all anew, remove {self.journal.path}."
            raise UserError("checkpoint", self.config.checkpoint, allowed=UNCHANGED, remedy=remedy)
        if stored is None:
            metrics = {"prec1": evaluation.metrics.prec1, "loss": evaluation.metrics.loss}
            self._append("reference", key, metrics | as_stored(evaluation, now), layer=None, bits=None)

    def prec1(self) -> float:
        """Of the float network on these images, percent."""
        measured = self._known("float", self.prepared.variants[0].key, lambda: {"prec1": self._float.evaluation.metrics.prec1})
        return float(measured["prec1"])

    def _known(self, kind: str, key: str, measure: Callable[[], Mapping[str, object]], **about: Any) -> dict[str, Any]:
        """What is stored under a key; measured now, and stored, where nothing is."""
        if (kind, key) not in self._stored:
            self._append(kind, key, measure(), **about)
        values: dict[str, Any] = self._stored[kind, key]["values"]
        return values

    def _append(
        self, kind: str, key: str, values: Mapping[str, object], *, layer: str | None = None, bits: int | None = None
    ) -> None:
        row = {"kind": kind, "key": key, "layer": layer, "bits": bits, "values": dict(values)}
        self.journal.append([row])
        self._stored[kind, key] = row

    def _build(self, variant: Variant) -> Built:
        return quantized_copy(variant, self._network, self.prepared)

    def _batches(self, num_images: int | None) -> Iterator[Batch]:
        settings = self.config
        return self.prepared.bundle.eval_batches(
            settings.analyze.split, batch_size=settings.evaluate.batch_images, num_images=num_images, device=self.device
        )

    def _evaluate(self, network: nn.Module, reference: Tensor | None) -> Evaluation:
        evaluations = evaluate(
            {"network": network},
            self._batches(self._num_images),
            class_count=self.prepared.num_classes,
            reference=reference,
            keep_logits=reference is None,
            runs=None if reference is None else {"network": self._prefix().run_of(network)},
        )
        return evaluations["network"]

    def _score(self, module: nn.Module) -> dict[str, float]:
        """Run a copy and compare it with the float network, image by image."""
        before = self._float.evaluation
        after = self._evaluate(module, before.logits)
        assert after.metrics.kl is not None, "there is a reference"
        old, new = before.predictions.right, after.predictions.right
        n10, n01, n = int((old & ~new).sum()), int((~old & new).sum()), len(old)
        changed = float((before.predictions.top5[:, 0] != after.predictions.top5[:, 0]).double().mean())
        return {
            "prec1": after.metrics.prec1,
            "delta_prec1": 100 * (n01 - n10) / n,
            "delta_loss": after.metrics.loss - before.metrics.loss,
            "kl": after.metrics.kl,
            "n": n,
            "n10": n10,
            "n01": n01,
            "disagreement": 100 * changed,
        }

    def _estimate(self, row: PlanRow, built: Built) -> dict[str, float | None]:
        """What is known of a layer without running its copy."""
        name, owner = row.info.name, row.info.module
        source, copied = (dict(module.state_dict())[name].detach() for module in (built.reference, built.module))
        errors = proxies.weight_errors(source, copied)
        power, fisher = self._float.power.get(owner), self._float.fisher.get(name)
        weighted = None
        if power is not None and name.rpartition(".")[2] == "weight":
            weighted = proxies.weighted_error(built.reference.get_submodule(owner), source, copied, power)
        trace = self.traces().get(name)
        return {
            **errors,
            "weighted_mse": weighted,
            "fisher": proxies.fisher_error(source, copied, fisher) if fisher is not None else None,
            "hessian": proxies.hessian_error(source, copied, trace[0]) if trace is not None else None,
        }


def layers_of(base: Variant) -> tuple[PlanRow, ...]:
    """What the plan of a variant quantizes, each storage once, in the order of the network."""
    chosen = [row for row in base.plan.rows if row.spec is not None]
    names = {row.info.name for row in chosen}
    return tuple(sorted((row for row in chosen if row.info.tied_to not in names), key=lambda row: row.info.order))
