"""What becomes of every job of a sweep, written into the journal of its experiment.

The leader plans and refuses jobs and notes which failed; the process that runs a group notes that it began and how it ended. All
append, so they may be different processes on different machines, and nobody corrects a row: what state a job is in follows from
the rows and from the numbers when a report reads them (`qexp.reporting.jobs`). A process that was killed could not have told.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from qexp.base.errors import UserError, UserErrors
from qexp.base.files import hash_json
from qexp.base.journal_files import journal_path
from qexp.pipeline.check import Sweep, check, group
from qexp.pipeline.prepare import Prepared, Unprepared
from qexp.pipeline.variants import make_variants
from qexp.schema import Config
from qexp.tracking import rows
from qexp.tracking.journal import Journal

# What does not change which numbers are asked for.
NOT_ASKED = ("name", "fresh", "plan_only", "device", "tracking", "runs_dir", "results_dir")
REASON_LENGTH = 500


class JobBook:
    """Notes what becomes of jobs.

    Args:
        jobs: their resolved values; those of a whole sweep, or of one group where only `note` is called. sweep: theirs.
    """

    def __init__(self, jobs: Sequence[Mapping[str, Any]], sweep: Sweep) -> None:
        self.jobs, self.sweep = jobs, sweep

    def planned(self, configs: Sequence[Config], groups: Sequence[Sequence[int]], prepared: Sequence[Prepared]) -> None:
        """Note all jobs of a sweep that was found right, before the first of them starts."""
        asked = asked_for(self.jobs)
        known: dict[int, dict[str, Any]] = {}
        for positions, one in zip(groups, prepared, strict=True):
            labels = {variant.key: variant.label for variant in one.variants}
            for position in positions:
                found = one.variants if one.converted else make_variants([configs[position]], one.tensors, one.places)
                key = found[-1].key
                known[position] = {"training": one.training, "variant_key": key, "variant": labels[key]}
        self._append({number: self._row(number, "planned", job=number, asked=asked[number], **known[number]) for number in known})

    def refused(self, error: UserErrors) -> None:
        """Note which jobs are invalid and why, and that the others are still to be done.

        An experiment that nobody has run before gets no journal from a command that is wrong as a whole.
        """
        reasons = self._reasons(error)
        if any(values.get("plan_only") is True for values in self.jobs):
            return
        asked = asked_for(self.jobs)
        wrong = {place for number in reasons if (place := self._place(number)) is not None}
        right = {self._place(number) for number in range(len(self.jobs)) if number not in reasons}
        written = {place for place in wrong if place in right or journal_path(*place).exists()}
        self._append(
            {
                number: self._row(
                    number,
                    "invalid" if number in reasons else "planned",
                    job=number,
                    asked=asked[number],
                    reason=reasons.get(number),
                )
                for number in range(len(self.jobs))
                if self._place(number) in written
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
        """Note the state of the jobs at these positions, or of all. error: why they failed. traceback: its file."""
        reason = None if error is None else _one_line(error)
        chosen = range(len(self.jobs)) if positions is None else positions
        self._append({number: self._row(number, state, reason=reason, traceback=traceback) for number in chosen})

    def _reasons(self, error: UserErrors) -> dict[int, str]:
        """Number of each invalid job -> what is wrong with it."""
        if isinstance(error, Unprepared):
            groups = group(check(self.jobs, self.sweep.verb))
            return {groups[number][place]: _one_line(cause, name=False) for (number, place), cause in error.causes.items()}
        reasons = {}
        for number, values in enumerate(self.jobs):
            try:
                check([values], self.sweep.verb)
            except (UserErrors, UserError) as own:
                reasons[number] = _one_line(own, name=False)
        return reasons

    def _place(self, number: int) -> tuple[str, str] | None:
        """(runs_dir, name) of a job; None where they are no texts."""
        runs_dir, name = (self.jobs[number].get(key) for key in ("runs_dir", "name"))
        return (runs_dir, name) if isinstance(runs_dir, str) and isinstance(name, str) else None

    def _row(self, number: int, state: rows.JobState, **values: Any) -> rows.Row:
        job = self.jobs[number]
        return rows.job_row(self.sweep.sweep, job_key(job), state, fresh=job.get("fresh") is True, **values)

    def _append(self, found: Mapping[int, rows.Row]) -> None:
        """Append rows by number of the job to the journals of their experiments, each in one go."""
        places: dict[tuple[str, str], list[rows.Row]] = {}
        for number, row in sorted(found.items()):
            place = self._place(number)
            assert place is not None, "such a job is invalid, and not written down"
            places.setdefault(place, []).append(row)
        for place, chosen in places.items():
            Journal.of(*place).append(chosen)


def job_key(values: Mapping[str, Any]) -> str:
    """Names what a job asks for; also for values that no setting would take, NaN included."""
    asked = {key: value for key, value in values.items() if key not in NOT_ASKED}
    return hash_json(json.dumps(asked, sort_keys=True, default=str))


def asked_for(jobs: Sequence[Mapping[str, Any]]) -> list[str]:
    """What tells each job from the others, as typed: `train.lr=0.1 bits=4`; bits and mode where there is no other.

    Settings that follow from the choice of a group (those of `policy=rules`, say) are left out.

    >>> asked_for([{"seed": 0, "bits": 4, "policy": {"name": "a", "edge": 8}}, {"seed": 0, "bits": 8, "policy": {"name": "b"}}])
    ['bits=4 policy=a', 'bits=8 policy=b']
    """
    flat = [rows.flatten({key: value for key, value in values.items() if key not in NOT_ASKED}) for values in jobs]
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
