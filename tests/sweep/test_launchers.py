"""Settings of the launcher, what is refused before anything starts, and the script that Slurm would be given."""

import importlib.util
import os
import pickle
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from qexp.base.errors import UserError, UserErrors
from qexp.config.launcher import DEFAULTS, INNER, LauncherSettings, launcher_settings
from qexp.sweep import group, launchers
from qexp.sweep.check import check
from qexp.sweep.jobs import ask_for
from qexp.sweep.types import MergedJob
from qexp.sweep.worker import Submission, run_here
from qexp.sweep.workers import JobWorker, as_exception, make_executor

REFUSED = [
    ({"inner": "jobib"}, ["hydra.launcher.inner=jobib", "Did you mean joblib?"]),
    ({"inner": "joblib", "n_jobs": 0}, ["hydra.launcher.n_jobs=0"]),
    ({"inner": "joblib", "n_jobs": "two"}, ["hydra.launcher.n_jobs=two", "integer"]),
    ({"inner": "joblib", "njobs": 2}, ["hydra.launcher.njobs=2", "Did you mean n_jobs?"]),
    ({"n_jobs": 2}, ["hydra.launcher.n_jobs=2", "inner=basic does not read it", "joblib, submitit_local"]),
    ({"inner": "submitit_local", "nodes": 2}, ["hydra.launcher.nodes=2", "submitit_slurm would"]),
    ({"inner": "submitit_slurm", "mem_gb": 0}, ["hydra.launcher.mem_gb=0"]),
]


@pytest.fixture
def slurm(tmp_path, monkeypatch):
    """Commands by Slurm's names; `sbatch` keeps the script it is given."""
    folder = tmp_path / "bin"
    folder.mkdir()
    for name, text in {"srun": "exit 1", "sbatch": f'cp "$1" {tmp_path}/script.sh; echo Submitted batch job 12'}.items():
        (folder / name).write_text(f"#!/bin/sh\n{text}\n")
        (folder / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    return tmp_path / "script.sh"


def test_every_setting_has_a_reader():
    assert {key for keys in INNER.values() for key in keys} == set(DEFAULTS) - {"inner"}


@pytest.mark.parametrize("values, parts", REFUSED, ids=[str(values) for values, _ in REFUSED])
def test_wrong_settings_are_refused(values, parts):
    with pytest.raises((UserError, UserErrors)) as caught:
        launcher_settings({"_target_": "x", **values})
    assert all(part in str(caught.value) for part in parts), caught.value


@pytest.mark.parametrize("inner", ["joblib", "submitit_local", "submitit_slurm"])
def test_only_basic_works_under_torchrun(monkeypatch, inner):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UserError, match="allowed is basic under torchrun"):
        launcher_settings({"inner": inner})
    assert launcher_settings({"inner": "basic"}) == LauncherSettings()


def test_what_is_not_installed_is_said(monkeypatch):
    monkeypatch.setenv("PATH", "")
    with pytest.raises(UserError, match="where srun is found"):
        launcher_settings({"inner": "submitit_slurm"})
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"pip install 'qexp\[slurm\]'"):
        launcher_settings({"inner": "submitit_local"})


@pytest.mark.parametrize(
    "arguments, parts",
    [
        (["hydra.launcher.inner=jobib", "-m"], ["inner=jobib", "Did you mean joblib?"]),
        (["+hydra.launcher.njobs=2", "-m"], ["njobs=2", "Did you mean n_jobs?"]),
        (["hydra.launcher.inner=joblib"], ["inner=joblib", "Add -m."]),
    ],
)
def test_a_command_is_refused_in_one_line(cli, tiny, arguments, parts):
    done = cli(*tiny, "bits=4", *arguments)
    assert done.code == 2
    first, *rest = done.err.splitlines()
    assert first == "qexp: nothing was started." and len(rest) == 1
    assert all(part in rest[0] for part in parts)
    assert not Path("runs/trainings").exists()


@pytest.fixture
def merged(job, sweep):
    jobs = [job({"bits": 4})]
    return MergedJob(tuple(check(jobs, "train")), tuple(ask_for(jobs)), sweep)


def test_a_training_is_called_by_what_it_reads(merged):
    asked = replace(merged.asked[0], asked="qat=none qat.first_step=paper train.lr=0.1")
    assert replace(merged, asked=(asked,)).told_apart == "qat=none train.lr=0.1"


def test_groups_in_turn_go_on_after_a_failure(monkeypatch):
    def run(job, prepared, resources):
        if job == "b":
            raise ValueError("one")

    monkeypatch.setattr(launchers, "run_group", run)
    trained = SimpleNamespace(config=SimpleNamespace(checkpoint=None))
    outcomes = list(launchers.run_in_turn(["a", "b", "c"], [trained] * 3, resources=None))
    assert [(number, str(error)) for number, error in outcomes] == [(0, "None"), (1, "one"), (2, "None")]


def test_a_failure_keeps_name_message_and_traceback(monkeypatch, merged, capsys):
    def fail(job, prepared, resources):
        raise UserError("bits", 0, allowed="more")  # does not survive pickling itself

    closed = []
    monkeypatch.setattr(group, "run_group", fail)
    monkeypatch.setattr(group.Feeds, "close", lambda self, hurry: closed.append(hurry))
    failure = run_here(merged)
    assert closed == [False]
    assert "UserError: bits=0" in capsys.readouterr().err  # in the worker's own output, too
    again = as_exception(pickle.loads(pickle.dumps(failure)))
    assert type(again).__name__ == "UserErrors" and "bits=0: allowed is more" in str(again)
    monkeypatch.setattr(group, "run_group", lambda *_: 1 / 0)
    again = as_exception(pickle.loads(pickle.dumps(run_here(merged))))
    assert type(again).__name__ == "ZeroDivisionError" and "test_launchers.py" in str(again.__cause__)
    monkeypatch.setattr(group, "run_group", lambda job, prepared, resources: None)
    assert as_exception(run_here(merged)) is None


def test_a_worker_with_other_data_says_so_and_trains_nothing(merged, capsys):
    failure = run_here(replace(merged, data_hash="0123456789abcdef"))
    assert failure.kind == "UserError" and "had the hash 01234567 where the jobs were planned" in failure.message
    assert "data.root" in failure.message and "the files have changed" in failure.message
    assert not Path("runs/trainings").exists()


def test_the_script_for_slurm_asks_for_what_was_set(slurm, merged, tmp_path):
    asked = {"partition": "gpu", "account": "ann", "nodes": 2, "tasks_per_node": 4, "gpus_per_node": 4, "cpus_per_task": 8}
    more = {"mem_gb": 64.0, "timeout_min": 600, "setup": ["module load cuda"], "additional_parameters": {"constraint": "a100"}}
    settings = launcher_settings({"inner": "submitit_slurm", **asked, **more})
    job = JobWorker(make_executor(settings, tmp_path), Submission(merged))
    assert job.name == "job 12" and job.log.name == "12_0_log.out"
    lines = slurm.read_text().splitlines()
    options = ("nodes=2", "ntasks-per-node=4", "gpus-per-node=4", "cpus-per-task=8", "mem=64GB", "time=600", "partition=gpu")
    for option in (*options, "account=ann", "constraint=a100", "signal=USR2@120", "open-mode=append"):
        assert f"#SBATCH --{option}" in lines
    assert any(line.startswith("srun ") and "--kill-on-bad-exit=0" in line for line in lines)
    assert (
        lines.index("module load cuda")
        < lines.index("export SRUN_CPUS_PER_TASK=8")
        < lines.index("export SUBMITIT_EXECUTOR=slurm")
    )


def test_what_submitit_queues_again_is_the_same_call(merged):
    submission = Submission(merged)
    for hook in (submission.checkpoint, submission.__submitit_checkpoint__):
        assert hook().function == submission
