"""State dicts from elsewhere: what is mended, what is noted, what raises."""

from collections import OrderedDict

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from qexp.base.errors import UserError
from qexp.models.cifar_resnet import CifarResNet
from qexp.models.weights import load_weights


@pytest.fixture
def state():
    torch.manual_seed(1)
    return {name: value.clone() for name, value in CifarResNet(20).state_dict().items()}


def fresh():
    torch.manual_seed(2)
    return CifarResNet(20)


def check_loaded(model, state):
    loaded = model.state_dict()
    assert all(torch.equal(loaded[name], value) for name, value in state.items())


def test_own_file_needs_no_note(tmp_path, state):
    torch.save(state, tmp_path / "own.pt")
    model = fresh()
    assert load_weights(model, tmp_path / "own.pt") == []
    check_loaded(model, state)


def test_safetensors(tmp_path, state):
    save_file(state, tmp_path / "own.safetensors")
    model = fresh()
    assert load_weights(model, tmp_path / "own.safetensors") == []
    check_loaded(model, state)


@pytest.mark.parametrize("wrapper", ["state_dict", "model", "model_state_dict"])
def test_wrapper_prefixes_and_classifier(tmp_path, state, wrapper):
    """As DDP over torch.compile saves it, with torchvision's name for the classifier and without counters."""
    foreign = {
        "module._orig_mod." + name.replace("linear.", "fc."): value for name, value in state.items() if "num_batches" not in name
    }
    torch.save({"epoch": 3, wrapper: foreign}, tmp_path / "foreign.pth")
    model = fresh()
    notes = load_weights(model, tmp_path / "foreign.pth")
    check_loaded(model, state)
    text = "\n".join(notes)
    for part in (f"under {wrapper}.module._orig_mod.", "fc.* to linear.*", "19 counters"):
        assert part in text
    assert len(notes) == 3


def small(seed):
    torch.manual_seed(seed)
    return nn.Sequential(OrderedDict(body=nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2)), head=nn.Linear(2, 3)))


def under(prefix, seed=1):
    return {prefix + name: value.clone() for name, value in small(seed).state_dict().items()}


@pytest.mark.parametrize(
    ("content", "notes"),
    [
        (under("model."), ["took the tensors under model."]),
        (under("net._orig_mod."), ["took the tensors under net._orig_mod."]),
        ({"pytorch-lightning_version": "2", "state_dict": under("body._orig_mod.")}, ["under state_dict.body._orig_mod."]),
        ({"n_averaged": torch.tensor(4)} | under("module."), ["under module.", "not in the network (1): n_averaged"]),
        (under("model.") | {"loss.weight": torch.ones(3)}, ["under model.", "not in the network (1): loss.weight"]),
        (
            {name.replace("body.", "body._orig_mod."): value for name, value in under("").items()},
            ["removed _orig_mod and module from names"],
        ),
        (
            {"state_dict": under(""), "state_dict_ema": under("module.", 3), "optimizer": {"state": {0: {"m": torch.ones(1)}}}},
            ["under state_dict.", "for model.weights_key=NAME: state_dict_ema.module"],
        ),
        (under("") | {"ema": under("", seed=3)}, ["for model.weights_key=NAME: ema"]),
    ],
    ids=["model", "compiled", "entry", "averaged", "beside", "within", "ema", "flat"],
)  # fmt: skip
def test_the_prefix_is_searched(tmp_path, content, notes):
    torch.save(content, tmp_path / "file.pt")
    model = small(2)
    told = load_weights(model, tmp_path / "file.pt")
    check_loaded(model, under(""))
    assert len(told) == len(notes) and all(part in note for note, part in zip(told, notes, strict=True))


@pytest.mark.parametrize("entry", ["model_ema", "model_ema.module"])
def test_an_entry_is_chosen(tmp_path, entry):
    torch.save({"model": under(""), "model_ema": {"n_averaged": torch.tensor(2)} | under("module.", seed=3)}, tmp_path / "two.pt")
    model = small(2)
    load_weights(model, tmp_path / "two.pt", entry=entry)
    check_loaded(model, under("", seed=3))
    with pytest.raises(UserError, match=r"model.weights_key=ema: allowed is one of model, model_ema.module"):
        load_weights(model, tmp_path / "two.pt", entry="ema")


def test_several_that_fit_alike_are_not_guessed(tmp_path):
    torch.save({"state_dict": under("student.") | under("teacher.", seed=3)}, tmp_path / "two.pt")
    with pytest.raises(UserError, match=r"model.weights_key=None: allowed is one of state_dict.student, state_dict.teacher"):
        load_weights(small(2), tmp_path / "two.pt")
    model = small(2)
    load_weights(model, tmp_path / "two.pt", entry="state_dict.teacher")
    check_loaded(model, under("", seed=3))


@pytest.mark.parametrize(
    ("kind", "change"),
    [
        ("sparse_coo", torch.Tensor.to_sparse),
        ("meta", lambda value: value.to("meta")),
        ("quantized", lambda value: torch.quantize_per_tensor(value, 0.1, 0, torch.qint8)),
    ],
)
@pytest.mark.filterwarnings("ignore:TypedStorage is deprecated", "ignore:torch.quantize_per_tensor")
def test_tensors_without_plain_values_are_refused(tmp_path, kind, change):
    torch.save(under("") | {"head.weight": change(torch.ones(3, 2))}, tmp_path / "odd.pt")
    with pytest.raises(UserError, match=rf"Not dense \(1\): head.weight \({kind}\)"):
        load_weights(small(2), tmp_path / "odd.pt")


def test_other_types_are_converted(tmp_path, state):
    torch.save(
        {name: value.half() if value.is_floating_point() else value for name, value in state.items()}, tmp_path / "half.pt"
    )
    model = fresh()
    assert load_weights(model, tmp_path / "half.pt") == ["half.pt: converted from float16"]
    assert model.conv1.weight.dtype == torch.float32
    assert torch.equal(model.conv1.weight, state["conv1.weight"].half().float())


def test_ambiguous_classifier_is_not_renamed(tmp_path):
    """A file with two candidates fits nothing by guess."""
    model = nn.ModuleDict({"fc": nn.Linear(2, 2)})
    torch.save({f"{name}.{kind}": torch.zeros(2, 2) for name in ("linear", "head") for kind in ("weight",)}, tmp_path / "two.pt")
    with pytest.raises(
        UserError, match="missing in the file .2.: fc.weight, fc.bias; not in the network .2.: linear.weight, head.weight"
    ):
        load_weights(model, tmp_path / "two.pt")


def test_misfits_are_all_named(tmp_path, state):
    state["linear.weight"] = torch.zeros(100, 64)
    state["layer1.0.conv9.weight"] = state.pop("layer1.0.conv1.weight")
    torch.save(state, tmp_path / "bad.pt")
    model = fresh()
    before = model.conv1.weight.clone()
    with pytest.raises(UserError) as caught:
        load_weights(model, tmp_path / "bad.pt", key="checkpoint")
    text = str(caught.value)
    assert text.startswith("checkpoint=")
    assert "missing in the file (1): layer1.0.conv1.weight" in text
    assert "not in the network (1): layer1.0.conv9.weight" in text
    assert "linear.weight [100, 64] in the file, [10, 64] in the network" in text
    assert "Did you mean layer1.0.conv1.weight?" in text
    assert torch.equal(model.conv1.weight, before)


def test_long_lists_are_cut(tmp_path, state):
    torch.save({"conv1.weight": state["conv1.weight"]}, tmp_path / "little.pt")
    with pytest.raises(UserError, match=r"missing in the file \(96\): .*, \.\.\. 90 more"):
        load_weights(fresh(), tmp_path / "little.pt")


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_truncated_file(tmp_path, state, suffix):
    path = tmp_path / f"whole{suffix}"
    (save_file if suffix == ".safetensors" else torch.save)(state, path)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(UserError, match="is truncated or of another format"):
        load_weights(fresh(), path)


@pytest.mark.parametrize("content", [b"", b"hello, world", b"\x00" * 64, b"\x80\x04nonsense"])
def test_no_torch_file(tmp_path, content):
    path = tmp_path / "text.pt"
    path.write_bytes(content)
    with pytest.raises(UserError, match=f"It has {len(content)} bytes|Python objects"):
        load_weights(fresh(), path)


def test_file_that_needs_unpickling(tmp_path):
    torch.save(CifarResNet(20), tmp_path / "model.pt")
    with pytest.raises(UserError, match="save model.state_dict.. instead"):
        load_weights(fresh(), tmp_path / "model.pt")


@pytest.mark.parametrize(("content", "message"), [(torch.zeros(3), "holds a Tensor"), ({}, "holds nothing"), ({"lr": 0.1}, "lr")])
def test_no_state_dict(tmp_path, content, message):
    torch.save(content, tmp_path / "odd.pt")
    with pytest.raises(UserError, match=message):
        load_weights(fresh(), tmp_path / "odd.pt")


def test_missing_file(tmp_path):
    (tmp_path / "resnet20.pt").touch()
    with pytest.raises(UserError, match="Did you mean resnet20.pt?"):
        load_weights(fresh(), tmp_path / "resnet2.pt")


def test_published_resnet20(extra_data):
    """The file that akamaster published: wrapped, prefixed, older than the counters, saved on a GPU."""
    path = extra_data / "resnet20-12fca82f.th"
    if not path.is_file():
        pytest.skip(f"{path} is not there")
    model = fresh()
    assert len(load_weights(model, path)) == 2
    published = torch.load(path, map_location="cpu", weights_only=True)["state_dict"]
    check_loaded(model, {name.removeprefix("module."): value for name, value in published.items()})


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda value: value.mul(torch.nan), "NaN or infinite (1): fc.weight"),
        (lambda value: value.double().mul(1e300), "NaN or infinite (1): fc.weight"),  # float32 does not hold it
        (lambda value: value.to(torch.complex64), "complex (1): fc.weight"),
    ],
    ids=["nan", "too large", "complex"],
)
def test_weights_that_are_no_finite_real_numbers_are_refused(tmp_path, spoil, said):
    model = nn.Sequential()
    model.fc = nn.Linear(2, 2)
    torch.save({"fc.weight": spoil(torch.ones(2, 2)), "fc.bias": torch.zeros(2)}, tmp_path / "w.pt")
    with pytest.raises(UserError) as raised:
        load_weights(model, tmp_path / "w.pt", key="checkpoint")
    assert raised.value.key == "checkpoint" and said in str(raised.value)


def test_a_mask_may_be_infinite(tmp_path):
    model = nn.Linear(2, 2)
    model.register_buffer("mask", torch.full((2, 2), -torch.inf).triu(1))
    torch.save(model.state_dict(), tmp_path / "w.pt")
    assert load_weights(model, tmp_path / "w.pt") == []
