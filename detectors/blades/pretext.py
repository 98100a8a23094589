"""How well the pretext tasks are solved on photographs that training never saw, with intervals."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from detectors.blades.encoder import JointEncoder
from detectors.blades.losses import expected_levels
from detectors.blades.tasks import Kind, Task, TaskTable
from harness.api.training import stream
from harness.data.manipulate.face import MANIPULATIONS
from harness.data.training.dataset import FaceDataset

SEED = 2024
RESAMPLES = 1000


@dataclass(frozen=True)
class Answers:
    """What an encoder says of N photographs and of one manipulation of each.

    Attributes:
        photographic, manipulated: [N] bool, called manipulated: the photograph as trained on, and its manipulation.
        untouched, resampled: [N] bool, called manipulated: the photograph without and with the resampling that
            manipulations bring along; one of the two is the photograph as trained on.
        regions, spared: [N, R] float32, logit of each region on the manipulated face and on the photograph as trained
            on; `true_regions` [N, R] bool, what was done to the manipulated one.
        tags: task -> [N] float32 expected level (from 1), or int64 class, of the photograph.
        labels: task -> [N] int64, -1 = not known.
    """

    photographic: NDArray[np.bool_]
    manipulated: NDArray[np.bool_]
    untouched: NDArray[np.bool_]
    resampled: NDArray[np.bool_]
    regions: NDArray[np.float32]
    spared: NDArray[np.float32]
    true_regions: NDArray[np.bool_]
    tags: dict[str, NDArray[np.float64]] = field(default_factory=dict)
    labels: dict[str, NDArray[np.int64]] = field(default_factory=dict)


@dataclass(frozen=True)
class TaskMetric:
    """One number: mean over `images` photographs, 95 % interval of a bootstrap over photographs, and what guessing
    gives (None for the share of one class alone, which guessing can put anywhere)."""

    task: str
    metric: str
    value: float
    low: float
    high: float
    chance: float | None
    images: int


def ask(
    encoder: JointEncoder, tokens: Tensor, table: TaskTable, faces: FaceDataset, split: str, rows: Sequence[int],
    device: str = "cpu", batch_size: int = 32,
) -> Answers:  # fmt: skip
    """An encoder's answers on some rows of a split, in evaluation mode; each face gets one manipulation, always the
    same (seed 2024, epoch 0)."""
    encoder.eval()
    parts: list[tuple[Tensor, ...]] = []
    labels: dict[str, list[NDArray[np.int64]]] = {}
    kinds = {kind: FaceDataset(faces.images, replace(faces.settings, resample=kind), faces.workers)
             for kind in (False, True)}  # fmt: skip
    with torch.inference_mode():
        text = encoder.text_features(tokens.to(device))
        for first in range(0, len(rows), batch_size):
            part = [int(r) for r in rows[first : first + batch_size]]
            kept = [kinds[kind].batch(split, part, [False] * len(part), SEED, 0) for kind in (False, True)]
            made = faces.batch(split, part, [True] * len(part), SEED, 0)
            inputs = torch.cat([kept[0].inputs, kept[1].inputs, made.inputs]).to(device)
            logits = encoder.logits(encoder.features(inputs), text).float().cpu()
            parts.append((*logits.chunk(3), torch.from_numpy(made.numbers)))
            for tag, values in made.tags.items():
                labels.setdefault(tag, []).append(values)
    untouched, resampled, manipulated, numbers = (torch.cat([p[i] for p in parts]) for i in range(4))
    known = {tag: np.concatenate(values) for tag, values in labels.items()}
    return _answers(table, (untouched, resampled), faces.settings.resample, manipulated, numbers.tolist(), known)


def _answers(
    table: TaskTable, photographs: tuple[Tensor, Tensor], resample: bool, made: Tensor, numbers: list[int],
    known: dict[str, NDArray[np.int64]],
) -> Answers:  # fmt: skip
    """`photographs`: logits without and with the resampling, of which `resample` says the one that was trained on."""
    plain = photographs[int(resample)]

    def called(logits: Tensor) -> NDArray[np.bool_]:
        if "face_coarse" not in table.names:
            return np.zeros(len(logits), bool)
        own = logits[:, table["face_coarse"].slice]
        return np.asarray((own[:, 1] > own[:, 0]).numpy())

    def regions(logits: Tensor) -> NDArray[np.float32]:
        return np.asarray((logits[:, fine.slice] if fine else logits[:, :0]).numpy())

    fine = next((t for t in table if t.kind is Kind.FINE), None)
    names = fine.classes if fine else ()
    tags: dict[str, NDArray[np.float64]] = {}
    for task in table:
        if task.name in known and task.kind is Kind.ORDINAL:
            tags[task.name] = expected_levels(plain[:, task.slice]).double().numpy()
        elif task.name in known and task.kind is Kind.CATEGORICAL:
            tags[task.name] = plain[:, task.slice].argmax(dim=1).double().numpy()
    return Answers(
        called(plain), called(made), called(photographs[0]), called(photographs[1]),
        regions(made), regions(plain),
        np.array([[n >= 0 and r in MANIPULATIONS[n].regions for r in names] for n in numbers], bool),
        tags, {tag: known[tag] for tag in tags},
    )  # fmt: skip


def concordance(expected: NDArray[np.float64], levels: NDArray[np.int64], weights: NDArray[np.int64]) -> float:
    """Share of pairs of photographs of different levels that are in the right order, ties half; chance is 0.5.

    Args:
        expected: [N] expected levels. levels: [N] true ones. weights: [N] how often each photograph counts.
    """
    right = total = 0.0
    order = np.argsort(expected, kind="stable")
    e, y, w = expected[order], levels[order], weights[order].astype(np.float64)
    for level in np.unique(y)[:-1]:
        low, high = np.where(y == level, w, 0.0), np.where(y > level, w, 0.0)
        below = np.concatenate([[0.0], np.cumsum(low)])
        first, last = np.searchsorted(e, e, "left"), np.searchsorted(e, e, "right")
        right += float((high * (below[first] + 0.5 * (below[last] - below[first]))).sum())
        total += low.sum() * high.sum()
    return right / total if total else float("nan")


def balanced_accuracy(called: NDArray[np.float64], labels: NDArray[np.int64], weights: NDArray[np.int64]) -> float:
    """Mean over the classes that are there of the share of their photographs that is called right."""
    shares = []
    for label in np.unique(labels):
        here = np.where(labels == label, weights, 0)
        if here.sum():
            shares.append(float((here * (called == label)).sum() / here.sum()))
    return float(np.mean(shares)) if shares else float("nan")


Measure = tuple[Callable[..., float], float | None, int]


def measures(answers: Answers, table: TaskTable) -> dict[tuple[str, str], Measure]:
    """(task, metric) -> (function of the weights of all photographs, chance, photographs with a label).

    `face_coarse` and `face_fine` are measured on each photograph and its manipulation, both counting the same; chance
    of `face_fine` is what the better constant answer gets, region by region.
    """
    count = len(answers.photographic)
    out: dict[tuple[str, str], Measure] = {}

    def share(values: NDArray[Any]) -> Callable[..., float]:
        return lambda w: float((w * values).sum() / w.sum())

    if "face_coarse" in table.names:
        kept, found = ~answers.photographic, answers.manipulated
        out["face_coarse", "accuracy"] = (lambda w: 0.5 * (share(kept)(w) + share(found)(w)), 0.5, count)
        shares = {"photographic": kept, "manipulated": found, "untouched": ~answers.untouched,
                  "resampled": ~answers.resampled}  # fmt: skip
        for name, right in shares.items():
            out["face_coarse", f"accuracy_{name}"] = (share(right), None, count)
    for task in table:
        if task.name in answers.tags:
            known = answers.labels[task.name] >= 0
            if len(np.unique(answers.labels[task.name][known])) > 1:
                out[task.name, _name(task)] = _tag_measure(answers, task, known)
        elif task.kind is Kind.FINE and answers.regions.size:
            changed = ((answers.regions > 0) == answers.true_regions).mean(axis=1)
            right = 0.5 * (changed + (answers.spared <= 0).mean(axis=1))
            often = 0.5 * answers.true_regions.mean(axis=0)  # a photograph has none
            chance = float(np.maximum(often, 1 - often).mean())
            out[task.name, "accuracy"] = (share(right), chance, count)
    return out


def _name(task: Task) -> str:
    return "concordance" if task.kind is Kind.ORDINAL else "balanced_accuracy"


def _tag_measure(answers: Answers, task: Task, known: NDArray[np.bool_]) -> Measure:
    said, true = answers.tags[task.name][known], answers.labels[task.name][known]
    function = concordance if task.kind is Kind.ORDINAL else balanced_accuracy
    chance = 0.5 if task.kind is Kind.ORDINAL else 1 / len(np.unique(true))
    return lambda w: function(said, true, w[known]), chance, int(known.sum())


def task_metrics(answers: Answers, table: TaskTable, resamples: int = RESAMPLES) -> list[TaskMetric]:
    """Every measure with its interval: percentiles of `resamples` bootstrap draws of photographs (seed 2024)."""
    count = len(answers.photographic)
    draws = stream(SEED, "pretext").multinomial(count, np.full(count, 1 / count), size=resamples)
    out = []
    for (task, metric), (function, chance, images) in measures(answers, table).items():
        values = [function(weights) for weights in draws]
        low, high = np.nanpercentile(values, [2.5, 97.5])
        value = function(np.ones(count, np.int64))
        out.append(TaskMetric(task, metric, value, float(low), float(high), chance, images))
    return out
