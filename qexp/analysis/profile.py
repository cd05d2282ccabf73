"""`python -m qexp.analyze task=profile`: one checkpoint, one way to quantize it, tensor by tensor."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn

from qexp.analysis.activations import profile_activations
from qexp.analysis.measures import spec_of
from qexp.analysis.profile_report import summary, write_profile
from qexp.analysis.profile_results import ClassScore, Profile, TensorProfile
from qexp.analysis.scores import class_scores
from qexp.analysis.weights import profile_weights
from qexp.base.console import print_main, print_result
from qexp.base.errors import UserError
from qexp.base.outputs import main_output
from qexp.base.text import by_reason, file_name
from qexp.config.correct import sentences
from qexp.config.model import PRETRAINED
from qexp.config.root import Config
from qexp.data.read_image import read_image
from qexp.engine.device import pick_device
from qexp.engine.seed import seed_everything
from qexp.experiment import messages
from qexp.experiment.build import Built, quantized_copy
from qexp.experiment.job import Prepared
from qexp.experiment.prepare import Preparer
from qexp.experiment.variants import Variant
from qexp.nn.fake_quant import CONTAINER, fake_quants, observed
from qexp.nn.graph import trace
from qexp.nn.input_quant import INPUT_QUANTS
from qexp.policy.table import plan_rows
from qexp.tracking.record import Sweep


def run(config: Config, sweep: Sweep) -> None:
    """Quantize the checkpoint, measure every quantized tensor, write `results/<name>/profile/<variant>/` and print a summary.

    Raises:
        UserError: something is wrong with the job; nothing was written.
    """
    prepared = Preparer().prepare([config])
    if prepared.converted is not None:
        remedy = "A profile looks for ranges of its own, which are not those that the file was trained with."
        raise UserError("checkpoint", config.checkpoint, allowed="a plain state dict for task=profile", remedy=remedy)
    device, image = pick_device(config.device), None
    if config.image is not None:
        image = read_image(Path(config.image), prepared.bundle, prepared.config.data.preprocessing).to(device)
    messages.plan([prepared], num_jobs=1)
    if config.plan_only:
        print_result(started=False)
        return
    seed_everything(config.seed, config.deterministic)
    profile = measure(prepared, prepared.variants[-1], device, image)
    profile = replace(profile, command=sweep.command)
    folder = Path(config.results_dir) / config.name / "profile" / file_name(profile.label)
    drawn = ", figures/" if config.draw_figures else ""
    files = write_profile(profile, folder, figures=config.draw_figures)
    print_main(summary(profile), "")
    print_result(f"written: {len(files)} files in {folder}/ (tensors.md, tensors.csv{drawn})", folder=folder, files=files)


def measure(prepared: Prepared, variant: Variant, device: torch.device, image: Tensor | None = None) -> Profile:
    """Profile one variant of a checkpoint.

    Args:
        prepared: a job with a checkpoint.
        variant: of it.
        device: where the networks run.
        image: [1, C, H, W] normalized, whose classes are scored.
    """
    config = prepared.config
    network = prepared.network().to(device).eval()
    built = quantized_copy(variant, network, prepared)
    sizes = {row["name"]: row["size_bytes"] for row in plan_rows(variant.plan)}
    weights = profile_weights(
        built.reference.state_dict(),
        built.module.state_dict(),
        variant.plan,
        built.limits,
        ranges=config.calibrate.weight_method.name,
        sizes=sizes,
        size_bytes=variant.size_bytes,
    )
    activations, images = _activations(prepared, variant, built, device)
    alarms = [*sentences(built.outcomes, alarming=True), *variant.alarms]
    alarms += built.calibration.alarms(prepared.bundle.fingerprint) if built.calibration is not None else ()
    notes = (*prepared.notes, *sentences(built.outcomes, alarming=False), *by_reason(built.notes))
    return Profile(
        label=variant.after(built.outcomes).label,
        subject=f"{config.data.shown}, {config.model.name}",
        checkpoint="model.pretrained=true" if config.checkpoint == PRETRAINED else str(config.checkpoint),
        command="",
        tensors=(*weights, *activations),
        size_bytes=variant.size_bytes,
        images=images,
        notes=(*(f"ALARM: {alarm}" for alarm in alarms), *notes),
        image="" if image is None else str(config.image),
        scores=() if image is None else _scores(prepared, network, built.module, image),
    )


def _activations(
    prepared: Prepared, variant: Variant, built: Built, device: torch.device
) -> tuple[tuple[TensorProfile, ...], str]:
    """Profiles of the activation points, and the images that they were measured on."""
    rows = [row for row in variant.plan.activations if row.spec is not None]
    if not rows:
        return (), ""
    bundle, settings = prepared.bundle, variant.config.calibrate
    split = settings.split
    if not bundle.split_sizes.get(split, 0):  # ranges of each batch need no images set aside
        split = prepared.config.evaluate.split
    count = min(settings.num_images or bundle.split_sizes[split], bundle.split_sizes[split])
    quantized = copy.deepcopy(built.reference)
    weights = {name: tensor for name, tensor in built.module.state_dict().items() if not name.startswith(f"{CONTAINER}.")}
    quantized.load_state_dict(weights)
    traced = trace(prepared.network().to(device), torch.zeros(1, *bundle.image_shape, device=device))
    spec = spec_of(rows[0])

    def images() -> Iterator[Tensor]:
        batches = bundle.eval_batches(split, batch_size=settings.batch_size, num_images=count, draw=settings.draw, device=device)
        return (INPUT_QUANTS[variant.plan.input_quant](batch.images) for batch in batches)

    ranges = dict.fromkeys((row.info.name for row in rows), "dynamic")
    if built.calibration is not None:
        ranges = {name.removeprefix(f"{CONTAINER}."): method for name, method in built.calibration.methods.items()}
    network = observed(traced, layers_only=spec.dynamic or spec.layers_only, network=quantized).eval()
    profiles = profile_activations(network, images, rows, fake_quants(built.module), ranges)
    return profiles, f"{count} {split} images"


@torch.no_grad()
def _scores(prepared: Prepared, network: nn.Module, quantized: nn.Module, image: Tensor) -> tuple[ClassScore, ...]:
    before, after = (main_output(model(image))[0].float().cpu() for model in (network, quantized))
    return class_scores(before, after, prepared.bundle.class_names)
