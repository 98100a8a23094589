"""Capability: an extractor whose weights are loaded from a file, or trained by a recipe."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from bench_plugins.pixels import Square
from harness.api.contract import (
    Detector,
    Extractor,
    Facts,
    FitData,
    FittedHead,
    FixedThreshold,
    Head,
    Preprocess,
    Weights,
    WeightsFile,
)

if TYPE_CHECKING:
    from torch import Tensor, nn


def network(width: int, seed: int) -> nn.Module:
    """Two convolutions and a logit; its initial state is a function of ``seed`` alone."""
    import torch
    from torch import nn

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return nn.Sequential(
            nn.Conv2d(3, width, 3, stride=2), nn.ReLU(), nn.Conv2d(width, width, 3, stride=2), nn.ReLU(),
            nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, 1),
        )  # fmt: skip


@dataclass(frozen=True)
class TinyCnn(Extractor):
    """One logit."""

    width: int = 8
    micro_batch = 16
    slots: ClassVar[tuple[str, ...]] = ("weights",)
    trained_by = "bench_plugins.cnn_training:CnnStep"

    @property
    def dim(self) -> int:
        """One."""
        return 1

    def load(self, weights: Weights, device: str) -> Callable[[Tensor], Tensor]:
        """``[B, 3, H, W]`` to ``[B, 1]``."""
        from harness.api.weights import load_strict

        source = weights["weights"]
        model = network(self.width, source.seed)
        if source.kind != "random":
            load_strict(model, source.tensors(), source.path or source.label)
        return model.eval().to(device)


@dataclass(frozen=True)
class FittedLogit(FittedHead):
    """The logit as it stands."""

    def score(self, features: np.ndarray) -> np.ndarray:
        """The only column."""
        return np.asarray(features, np.float64)[:, 0]

    def state(self) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        """Nothing."""
        return {}, {}

    @classmethod
    def restore(cls, arrays: Mapping[str, np.ndarray], meta: Mapping[str, Any]) -> FittedLogit:
        """The head."""
        return cls()


@dataclass(frozen=True)
class LogitHead(Head):
    """Score = logit."""

    @property
    def fitted_class(self) -> type[FittedHead]:
        """FittedLogit."""
        return FittedLogit

    def fit(self, data: FitData | None, weights: Weights) -> FittedLogit:
        """Nothing to fit."""
        return FittedLogit()


class TrainedCnn(Detector):
    """A tiny network from a checkpoint or a recipe."""

    name = "trained-cnn"
    facts = Facts("Tiny network", "nobody: made for tests", "this package", "Apache-2.0")
    weights_files: ClassVar[Mapping[str, WeightsFile]] = {
        "weights": WeightsFile("tiny/cnn.safetensors", "the shelf of nobody", "Apache-2.0")
    }

    def preprocess(self) -> Preprocess:
        """A small square."""
        return Square(32)

    def extractor(self) -> Extractor:
        """The network."""
        return TinyCnn()

    def head(self) -> Head:
        """Its logit."""
        return LogitHead()

    def threshold(self) -> FixedThreshold:
        """Zero."""
        return FixedThreshold(0.0)
