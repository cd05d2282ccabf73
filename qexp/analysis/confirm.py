"""The one test of the network that `task=shrink` chose, and which others the same images tested before.

`<runs_dir>/confirmations/<digest>.jsonl` has a row for each network, margin and set of images that tested it. The digest is of
the checkpoint's tensors, and images are told by their content, so that a look counts whatever split sizes and seeds the commands
had, and where two looks share some images. Rejected: to count beside the races, whose folder every setting of the data names.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qexp.analysis.race import Race
from qexp.analysis.scoring import compare_scored, score, scored
from qexp.analysis.shrink_results import Confirmation, Earlier
from qexp.base.files import hash_json
from qexp.config.analyze import AnalyzeSettings
from qexp.config.root import Config
from qexp.experiment.data_checks import SHARED
from qexp.experiment.job import Prepared
from qexp.experiment.prepare import Preparer
from qexp.stats.noninferiority import non_inferiority
from qexp.tracking.journal import Journal
from qexp.tracking.record import Sweep

if TYPE_CHECKING:
    from qexp.data.bundle import DataBundle


def confirm(race: Race, job: Config, sweep: Sweep, preparer: Preparer, *, margin: float, alpha: float) -> Confirmation:
    """Test the network that was chosen on `evaluate.split`, recorded and reported as `qexp.evaluate` does.

    Args:
        race: that chose it.
        job: of the network.
        sweep: where it comes from.
        preparer: makes jobs ready.
        margin: points.
        alpha: of the test.
    """
    config = replace(job, analyze=AnalyzeSettings(), task=None)
    race.check_float()  # stored predictions may be all that is needed, and then nothing else compares
    prepared = score([config], sweep, preparer)
    reference, chosen = scored(prepared), scored(prepared, config)
    paired = compare_scored(prepared, reference, chosen)
    claim = non_inferiority(paired, margin=margin, alpha=alpha)
    journal = Journal(Path(config.runs_dir) / "confirmations" / f"{race.digest}.jsonl", needs=("kind", "key", "values"))
    images = prepared.bundle.images(config.evaluate.split, config.evaluate.num_images)
    values = {"network": _network(prepared, config), "label": chosen.label, "margin": margin, "holds": claim.holds}
    return Confirmation(
        label=chosen.label,
        alarms=chosen.alarms,
        images=f"{paired.n} {config.evaluate.split} images",
        n=paired.n,
        n10=paired.n10,
        n01=paired.n01,
        float_prec1=reference.prec1,
        prec1=chosen.prec1,
        difference=paired.difference,
        interval=claim.interval,
        loss_bound=claim.loss_bound,
        p_value=claim.p_value,
        holds=claim.holds,
        earlier=note(journal, images, values),
    )


def note(journal: Journal, images: Sequence[str], values: dict[str, Any]) -> Earlier:
    """Note what a network was on images; returns what else these, or some of them, tested.

    Args:
        journal: of the checkpoint.
        images: content of each.
        values: `network`, what tells it; its `label`; the `margin`; and whether the claim `holds`.
    """
    of_images = hash_json(sorted(images))
    key = hash_json([values["network"], values["margin"], of_images])
    known = {(row["kind"], row["key"]) for row in journal.rows()}
    rows: list[dict[str, Any]] = [
        {"kind": "images", "key": of_images, "values": sorted(images)},
        {"kind": "confirmed", "key": key, "values": {**values, "images": of_images, "n": len(images)}},
    ]
    journal.append(row for row in rows if (row["kind"], row["key"]) not in known)
    stored = list(journal.rows())  # read again: of two commands at once, the later one sees the other
    here = set(images)
    sets = {row["key"]: set(row["values"]) for row in stored if row["kind"] == "images"}
    same = {name for name, other in sets.items() if len(here & other) > SHARED * min(len(here), len(other))}
    tests = [row for row in stored if row["kind"] == "confirmed" and row["key"] != key and row["values"]["images"] in same]
    others = [row["values"] for row in tests]
    own = [one for one in others if one["network"] == values["network"]]
    return Earlier(
        networks=tuple({one["network"]: one["label"] for one in others if one["network"] != values["network"]}.values()),
        margins=tuple(sorted({one["margin"] for one in own} - {values["margin"]})),
        counts=tuple(sorted(one["n"] for one in own if one["margin"] == values["margin"])),
    )


def _network(prepared: Prepared, job: Config) -> str:
    """What tells a quantized network of a checkpoint, whatever images score it."""
    variant = prepared.variants_of([replace(job, evaluate=replace(job.evaluate, split="test", num_images=None))])[-1]
    return hash_json([variant.key, _learned_from(prepared.bundle, variant.config) if variant.is_built else None])


def _learned_from(bundle: DataBundle, job: Config) -> str | None:
    """The calibration images of a copy that reads them; None of one that reads none."""
    settings = job.calibrate
    reads = job.correct.needs_images or (job.quantizes_activations and settings.file is None)
    if not reads or not bundle.split_sizes.get(settings.split, 0):
        return None
    return hash_json(bundle.images(settings.split))
