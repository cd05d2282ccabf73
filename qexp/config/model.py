"""Settings of the network; torch-free."""

from __future__ import annotations

import difflib
import re
from dataclasses import dataclass

from qexp.base.catalog import CUSTOM, Catalog, Info
from qexp.base.checks import Count, check_bounds
from qexp.base.errors import UserError
from qexp.config.later import later


@dataclass(frozen=True, kw_only=True)
class NetworkInfo(Info):
    """A network of ours.

    Args:
        name: as in `model=NAME`.
        summary: one line for people.
        code: import string of a class or function, `(num_classes=, in_channels=) -> torch.nn.Module`.
        num_parameters: for 10 classes and 3 channels; He et al. 2016, table 6, rounds these to millions.
    """

    num_parameters: int


def _cifar_resnet(depth: int, num_parameters: int) -> NetworkInfo:
    return NetworkInfo(
        name=f"resnet{depth}",
        summary=f"ResNet of {depth} layers for CIFAR, without parameters in its shortcuts (He et al. 2016).",
        code=f"qexp.models.cifar_resnet:resnet{depth}",
        num_parameters=num_parameters,
    )


NETWORKS = Catalog(
    "model",
    NetworkInfo,
    (
        _cifar_resnet(8, 75_290),
        _cifar_resnet(20, 269_722),
        _cifar_resnet(32, 464_154),
        _cifar_resnet(44, 658_586),
        _cifar_resnet(56, 853_018),
        _cifar_resnet(110, 1_727_962),
    ),
)
# torchvision's classification networks, here by name since its import takes seconds.
TORCHVISION: tuple[str, ...] = tuple(
    """
    alexnet convnext_base convnext_large convnext_small convnext_tiny densenet121 densenet161 densenet169 densenet201
    efficientnet_b0 efficientnet_b1 efficientnet_b2 efficientnet_b3 efficientnet_b4 efficientnet_b5 efficientnet_b6
    efficientnet_b7 efficientnet_v2_l efficientnet_v2_m efficientnet_v2_s googlenet inception_v3 maxvit_t mnasnet0_5
    mnasnet0_75 mnasnet1_0 mnasnet1_3 mobilenet_v2 mobilenet_v3_large mobilenet_v3_small regnet_x_16gf regnet_x_1_6gf
    regnet_x_32gf regnet_x_3_2gf regnet_x_400mf regnet_x_800mf regnet_x_8gf regnet_y_128gf regnet_y_16gf regnet_y_1_6gf
    regnet_y_32gf regnet_y_3_2gf regnet_y_400mf regnet_y_800mf regnet_y_8gf resnet101 resnet152 resnet18 resnet34 resnet50
    resnext101_32x8d resnext101_64x4d resnext50_32x4d shufflenet_v2_x0_5 shufflenet_v2_x1_0 shufflenet_v2_x1_5
    shufflenet_v2_x2_0 squeezenet1_0 squeezenet1_1 swin_b swin_s swin_t swin_v2_b swin_v2_s swin_v2_t vgg11 vgg11_bn vgg13
    vgg13_bn vgg16 vgg16_bn vgg19 vgg19_bn vit_b_16 vit_b_32 vit_h_14 vit_l_16 vit_l_32 wide_resnet101_2 wide_resnet50_2
    """.split()
)


def network_names() -> tuple[str, ...]:
    """Every value of `model.name`: our networks, `custom`, torchvision's."""
    return (*NETWORKS, CUSTOM, *TORCHVISION)


@dataclass(frozen=True, kw_only=True)
class ModelSettings:
    """Which network.

    Args:
        name: one of `NETWORKS`, a torchvision classification network, or `custom`.
        factory: `package.module:function` or `file.py:function` for `custom`; called with `num_classes` and `in_channels`
            as far as it takes them, returns a `torch.nn.Module`.
        weights: a state-dict file to start from (or `DEFAULT` for torchvision's own where there is a network).
        num_classes: None takes the data set's.
        weights_key: dotted name of the entry to take of a file with several sets of weights; None the one that fits.
    """

    name: str
    factory: str | None = None
    weights: str | None = None
    num_classes: Count | None = None
    weights_key: str | None = later(None)

    def __post_init__(self) -> None:
        """Check the ranges and what belongs together."""
        if self.name not in network_names():
            close = difflib.get_close_matches(self.name, network_names(), n=3, cutoff=0.6)
            remedy = f"Nearest: {', '.join(close)}." if close else ""
            raise UserError("model.name", self.name, allowed=_families(network_names()), remedy=remedy)
        check_bounds(self, "model")
        if self.name == CUSTOM and self.factory is None:
            raise UserError("model.factory", None, allowed="package.module:function or file.py:function")
        if self.name != CUSTOM and self.factory is not None:
            raise UserError("model.factory", self.factory, allowed="null", remedy="It belongs to model=custom.")

    @property
    def named(self) -> tuple[str, str]:
        """The key that chose the network, and what was given, for messages."""
        return ("model", self.name) if self.factory is None else ("model.factory", self.factory)


def _families(names: tuple[str, ...]) -> str:
    """All names, those with the same first letters folded into one: `vgg{11,11_bn,13}`."""
    groups: dict[str, list[str]] = {}
    for name in names:
        family = re.match("[a-z]+", name)
        assert family is not None, name
        groups.setdefault(family[0], []).append(name[family.end() :])
    folded = (stem + ("{" + ",".join(ends) + "}" if len(ends) > 1 else ends[0]) for stem, ends in groups.items())
    return "one of " + " ".join(folded)
