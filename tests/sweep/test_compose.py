"""Hydra composes the jobs of a command, and does nothing else."""

from pathlib import Path

import pytest
from hydra._internal.config_loader_impl import ConfigLoaderImpl


@pytest.fixture
def composed(monkeypatch):
    """The overrides of every job that Hydra composes, as it does."""
    load, seen = ConfigLoaderImpl.load_sweep_config, []

    def counted(self, master_config, sweep_overrides):
        seen.append(tuple(sweep_overrides))
        return load(self, master_config, sweep_overrides)

    monkeypatch.setattr(ConfigLoaderImpl, "load_sweep_config", counted)
    return seen


def test_each_job_is_composed_once(cli, tiny, composed):
    done = cli(*tiny, "bits=4,8", "mode=int,float", "plan_only=true", "-m")
    assert done.code == 0, done.err
    assert len(composed) == len(set(composed)) == 4


def test_results_lie_where_the_command_was_given(cli, tiny):
    """Whatever folder Hydra would change to for a job of its own."""
    done = cli(*tiny, "bits=4", "hydra.job.chdir=true")
    assert done.code == 0, done.err
    assert Path("results/digits/table.csv").is_file() and Path("runs/journal/digits.jsonl").is_file()
    assert not list(Path("runs/jobs").rglob("table.csv"))
