"""What was measured, written down: per training, so that any experiment reuses it, and in the experiment's journal.

`<training folder>/variants/<key>.jsonl` holds every evaluation of a variant of that training. The experiment's journal at
`<runs_dir>/journal/<name>.jsonl` says which of them belong to the experiment; MLflow and the reports follow it. Both are
appended to and fsynced before a number is shown.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any

from qexp.base import dist
from qexp.base.files import canonical_json
from qexp.base.nouns import Record
from qexp.base.process import host
from qexp.engine import predictions
from qexp.engine.trajectory import TrajectoryStore
from qexp.pipeline.check import Sweep
from qexp.pipeline.evaluator import Scored
from qexp.pipeline.identity import training_identity
from qexp.pipeline.jobs import JobBook
from qexp.pipeline.prepare import Prepared
from qexp.pipeline.variants import Variant
from qexp.policy.table import plan_rows
from qexp.tracking import environment, rows
from qexp.tracking.journal import Journal

JOB_STATES: dict[str, rows.JobState] = {"FINISHED": "done", "FAILED": "failed", "KILLED": "killed", "PREEMPTED": "preempted"}


class Ledger:
    """The books of one merged job; on rank 0 only.

    Args:
        prepared: the merged job. sweep: where it comes from. device: what it runs on, for the record.
        poke: told whenever there are new rows. book: of the jobs that were merged; without one their states are not noted.

    Make it once nobody else works on the training: it reads what is stored, and does not look again.
    """

    def __init__(
        self,
        prepared: Prepared,
        sweep: Sweep,
        device: str,
        poke: Callable[[], None] = lambda: None,
        book: JobBook | None = None,
    ) -> None:
        self.prepared, self.sweep, self.device, self._poke, self._book = prepared, sweep, device, poke, book
        self.journal = Journal.of(prepared.config.runs_dir, prepared.config.name)
        self.versions = environment.versions()
        self._git = environment.git_revision()
        self._folder = prepared.folder / "variants"
        self.num_measured = 0  # evaluations made by this job; the others were stored
        self._stored: dict[str, dict[int, dict[str, Any]]] = {}
        for variant in prepared.variants:
            found = Journal(self._folder / f"{variant.key}.jsonl").rows()
            self._stored[variant.key] = {row["epoch"]: row for row in found}

    def begin(self) -> None:
        """Open the runs in the journal, and bring in what is already known of them."""
        if self._book is not None:
            self._book.note("running")
        began = rows.sweep_row(self.sweep.sweep, command=self.sweep.command, versions=self.versions, host=host(), git=self._git)
        self.journal.append([began, *(self._run_row(variant) for variant in self.prepared.variants)])
        # The time tells a training that was done afresh, maybe under another name, from the one that is written down here.
        names = ("run", "variant_key", "epoch", "time_ms")
        written = {tuple(row[name] for name in names) for row in self.journal.rows() if row["kind"] == "record"}
        known = [
            rows.record_row(self._known(variant, row))
            for variant in self.prepared.variants
            for epoch, row in self._stored[variant.key].items()
            if (self._run_key(variant), variant.key, epoch, row["time_ms"]) not in written
        ]
        self.journal.append(known)

    def missing(self, epoch: int) -> list[Variant]:
        """Variants without a number for this epoch; the float network counts as one."""
        return [variant for variant in self.prepared.variants if epoch not in self._stored[variant.key]]

    def forget_after(self, epoch: int) -> None:
        """The training goes on from `epoch`: what was measured of later states is measured again, of what they become."""
        for found in self._stored.values():
            for later in [stored for stored in found if stored > epoch]:
                del found[later]

    def digests(self, epoch: int) -> dict[str, str]:
        """Variant key -> digest of its logits after this epoch, where it was evaluated before."""
        return {key: found[epoch]["digest"] for key, found in self._stored.items() if epoch in found}

    def write(self, epoch: int, scored: Sequence[Scored], *, last: bool) -> list[Record]:
        """Record what was measured after `epoch`; returns the records, the float network's first."""
        float_prec1 = scored[0].evaluation.metrics.prec1
        missing = {variant.key for variant in self.missing(epoch)}
        records, journal_rows = [], []
        for item in scored:
            record = self._record(epoch, item, float_prec1)
            if item.variant.key in missing:
                record = self._keep_calibration(self._keep_predictions(record, item, last=last), item)
                row = {**asdict(record), "digest": item.evaluation.digest}
                Journal(self._folder / f"{item.variant.key}.jsonl").append([row])
                self._stored[item.variant.key][epoch] = row
                self.num_measured += 1
                journal_rows.append(rows.record_row(record))
            records.append(record)
        self.journal.append(journal_rows)
        self._poke()
        return records

    def stored(self, variant: Variant, epoch: int) -> dict[str, Any]:
        """What was measured of a variant after `epoch`, as written down."""
        return dict(self._stored[variant.key][epoch])

    def set_alarms(self, variant: Variant, epoch: int, about: str, alarms: Sequence[str]) -> None:
        """Let a record carry these alarms, each behind `about: `, in place of those about the same; a new row of both books."""
        row = self.stored(variant, epoch)
        prefix = f"{about}: "
        kept = [text for text in row["alarms"] if not text.startswith(prefix)]
        wanted = [*kept, *(prefix + text for text in alarms)]
        if wanted == list(row["alarms"]):
            return
        row["alarms"] = wanted
        Journal(self._folder / f"{variant.key}.jsonl").append([row])
        self._stored[variant.key][epoch] = row
        self.journal.append([rows.record_row(self._known(variant, row))])

    def training_metrics(self, epoch: int, values: dict[str, float]) -> None:
        """Write down the training's own curve."""
        self.journal.append([rows.metrics_row(self._run_key(self.prepared.variants[0]), step=epoch, values=values)])

    def end(self, status: str, error: BaseException | None = None) -> None:
        """Close the runs and note how the jobs ended: FINISHED, FAILED, KILLED or PREEMPTED.

        MLflow has no word for preempted: such a run is KILLED there until it goes on. error: why it failed; the leader, which
        keeps the traceback, notes its file, but may be gone by then.
        """
        known = "KILLED" if status == "PREEMPTED" else status
        self.journal.append([rows.end_row(self._run_key(variant), known) for variant in self.prepared.variants])
        if self._book is not None:
            self._book.note(JOB_STATES[status], error=error if status == "FAILED" else None)

    def _record(self, epoch: int, item: Scored, float_prec1: float) -> Record:
        variant, metrics = item.variant, item.evaluation.metrics
        config, is_float = variant.config, variant.is_float
        return Record(
            experiment=config.name,
            training=self.prepared.training,
            variant=variant.label,
            variant_key=variant.key,
            bits=variant.bits,
            mode="fp32" if is_float else config.mode,
            policy="" if is_float else config.policy.name,
            quant=self._method(variant),
            granularity="" if is_float or config.mode == "half" else self._granularity(variant),
            input_quant=variant.plan.input_quant,
            seed=config.seed,
            epoch=epoch,
            prec1=metrics.prec1,
            prec5=metrics.prec5,
            loss=metrics.loss,
            delta_prec1=metrics.prec1 - float_prec1,
            n=metrics.n,
            kl=None if is_float else metrics.kl,
            logit_sqnr_db=None if is_float else metrics.logit_sqnr_db,
            size_bytes=variant.size_bytes,
            split=config.evaluate.split,
            plan_hash=variant.plan.hash,
            data_hash=self.prepared.bundle.fingerprint,
            alarms=item.alarms,
            world_size=dist.world_size(),
            trained_by=self._trained_by(epoch),
            **_beside_weights(variant),
            device=self.device,
            time_ms=int(time.time() * 1000),
            versions=self.versions,
        )

    def _method(self, variant: Variant) -> str:
        """The scheme of the weights, or the method that they were trained with."""
        config = variant.config
        if variant.is_float or config.mode == "half":
            return "" if variant.is_float else "half"
        if self.prepared.converted is not None:
            return str(self.prepared.converted.about["qat"])
        return config.qat.name if config.qat.is_on else config.quant.name

    def _granularity(self, variant: Variant) -> str:
        """What shares a range, as asked for or, of a converted network, as trained."""
        if self.prepared.converted is None:
            return variant.config.quant.weight.granularity
        return next((spec.granularity for spec in variant.plan.quantized.values()), "")

    def _trained_by(self, epoch: int) -> str:
        """Numbers of ranks that trained the state, in the order of time."""
        if self.prepared.config.checkpoint is not None:
            return ""
        training = TrajectoryStore(self.prepared.config.runs_dir).open(self.prepared.training)
        return " then ".join(map(str, training.world_sizes(epoch)))

    def _keep_predictions(self, record: Record, item: Scored, *, last: bool) -> Record:
        keep = self.prepared.config.evaluate.keep
        if keep == "none" or (keep == "last" and not last):
            return record
        relative = Path("predictions") / record.variant_key / f"{record.epoch:04d}.safetensors"
        predictions.save(self.prepared.folder / relative, item.evaluation.predictions)
        return replace(record, predictions=str(relative))

    def _keep_calibration(self, record: Record, item: Scored) -> Record:
        if item.calibration is None:
            return record
        relative = Path("calibrations") / record.variant_key / f"{record.epoch:04d}.safetensors"
        item.calibration.save(self.prepared.folder / relative)
        return replace(record, calibration=str(relative))

    def _run_key(self, variant: Variant) -> str:
        return rows.run_key(self.prepared.training, None if variant.is_float else variant.key)

    def _known(self, variant: Variant, row: dict[str, Any]) -> Record:
        """A stored evaluation as a record of this experiment."""
        names = {item.name for item in fields(Record)}
        kept = {key: value for key, value in row.items() if key in names}
        name = self.prepared.config.name
        # Of this experiment itself it is where a crash fell between the two books.
        reused = row["reused"] or row["experiment"] != name
        own = {"experiment": name, "variant": variant.label, "alarms": tuple(row["alarms"]), "reused": reused}
        return Record(**{**kept, **own})

    def _run_row(self, variant: Variant) -> dict[str, Any]:
        config = variant.config
        parent = None if variant.is_float else self.prepared.training
        name = f"{config.model.name} {self.prepared.training[:6]}" if variant.is_float else variant.label
        params = rows.flatten(training_identity(config))
        if not variant.is_float:
            dials = {"bits": variant.bits, "mode": config.mode, "policy": asdict(config.policy), "quant": asdict(config.quant)}
            params |= rows.flatten(dials)
        params |= rows.flatten({"evaluate": asdict(config.evaluate)})
        if config.checkpoint is not None:
            params["checkpoint"] = config.checkpoint
        tags = {
            "qexp.sweep": self.sweep.sweep,
            "qexp.command": self.sweep.command,
            "qexp.training": self.prepared.training,
            "qexp.data_hash": self.prepared.bundle.fingerprint,
            "qexp.plan_hash": variant.plan.hash,
            "qexp.device": self.device,
            "qexp.world_size": str(dist.world_size()),
            "qexp.host": host(),
            "qexp.cpu": environment.cpu_model(),
            "qexp.git": self._git or "none",
            **{f"qexp.version.{name}": text for name, text in self.versions.items()},
        }
        artifacts = {"config.json": canonical_json(asdict(config))}
        if not variant.is_float:
            artifacts["plan.json"] = canonical_json(plan_rows(variant.plan))
        epochs = config.recipe.epochs if config.checkpoint is None else None
        return rows.run_row(
            self._run_key(variant),
            parent=parent,
            name=name,
            params=params,
            tags=tags,
            artifacts=artifacts,
            planned_epochs=epochs,
        )


def _beside_weights(variant: Variant) -> dict[str, Any]:
    """What a record says of activations, ranges and corrections."""
    if not variant.is_built:
        return {}
    calibrate, specs = variant.config.calibrate, list(variant.plan.quantized_activations.values())
    trained = variant.config.qat.is_on or variant.trained_bits is not None
    if variant.calibration is not None:
        found = sorted(set(variant.calibration.methods.values()))
        static = f"{'/'.join(found)} of file {variant.calibration.hash}"
    else:
        static = calibrate.name if specs and not specs[0].dynamic else "dynamic" if specs else ""
    return {
        "activation_bits": max((spec.bits for spec in specs), default=None),
        "activation_scheme": specs[0].scheme if specs else "",
        "ranges": "as trained" if trained else f"weights {calibrate.weights}" + (f", activations {static}" if static else ""),
        "corrections": ", ".join(variant.config.correct.names),
    }
