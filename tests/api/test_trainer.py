"""The trainer: what it minimises, that it repeats itself to the bit, that it leaves nothing behind."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from threadpoolctl import threadpool_info, threadpool_limits
from torch import Tensor, nn

from harness.api.errors import ConfigError, DataError
from harness.api.events import Event
from harness.api.schedule import learning_rate
from harness.api.supervised import SupervisedStep
from harness.api.trainer import _peak_memory, train
from harness.api.training import Recipe, TrainingError, TrainingImages, TrainStep, epoch_order, stream


def recipe(**changes: Any) -> Recipe:
    settings = {"recipe": "test", "detector": "none", "epochs": 3, "batch_size": 4, "lr": 0.05, **changes}
    return Recipe(**settings)


class Quadratic(TrainStep):
    """Two named losses on one vector; `bad` makes a task non-finite from that epoch on."""

    def __init__(self, weights: dict[str, float] | None = None, bad: tuple[int, float] | None = None) -> None:
        self.fixed, self.bad, self.theta = weights or {}, bad, torch.zeros(0)

    def start(self, seed: int, device: str) -> None:
        values = np.random.default_rng(seed).standard_normal(3)
        self.theta = torch.tensor(values, dtype=torch.float32, device=device, requires_grad=True)

    def parameters(self) -> list[Tensor]:
        return [self.theta]

    def num_batches(self, batch_size: int) -> int:
        return 8 // batch_size

    def batch(self, epoch: int, index: int, batch_size: int, seed: int) -> Any:
        rows = epoch_order(8, seed, epoch)[index * batch_size : (index + 1) * batch_size]
        return {"rows": rows, "epoch": epoch}

    def names(self, batch: Any) -> list[str]:
        return [f"image{row}" for row in batch["rows"]]

    def losses(self, batch: Any) -> dict[str, Tensor]:
        noise = torch.rand(3)  # as dropout would: from torch's global generator
        near = ((self.theta - batch["rows"].mean() / 8) ** 2).sum() + 1e-3 * (noise * self.theta).sum()
        if self.bad is not None and batch["epoch"] >= self.bad[0]:
            near = near * self.bad[1]
        return {"near": near, "small": (self.theta**2).sum()}

    def weights(self) -> dict[str, float]:
        return self.fixed

    def evaluate(self) -> dict[str, float]:
        return {"norm": float(self.theta.detach().norm())}

    def state(self) -> dict[str, Tensor]:
        return {"theta": self.theta}

    def export(self) -> dict[str, Tensor]:
        return {"theta": self.theta.detach().clone()}


def test_two_trainings_are_equal_to_the_bit_whatever_was_drawn_before() -> None:
    first = train(Quadratic(), recipe())
    torch.manual_seed(999)
    torch.rand(17)
    np.random.seed(1)  # noqa: NPY002  the global state is what must not matter
    step = Quadratic()
    second, third = train(step, recipe()), train(step, recipe())
    for other in (second, third):
        assert torch.equal(first.tensors["theta"], other.tensors["theta"])
        assert first.history == other.history
        assert first.metrics == other.metrics
    assert not torch.equal(first.tensors["theta"], train(Quadratic(), recipe(seed=7)).tensors["theta"])


@pytest.mark.parametrize("fails", [False, True])
def test_global_state_is_left_as_it_was(fails: bool) -> None:
    threads, state, numpy_state = torch.get_num_threads(), torch.get_rng_state(), np.random.get_state()  # noqa: NPY002
    if fails:
        with pytest.raises(TrainingError):
            train(Quadratic(bad=(0, math.nan)), recipe(), threads=threads + 1)
    else:
        train(Quadratic(), recipe(), threads=threads + 1)
    assert torch.get_num_threads() == threads
    assert torch.equal(torch.get_rng_state(), state)
    assert np.array_equal(np.random.get_state()[1], numpy_state[1])  # noqa: NPY002


def test_blas_has_one_thread_while_it_trains_and_as_many_as_before_after_it() -> None:
    def threads() -> set[int]:
        return {pool["num_threads"] for pool in threadpool_info() if pool["user_api"] == "blas"}

    seen: list[set[int]] = []

    class Watching(Quadratic):
        def losses(self, batch: Any) -> dict[str, Tensor]:
            seen.append(threads())
            return super().losses(batch)

    with threadpool_limits(2, user_api="blas"):
        train(Watching(), recipe())
        assert threads() == {2}
    assert seen
    assert all(found == {1} for found in seen)


def test_losses_are_weighted_by_the_step() -> None:
    plain = {"lr": 0.1, "optimizer": "adam", "weight_decay": 0.0, "schedule": "constant", "epochs": 200}
    small = train(Quadratic({"near": 0.0}), recipe(**plain))
    assert small.metrics["norm"] < 1e-3
    near = train(Quadratic({"small": 0.0}), recipe(**plain))
    assert near.metrics["norm"] == pytest.approx(math.sqrt(3) * 3.5 / 8, abs=0.15)
    row = train(Quadratic({"near": 2.0, "small": -0.5}), recipe(**plain, batch_size=8)).history[0]
    assert row["loss"] == pytest.approx(2 * row["losses"]["near"] - 0.5 * row["losses"]["small"], rel=1e-6)


def test_a_weight_without_a_loss_is_an_error_that_names_it() -> None:
    with pytest.raises(ConfigError, match=r"naer(.|\n)*near, small"):
        train(Quadratic({"naer": 1.0}), recipe())


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_non_finite_loss_stops_with_step_task_and_images(value: float) -> None:
    step = Quadratic(bad=(1, value))
    with pytest.raises(TrainingError) as caught:
        train(step, recipe())
    text = str(caught.value)
    assert "near = " in text
    assert "small" not in text
    assert "step 3 (epoch 2)" in text
    for row in epoch_order(8, 42, 1)[:4]:
        assert f"image{row}" in text
    two_steps = train(Quadratic(), recipe(epochs=1, schedule="constant"))
    assert not torch.isnan(step.theta).any()
    assert len(two_steps.history) == 2


def test_non_finite_gradient_of_finite_losses_stops_before_the_weights_move() -> None:
    class Root(Quadratic):
        def losses(self, batch: Any) -> dict[str, Tensor]:
            return {"root": torch.sqrt((self.theta * 0) ** 2).sum()}

    step = Root()
    with pytest.raises(TrainingError, match="gradient is not finite"):
        train(step, recipe())
    fresh = Root()
    fresh.start(42, "cpu")
    assert torch.equal(step.theta, fresh.theta)


def test_events_tell_losses_rate_and_speed_of_every_step() -> None:
    events: list[Event] = []
    result = train(Quadratic(), recipe(), emit=events.append)
    steps = [dict(e.fields) for e in events if e.kind == "train_step"]
    assert [s["step"] for s in steps] == [1, 2, 3, 4, 5, 6]
    assert [s["losses"] for s in steps] == [row["losses"] for row in result.history]
    assert all(s["images_per_second"] > 0 and s["steps"] == 6 and s["epochs"] == 3 for s in steps)
    assert [e.fields["done"] for e in events if e.kind == "progress"] == [1, 2, 3, 4, 5, 6]
    assert events[-1].kind == "train_end"
    assert events[-1].fields["images"] == 24
    assert events[-1].fields["metrics"] == result.metrics


@given(epochs=st.integers(1, 40), lr=st.floats(1e-6, 1.0))
def test_cosine_is_torchs_schedule_an_epoch_and_never_rises(epochs: int, lr: float) -> None:
    used = recipe(epochs=epochs, lr=lr)
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=lr)
    theirs = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=epochs)
    rates = []
    for epoch in range(epochs):
        rates.append(learning_rate(used, epoch))
        assert rates[-1] == pytest.approx(optimizer.param_groups[0]["lr"], rel=1e-9, abs=1e-12)
        optimizer.step()
        theirs.step()
    assert rates == sorted(rates, reverse=True)
    assert learning_rate(recipe(epochs=epochs, lr=lr, schedule="constant"), epochs - 1) == lr


def test_optimiser_is_the_recipes_with_decay_on_every_parameter() -> None:
    ours = train(Quadratic({"small": 0.0}), recipe(epochs=1, batch_size=8, weight_decay=0.3, schedule="constant"))
    step = Quadratic()
    with torch.random.fork_rng():
        torch.manual_seed(42)
        step.start(42, "cpu")
        optimizer = torch.optim.AdamW([step.theta], lr=0.05, weight_decay=0.3)
        step.losses(step.batch(0, 0, 8, 42))["near"].backward()
        optimizer.step()
    assert torch.equal(ours.tensors["theta"], step.theta.detach())


def test_streams_and_orders_depend_on_their_names_alone() -> None:
    assert stream(1, "a", 2).random() == stream(1, "a", 2).random()
    assert stream(1, "a", 2).random() != stream(1, "a2").random()
    assert sorted(epoch_order(50, 3, 0)) == list(range(50))
    assert not np.array_equal(epoch_order(50, 3, 0), epoch_order(50, 3, 1))


def images(count: int = 48, labels: list[int] | None = None) -> TrainingImages:
    """Small noise images; generated ones carry a vertical stripe pattern."""
    truth = np.array(labels if labels is not None else [i % 2 for i in range(count)], dtype=np.int8)

    def read(split: str, i: int) -> np.ndarray:
        pixels = stream(5, split, i).integers(60, 190, (12, 12, 3)).astype(np.uint8)
        if truth[i]:
            pixels[:, ::2] += 40
        return pixels

    names = {split: [f"{split}{i}" for i in range(len(truth))] for split in ("train", "select")}
    generators = {split: ["stripes" if label else "" for label in truth] for split in names}
    return TrainingImages(read, dict.fromkeys(names, truth), generators, names, to_tensor)


def to_tensor(pixels: np.ndarray) -> Tensor:
    return torch.from_numpy(pixels.astype(np.float32).transpose(2, 0, 1) / 255 - 0.5)


def network(outputs: int = 1) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(
            nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(0.1),
            nn.Linear(8, outputs),
        )  # fmt: skip


@pytest.mark.parametrize("outputs", [1, 2])
def test_supervised_step_learns_from_labels_and_repeats_itself(outputs: int) -> None:
    loss = {} if outputs == 1 else {"loss": nn.functional.cross_entropy}
    step = SupervisedStep(network(outputs), images(), **loss)
    used = recipe(epochs=15, batch_size=16, lr=0.02)
    first, second = train(step, used), train(step, used)
    assert first.metrics["accuracy"] > 0.9
    assert first.history[-1]["loss"] < 0.6 * first.history[0]["loss"]
    assert all(torch.equal(first.tensors[k], second.tensors[k]) for k in first.tensors)


def test_supervised_export_is_the_trained_module_renamed() -> None:
    module = network()
    step = SupervisedStep(module, images(), rename=lambda t: {f"model.{k}": v for k, v in t.items()})
    result = train(step, recipe(epochs=1, batch_size=16))
    assert result.tensors.keys() == {f"model.{k}" for k in module.state_dict()}
    assert torch.equal(result.tensors["model.6.weight"], module.state_dict()["6.weight"])


def test_supervised_training_on_one_class_is_refused() -> None:
    with pytest.raises(DataError, match="both classes"):
        SupervisedStep(network(), images(labels=[1] * 8))


def test_supervised_images_of_different_sizes_are_refused_by_name() -> None:
    base = images()
    odd = TrainingImages(
        lambda s, i: base.read(s, i)[: 12 - i % 2], base.labels, base.generators, base.digests, to_tensor
    )  # fmt: skip
    with pytest.raises(DataError, match=r"differ in size(.|\n)*train"):
        train(SupervisedStep(network(), odd), recipe())


def test_on_cuda_memory_is_the_devices_and_else_the_processs(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def allocated(device: torch.device) -> int:
        asked.append(device)
        return 7 << 20

    monkeypatch.setattr(torch.cuda, "max_memory_allocated", allocated)
    assert _peak_memory(torch.device("cuda:1")) == 7
    assert asked == [torch.device("cuda:1")]
    held = np.ones(200 << 17)  # 200 MiB
    assert _peak_memory(torch.device("cpu")) >= held.nbytes >> 20
    assert len(asked) == 1
