"""The losses: equal to the released code's values and gradients; masks, empties, derivatives of any kind."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from detectors.blades.losses import (
    expected_levels,
    fidelity_loss,
    focal_fidelity_loss,
    multilabel_fidelity_loss,
    pairwise_ranking_loss,
    ranking_fidelity_loss,
    task_loss,
    task_losses,
)
from detectors.blades.tasks import task_table
from harness.api.errors import ConfigError

LOSSES: dict[str, tuple[Callable[..., Tensor], float]] = {
    "l2r3": (ranking_fidelity_loss, 1e-7),
    "l2r5": (ranking_fidelity_loss, 1e-7),
    "focal": (focal_fidelity_loss, 1e-12),
    "fid_mc": (fidelity_loss, 1e-12),
    "fid_ml": (multilabel_fidelity_loss, 1e-12),
}
CASES = [(name, case) for name in LOSSES for case in range(5)]


def labels_for(loss: Callable[..., Tensor], batch: int, classes: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    if loss is multilabel_fidelity_loss:
        return torch.randint(0, 2, (batch, classes), generator=generator)
    return torch.randint(0, classes, (batch,), generator=generator)


def logits_for(batch: int, classes: int, seed: int, size: float = 3.0) -> Tensor:
    generator = torch.Generator().manual_seed(1000 + seed)
    return size * torch.randn(batch, classes, generator=generator, dtype=torch.float64)


@pytest.mark.parametrize(("name", "case"), CASES)
def test_value_and_gradient_equal_the_released_code(golden_dir: Path, name: str, case: int) -> None:
    golden = np.load(golden_dir / "losses.npz", allow_pickle=False)
    loss, tolerance = LOSSES[name]
    at = f"{name}/{case}/"
    logits = torch.from_numpy(golden[at + "logits"]).requires_grad_()
    value = loss(logits, torch.from_numpy(golden[at + "label"]))
    (gradient,) = torch.autograd.grad(value, logits)
    np.testing.assert_allclose(value.item(), golden[at + "loss"], rtol=0, atol=tolerance)
    np.testing.assert_allclose(gradient.numpy(), golden[at + "grad"], rtol=0, atol=tolerance)
    single = loss(logits.detach().float(), torch.from_numpy(golden[at + "label"]))
    np.testing.assert_allclose(single.item(), golden[at + "loss_f32"], rtol=0, atol=1e-6)
    if name.startswith("l2r"):
        np.testing.assert_allclose(
            expected_levels(logits.detach()).numpy(), golden[at + "expectation"], rtol=0, atol=1e-12
        )


@pytest.mark.parametrize("case", range(5))
def test_scalar_ranking_equals_zou25(golden_dir: Path, case: int) -> None:
    golden = np.load(golden_dir / "zou25_losses.npz", allow_pickle=False)
    values = torch.from_numpy(golden[f"l2r/{case}/logits"]).requires_grad_()
    value = pairwise_ranking_loss(values[:, 0], torch.from_numpy(golden[f"l2r/{case}/label"]))
    (gradient,) = torch.autograd.grad(value, values)
    np.testing.assert_allclose(value.item(), golden[f"l2r/{case}/loss"], rtol=0, atol=1e-7)
    np.testing.assert_allclose(gradient.numpy(), golden[f"l2r/{case}/grad"], rtol=0, atol=1e-7)


@pytest.mark.parametrize("empty", ["zero", "nan"])
def test_ranking_of_one_sample_is_zero_with_gradient_zero_and_the_released_nan_is_a_switch_away(
    empty: str,
) -> None:
    logits = logits_for(1, 3, 0).requires_grad_()
    value = ranking_fidelity_loss(logits, torch.tensor([1]), empty=empty)
    if empty == "nan":
        assert math.isnan(value.item())
        return
    (gradient,) = torch.autograd.grad(value, logits)
    assert value.item() == 0.0
    assert not gradient.any()


@pytest.mark.parametrize("name", LOSSES)
def test_nothing_unmasked_is_zero_with_a_zero_gradient(name: str) -> None:
    loss, _ = LOSSES[name]
    logits = logits_for(6, 3, 1).requires_grad_()
    value = loss(logits, labels_for(loss, 6, 3, 1), mask=torch.zeros(6, dtype=torch.bool))
    (gradient,) = torch.autograd.grad(value, logits)
    assert value.item() == 0.0
    assert not gradient.any()


@settings(max_examples=40, deadline=None)
@given(
    name=st.sampled_from(sorted(LOSSES)),
    kept=st.lists(st.booleans(), min_size=2, max_size=12).filter(lambda k: sum(k) >= 2),
    classes=st.integers(2, 6),
    seed=st.integers(0, 10_000),
)
def test_a_mask_equals_leaving_the_samples_out(name: str, kept: list[bool], classes: int, seed: int) -> None:
    loss, _ = LOSSES[name]
    mask = torch.tensor(kept)
    logits = logits_for(len(kept), classes, seed)
    target = labels_for(loss, len(kept), classes, seed)
    missing = torch.where(mask if target.dim() == 1 else mask[:, None], target, -1)
    full = logits.clone().requires_grad_()
    cut = logits[mask].clone().requires_grad_()
    masked, left_out = loss(full, missing, mask=mask), loss(cut, target[mask])
    (gradient,) = torch.autograd.grad(masked, full)
    (gradient_cut,) = torch.autograd.grad(left_out, cut)
    torch.testing.assert_close(masked, left_out, rtol=0, atol=1e-12)
    torch.testing.assert_close(gradient[mask], gradient_cut, rtol=0, atol=1e-12)
    assert not gradient[~mask].any()


@settings(max_examples=30, deadline=None)
@given(
    name=st.sampled_from(sorted(LOSSES)),
    batch=st.integers(2, 9),
    classes=st.integers(2, 6),
    seed=st.integers(0, 10_000),
)
def test_order_of_the_batch_does_not_matter_and_values_stay_in_range(
    name: str, batch: int, classes: int, seed: int
) -> None:
    loss, _ = LOSSES[name]
    logits, target = logits_for(batch, classes, seed), labels_for(loss, batch, classes, seed)
    order = torch.randperm(batch, generator=torch.Generator().manual_seed(seed))
    value = loss(logits, target)
    torch.testing.assert_close(value, loss(logits[order], target[order]), rtol=0, atol=1e-12)
    assert -classes * 1e-4 <= value.item() <= 1.0


@pytest.mark.parametrize("size", [1.0, 30.0, 200.0])
@pytest.mark.parametrize("name", LOSSES)
def test_forward_mode_equals_reverse_mode_and_second_derivatives_exist(name: str, size: float) -> None:
    loss, _ = LOSSES[name]
    logits, tangent = logits_for(7, 4, 3, size), logits_for(7, 4, 4)
    target = labels_for(loss, 7, 4, 3)
    mask = torch.tensor([True, True, False, True, True, True, False])

    def value(x: Tensor) -> Tensor:
        return loss(x, target, mask=mask)

    _, forward = torch.func.jvp(value, (logits,), (tangent,))
    leaf = logits.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(value(leaf), leaf, create_graph=True)
    torch.testing.assert_close(forward, (gradient * tangent).sum(), rtol=1e-10, atol=1e-12)
    (second,) = torch.autograd.grad((gradient * tangent).sum(), leaf)
    assert torch.isfinite(second).all()
    _, forward_over_reverse = torch.func.jvp(torch.func.grad(value), (logits,), (tangent,))
    torch.testing.assert_close(forward_over_reverse, second, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("name", LOSSES)
def test_second_derivatives_agree_with_finite_differences(name: str) -> None:
    loss, _ = LOSSES[name]
    target = labels_for(loss, 5, 3, 5)
    logits = logits_for(5, 3, 5, 1.0).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: loss(x, target), (logits,), check_forward_ad=True)
    assert torch.autograd.gradgradcheck(lambda x: loss(x, target), (logits,))


def test_a_class_outside_the_logits_is_an_error_where_the_sample_counts() -> None:
    logits = logits_for(3, 2, 0)
    for wrong in (-1, 2):
        with pytest.raises(RuntimeError):
            fidelity_loss(logits, torch.tensor([0, 1, wrong]))


def test_single_regions_can_be_masked() -> None:
    logits, target = logits_for(4, 3, 0), labels_for(multilabel_fidelity_loss, 4, 3, 0)
    mask = torch.tensor([True, True, False]).expand(4, 3)
    torch.testing.assert_close(
        multilabel_fidelity_loss(logits, target, mask=mask),
        multilabel_fidelity_loss(logits[:, :2], target[:, :2]),
        rtol=0,
        atol=1e-12,
    )


@pytest.mark.parametrize("levels", [3, 5])
def test_task_losses_are_the_single_losses_on_their_slices(levels: int) -> None:
    table = task_table(levels)
    logits = logits_for(8, table.num_prompts, 2)
    labels = {
        task.name: labels_for(
            multilabel_fidelity_loss if task.kind == "fine" else fidelity_loss, 8, task.num_classes, i
        )
        for i, task in enumerate(table)
    }
    masks = {"make": torch.tensor([False] * 8), "iso": torch.tensor([True] * 5 + [False] * 3)}
    vector = task_losses(logits, labels, masks, table=table)
    assert vector.shape == (11,)
    assert vector[table.index("make")] == 0
    expected = {
        "iso": ranking_fidelity_loss(logits[:5, :levels], labels["iso"][:5]),
        "metering_mode": focal_fidelity_loss(logits[:, table["metering_mode"].slice], labels["metering_mode"]),
        "face_coarse": fidelity_loss(logits[:, -5:-3], labels["face_coarse"]),
        "face_fine": multilabel_fidelity_loss(logits[:, -3:], labels["face_fine"]),
    }
    for name, value in expected.items():
        torch.testing.assert_close(vector[table.index(name)], value, rtol=0, atol=1e-12)
        torch.testing.assert_close(task_loss(table[name], logits, labels, masks), value, rtol=0, atol=1e-12)


def test_task_losses_name_what_does_not_fit() -> None:
    table = task_table(names=("make", "face_coarse"))
    with pytest.raises(ConfigError, match="12 prompts"):
        task_losses(torch.zeros(2, 11), {}, table=table)
    with pytest.raises(ConfigError, match="face_coarse"):
        task_losses(torch.zeros(2, 12), {"make": torch.tensor([0, 1])}, table=table)
