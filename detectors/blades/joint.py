"""Joint training of the BLADES encoder with fixed task weights: photographs, and photographs distorted.

The step that `harness.api.trainer` drives when a recipe says `step: joint`. Imported by name from
`image_tower.BladesImageTower.train_step` alone, so that training code is no part of what keys the features.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal, NamedTuple

import cv2
import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from torch import Tensor

from detectors.blades.config import EncoderConfig
from detectors.blades.encoder import JointEncoder
from detectors.blades.losses import task_losses
from detectors.blades.prompts import compact_vocabulary, prompt_tokens
from detectors.blades.tasks import REGIONS, TASK_NAMES, Kind, TaskTable, task_table
from harness.api.contract import PHOTOGRAPHIC
from harness.api.errors import ConfigError, DataError
from harness.api.protocol import Protocol
from harness.api.training import TrainingImages, TrainStep, epoch_order, stream
from harness.data.manipulate.warp import View, distort_face, draw_view, shift_face

EVALUATION_SEED = 2024
PIXELS_KEPT = 256 * 2**20  # bytes of photographs kept decoded between epochs


class JointSettings(BaseModel):
    """The `settings` of a recipe whose step is joint; an unknown key is an error.

    Attributes:
        tasks: pretext tasks that share the encoder, in any order; a task whose labels are not there has loss 0.
        weights: fixed λ of each task; 1 where not named.
        levels: classes of an ordinal tag, 3 or 5.
        work_size: side in pixels that a face is brought to, distorted at, and brought back from.
        pairing: `independent`: a batch is that many photographs, every second one distorted. `twins`: half as many,
            each beside its own distortion.
        augment: each photograph is seen in another view each epoch (`warp.draw_view`: mirrored or not, turned,
            scaled, moved, recoloured), its twin in the same; photographs then go through the distortion's
            resampling whatever the protocol says. Not in the paper: for corpora of hundreds of faces, which are
            else learnt by heart.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    tasks: tuple[str, ...] = TASK_NAMES
    weights: dict[str, float] = Field(default_factory=dict)
    levels: Literal[3, 5] = 3
    work_size: int = Field(default=224, ge=16, le=1024)
    pairing: Literal["independent", "twins"] = "independent"
    augment: bool = False

    @classmethod
    def of(cls, settings: Mapping[str, Any]) -> JointSettings:
        """Typed settings.

        Raises:
            ConfigError: an unknown key or a value of the wrong kind, named.
        """
        try:
            return cls(**settings)
        except ValidationError as error:
            first = error.errors()[0]
            key = ".".join(map(str, first["loc"]))
            raise ConfigError(
                f"recipe settings, {key}: {first['msg']}", fix=f"known settings: {', '.join(cls.model_fields)}"
            ) from None


class JointBatch(NamedTuple):
    """Inputs `[B, 3, H, W]` float32; labels and masks by task as `losses.task_losses` takes them; digests."""

    inputs: Tensor
    labels: dict[str, Tensor]
    masks: dict[str, Tensor]
    names: tuple[str, ...]


def _at(pixels: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Pixels at `size` (height, width), bilinear without antialias, as the released generator stores faces."""
    return np.asarray(cv2.resize(pixels, size[::-1], interpolation=cv2.INTER_LINEAR))


def manipulated(
    pixels: np.ndarray, rng: np.random.Generator, work_size: int = 224, view: View | None = None
) -> np.ndarray:
    """The face `[H, W, 3]` uint8 with its whole-face distortion, made at `work_size` and brought back to its size.

    Source: METHOD "Manipulations" ("made at 224 and stored at 128").
    """
    return _at(distort_face(_at(pixels, (work_size, work_size)), rng, view=view), pixels.shape[:2])


def resampled(
    pixels: np.ndarray, rng: np.random.Generator, work_size: int = 224, view: View | None = None
) -> np.ndarray:
    """The face through the resampling of `manipulated`, its warp replaced by a shift of at most half a pixel."""
    return _at(shift_face(_at(pixels, (work_size, work_size)), rng, view), pixels.shape[:2])


class BladesJointStep(TrainStep):
    """Photographs against their whole-face distortions, all tasks at once, λ fixed.

    A batch is half photographic and half distorted, and every batch is a function of (seed, epoch, index): which
    photographs, which half, which distortion. Where the protocol has `resample_photographic`, photographs pass
    through the distortion's resampling. EXIF tasks have no labels here and are masked out: their loss is 0.

    Args:
        config: sizes of the encoder.
        settings: a recipe's `settings` (`JointSettings`).
        images: `train` and `select` photographs; generated images in them are left alone.
        protocol: `resample_photographic`, `regions`, `ranking_scale` and `ranking_single` are read.

    Raises:
        ConfigError: unknown settings or tasks, weights of other tasks, or no face task.
        DataError: fewer than two photographs in `train`.

    *Deviation*: distortions are drawn anew each epoch (the released ones were made once, four a face), halves are
    exact in each batch, and an epoch leaves out what does not fill its last batch (FIDELITY A7).
    """

    encoder: JointEncoder
    settings_type: ClassVar[type[JointSettings]] = JointSettings

    def __init__(
        self, config: EncoderConfig, settings: Mapping[str, Any], images: TrainingImages, protocol: Protocol
    ) -> None:
        self.config, self.images, self.protocol = config, images, protocol
        self.settings = self.settings_type.of(settings)
        regions = REGIONS if protocol.regions == "mouth_eye_nose" else ("mouth", "eye")
        self.table: TaskTable = task_table(self.settings.levels, regions, self.settings.tasks)
        spare = [name for name in self.settings.weights if name not in self.table.names]
        if spare:
            raise ConfigError(f"weight of a task that is not trained: {spare[0]!r}", fix="name it in settings.tasks")
        if not any(task.kind in (Kind.COARSE, Kind.FINE) for task in self.table):
            raise ConfigError("no task has labels", where="settings.tasks", fix="add face_coarse")
        self._rows = {split: self._photographs(split) for split in ("train", "select")}
        if len(self._rows["train"]) < 2:
            raise DataError(f"joint training needs photographs in `train`; there are {len(self._rows['train'])}")
        tokens = prompt_tokens(self.table)
        if tokens.max() >= config.vocab_size:
            tokens, vocabulary = compact_vocabulary(tokens)
            if len(vocabulary) > config.vocab_size:
                raise ConfigError(f"prompts have {len(vocabulary)} different tokens, the encoder {config.vocab_size}")
        self.tokens = torch.from_numpy(tokens)
        self.device = "cpu"
        self._kept: dict[tuple[str, int], np.ndarray] = {}
        self._room = PIXELS_KEPT

    def _photographs(self, split: str) -> np.ndarray:
        return np.flatnonzero(np.asarray(self.images.labels.get(split, ())) == PHOTOGRAPHIC)

    def start(self, seed: int, device: str) -> None:
        """An encoder with random weights of that seed, channels-last (faster on a CPU, same numbers to rounding)."""
        self.device = device
        encoder = JointEncoder.random(self.config, seed).to(device)
        self.encoder = encoder.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.tokens = self.tokens.to(device)

    def parameters(self) -> Sequence[Tensor]:
        """Both towers and the logit scale."""
        return list(self.encoder.parameters())

    def num_batches(self, batch_size: int) -> int:
        """Whole batches of photographs in an epoch, at least one."""
        return max(1, len(self._rows["train"]) // self._photographs_a_batch(batch_size))

    def _photographs_a_batch(self, batch_size: int) -> int:
        return max(1, batch_size // 2) if self.settings.pairing == "twins" else batch_size

    def batch(self, epoch: int, index: int, batch_size: int, seed: int) -> JointBatch:
        """Batch `index` of an epoch: photographs first, distorted ones after."""
        size = self._photographs_a_batch(batch_size)
        order = epoch_order(len(self._rows["train"]), seed, epoch)[index * size : (index + 1) * size]
        rows = self._rows["train"][order]
        kept, changed = (rows, rows) if self.settings.pairing == "twins" else (rows[::2], rows[1::2])
        return self._batch("train", kept, changed, (seed, epoch))

    def _batch(self, split: str, kept: np.ndarray, changed: np.ndarray, draw: tuple[int, int]) -> JointBatch:
        pixels = [self._photographic(split, int(i), draw) for i in kept]
        pixels += [self._manipulated(split, int(i), draw) for i in changed]
        names = tuple(self.images.digests[split][int(i)] for i in (*kept, *changed))
        inputs = torch.stack([self.images.preprocess(image) for image in pixels])
        coarse = torch.arange(len(names)) >= len(kept)
        labels, masks = {}, {}
        for task in self.table:
            labels[task.name] = coarse.long()
            if task.kind is Kind.FINE:  # the whole face: every region is changed
                labels[task.name] = coarse.long()[:, None].expand(-1, task.num_classes)
            elif task.kind is not Kind.COARSE:
                labels[task.name] = torch.zeros_like(coarse, dtype=torch.int64)
                masks[task.name] = torch.zeros_like(coarse)
        return JointBatch(inputs, labels, masks, names)

    def _pixels(self, split: str, row: int) -> np.ndarray:
        pixels = self._kept.get((split, row))
        if pixels is None:
            pixels = self.images.read(split, row)
            if pixels.nbytes <= self._room:
                self._room -= pixels.nbytes
                self._kept[split, row] = pixels
        return pixels

    def _draw(self, what: str, split: str, row: int, draw: tuple[int, int]) -> np.random.Generator:
        seed, epoch = draw
        return stream(seed, what, epoch, self.images.digests[split][row])

    def _view(self, split: str, row: int, draw: tuple[int, int]) -> View | None:
        if split != "train" or not self.settings.augment:
            return None
        return draw_view(self._draw("view", split, row, draw))

    def _manipulated(self, split: str, row: int, draw: tuple[int, int]) -> np.ndarray:
        rng, view = self._draw("distort", split, row, draw), self._view(split, row, draw)
        return manipulated(self._pixels(split, row), rng, self.settings.work_size, view)

    def _photographic(self, split: str, row: int, draw: tuple[int, int]) -> np.ndarray:
        pixels, view = self._pixels(split, row), self._view(split, row, draw)
        if view is None and not self.protocol.resample_photographic:
            return pixels
        return resampled(pixels, self._draw("shift", split, row, draw), self.settings.work_size, view)

    def names(self, batch: JointBatch) -> Sequence[str]:
        """Digests of the batch's photographs; a distorted one has its photograph's."""
        return batch.names

    def losses(self, batch: JointBatch) -> dict[str, Tensor]:
        """The loss of each task, in training mode (BatchNorm uses and records batch statistics)."""
        self.encoder.train()
        inputs = batch.inputs.to(self.device, memory_format=torch.channels_last)
        vector = self.loss_vector(self.encoder(inputs, self.tokens), batch)
        return dict(zip(self.table.names, vector.unbind(), strict=True))

    def loss_vector(self, logits: Tensor, batch: JointBatch) -> Tensor:
        """ℓ `[K]` of logits `[B, P]` for a batch's labels and masks, as the protocol wants it."""
        return task_losses(
            logits,
            {name: value.to(self.device) for name, value in batch.labels.items()},
            {name: value.to(self.device) for name, value in batch.masks.items()},
            table=self.table,
            ranking_scale=self.protocol.ranking_scale,
            ranking_single=self.protocol.ranking_single,
        )

    def weights(self) -> Mapping[str, float]:
        """λ of each task, fixed."""
        return {name: self.settings.weights.get(name, 1.0) for name in self.table.names}

    def evaluate(self, batch_size: int = 32) -> dict[str, float]:
        """Coarse-face accuracy on `select`: empty without photographs there, or without the coarse task.

        `coarse_accuracy` is the mean of `coarse_accuracy_photographic` (photographs as trained on) and
        `coarse_accuracy_manipulated` (one distortion of each, always the same); `coarse_accuracy_untouched` is the
        share of photographs called photographic as they are, without resampling: what a detector is given.
        """
        rows = self._rows["select"]
        if len(rows) == 0 or "face_coarse" not in self.table.names:
            return {}
        self.encoder.eval()
        called: dict[str, list[Tensor]] = {"photographic": [], "manipulated": [], "untouched": []}
        with torch.inference_mode():
            text = self.encoder.text_features(self.tokens)[self.table["face_coarse"].slice]
            for first in range(0, len(rows), batch_size):
                part = rows[first : first + batch_size]
                batch = self._batch("select", part, part, (EVALUATION_SEED, 0)).inputs
                raw = [self.images.preprocess(self._pixels("select", int(i))) for i in part]
                logits = self.encoder.logits(
                    self.encoder.features(torch.cat([batch, torch.stack(raw)]).to(self.device)), text
                )
                for kind, answers in zip(called, (logits[:, 1] > logits[:, 0]).chunk(3), strict=True):
                    called[kind].append(answers.cpu())
        share = {kind: torch.cat(answers).double().mean().item() for kind, answers in called.items()}
        kept, found = 1 - share["photographic"], share["manipulated"]
        return {
            "coarse_accuracy": (kept + found) / 2,
            "coarse_accuracy_photographic": kept,
            "coarse_accuracy_manipulated": found,
            "coarse_accuracy_untouched": 1 - share["untouched"],
        }

    def state(self) -> dict[str, Tensor]:
        """Parameters and buffers of the encoder, under our names."""
        return dict(self.encoder.state_dict())

    def export(self) -> dict[str, Tensor]:
        """The encoder under the authors' names (`model.visual.*`, `model.transformer.*`, ...): reads as OC.pth does."""
        named = self.encoder.to_authors()
        return {name: value.detach().to("cpu").contiguous().clone() for name, value in named.items()}
