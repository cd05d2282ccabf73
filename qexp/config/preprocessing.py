"""How an image file becomes the pixels that a network sees: resize, crop, normalize; torch-free.

It belongs to the protocol: a network scored with another resize than it was trained for loses points that look like
quantization's. A pretrained network knows its own, a data set may have one, and the user's keys go before both.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Crop = Literal["none", "center", "tensorflow"]
Interpolation = Literal["nearest", "bilinear", "bicubic", "lanczos"]
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@dataclass(frozen=True, kw_only=True)
class Preprocessing:
    """Resize, crop and normalization of evaluation.

    Args:
        image_size: height and width in pixels of what the network sees; None leaves images as they are.
        resize: pixels of the shorter side before the central crop of `crop=center`; None otherwise.
        crop: `none` resizes to `image_size` both ways, whatever the shape; `center` resizes the shorter side to `resize` and
            cuts the centre; `tensorflow` cuts the centre, `image_size / (image_size + 32)` of the shorter side, and resizes that
            to `image_size` (Google's `preprocess_for_eval`).
        interpolation: of the resize.
        antialias: False samples without a low-pass filter, as TensorFlow and OpenCV do.
        mean: per channel, 0-1 scale; None measures it on the training images.
        std: per channel, 0-1 scale.
    """

    image_size: int | None = None
    resize: int | None = None
    crop: Crop = "none"
    interpolation: Interpolation = "bilinear"
    antialias: bool = True
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None

    def resized(self, image_size: int | None) -> Preprocessing:
        """The same for another size of image: the shorter side before the crop grows with it."""
        if image_size is None or self.image_size in (None, image_size):
            return self if image_size is None else Preprocessing(**{**vars(self), "image_size": image_size})
        resize = None if self.resize is None or self.image_size is None else round(self.resize / self.image_size * image_size)
        return Preprocessing(**{**vars(self), "image_size": image_size, "resize": resize})
