"""The jobs of a journal, those of repeated sweeps written out.

A sweep that asks for what is done notes its jobs as ranges of an earlier sweep's: hundreds of jobs in a row of the journal.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from qexp.tracking.rows import Row

Range = tuple[int, int, int]  # number of the first job, its number in the earlier sweep, how many follow each other


def rows_of_jobs(rows: Iterable[Row]) -> Iterator[Row]:
    """The rows of jobs, oldest first; a job of a repeated sweep is the earlier one's, done, at the time of the repetition.

    Args:
        rows: of a journal. Jobs of an earlier sweep that it does not have, as it was damaged, are left out.
    """
    begun: dict[tuple[str, int], Row] = {}
    for row in rows:
        if row["kind"] == "job":
            if row["job"] is not None:
                begun[row["sweep"], row["job"]] = row
            yield row
        elif row["kind"] == "repeat":
            for first, earlier, count in row["jobs"]:
                for step in range(count):
                    known = begun.get((row["of"], earlier + step))
                    if known is not None:
                        begun[row["sweep"], first + step] = job = _again(known, row, first + step)
                        yield job


def _again(known: Row, repeat: Row, number: int) -> Row:
    """A job as it was begun, in the sweep that found it done."""
    done = {"state": "done", "fresh": False, "reason": None, "traceback": None}
    return {**known, **done, "job": number, **{name: repeat[name] for name in ("sweep", "process", "time_ms")}}


def ranges(pairs: Sequence[tuple[int, int]]) -> list[Range]:
    """Pairs of numbers, ascending by the first, as ranges.

    >>> ranges([(0, 5), (1, 6), (3, 7)])
    [(0, 5, 2), (3, 7, 1)]
    """
    parts: list[Range] = []
    for number, earlier in pairs:
        first, start, count = parts[-1] if parts else (number, earlier, 0)
        if (number, earlier) == (first + count, start + count):
            parts[-1:] = [(first, start, count + 1)]
        else:
            parts.append((number, earlier, 1))
    return parts
