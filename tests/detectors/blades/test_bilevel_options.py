"""Options of the bi-level step: what they change and what not."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from bilevel_support import PAPER, PLACE, adamw, drawn, made, numbers, trained
from torch import Tensor

from harness.api.errors import ConfigError
from harness.api.protocol import Protocol

METHODS = pytest.mark.parametrize("method", ["exact", "finite_difference"])


def close_runs(one: Any, other: Any, tolerance: float) -> None:
    for mine, theirs in zip(one.history, other.history, strict=True):
        assert mine["losses"] == pytest.approx(theirs["losses"], rel=tolerance, abs=tolerance)
        assert mine["lambda"] == pytest.approx(theirs["lambda"], rel=0, abs=tolerance)


def saved(run: Callable[[], Tensor]) -> int:
    """Numbers that the graph of a forward keeps."""
    seen: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        seen[tensor.data_ptr()] = tensor.numel()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        run()
    return sum(seen.values())


@METHODS
def test_checkpointing_gives_the_same_numbers_and_keeps_less(method: Any) -> None:
    protocol = Protocol.named("paper", hypergradient=method, bn_updates=4)
    plain, saving = trained(protocol), trained(protocol, {"checkpointing": True})
    close_runs(plain, saving, 1e-6)
    for name, value in plain.tensors.items():
        torch.testing.assert_close(saving.tensors[name], value, rtol=1e-5, atol=1e-6)
    kept = []
    for settings in ({}, {"checkpointing": True}):
        step = made(protocol, **settings)
        passes = step._passes(drawn(step))
        step.encoder.train()
        kept.append(saved(lambda p=passes: p.losses("theta")))
    assert kept[1] < 0.8 * kept[0]


@METHODS
def test_checkpointing_the_outer_pass_gives_the_same_numbers_and_keeps_less_there(method: Any) -> None:
    protocol = Protocol.named("paper", hypergradient=method)
    plain, saving = trained(protocol), trained(protocol, {"checkpointing": "outer"})
    close_runs(plain, saving, 1e-6)
    for name, value in plain.tensors.items():
        torch.testing.assert_close(saving.tensors[name], value, rtol=1e-5, atol=1e-6)
    kept = {}
    for settings in ({}, {"checkpointing": "outer"}):
        step = made(protocol, **settings)
        passes = step._passes(drawn(step))
        step.encoder.train()
        for name, run in (("inner", lambda p=passes: p.losses("theta")), ("outer", passes.outer)):
            kept[name, bool(settings)] = saved(run)
    assert kept["outer", True] < 0.8 * kept["outer", False]
    assert kept["inner", True] == kept["inner", False]


@pytest.mark.parametrize("checkpointing", [True, "outer"])
def test_a_compiled_network_cannot_recompute(checkpointing: Any) -> None:
    with pytest.raises(ConfigError, match="compiled network"):
        made(PAPER, checkpointing=checkpointing, compile=True)


def assert_same_steps(method: Any, **settings: Any) -> None:
    """Two steps in float64 give the same numbers with and without the settings: every pass sees the same function."""
    protocol = Protocol.named("paper", hypergradient=method)
    steps = [made(protocol, lambda_lr=0.05, **more) for more in ({}, settings)]
    optimizers = [adamw(step) for step in steps]
    for _ in range(2):  # the second one from where the first one left
        told, other = (s.update(drawn(s), o, PLACE) for s, o in zip(steps, optimizers, strict=True))
        torch.testing.assert_close(numbers(other.losses), numbers(told.losses), rtol=1e-6, atol=1e-9)
        assert other.more["outer_loss"] == pytest.approx(told.more["outer_loss"], rel=1e-6)
        ours, theirs = (numbers(t.more["hypergradient"]) for t in (told, other))
        assert ours.abs().max() > 1e-6
        torch.testing.assert_close(theirs, ours, rtol=1e-4, atol=1e-6 * float(ours.abs().max()))
        torch.testing.assert_close(numbers(other.more["lambda"]), numbers(told.more["lambda"]), rtol=0, atol=1e-4)
    expected = dict(steps[0].encoder.named_buffers())
    for name, buffer in steps[1].encoder.named_buffers():
        torch.testing.assert_close(buffer, expected[name], rtol=1e-6, atol=1e-9)


@METHODS
def test_layout_changes_numbers_by_rounding_alone(method: Any) -> None:
    assert_same_steps(method, channels_last=False)


def test_bf16_stays_near_and_the_difference_stays_in_float32() -> None:
    step, half = made(double=False), made(double=False, precision="bf16")
    batch = drawn(step)
    expected, found = (s.update(batch, adamw(s), PLACE) for s in (step, half))
    assert found.losses == pytest.approx(expected.losses, rel=0.05, abs=0.02)
    assert found.losses != expected.losses
    one, other = (numbers(told.more["hypergradient"]) for told in (expected, found))
    assert (one - other).norm() < 0.5 * one.norm()
    passes = half._passes(batch)
    with torch.no_grad():
        inner = [passes.losses(at) for at in ("plus", "theta")]  # type: ignore[arg-type]
    full = step._passes(batch)
    half.encoder.load_state_dict(step.encoder.state_dict())
    assert all(value.dtype == torch.float32 for value in inner)
    with torch.no_grad():
        assert torch.equal(passes.losses("plus"), full.losses("plus"))
        assert not torch.equal(passes.losses("theta"), full.losses("theta"))


def test_lagged_goes_backward_once_less() -> None:
    counts = []
    for lagged in (False, True):
        step = made(lagged=lagged)
        calls: list[int] = []
        step.encoder.image.fc.register_full_backward_hook(lambda *_, calls=calls: calls.append(1))
        step.update(drawn(step), adamw(step), PLACE)
        counts.append(len(calls))
    assert counts == [3, 2]


def test_convolutions_at_theta_are_computed_once_for_the_exact_product() -> None:
    step = made()
    calls: list[str] = []
    layer = step.encoder.image.net.embedder.embedder.convolution
    layer.register_forward_pre_hook(lambda *_: calls.append("forward"))
    original = torch.nn.functional.conv2d
    computed: list[tuple[int, ...]] = []

    def counted(x: Tensor, weight: Tensor, *rest: Any) -> Tensor:
        computed.append(tuple(weight.shape))
        return original(x, weight, *rest)

    torch.nn.functional.conv2d = counted
    try:
        step.update(drawn(step), adamw(step), PLACE)
    finally:
        torch.nn.functional.conv2d = original
    assert len(calls) == 3  # θ, θ′, forward mode
    stem = tuple(layer.weight.shape)
    assert computed.count(stem) == 3  # θ, θ′, and the weight's tangent: images have none


@pytest.mark.slow
@METHODS
def test_compiled_forwards_give_the_same_numbers(method: Any) -> None:
    assert_same_steps(method, compile=True)
