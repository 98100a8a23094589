"""A training step that draws from every generator and keeps a state of its own; also a program that trains it."""

from __future__ import annotations

import json
import random
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from harness.api.checkpoint import Checkpoints
from harness.api.events import Event
from harness.api.trainer import train
from harness.api.training import Place, Recipe, TrainStep, Update, stream

LOSSES = ("one", "two")


def recipe(**changes: Any) -> Recipe:
    values = {"recipe": "resume", "detector": "none", "epochs": 4, "batch_size": 6, "lr": 1e-2, "seed": 3, **changes}
    return Recipe(**values)


class RandomStep(TrainStep):
    """Dropout (torch), noise (numpy) and a coin (python) in each update, weights that adapt, BatchNorm buffers."""

    def __init__(self, width: int = 4, peak: int = 0, limit: int | None = None, pause: float = 0.0) -> None:
        self.width, self.peak, self.limit, self.pause = width, peak, limit, pause

    def start(self, seed: int, device: str) -> None:
        self.net = nn.Sequential(
            nn.Conv2d(3, self.width, 3), nn.BatchNorm2d(self.width), nn.ReLU(), nn.Dropout(0.3), nn.Flatten(),
            nn.Linear(self.width * 36, 2),
        ).to(memory_format=torch.channels_last)  # fmt: skip
        self.lam, self.count, self.evaluated = torch.ones(2), 0, torch.zeros(1)

    def parameters(self) -> Sequence[Tensor]:
        return list(self.net.parameters())

    def num_batches(self, batch_size: int) -> int:
        return 7

    def batch(self, epoch: int, index: int, batch_size: int, seed: int) -> Tensor:
        rng = stream(seed, epoch, index)
        return torch.from_numpy(rng.standard_normal((batch_size, 3, 8, 8)).astype(np.float32))

    def names(self, batch: Tensor) -> Sequence[str]:
        return [str(i) for i in range(len(batch))]

    def losses(self, batch: Tensor) -> dict[str, Tensor]:
        self.net.train()
        drawn = np.random.standard_normal(batch.shape)  # noqa: NPY002  (the global generator is what is tested)
        noise = torch.from_numpy(drawn.astype(np.float32))
        out = self.net(batch + 0.1 * noise + 0.1 * random.random())
        return {"one": out[:, 0].square().mean(), "two": (out[:, 1] - 1).square().mean()}

    def weights(self) -> Mapping[str, float]:
        return dict(zip(LOSSES, self.lam.tolist(), strict=True))

    def update(self, batch: Any, optimizer: torch.optim.Optimizer, place: Place) -> Update:
        if self.limit is not None and place.step > self.limit:
            raise RuntimeError("enough")
        time.sleep(self.pause)
        done = super().update(batch, optimizer, place)
        self.lam += 0.01 * torch.randn(2)
        return Update(done.loss, done.losses, {"weights": self.lam.tolist()})

    def training_state(self) -> dict[str, Tensor]:
        return {"lam": self.lam, "evaluated": self.evaluated}

    def load_training_state(self, tensors: Mapping[str, Tensor]) -> None:
        self.lam.copy_(tensors["lam"])
        self.evaluated.copy_(tensors["evaluated"])

    def evaluate(self) -> dict[str, float]:
        self.evaluated += 1
        seen = float(self.evaluated)
        return {"score": min(seen, 2 * self.peak - seen)}

    def state(self) -> dict[str, Tensor]:
        return dict(self.net.state_dict())

    def export(self) -> dict[str, Tensor]:
        return {name: value.detach().clone().contiguous() for name, value in self.net.state_dict().items()}


def main() -> int:
    folder, every = Path(sys.argv[1]), int(sys.argv[2])

    def say(event: Event) -> None:
        if event.kind == "train_step":
            print(event.fields["step"], flush=True)

    try:
        result = train(RandomStep(pause=0.02), recipe(), threads=1, checkpoints=Checkpoints(folder, every), emit=say)
    except KeyboardInterrupt as stop:
        print(stop, file=sys.stderr)
        return 130
    save_file(result.tensors, folder / "result.safetensors")
    (folder / "history.json").write_text(json.dumps(result.history))
    return 0


if __name__ == "__main__":
    sys.exit(main())
