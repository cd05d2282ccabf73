"""`python -m qexp.export`: an evaluation, then each copy as a file of integers, run by runtimes and held against its simulation.

`check` writes every file once to a temporary folder, with ranges that nobody measured, before anything starts: an operator that
cannot be written or a runtime that is missing is reported at once. `run` follows the evaluation of a merged job; what it measures
is kept beside the evaluation's numbers, under a hash of all that decides it, and copied into the experiment's journal.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch

from qexp.base.console import emit, print_main
from qexp.base.errors import UserError, UserErrors
from qexp.base.files import discard_partials, hash_file, hash_json, write_atomic
from qexp.base.outputs import main_output
from qexp.base.progress import phase, track
from qexp.base.text import by_reason, file_name, size_text
from qexp.config.export import TARGETS, ExportSettings
from qexp.config.later import stored_values
from qexp.deploy.alarms import failures
from qexp.deploy.answers import Run
from qexp.deploy.compared import Files, compare_files, digests_of
from qexp.deploy.fidelity import EVALUATED, Fidelity, FidelityRun, images_of, simulation_of
from qexp.deploy.files import FILE, PROGRAM, PTE, TFLITE, files_of, float_note, write_files
from qexp.deploy.foreign import open_foreign
from qexp.deploy.foreign_runs import check_runs
from qexp.deploy.lower import Lowered, example_of, lower, lower_float, lower_untried
from qexp.deploy.measured import cost_rows, layer_rows, metrics_of, point_rows, stage_row
from qexp.deploy.onnx.qdq import Exported
from qexp.deploy.runtimes import open_runtime, runtime_version
from qexp.deploy.stages import FLOAT, SIMULATED
from qexp.deploy.targets import estimates
from qexp.experiment import messages
from qexp.experiment.job import Prepared
from qexp.experiment.recorder import Recorder
from qexp.experiment.variants import Variant
from qexp.tracking import environment, rows
from qexp.tracking.journal import Journal

EXPORT_VERSION = 5  # raise it when the same file comes to be measured otherwise
EXAMPLE = "example.npz"
_IN_OTHER_BYTES = (EXAMPLE, PROGRAM)  # what is not written twice in the same bytes, of the same network
_TOLD = ("training", "variant", "file", "digest", "split", "n", "sizes", "rungs", "cost", "alarms", "notes")  # in its event
_NOT_MEASURED = ("folder", "register", "torch_export", "compare", "target")
_MEASURES_COST = ("cost", "batch_sizes", "repeats", "warmup")


def check(prepared: Sequence[Prepared]) -> tuple[str, ...]:
    """Notes for the plan; raises one `UserErrors` for all that cannot be written to a file or run, of all jobs."""
    errors: dict[str, UserError] = {}
    notes: dict[str, str | None] = {}
    for job in track(prepared, "export to try"):
        for variant in exported(job):
            try:
                notes[variant.label] = _check_variant(job, variant)
            except UserError as error:
                errors[str(error)] = error
    if errors:
        raise UserErrors(errors.values())
    return tuple(f"[{label}] {note}" for label, note in notes.items() if note is not None)


def exported(prepared: Prepared) -> tuple[Variant, ...]:
    """The variants that become files: the quantized ones, or the float network where the job has no other."""
    return prepared.variants[1:] or prepared.variants[:1]


def run(prepared: Prepared, recorder: Recorder) -> None:
    """Write, run and measure every variant of a merged job that has been evaluated."""
    for variant in track(exported(prepared), "export", note=lambda variant: variant.label):
        export_job = _ExportJob(prepared, variant, recorder)
        measured = export_job.stored()
        if measured is None:
            measured = export_job.measure()
            recorder.num_measured += 1
        else:
            label = export_job.variant.label
            print_main(f"  {label}: exported and measured before (fresh=true measures again): {measured['file']}")
        row = export_job.with_targets(export_job.with_compared(measured))
        export_job.record(row)
        emit("record", kind="export", **{name: row[name] for name in _TOLD})


def _check_variant(prepared: Prepared, variant: Variant) -> str | None:
    """Write a variant to a temporary folder, and load it into its runtimes; returns what its plan should say of that."""
    settings = variant.config.export
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / FILE
        lowered = lower_untried(prepared, variant)
        written = write_files(prepared, variant, lowered, path, is_trial=True)
        for name in settings.runtimes:
            open_runtime(name, path, threads=settings.threads)
    for name in settings.compared:
        file = open_foreign(Path(name), image_shape=prepared.bundle.image_shape, num_classes=prepared.num_classes)
        check_runs(file, example_of(prepared), prepared.num_classes)
    return float_note(lowered, written.stored, settings)


class _ExportJob:
    """Writes the files of one variant and measures them."""

    def __init__(self, prepared: Prepared, variant: Variant, recorder: Recorder) -> None:
        self.prepared, self.variant, self.recorder = prepared, recorder.named(variant), recorder
        self.config, self.settings = variant.config, variant.config.export
        words = [variant.named.generated.text, *["int4"] * self.settings.pack_int4, *["signed"] * (not self.settings.unsigned)]
        words += ["int8 io"] * (self.settings.integer_io and not variant.is_float)
        self.folder = self.settings.folder_of(self.config.runs_dir, self.config.name) / file_name(" ".join(words))
        self.path = self.folder / FILE
        self._written: tuple[Lowered, Exported] | None = None  # by this process
        self.measurements = Journal(prepared.folder / "exports" / f"{variant.key}.jsonl", needs=("asked", "digest"))
        settings = stored_values(asdict(self.settings), ExportSettings)
        decide = {key: value for key, value in settings.items() if key not in _NOT_MEASURED}
        self.key = hash_json({key: value for key, value in decide.items() if key not in _MEASURES_COST})
        versions = {name: runtime_version(name) for name in self.settings.runtimes}
        self.asked = hash_json({"export": decide, "version": EXPORT_VERSION, "cpu": environment.cpu_model(), **versions})

    def stored(self) -> dict[str, Any] | None:
        """The row of an earlier measurement of the same files in the same way; None where there is none, or with fresh=true.

        Files that are gone, as under another name of the experiment, cut short or of another network are written again.
        """
        rows = [] if self.config.fresh else [row for row in self.measurements.rows() if row["asked"] == self.asked]
        if not rows:
            return None
        row = self._row_of(rows)
        if row is None:
            self._write()
            row = self._row_of(rows, but=_IN_OTHER_BYTES)
            if row is not None:
                row |= {"digests": self._digests()}
                self.measurements.append([row])
        return None if row is None else row | {"file": str(self.path), "variant": self.variant.label}

    def _row_of(self, rows: Sequence[dict[str, Any]], but: Sequence[str] = ()) -> dict[str, Any] | None:
        """The last row that was measured of the files in the folder, but for some that are not compared."""
        digests = {name: digest for name, digest in self._digests().items() if name not in but}
        return next((row for row in reversed(rows) if digests.items() <= row.get("digests", {}).items()), None)

    def _digests(self) -> dict[str, str]:
        """Name of each file -> its hash; empty where it is gone."""
        paths = [self.folder / name for name in (EXAMPLE, *files_of(self.variant))]
        return {path.name: hash_file(path) if path.is_file() else "" for path in paths}

    def measure(self) -> dict[str, Any]:
        """Write the file and measure it; the row is stored before it is returned."""
        with phase("writing files"):
            lowered, written = self._write()
        print_main(f"  {self.variant.label}: {self.path} written, {size_text(written.size_bytes)}")
        plain = self._plain() if not self.variant.is_float else written
        network, example = self.prepared.network().eval(), example_of(self.prepared)
        networks = {FLOAT: plain.path} | ({} if self.variant.is_float else {"quantized": self.path})
        stages = FidelityRun(self.config, network, lowered, written, self.variant.plan.quantized, example)
        with phase("fidelity"):
            fidelity = stages.run(self.prepared)
        row = {
            "asked": self.asked,
            "key": self.key,
            "variant": self.variant.label,
            "training": self.prepared.training,
            "run": self._run,
            "file": str(self.path),
            "digest": hash_file(self.path),
            "digests": self._digests(),
            "split": self.config.evaluate.split,
            "n": fidelity.stages[0].n,
            "simulate": self.settings.simulate,
            "requantization": self.settings.requantization,
            "threads": self.settings.threads,
            "cpu": environment.cpu_model(),
            "sizes": self._sizes(plain.path),
            "rungs": [stage_row(stage, fidelity) for stage in fidelity.stages],
            "cost": list(cost_rows(self.settings, networks, self.prepared.bundle.image_shape)) if self.settings.cost else [],
            "layers": layer_rows(self.prepared, lowered),
            "codes": point_rows(fidelity),
            "alarms": self._alarms(fidelity),
            "notes": [*by_reason([*lowered.notes, *written.notes], most=3), *fidelity.notes],
            "versions": self.recorder.versions,
            "time_ms": environment.now_ms(),
        }
        self.measurements.append([row])
        return row

    def with_compared(self, measured: dict[str, Any]) -> dict[str, Any]:
        """The row with those of the files of other writers, run where one of them was not yet beside these very files."""
        others = [Path(name) for name in self.settings.compared]
        known = {row["digest"] for row in measured.get("compared", ())}
        if {*digests_of(others)} <= known:
            return measured
        lowered, written = self._written or self._write()
        network = self.prepared.network().eval()
        networks: dict[str, Run] = {
            FLOAT: lambda images: main_output(network(images)).float(),
            SIMULATED: simulation_of(self.config, lowered, written),
        }
        rows = compare_files(
            Files(self.path, self._plain().path, others), networks, images_of(self.prepared),
            image_shape=self.prepared.bundle.image_shape, num_classes=self.prepared.num_classes, settings=self.settings,
        )  # fmt: skip
        self.recorder.num_measured += 1
        row = measured | {"compared": [asdict(one) for one in rows], "digests": self._digests(), "time_ms": environment.now_ms()}
        self.measurements.append([row])
        return row

    def with_targets(self, measured: dict[str, Any]) -> dict[str, Any]:
        """The row with the estimates from the TFLite file; stored where they are not yet beside the numbers."""
        if not self.settings.targets:
            return measured
        prec1 = next(stage["prec1"] for stage in measured["rungs"] if stage["name"] == "litert")
        macs = {layer["layer"]: layer["macs"] for layer in measured["layers"]}
        made = {one.target: asdict(one) for one in estimates(self.settings.targets, self.path.with_name(TFLITE), prec1, macs)}
        known = {one["target"]: one for one in measured.get("targets", ())} | made  # of the same file, so that both hold
        rows = [known[name] for name in TARGETS if name in known]
        if measured.get("targets") == rows:
            return measured
        row = measured | {"targets": rows, "time_ms": environment.now_ms()}
        self.measurements.append([row])
        return row

    def record(self, measured: dict[str, Any]) -> None:
        """Write a measured row into the experiment's journal, unless it is there, and its alarms into the record."""
        self.recorder.add_alarms(self.variant, 0, [f"export: {alarm}" for alarm in measured["alarms"]])
        for alarm in measured["alarms"]:
            messages.alarm(self.variant.label, alarm, training=self.prepared.training, epoch=0)
        journal = self.recorder.journal
        known_rows = [row for row in journal.rows() if row["kind"] in ("export", "model") and row["run"] == self._run]
        new = []
        same = [
            row for row in known_rows if (row["kind"], row["key"], row["time_ms"]) == ("export", self.key, measured["time_ms"])
        ]
        if not same or same[-1]["variant"] != measured["variant"]:
            values = {key: value for key, value in measured.items() if key not in ("run", "key", "time_ms")}
            new.append(rows.export_row(self._run, key=self.key, values=values, time_ms=measured["time_ms"]))
            new.append(rows.metrics_row(self._run, step=0, values=dict(metrics_of(measured))))
        name = self.settings.register
        if name is not None:
            model = ("model", name, measured["digest"])
            same = [row for row in known_rows if row["kind"] == "model" and (row["kind"], row["name"], row["digest"]) == model]
            example = self.folder / EXAMPLE
            new += [] if same else [
                rows.model_row(self._run, name=name, path=self.path, example=example, digest=measured["digest"])
            ]  # fmt: skip
            print_main(f"  {self.variant.label}: {'was' if same else 'to be'} registered in MLflow as {name}")
        journal.append(new)

    @property
    def _run(self) -> str:
        return rows.run_key(self.prepared.training, None if self.variant.is_float else self.variant.key)

    def _plain(self) -> Exported:
        """The float network in a file of its own, to compare with."""
        lowered = lower_float(self.prepared, fold=self.config.correct.fold_bn)
        return write_files(self.prepared, self.prepared.variants[0], lowered, self.folder.parent / FLOAT / FILE)

    def _sizes(self, plain: Path) -> dict[str, int]:
        """Bytes of the float network's file, of this one, of the packed state dict, and of what other runtimes read of both."""
        sizes = {"fp32": plain.stat().st_size, "file": self.path.stat().st_size, "packed": self.variant.size_bytes}
        for name, file in (("tflite", TFLITE), ("pte", PTE)):
            if file in files_of(self.variant):
                sizes |= {f"fp32_{name}": plain.with_name(file).stat().st_size, name: self.path.with_name(file).stat().st_size}
        return sizes

    def _alarms(self, fidelity: Fidelity) -> list[str]:
        """Layers that failed, and a copy that does not score as the evaluated one did."""
        alarms = [text for stage in fidelity.stages for text in failures(stage)]
        if self.recorder.device != "cpu" or self.config.train.channels_last:  # sums of floats depend on it
            return alarms
        by_name = {stage.name: stage for stage in fidelity.stages}
        simulated = by_name.get(EVALUATED) or by_name.get(SIMULATED)
        for stage, variant in ((by_name[FLOAT], self.prepared.variants[0]), (simulated, self.variant)):
            scored = self.recorder.stored(variant, 0)["prec1"]
            if stage is not None and not math.isclose(stage.prec1, scored, abs_tol=1e-9):
                alarms.append(f"{stage.name} scores {stage.prec1:.2f}, its evaluation {scored:.2f}")
        return alarms

    @torch.no_grad()
    def _write(self) -> tuple[Lowered, Exported]:
        """Write the file; beside it an image and its logits, for the model's signature and for users of the file elsewhere."""
        discard_partials(self.folder)
        lowered = lower(self.prepared, self.variant)
        written = write_files(self.prepared, self.variant, lowered, self.path)
        image = next(images_of(self.prepared)).images[:1]
        arrays = {"images": image.numpy(), "logits": simulation_of(self.config, lowered, written)(image).numpy()}

        def save(target: Path) -> None:
            with open(target, "wb") as handle:
                np.savez(handle, **arrays)

        write_atomic(self.folder / EXAMPLE, save)
        self._written = lowered, written
        return lowered, written
