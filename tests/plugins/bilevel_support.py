"""Tiny bi-level steps for tests, and METHOD's step by double backward to hold them against."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import torch
from torch import Tensor

from detectors.blades.bilevel_step import BilevelBatch, BladesBilevelStep
from detectors.blades.config import EncoderConfig
from detectors.blades.encoder import batch_statistics_only
from detectors.blades.image_tower import BladesPreprocess
from detectors.blades.losses import task_loss, task_losses
from harness.api.protocol import Protocol
from harness.api.trainer import train
from harness.api.training import Place, Recipe, TrainingImages, stream

TINY = EncoderConfig.tiny()
ORDINAL, PAPER = ("iso", "aperture", "exposure_time", "focal_length"), Protocol.named("paper")
PLACE = Place("t", 3, 2, 2e-3, 5e-3)


def images(outer: int = 12, known: tuple[str, ...] = (*ORDINAL, "make"), levels: int = 3) -> TrainingImages:
    """Noise images with levels and makes; three in four are labelled."""
    counts = {"train": 24, "outer": outer, "select": 4}
    digests = {s: [f"{s}{i}" for i in range(n)] for s, n in counts.items()}

    def tags(split: str) -> dict[str, np.ndarray]:
        values = {name: stream(3, split, name).integers(0, levels, counts[split]).astype(np.int16) for name in known}
        return {name: np.where(np.arange(len(v)) % 4 == 3, -1, v).astype(np.int16) for name, v in values.items()}

    return TrainingImages(
        read=lambda split, i: stream(1, split, i).integers(0, 256, (32, 32, 3)).astype(np.uint8),
        labels={s: np.zeros(n, np.int8) for s, n in counts.items()},
        generators={s: [""] * n for s, n in counts.items()},
        digests=digests,
        preprocess=BladesPreprocess(32),
        tags={s: tags(s) for s in counts},
        tag_levels=levels,
    )


def made(
    protocol: Protocol = PAPER, double: bool = True, data: TrainingImages | None = None, **settings: Any
) -> BladesBilevelStep:
    """A started step, in float64 unless asked otherwise."""
    step = BladesBilevelStep(TINY, {"work_size": 32, **settings}, data or images(), protocol)
    step.start(5, "cpu")
    if double:
        step.encoder.double()
        step.weight_vector.data = step.weight_vector.data.double()
    return step


def drawn(step: BladesBilevelStep, size: int = 8) -> BilevelBatch:
    batch = step.batch(0, 0, size, 42)
    dtype = step.encoder.logit_scale.dtype
    return BilevelBatch(*(part._replace(inputs=part.inputs.to(dtype)) for part in batch))


def adamw(step: BladesBilevelStep, lr: float = PLACE.lr) -> torch.optim.Optimizer:
    return torch.optim.AdamW(step.parameters(), lr=lr, weight_decay=1e-3)


class Reference:
    """METHOD's step through plain rows of prompts, all of them in both passes, by double backward."""

    def __init__(self, step: BladesBilevelStep, batch: BilevelBatch) -> None:
        self.step, self.batch = step, batch
        step._training_mode()
        self.encoder = copy.deepcopy(step.encoder)
        for module in self.encoder.modules():  # a block that recomputes has a forward of its own: the original's
            vars(module).pop("forward", None)
        self.theta = {name: p.detach().clone() for name, p in step.encoder.named_parameters()}

    def logits(self, params: dict[str, Tensor], inputs: Tensor) -> Tensor:
        with batch_statistics_only(self.encoder):
            return torch.func.functional_call(self.encoder, params, (inputs, self.step.tokens))

    def tasks(self, params: dict[str, Tensor]) -> Tensor:
        inner = self.batch.inner
        scale = self.step.protocol.ranking_scale
        logits = self.logits(params, inner.inputs)
        return task_losses(logits, inner.labels, inner.masks, table=self.step.table, ranking_scale=scale)

    def outer(self, params: dict[str, Tensor]) -> Tensor:
        outer = self.batch.outer
        return task_loss(self.step.table["face_coarse"], self.logits(params, outer.inputs), outer.labels)

    def by_double_backward(self, weights: Tensor, lr: float, decay: float = 0.0) -> Tensor:
        leaves = {k: p.clone().requires_grad_() for k, p in self.theta.items()}
        weights = weights.clone().requires_grad_()
        gradients = torch.autograd.grad(weights @ self.tasks(leaves), list(leaves.values()), create_graph=True)
        ahead = {k: self.theta[k] - lr * (g + decay * self.theta[k]) for k, g in zip(leaves, gradients, strict=True)}
        (found,) = torch.autograd.grad(self.outer(ahead), weights)
        return found


def numbers(values: dict[str, float]) -> Tensor:
    return torch.tensor(list(values.values()), dtype=torch.float64)


def recipe(**changes: Any) -> Recipe:
    return Recipe(**{
        "recipe": "t", "detector": "blades-oc", "step": "bilevel", "epochs": 2, "batch_size": 8, "lr": 3e-3, "seed": 5,
        **changes,
    })  # fmt: skip


def trained(protocol: Protocol = PAPER, settings: dict[str, Any] | None = None, **changes: Any) -> Any:
    step = BladesBilevelStep(TINY, {"work_size": 32, **(settings or {})}, images(), protocol)
    return train(step, recipe(**changes))
