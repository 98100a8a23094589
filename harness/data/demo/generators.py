"""Sampling from the demo's committed neural generators: names, weights, pictures.

Each picture has a random stream of its own and is computed alone on one thread, so it is the same to the bit
whatever is asked for with it. torch is imported when the first picture is asked for.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING

import cv2
import numpy as np

from harness.api.errors import ConfigError, WeightsError
from harness.data.demo.face import stream

if TYPE_CHECKING:
    from harness.data.demo.networks import Generator

GENERATORS = ("convgan", "vqvae", "latentdiff", "pixeldiff")
"""Names of the generators, which are also their folders in the corpus."""

WEIGHTS = Path(str(files("harness.data.demo") / "weights"))
MAX_BYTES = 2 * 1024 * 1024


def weights_path(name: str) -> Path:
    """The committed weights of a generator (safetensors). Raises ConfigError for a name that is none."""
    if name not in GENERATORS:
        raise ConfigError(f"there is no demo generator {name!r}", fix=f"use one of {', '.join(GENERATORS)}")
    return WEIGHTS / f"{name}.safetensors"


@lru_cache(maxsize=8)
def load_generator(name: str, path: Path | None = None) -> Generator:
    """The generator's network with its weights (the committed ones, or those of `path`), in evaluation mode.

    Raises WeightsError when the file is missing, too large, or does not fit the network exactly.
    """
    from safetensors.torch import load_file

    from harness.data.demo.networks import NETWORKS

    path = weights_path(name) if path is None else path
    retrain = "python -m harness.data.demo.train_generators --out DIR makes them again"
    if not path.is_file():
        raise WeightsError(f"the weights of demo generator {name!r} are missing", path, retrain)
    if path.stat().st_size > MAX_BYTES:
        raise WeightsError(f"the weights of demo generator {name!r} are larger than 2 MB", path, retrain)
    network = NETWORKS[name]()
    found, wanted = load_file(path), network.state_dict()
    wrong = sorted(
        key
        for key in found.keys() | wanted.keys()
        if key not in found or key not in wanted or found[key].shape != wanted[key].shape
    )
    if wrong:
        raise WeightsError(f"weights do not fit demo generator {name!r}: {', '.join(wrong[:5])}", path, retrain)
    network.load_state_dict({key: value.to(wanted[key].dtype) for key, value in found.items()})
    return network.eval().requires_grad_(False)


@contextmanager
def _one_thread() -> Iterator[None]:
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with torch.inference_mode():
            yield
    finally:
        torch.set_num_threads(before)


def generate(name: str, index: int, *, seed: int = 2024, size: int = 128, weights: Path | None = None) -> np.ndarray:
    """Picture number `index` of a generator: `[size, size, 3]` uint8 RGB; made at 128 pixels, resized if asked."""
    import torch

    network = load_generator(name, weights)
    with _one_thread():
        picture = network.sample(stream(seed, "generator", name, index))
        array = ((picture.permute(1, 2, 0) + 1) * 127.5).round().clamp(0, 255).to(torch.uint8).numpy()
    if size != array.shape[0]:
        how = cv2.INTER_AREA if size < array.shape[0] else cv2.INTER_CUBIC
        array = cv2.resize(array, (size, size), interpolation=how)
    return np.ascontiguousarray(array)
