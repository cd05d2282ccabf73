"""Jobs of repeated sweeps, written out."""

from qexp.tracking.repeats import ranges, rows_of_jobs
from qexp.tracking.rows import job_row, repeat_row


def begun(sweep, *names):
    return [
        job_row(sweep, f"key {name}", "planned", job=number, asked=name, training="t", variant_key=name, variant=name, time_ms=1)
        for number, name in enumerate(names)
    ]


def facts(rows, *keys):
    return [tuple(row[key] for key in keys) for row in rows]


def test_a_repeated_job_is_the_earlier_one_done_again():
    rows = [*begun("s1", "a", "b", "c"), job_row("s1", "key a", "done", time_ms=2)]
    again = repeat_row("s2", "s1", ranges([(0, 2), (1, 0), (2, 1)]), time_ms=5)
    assert again["jobs"] == [[0, 2, 1], [1, 0, 2]]
    jobs = list(rows_of_jobs([*rows, again]))
    assert jobs[:4] == rows
    assert facts(jobs[4:], "sweep", "job", "asked", "key", "state", "time_ms") == [
        ("s2", 0, "c", "key c", "done", 5), ("s2", 1, "a", "key a", "done", 5), ("s2", 2, "b", "key b", "done", 5),
    ]  # fmt: skip


def test_a_repetition_may_be_repeated():
    rows = [*begun("s1", "a", "b"), repeat_row("s2", "s1", [(0, 1, 1)]), repeat_row("s3", "s2", [(0, 0, 1)])]
    assert facts(list(rows_of_jobs(rows))[2:], "sweep", "job", "asked") == [("s2", 0, "b"), ("s3", 0, "b")]


def test_what_a_damaged_journal_lacks_is_left_out():
    jobs = rows_of_jobs([*begun("s1", "a"), repeat_row("s2", "s1", [(0, 0, 3)])])
    assert facts(jobs, "sweep", "asked") == [("s1", "a"), ("s2", "a")]
    assert list(rows_of_jobs([repeat_row("s2", "gone", [(0, 0, 2)])])) == []
