"""What was measured, written down: per training, so that any experiment reuses it, and in the experiment's journal.

`<training folder>/variants/<key>.jsonl` holds every evaluation of a variant of that training. The experiment's journal at
`<runs_dir>/journal/<name>.jsonl` says which of them belong to the experiment; MLflow and the reports follow it. Both are
appended to and fsynced before a number is shown.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any, Literal, Protocol

from qexp.engine import predictions
from qexp.experiment.evaluator import Scored
from qexp.experiment.job import Prepared
from qexp.experiment.rows import record_of, run_key, run_row, sources
from qexp.experiment.stored_numbers import as_stored, changed, circumstances
from qexp.experiment.variants import Variant
from qexp.tracking import environment, rows
from qexp.tracking.journal import Journal
from qexp.tracking.process import host
from qexp.tracking.record import ADDED, COLUMNS, Record, Sweep

Status = Literal["FINISHED", "FAILED", "KILLED", "PREEMPTED"]
JOB_STATES: dict[Status, rows.JobState] = {"FINISHED": "done", "FAILED": "failed", "KILLED": "killed", "PREEMPTED": "preempted"}


class NoteJobs(Protocol):
    """Writes down what became of the jobs that were merged."""

    def __call__(self, state: rows.JobState, *, error: BaseException | None = None) -> None:
        """Note the state of all of them, and why they failed."""
        ...


class Recorder:
    """Writes down what one merged job measures; on rank 0 only.

    Args:
        prepared: the merged job.
        sweep: where it comes from.
        device: what it runs on, for the record.
        notify: called whenever there are new rows.
        note_jobs: told what becomes of the jobs that were merged.

    Make it once nobody else works on the training: it reads what is stored, and does not look again.
    """

    def __init__(
        self,
        prepared: Prepared,
        sweep: Sweep,
        device: str,
        notify: Callable[[], None] = lambda: None,
        note_jobs: NoteJobs = lambda state, *, error=None: None,
    ) -> None:
        self.prepared, self.sweep, self.device, self._notify, self._note_jobs = prepared, sweep, device, notify, note_jobs
        self.journal = Journal.of(prepared.config.runs_dir, prepared.config.name)
        self.versions = environment.versions()
        self._git = environment.git_revision()
        self._folder = prepared.folder / "variants"
        self._sources = sources(prepared.measured)
        config = prepared.config
        self._circumstances = circumstances(device, config.evaluate.batch_size, channels_last=config.train.channels_last)
        self.num_measured = 0  # evaluations made by this job; the others were stored
        self._stored: dict[str, dict[int, dict[str, Any]]] = {}
        for variant in prepared.variants:
            stored = Journal(self._folder / f"{variant.key}.jsonl").rows()
            self._stored[variant.key] = {row["epoch"]: row for row in stored}

    def begin(self) -> None:
        """Open the runs in the journal, and bring in what is already known of them."""
        self._note_jobs("running")
        began = rows.sweep_row(self.sweep.sweep, command=self.sweep.command, versions=self.versions, host=host(), git=self._git)
        self.journal.append([began, *map(self._run_row, self.prepared.variants)])
        # The time tells a training that was done afresh, maybe under another name, from the one that is written down here.
        names = ("run", "variant_key", "epoch", "time_ms")
        written = {tuple(row[name] for name in names) for row in self.journal.rows() if row["kind"] == "record"}
        known = [
            rows.record_row(self._known(variant, row))
            for variant in self.prepared.variants
            for epoch, row in self._stored[variant.key].items()
            if (run_key(self.prepared, variant), variant.key, epoch, row["time_ms"]) not in written
        ]
        self.journal.append(known)

    def missing(self, epoch: int) -> list[Variant]:
        """Variants without a number for this epoch, or without one that is asked for; the float network counts as one."""
        return [variant for variant in self.prepared.variants if not self._is_complete(self._stored[variant.key].get(epoch))]

    def _is_complete(self, row: dict[str, Any] | None) -> bool:
        """True where a stored evaluation has all metrics that are asked for, by the code that there is now."""
        if row is None:
            return False
        extra, known = row.get("extra", {}), row.get("sources", {})
        names = [one.row.name for one in self.prepared.measured if one.row.name not in COLUMNS]
        return all(name in extra and known.get(name) == self._sources.get(name) for name in names)

    def _with_earlier(self, row: dict[str, Any]) -> dict[str, Any]:
        """An evaluation with the other metrics that an earlier one of the same logits has."""
        earlier = self._stored[row["variant_key"]].get(row["epoch"], {})
        if earlier.get("digest") != row["digest"]:
            return row
        merged = {name: {**earlier.get(name, {}), **row.get(name, {})} for name in ADDED}
        return row | {name: values for name, values in merged.items() if values}

    def forget_after(self, epoch: int) -> None:
        """The training goes on from `epoch`: what was measured of later states is measured again, of what they become."""
        for rows_by_epoch in self._stored.values():
            for later in [stored for stored in rows_by_epoch if stored > epoch]:
                del rows_by_epoch[later]

    def digests(self, epoch: int) -> dict[str, str]:
        """Variant key -> digest of its logits after this epoch, where it was evaluated before."""
        return {key: by_epoch[epoch]["digest"] for key, by_epoch in self._stored.items() if epoch in by_epoch}

    def changed(self, epoch: int, of_float: Scored) -> str:
        """How the float network of this epoch scores otherwise than stored; empty where it does not."""
        return changed(self._stored[of_float.variant.key].get(epoch), of_float.evaluation, self._circumstances)

    def write(self, epoch: int, scored: Sequence[Scored], *, last: bool) -> list[Record]:
        """Record what was measured after `epoch`; returns the records, the float network's first."""
        of_float = scored[0].evaluation
        missing = {variant.key for variant in self.missing(epoch)}
        records, journal_rows = [], []
        for item in scored:
            record = record_of(self.prepared, item, epoch, float_network=of_float, device=self.device, versions=self.versions)
            if item.variant.key in missing:
                record = self._keep_calibration(self._keep_predictions(record, item, last=last), item)
                row = self._with_earlier({**record.as_row(), **as_stored(item.evaluation, self._circumstances)})
                record = replace(record, **{name: row.get(name, {}) for name in ADDED})
                Journal(self._folder / f"{item.variant.key}.jsonl").append([row])
                self._stored[item.variant.key][epoch] = row
                self.num_measured += 1
                journal_rows.append(rows.record_row(record))
            records.append(record)
        self.journal.append(journal_rows)
        self._notify()
        return records

    def stored(self, variant: Variant, epoch: int) -> dict[str, Any]:
        """What was measured of a variant after `epoch`, as written down."""
        return dict(self._stored[variant.key][epoch])

    def set_alarms(self, variant: Variant, epoch: int, about: str, alarms: Sequence[str]) -> None:
        """Let a record carry these alarms, each behind `about: `, in place of those about the same; a new row in both files."""
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
        self.journal.append([rows.metrics_row(run_key(self.prepared, self.prepared.variants[0]), step=epoch, values=values)])

    def end(self, status: Status, error: BaseException | None = None) -> None:
        """Close the runs and note how the jobs ended.

        Args:
            status: MLflow has no word for preempted: such a run is KILLED there until it goes on.
            error: why it failed; the leader, which keeps the traceback, notes its file, but may be gone by then.
        """
        known: Literal["FINISHED", "FAILED", "KILLED"] = "KILLED" if status == "PREEMPTED" else status
        self.journal.append([rows.end_row(run_key(self.prepared, variant), known) for variant in self.prepared.variants])
        self._note_jobs(JOB_STATES[status], error=error if status == "FAILED" else None)

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

    def _run_row(self, variant: Variant) -> rows.Row:
        return run_row(self.prepared, variant, sweep=self.sweep, device=self.device, versions=self.versions, git=self._git)

    def _known(self, variant: Variant, row: dict[str, Any]) -> Record:
        """A stored evaluation as a record of this experiment."""
        names = {item.name for item in fields(Record)}
        kept = {key: value for key, value in row.items() if key in names}
        name = self.prepared.config.name
        # Of this experiment itself it is where a crash fell between the two files.
        reused = row["reused"] or row["experiment"] != name
        own = {"experiment": name, "variant": variant.label, "named": variant.named, "reused": reused}
        return Record(**{**kept, **own, "alarms": tuple(row["alarms"])})
