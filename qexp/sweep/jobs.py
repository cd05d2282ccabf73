"""What becomes of every job of a sweep, written into the journal of its experiment.

The leader plans and refuses jobs and notes which failed; the process that runs a group notes that it began and how it ended. All
append, so they may be different processes on different machines, and nobody corrects a row: what state a job is in follows from
the rows and from the numbers when a report reads them (`qexp.reporting.frames.jobs`). A killed process could not have told.
Torch-free, so that a refused command is written down without it.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from qexp.base.errors import UserErrors
from qexp.base.files import hash_json
from qexp.config.later import stored_values
from qexp.config.root import Config
from qexp.experiment.unprepared import Unprepared
from qexp.sweep.check import InvalidJobs
from qexp.sweep.types import AskedJob
from qexp.tracking import environment, rows
from qexp.tracking.journal import Followed, Journal
from qexp.tracking.process import host
from qexp.tracking.record import Sweep
from qexp.tracking.repeats import ranges, rows_of_jobs

if TYPE_CHECKING:
    from qexp.experiment.job import Prepared

# What does not change which numbers are asked for.
NOT_ASKED = (
    "name", "label", "data.label", "fresh", "plan", "plan_only", "quiet", "device", "tracking", "runs_dir", "results_dir",
    "draw_figures",
)  # fmt: skip
REASON_LENGTH = 500
Place = tuple[str, str]  # runs_dir and name of an experiment


class JobLog:
    """Notes what becomes of jobs.

    Args:
        jobs: those of a whole sweep, or of one group where only `note` is called.
        sweep: theirs.
    """

    def __init__(self, jobs: Sequence[AskedJob], sweep: Sweep) -> None:
        self.jobs, self.sweep = tuple(jobs), sweep

    def planned(self, groups: Sequence[Sequence[int]], prepared: Sequence[Prepared]) -> None:
        """Note the jobs of groups that were found right, before the first of them starts."""
        self._append(self._begun("planned", groups, prepared))

    def _begun(self, state: rows.JobState, groups: Sequence[Sequence[int]], prepared: Sequence[Prepared]) -> dict[int, rows.Row]:
        """The row that says all of a job, by its number."""
        begun: dict[int, rows.Row] = {}
        for positions, one in zip(groups, prepared, strict=True):
            labels = {variant.key: variant.label for variant in one.variants}
            for position, key in zip(positions, one.asked, strict=True):
                begun[position] = rows.job_row(
                    self.sweep.sweep,
                    self.jobs[position].key,
                    state,
                    job=position,
                    asked=self.jobs[position].asked,
                    training=one.training,
                    variant_key=key,
                    variant=labels[key],
                    fresh=self.jobs[position].fresh,
                )
        return begun

    def repeated(self, groups: Sequence[Sequence[int]], prepared: Sequence[Prepared], journals: Mapping[Place, Followed]) -> None:
        """Note the command, and its jobs that are done: as those of an earlier sweep where that asked for the same.

        Args:
            groups: positions of the jobs of each group that is done.
            prepared: the same groups.
            journals: of their experiments.
        """
        begun = self._begun("done", groups, prepared)
        known = {place: {_same(row): row for row in rows_of_jobs(journal.rows()) if row["job"] is not None}
                 for place, journal in journals.items()}  # fmt: skip
        pairs: dict[tuple[Place, str], list[tuple[int, int]]] = {}
        for number, row in sorted(begun.items()):
            place = self._place(number)
            earlier = known[place].get(_same(row))
            if earlier is not None:
                del begun[number]
                pairs.setdefault((place, earlier["sweep"]), []).append((number, earlier["job"]))
        git, versions = environment.git_revision(), environment.versions()
        for place in journals:
            typed = rows.sweep_row(self.sweep.sweep, command=self.sweep.command, versions=versions, host=host(), git=git)
            again = [rows.repeat_row(self.sweep.sweep, of, ranges(part)) for (own, of), part in pairs.items() if own == place]
            Journal.of(*place).append([typed, *again])
        self._append(begun)

    @contextlib.contextmanager
    def refusals(self, groups: Sequence[Sequence[int]] = ()) -> Iterator[None]:
        """Within, an error about jobs is noted before it goes on its way.

        Args:
            groups: positions of the jobs of each group, once they are known.
        """
        try:
            yield
        except UserErrors as error:
            with contextlib.suppress(OSError):  # a journal that cannot be written is not what the user has to hear of first
                self._refused(_reasons(error, groups))
            raise

    def _refused(self, reasons: Mapping[int, str]) -> None:
        """Note which jobs are invalid and why, and that the others are still to be done.

        Where no job of an experiment is right, nothing is noted: a report should not go on listing a typing mistake.
        """
        if any(job.plan_only for job in self.jobs):
            return
        places = {number: job.place for number, job in enumerate(self.jobs) if job.place is not None}
        right = {place for number, place in places.items() if number not in reasons}
        written = right & {place for number, place in places.items() if number in reasons}
        self._append(
            {
                number: rows.job_row(
                    self.sweep.sweep,
                    self.jobs[number].key,
                    "invalid" if number in reasons else "planned",
                    job=number,
                    asked=self.jobs[number].asked,
                    fresh=self.jobs[number].fresh,
                    reason=reasons.get(number),
                )
                for number, place in places.items()
                if place in written
            }
        )

    def note(
        self,
        state: rows.JobState,
        positions: Sequence[int] | None = None,
        *,
        error: BaseException | None = None,
        traceback: Path | None = None,
    ) -> None:
        """Note the state of jobs.

        Args:
            state: theirs.
            positions: which of them; None for all.
            error: why they failed.
            traceback: its file.
        """
        reason = None if error is None else _one_line(error)
        chosen = range(len(self.jobs)) if positions is None else positions
        self._append(
            {
                number: rows.job_row(
                    self.sweep.sweep,
                    self.jobs[number].key,
                    state,
                    fresh=self.jobs[number].fresh,
                    reason=reason,
                    traceback=traceback,
                )
                for number in chosen
            }
        )

    def _append(self, numbered: Mapping[int, rows.Row]) -> None:
        """Append rows by number of the job to the journals of their experiments, each in one go."""
        places: dict[tuple[str, str], list[rows.Row]] = {}
        for number, row in sorted(numbered.items()):
            places.setdefault(self._place(number), []).append(row)
        for place, chosen in places.items():
            Journal.of(*place).append(chosen)

    def _place(self, number: int) -> Place:
        """The experiment of a job that is written down."""
        place = self.jobs[number].place
        assert place is not None, "such a job is invalid, and not written down"
        return place


def _same(row: rows.Row) -> tuple[object, ...]:
    """What two rows say alike that begin the same job."""
    return row["state"] == "invalid", *(row[name] for name in ("key", "asked", "training", "variant_key", "variant"))


def _reasons(error: UserErrors, groups: Sequence[Sequence[int]]) -> dict[int, str]:
    """Number of each invalid job -> what is wrong with it; none where the command is wrong as a whole."""
    if isinstance(error, InvalidJobs):
        return {number: _one_line(cause, name=False) for number, cause in error.causes.items()}
    if isinstance(error, Unprepared):
        return {groups[number][place]: _one_line(cause, name=False) for (number, place), cause in error.causes.items()}
    return {}


def ask_for(jobs: Sequence[Mapping[str, object]]) -> list[AskedJob]:
    """What a sweep asks for, right or wrong.

    Args:
        jobs: resolved values, one mapping per job.
    """
    return [
        AskedJob(
            key=job_key(values),
            asked=asked,
            runs_dir=_text(values.get("runs_dir")),
            name=_text(values.get("name")),
            fresh=values.get("fresh") is True,
            plan_only=values.get("plan_only") is True,
        )
        for values, asked in zip(jobs, asked_for(jobs), strict=True)
    ]


def _text(value: object) -> str | None:
    return value if isinstance(value, str) else None


def job_key(values: Mapping[str, object]) -> str:
    """Names what a job asks for; also for values that no setting would take, NaN included."""
    asked = _without_names(stored_values(values, Config))
    return hash_json(json.dumps(asked, sort_keys=True, default=str))


def _without_names(values: Mapping[str, object], prefix: str = "") -> dict[str, object]:
    """The values of a job but for those of `NOT_ASKED`."""
    return {
        key: _without_names(value, f"{prefix}{key}.") if isinstance(value, Mapping) else value
        for key, value in values.items()
        if prefix + key not in NOT_ASKED
    }


def asked_for(jobs: Sequence[Mapping[str, object]]) -> list[str]:
    """What tells each job from the others, as typed: `train.lr=0.1 bits=4`; bits and mode where there is no other.

    Settings that follow from the choice of a group (those of `policy=rules`, say) are left out.

    >>> asked_for([{"seed": 0, "bits": 4, "policy": {"name": "a", "edge": 8}}, {"seed": 0, "bits": 8, "policy": {"name": "b"}}])
    ['bits=4 policy=a', 'bits=8 policy=b']
    """
    flat = [rows.flatten(_without_names(values)) for values in jobs]
    keys = dict.fromkeys(key for values in flat for key in values)
    differ = [key for key in keys if len({repr(values.get(key)) for values in flat}) > 1]

    def follows(key: str) -> bool:
        choice = f"{key.partition('.')[0]}.name"
        if key == choice or choice not in differ:
            return False
        pairs = {(repr(values.get(choice)), repr(values.get(key))) for values in flat}
        return len(pairs) == len({chosen for chosen, _ in pairs})

    shown = [key for key in differ if not follows(key)] or ["bits", "mode"]
    return [" ".join(f"{key.removesuffix('.name')}={_typed(values.get(key))}" for key in shown) for values in flat]


def _typed(value: rows.Scalar) -> str:
    """A value as it is typed."""
    return {None: "null", True: "true", False: "false"}[value] if value is None or isinstance(value, bool) else str(value)


def _one_line(error: BaseException, *, name: bool = True) -> str:
    """What an error says, after its type's name unless it is the user's mistake."""
    text = "; ".join(" ".join(line.split()) for line in str(error).splitlines() if line.strip())
    return (f"{type(error).__name__}: {text}" if name else text)[:REASON_LENGTH]
