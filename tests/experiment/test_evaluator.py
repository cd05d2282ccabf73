import copy

import pytest
import torch
from torch import nn

from qexp.experiment import evaluator as module
from qexp.experiment.evaluator import Evaluator

CPU = torch.device("cpu")
SWEEP = tuple({"bits": bits, "mode": mode} for mode in ("int", "float", "half") for bits in (2, 4, 8))


def trained(prepared, seed=1):
    """A state dict whose tensors all vary, as after training."""
    generator = torch.Generator().manual_seed(seed)
    state = prepared.network().state_dict()
    for value in state.values():
        if value.is_floating_point():
            value.add_(0.1 * torch.rand(value.shape, generator=generator))
    return state


@pytest.fixture
def merged(prepared):
    return prepared(*SWEEP)


def score(merged, state=None, wanted=None, known=None):
    state = trained(merged) if state is None else state
    return Evaluator(merged, CPU).score(state, merged.variants if wanted is None else wanted, known or {})


def test_float_first_then_what_was_wanted(merged):
    scored = score(merged, wanted=merged.variants[3:5])
    assert [item.variant.label for item in scored] == ["fp32", "W8 int", "W2 float"]
    first = scored[0].evaluation.metrics
    assert first.n == 360 and first.kl == 0 and first.logit_sqnr_db is None
    assert scored[1].evaluation.metrics.logit_sqnr_db > 20


def test_a_streamed_set_in_chunks_gives_the_same_bits(merged, monkeypatch):
    alone = score(merged)
    decoded = []
    bundle = merged.bundle
    original = bundle.eval_batches

    def counted(split, **options):
        decoded.append(options.get("num_images"))
        return original(split, **options)

    monkeypatch.setattr(bundle, "eval_batches", counted)
    monkeypatch.setattr(bundle, "streamed", True)
    for memory_mib, passes in ((4096, 1), (0, len(merged.variants))):
        decoded.clear()
        one = copy.copy(merged.config.evaluate)
        object.__setattr__(one, "memory_mib", memory_mib)
        evaluator = Evaluator(merged, CPU)
        evaluator.settings = one
        together = evaluator.score(trained(merged), merged.variants, {})
        assert [item.evaluation.digest for item in together] == [item.evaluation.digest for item in alone]
        assert [item.evaluation.metrics for item in together] == [item.evaluation.metrics for item in alone]
        assert decoded.count(None) == passes


def test_chunks_fill_the_memory_budget(merged, monkeypatch):
    monkeypatch.setattr(merged.bundle, "streamed", True)
    evaluator = Evaluator(merged, CPU)
    evaluator._prototype = nn.Linear(2**18, 1, bias=False)  # 1 MiB
    object.__setattr__(evaluator, "settings", copy.copy(evaluator.settings))
    object.__setattr__(evaluator.settings, "memory_mib", 3)
    assert [len(chunk) for chunk in evaluator._chunks(merged.variants)] == [3, 3, 2]


def test_shadows_are_allocated_once(merged):
    evaluator = Evaluator(merged, CPU)
    evaluator.score(trained(merged), merged.variants, {})
    places = {key: [id(item) for item in pool] for key, pool in evaluator._shadows.items()}
    evaluator.score(trained(merged, 2), merged.variants, {})
    assert places == {key: [id(item) for item in pool] for key, pool in evaluator._shadows.items()}
    assert sorted(places) == [(False, "none"), (True, "none")]
    assert all(len(pool) == 1 for pool in places.values())


def test_the_state_is_left_as_it_is(merged):
    state = trained(merged)
    before = {name: value.clone() for name, value in state.items()}
    score(merged, state)
    assert all(torch.equal(value, before[name]) for name, value in state.items())


def test_batch_norm_keeps_its_statistics(merged):
    state, evaluator = trained(merged), Evaluator(merged, CPU)
    evaluator.score(state, merged.variants[:3], {})
    copied = evaluator._shadows[False, "none"][0].module.state_dict()
    for net in (copied, evaluator._prototype.state_dict()):
        assert all(torch.equal(net[name], state[name]) for name in state if name.startswith("1."))


def test_no_alarms_where_all_is_well(merged):
    assert [item.alarms for item in score(merged)] == [()] * len(merged.variants)


class OriginalInDisguise(module.Shadow):
    """A shadow whose module holds the quantized copy, and runs the network that it was made from."""

    def __init__(self, model, **options):
        super().__init__(model, **options)
        self._original = copy.deepcopy(model).eval()

        class Closure(type(self._network)):
            def forward(inner, images):  # noqa: N805
                return self._original(images)

        self._network.__class__ = Closure

    def load(self, state_dict, plan):
        self._original.load_state_dict(state_dict)
        return super().load(state_dict, plan)


def test_a_copy_that_is_not_executed_raises_an_alarm(prepared, monkeypatch):
    merged = prepared({"bits": 4})
    monkeypatch.setattr(module, "Shadow", OriginalInDisguise)
    (_, copy_alarms) = (item.alarms for item in score(merged))
    assert copy_alarms == ("weights not in use: 0.weight, 5.weight",)


def test_equal_logits_of_different_widths_raise_an_alarm(prepared, monkeypatch):
    merged = prepared({"bits": 4}, {"bits": 8}, {"bits": 8, "mode": "float"}, {"bits": 4, "mode": "float"})
    monkeypatch.setattr(module, "Shadow", OriginalInDisguise)
    scored = {item.variant.label: item.alarms for item in score(merged)}
    assert "bitwise the logits of W8 int: no effect of the bit width" in scored["W4 int"]
    assert "bitwise the logits of W4 int: no effect of the bit width" in scored["W8 int"]
    assert scored["fp32"] == ()
    assert not any("bitwise" in alarm for label in ("W4 float", "W8 float") for alarm in scored[label])


def test_equal_logits_are_seen_against_an_earlier_evaluation(prepared):
    merged = prepared({"bits": 4}, {"bits": 8})
    (_, w4, w8) = merged.variants
    digest = score(merged, wanted=[w4])[1].evaluation.digest
    assert score(merged, wanted=[w4], known={w8.key: "another"})[1].alarms == ()
    alarms = score(merged, wanted=[w4], known={w8.key: digest})[1].alarms
    assert alarms == ("bitwise the logits of W8 int: no effect of the bit width",)


def test_logits_that_are_not_finite_raise_an_alarm(prepared):
    merged = prepared({"bits": 4})
    state = trained(merged)
    state["5.bias"][3] = float("inf")
    scored = score(merged, state)
    assert [item.alarms for item in scored] == [("non-finite logits",)] * 2
    assert not scored[0].evaluation.metrics.finite


def test_a_tensor_that_became_constant_is_named(prepared):
    merged = prepared({"bits": 4})
    state = trained(merged)
    state["0.weight"].fill_(0.5)
    (float_net, quantized) = score(merged, state)
    assert quantized.alarms == ("constant, left unquantized: 0.weight",)
    assert float_net.alarms == ()
    assert quantized.evaluation.metrics.logit_sqnr_db is not None
