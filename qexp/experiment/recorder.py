"""What was measured, written down: per training, so that any experiment reuses it, and in the experiment's journal.

`<training folder>/variants/<key>.jsonl` holds every evaluation of a variant of that training. The experiment's journal at
`<runs_dir>/journal/<name>.jsonl` says which of them belong to the experiment; MLflow and the reports follow it. Both are
appended to and fsynced before a number is shown.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import fields, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, Protocol

from qexp.engine import predictions
from qexp.experiment.evaluator import Scored
from qexp.experiment.job import Prepared
from qexp.experiment.recorded import Recorded
from qexp.experiment.rows import described, engine_of, record_of, run_key, run_row, sources
from qexp.experiment.stored_numbers import as_stored, changed, circumstances
from qexp.experiment.variants import Variant
from qexp.tracking import environment, rows
from qexp.tracking.journal import Journal
from qexp.tracking.process import host
from qexp.tracking.record import COLUMNS, JOINED, MEASURED, Record, Sweep, outcomes_of

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
        self._folder = prepared.folder / "variants"
        self._sources = sources(prepared.measured)
        config = prepared.config
        self._circumstances = circumstances(
            device,
            config.evaluate.batch_images,
            channels_last=config.evaluates_channels_last,
            engine=engine_of(config),
        )
        self.num_measured = 0  # evaluations made by this job; the others were stored
        self._opened: dict[str, Variant] = {}  # by key, as their runs are called
        self._running: list[Variant] = []  # whose runs this job opened
        self._stored: dict[str, dict[int, dict[str, Any]]] = {}
        for variant in prepared.variants:
            self._stored[variant.key] = {row["epoch"]: row for row in self._measured(variant).rows()}

    def _measured(self, variant: Variant) -> Journal:
        """What was measured of a variant, whatever the experiment."""
        return Journal(self._folder / f"{variant.key}.jsonl", needs=MEASURED)

    @cached_property
    def _git(self) -> str | None:
        return environment.git_revision()

    def is_done(self, epochs: Sequence[int], recorded: Recorded) -> bool:
        """True where nothing is left to measure, nor to write down.

        Args:
            epochs: whose numbers are all that is asked for.
            recorded: what the experiment's journal has.
        """
        return not self._open(epochs, recorded)

    def _open(self, epochs: Sequence[int], recorded: Recorded) -> list[Variant]:
        """The variants without a number, or whose numbers or description the journal lacks, and the training with them."""
        missing = {variant.key for epoch in epochs for variant in self.missing(epoch)}
        idle = set()
        for variant in self.prepared.variants:
            run, named = run_key(self.prepared, variant), self.named(variant)
            stored = self._stored[variant.key].values()
            if variant.key not in missing and all(recorded.has_record(run, variant, row) for row in stored):
                if recorded.has_run(run, described(self.prepared, named)):
                    idle.add(variant.key)
        of_float = self.prepared.variants[0]
        if len(idle) < len(self.prepared.variants):
            idle.discard(of_float.key)
        return [variant for variant in self.prepared.variants if variant.key not in idle]

    def begin(self, epochs: Sequence[int] | None = None) -> None:
        """Open the runs in the journal that this job has work with, and bring in what is already known of them.

        Args:
            epochs: whose numbers are all that is asked for; None opens all runs.
        """
        self._note_jobs("running")
        began = rows.sweep_row(self.sweep.sweep, command=self.sweep.command, versions=self.versions, host=host(), git=self._git)
        recorded = Recorded.of(self.journal.rows())
        self._opened = {variant.key: self.named(variant) for variant in self.prepared.variants}
        self._running = list(self.prepared.variants) if epochs is None else self._open(epochs, recorded)
        self.journal.append([began, *(self._run_row(self._opened[variant.key]) for variant in self._running)])
        known = [
            rows.record_row(self._known(variant, row))
            for variant in self.prepared.variants
            for row in self._stored[variant.key].values()
            if not recorded.has_record(run_key(self.prepared, variant), variant, row)
        ]
        self.journal.append(known)

    def missing(self, epoch: int) -> list[Variant]:
        """Variants without a number for this epoch, or without one that is asked for; the float network counts as one."""
        variants = self.prepared.variants
        return [variant for variant in variants if not self._is_complete(variant, self._stored[variant.key].get(epoch))]

    def _is_complete(self, variant: Variant, row: dict[str, Any] | None) -> bool:
        """True where a stored evaluation says what was done and has all metrics that are asked for, by the present code.

        Evaluations of before say neither what a correction did nor that a granularity saves nothing.
        """
        if row is None or row.get("corrected", {}).keys() != variant.corrections.keys():
            return False
        if not {*variant.alarms} <= {*row["alarms"]}:
            return False
        extra, known = row.get("extra", {}), row.get("sources", {})
        names = [one.row.name for one in self.prepared.measured if one.row.name not in COLUMNS]
        return all(name in extra and known.get(name) == self._sources.get(name) for name in names)

    def _with_earlier(self, row: dict[str, Any]) -> dict[str, Any]:
        """An evaluation with the other metrics that an earlier one of the same logits has."""
        earlier = self._stored[row["variant_key"]].get(row["epoch"], {})
        if earlier.get("digest") != row["digest"]:
            return row
        merged = {name: {**earlier.get(name, {}), **row.get(name, {})} for name in JOINED}
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
        return changed(self._stored[of_float.variant.key].get(epoch), of_float.evaluation, self._now(of_float))

    def _now(self, item: Scored) -> dict[str, object]:
        """The circumstances of an evaluation that was made just now."""
        return self._circumstances | {"batch_size": item.batch_size}

    def write(self, epoch: int, scored: Sequence[Scored], *, last: bool) -> list[Record]:
        """Record what was measured after `epoch`; returns the records, the float network's first."""
        of_float = scored[0].evaluation
        missing = {variant.key for variant in self.missing(epoch)}
        records, journal_rows = [], []
        for item in scored:
            record = record_of(self.prepared, item, epoch, float_network=of_float, device=self.device, versions=self.versions)
            if item.variant.key in missing:
                record = self._keep_calibration(self._keep_predictions(record, item, last=last), item)
                row = self._with_earlier({**record.as_row(), **as_stored(item.evaluation, self._now(item))})
                record = replace(record, **{name: row.get(name, {}) for name in JOINED})
                self._measured(item.variant).append([row])
                self._stored[item.variant.key][epoch] = row
                self.num_measured += 1
                if self._opened[item.variant.key].label != item.variant.label:  # the run is called by what was done
                    self._opened[item.variant.key] = item.variant
                    journal_rows.append(self._run_row(item.variant))
                journal_rows.append(rows.record_row(record))
            records.append(record)
        self.journal.append(journal_rows)
        self._notify()
        return records

    def named(self, variant: Variant) -> Variant:
        """A variant named by what its corrections did when it was evaluated last; as asked for where it was not."""
        by_epoch = self._stored[variant.key]
        return variant.after(outcomes_of(by_epoch[max(by_epoch)])) if by_epoch else variant

    def stored(self, variant: Variant, epoch: int) -> dict[str, Any]:
        """What was measured of a variant after `epoch`, as written down."""
        return dict(self._stored[variant.key][epoch])

    def add_alarms(self, variant: Variant, epoch: int, alarms: Sequence[str]) -> None:
        """Let a record carry these alarms behind its evaluation's, in place of any added before; a new row in both files."""
        row, file = self.stored(variant, epoch), self._measured(variant)
        # The evaluation's own are those of its first row: rows that alarms were added to are later, and of the same time.
        same = (other for other in file.rows() if (other["epoch"], other["time_ms"]) == (epoch, row["time_ms"]))
        wanted = [*next(same)["alarms"], *alarms]
        if wanted == list(row["alarms"]):
            return
        row["alarms"] = wanted
        file.append([row])
        self._stored[variant.key][epoch] = row
        self.journal.append([rows.record_row(self._known(variant, row))])

    def training_metrics(self, epoch: int, values: dict[str, float]) -> None:
        """Write down the training's own curve."""
        self.journal.append([rows.metrics_row(run_key(self.prepared, self.prepared.variants[0]), step=epoch, values=values)])

    def end(self, status: Status, error: BaseException | None = None) -> None:
        """Close the runs that were opened and note how the jobs ended.

        Args:
            status: MLflow has no word for preempted: such a run is KILLED there until it goes on.
            error: why it failed; the leader, which keeps the traceback, notes its file, but may be gone by then.
        """
        known: Literal["FINISHED", "FAILED", "KILLED"] = "KILLED" if status == "PREEMPTED" else status
        self.journal.append([rows.end_row(run_key(self.prepared, variant), known) for variant in self._running])
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
        names, variant = {item.name for item in fields(Record)}, variant.after(outcomes_of(row))
        kept = {key: value for key, value in row.items() if key in names}
        name = self.prepared.config.name
        # Of this experiment itself it is where a crash fell between the two files.
        reused = row["reused"] or row["experiment"] != name
        own = {"experiment": name, "variant": variant.label, "named": variant.named, "reused": reused}
        return Record(**{**kept, **own, "alarms": tuple(row["alarms"]), "corrected": outcomes_of(row)})
