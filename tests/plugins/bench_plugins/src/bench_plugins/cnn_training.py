"""How the tiny network is trained: in the recipe's key, and not in the key of its features."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from bench_plugins.cnn import TinyCnn, network
from harness.api.protocol import Protocol
from harness.api.supervised import SupervisedStep
from harness.api.training import TrainingImages


class CnnStep(SupervisedStep):
    """Photographs against generated images, binary cross-entropy on the logit."""

    def __init__(
        self, extractor: TinyCnn, settings: Mapping[str, Any], images: TrainingImages, protocol: Protocol
    ) -> None:
        super().__init__(network(extractor.width, int(settings.get("init_seed", 0))), images)
