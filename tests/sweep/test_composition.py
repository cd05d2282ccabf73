"""What a sweep's jobs share of a composition is, value by value, what Hydra's own way gives each of them."""

import copy
import itertools

import pytest

from qexp.base.errors import UserError
from qexp.sweep import composition
from qexp.sweep.compose import compose, conf_dir
from qexp.sweep.jobs import job_key
from qexp.sweep.places import expand_places

SWEEPS = {
    "files": ("bits=2,4", "quant=linear,affine,mxfp8_e4m3", "policy=uniform,first_last", "mode=int,float"),
    "numbers": ("bits=range(2,6)", "seed=0,1", "train.lr=1e-3,0.1", "train.epochs=3", "deterministic=true,false"),
    "nothing": ("model.weights=null,a.pt", "data.num_test=null,20", "name=x", "runs_dir='~/runs'"),
    "interpolations": ("quant.weight.format=e2m1,e4m3fn", "quant=minifloat", "name=${data.name}_${bits}", "data.name=a,b"),
    "interpolated before": ("name=a,b", "data=digits,fake", "hydra.run.dir=x"),
    "lists": ("evaluate.metrics=[per_class]", "bits=4,8", "data.mean=[0.1],[0.2]", "policy=rules", "policy.rules=[{a: ${bits}}]"),
    "added": ("+new.key=1,2", "++train.lr=0.5", "bits=4,8", "~correct.gptq"),
    "within one another": ("quant.weight={granularity:per_channel}", "quant.weight.rounding=floor,ceil"),
    "cases": ("cases=[['seed=1,2','calibrate=mse'],['correct.fold_bn=true','seed=3']]", "seed=7,8", "bits=4"),
}


def jobs(monkeypatch, *words):
    monkeypatch.setattr("sys.argv", ["qexp.train", *words, "-m"])
    return compose("config").jobs


@pytest.fixture
def compared(monkeypatch):
    """Of the first jobs of a sweep and every ninth of the others: what the shortcut gives, and what Hydra puts into a copy."""
    values, pairs, number = composition.Composition.values, [], itertools.count()

    def both(self, overrides):
        quick = values(self, overrides)
        if (place := next(number)) < 8 or place % 9 == 0:
            copied = composition.resolved(composition._one_job(self.without_hydra, overrides))
            pairs.append((expand_places(copy.deepcopy(quick)), expand_places(copied)))
        return quick

    monkeypatch.setattr(composition.Composition, "values", both)
    return pairs


@pytest.mark.parametrize("words", SWEEPS.values(), ids=SWEEPS)
def test_a_job_is_what_hydra_puts_into_a_copy(words, monkeypatch, compared):
    assert len(jobs(monkeypatch, *words)) > 1
    assert_same(compared)


@pytest.mark.slow
@pytest.mark.parametrize("path", sorted(conf_dir().glob("experiment/*.yaml")), ids=lambda path: path.stem)
def test_so_is_every_experiment(path, monkeypatch, compared):
    try:
        jobs(monkeypatch, f"experiment={path.stem}")
    except UserError as error:  # it is for another verb, or asks for a folder
        assert "cases" not in str(error)
    assert_same(compared)


def assert_same(pairs):
    assert pairs
    for quick, copied in pairs:
        assert quick == copied and list(quick) == list(copied) and job_key(quick) == job_key(copied)
        assert all(list(quick[key]) == list(copied[key]) for key in quick if isinstance(quick[key], dict))


def test_a_job_leaves_nothing_in_the_next(monkeypatch):
    """`bits` interpolates the scheme's width until a job gives it one."""
    first, second, third = jobs(monkeypatch, "cases=[['bits=3'],['quant.weight.format=e2m1'],['seed=5']]", "quant=minifloat")
    assert [job["bits"] for job in (first, second, third)] == [3, 4, 8]
    assert (second["seed"], third["seed"], third["quant"]["weight"]["format"]) == (0, 5, None)
    assert first["data"] is third["data"]  # what no job changes is there once


def test_a_wrong_value_is_said_as_hydra_says_it(monkeypatch):
    with pytest.raises(UserError, match="no_such"):
        jobs(monkeypatch, "quant.no_such=1,2")
