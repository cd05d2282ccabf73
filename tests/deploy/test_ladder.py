"""The ladder judges layers one by one: what is equal passes, what is not fails where it is, and nowhere else."""

import math

import pytest
import torch

from qexp.base.errors import UserError
from qexp.deploy.activation_codes import load_biases_, simulated_codes
from qexp.deploy.integer_layer import accumulate
from qexp.deploy.integer_network import integer_codes
from qexp.deploy.ladder import FLOAT, INTEGER, LOGITS, SIMULATED, Ladder, Outcome
from qexp.deploy.runtimes import open_runtime
from qexp.deploy.weight_codes import WeightCodes
from qexp.models.cifar_resnet import CifarResNet


def images(n=6, size=16, seed=1):
    return torch.randn(n, 3, size, size, generator=torch.Generator().manual_seed(seed))


class Climb:
    """A quantized network with its file, whose outcomes are counted in batches of two."""

    def __init__(self, quantized, model, path, **options):
        torch.manual_seed(0)
        self.case = quantized(model, images(), **options)
        self.exported = self.case.export(path)
        load_biases_(self.case.network, self.exported.biases)

    def outcomes(self, batch, **others):
        codes, logits = simulated_codes(self.case.network, batch)
        integers = integer_codes(self.case.network, self.case.weights, batch)
        found = {FLOAT: Outcome(logits + 0.01), SIMULATED: Outcome(logits, codes), INTEGER: Outcome(integers[1], integers[0])}
        return found | {name: make(batch) for name, make in others.items()}

    def rungs(self, **others):
        ladder = Ladder(self.case.network, self.case.weights, (FLOAT, SIMULATED, INTEGER, *others))
        for batch in self.case.images.split(2):
            found = self.outcomes(batch, **others)
            ladder.add(batch, found[SIMULATED].logits.argmax(1), found)
        return {rung.name: rung for rung in ladder.rungs()}

    def runtime(self, path=None):
        """Of the file, or of another with the same names."""
        session = open_runtime("onnxruntime", path or self.exported.path, outputs=self.exported.codes)

        def outcome(batch):
            codes, logits = session.run_codes(batch)
            return Outcome(session.run(batch), codes, logits)

        return outcome


@pytest.fixture
def climb(quantized, graphs, tmp_path):
    return Climb(quantized, graphs.Residual(), tmp_path / "net.onnx")


def test_equal_rungs_pass(climb):
    found = climb.rungs(onnxruntime=climb.runtime())
    assert list(found) == [FLOAT, SIMULATED, INTEGER, "onnxruntime"]
    for rung in found.values():
        assert (rung.prec1, rung.prec5, rung.n, rung.agreement) == (100, 100, 6, 1)
    assert found[SIMULATED].passed is None and found[FLOAT].passed is None and found[FLOAT].agreement_above is None
    assert 20 < found[FLOAT].logit_sqnr_db == found[SIMULATED].logit_sqnr_db == found[SIMULATED].logit_sqnr_above_db < 80
    for name in (INTEGER, "onnxruntime"):
        rung = found[name]
        assert rung.passed and rung.failed_layer is None and rung.layer_steps <= 1 and rung.n_codes == 6
        assert rung.max_steps <= 2 and rung.logit_sqnr_db > 40
    assert found["onnxruntime"].layer_steps == 0 and found["onnxruntime"].logit_sqnr_above_db > 100


@pytest.mark.parametrize(
    ("initializer", "layer", "count"),
    [
        ("conv1.weight.scale", "relu", 1),
        ("conv2.weight.scale", "bn2", 1),
        ("head.weight.scale", LOGITS, 1),
        ("mean.scale", "mean", 2),
    ],
)
def test_one_scale_changed_fails_at_that_layer(climb, tmp_path, initializer, layer, count):
    import onnx

    model = onnx.load(climb.exported.path)
    tensor = next(each for each in model.graph.initializer if each.name == initializer)
    tensor.CopyFrom(onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(tensor) * 1.05, initializer))
    onnx.save(model, tmp_path / "other.onnx")
    rung = climb.rungs(onnxruntime=climb.runtime(tmp_path / "other.onnx"))["onnxruntime"]
    assert (rung.passed, rung.failed_layer, rung.num_failed) == (False, layer, count)  # of an activation, its reader as well
    assert climb.rungs(onnxruntime=climb.runtime())["onnxruntime"].passed


def test_the_right_layers_behind_a_wrong_one_are_not_blamed(climb):
    """One code wrong by two steps, early: end to end much differs, layer by layer one place."""

    def moved(batch):
        codes, _ = simulated_codes(climb.case.network, batch)
        wrong = dict(codes)
        wrong["relu"] = (codes["relu"] + 2).clamp(-128, 127)
        later, logits = integer_codes(climb.case.network, climb.case.weights, batch, given={"relu": wrong["relu"]})
        return Outcome(logits, {**later, "relu": wrong["relu"]})

    rung = climb.rungs(moved=moved)["moved"]
    assert (rung.failed_layer, rung.first_difference, rung.layer_steps, rung.passed) == ("relu", "relu", 2, False)
    steps = {}

    def flipped(batch):
        """One step, which ties explain, in every value: allowed, though it moves what is behind it by more."""
        codes, _ = simulated_codes(climb.case.network, batch)
        first = (codes["input"] + 1).clamp(-128, 127)
        later, logits = integer_codes(climb.case.network, climb.case.weights, batch, given={"input": first})
        steps["relu"] = int((later["relu"] - codes["relu"]).abs().max())
        return Outcome(logits, {**later, "input": first})

    rung = climb.rungs(flipped=flipped)["flipped"]
    assert steps["relu"] > 1 and rung.passed and rung.max_steps > 1 and rung.first_difference == "relu"


def test_accumulators_that_saturate_are_found(climb, monkeypatch):
    """A runtime that sums in fewer bits, as kernels do that add pairs of products in 16."""

    def saturating(layer, *arguments):
        sums = accumulate(layer, *arguments)
        return sums.clamp(-3000, 3000) if layer is climb.case.network.conv2 else sums

    def outcome(batch):
        with monkeypatch.context() as patch:
            patch.setattr("qexp.deploy.integer_layer.accumulate", saturating)
            codes, logits = integer_codes(climb.case.network, climb.case.weights, batch)
        return Outcome(logits, codes)

    found = climb.rungs(saturating=outcome)
    assert (found["saturating"].failed_layer, found["saturating"].num_failed) == ("bn2", 1)
    assert not found["saturating"].passed and found[INTEGER].passed


def test_accumulators_beyond_32_bits_are_an_error_that_names_the_layer(climb):
    weight = climb.case.weights["conv2.weight"]
    large = WeightCodes(weight.codes.abs() * 2**22, weight.qparams)
    weights = {**climb.case.weights, "conv2.weight": large}
    with pytest.raises(UserError, match=r"conv2: accumulator=.*2\^31 - 1"):
        integer_codes(climb.case.network, weights, images())


def test_nan_fails_and_counts_as_no_signal(climb):
    def broken(batch):
        codes, logits = simulated_codes(climb.case.network, batch)
        return Outcome(logits * torch.nan, codes)

    rung = climb.rungs(broken=broken)["broken"]
    assert rung.failed_layer == LOGITS and rung.logit_sqnr_db == -math.inf


def test_codes_of_some_batches_only(climb):
    runtime, seen = climb.runtime(), []

    def first_batch_only(batch):
        seen.append(batch)
        outcome = runtime(batch)
        return outcome if len(seen) == 1 else Outcome(outcome.logits)

    rung = climb.rungs(onnxruntime=first_batch_only)["onnxruntime"]
    assert (rung.n, rung.n_codes, rung.passed) == (6, 2, True)
    rung = climb.rungs(none=lambda batch: Outcome(runtime(batch).logits))["none"]
    assert (rung.n, rung.n_codes, rung.passed, rung.max_steps, rung.failed_layer) == (6, 0, None, None, None)


@pytest.mark.parametrize("requantization", ["float32", "fixed_point"])
@pytest.mark.parametrize("bits", [4, 8])
def test_resnet20_climbs(quantized, requantization, bits, tmp_path):
    climb = Climb(quantized, CifarResNet(20), tmp_path / "net.onnx", bits=bits)
    ladder = Ladder(
        climb.case.network, climb.case.weights, (FLOAT, SIMULATED, INTEGER, "onnxruntime"), requantization=requantization
    )
    runtime = climb.runtime()
    ladder.add(climb.case.images, torch.zeros(6), climb.outcomes(climb.case.images, onnxruntime=runtime))
    rungs = ladder.rungs()
    assert [rung.passed for rung in rungs] == [None, None, True, True]
