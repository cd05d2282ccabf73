"""The comparison judges layers one by one: what is equal passes, what is not fails where it is, and nowhere else."""

import math

import pytest
import torch

from qexp.base.errors import UserError
from qexp.deploy.activation_codes import load_values_, simulated_codes
from qexp.deploy.alarms import failures, parting
from qexp.deploy.fidelity import planned_layers
from qexp.deploy.integer_layer import accumulate
from qexp.deploy.integer_network import integer_codes
from qexp.deploy.runtimes import open_runtime
from qexp.deploy.stages import FLOAT, INTEGER, LOGITS, SIMULATED, Outcome, StageComparison
from qexp.deploy.weight_codes import WeightCodes
from qexp.models.cifar_resnet import CifarResNet


def images(n=6, size=16, seed=1):
    return torch.randn(n, 3, size, size, generator=torch.Generator().manual_seed(seed))


class StageRun:
    """A quantized network with its file, whose outcomes are counted in batches of two."""

    def __init__(self, quantized, model, path, **options):
        torch.manual_seed(0)
        self.case = quantized(model, images(), **options)
        self.exported = self.case.export(path)
        load_values_(self.case.network, self.exported.biases)

    def outcomes(self, batch, **others):
        codes, logits = simulated_codes(self.case.network, batch)
        integers = integer_codes(self.case.network, self.case.weights, batch)
        outcomes = {FLOAT: Outcome(logits + 0.01), SIMULATED: Outcome(logits, codes), INTEGER: Outcome(integers[1], integers[0])}
        return outcomes | {name: make(batch) for name, make in others.items()}

    def stages(self, **others):
        comparison = StageComparison(self.case.network, self.case.weights, (FLOAT, SIMULATED, INTEGER, *others))
        for batch in self.case.images.split(2):
            outcomes = self.outcomes(batch, **others)
            comparison.add(batch, outcomes[SIMULATED].logits.argmax(1), outcomes)
        return {stage.name: stage for stage in comparison.stages()}

    def runtime(self, path=None):
        """Of the file, or of another with the same names."""
        session = open_runtime("onnxruntime", path or self.exported.path, outputs=self.exported.codes)

        def outcome(batch):
            codes, logits = session.run_codes(batch)
            return Outcome(session.run(batch), codes, logits)

        return outcome


@pytest.fixture
def run(quantized, graphs, tmp_path):
    return StageRun(quantized, graphs.Residual(), tmp_path / "net.onnx")


def test_equal_stages_pass(run):
    stages = run.stages(onnxruntime=run.runtime())
    assert list(stages) == [FLOAT, SIMULATED, INTEGER, "onnxruntime"]
    for stage in stages.values():
        assert (stage.prec1, stage.prec5, stage.n, stage.agreement) == (100, 100, 6, 1)
    assert stages[SIMULATED].passed is None and stages[FLOAT].passed is None and stages[FLOAT].agreement_above is None
    assert 20 < stages[FLOAT].logit_sqnr_db == stages[SIMULATED].logit_sqnr_db == stages[SIMULATED].logit_sqnr_above_db < 80
    for name in (INTEGER, "onnxruntime"):
        stage = stages[name]
        assert stage.passed and stage.failed_layer is None and stage.layer_steps <= 1 and stage.n_codes == 6
        assert stage.max_steps <= 2 and stage.logit_sqnr_db > 40
    assert stages["onnxruntime"].layer_steps == 0 and stages["onnxruntime"].logit_sqnr_above_db > 100


@pytest.mark.parametrize(
    ("initializer", "layer", "count"),
    [
        ("conv1.weight.scale", "relu", 1),
        ("conv2.weight.scale", "bn2", 1),
        ("head.weight.scale", LOGITS, 1),
        ("mean.scale", "mean", 2),
    ],
)
def test_one_scale_changed_fails_at_that_layer(run, tmp_path, initializer, layer, count):
    import onnx

    model = onnx.load(run.exported.path)
    tensor = next(candidate for candidate in model.graph.initializer if candidate.name == initializer)
    tensor.CopyFrom(onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(tensor) * 1.05, initializer))
    onnx.save(model, tmp_path / "other.onnx")
    stage = run.stages(onnxruntime=run.runtime(tmp_path / "other.onnx"))["onnxruntime"]
    assert (stage.passed, stage.failed_layer, stage.num_failed) == (False, layer, count)  # of an activation, its reader as well
    assert run.stages(onnxruntime=run.runtime())["onnxruntime"].passed


def test_the_right_layers_behind_a_wrong_one_are_not_blamed(run):
    """One code wrong by two steps, early: end to end much differs, layer by layer one place."""

    def moved(batch):
        codes, _ = simulated_codes(run.case.network, batch)
        wrong = dict(codes)
        wrong["relu"] = (codes["relu"] + 2).clamp(-128, 127)
        later, logits = integer_codes(run.case.network, run.case.weights, batch, given={"relu": wrong["relu"]})
        return Outcome(logits, {**later, "relu": wrong["relu"]})

    stage = run.stages(moved=moved)["moved"]
    assert (stage.failed_layer, stage.first_difference, stage.layer_steps, stage.passed) == ("relu", "relu", 2, False)
    steps = {}

    def flipped(batch):
        """One step, which ties explain, in every value: allowed, though it moves what is behind it by more."""
        codes, _ = simulated_codes(run.case.network, batch)
        first = (codes["input"] + 1).clamp(-128, 127)
        later, logits = integer_codes(run.case.network, run.case.weights, batch, given={"input": first})
        steps["relu"] = int((later["relu"] - codes["relu"]).abs().max())
        return Outcome(logits, {**later, "input": first})

    stage = run.stages(flipped=flipped)["flipped"]
    assert steps["relu"] > 1 and stage.max_steps > 1 and stage.first_difference == "relu"
    assert stage.layer_steps == 1 and stage.differ_pct > 99, "one step, but of nearly all codes"
    assert (stage.passed, stage.failed_layer, stage.num_failed) == (False, "input", 1)


def test_steps_are_counted_and_a_parting_names_its_layer(run):
    def moved(batch):
        codes, _ = simulated_codes(run.case.network, batch)
        first = {"relu": codes["relu"] + 2}
        later, logits = integer_codes(run.case.network, run.case.weights, batch, given=first)
        return Outcome(logits.roll(1, 1), {**later, **first})

    comparison = StageComparison(run.case.network, run.case.weights, (FLOAT, SIMULATED, INTEGER, "moved"))
    outcomes = run.outcomes(run.case.images, moved=moved)
    comparison.add(run.case.images, outcomes[SIMULATED].logits.argmax(1), outcomes)
    relu = next(row for row in comparison.point_steps() if (row.stage, row.point) == ("moved", "relu"))
    assert relu.steps[5] == relu.num_codes == sum(relu.alone_steps) and (relu.max_steps, relu.differ_pct) == (2, 100)
    stages = {stage.name: stage for stage in comparison.stages()}
    text = parting(stages["moved"])
    assert "at relu, and relu is the first layer that is wrong by itself" in text and parting(stages[INTEGER]) is None


def test_accumulators_that_saturate_are_found(run, monkeypatch):
    """A runtime that sums in fewer bits, as kernels do that add pairs of products in 16."""

    def saturating(layer, *arguments):
        sums = accumulate(layer, *arguments)
        return sums.clamp(-3000, 3000) if layer is run.case.network.conv2 else sums

    def outcome(batch):
        with monkeypatch.context() as patch:
            patch.setattr("qexp.deploy.integer_layer.accumulate", saturating)
            codes, logits = integer_codes(run.case.network, run.case.weights, batch)
        return Outcome(logits, codes)

    stages = run.stages(saturating=outcome)
    assert (stages["saturating"].failed_layer, stages["saturating"].num_failed) == ("bn2", 1)
    assert not stages["saturating"].passed and stages[INTEGER].passed


def test_accumulators_beyond_32_bits_are_an_error_that_names_the_layer(run):
    weight = run.case.weights["conv2.weight"]
    large = WeightCodes(weight.codes.abs() * 2**22, weight.qparams)
    weights = {**run.case.weights, "conv2.weight": large}
    with pytest.raises(UserError, match=r"conv2: accumulator=.*2\^31 - 1"):
        integer_codes(run.case.network, weights, images())


def test_nan_fails_and_counts_as_no_signal(run):
    def broken(batch):
        codes, logits = simulated_codes(run.case.network, batch)
        return Outcome(logits * torch.nan, codes)

    stage = run.stages(broken=broken)["broken"]
    assert stage.failed_layer == LOGITS and stage.logit_sqnr_db == -math.inf


def test_codes_of_some_batches_only(run):
    runtime, seen = run.runtime(), []

    def first_batch_only(batch):
        seen.append(batch)
        outcome = runtime(batch)
        return outcome if len(seen) == 1 else Outcome(outcome.logits)

    stage = run.stages(onnxruntime=first_batch_only)["onnxruntime"]
    assert (stage.n, stage.n_codes, stage.passed) == (6, 2, True)
    stage = run.stages(none=lambda batch: Outcome(runtime(batch).logits))["none"]
    assert (stage.n, stage.n_codes, stage.passed, stage.max_steps, stage.failed_layer) == (6, 0, None, None, None)


@pytest.mark.parametrize("requantization", ["float32", "fixed_point"])
@pytest.mark.parametrize("bits", [4, 8])
def test_resnet20_passes_every_stage(quantized, requantization, bits, tmp_path):
    run = StageRun(quantized, CifarResNet(20), tmp_path / "net.onnx", bits=bits)
    comparison = StageComparison(
        run.case.network, run.case.weights, (FLOAT, SIMULATED, INTEGER, "onnxruntime"), requantization=requantization
    )
    runtime = run.runtime()
    comparison.add(run.case.images, torch.zeros(6), run.outcomes(run.case.images, onnxruntime=runtime))
    stages = comparison.stages()
    assert [stage.passed for stage in stages] == [None, None, True, True]


def test_a_stage_passes_on_no_layer_never(run):
    """Codes may agree in float: what did not run in integers is named, and its share of the work."""
    stage = run.stages()[INTEGER]
    planned = {"conv1": 60, "conv2": 30, "head": 10}
    assert stage.passed and stage.with_integers(planned, None) == stage
    whole, part = stage.with_integers(planned, ["conv1", "conv2", "head", "other"]), stage.with_integers(planned, {"conv2"})
    assert (whole.passed, whole.num_planned, whole.num_integer, whole.integer_macs_pct, whole.float_layers) == (
        True,
        3,
        3,
        100,
        (),
    )
    assert (part.passed, part.num_integer, part.float_layers) == (False, 1, ("conv1", "head"))
    assert part.integer_macs_pct == pytest.approx(30)
    assert stage.with_integers({}, ()).passed is None
    (text,) = failures(part)
    assert text == "integer: 1 of 3 planned layers ran in integers, 30.0 % of their MACs; in float: conv1, head"


def test_what_each_stage_ran_in_integers(run):
    ran = set()
    integer_codes(run.case.network, run.case.weights, run.case.images[:1], ran=ran)
    assert ran == {"conv1", "conv2", "head"} == set(planned_layers(run.case.network, run.case.weights, images(1)))
    floats = {name: codes for name, codes in run.case.weights.items() if name != "conv2.weight"}
    ran.clear()
    integer_codes(run.case.network, floats, run.case.images[:1], ran=ran)
    assert ran == {"conv1", "head"}
