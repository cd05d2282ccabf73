"""Two ranks against one for every method: what they begin with, train, end with and evaluate."""

import json
import os
from pathlib import Path

import pytest
import torch

WORKER = Path(__file__).with_name("qat_ranks.py")
# Batch norm and observed ranges see one rank's images, so that those trainings differ from one rank's by more than rounding.
LEARNED = {
    "lsq": ("qat=lsq", "qat.freeze_bn_epoch=1"),
    "lsq_plus": ("qat=lsq_plus", "qat.freeze_bn_epoch=1"),
    "pact": ("qat=pact", "qat.freeze_bn_epoch=1"),
    "dorefa": ("qat=dorefa", "qat.freeze_bn_epoch=1"),
    "folded": ("qat=lsq", "qat.freeze_bn_epoch=1", "qat.batch_norm=folded", "quant.weight.granularity=per_channel"),
    "distilled": ("qat=lsq", "qat.freeze_bn_epoch=1", "qat.distill_weight=0.5"),
    "weights_only": ("qat=ste", "qat.freeze_bn_epoch=1", "qat.activations=false"),
}
OBSERVED = {"ste": ("qat=ste",), "every_step": ("qat=every_step",), "batch_norm": ("qat=lsq", "qat.reestimate_bn=true")}


@pytest.fixture(scope="module")
def results(cli, compose, tiny, tmp_path_factory, ranks):
    """Rank -> job -> what it found, `1.0` being the single process."""
    folder, before = tmp_path_factory.mktemp("ranks"), os.getcwd()
    os.chdir(folder)
    common = (*tiny, "train.batch_size=180", "bits=4", "deterministic=true")
    assert cli(*common, "float_only=true").code == 0
    jobs = {name: compose(*common, *overrides) for name, overrides in (LEARNED | OBSERVED).items()}
    Path("jobs.json").write_text(json.dumps(jobs))
    children = [child for count in (1, 2) for child in ranks(count, "jobs.json", ".", script=WORKER)]
    codes = [child.wait() for child in children]
    os.chdir(before)
    assert codes == [0, 0, 0], "\n".join(child.text for child in children)
    return {name: torch.load(folder / f"{name}.pt", weights_only=True) for name in ("1.0", "2.0", "2.1")}


def equal(first, second):
    return first.keys() == second.keys() and all(torch.equal(value, second[name]) for name, value in first.items())


def quantizers(state):
    return {name: value for name, value in state.items() if name.rpartition(".")[2] in ("scale", "offset", "alpha")}


@pytest.mark.parametrize("name", [*LEARNED, *OBSERVED])
def test_all_ranks_begin_with_one_rank_s_values(results, name):
    assert equal(results["2.0"][name]["begun"], results["1.0"][name]["begun"])
    assert equal(results["2.0"][name]["begun"], results["2.1"][name]["begun"])
    assert all(value.isfinite().all() for value in results["1.0"][name]["begun"].values())


@pytest.mark.parametrize("name", LEARNED)
def test_two_ranks_train_as_one_process(results, name):
    """Within the tolerance of float training, tests/engine/test_distributed.py."""
    alone, both = results["1.0"][name], results["2.0"][name]
    assert both["losses"] == pytest.approx(alone["losses"], rel=1e-5)
    for key, value in alone["state"].items():
        torch.testing.assert_close(both["state"][key], value, rtol=1e-4, atol=1e-5)
    assert not equal(alone["state"], alone["begun"])


@pytest.mark.parametrize("name", [*LEARNED, *OBSERVED])
def test_ranks_end_with_equal_states(results, name):
    first, second = results["2.0"][name], results["2.1"][name]
    assert equal(first["state"], second["state"]) and equal(first["converted"], second["converted"])
    assert first["losses"] == second["losses"]
    assert equal(quantizers(first["last"]), quantizers(second["last"]))  # learned in step, not made equal afterwards
    assert all(value.isfinite().all() for value in first["state"].values())


def test_observed_ranges_are_each_rank_s_own_until_an_epoch_ends(results):
    (name,) = [name for name in results["2.0"]["ste"]["last"] if name.endswith("4.minimum") or name.endswith("4.maximum")][-1:]
    first, second = (results[rank]["ste"] for rank in ("2.0", "2.1"))
    assert first["last"][name] != second["last"][name]
    assert first["state"][name] == second["state"][name] == first["last"][name]


@pytest.mark.parametrize("name", [*LEARNED, *OBSERVED])
def test_evaluation_of_a_state_is_the_same_to_the_last_bit(results, name):
    alone, both = results["1.0"][name]["scored"], results["2.1"][name]["scored"]
    assert alone == both == results["2.0"][name]["scored"]
    assert [alarms for *_, alarms in alone] == [[], []]
