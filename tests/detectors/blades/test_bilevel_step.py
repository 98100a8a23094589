"""The bi-level training step: its numbers against double backward, its switches, and how it fails."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from bilevel_support import (
    ORDINAL,
    PAPER,
    PLACE,
    TINY,
    Reference,
    adamw,
    drawn,
    images,
    made,
    numbers,
    recipe,
    trained,
)  # fmt: skip
from torch import Tensor, nn

from detectors.blades.bilevel import hypergradient
from detectors.blades.bilevel_step import BilevelBatch, BladesBilevelStep
from detectors.blades.image_tower import BladesImageTower
from detectors.blades.joint import BladesJointStep
from harness.api.errors import ConfigError, DataError
from harness.api.protocol import Protocol
from harness.api.trainer import train
from harness.api.training import Place, TrainingError


def test_hypergradient_of_the_encoder_is_double_backwards() -> None:
    step = made()
    batch = drawn(step)
    expected = Reference(step, batch).by_double_backward(step.weight_vector.detach(), PLACE.lr)
    found = step.update(batch, adamw(step), PLACE).more["hypergradient"]
    scaled = expected * PLACE.base_lr / PLACE.lr  # outer_lr_scale: constant
    known = [i for i, name in enumerate(step.table.names) if name in (*ORDINAL, "make", "face_coarse", "face_fine")]
    assert (scaled[known].abs() > 1e-9).all()
    torch.testing.assert_close(numbers(found), scaled, rtol=1e-8, atol=1e-14)


def double_backward(step: BladesBilevelStep) -> tuple[Tensor, Tensor]:
    """The hypergradient of a step's update, and what it should be."""
    batch = drawn(step)
    expected = Reference(step, batch).by_double_backward(step.weight_vector.detach(), PLACE.lr)
    found = step.update(batch, adamw(step), PLACE).more["hypergradient"]
    return numbers(found), expected * PLACE.base_lr / PLACE.lr


def test_five_levels_and_another_slope_of_the_ranking_loss_are_double_backwards_too() -> None:
    slopes = [2.0, 1 / math.sqrt(2)]
    steps = [
        made(Protocol.named("paper", ranking_scale=s), data=images(levels=n), levels=n) for n in (3, 5) for s in slopes
    ]
    products = []
    for step in steps:
        found, expected = double_backward(step)
        torch.testing.assert_close(found, expected, rtol=1e-8, atol=1e-14)
        products.append(found[:4])
    assert all((a - b).abs().min() > 1e-9 for a, b in ((products[0], products[1]), (products[2], products[3])))


def frozen(protocol: Protocol = PAPER, **settings: Any) -> BladesBilevelStep:
    """A step whose BatchNorm is frozen at running statistics that are not those of any batch."""
    step = made(protocol, freeze_batchnorm=True, **settings)
    generator = torch.Generator().manual_seed(3)
    for layer in step.encoder.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.running_mean.normal_(0, 0.3, generator=generator)  # type: ignore[union-attr]
            layer.running_var.uniform_(0.5, 2, generator=generator)  # type: ignore[union-attr]
    return step


@pytest.mark.parametrize("checkpointing", [False, True, "outer"])
def test_frozen_batchnorm_uses_its_running_statistics_and_keeps_them(checkpointing: Any) -> None:
    step = frozen(checkpointing=checkpointing)
    before = {name: b.clone() for name, b in step.encoder.named_buffers()}
    found, expected = double_backward(step)
    torch.testing.assert_close(found, expected, rtol=1e-8, atol=1e-14)
    assert all(torch.equal(b, before[name]) for name, b in step.encoder.named_buffers())


def test_frozen_batchnorm_is_one_function_in_every_pass_of_the_difference() -> None:
    step = frozen(Protocol.named("paper", hypergradient="finite_difference", bn_updates=4))
    before = {name: b.clone() for name, b in step.encoder.named_buffers()}
    batch = drawn(step)
    reference = Reference(step, batch)
    weights = step.weight_vector.detach()
    expected = hypergradient(
        reference.tasks, reference.outer, reference.theta, weights, PLACE.lr, method="finite_difference"
    )
    told = step.update(batch, adamw(step), PLACE)
    losses = reference.tasks(reference.theta)
    torch.testing.assert_close(numbers(told.losses), losses.detach(), rtol=1e-10, atol=1e-12)
    found = numbers(told.more["hypergradient"])
    torch.testing.assert_close(found, expected * PLACE.base_lr / PLACE.lr, rtol=1e-6, atol=1e-12)
    assert all(torch.equal(b, before[name]) for name, b in step.encoder.named_buffers())


def test_released_protocol_takes_the_difference_the_decay_and_the_scheduled_rate() -> None:
    step = made(Protocol.named("released", regions="mouth_eye_nose", ranking_single="zero"))
    batch = drawn(step)
    reference = Reference(step, batch)
    common = {"weight_decay": 1e-3, "method": "finite_difference"}
    expected = hypergradient(
        reference.tasks, reference.outer, reference.theta, step.weight_vector.detach(), PLACE.lr, **common
    )
    found = numbers(step.update(batch, adamw(step), PLACE).more["hypergradient"])
    torch.testing.assert_close(found, expected, rtol=1e-8, atol=1e-14)
    exact = reference.by_double_backward(torch.ones(11, dtype=torch.float64), PLACE.lr, 1e-3)
    assert ((found - exact) / exact)[exact != 0].abs().max() > 1e-6


@pytest.mark.parametrize("lagged", [False, True])
@pytest.mark.parametrize("method", ["exact", "finite_difference"])
def test_lambda_moves_by_adam_and_theta_by_adamw_with_the_new_lambda(method: Any, lagged: bool) -> None:
    step = made(Protocol.named("paper", hypergradient=method), lagged=lagged, lambda_lr=0.05)
    batch = drawn(step)
    reference = Reference(step, batch)
    told = step.update(batch, adamw(step), PLACE)
    weights = torch.ones(11, dtype=torch.float64).requires_grad_()
    weights.grad = numbers(told.more["hypergradient"])
    torch.optim.Adam([weights], lr=0.05).step()
    torch.testing.assert_close(step.weight_vector, weights, rtol=0, atol=1e-12)
    assert step.weights() == told.more["lambda"]
    moved = {name: nn.Parameter(p.clone()) for name, p in reference.theta.items()}
    used = torch.ones(11, dtype=torch.float64) if lagged else weights.detach()
    loss = used @ reference.tasks(moved)
    loss.backward()
    assert told.loss == pytest.approx(loss.item(), rel=1e-12)
    torch.optim.AdamW(moved.values(), lr=PLACE.lr, weight_decay=1e-3).step()
    for name, p in step.encoder.named_parameters():
        # Adam divides by the gradient's size: where it is rounding alone, so is the direction
        solid = moved[name].grad.abs() > 1e-9  # type: ignore[union-attr]
        torch.testing.assert_close(p[solid], moved[name][solid], rtol=0, atol=1e-9)


def test_without_a_rate_for_lambda_it_is_joint_training() -> None:
    ours = trained(settings={"lambda_lr": 0, "lambda_init": {"iso": 0.5, "face_fine": -0.25}})
    settings = {"work_size": 32, "weights": {"iso": 0.5, "face_fine": -0.25}}
    joint = train(BladesJointStep(TINY, settings, images(), PAPER), recipe(step="joint"))
    for mine, theirs in zip(ours.history, joint.history, strict=True):
        assert mine["losses"] == pytest.approx(theirs["losses"], rel=1e-3, abs=1e-5)
        assert mine["lambda"]["iso"] == 0.5
        assert mine["lambda"]["make"] == 1.0
    key = "model.visual.bn1.running_var"
    torch.testing.assert_close(ours.tensors[key], joint.tensors[key], rtol=1e-4, atol=0)


def test_two_trainings_are_equal_to_the_bit() -> None:
    first, second = trained(), trained()
    assert first.history == second.history
    assert all(torch.equal(first.tensors[k], second.tensors[k]) for k in first.tensors)
    moved = first.history[-1]["lambda"]
    assert 0 < abs(moved["iso"] - 1) < 3.1e-4 * len(first.history)
    assert moved["metering_mode"] == 1.0  # no labels: no gradient, and so no move


@pytest.mark.parametrize("count", [1, 4])
@pytest.mark.parametrize("method", ["exact", "finite_difference"])
def test_running_statistics_move_as_often_as_the_protocol_says(method: Any, count: Any) -> None:
    step = made(Protocol.named("paper", hypergradient=method, bn_updates=count))
    batch = drawn(step)
    reference = Reference(step, batch)
    theta, encoder = reference.theta, reference.encoder
    points: list[dict[str, Tensor]] = [theta]
    if count == 4:
        leaves = {k: p.clone().requires_grad_() for k, p in theta.items()}
        gradients = torch.autograd.grad(reference.tasks(leaves).sum(), list(leaves.values()))
        moves = zip(theta.items(), gradients, strict=True)
        ahead = {k: (p - PLACE.lr * g).requires_grad_() for (k, p), g in moves}
        outer = reference.outer(ahead)
        slopes = torch.autograd.grad(outer, list(ahead.values()), materialize_grads=True, allow_unused=True)
        v = dict(zip(ahead, slopes, strict=True))
        eps = 0.01 / torch.cat([g.reshape(-1) for g in v.values()]).norm()
        sides = [{k: p + s * eps * v[k] for k, p in theta.items()} for s in (1, -1)]
        points = [theta, *(sides if method == "finite_difference" else [theta, theta]), theta]
    for params in points:  # torch's own updates
        torch.func.functional_call(encoder, params, (batch.inner.inputs, step.tokens))
    step.update(batch, adamw(step), PLACE)
    expected = dict(encoder.named_buffers())
    for name, buffer in step.encoder.named_buffers():
        torch.testing.assert_close(buffer, expected[name], rtol=1e-9, atol=1e-12)
    tracked = next(b for n, b in step.encoder.named_buffers() if n.endswith("num_batches_tracked"))
    assert tracked.item() == count


def snapshot(step: BladesBilevelStep, optimizer: torch.optim.Optimizer) -> list[Tensor]:
    inner = [t for state in optimizer.state.values() for t in state.values()]
    return [t.detach().clone() for t in (*step.encoder.state_dict().values(), *step.training_state().values(), *inner)]


def spoil(part: str) -> Callable[[BilevelBatch, BladesBilevelStep], BilevelBatch]:
    def change(batch: BilevelBatch, step: BladesBilevelStep) -> BilevelBatch:
        one = getattr(batch, part)
        inputs = one.inputs.clone()
        inputs[0] = math.nan
        return batch._replace(**{part: one._replace(inputs=inputs)})

    return change


def spoil_backward(number: int) -> Callable[[BilevelBatch, BladesBilevelStep], BilevelBatch]:
    """The gradient of one parameter is NaN in the backward pass of that number."""

    def change(batch: BilevelBatch, step: BladesBilevelStep) -> BilevelBatch:
        calls: list[int] = []

        def hook(gradient: Tensor) -> Tensor:
            calls.append(1)
            return gradient * math.nan if len(calls) == number else gradient

        step.encoder.logit_scale.register_hook(hook)
        return batch

    return change


def as_it_is(batch: BilevelBatch, step: BladesBilevelStep) -> BilevelBatch:
    return batch


GRADIENT = r"gradient is not finite: {}(.|\n)*images train"
FAR = Place("t", 3, 2, 2e-3, math.inf)
"""A rate that makes the factor in front of the product infinite."""


@pytest.mark.parametrize("method", ["exact", "finite_difference"])
@pytest.mark.parametrize(
    ("settings", "change", "place", "said"),
    [
        ({}, spoil("inner"), PLACE, r"loss is not finite: iso = nan(.|\n)*step 3 \(epoch 2\), images train"),
        ({}, spoil("outer"), PLACE, r"outer loss is not finite: face_coarse = nan(.|\n)*images outer"),
        ({"lambda_lr": 3e37}, as_it_is, PLACE, GRADIENT.format("(.|\n)*face_coarse = (inf|nan)")),
        ({"lambda_init": {"iso": 3e38}}, as_it_is, PLACE, GRADIENT.format("iso = (inf|nan)(?!,)")),
        (
            {"lambda_init": {"iso": 3e38}, "lagged": True, "checkpointing": True},
            as_it_is, PLACE, GRADIENT.format("iso = (inf|nan)(?!,)"),
        ),
        ({}, spoil_backward(2), PLACE, r"outer gradient is not finite: face_coarse = nan(.|\n)*images outer"),
        ({}, as_it_is, FAR, r"hypergradient is not finite: (.|\n)*face_coarse = -?inf(.|\n)*images train"),
    ],
)  # fmt: skip
def test_what_is_not_finite_stops_the_training_and_leaves_everything_as_it_was(
    method: Any, settings: dict[str, Any], change: Any, place: Place, said: str
) -> None:
    protocol = Protocol.named("paper", hypergradient=method, bn_updates=4)
    warm = made(protocol, double=False)
    step = made(protocol, double=False, **settings)
    optimizer = adamw(step)
    warm_optimizer = adamw(warm)
    warm.update(drawn(warm), warm_optimizer, PLACE)  # so that both optimisers have a state to lose
    step.load_state(warm.state())
    kept = warm.training_state()
    kept["lambda"] = step.training_state()["lambda"]
    step.load_training_state(kept)
    optimizer.load_state_dict(warm_optimizer.state_dict())
    before = snapshot(step, optimizer)
    with pytest.raises(TrainingError, match=said):
        step.update(change(drawn(step), step), optimizer, place)
    after = snapshot(step, optimizer)
    assert len(before) == len(after) > 50
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))
    assert all(p.grad is None for p in step.parameters())
    assert all("forward" not in vars(m) for m in step.encoder.modules()) or settings.get("checkpointing")


def test_an_error_after_lambda_moved_brings_it_back() -> None:
    step = made(lambda_lr=0.1)
    optimizer = adamw(step)
    before = snapshot(step, optimizer)

    class Stopped(Exception):
        pass

    calls: list[int] = []

    def hook(gradient: Tensor) -> None:
        calls.append(1)
        if len(calls) == 3:  # the backward with the new λ
            raise Stopped

    step.encoder.logit_scale.register_hook(hook)
    with pytest.raises(Stopped):
        step.update(drawn(step), optimizer, PLACE)
    assert all(torch.equal(a, b) for a, b in zip(before, snapshot(step, optimizer), strict=True))
    assert step.training_state().keys() == {"lambda"}


def test_a_batch_of_one_has_no_pairs() -> None:
    step = made()
    told = step.update(drawn(step, 1), adamw(step), PLACE)
    assert [told.losses[name] for name in ORDINAL] == [0] * 4
    assert [told.more["hypergradient"][name] for name in ORDINAL] == [0] * 4
    released = made(Protocol.named("paper", ranking_single="nan"))
    with pytest.raises(TrainingError, match=r"iso = nan, aperture = nan"):
        released.update(drawn(released, 1), adamw(released), PLACE)


def test_lambda_zero_moves_lambda_and_decays_theta_alone() -> None:
    step = made(lambda_init=0.0, lagged=True)
    before = {k: p.detach().clone() for k, p in step.encoder.named_parameters()}
    told = step.update(drawn(step), adamw(step), PLACE)
    assert told.loss == 0
    assert all(told.more["lambda"][name] != 0 for name in ("iso", "face_coarse"))
    for name, p in step.encoder.named_parameters():
        torch.testing.assert_close(p, before[name] * (1 - PLACE.lr * 1e-3), rtol=1e-12, atol=0)


def test_tasks_without_labels_have_no_loss_no_gradient_and_keep_their_lambda() -> None:
    step = made(data=images(known=()))
    told = step.update(drawn(step), adamw(step), PLACE)
    for name in step.table.names[:9]:
        assert told.losses[name] == told.more["hypergradient"][name] == 0
        assert told.more["lambda"][name] == 1
    assert told.more["hypergradient"]["face_coarse"] != 0


def test_outer_batches_are_held_out_or_a_second_pass_and_functions_of_their_place() -> None:
    held, second = made(double=False), made(Protocol.named("paper", outer_batch="train"), double=False)
    for step, split in ((held, "outer"), (second, "train")):
        first = step.batch(1, 2, 8, 7)
        step.batch(0, 0, 8, 7)
        again = step.batch(1, 2, 8, 7)
        for part, same in zip(first, again, strict=True):
            assert torch.equal(part.inputs, same.inputs)
            assert part.names == same.names
        assert {name.rstrip("0123456789") for name in first.outer.names} == {split}
        assert {name.rstrip("0123456789") for name in first.inner.names} == {"train"}
    assert first.outer.names != first.inner.names
    assert sorted(n for i in range(3) for n in second.batch(0, i, 8, 7).outer.names) == sorted(
        held.images.digests["train"]
    )
    assert held.batch(0, 0, 8, 7).inner.names == second.batch(0, 0, 8, 7).inner.names


def test_history_tells_lambda_outer_loss_and_the_audit_when_due() -> None:
    events: list[Any] = []
    step = BladesBilevelStep(TINY, {"work_size": 32, "hypergradient_audit": 2}, images(), PAPER)
    result = train(step, recipe(epochs=1), emit=events.append)
    assert [("audit" in row) for row in result.history] == [True, False, True]
    assert [e.fields["lambda"] for e in events if e.kind == "train_step"] == [row["lambda"] for row in result.history]
    audit = result.history[0]["audit"]
    assert [row["scale"] for row in audit["differences"]] == [1.0, 0.1, 0.01, 0.001]
    assert set(audit["exact"]) == set(step.table.names)
    assert audit["differences"][0]["relative"]["metering_mode"] is None
    assert 0 < audit["differences"][0]["overall"] < 1
    ratio = result.history[0]["hypergradient"]["iso"] / audit["exact"]["iso"]
    assert ratio == pytest.approx(-3e-3, rel=1e-6)
    plain = trained(epochs=1)
    assert [row["losses"] for row in plain.history] == [row["losses"] for row in result.history]
    difference = trained(Protocol.named("paper", hypergradient="finite_difference"), {"hypergradient_audit": 1})
    for name in ("iso", "face_coarse"):
        row = difference.history[0]
        assert row["audit"]["exact"][name] == pytest.approx(audit["exact"][name], rel=1e-3)
        assert row["hypergradient"][name] / row["audit"]["differences"][0]["difference"][name] == pytest.approx(
            -3e-3, rel=1e-3
        )


def test_training_goes_on_to_the_bit_from_its_state() -> None:
    whole, first = made(double=False), made(double=False)
    optimizers = [adamw(whole), adamw(first)]
    batches = [whole.batch(0, i, 8, 1) for i in range(3)]
    for batch in batches:
        whole.update(batch, optimizers[0], PLACE)
    first.update(batches[0], optimizers[1], PLACE)
    again = made(double=False)
    optimizer = adamw(again)
    again.load_state(first.state())
    again.load_training_state(first.training_state())
    optimizer.load_state_dict(copy.deepcopy(optimizers[1].state_dict()))
    for batch in batches[1:]:
        again.update(batch, optimizer, PLACE)
    assert all(torch.equal(v, again.state()[k]) for k, v in whole.state().items())
    assert all(torch.equal(v, again.training_state()[k]) for k, v in whole.training_state().items())
    assert set(whole.training_state()) == {"lambda", "lambda.step", "lambda.exp_avg", "lambda.exp_avg_sq"}
    fresh = made(double=False)
    fresh.load_training_state(made(double=False).training_state())
    assert fresh.training_state().keys() == {"lambda"}
    for wrong in (
        {},
        {"lambda": torch.ones(3)},
        {"other": torch.ones(11)},
        {"lambda": torch.ones(11), "lambda.x": torch.ones(1)},
    ):
        with pytest.raises(ConfigError, match="not the training state"):
            fresh.load_training_state(wrong)


def test_a_step_starts_afresh() -> None:
    step = BladesBilevelStep(TINY, {"work_size": 32}, images(), PAPER)
    first, second = train(step, recipe(epochs=1)), train(step, recipe(epochs=1))
    assert first.history == second.history


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"weights": {"iso": 1.0}}, "lambda_init"),
        ({"tasks": ["face_fine", "iso"]}, "add face_coarse"),
        ({"lambda_init": {"isoo": 1.0}}, "isoo"),
        ({"lambda_lr": -1}, "lambda_lr"),
        ({"precision": "fp16"}, "precision"),
        ({"lambda_rate": 1}, "lambda_rate"),
    ],
)
def test_settings_that_cannot_be_meant_are_refused(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        BladesBilevelStep(TINY, {"work_size": 32, **settings}, images(), PAPER)


def test_what_the_machine_or_the_data_cannot_give_is_refused() -> None:
    with pytest.raises(ConfigError, match="tf32"):
        made(precision="tf32")
    with pytest.raises(DataError, match=r"`outer`; there are 0(.|\n)*outer_batch: train"):
        made(data=images(outer=0))
    assert made(Protocol.named("paper", outer_batch="train"), data=images(outer=0)).outer_split == "train"


def test_recipes_reach_the_step_by_its_name() -> None:
    assert BladesImageTower(encoder="tiny").step_class("bilevel") is BladesBilevelStep
    step = BladesImageTower(encoder="tiny").train_step({"work_size": 32}, images(), PAPER, "bilevel")
    assert isinstance(step, BladesBilevelStep)
