"""Blocks that detectors build their preprocess stage from: uint8 pixels in, float32 tensor out.

A `Chain` of frozen blocks maps pixels [H, W, 3] uint8 RGB to a tensor [3, h, w] float32. `Resize` and `CenterCrop`
work on pixels and give pixels; `TensorResize` and `Normalise` work on tensors and take pixels too, as value / 255
(torchvision's ToTensor). Blocks are values: equal settings are equal objects with one stable `repr`, fit for keys.
torch is imported when a block is first called.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple, Protocol, cast

import numpy as np

from harness.api.errors import ConfigError, DataError

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor

    Pixels = NDArray[np.uint8]

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)

FILTERS = ("nearest", "box", "bilinear", "hamming", "bicubic", "lanczos")
"""Names of Pillow's resampling filters."""


class Block(Protocol):
    """One step: pixels [H, W, 3] uint8 or a tensor [3, H, W] float32 in, either of them out."""

    def __call__(self, image: Pixels | Tensor, /) -> Pixels | Tensor:
        """The image after this step."""
        ...


class Taps(NamedTuple):
    """The two source positions and weights of every output position of a bilinear resize along one axis.

    Shapes: `first`, `second` [out] int64; `weight_first`, `weight_second` [out] float32, summing to 1.
    """

    first: NDArray[np.int64]
    second: NDArray[np.int64]
    weight_first: NDArray[np.float32]
    weight_second: NDArray[np.float32]


@functools.lru_cache(maxsize=4096)
def bilinear_taps(size_in: int, size_out: int) -> Taps:
    """Taps of ``F.interpolate(mode="bilinear", align_corners=False, antialias=False)`` along one axis.

    The source coordinate is scale * (i + 0.5) - 0.5 with a float32 scale and *one* rounding to float32, as torch's
    CPU kernels compute it (a fused multiply-add). Two roundings move it by up to 3e-5 pixels, and with it the output.
    """
    scale = np.float64(np.float32(size_in) / np.float32(size_out))
    position = (scale * (np.arange(size_out, dtype=np.float64) + 0.5) - 0.5).astype(np.float32)
    position = np.maximum(position, np.float32(0))
    first = np.minimum(position.astype(np.int64), size_in - 1)
    second = np.minimum(first + 1, size_in - 1)
    weight_second = np.clip(position - first.astype(np.float32), 0, 1).astype(np.float32)
    taps = Taps(first, second, np.float32(1) - weight_second, weight_second)
    for array in taps:
        array.setflags(write=False)
    return taps


def _is_pixels(image: object) -> bool:
    return isinstance(image, np.ndarray)


def check_pixels(pixels: Pixels) -> Pixels:
    """`pixels` itself if it is a non-empty [H, W, 3] uint8 array; `DataError` otherwise."""
    if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[2] != 3 or 0 in pixels.shape:
        raise DataError(
            f"expected pixels [H, W, 3] uint8, got shape {pixels.shape} of {pixels.dtype}",
            fix="decode images with harness.api.images.decode",
        )
    return pixels


def to_tensor(image: Pixels | Tensor) -> Tensor:
    """[3, H, W] float32 in [0, 1] from pixels (value / 255); a float32 tensor passes through."""
    import torch

    if not _is_pixels(image):
        return cast("Tensor", image)
    pixels = check_pixels(cast("Pixels", image))
    planes = np.ascontiguousarray(pixels.transpose(2, 0, 1)).astype(np.float32)
    planes /= np.float32(255)
    return torch.from_numpy(planes)


def _bilinear_of_pixels(pixels: Pixels, height: int, width: int) -> Tensor:
    """[3, height, width] float32: only the source pixels that have weight are gathered and converted.

    The four products are added in the order, and with the fused additions, of torch's kernel for three channels.
    """
    import torch

    rows = bilinear_taps(pixels.shape[0], height)
    columns = bilinear_taps(pixels.shape[1], width)
    picked = np.take(pixels, np.concatenate([rows.first, rows.second]), axis=0)
    picked = np.take(picked, np.concatenate([columns.first, columns.second]), axis=1)
    num = 3 * width
    values = torch.from_numpy(picked).float().div_(255).view(2 * height, 2 * num)
    upper, lower = values[:height], values[height:]
    left, right = (torch.from_numpy(np.repeat(w, 3)) for w in (columns.weight_first, columns.weight_second))
    top, bottom = (torch.from_numpy(w[:, None].copy()) for w in (rows.weight_first, rows.weight_second))
    out = upper[:, num:] * (top * right)
    out.addcmul_(upper[:, :num], top * left)
    out.addcmul_(lower[:, :num], bottom * left)
    out.addcmul_(lower[:, num:], bottom * right)
    return out.view(height, width, 3).permute(2, 0, 1).contiguous()


@dataclass(frozen=True, slots=True)
class TensorResize:
    """Bilinear resize of the float tensor (value / 255) to a fixed size, aspect ratio ignored.

    Attributes:
        size: side of the square result, or (height, width).
        antialias: widen the filter when shrinking. False is torchvision 0.14's tensor resize, which the released
            code used (FIDELITY `resize_antialias`); it moves every feature of an image larger than the result.

    Equal to ``F.interpolate(mode="bilinear", align_corners=False, antialias=antialias)`` on the CPU to 1e-6.
    Source: AIGFD_BLO@5f26ede, transforms of the training set and of OC_GMM.py (METHOD "Preprocessing").
    """

    size: int | tuple[int, int]
    antialias: bool = False

    def __post_init__(self) -> None:
        _check_sides(self.size, "TensorResize.size")

    def __call__(self, image: Pixels | Tensor) -> Tensor:
        """[3, h, w] float32 from pixels [H, W, 3] uint8 or a tensor [3, H, W] float32."""
        from torch.nn.functional import interpolate

        height, width = (self.size, self.size) if isinstance(self.size, int) else self.size
        if _is_pixels(image) and not self.antialias:
            return _bilinear_of_pixels(check_pixels(cast("Pixels", image)), height, width)
        batch = to_tensor(image)[None]
        return interpolate(batch, (height, width), mode="bilinear", align_corners=False, antialias=self.antialias)[0]


@dataclass(frozen=True, slots=True)
class Resize:
    """Pillow resize of the pixels (antialiased), as torchvision's Resize of a PIL image.

    Attributes:
        size: an int makes the shorter side that long, the longer int(size * long / short); (height, width) is
            taken as it stands, aspect ratio ignored.
        filter: one of `FILTERS`.
    """

    size: int | tuple[int, int]
    filter: str = "bilinear"

    def __post_init__(self) -> None:
        _check_sides(self.size, "Resize.size")
        if self.filter not in FILTERS:
            raise ConfigError(f"unknown filter {self.filter!r}", "Resize.filter", f"one of {', '.join(FILTERS)}")

    def __call__(self, image: Pixels | Tensor) -> Pixels:
        """Pixels [h, w, 3] uint8 from pixels [H, W, 3] uint8."""
        from PIL import Image

        pixels = _need_pixels(image, "Resize")
        height, width = pixels.shape[:2]
        if isinstance(self.size, int):
            short, long = min(height, width), max(height, width)
            new_long = int(self.size * long / short)
            new_height, new_width = (self.size, new_long) if height <= width else (new_long, self.size)
        else:
            new_height, new_width = self.size
        if (new_height, new_width) == (height, width):
            return pixels
        resample = Image.Resampling[self.filter.upper()]
        return np.array(Image.fromarray(pixels).resize((new_width, new_height), resample))


@dataclass(frozen=True, slots=True)
class CenterCrop:
    """The middle of the image; black is added first where the image is smaller.

    Attributes:
        size: side of the square, or (height, width).

    Offsets as torchvision 0.29: padding floor((size - side) / 2) left and top, the rest right and bottom; crop at
    round((side - size) / 2), half to even (301 -> 224 starts at 38, 247 -> 224 at 12).
    """

    size: int | tuple[int, int]

    def __post_init__(self) -> None:
        _check_sides(self.size, "CenterCrop.size")

    def __call__(self, image: Pixels | Tensor) -> Pixels:
        """Pixels [h, w, 3] uint8 from pixels [H, W, 3] uint8."""
        pixels = _need_pixels(image, "CenterCrop")
        height, width = (self.size, self.size) if isinstance(self.size, int) else self.size
        lack = [max(height - pixels.shape[0], 0), max(width - pixels.shape[1], 0)]
        if any(lack):
            pixels = np.pad(pixels, [(n // 2, n - n // 2) for n in lack] + [(0, 0)])
        top = round((pixels.shape[0] - height) / 2)
        left = round((pixels.shape[1] - width) / 2)
        return np.ascontiguousarray(pixels[top : top + height, left : left + width])


@dataclass(frozen=True, slots=True)
class Normalise:
    """(value - mean) / std of each channel, on values in [0, 1]."""

    mean: tuple[float, float, float]
    std: tuple[float, float, float]

    def __post_init__(self) -> None:
        if len(self.mean) != 3 or len(self.std) != 3 or min(self.std) <= 0:
            raise ConfigError("mean and std need three values each, std above 0", "Normalise", "one value a channel")

    def __call__(self, image: Pixels | Tensor) -> Tensor:
        """[3, H, W] float32 from pixels [H, W, 3] uint8 or a tensor [3, H, W] float32 (left unchanged)."""
        import torch

        tensor = to_tensor(image)
        mean = torch.tensor(self.mean, dtype=torch.float32)[:, None, None]
        std = torch.tensor(self.std, dtype=torch.float32)[:, None, None]
        return (tensor - mean).div_(std)


@dataclass(frozen=True, slots=True)
class Chain:
    """Blocks one after another; what is still pixels at the end becomes a tensor in [0, 1].

    Attributes:
        blocks: the steps in order; none means the whole image at its own size.
    """

    blocks: tuple[Block, ...] = ()

    def __call__(self, image: Pixels | Tensor) -> Tensor:
        """[3, h, w] float32 from pixels [H, W, 3] uint8."""
        for block in self.blocks:
            image = block(image)
        return to_tensor(image)


def resize_batch(
    images: Sequence[Pixels], size: int, mean: tuple[float, float, float], std: tuple[float, float, float]
) -> Tensor:
    """Images [h, w, 3] uint8 of any sizes as [B, 3, size, size] float32, resized and normalised.

    Equal to `TensorResize` without antialias followed by `Normalise`, to 1e-5: bilinear weights sum to 1, so that
    normalising first gives the same, and touches fewer pixels where images grow. One image at a time, since the
    crops of a batch differ in size; torch's kernel on planes was the fastest of what keeps torch's own positions
    (docs/benchmarks.md, "Training batches": OpenCV's resize takes half the time and moves sharp edges by 1e-4).
    """
    import torch
    from torch.nn import functional as F

    scale = torch.tensor(1 / (255 * np.asarray(std)), dtype=torch.float32).view(3, 1, 1)
    offset = torch.tensor(np.asarray(mean) / std, dtype=torch.float32).view(3, 1, 1)
    out = torch.empty(len(images), 3, size, size)
    for place, pixels in zip(out, images, strict=True):
        values = torch.from_numpy(check_pixels(pixels).transpose(2, 0, 1).astype(np.float32))
        values.mul_(scale).sub_(offset)
        if pixels.shape[:2] == (size, size):
            place.copy_(values)
        else:
            place.copy_(F.interpolate(values[None], size=(size, size), mode="bilinear", align_corners=False)[0])
    return out


def fdf_crop(pixels: Pixels, box: Sequence[float], scale: float = 1.3) -> Pixels:
    """The face crop of a training image [h, w, 3] uint8; may be non-square at the image's far border.

    Args:
        pixels: [H, W, 3] uint8 (FDF: 128 x 128).
        box: x0, y0, x1, y1 as fractions of width and height.
        scale: the crop's side is int(scale * the longer side of the rounded box).

    Source: AIGFD_BLO@5f26ede, training data set (METHOD "Preprocessing", "Training images").

    Raises:
        DataError: a box that is not four ascending finite fractions, or that leaves no pixel.
    """
    height, width = check_pixels(pixels).shape[:2]
    x0, y0, x1, y1 = (_rounded(value, side) for value, side in zip(box, (width, height, width, height), strict=True))
    side = int(max(x1 - x0, y1 - y0) * scale)
    left = max((x0 + x1) // 2 - side // 2, 0)
    top = max((y0 + y1) // 2 - side // 2, 0)
    crop = pixels[top : top + side, left : left + side] if side > 0 else pixels[:0]
    if 0 in crop.shape:
        raise DataError(f"the bounding box {tuple(box)} leaves no pixel of {width}x{height}", fix="mend the box")
    return crop


def _rounded(fraction: float, side: int) -> int:
    if not np.isfinite(fraction):
        raise DataError(f"a bounding box holds {fraction}", fix="four finite fractions x0, y0, x1, y1")
    return round(fraction * side)


def _need_pixels(image: Pixels | Tensor, block: str) -> Pixels:
    if not _is_pixels(image):
        raise ConfigError(f"{block} works on pixels but follows a block that gives a tensor", block, "move it forward")
    return check_pixels(cast("Pixels", image))


def _check_sides(size: int | tuple[int, int], where: str) -> None:
    sides = (size,) if isinstance(size, int) else tuple(size)
    if isinstance(size, bool) or len(sides) not in (1, 2) or not all(isinstance(s, int) and s > 0 for s in sides):
        raise ConfigError(f"{size!r} is no size", where, "a whole number above 0, or (height, width)")
