"""Settings of `qexp.study`; torch-free."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated

from annotated_types import Ge

from qexp.base.checks import Count, check_bounds


@dataclass(frozen=True, kw_only=True)
class StudyData:
    """Images of a study.

    Args:
        root: a tree of image files, train/<class>/* and test/<class>/*; None takes the bundled digits.
        mean: per channel on the 0-1 scale; ImageNet's unless given, as in document 002.
        std: per channel on the 0-1 scale; ImageNet's unless given.
        num_calib: training images for re-estimating batch norm.
    """

    root: str | None = None
    mean: list[float] = field(default_factory=lambda: [0.485, 0.456, 0.406])
    std: list[float] = field(default_factory=lambda: [0.229, 0.224, 0.225])
    num_calib: Annotated[int, Ge(2)] = 1000


@dataclass(frozen=True, kw_only=True)
class StudySettings:
    """One study.

    Args:
        name: of the study.
        checkpoint: a state-dict file of `model`; without it, a small network is trained on the bundled digits.
        model: name of the checkpoint's network.
        data: images of the checkpoint's network.
        num_images: of the test split that are scored.
        image: a file, for `fixed_point`; else a test image of `data.root`, else a bundled digit.
        results_dir: parent of the folder that is written.
    """

    name: str
    checkpoint: str | None = None
    model: str = "resnet20"
    data: StudyData = field(default_factory=StudyData)
    num_images: Count = 2000
    image: str | None = None
    results_dir: str = "results"

    def __post_init__(self) -> None:
        """Check the ranges."""
        check_bounds(self, "")
        check_bounds(self.data, "data")
