"""Augmentations of training images by name, as the official code of the supervised detectors makes them.

A recipe lists them in order (`settings.augment`): pixels in, pixels out, every draw from the stream that is given.

    augment:
      - {resize: 256}
      - {blur: {p: 0.5, sigma: [0, 3]}}
      - {jpeg: {p: 0.5, encoders: [cv2, pil], quality: [30, 100]}}
      - {crop: 224}
      - {flip: 0.5}

Source: CNNDetection at ea0b562, data/datasets.py (resize, blur, JPEG, crop, flip, in this order); LGrad, Ojha23 and
others took it over.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from harness.api.errors import ConfigError, DataError

Pixels = np.ndarray
Augmentation = Callable[[Pixels, np.random.Generator], Pixels]


class _Options(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Blur(_Options):
    """With probability ``p`` a Gaussian blur, ``sigma`` drawn uniformly.

    SciPy's filter with an 8-bit output, a channel at a time: each of its two passes cuts to whole grey levels, which
    makes the image up to two levels darker. That is a trace that the released detectors learnt with.
    """

    p: float = Field(default=0.5, ge=0, le=1)
    sigma: tuple[float, float] = (0.0, 3.0)

    @model_validator(mode="after")
    def _ordered(self) -> Blur:
        if not 0 <= self.sigma[0] <= self.sigma[1] <= 100:
            raise ValueError("sigma is [least, greatest], from 0 to 100")
        return self


class Jpeg(_Options):
    """With probability ``p`` one pass through a JPEG encoder drawn of ``encoders``, whole ``quality`` drawn uniformly,
    both ends among it."""

    p: float = Field(default=0.5, ge=0, le=1)
    encoders: tuple[Literal["cv2", "pil"], ...] = Field(default=("cv2", "pil"), min_length=1)
    quality: tuple[int, int] = (30, 100)

    @model_validator(mode="after")
    def _ordered(self) -> Jpeg:
        if not 1 <= self.quality[0] <= self.quality[1] <= 100:
            raise ValueError("quality is [least, greatest], from 1 to 100")
        return self


class Resize(_Options):
    """The shorter side to ``size``, or with ``square`` both; by Pillow's ``filter`` (antialiased)."""

    size: int = Field(gt=0, le=8192)
    square: bool = False
    filter: Literal["bilinear", "bicubic", "lanczos", "nearest"] = "bilinear"


class Crop(_Options):
    """A place of ``size`` x ``size`` drawn uniformly; an image that is smaller is an error."""

    size: int = Field(gt=0, le=8192)


class Flip(_Options):
    """Mirrored left to right with probability ``p``."""

    p: float = Field(default=0.5, ge=0, le=1)


def blur(pixels: Pixels, rng: np.random.Generator, options: Blur) -> Pixels:
    """See `Blur`."""
    from scipy.ndimage import gaussian_filter

    if rng.random() >= options.p:
        return pixels
    sigma, out = rng.uniform(*options.sigma), pixels.copy()
    for channel in range(out.shape[2]):
        gaussian_filter(out[:, :, channel], output=out[:, :, channel], sigma=sigma)
    return out


def jpeg(pixels: Pixels, rng: np.random.Generator, options: Jpeg) -> Pixels:
    """See `Jpeg`."""
    if rng.random() >= options.p:
        return pixels
    quality = int(rng.integers(options.quality[0], options.quality[1] + 1))
    encoder = options.encoders[int(rng.integers(len(options.encoders)))]
    return jpeg_pass(pixels, encoder, quality)


def jpeg_pass(pixels: Pixels, encoder: str, quality: int) -> Pixels:
    """Pixels after one JPEG file: OpenCV's encoder, or Pillow's with its default subsampling."""
    if encoder == "cv2":
        import cv2

        done, data = cv2.imencode(".jpg", pixels[:, :, ::-1], [cv2.IMWRITE_JPEG_QUALITY, quality])
        if not done:
            raise DataError("OpenCV cannot encode these pixels")
        decoded: Any = cv2.imdecode(data, cv2.IMREAD_COLOR)
        return np.ascontiguousarray(decoded[:, :, ::-1])
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG", quality=quality)
    with Image.open(buffer, formats=("JPEG",)) as image:
        return np.array(image)


def resize(pixels: Pixels, rng: np.random.Generator, options: Resize) -> Pixels:
    """See `Resize`; the longer side is cut to a whole number of pixels, as torchvision does."""
    from PIL import Image

    height, width = pixels.shape[:2]
    short = min(height, width)
    sizes = [
        options.size if options.square or side == short else options.size * side // short for side in (width, height)
    ]
    if sizes == [width, height]:
        return pixels
    return np.array(Image.fromarray(pixels).resize((sizes[0], sizes[1]), Image.Resampling[options.filter.upper()]))


def crop(pixels: Pixels, rng: np.random.Generator, options: Crop) -> Pixels:
    """See `Crop`."""
    height, width = pixels.shape[:2]
    if min(height, width) < options.size:
        raise DataError(f"an image of {width}x{height} is smaller than the crop of {options.size}", fix="resize before")
    top, left = (int(rng.integers(side - options.size + 1)) for side in (height, width))
    return pixels[top : top + options.size, left : left + options.size]


def flip(pixels: Pixels, rng: np.random.Generator, options: Flip) -> Pixels:
    """See `Flip`."""
    return pixels[:, ::-1] if rng.random() < options.p else pixels


_KINDS: dict[str, tuple[type[_Options], str, Callable[..., Pixels]]] = {
    "resize": (Resize, "size", resize),
    "blur": (Blur, "p", blur),
    "jpeg": (Jpeg, "p", jpeg),
    "crop": (Crop, "size", crop),
    "flip": (Flip, "p", flip),
}


def augmentations(entries: Sequence[Mapping[str, Any]]) -> Augmentation:
    """One function of a recipe's list; each entry is ``{name: options}``, or ``{name: value}`` of the main option.

    Raises:
        ConfigError: an unknown name or option, or a value that cannot be meant.
    """
    steps = [_one(entry, number) for number, entry in enumerate(entries, 1)]

    def apply(pixels: Pixels, rng: np.random.Generator) -> Pixels:
        for step in steps:
            pixels = step(pixels, rng)
        return np.ascontiguousarray(pixels)

    return apply


def _one(entry: Mapping[str, Any], number: int) -> Augmentation:
    where = f"settings.augment, entry {number}"
    if not isinstance(entry, Mapping) or len(entry) != 1:
        raise ConfigError(f"{entry!r} is no augmentation", where, "write one name with its options, as {flip: 0.5}")
    ((name, value),) = entry.items()
    if name not in _KINDS:
        raise ConfigError(f"unknown augmentation {name!r}", where, f"use one of: {', '.join(_KINDS)}")
    options, main, function = _KINDS[name]
    try:
        settled = options(**(value if isinstance(value, Mapping) else {main: value}))
    except ValidationError as error:
        first = error.errors()[0]
        said = f"{'.'.join(map(str, first['loc'])) or name}: {first['msg'].removeprefix('Value error, ')}"
        raise ConfigError(said, f"{where} ({name})", f"options: {', '.join(options.model_fields)}") from None
    return partial(function, options=settled)
