"""Features of many images one after another, in bounded memory, with the bits that a run gives them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from harness.api.contract import Abstain, Chain, Extractor, Preprocess, Transform
from harness.api.errors import ConfigError, DataError
from harness.api.images import decode, read_image_file
from harness.api.weights import ResolvedWeights
from harness.data.edits import InputEdits
from harness.engine.images import ahead
from harness.engine.inline import Row, batches, forward, pin_numerics

if TYPE_CHECKING:
    from torch import Tensor

FACES = ("whole", "crop")


@contextmanager
def pinned(threads: int | None) -> Iterator[None]:
    """Torch's numerics as a run pins them (None: as they are) inside; its threads as before outside."""
    import torch

    before = torch.get_num_threads()
    if threads is not None:
        pin_numerics(threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _through(
    rows: Iterator[Row], stage: Transform | Extractor, weights: Mapping[str, ResolvedWeights], size: int, device: str
) -> Iterator[Row]:
    import torch

    run = stage.load(weights, device)
    for batch in batches(rows, size):
        for (name, _), value in zip(batch, forward(run, batch, stage, size, device), strict=True):
            # a map that is all NaN stands for an abstention, as in a run
            lost = value is None or (isinstance(stage, Transform) and value.dtype.kind == "f" and np.isnan(value).all())
            yield name, None if lost else torch.from_numpy(np.array(value))


def stream_features(
    chain: Chain,
    weights: Mapping[str, ResolvedWeights],
    tensors: Iterable[Tensor | None],
    sizes: Sequence[int],
    device: str = "cpu",
) -> Iterator[np.ndarray]:
    """Features ``[dim]`` float32 of each preprocessed image, in order; all NaN where it is None (abstains).

    Holds one micro-batch a stage. ``sizes`` are the micro-batches of the transforms and the extractor.
    """
    stages: tuple[Transform | Extractor, ...] = (*chain.transforms, chain.extractor)
    rows: Iterator[Row] = ((b"", tensor) for tensor in tensors)
    for stage, size in zip(stages, sizes, strict=True):
        rows = _through(rows, stage, weights, size, device)
    for _, value in rows:
        yield np.full(chain.extractor.dim, np.nan, np.float32) if value is None else value.numpy()


@dataclass
class Images:
    """Image files read, edited and preprocessed ahead of the network; faults are collected, not raised.

    Attributes:
        paths: the files.
        chain, edits: what becomes of each.
        faces: ``whole``, ``crop`` (the largest face with its surroundings), or None: faces are not looked for.
        rest: after a fault, read and decode the others without preprocessing (to list every fault).
        found: number of faces by position.
        faults: what is wrong by position.
    """

    paths: Sequence[Path]
    chain: Chain
    edits: InputEdits
    faces: str | None = None
    rest: bool = False
    found: dict[int, int] = field(default_factory=dict)
    faults: dict[int, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.faces not in (*FACES, None):
            raise ConfigError(f"--faces {self.faces!r}", fix="use whole, crop or off")
        if self.faces == "crop" and self._has_sidecars():
            what = "this detector reads a file beside each image, which speaks of the whole image"
            raise ConfigError(what, where="--faces crop", fix="leave --faces out")

    def _has_sidecars(self) -> bool:
        if type(self.chain.preprocess).sidecar is Preprocess.sidecar:
            return False
        files = (self.chain.preprocess.sidecar(path) for path in self.paths)
        return any(file is not None and file.is_file() for file in files)

    def pixels(self, index: int) -> np.ndarray:
        """uint8 RGB ``[H, W, 3]`` of an image, edited as the run's were, and cropped where asked for.

        Raises:
            DataError: it cannot be read or decoded.
        """
        path = self.paths[index]
        pixels = decode(read_image_file(path), name=str(path), rotate=self.edits.rotate)
        if self.faces is not None and not (self.rest and self.faults):
            from harness.api.faces import crop_face, find_faces

            faces = find_faces(pixels)
            self.found[index] = len(faces)
            if faces and self.faces == "crop":
                pixels = crop_face(pixels, faces[0])
        return self.edits.apply(pixels)

    def tensor(self, index: int) -> Tensor | None:
        """The preprocessed tensor; None where the detector abstains or the file is at fault."""
        try:
            pixels = self.pixels(index)
            if self.rest and self.faults:
                return None
            return self.chain.preprocess(pixels, self.chain.preprocess.sidecar(self.paths[index]))
        except Abstain:
            return None
        except DataError as error:
            self.faults[index] = error.what
            return None

    def tensors(self, workers: int, window: int) -> Iterator[Tensor | None]:
        """Tensors in order; ``workers`` threads read at most ``window`` images ahead."""
        for _, tensor in ahead(range(len(self.paths)), self.tensor, workers, max(window, 2 * workers)):
            yield tensor
