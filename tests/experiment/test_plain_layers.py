"""Networks whose forward computes weights of others: a training's states are evaluated by what their layers multiply by."""

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from qexp.base.errors import UserError
from qexp.experiment.evaluator import Evaluator
from qexp.experiment.variants import make_variants
from qexp.nn.plain_layers import PlainLayers

ZOO = Path(__file__).parents[1] / "layer_forms" / "zoo.py"
STANDARDIZING = f"{ZOO}:net_standardizing_subclass"


def test_a_trainings_state_is_evaluated_by_what_it_multiplies(prepared):
    one = prepared({"model.factory": STANDARDIZING, "bits": 16, "evaluate.num_images": 40})
    trained = one.trained_network()
    torch.nn.init.uniform_(trained.middle[0].weight, -3, 5)
    trained.eval().requires_grad_(False)
    weight = trained.middle[0].weight.flatten(1).double()
    weight = (weight - weight.mean(1, keepdim=True)) / (weight.var(1, unbiased=False, keepdim=True) + 1e-6).sqrt()
    state = trained.state_dict()
    baked = one.baked(state)
    expected = weight.reshape(4, 4, 3, 3) * state["middle.0.gain"]
    torch.testing.assert_close(baked["middle.0.weight"].double(), expected, rtol=1e-5, atol=1e-5)
    assert baked.keys() == state.keys() - {"middle.0.gain"} and torch.equal(baked["stem.weight"], state["stem.weight"])

    batches = list(one.bundle.eval_batches("test", batch_size=40, num_images=40, device=torch.device("cpu")))
    loss = F.cross_entropy(trained(batches[0].images), batches[0].labels)
    scored = Evaluator(one, torch.device("cpu")).score(state, one.variants, {})
    assert [row.evaluation.metrics.loss for row in scored] == pytest.approx([float(loss)] * 2, rel=1e-4)


def test_no_state_is_evaluated_by_the_weights_that_others_are_computed_of(prepared, monkeypatch):
    one = prepared({"model.factory": STANDARDIZING})
    state = one.trained_network().state_dict()
    diverged = one.baked(state | {"middle.0.weight": torch.full((4, 4, 3, 3), torch.nan)})
    assert diverged.keys() == one.baked(state).keys() and diverged["middle.0.weight"].isnan().all()
    monkeypatch.setattr("qexp.experiment.job.with_plain_layers", lambda network, example: PlainLayers(network))
    with pytest.raises(UserError, match=r"model\.factory=.*net_standardizing_subclass.*layers can be made modules"):
        one.baked(state)


def test_only_networks_that_changed_have_the_version_in_their_keys(prepared):
    plain, computed = prepared(), prepared({"model.factory": STANDARDIZING})
    assert (plain.layers, computed.layers) == (None, 1)
    for one, versioned in ((plain, False), (computed, True)):
        key = one.variants_of([one.config])[-1].key
        without = make_variants([one.config], one.tensors, one.places)[-1].key
        assert key == one.variants[-1].key and (key != without) == versioned


def test_training_with_quantization_is_refused_by_the_weights_name(cli, tiny):
    done = cli(*tiny, f"model.factory={STANDARDIZING}", "qat=lsq", "bits=4", "data.num_calib=100")
    assert done.code == 2 and "qat=lsq" in done.err and "middle.0.weight" in done.err
