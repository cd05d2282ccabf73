"""The union of files of rows: the same whatever the order, nothing lost, nothing twice, and the same when it is done again."""

import json
from itertools import permutations

from hypothesis import given
from hypothesis import strategies as st

from qexp.merging.units import journal_key, keyed_key, line_of, merge_keyed, merge_rows, units_of

RUNS = ("t1", "t2")


def record(run, epoch, time_ms, alarms=(), **more):
    about = {"kind": "record", "run": run, "variant_key": "key", "variant": "W4", "epoch": epoch, "split": "test", "n": 10}
    return about | {"prec1": 10.0 * epoch, "loss": 1.0, "alarms": list(alarms), "reused": False, "time_ms": time_ms} | more


def run_row(run, time_ms):
    return {"kind": "run", "run": run, "parent": None, "time_ms": time_ms}


def metrics(run, step, time_ms):
    return {"kind": "metrics", "run": run, "step": step, "values": {"lr": 0.1}, "time_ms": time_ms}


ROWS = st.one_of(
    st.builds(run_row, st.sampled_from(RUNS), st.integers(1, 40)),
    st.builds(metrics, st.sampled_from(RUNS), st.integers(1, 3), st.integers(1, 40)),
    st.builds(record, st.sampled_from(RUNS), st.integers(1, 3), st.integers(1, 40), st.sampled_from([(), ("a",), ("a", "b")])),
)
JOURNAL = st.lists(ROWS, max_size=12)


def merged(*files):
    return merge_rows([units_of(rows, journal_key) for rows in files])


def parsed(lines):
    return [json.loads(line) for line in lines]


@given(st.lists(JOURNAL, min_size=3, max_size=3), JOURNAL)
def test_in_any_order_and_again(own, shared):
    files = [shared + rows for rows in own]  # as machines have them that began from one copy
    together = merged(*files)
    assert all(merged(*order) == together for order in permutations(files))
    assert merged(parsed(together), *files) == together == merged(parsed(together))


@given(st.lists(JOURNAL, min_size=2, max_size=3))
def test_nothing_is_lost_and_nothing_is_twice(files):
    together = merged(*files)
    kept = parsed(together)
    for row in (row for rows in files for row in rows):
        same = [one for one in kept if {**one, "time_ms": 0} == {**row, "time_ms": 0}]
        assert same or row["kind"] == "record"  # of one measurement at one time the longest history stays
        if row["kind"] == "record":
            assert any((one["run"], one["epoch"]) == (row["run"], row["epoch"]) for one in kept if one["kind"] == "record")
    once = {line for rows in files for line in map(line_of, rows) if '"record"' not in line}
    assert sorted(line for line in set(together) if '"record"' not in line) == sorted(once)


def test_one_file_keeps_its_order():
    rows = [run_row("t1", 5), metrics("t1", 1, 7), record("t1", 1, 8), record("t1", 2, 9)]
    assert parsed(merged(rows)) == rows == parsed(merged(rows, rows[:2]))


def test_a_record_that_was_reused_stands_behind_its_run():
    rows = [run_row("t1", 50), record("t1", 1, 3, reused=True)]
    assert parsed(merged([run_row("t2", 10)], rows)) == [run_row("t2", 10), *rows]


def test_what_was_measured_twice_alike_is_kept_once_as_the_latest():
    assert parsed(merged([record("t1", 1, 3)], [record("t1", 1, 8)])) == [record("t1", 1, 8)]
    other = record("t1", 1, 8, versions={"torch": "2"})
    assert parsed(merged([record("t1", 1, 3)], [other])) == [record("t1", 1, 3), other]


def test_alarms_that_were_added_later_stay_the_last():
    plain, added, gone = record("t1", 1, 3), record("t1", 1, 3, ["export: x"]), record("t1", 1, 3)
    assert parsed(merged([plain], [plain, added])) == [plain, added] == parsed(merged([plain, added], [plain]))
    assert parsed(merged([plain, added, gone], [plain, added])) == [plain, added, gone]


def test_a_metric_that_one_machine_was_asked_for_stays_with_the_last_evaluation():
    with_ece, without = record("t1", 1, 3, extra={"ece": 2.0}, sources={}), record("t1", 1, 8)
    last = parsed(merged([with_ece], [without]))[-1]
    assert last["extra"] == {"ece": 2.0} and last["time_ms"] == 8
    other = record("t1", 1, 8, prec1=1.0)  # other numbers: another machine's rounding
    assert "extra" not in parsed(merged([with_ece], [other]))[-1]


def test_numbers_of_an_analysis_are_kept_once():
    one, two = ({"kind": "block", "key": key, "values": {"n": 1}} for key in "ab")
    files = [units_of(rows, keyed_key) for rows in ([two], [one, two], [one])]
    assert all(parsed(merge_keyed(order)) == [one, two] for order in permutations(files))
