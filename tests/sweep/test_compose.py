"""Hydra composes the jobs of a command, and does nothing else."""

import itertools

import hydra
import pytest

from qexp.sweep.compose import compose as compose_sweep


@pytest.fixture
def composed(monkeypatch):
    """The overrides of every composition of Hydra's."""
    compose, seen = hydra.compose, []

    def counted(config_name, overrides, **options):
        seen.append(tuple(overrides))
        return compose(config_name, overrides, **options)

    monkeypatch.setattr(hydra, "compose", counted)
    return seen


def test_one_command_is_composed_once(cli, tiny, composed):
    assert cli(*tiny, "bits=4", "plan_only=true").code == 0
    assert len(composed) == 1


def test_jobs_that_choose_the_same_files_share_a_composition(cli, tiny, composed):
    done = cli(*tiny, "bits=4,8", "quant=linear,affine", "plan_only=true", "-m")
    assert done.code == 0, done.err
    assert len(composed) == len(set(composed)) == 1 + 2  # to learn what is swept, and for each of the quantizers
    composed.clear()
    assert cli(*tiny, "bits=4,8", "seed=0,1", "plan_only=true", "-m").code == 0
    assert len(composed) == 1  # which values are swept does not choose files


def test_a_job_of_a_sweep_is_what_hydra_composes_alone(compose, monkeypatch):
    swept = (
        "bits=4,8",
        "quant=affine,dorefa",
        "++quant.weight.rounding=floor",
        "name=${data.name}_${bits}",
        "train.lr=1e-3",
    )
    monkeypatch.setattr("sys.argv", ["qexp.train", "cases=[['seed=1','calibrate=mse'],['correct.fold_bn=true']]", *swept, "-m"])
    jobs = compose_sweep("config").jobs
    alone = [
        compose(*case, f"bits={bits}", f"quant={quant}", *swept[2:])
        for bits, quant in itertools.product((4, 8), ("affine", "dorefa"))
        for case in (["seed=1", "calibrate=mse"], ["correct.fold_bn=true"])
    ]
    assert list(jobs) == [{key: value for key, value in job.items() if key != "hydra"} for job in alone]
    assert len({job["name"] for job in jobs}) == 2
