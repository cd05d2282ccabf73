"""Networks by name: seeds, shapes, what is refused."""

import random
from pathlib import Path
from urllib.error import URLError

import pytest
import torch
from torch import nn

from qexp.base.errors import UserError
from qexp.base.outputs import main_output
from qexp.base.torchvision_compat import torchvision
from qexp.config.model import NETWORKS, TORCHVISION, ModelSettings
from qexp.models.build import build_model

CONF = Path(__file__).parents[2] / "conf" / "model"
FACTORY = """
import torch
from torch import nn

def net(num_classes, in_channels=3):
    return nn.Sequential(nn.Conv2d(in_channels, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, num_classes))

def lazy(**options):
    return nn.Sequential(nn.Flatten(), nn.LazyLinear(options["num_classes"]))

def wrong_size():
    return nn.Sequential(nn.Flatten(), nn.LazyLinear(3))

def nothing():
    nn.Linear(1, 1)

def needs_more(width, num_classes):
    return nn.Linear(width, num_classes)

def breaks():
    raise KeyError("lost")
"""


def build(name, *, seed=0, image_shape=(3, 32, 32), num_classes=10, **settings):
    return build_model(ModelSettings(name=name, **settings), num_classes=num_classes, image_shape=image_shape, seed=seed)


def same(first, second):
    pairs = zip(first.state_dict().values(), second.state_dict().values(), strict=True)
    return all(torch.equal(a, b) for a, b in pairs)


@pytest.mark.parametrize("name", ["resnet20", "resnet18", "mobilenet_v3_small"])
def test_initialization_is_a_function_of_the_seed(name):
    first = build(name, seed=3)
    torch.rand(1)
    assert same(first, build(name, seed=3))
    assert not same(first, build(name, seed=4))
    assert all(module.training for module in first.modules())


def test_global_generators_are_left_alone(tmp_path):
    (tmp_path / "mine.py").write_text(FACTORY)
    before, python_before = torch.get_rng_state(), random.getstate()
    build("resnet20")
    build("custom", factory=f"{tmp_path}/mine.py:net")
    with pytest.raises(UserError):
        build("custom", factory=f"{tmp_path}/mine.py:wrong_size")
    assert torch.equal(torch.get_rng_state(), before)
    assert random.getstate() == python_before


def test_building_leaves_buffers_as_initialized():
    buffers = dict(build("resnet20").named_buffers())
    assert buffers["bn1.running_mean"].abs().sum() == 0
    assert buffers["bn1.num_batches_tracked"] == 0


@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v2", "shufflenet_v2_x0_5", "squeezenet1_1", "googlenet", "mnasnet0_5"])
@pytest.mark.parametrize("shape", [(1, 28, 28), (5, 64, 64)])
def test_torchvision_networks_take_channels_and_classes(name, shape):
    model = build(name, image_shape=shape, num_classes=7).eval()
    assert model(torch.randn(2, *shape)).shape == (2, 7)


def test_auxiliary_outputs_in_training():
    model = build("googlenet", image_shape=(3, 64, 64))
    output = model(torch.randn(2, 3, 64, 64))
    assert not isinstance(output, torch.Tensor)
    assert main_output(output).shape == (2, 10)
    small = build("inception_v3", image_shape=(3, 75, 75))
    assert main_output(small(torch.randn(2, 3, 75, 75))).shape == (2, 10)


def test_transformer_is_built_for_the_image_size():
    assert build("vit_b_32", image_shape=(3, 64, 64)).image_size == 64
    for shape, reason in [((3, 33, 33), "indivisible"), ((3, 32, 64), "square")]:
        with pytest.raises(UserError, match=reason):
            build("vit_b_32", image_shape=shape)


def test_images_too_small_name_network_and_size():
    with pytest.raises(UserError, match="model=alexnet: allowed is a network that takes images of 3 x 16 x 16"):
        build("alexnet", image_shape=(3, 16, 16))


def test_num_classes_of_the_settings_go_first():
    assert build("resnet20", num_classes=10).linear.out_features == 10
    model = build_model(ModelSettings(name="resnet20", num_classes=100), num_classes=10, image_shape=(3, 32, 32), seed=0)
    assert model.linear.out_features == 100


def test_unknown_name_lists_the_choices():
    with pytest.raises(UserError) as caught:
        build("resnet201")
    text = str(caught.value)
    assert "model.name=resnet201" in text and "Nearest: resnet" in text
    assert "resnet{8,20,32,44,56,110," in text and "vgg{11,11_bn," in text and "custom" in text


def test_torchvisions_networks_are_listed_without_importing_it():
    models = torchvision().models
    assert tuple(models.list_models(module=models)) == TORCHVISION


@pytest.mark.parametrize("name", NETWORKS)
def test_our_networks_have_as_many_parameters_as_their_rows_say(name):
    assert sum(parameter.numel() for parameter in build(name).parameters()) == NETWORKS[name].num_parameters


def test_custom_network(tmp_path):
    (tmp_path / "mine.py").write_text(FACTORY)
    first = build("custom", factory=f"{tmp_path}/mine.py:net", image_shape=(1, 28, 28), num_classes=5)
    assert first(torch.zeros(2, 1, 28, 28)).shape == (2, 5)
    assert same(first, build("custom", factory=f"{tmp_path}/mine.py:net", image_shape=(1, 28, 28), num_classes=5))
    lazy = build("custom", factory=f"{tmp_path}/mine.py:lazy", image_shape=(1, 4, 4), num_classes=5)
    assert lazy[1].weight.shape == (5, 16)
    assert isinstance(build("custom", factory="torch.nn:Flatten", image_shape=(1, 1, 10)), nn.Flatten)


@pytest.mark.parametrize(
    ("function", "message"),
    [
        ("wrong_size", r"returns \[N, 10\] for 10 classes. For 2 images it returned \[2, 3\]"),
        ("nothing", "returns a torch.nn.Module. It returned None"),
        ("needs_more", "Give width a default"),
        ("breaks", r"Calling it raised KeyError: 'lost' \(.*mine.py:21\)"),
        ("nett", "Did you mean net?"),
    ],
)
def test_custom_mistakes(tmp_path, function, message):
    (tmp_path / "mine.py").write_text(FACTORY)
    with pytest.raises(UserError, match=message):
        build("custom", factory=f"{tmp_path}/mine.py:{function}")


def test_default_weights(monkeypatch):
    """The published classifier is kept for 1000 classes and replaced for others; the rest is the published one."""
    models = torchvision().models
    torch.manual_seed(9)
    published = models.squeezenet1_1().state_dict()
    kind = models.get_model_weights("squeezenet1_1")
    monkeypatch.setattr(kind, "get_state_dict", lambda self, *args, **kwargs: published)
    model = build("squeezenet1_1", weights="DEFAULT", num_classes=1000, image_shape=(3, 64, 64))
    assert same(model, models.get_model("squeezenet1_1", weights="DEFAULT"))
    tuned = build("squeezenet1_1", weights="DEFAULT", num_classes=7, image_shape=(3, 64, 64)).state_dict()
    assert tuned["classifier.1.weight"].shape == (7, 512, 1, 1)
    assert all(torch.equal(value, published[name]) for name, value in tuned.items() if not name.startswith("classifier."))


def test_a_forward_that_ends_the_process_is_refused(tmp_path):
    text = "import sys\nfrom torch import nn\nclass Exits(nn.Module):\n    def forward(self, x, **_):\n        sys.exit(0)\n"
    (tmp_path / "exits.py").write_text(text + "def make(num_classes):\n    return Exits()\n")
    with pytest.raises(UserError, match="code of yours called sys.exit"):
        build("custom", factory=f"{tmp_path / 'exits.py'}:make")


def test_default_weights_mistakes(monkeypatch):
    def offline(*args, **kwargs):
        raise URLError("no route to host")

    monkeypatch.setattr(torch.hub, "download_url_to_file", offline)
    monkeypatch.setattr(torch.hub, "get_dir", lambda: "/nonexistent-cache")
    monkeypatch.setattr("os.makedirs", lambda *args, **kwargs: None)
    with pytest.raises(UserError, match="model.pretrained=true: allowed is weights that can be downloaded.*no route to host"):
        build("resnet18", weights="DEFAULT")
    with pytest.raises(UserError, match="images of 1 channels"):
        build("resnet18", weights="DEFAULT", image_shape=(1, 28, 28))
    with pytest.raises(UserError, match="No weights ship with resnet20"):
        build("resnet20", weights="DEFAULT")


def test_a_choice_composes_to_all_settings(compose):
    values = compose("model=resnet20")["model"]
    unset = {"factory": None, "weights": None, "num_classes": None, "pretrained": False, "library": None, "weights_key": None}
    assert values == {"name": "resnet20", **unset}
    assert ModelSettings(**values) == ModelSettings(name="resnet20")
