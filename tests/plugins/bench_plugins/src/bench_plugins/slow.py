"""``native-size`` with a pause an image, for tests that interrupt a run; the pause changes no score."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from bench_plugins.native import NativeSize, ResidualSpectrum
from harness.api.contract import Extractor, Facts, Weights

if TYPE_CHECKING:
    from torch import Tensor


def _count() -> None:
    """A line a call with this process's number, in a file that a test names."""
    path = os.environ.get("BENCH_PLUGINS_LOADS")
    if path:
        with open(path, "a") as file:
            file.write(f"{os.getpid()}\n")


@dataclass(frozen=True)
class SlowSpectrum(ResidualSpectrum):
    """Waits ``BENCH_PLUGINS_PAUSE`` seconds before each image."""

    def load(self, weights: Weights, device: str) -> Callable[[Tensor], Tensor]:
        """As ResidualSpectrum, later."""
        spectrum = super().load(weights, device)
        _count()
        pause = float(os.environ.get("BENCH_PLUGINS_PAUSE", "0"))

        def slowly(images: Tensor) -> Tensor:
            time.sleep(pause)
            return spectrum(images)

        return slowly


class SlowNative(NativeSize):
    """``native-size``, slowly."""

    name = "slow-native"
    facts = Facts("Residual spectrum, slowly", "nobody: made for tests", "this package", "Apache-2.0")

    def extractor(self) -> Extractor:
        """Six rings, with a pause."""
        return SlowSpectrum()
