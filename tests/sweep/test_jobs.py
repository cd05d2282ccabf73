import json
from pathlib import Path

import pytest

from qexp.base.errors import UserErrors
from qexp.experiment.prepare import Preparer
from qexp.experiment.unprepared import Unprepared
from qexp.sweep.check import check, group
from qexp.sweep.jobs import JobLog, ask_for, asked_for, job_key


def written(name="digits"):
    path = Path(f"runs/journal/{name}.jsonl")
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def facts(rows, *names):
    return [tuple(row[name] for name in names) for row in rows]


def refuse(jobs, sweep):
    """What a command does with jobs that are wrong."""
    log = JobLog(ask_for(jobs), sweep)
    with pytest.raises(UserErrors) as raised:
        with log.refusals():
            configs = check(jobs, sweep.verb)
        groups = group(configs)
        with log.refusals(groups):
            Preparer().prepare_all([[configs[position] for position in positions] for positions in groups])
    return raised.value


def test_a_job_is_told_by_what_it_asks_for(job):
    same = (
        {"name": "x"},
        {"fresh": True},
        {"runs_dir": "y"},
        {"results_dir": "z"},
        {"draw_figures": True},
        {"device": "auto"},
        {"tracking.timeout_s": 1.0},
    )
    assert {job_key(job(change)) for change in same} == {job_key(job())}
    others = (
        {"bits": 4},
        {"seed": 1},
        {"train.lr": float("nan")},
        {"evaluate.num_images": 10},
        {"checkpoint": "x"},
        {"bits": "8"},
    )
    assert len({job_key(job(change)) for change in others} | {job_key(job())}) == 7


def test_jobs_are_named_by_what_tells_them_apart(job):
    assert asked_for([job()]) == ["bits=8 mode=int"]
    assert asked_for([job({"train.lr": lr, "bits": bits}) for lr in (0.5, 0.1) for bits in (4, 64)]) == [
        "train.lr=0.5 bits=4", "train.lr=0.5 bits=64", "train.lr=0.1 bits=4", "train.lr=0.1 bits=64",
    ]  # fmt: skip
    policies = [{"policy.name": "uniform"}, {"policy.name": "rules", "policy.rules": [{"match": "*", "bits": 4}]}]
    assert asked_for([job(change) for change in policies]) == ["policy=uniform", "policy=rules"]
    both = [{"policy.name": name, "policy.edge_bits": bits} for name in ("uniform", "first_last") for bits in (6, 8)]
    assert asked_for([job(change) for change in both])[3] == "policy=first_last policy.edge_bits=8"
    assert asked_for([job({"deterministic": True, "model.weights": "a"}), job()]) == [
        "model.weights=a deterministic=true", "model.weights=null deterministic=false",
    ]  # fmt: skip


def test_planned_jobs_know_training_and_variant(job, sweep, preparer):
    jobs = [job({"bits": 4}), job({"seed": 1}), job({"bits": 4, "mode": "half"}), job({"bits": 8, "mode": "half"})]
    configs = check(jobs, "train")
    groups = group(configs)
    prepared = preparer.prepare_all([[configs[position] for position in positions] for positions in groups])
    JobLog(ask_for(jobs), sweep).planned(groups, prepared)
    rows = written()
    assert facts(rows, "job", "state", "sweep") == [(number, "planned", "s1") for number in range(4)]
    assert [row["variant"] for row in rows] == ["W4 int", "W8 int", "half", "half"]  # two jobs, one variant
    first, second = (one.training for one in prepared)
    assert [row["training"] for row in rows] == [first, second, first, first]
    assert {row["variant_key"] for row in rows} == {v.key for one in prepared for v in one.variants if not v.is_float}


def test_each_invalid_job_has_its_own_reason(job, sweep):
    refuse([job({"bits": 4}), job({"bits": 64, "mode": "x"}), job({"train.lr": float("inf")})], sweep)
    first, second, third = written()
    assert (first["state"], first["reason"], first["training"]) == ("planned", None, None)
    assert second["state"] == third["state"] == "invalid"
    assert sorted(text.partition(":")[0] for text in second["reason"].split("; ")) == ["bits=64", "mode=x"]
    assert third["reason"] == "train.lr=inf: allowed is a finite number"


def test_of_a_group_only_the_jobs_that_are_wrong_are_invalid(job, sweep):
    rules = [{"policy.name": "rules", "policy.rules": [{"match": match, "bits": 4}]} for match in ("nosuch", "nowhere")]
    error = refuse([job({"bits": 4}), job(rules[0]), job(rules[1]), job({"seed": 1})], sweep)
    assert isinstance(error, Unprepared) and len(error.errors) == 2
    rows = written()
    assert [row["state"] for row in rows] == ["planned", "invalid", "invalid", "planned"]
    assert "nosuch" in rows[1]["reason"] and "nowhere" in rows[2]["reason"]


def test_what_they_share_makes_all_of_a_group_invalid(job, sweep):
    streamed = {"data.name": "imagefolder", "data.root": str(Path.cwd())}  # an empty folder
    refuse([job(streamed | {"bits": 4}), job(streamed | {"bits": 8}), job()], sweep)
    assert [row["state"] for row in written()] == ["invalid", "invalid", "planned"]


def test_a_command_that_is_wrong_as_a_whole_leaves_no_job_behind(job, sweep):
    refuse([job({"bits": 0})], sweep)
    refuse([job({"bits": 0}), job({"bits": 64})], sweep)
    refuse([job({"bits": 0, "name": "a/b"}), job({"bits": 4, "name": 3}), job({"bits": 8, "name": "right"})], sweep)
    refuse([job({"bits": 0, "plan_only": True}), job({"bits": 4, "plan_only": True})], sweep)
    assert not Path("runs").exists()
    refuse([job({"bits": 0}), job({"bits": 4}), job({"bits": 64, "name": "other"})], sweep)
    assert facts(written(), "job", "state") == [(0, "invalid"), (1, "planned")] and not written("other")
    refuse([job({"bits": 0})], sweep)
    refuse([job({"bits": 0}), job({"bits": 64}), job({"bits": 4, "name": "right"})], sweep)
    assert facts(written(), "job", "state") == [(0, "invalid"), (1, "planned")] and not written("right")


def test_states_are_noted_by_key(job, sweep):
    jobs = [job({"bits": 4}), job({"bits": 8, "fresh": True})]
    log = JobLog(ask_for(jobs), sweep)
    log.note("running")
    log.note("failed", [1], error=OSError("no\n  space"), traceback=Path("t.txt"))
    keys = [job_key(values) for values in jobs]
    assert facts(written(), "key", "state", "fresh") == [
        (keys[0], "running", False), (keys[1], "running", True), (keys[1], "failed", True),
    ]  # fmt: skip
    last = written()[-1]
    assert last["reason"] == "OSError: no; space" and last["traceback"] == str(Path("t.txt").absolute())
    assert last["job"] is last["asked"] is last["training"] is None
