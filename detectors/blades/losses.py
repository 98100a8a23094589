"""The four fidelity losses of BLADES and the vector of task losses that inner and outer steps share.

All are pure functions of tensors: no state, no data-dependent shape, differentiable twice and in forward
mode (`torch.func.jvp`), in the dtype of the logits. Source: METHOD "Losses"; supplement of the paper;
AIGFD_BLO at 5f26ede.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from detectors.blades.tasks import Kind, Task, TaskTable
from harness.api.errors import ConfigError

DELTA = 1e-8  # inside every square root, as released: keeps the derivative finite at 0
Empty = Literal["zero", "nan"]


def _masked_mean(terms: Tensor, mask: Tensor | None, empty: Empty = "zero") -> Tensor:
    """Mean of `terms` where `mask` (broadcast) is true; where none is, 0 with zero gradient, or NaN."""
    if mask is None:
        count = torch.tensor(terms.numel(), dtype=terms.dtype, device=terms.device)
    else:
        mask = mask.to(torch.bool).expand_as(terms)
        terms = torch.where(mask, terms, torch.zeros_like(terms))
        count = mask.sum().to(terms.dtype)
    return terms.sum() / (count if empty == "nan" else count.clamp(min=1))


def _one_hot(target: Tensor, num_classes: int, mask: Tensor | None) -> Tensor:
    """`[B, C]` bool; the targets of samples that do not count may be anything (a missing label is often −1)."""
    if mask is not None:
        target = torch.where(mask.to(torch.bool), target, torch.zeros_like(target))
    return F.one_hot(target, num_classes).to(torch.bool)


def _fidelity_terms(probabilities: Tensor, true: Tensor) -> Tensor:
    """1 − Σ_c √(p_c g_c + δ) a sample `[B]`, g the 0/1 indicator `true [B, C]`."""
    return 1 - torch.sqrt(probabilities * true.to(probabilities.dtype) + DELTA).sum(dim=-1)


def _two_term(probability: Tensor, target: Tensor) -> Tensor:
    """1 − √(p g + δ) − √((1−p)(1−g) + δ), elementwise."""
    agree = torch.sqrt(probability * target + DELTA)
    return 1 - agree - torch.sqrt((1 - probability) * (1 - target) + DELTA)


def fidelity_loss(logits: Tensor, target: Tensor, mask: Tensor | None = None) -> Tensor:
    """Mean over samples of 1 − Σ_c √(p_c g_c + δ), p = softmax(logits); scalar in the logits' dtype.

    Args:
        logits: `[B, C]`.
        target: class indices `[B] int64` in 0..C−1 (outside: RuntimeError of `one_hot`).
        mask: `[B] bool`, the samples that count; all by default. None left: 0, with zero gradient.

    A perfect prediction gives −(C−1)·1e-4, not 0: δ stands in the root of the wrong classes too, as released.
    """
    true = _one_hot(target, logits.shape[-1], mask)
    return _masked_mean(_fidelity_terms(logits.softmax(dim=-1), true), mask)


def focal_fidelity_loss(logits: Tensor, target: Tensor, gamma: float = 2.0, mask: Tensor | None = None) -> Tensor:
    """Fidelity loss whose samples are weighted by (1 − p_true)^gamma; the weight carries gradient too.

    Shapes, mask and errors as in `fidelity_loss`.
    """
    true = _one_hot(target, logits.shape[-1], mask)
    probabilities = logits.softmax(dim=-1)
    true_probability = (probabilities * true.to(logits.dtype)).sum(dim=-1)
    weight = (1 - true_probability) ** gamma
    return _masked_mean(weight * _fidelity_terms(probabilities, true), mask)


def multilabel_fidelity_loss(logits: Tensor, target: Tensor, mask: Tensor | None = None) -> Tensor:
    """Mean over samples and labels of 1 − √(p g + δ) − √((1−p)(1−g) + δ), p = sigmoid(logits); scalar.

    Args:
        logits: `[B, R]`, a logit for each label (region).
        target: `[B, R]`, 0 or 1, any numeric dtype.
        mask: `[B]` (samples that count) or `[B, R]` (single labels); all by default. None left: 0.
    """
    target = target.to(logits.dtype)
    if mask is not None:
        mask = (mask if mask.dim() == logits.dim() else mask.unsqueeze(-1)).to(torch.bool)
        # a missing label may be -1 or NaN, whose root would make the gradient NaN although it is masked
        target = torch.where(mask, target, torch.zeros_like(target))
    return _masked_mean(_two_term(torch.sigmoid(logits), target), mask)


def expected_levels(logits: Tensor) -> Tensor:
    """e = Σ_k k·softmax_k, k = 1..L: the expected level of each sample, `[B, L]` → `[B]`."""
    levels = torch.arange(1, logits.shape[-1] + 1, dtype=logits.dtype, device=logits.device)
    return (logits.softmax(dim=-1) * levels).sum(dim=-1)


def pairwise_ranking_loss(
    values: Tensor,
    levels: Tensor,
    scale: float = 2.0,
    mask: Tensor | None = None,
    empty: Empty = "zero",
) -> Tensor:
    """Mean over the pairs i < j of the two-term fidelity between Φ(scale·(v_i − v_j)) and the true order.

    Args:
        values: `[B]`, what is ranked (expected levels, or a scalar output as in Zou25).
        levels: `[B]`, any ordered labels; g = 1, ½ or 0 by the sign of y_i − y_j.
        scale: slope; 2 in the released code, 1/√2 for Thurstone's model with unit variances.
        mask: `[B] bool`; a pair counts when both of its samples do.
        empty: what a batch of one gives, which has no pairs: "zero" (with zero gradient) or the released code's "nan".
            Labels that are masked, which the released code does not know, give 0 where they leave no pair.

    Pairs cross devices: gather values, levels and masks (with gradient) before calling this in a distributed
    run. Masked B×B sums, not gathered pairs, so that the result is the same on every run of a GPU.
    """
    batch = values.shape[0]
    counts = torch.ones(batch, batch, dtype=torch.bool, device=values.device).triu(1)
    if mask is not None:
        kept = mask.to(torch.bool)
        counts = counts & kept[:, None] & kept[None, :]
    order = torch.sign(levels[:, None] - levels[None, :]).to(values.dtype)
    difference = values[:, None] - values[None, :]
    preferred = 0.5 * (1 + torch.erf(difference * (scale / math.sqrt(2))))
    return _masked_mean(_two_term(preferred, 0.5 * (1 + order)), counts, empty if batch < 2 else "zero")


def ranking_fidelity_loss(
    logits: Tensor,
    levels: Tensor,
    scale: float = 2.0,
    mask: Tensor | None = None,
    empty: Empty = "zero",
) -> Tensor:
    """Ranking loss over all pairs of the batch on expected levels; scalar in the logits' dtype.

    Args:
        logits: `[B, L]`, one a level, lowest first.
        levels: `[B]`, the true levels (only their order counts).
        scale, mask, empty: as in `pairwise_ranking_loss`.

    *Deviation*: a batch of 1 gives 0 with zero gradient; the released code gives NaN there (`empty="nan"`, FIDELITY
    `ranking_single`). Fewer than two samples that count give 0, too. The released √2 is a float32 number,
    so float64 values differ from it by about 1e-8.
    """
    return pairwise_ranking_loss(expected_levels(logits), levels, scale, mask, empty)


def task_loss(
    task: Task,
    logits: Tensor,
    labels: Mapping[str, Tensor],
    masks: Mapping[str, Tensor] | None = None,
    *,
    gamma: float = 2.0,
    ranking_scale: float = 2.0,
    ranking_single: Empty = "zero",
) -> Tensor:
    """One component of `task_losses`, scalar: the outer objective is that of `table["face_coarse"]`.

    Only the task's own label and mask are read; arguments as in `task_losses`.
    """
    own, target = logits[:, task.slice], labels[task.name]
    mask = None if masks is None else masks.get(task.name)
    if task.kind is Kind.ORDINAL:
        return ranking_fidelity_loss(own, target, ranking_scale, mask, ranking_single)
    if task.kind is Kind.CATEGORICAL:
        return focal_fidelity_loss(own, target, gamma, mask)
    if task.kind is Kind.COARSE:
        return fidelity_loss(own, target, mask)
    return multilabel_fidelity_loss(own, target, mask)


def task_losses(
    logits: Tensor,
    labels: Mapping[str, Tensor],
    masks: Mapping[str, Tensor] | None = None,
    *,
    table: TaskTable,
    gamma: float = 2.0,
    ranking_scale: float = 2.0,
    ranking_single: Empty = "zero",
) -> Tensor:
    """The vector ℓ `[K]` of a table's task losses, in its order: what λ weighs, inside and outside.

    Args:
        logits: `[B, P]` with P = `table.num_prompts`.
        labels: task name → class indices `[B] int64` (levels from 0 for ordinal tasks), or `[B, R]` 0/1 for
            `face_fine`, columns in the order of the table's regions.
        masks: task name → `[B] bool` (`[B, R]` allowed for `face_fine`), the samples whose label is known; a
            task without an entry counts all. A task with nothing left has loss 0 and zero gradient.
        gamma, ranking_scale, ranking_single: constants of METHOD and FIDELITY.

    Raises:
        ConfigError: when the logits do not have P columns or a task has no labels.
    """
    if logits.shape[-1] != table.num_prompts:
        raise ConfigError(f"{logits.shape[-1]} logits for a table of {table.num_prompts} prompts")
    absent = [name for name in table.names if name not in labels]
    if absent:
        raise ConfigError(f"no labels for: {', '.join(absent)}", fix="give labels, or a table without them")
    return torch.stack(
        [
            task_loss(
                task, logits, labels, masks,
                gamma=gamma, ranking_scale=ranking_scale, ranking_single=ranking_single,
            )
            for task in table
        ]
    )  # fmt: skip
