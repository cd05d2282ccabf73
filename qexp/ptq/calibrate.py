"""Calibrating the activations of a network: one pass for the ends, a second one for the histograms where the method reads them.

Each pass runs the network in eval mode over the images that `batches` gives anew. Under several ranks each sees its share, and
what the observers remember is gathered once a pass; every rank ends with the same ranges, bit for bit those of one rank alone as
long as batch b is that of rank b % number of ranks. What was observed last is kept for the next calibration: other methods and
other widths of the same network and images take their ranges from it, without another pass.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn

from qexp.base.dist import all_gather_object
from qexp.base.errors import UserError
from qexp.base.files import hash_json
from qexp.base.progress import phase, track
from qexp.base.types import Batch, QuantSpec
from qexp.config.calibrate import CALIB, CalibrateSettings
from qexp.nn.fake_quant import CONTAINER
from qexp.nn.graph import evaluating
from qexp.ptq.calibration import Calibration, grid_of, hash_tensors
from qexp.ptq.grid_traits import check_clipped
from qexp.ptq.observers import EndsObserver, HistogramObserver, Observer, State
from qexp.ptq.observing import observing
from qexp.ptq.range_methods import BehindNorm, Limits, find_limits

WITHOUT_NORM = "minmax"  # what a place gets from a method that reads the batch norm before it, where there is none
Gather = Callable[[Any], list[Any]]
Pass = Literal["ends", "histograms"]


@dataclass
class Observations:
    """What the passes over some images saw, of the network and images that were calibrated last.

    Args:
        of: hash of all that decides it: network, points, images, bins.
        passes: pass -> the state of each point's observer, and the number of images over all ranks.
    """

    of: str = ""
    passes: dict[Pass, tuple[Mapping[str, State], int]] = field(default_factory=dict)

    def about(self, settings: CalibrateSettings, *what: object) -> Observations:
        """These, without what was seen of anything else.

        Args:
            settings: which images, and how they are counted.
            what: else decides what is seen, as JSON values.
        """
        seen = [settings.split, settings.num_images, settings.draw, settings.batch_size, settings.num_bins]
        of = hash_json([*seen, *what])
        if of != self.of:
            self.of, self.passes = of, {}
        return self


@torch.no_grad()
def calibrate(
    model: nn.Module,
    batches: Callable[[], Iterable[Batch]],
    specs: Mapping[str, QuantSpec],
    settings: CalibrateSettings,
    *,
    split: str,
    data_fingerprint: str,
    weights_hash: str | None = None,
    side: str = "output",
    norms: Mapping[str, BehindNorm] | None = None,
    gather: Gather = all_gather_object,
    known: Observations | None = None,
) -> Calibration:
    """Find the clipping range of every activation point.

    Args:
        model: on the device of the images; its modes, buffers and hooks are as before afterwards.
        batches: gives the same images anew at each call, this rank's share of them.
        specs: qualified module name -> the spec of what passes there, `per_tensor` or `per_channel` along its axis.
        settings: the method.
        split: where the images come from, which has to be `settings.split`.
        data_fingerprint: of the data set.
        weights_hash: names the network; by default `hash_tensors` of its state dict.
        side: `output` or `input` of the modules.
        norms: for a method that reads them, the points that lie behind a batch norm; the others take `minmax`, and the result
            says so.
        gather: values of all ranks in their order, `all_gather_object`.
        known: what the calibration before saw, to be read or overwritten; of networks that differ in their weights alone.

    Raises:
        UserError: images of another split than `settings.split`, or none; a point that no forward reaches or where NaN passes; a
            granularity or scheme without such a range; `batches` that do not begin anew.
    """
    check_split(split, settings)
    _check_specs(specs)
    weights_hash = weights_hash or hash_tensors({k: v for k, v in model.state_dict().items() if isinstance(v, Tensor)})
    method = settings.method
    reads_norm = method.reads == "batch_norm"
    by_norm = {name: norm for name, norm in (norms or {}).items() if reads_norm and name in specs}
    ranges = {name: _by_norm(norm, specs[name], settings) for name, norm in by_norm.items()}
    rest = {name: spec for name, spec in specs.items() if name not in by_norm}
    num_images = 0
    if rest:
        axes = {name: spec.axis if spec.granularity == "per_channel" else None for name, spec in rest.items()}
        known = (known or Observations()).about(settings, data_fingerprint, weights_hash, side, axes)
        measured, num_images = _by_images(partial(_run, model, batches, side, gather, known), axes, rest, settings)
        ranges |= measured
    methods = {name: method.name if name in by_norm or not reads_norm else WITHOUT_NORM for name in specs}
    return Calibration(
        ranges={name: ranges[name] for name in specs},
        methods=methods,
        grids={name: grid_of(spec, whole=method.depends_on_grid) for name, spec in specs.items()},
        settings=settings.identity,
        split=split,
        num_images=num_images,
        data_fingerprint=data_fingerprint,
        weights_hash=weights_hash,
    )


def _check_specs(specs: Mapping[str, QuantSpec]) -> None:
    """Raise UserError for a grid whose range no observer finds."""
    for name, spec in specs.items():
        check_clipped(spec)
        if spec.granularity not in ("per_tensor", "per_channel"):
            raise UserError("granularity", spec.granularity, allowed=f"per_tensor or per_channel for the activations at {name}")


def check_split(split: str, settings: CalibrateSettings) -> None:
    """Raise UserError unless the images come from the split that the settings name: `calib`, unless the user waives that.

    Args:
        split: where the images come from.
        settings: whose `split` it has to be.
    """
    if split != settings.split:
        remedy = f"calibrate.split={split} allows it and is written beside every number." if settings.split == CALIB else ""
        raise UserError("calibrate.split", split, allowed=f"images of {settings.split}", remedy=remedy)


def _by_norm(norm: BehindNorm, spec: QuantSpec, settings: CalibrateSettings) -> Limits:
    """The range behind a batch norm."""
    low, high = find_limits(settings.method, norm, spec, settings)
    return low.cpu(), high.cpu()


def _by_images(
    run: Callable[[Pass, Mapping[str, Observer]], int],
    axes: Mapping[str, int | None],
    specs: Mapping[str, QuantSpec],
    settings: CalibrateSettings,
) -> tuple[dict[str, Limits], int]:
    """The ranges of activation points, and the number of images over all ranks."""
    ends = {name: EndsObserver(settings, axis) for name, axis in axes.items()}
    num_images = run("ends", ends)
    if num_images == 0:
        raise UserError("calibrate.num_images", 0, allowed="at least one image to calibrate on")
    for name, observer in ends.items():
        if not observer.seen:
            raise UserError("place", name, allowed="a module that a forward calls")
    extremes = {name: _at(name, observer.extremes) for name, observer in ends.items()}
    observers: Mapping[str, Observer] = ends
    if settings.method.reads == "sample":
        observers = {name: HistogramObserver(extremes[name], settings, axis) for name, axis in axes.items()}
        again = run("histograms", observers)
        if again != num_images:
            raise UserError("batches", f"{num_images} images, then {again}", allowed="the same images at each call")
    names = track(specs, "activation quantizer", note=lambda name: name.removeprefix(f"{CONTAINER}."))
    return {name: _at(name, observers[name].result, specs[name]) for name in names}, num_images


def _run(
    model: nn.Module,
    batches: Callable[[], Iterable[Batch]],
    side: str,
    gather: Gather,
    known: Observations,
    what: Pass,
    observers: Mapping[str, Observer],
) -> int:
    """One pass, unless it is known: the observers then hold what all ranks saw; returns the number of images."""
    if what in known.passes:
        states, num_images = known.passes[what]
        for name, observer in observers.items():
            observer.merge([states[name]])
        return num_images
    num_images = 0
    with phase("calibration", what), evaluating(model), observing(model, observers, side=side):
        for batch in batches():
            model(batch.images)
            num_images += len(batch.images)
            for observer in observers.values():
                observer.end_batch()
    gathered = gather({"num_images": num_images, "states": {name: observer.state() for name, observer in observers.items()}})
    for name, observer in observers.items():
        observer.merge([part["states"][name] for part in gathered])
    total = sum(part["num_images"] for part in gathered)
    known.passes[what] = {name: observer.state() for name, observer in observers.items()}, total
    return total


def _at(point: str, find: Callable[..., Limits], *arguments: object) -> Limits:
    """What `find` returns; its error names the activation point."""
    try:
        return find(*arguments)
    except UserError as error:
        raise UserError(
            f"{error.key} at {point or 'the model itself'}", error.value, allowed=error.allowed, remedy=error.remedy
        ) from None
