"""train(2N) == train(N) + resume(N) for every method of quantization-aware training, bit for bit on the CPU."""

import os
import shutil
from pathlib import Path

import pytest

from qexp.config.qat_methods import QAT_METHODS
from qexp.experiment import qat_training as module
from qexp.sweep.check import check
from qexp.sweep.group import Resources, run_group
from qexp.sweep.jobs import ask_for
from qexp.sweep.types import MergedJob
from qexp.tracking.record import Sweep

NETWORK = Path(__file__).parents[1] / "integration" / "traceable.py"
STEPS = 7  # of an epoch
METHODS = {name: (f"qat={name}",) for name in QAT_METHODS} | {
    "folded": ("qat=lsq", "qat.batch_norm=folded", "quant.weight.granularity=per_channel"),
    "folded_ste": ("qat=ste", "qat.batch_norm=folded", "qat.mask=rounded"),
    "frozen": ("qat=lsq", "qat.freeze_bn_epoch=2"),
    "distilled": ("qat=lsq", "qat.distill_weight=0.5", "qat.distill_temperature=2.0"),
    "reestimated": ("qat=lsq", "qat.reestimate_bn=true"),
    "random": ("qat=lsq", "qat.init=none"),
}


@pytest.fixture(scope="module")
def run(compose, tiny):
    """Run a job as a launcher does, without reports: `run("qat=lsq")`."""
    kept = [text for text in tiny if not text.startswith("model.factory=")]
    train = ("train.batch_size=180", "qat.epochs=2", "train.checkpoint_every_steps=3", "deterministic=true", "bits=3")
    common = (*kept, f"model.factory={NETWORK}:Traceable", *train)

    def start(*overrides):
        jobs = [compose(*common, *overrides)]
        sweep = Sweep(sweep="s1", command="", verb="train")
        with Resources() as resources:
            job = MergedJob(tuple(check(jobs, "train")), tuple(ask_for(jobs)), sweep)
            run_group(job, resources.preparer.prepare(job.configs), resources)

    return start


@pytest.fixture(scope="module")
def started(run, tmp_path_factory):
    """A store that holds the float training."""
    folder, before = tmp_path_factory.mktemp("started"), os.getcwd()
    os.chdir(folder)
    run("float_only=true")
    os.chdir(before)
    return folder


@pytest.fixture(scope="module")
def undisturbed(run, started, numbers, tmp_path_factory):
    """Method -> the numbers of its training, done once."""
    found = {}

    def numbers_of(method):
        if method not in found:
            before = os.getcwd()
            os.chdir(tmp_path_factory.mktemp(method))
            shutil.copytree(started / "runs", "runs")
            run(*METHODS[method])
            found[method] = numbers()
            os.chdir(before)
        return found[method]

    return numbers_of


PLACES = {"first": 5, "between": STEPS + 1, "second": STEPS + 5}  # the step that fails: a state is stored every third
GOES_ON = {
    "first": "going on in epoch 1, after batch 3 of ",
    "between": "going on after epoch 1 of ",
    "second": "going on in epoch 2, after batch 3 of ",
}
INTERRUPTED = [(method, "second") for method in METHODS] + [
    (method, place) for method in ("ste", "lsq", "folded") for place in ("first", "between")
]


@pytest.mark.parametrize("method, place", INTERRUPTED)
def test_an_interrupted_training_ends_in_the_same_bits(run, started, undisturbed, numbers, monkeypatch, capsys, method, place):
    expected = undisturbed(method)
    shutil.copytree(started / "runs", "runs")
    monkeypatch.setenv("MORTAL_STEP", str(PLACES[place]))
    monkeypatch.setenv("MORTAL_HOW", "error")
    with pytest.raises(OSError, match="this rank has no disk"):
        run(*METHODS[method])
    assert numbers() != expected and os.environ["MORTAL_STEP"] == "0"

    def calibrated_again(*arguments):
        raise AssertionError("a resumed training has its quantizers' values")

    monkeypatch.setattr(module, "initialise", calibrated_again)
    capsys.readouterr()
    run(*METHODS[method])
    assert GOES_ON[place] in capsys.readouterr().out
    found = numbers()
    for key, value in expected.items():
        assert found[key] == value, key
    assert any(name.endswith("converted.safetensors") for name in found["files"])


def test_a_training_that_ends_before_its_file_is_written_writes_it_later(run, started, undisturbed, numbers, monkeypatch):
    """A crash after the last epoch: nothing is left to train, and the file is made of the state that was stored."""
    shutil.copytree(started / "runs", "runs")

    def crash(*arguments):
        raise OSError("no file")

    with monkeypatch.context() as patch:
        patch.setattr(module.QatTraining, "save", crash)
        with pytest.raises(OSError, match="no file"):
            run("qat=lsq")
    assert not list(Path("runs").rglob("converted.safetensors")) and list(Path("runs").rglob("last.pt"))
    run("qat=lsq")
    found = numbers()
    for key, value in undisturbed("lsq").items():
        assert found[key] == value, key
