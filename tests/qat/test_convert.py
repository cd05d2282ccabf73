import copy
import json
from dataclasses import replace

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn

from qexp.base.errors import UserError
from qexp.config.qat_methods import QAT_METHODS
from qexp.models.weights import load_weights
from qexp.nn.activation_points import activations
from qexp.nn.graph import trace
from qexp.nn.inventory import inventory
from qexp.qat.convert import CONVERTED_VERSION, assemble, convert, load_converted, plain_network, save_converted
from qexp.quant.affine import fake_quantize_affine


def trained(graphs, kit, name, granularity="per_tensor", **settings):
    images = graphs.images(8)
    return kit.prepared(kit.estimated(graphs.Residual(), images), images, name=name, granularity=granularity, **settings).train(3)


def test_every_method_converts_to_its_own_logits(graphs, kit, tmp_path):
    """Bit for bit, before and after the file; all that was trained is among what is compared."""
    for name, granularity in kit.METHODS:
        case = trained(graphs, kit, name, granularity)
        before, logits = copy.deepcopy(case.qat.module.state_dict()), case.logits()
        converted = case.convert(model="residual")
        assert torch.equal(case.assembled(converted), logits), name
        assert all(torch.equal(value, before[key]) for key, value in case.qat.module.state_dict().items()), name
        save_converted(tmp_path / "converted.safetensors", converted)
        loaded = load_converted(tmp_path / "converted.safetensors")
        assert torch.equal(case.assembled(loaded), logits), name
        assert not torch.equal(logits, case.logits(case.network)), name


def test_the_state_holds_the_values_of_the_codes(graphs, kit):
    for name, granularity in kit.METHODS:
        converted = trained(graphs, kit, name, granularity).convert()
        assert set(converted.weights) == {"conv1.weight", "conv2.weight", "head.weight"}
        assert set(converted.activations) == {"input", "pool", "dropout"}
        for key, (spec, qparams) in converted.weights.items():
            value = converted.state[key]
            assert value.dtype == torch.float32 and spec.bits == 4
            if QAT_METHODS[name].overwrites_weights:
                assert qparams is None and all(row.unique().numel() <= 16 for row in value.flatten(1))
            elif QAT_METHODS[name].squashed_weights:
                torch.testing.assert_close(value / qparams.scale, (value / qparams.scale).round(), atol=1e-5, rtol=0)
            else:
                assert torch.equal(value, fake_quantize_affine(value, qparams))


@pytest.mark.parametrize("name", ["lsq", "lsq_plus", "ste"])
def test_with_folding_the_logits_are_close_and_the_predictions_equal(graphs, kit, name):
    case = trained(graphs, kit, name, "per_channel", batch_norm="folded")
    converted, logits = case.convert(), case.logits()
    assert converted.folded and "bn1.weight" not in converted.state and "conv1.bias" in converted.state
    logits_of_converted = case.assembled(converted)
    torch.testing.assert_close(logits_of_converted, logits, rtol=1e-3, atol=1e-3 * float(logits.abs().max()))
    assert torch.equal(logits_of_converted.argmax(1), logits.argmax(1))


def test_what_is_refined_is_the_converted_network_alone(graphs, kit):
    case = trained(graphs, kit, "lsq")
    shifted = convert(case.qat, case.network, {}, lambda network: network.bn1.running_mean.add_(1))
    plain = case.convert()
    differing = {name for name, value in plain.state.items() if not torch.equal(value, shifted.state[name])}
    assert differing == {"bn1.running_mean"} and torch.equal(plain.state["bn1.running_mean"], case.qat.network.bn1.running_mean)


def test_the_plan_of_a_converted_network_lists_what_was_quantized(graphs, kit):
    case = trained(graphs, kit, "lsq")
    converted, traced = case.convert(), trace(case.network, case.images[:1])
    tensors = inventory(case.network, case.images[:1])
    points = {info.name: info for info in activations(traced, layers_only=True)}
    plan = converted.plan(tensors, points)
    assert plan.quantized == case.qat.plan.quantized
    assert plan.quantized_activations == case.qat.plan.quantized_activations
    reversed_plan = replace(converted, activations=dict(reversed(converted.activations.items()))).plan(tensors, points)
    assert list(reversed_plan.quantized_activations) == ["input", "pool", "dropout"], "in order of execution"
    with pytest.raises(UserError, match=r"checkpoint=input: allowed is a file converted from this network"):
        converted.plan(tensors, {name: info for name, info in points.items() if name != "input"})


def test_a_file_comes_back_bit_for_bit(graphs, kit, tmp_path):
    path = tmp_path / "converted.safetensors"
    for name, granularity in (("lsq", "per_channel"), ("lsq_plus", "per_tensor"), ("every_step", "per_tensor")):
        converted = trained(graphs, kit, name, granularity).convert(model="residual", bits=4, more=["a", None])
        save_converted(path, converted)
        loaded = load_converted(path)
        assert (loaded.folded, loaded.about) == (converted.folded, converted.about)
        assert list(loaded.state) == list(converted.state)
        assert all(torch.equal(value, converted.state[key]) for key, value in loaded.state.items())
        assert {value.dtype for value in loaded.state.values()} == {torch.float32, torch.int64}
        for mine, theirs in ((loaded.weights, converted.weights), (loaded.activations, converted.activations)):
            assert set(mine) == set(theirs) and all(mine[key][0] == spec for key, (spec, _) in theirs.items())
            for key, (_, qparams) in theirs.items():
                assert (mine[key][1] is None) == (qparams is None)
                if qparams is not None:
                    rest = ("quant_min", "quant_max", "axis")
                    assert all(getattr(mine[key][1], part) == getattr(qparams, part) for part in rest)
                    assert all(
                        torch.equal(getattr(mine[key][1], part), getattr(qparams, part)) for part in ("scale", "zero_point")
                    )


def test_the_plain_state_fits_the_plain_network(graphs, kit):
    """Whoever reads the state alone has a float network with quantized weights."""
    case = trained(graphs, kit, "lsq")
    converted = case.convert()
    network = copy.deepcopy(case.network)
    network.load_state_dict(converted.state)
    mine = plain_network(case.network, converted).eval()
    assert torch.equal(case.logits(network), case.logits(mine))
    assert all(not torch.equal(case.network.get_parameter(name), network.get_parameter(name)) for name in converted.weights)
    folded = trained(graphs, kit, "lsq", batch_norm="folded")
    assert plain_network(folded.network, folded.convert()).conv1.bias is not None


def test_a_file_of_another_network_is_refused(graphs, kit):
    case = trained(graphs, kit, "lsq")
    converted = case.convert(model="residual")
    with pytest.raises(UserError) as error:
        assemble(kit.Turned(), converted, case.images[:1])
    assert str(error.value).startswith("checkpoint=Turned: allowed is a file converted from this network; it holds residual.")
    assert "\n" not in str(error.value)

    class Other(type(case.network)):
        def forward(self, x):
            return self.head(self.relu(self.bn2(self.conv2(self.bn1(self.conv1(x))))).mean((2, 3)))

    other = Other()
    with pytest.raises(UserError, match="activation=pool: allowed is a place of the network's graph"):
        assemble(other, converted, case.images[:1])


def written(graphs, kit, tmp_path, change=None):
    """A converted file, its header changed."""
    path = tmp_path / "converted.safetensors"
    save_converted(path, trained(graphs, kit, "lsq").convert(model="residual"))
    if change is not None:
        with safe_open(path, framework="pt") as file:
            header = json.loads(file.metadata()["qexp_converted"])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118, it is no dict
        change(header, tensors)
        save_file(tensors, path, metadata={"qexp_converted": json.dumps(header)})
    return path


def test_another_version_is_refused(graphs, kit, tmp_path):
    path = written(graphs, kit, tmp_path, lambda header, tensors: header.update(version=99))
    with pytest.raises(UserError) as error:
        load_converted(path)
    assert str(error.value) == f"checkpoint={path}, converted by version 99: allowed is a file of version {CONVERTED_VERSION}"


@pytest.mark.parametrize(
    "change",
    [
        lambda header, tensors: tensors.pop("conv1.weight"),
        lambda header, tensors: tensors.pop("qparams/weights/conv1.weight/scale"),
        lambda header, tensors: tensors.pop("qparams/activations/input/zero_point"),
        lambda header, tensors: header.pop("folded"),
        lambda header, tensors: header.pop("version"),
        lambda header, tensors: header.pop("activations"),
        lambda header, tensors: header["weights"]["conv1.weight"].pop("spec"),
        lambda header, tensors: header["weights"]["conv1.weight"]["spec"].update(other=1),
        lambda header, tensors: header.update(weights=[1]),
    ],
)
def test_a_damaged_file_is_refused(graphs, kit, tmp_path, change):
    path = written(graphs, kit, tmp_path, change)
    with pytest.raises(UserError) as error:
        load_converted(path)
    assert str(error.value) == f"checkpoint={path}: allowed is an undamaged file of a converted network"


def test_other_files_are_somebody_elses(graphs, kit, tmp_path):
    """A file cut short cannot be told from any other: reading it as weights says so."""
    path = written(graphs, kit, tmp_path)
    path.write_bytes(path.read_bytes()[:-100])
    assert load_converted(path) is None
    with pytest.raises(UserError):
        load_weights(graphs.Residual(), path)
    save_file({"conv1.weight": torch.zeros(1)}, tmp_path / "plain.safetensors")
    torch.save({"a": torch.zeros(1)}, tmp_path / "plain.th")
    for name in ("plain.safetensors", "plain.th", "absent.safetensors"):
        assert load_converted(tmp_path / name) is None


def test_a_converted_network_can_be_converted_from_a_copy(graphs, kit):
    """What is written hangs on the state alone: another module with the same state converts to the same."""
    case = trained(graphs, kit, "lsq_plus")
    other = kit.prepared(copy.deepcopy(case.network), case.images, name="lsq_plus", ready=False)
    other.qat.module.load_state_dict(case.qat.module.state_dict())
    first, second = case.convert(), replace(other, network=graphs.Residual()).convert()
    assert all(torch.equal(value, second.state[name]) for name, value in first.state.items())
    assert isinstance(assemble(case.network, second, case.images[:1]), nn.Module)
    assert torch.equal(case.assembled(second), case.logits())
