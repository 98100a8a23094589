"""Joint training of the BLADES encoder with fixed task weights: photographs, and manipulated faces.

The step that `harness.api.trainer` drives when a recipe says `step: joint`. What inference is keyed by reaches it by
name alone (`image_tower.BladesImageTower.train_step`), so that training code is no part of the features' keys.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any, ClassVar, Literal, NamedTuple

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from torch import Tensor, nn

from detectors.blades.config import EncoderConfig
from detectors.blades.encoder import JointEncoder
from detectors.blades.losses import task_losses
from detectors.blades.pretext import ask, measures, task_metrics
from detectors.blades.prompts import compact_vocabulary, prompt_tokens
from detectors.blades.start import begun_encoder
from detectors.blades.tasks import REGIONS, TASK_NAMES, Kind, TaskTable, task_table
from harness.api.contract import PHOTOGRAPHIC, Weights
from harness.api.errors import ConfigError, DataError
from harness.api.protocol import Protocol
from harness.api.training import TrainingImages, TrainStep, epoch_order
from harness.api.weights import ResolvedWeights
from harness.data.manipulate.face import MANIPULATIONS
from harness.data.training.dataset import FaceBatch, FaceDataset, FaceSettings

TURN = 1_000_003  # apart epochs of the orders in which a small split is gone through again within an epoch


class JointSettings(BaseModel):
    """The `settings` of a recipe whose step is joint; an unknown key is an error.

    Attributes:
        tasks: pretext tasks that share the encoder, in any order; a task whose labels are not there has loss 0.
        weights: fixed λ of each task; 1 where not named.
        levels: classes of an ordinal tag, 3 or 5.
        manipulations: numbers of the manipulations in use (`harness.data.manipulate.face.MANIPULATIONS`); by default
            the four released ones and, where the protocol has three regions, the nose flip.
        source: `online`: manipulated faces are made as they are drawn; `stored`: those that the data holds are read.
        photographic: share of photographs.
        work_size: side in pixels that a face is brought to, manipulated at, and brought back from.
        pairing: `drawn`: each photograph of a batch is left or manipulated by a draw of its own, anew each epoch, as
            released. `twins`: half as many photographs, each beside its own manipulation.
        augment: each photograph is seen in another view each epoch (`harness.data.manipulate.warp.draw_view`:
            mirrored or not, turned, scaled, moved, recoloured), its twin in the same. Not in the paper: for corpora of
            hundreds of faces, which are else learnt by heart.
        workers: threads that make faces; changes nothing but the time.
        freeze_batchnorm: BatchNorm uses its running statistics and leaves them alone: for pretrained towers, and for
            several processes, whose parts of a batch have statistics of their own.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    tasks: tuple[str, ...] = TASK_NAMES
    weights: dict[str, float] = Field(default_factory=dict)
    levels: Literal[3, 5] = 3
    manipulations: tuple[int, ...] | None = None
    source: Literal["online", "stored"] = "online"
    photographic: float = Field(default=0.5, gt=0, lt=1)
    work_size: int = Field(default=224, ge=16, le=1024)
    pairing: Literal["drawn", "twins"] = "drawn"
    augment: bool = False
    workers: int = Field(default=1, ge=1, le=64)
    freeze_batchnorm: bool = False

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


class BladesJointStep(TrainStep):
    """Photographs against manipulated faces, all tasks at once, λ fixed.

    Every batch is a function of (seed, epoch, index). EXIF labels come with the images; a tag that is not known, of
    one photograph or of all, is masked out of its loss.

    Args:
        config: sizes of the encoder.
        settings: a recipe's `settings` (`JointSettings`).
        images: `train` and `select` photographs; generated images in them are left alone.
        protocol: `resample_photographic`, `no_landmarks`, `regions`, `manipulated_exif`, `ranking_scale` and
            `ranking_single` are read.

    Raises:
        ConfigError: unknown settings or tasks, weights of other tasks, no face task, or labels of other levels.
        DataError: fewer than two photographs in `train`, or a label that is no class of its task.

    *Deviation*: manipulated faces are drawn anew each epoch unless they are stored (the released ones were made once,
    four a face), and an epoch leaves out what does not fill its last batch (FIDELITY A1, point 7).
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
        self._rows = {split: self._photographs(split) for split in ("train", "outer", "select")}
        if len(self._rows["train"]) < 2:
            raise DataError(f"joint training needs photographs in `train`; there are {len(self._rows['train'])}")
        self._check_labels()
        self.faces = FaceDataset(images, self._face_settings(regions), self.settings.workers)
        tokens = prompt_tokens(self.table)
        if tokens.max() >= config.vocab_size:
            tokens, vocabulary = compact_vocabulary(tokens)
            if len(vocabulary) > config.vocab_size:
                raise ConfigError(f"prompts have {len(vocabulary)} different tokens, the encoder {config.vocab_size}")
        self.tokens = torch.from_numpy(tokens)
        self.device = "cpu"
        self.pretrained: dict[str, ResolvedWeights] = {}

    def _face_settings(self, regions: Sequence[str]) -> FaceSettings:
        chosen = self.settings.manipulations
        if chosen is None:
            chosen = tuple(m.number for m in MANIPULATIONS if len(m.regions) > 1 or set(m.regions) <= set(regions))
        return FaceSettings(
            numbers=chosen, photographic=self.settings.photographic, source=self.settings.source,
            work_size=self.settings.work_size, no_landmarks=self.protocol.no_landmarks,
            resample=self.protocol.resample_photographic, augment=self.settings.augment,
        )  # fmt: skip

    def _check_labels(self) -> None:
        """Labels must be classes of their tasks."""
        if self.images.tag_levels not in (0, self.settings.levels) and any(t.kind is Kind.ORDINAL for t in self.table):
            raise ConfigError(
                f"the data's tags have {self.images.tag_levels} levels, the recipe {self.settings.levels}",
                where="settings.levels", fix="make the label file with `harness data exif --levels`, or set levels",
            )  # fmt: skip
        for task in self.table:
            top = max(
                (int(v[task.name].max(initial=-1)) for v in self.images.tags.values() if task.name in v), default=-1
            )
            if top >= task.num_classes:
                what = f"label {top} of {task.name}, which has {task.num_classes} classes"
                raise DataError(what, fix="make the label file with `harness data exif`")

    def _photographs(self, split: str) -> np.ndarray:
        return np.flatnonzero(np.asarray(self.images.labels.get(split, ())) == PHOTOGRAPHIC)

    def begin_with(self, weights: Weights) -> None:
        """Pretrained towers: slots `image` and `text`, or `encoder` (`detectors.blades.start`)."""
        self.pretrained = dict(weights)

    def start(self, seed: int, device: str) -> None:
        """An encoder with random weights of that seed, or with pretrained towers, channels-last (faster on a CPU,
        the same numbers to rounding)."""
        self.device = device
        encoder = begun_encoder(self.config, seed, self.pretrained).to(device)
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
        """Batch `index` of an epoch; twins: photographs first, their manipulations after."""
        return self._drawn_batch("train", epoch, index, batch_size, seed)

    def _drawn_batch(self, split: str, epoch: int, index: int, batch_size: int, seed: int) -> JointBatch:
        """Batch `index` of an epoch of a split, round and round where the split has fewer batches."""
        size = min(self._photographs_a_batch(batch_size), len(self._rows[split]))
        turn, place = divmod(index, max(1, len(self._rows[split]) // size))
        epoch += turn * TURN
        order = epoch_order(len(self._rows[split]), seed, epoch)
        rows = self._rows[split][order[place * size : (place + 1) * size]]
        if self.world is not None:
            rows = rows[self.world.part(len(rows))]
        if self.settings.pairing == "twins":
            rows, manipulated = np.tile(rows, 2), np.repeat([False, True], len(rows))
        else:
            manipulated = self.faces.draws(split, rows, seed, epoch)
        return self._labelled(self.faces.batch(split, rows, manipulated, seed, epoch), split)

    def _labelled(self, faces: FaceBatch, split: str) -> JointBatch:
        """Labels and masks of a batch for this table's tasks."""
        coarse = torch.from_numpy(faces.numbers >= 0)
        labels, masks = {}, {}
        for task in self.table:
            if task.kind is Kind.COARSE:
                labels[task.name] = coarse.long()
            elif task.kind is Kind.FINE:
                labels[task.name] = torch.tensor(
                    [[n >= 0 and r in MANIPULATIONS[n].regions for r in task.classes] for n in faces.numbers.tolist()]
                ).long()
            else:
                known = torch.from_numpy(faces.tags.get(task.name, np.full(len(coarse), -1)))
                labels[task.name] = known.clamp(min=0)
                masks[task.name] = (known >= 0) & (~coarse | self.protocol.manipulated_exif)
        return JointBatch(faces.inputs, labels, masks, faces.names)

    def names(self, batch: JointBatch) -> Sequence[str]:
        """Digests of the batch's photographs; a manipulated one has its photograph's."""
        return batch.names

    def losses(self, batch: JointBatch) -> dict[str, Tensor]:
        """The loss of each task, in training mode (BatchNorm uses and records batch statistics, unless frozen)."""
        self._training_mode()
        inputs = batch.inputs.to(self.device, memory_format=torch.channels_last)
        vector = self.loss_vector(self.encoder(inputs, self.tokens), batch)
        return dict(zip(self.table.names, vector.unbind(), strict=True))

    def _training_mode(self) -> None:
        self.encoder.train()
        if self.settings.freeze_batchnorm:
            for module in self.encoder.modules():
                if isinstance(module, nn.BatchNorm2d):
                    module.eval()

    def needs_whole_batch(self) -> str | None:
        """BatchNorm that is not frozen uses the statistics of what it sees."""
        normalises = any(isinstance(module, nn.BatchNorm2d) for module in self.encoder.modules())
        frozen = self.settings.freeze_batchnorm or not normalises
        return None if frozen else "BatchNorm sees only its process's part of a batch; set settings.freeze_batchnorm"

    def loss_vector(self, logits: Tensor, batch: JointBatch) -> Tensor:
        """ℓ `[K]` of logits `[B, P]` for a batch's labels and masks, as the protocol wants it."""
        labels = {name: self._whole(value) for name, value in batch.labels.items()}
        masks = {name: self._whole(value) for name, value in batch.masks.items()}
        return task_losses(
            self._gathered(logits),
            labels,
            masks,
            table=self.table,
            ranking_scale=self.protocol.ranking_scale,
            ranking_single=self.protocol.ranking_single,
        )

    def _gathered(self, logits: Tensor) -> Tensor:
        """Logits of the whole batch: over the processes that train together."""
        return logits if self.world is None else self.world.gather(logits)

    def _whole(self, values: Tensor) -> Tensor:
        """Labels or masks of the whole batch, on the device: over the processes that train together."""
        values = values.to(self.device)
        return values if self.world is None else self.world.gather_plain(values)

    def weights(self) -> Mapping[str, float]:
        """λ of each task, fixed."""
        return {name: self.settings.weights.get(name, 1.0) for name in self.table.names}

    def evaluate(self) -> dict[str, float]:
        """Metrics on `select` photographs, each beside one manipulation, always the same; empty without them.

        `coarse_accuracy` is the mean of `coarse_accuracy_photographic` (photographs as trained on) and
        `coarse_accuracy_manipulated`; `coarse_accuracy_untouched` is the share of photographs called photographic as
        they are, without resampling: what a detector is given. `fine_accuracy`; of a tag whose labels are there
        `<tag>_concordance` (ordinal) or `<tag>_balanced_accuracy` (`detectors.blades.pretext`).
        """
        rows = self._rows["select"]
        if len(rows) == 0:
            return {}
        answers = ask(self.encoder, self.tokens, self.table, self.faces, "select", rows.tolist(), self.device)
        weights, short = np.ones(len(rows), np.int64), {"face_coarse": "coarse", "face_fine": "fine"}
        return {
            f"{short.get(task, task)}_{metric}": function(weights)
            for (task, metric), (function, _, _) in measures(answers, self.table).items()
        }

    def report(self, tensors: Mapping[str, Tensor], images: TrainingImages, split: str) -> list[dict[str, Any]]:
        """Task metrics with intervals of an exported encoder on photographs that training never saw."""
        encoder = JointEncoder.from_authors(tensors, self.config, "export").to(self.device)
        faces = FaceDataset(images, replace(self.faces.settings, augment=False), self.settings.workers)
        rows = np.flatnonzero(np.asarray(images.labels[split]) == PHOTOGRAPHIC).tolist()
        if not rows:
            return []
        answers = ask(encoder, self.tokens, self.table, faces, split, rows, self.device)
        return [asdict(metric) for metric in task_metrics(answers, self.table)]

    def state(self) -> dict[str, Tensor]:
        """Parameters and buffers of the encoder, under our names."""
        return dict(self.encoder.state_dict())

    def export(self) -> dict[str, Tensor]:
        """The encoder under the authors' names (`model.visual.*`, `model.transformer.*`, ...): reads as OC.pth does."""
        named = self.encoder.to_authors()
        return {name: value.detach().to("cpu").contiguous().clone() for name, value in named.items()}
