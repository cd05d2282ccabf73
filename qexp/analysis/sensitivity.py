"""`python -m qexp.analyze task=sensitivity`: one layer at a time, all others float."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path

from qexp.analysis.layers import Layers
from qexp.analysis.ranking import trust
from qexp.analysis.results import LayerLoss, Sensitivity
from qexp.analysis.sensitivity_report import summary, write_sensitivity
from qexp.base.console import emit, print_main, print_result
from qexp.base.progress import track
from qexp.base.text import file_name
from qexp.config.root import Config
from qexp.engine.device import pick_device
from qexp.engine.seed import seed_everything
from qexp.engine.trajectory import TrajectoryStore
from qexp.experiment import messages
from qexp.experiment.prepare import Preparer
from qexp.tracking.record import Sweep


def run(config: Config, sweep: Sweep) -> None:
    """Measure every layer at every width, write `results/<name>/sensitivity/<variant>/` and print a summary.

    Raises:
        UserError: something is wrong with the job; nothing was written.
    """
    device = pick_device(config.device)
    layers = Layers(config, device, Preparer())
    messages.plan([layers.prepared], num_jobs=1)
    if config.plan_only:
        print_result(started=False)
        return
    seed_everything(config.seed, config.deterministic)
    with TrajectoryStore(config.runs_dir).open(layers.prepared.training).lock():
        sensitivity = measure_sensitivity(layers, config.analyze.tried(config.bits, "sensitivity"), command=sweep.command)
    folder = Path(config.results_dir) / config.name / "sensitivity" / file_name(sensitivity.label)
    drawn = ", figures/" if config.draw_figures else ""
    files = write_sensitivity(sensitivity, folder, figures=config.draw_figures)
    print_main(summary(sensitivity), "")
    line = f"written: {len(files)} files in {folder}/ (sensitivity.md, sensitivity.csv, trust.csv{drawn})"
    print_result(line, folder=folder, files=files)


def measure_sensitivity(layers: Layers, widths: tuple[int, ...], *, command: str) -> Sensitivity:
    """Measure what is not stored, layer by layer; each layer is printed as soon as it is known.

    Args:
        layers: of a checkpoint, which nobody else works on.
        widths: ascending.
        command: as typed.
    """
    config, prepared = layers.config, layers.prepared
    notes = layers.alarms()
    prec1 = layers.prec1()
    tried = ", ".join(map(str, widths))
    print_main(f"float: Prec@1 {prec1:.2f} on {layers.images}; KL of {len(layers.rows)} layers, one at a time, at {tried} bits:")
    losses: list[LayerLoss] = []
    for row in track(layers.rows, "layer", note=lambda row: row.info.name):
        row_losses = [layers.loss(row, bits) for bits in track(widths, "width")]
        print_main(f"  {row.info.name}: " + ", ".join(f"{loss.bits} bits {loss.kl:.4g}" for loss in row_losses))
        for loss in row_losses:
            emit("record", kind="layer", **asdict(loss))
        losses += row_losses
    missing = [
        row.info.name for row in layers.rows if any(loss.layer == row.info.name and loss.fisher is None for loss in losses)
    ]
    notes += [f"no gradients: {', '.join(missing)}"] if missing else []
    return Sensitivity(
        label=replace(layers.named, weights=widths).text,
        subject=f"{config.data.shown}, {config.model.name}",
        checkpoint=str(config.checkpoint),
        command=command,
        images=layers.images,
        prec1=prec1,
        layers=tuple(losses),
        traces=layers.traces(),
        trust=trust(losses),
        notes=(*notes, *prepared.notes),
    )
