"""What the images and labels of every data set are held to, whatever they come from, as soon as they are loaded.

What a job asks of its splits (images that are both trained on and scored, classes that are not trained) is in
`qexp.experiment.data_checks`.
"""

from __future__ import annotations

from typing import get_args

from qexp.base.errors import UserError
from qexp.config.data import DataSettings
from qexp.data.bundle import ImageStore
from qexp.data.splits import Part

_LAST = (1, 3, 4)  # channels of images that are laid out [N, H, W, C]


def check_source(store: ImageStore, settings: DataSettings) -> None:
    """Raise UserError for images whose channels stand last, labels that are no classes, and sets of one class.

    Args:
        store: as its loader gives it, before it is resized.
        settings: of the set.
    """
    key, value = settings.source
    channels, height, width = store.image_shape
    if width in _LAST and min(channels, height) > max(_LAST):
        remedy = f"They are [N, {channels}, {height}, {width}], which reads as {width} channels last: transpose(0, 3, 1, 2)."
        raise UserError(key, value, allowed="images [N, C, H, W]", remedy=remedy)
    num_classes = len(store.class_names)
    if settings.num_classes is not None:
        num_classes = min(num_classes, settings.num_classes)
    for part in get_args(Part):
        if store.num_images(part):
            low, high = (int(end) for end in store.labels(part).aminmax())
            if low < 0 or high >= num_classes:
                remedy = f"Those of the {part} part go from {low} to {high}."
                raise UserError(key, value, allowed=f"labels from 0 to {num_classes - 1}", remedy=remedy)
    if num_classes < 2:
        raise UserError(key, value, allowed="a set of at least 2 classes", remedy="Of one class every prediction is right.")
