"""Hu21: in a photograph the light's reflections in both eyes are alike; nothing is learned."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal

import numpy as np
from pydantic import Field

from harness.api.contract import (
    Abstain,
    Detector,
    DetectorOptions,
    Extractor,
    Facts,
    Head,
    Preprocess,
    QuantileThreshold,
    ThresholdRule,
    Weights,
    WeightsFile,
)
from harness.api.heads import IdentityHead
from harness.api.preprocess import check_pixels

if TYPE_CHECKING:
    from torch import Tensor

    from detectors.hu21_steps import Eye

OUTSIDE = -1.0
"""What fills the eyes' planes beyond their crop."""


class Hu21Options(DetectorOptions):
    """Options of Hu21.

    Attributes:
        landmarks: `file`: 68 points in `<image>.json` or `<image>.npy` beside the image (format:
            `detectors.hu21_landmarks`); an image without is left undecided. `dlib`: found by dlib, as the authors do;
            dlib must be installed, and its predictor is the slot `landmarks`.
        fpr: share of the calibration photographs that the threshold rejects.
    """

    landmarks: Literal["file", "dlib"] = "file"
    fpr: float = Field(default=0.05, gt=0, lt=1)


def pack_eyes(left: Eye, right: Eye) -> Tensor:
    """Two eyes as one tensor `[8, H, W]` float32: red, green, blue (0..255) and mask (0, 1) of the left, then of the
    right; each at the top left, −1 beyond its crop."""
    import torch

    height, width = (max(eye.mask.shape[axis] for eye in (left, right)) for axis in (0, 1))
    out = np.full((8, height, width), OUTSIDE, np.float32)
    for eye, planes in ((left, out[:4]), (right, out[4:])):
        h, w = eye.mask.shape
        planes[:3, :h, :w] = eye.crop.transpose(2, 0, 1)
        planes[3, :h, :w] = eye.mask
    return torch.from_numpy(out)


def unpack_eyes(planes: np.ndarray) -> tuple[Eye, Eye]:
    """The two eyes of `pack_eyes`."""
    from detectors.hu21_steps import Eye

    def one(part: np.ndarray) -> Eye:
        inside = part[3] != OUTSIDE
        h, w = int(inside[:, 0].sum()), int(inside[0].sum())
        crop = np.ascontiguousarray(part[:3, :h, :w].transpose(1, 2, 0)).astype(np.uint8)
        return Eye(crop, part[3, :h, :w] == 1)

    return one(planes[:4]), one(planes[4:])


@dataclass(frozen=True)
class EyesByFile(Preprocess):
    """The two eye crops at the image's own resolution, by the landmarks file beside the image."""

    def sidecar(self, image: Path) -> Path | None:
        """The landmarks file."""
        from detectors.hu21_landmarks import landmarks_file

        return landmarks_file(image)

    def __call__(self, pixels: np.ndarray, sidecar: Path | None = None) -> Tensor:
        """`[8, H, W]` float32 (`pack_eyes`) of pixels `[H, W, 3]` uint8.

        Raises:
            Abstain: no landmarks file, no single face by it, or an eye without extent.
            DataError: a landmarks file that cannot be read.
        """
        from detectors.hu21_landmarks import read_landmarks
        from detectors.hu21_steps import Undecided, eye_of

        if sidecar is None:
            raise Abstain
        image = check_pixels(pixels)
        points = read_landmarks(sidecar, width=image.shape[1], height=image.shape[0])
        try:
            return pack_eyes(eye_of(image, points[36:42]), eye_of(image, points[42:48]))
        except Undecided as error:
            raise Abstain from error


@dataclass(frozen=True)
class WholeImage(Preprocess):
    """The image as it is, in 8-bit values."""

    def __call__(self, pixels: np.ndarray, sidecar: Path | None = None) -> Tensor:
        """`[3, H, W]` float32, 0..255, of pixels `[H, W, 3]` uint8."""
        import torch

        planes = np.ascontiguousarray(check_pixels(pixels).transpose(2, 0, 1)).astype(np.float32)
        return torch.from_numpy(planes)


def inconsistency(left: Eye, right: Eye) -> float:
    """1 − the highlights' intersection over union; NaN where the method is undecided."""
    from detectors.hu21_steps import Undecided, overlap_of

    try:
        return 1.0 - overlap_of(left, right).iou
    except Undecided:
        return float("nan")


@dataclass(frozen=True)
class HighlightsOfEyes(Extractor):
    """1 − the overlap of both eyes' highlights `[N, 1]`, NaN where undecided, from the eyes' planes.

    Source: `detectors.hu21_steps`.
    """

    micro_batch: ClassVar[int] = 1

    @property
    def dim(self) -> int:
        """1."""
        return 1

    @property
    def num_parameters(self) -> int | None:
        """0: nothing is learnt."""
        return 0

    def load(self, weights: Weights, device: str) -> Callable[[Tensor], Tensor]:
        """A function `[B, 8, H, W]` → `[B, 1]` float32; it works on the CPU."""
        import torch

        def run(eyes: Tensor) -> Tensor:
            values = [inconsistency(*unpack_eyes(planes)) for planes in eyes.cpu().numpy()]
            return torch.tensor(values, dtype=torch.float32)[:, None]

        return run


@dataclass(frozen=True)
class HighlightsByDlib(HighlightsOfEyes):
    """The same from whole images, with dlib's landmarks; not exactly one face: undecided."""

    slots: ClassVar[tuple[str, ...]] = ("landmarks",)

    @property
    def num_parameters(self) -> int | None:
        """Not stated: those of dlib's face finder and of its predictor, regression trees."""
        return None

    def load(self, weights: Weights, device: str) -> Callable[[Tensor], Tensor]:
        """A function `[B, 3, H, W]` (0..255) → `[B, 1]` float32; it works on the CPU.

        Raises:
            ConfigError: dlib is not installed.
            WeightsError: the predictor is absent or unreadable.
        """
        import torch

        from detectors.hu21_landmarks import dlib_finder
        from detectors.hu21_steps import Undecided, eye_of

        find = dlib_finder(weights["landmarks"])

        def one(pixels: np.ndarray) -> float:
            try:
                points = find(pixels)
                return inconsistency(eye_of(pixels, points[36:42]), eye_of(pixels, points[42:48]))
            except (Abstain, Undecided):
                return float("nan")

        def run(images: Tensor) -> Tensor:
            pixels = images.cpu().numpy().astype(np.uint8).transpose(0, 2, 3, 1)
            return torch.tensor([one(np.ascontiguousarray(p)) for p in pixels], dtype=torch.float32)[:, None]

        return run


class Hu21(Detector):
    """Hu21 (Hu, Li, Lyu, ICASSP 2021): score = 1 − overlap of the two eyes' corneal highlights."""

    name = "hu21"
    facts = Facts(
        title="Hu21",
        citation=(
            "Shu Hu, Yuezun Li, Siwei Lyu: Exposing GAN-Generated Faces Using Inconsistent Corneal Specular "
            "Highlights. ICASSP 2021."
        ),
        code="https://github.com/discovershu/gan_detect_iris (read at cf1db0b)",
        licence="none stated; dlib's predictor was trained on iBUG 300-W, not for commercial use",
        published_row="Hu21",
        notes=(
            "nothing is trained; needs frontal faces with large eyes (the paper: 1024 pixels), fails below about 512",
            "abstains on images without one face, without highlights, or with eyes too small",
            "no threshold was published: a quantile of photographs",
            "the released program draws the irises' outlines into the pixels whose mean colour it then takes, which "
            "moves the mean by about 1; not repeated here",
        ),
    )
    Options = Hu21Options
    weights_files: ClassVar = {
        "landmarks": WeightsFile(
            name="hu21/shape_predictor_68_face_landmarks.dat",
            where="http://dlib.net/files/shape_predictor_68_face_landmarks.dat.bz2 (unpack it)",
            licence="iBUG 300-W: not for commercial use",
        )
    }
    options: Hu21Options

    def preprocess(self) -> Preprocess:
        """Eye crops by the landmarks file, or the whole image for dlib."""
        return EyesByFile() if self.options.landmarks == "file" else WholeImage()

    def extractor(self) -> Extractor:
        """1 − overlap of the highlights."""
        return HighlightsOfEyes() if self.options.landmarks == "file" else HighlightsByDlib()

    def head(self) -> Head:
        """The feature is the score."""
        return IdentityHead()

    def threshold(self) -> ThresholdRule:
        """The quantile that rejects the share `fpr` of the calibration photographs."""
        return QuantileThreshold(self.options.fpr, self.protocol.threshold)

    def warnings(self, fit_images: int) -> Sequence[str]:
        """Says where landmarks come from: without them every image is left undecided."""
        if self.options.landmarks == "dlib":
            return ()
        return ("hu21: images without landmarks (<image>.json or <image>.npy beside them) are left undecided",)
