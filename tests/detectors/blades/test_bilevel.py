"""The hypergradient: the released code's numbers, double backward, and what must hold for any tasks and weights."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from detectors.blades.audit import SCALES, audit_difference
from detectors.blades.bilevel import directional_derivative, hypergradient, standing_at, total_norm
from detectors.blades.losses import focal_fidelity_loss, multilabel_fidelity_loss, ranking_fidelity_loss
from harness.api.errors import ConfigError

ALPHAS = ("alpha0.01", "alpha1e-05")
Params = dict[str, Tensor]


class Network:
    """The three-layer network of the recorded values with its three tasks and both batches."""

    def __init__(self, values: dict[str, np.ndarray]) -> None:
        self.values = {key: torch.from_numpy(value) for key, value in values.items()}
        self.theta = {k.removeprefix("theta/"): v for k, v in self.values.items() if k.startswith("theta/")}
        self.weights = self.values["lam"]

    @staticmethod
    def outputs(p: Params, x: Tensor) -> Tensor:
        hidden = torch.tanh(x @ p["l1.weight"].T + p["l1.bias"])
        return torch.tanh(hidden @ p["l2.weight"].T + p["l2.bias"]) @ p["l3.weight"].T + p["l3.bias"]

    def tasks(self, p: Params) -> Tensor:
        z = self.outputs(p, self.values["xt"])
        return torch.stack([
            ranking_fidelity_loss(z[:, :3], self.values["yt/rank"]),
            focal_fidelity_loss(z[:, 3:], self.values["yt/cls"]),
            multilabel_fidelity_loss(z[:, 2:], self.values["yt/multi"]),
        ])  # fmt: skip

    def outer(self, p: Params) -> Tensor:
        return multilabel_fidelity_loss(self.outputs(p, self.values["xv"])[:, 2:], self.values["yv/multi"])

    def hypergradient(self, alpha: str, **named: Any) -> Tensor:
        lr, decay = float(alpha.removeprefix("alpha")), float(self.values[f"{alpha}/wd"])
        return hypergradient(self.tasks, self.outer, self.theta, self.weights, lr, weight_decay=decay, **named)


@pytest.fixture(scope="module")
def net(golden_dir: Path) -> Network:
    return Network(dict(np.load(golden_dir / "hypergrad.npz", allow_pickle=False)))


def relative(found: Tensor, expected: Tensor) -> float:
    return float(((found - expected) / expected).abs().max())


@pytest.mark.parametrize("alpha", ALPHAS)
def test_exact_product_is_the_recorded_double_backward(net: Network, alpha: str) -> None:
    assert relative(net.hypergradient(alpha), net.values[f"{alpha}/exact"]) < 1e-9
    assert relative(net.hypergradient(alpha), net.values[f"{alpha}/closed_form"]) < 1e-9


@pytest.mark.parametrize("alpha", ALPHAS)
def test_difference_is_the_released_one_and_so_is_lambda_after_adam(net: Network, alpha: str) -> None:
    found = net.hypergradient(alpha, method="finite_difference")
    assert relative(found, net.values[f"{alpha}/finite_difference"]) < 1e-7
    given_eps = net.hypergradient(alpha, method="finite_difference", eps=float(net.values[f"{alpha}/eps"]))
    assert relative(given_eps, net.values[f"{alpha}/finite_difference"]) < 1e-7
    weights = net.weights.clone().requires_grad_()
    weights.grad = found
    torch.optim.Adam([weights], lr=3e-4).step()
    assert relative(weights.detach(), net.values[f"{alpha}/lambda_after_adam"]) < 1e-9


@pytest.mark.parametrize("alpha", ALPHAS)
def test_difference_is_not_the_exact_product(net: Network, alpha: str) -> None:
    exact = net.hypergradient(alpha)
    assert relative(net.hypergradient(alpha, method="finite_difference"), exact) > 1e-6
    assert relative(net.hypergradient(alpha, method="finite_difference", eps=1e-4), exact) < 1e-6


@pytest.mark.parametrize("method", ["exact", "finite_difference"])
def test_weight_decay_of_the_virtual_step_counts(net: Network, method: Any) -> None:
    plain = hypergradient(net.tasks, net.outer, net.theta, net.weights, 0.01, method=method)
    assert 1e-7 < relative(plain, net.hypergradient("alpha0.01", method=method)) < 1e-2


def test_parameters_are_read_only_and_need_no_gradient(net: Network) -> None:
    before = {k: v.clone() for k, v in net.theta.items()}
    for method in ("exact", "finite_difference"):
        assert not net.hypergradient("alpha0.01", method=method).requires_grad
    assert all(torch.equal(v, before[k]) and v.grad is None and not v.requires_grad for k, v in net.theta.items())


def small(seed: int, count: int) -> tuple[Any, Any, Params]:
    """Tasks w_i·tanh(Ax)^2-like on one matrix; the second derivative is not constant."""
    generator = torch.Generator().manual_seed(seed)
    draw = [torch.randn(4, 3, generator=generator, dtype=torch.float64) for _ in range(3)]
    directions = torch.randn(count, 4, generator=generator, dtype=torch.float64)

    def tasks(p: Params) -> Tensor:
        return (directions @ torch.tanh(p["a"] * draw[0] + p["b"] * draw[1]) ** 2).mean(dim=1)

    def outer(p: Params) -> Tensor:
        return (torch.sin(p["a"] * draw[2]) + p["b"] ** 2 / 3).sum()

    return tasks, outer, {"a": draw[1], "b": draw[2]}


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10_000), count=st.integers(1, 5), lr=st.floats(1e-4, 0.5), decay=st.floats(0, 0.1))
def test_exact_product_is_the_derivative_through_the_virtual_step(
    seed: int, count: int, lr: float, decay: float
) -> None:
    tasks, outer, theta = small(seed, count)
    weights = torch.linspace(-1, 1, count, dtype=torch.float64).requires_grad_()
    leaves = {k: v.clone().requires_grad_() for k, v in theta.items()}
    gradients = torch.autograd.grad(weights @ tasks(leaves), list(leaves.values()), create_graph=True)
    ahead = {k: theta[k] - lr * (g + decay * theta[k]) for k, g in zip(leaves, gradients, strict=True)}
    (expected,) = torch.autograd.grad(outer(ahead), weights)
    found = hypergradient(tasks, outer, theta, weights, lr, weight_decay=decay)
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-13)
    near = hypergradient(tasks, outer, theta, weights, lr, weight_decay=decay, method="finite_difference", eps=1e-5)
    torch.testing.assert_close(near, expected, rtol=1e-6, atol=1e-8)


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 1000), scale=st.floats(-3, 3))
def test_product_is_linear_in_the_direction_and_in_the_task(seed: int, scale: float) -> None:
    tasks, _, theta = small(seed, 3)
    generator = torch.Generator().manual_seed(seed + 1)
    one, other = (
        {k: torch.randn(v.shape, generator=generator, dtype=v.dtype) for k, v in theta.items()} for _ in range(2)
    )
    mixed = {k: one[k] + scale * other[k] for k in theta}
    parts = [directional_derivative(tasks, theta, v) for v in (one, other, mixed)]
    torch.testing.assert_close(parts[2], parts[0] + scale * parts[1], rtol=1e-9, atol=1e-10)
    tripled = directional_derivative(lambda p: 3 * tasks(p), theta, one)
    torch.testing.assert_close(tripled, 3 * parts[0])


@pytest.mark.parametrize("method", ["exact", "finite_difference"])
def test_a_task_without_gradient_has_none_and_moves_no_other(method: Any) -> None:
    tasks, outer, theta = small(1, 3)
    weights = torch.ones(3, dtype=torch.float64)
    found = hypergradient(tasks, outer, theta, weights, 0.1, method=method)
    keep = torch.tensor([1.0, 0.0, 1.0], dtype=torch.float64)
    without = hypergradient(
        lambda p: tasks(p) * keep + (1 - keep) * 7, outer, theta, torch.tensor([1.0, 5.0, 1.0]).double(), 0.1,
        method=method,
    )  # fmt: skip
    two = hypergradient(lambda p: tasks(p)[[0, 2]], outer, theta, weights[:2], 0.1, method=method)
    assert without[1] == 0
    torch.testing.assert_close(without[[0, 2]], two, rtol=1e-12, atol=0)
    assert not torch.allclose(found[[0, 2]], two)


@pytest.mark.parametrize("method", ["exact", "finite_difference"])
def test_lambda_zero_takes_v_at_theta_itself(method: Any) -> None:
    tasks, outer, theta = small(2, 3)
    leaves = {k: v.clone().requires_grad_() for k, v in theta.items()}
    v = dict(zip(theta, torch.autograd.grad(outer(leaves), list(leaves.values())), strict=True))
    expected = -0.1 * directional_derivative(tasks, theta, v, method=method)
    found = hypergradient(tasks, outer, theta, torch.zeros(3, dtype=torch.float64), 0.1, method=method)
    assert torch.equal(found, expected)


@pytest.mark.parametrize("method", ["exact", "finite_difference"])
def test_no_outer_gradient_gives_zero_and_a_bad_one_gives_nan(method: Any) -> None:
    tasks, _, theta = small(3, 2)
    weights = torch.ones(2, dtype=torch.float64)
    constant = torch.tensor(1.0, dtype=torch.float64)
    assert hypergradient(tasks, lambda p: constant, theta, weights, 0.1, method=method).tolist() == [0, 0]
    bad = hypergradient(tasks, lambda p: p["a"].sum() * math.nan, theta, weights, 0.1, method=method)
    assert torch.isnan(bad).all()


def shared(p: Params) -> Tensor:
    """Gradients of a and b are one tensor, that of c has no memory of its own."""
    return torch.stack([((p["a"] + p["b"]) ** 2).sum(), p["c"].sum()])


@pytest.mark.parametrize("method", ["exact", "finite_difference"])
def test_gradients_that_share_memory_are_not_mixed_up(method: Any) -> None:
    params = {n: torch.linspace(k, k + 1, 4, dtype=torch.float64) for k, n in enumerate("abc")}

    def outer(p: Params) -> Tensor:
        return (p["a"] ** 3 * p["b"] * p["c"]).sum()

    weights = torch.tensor([0.7, 1.3], dtype=torch.float64, requires_grad=True)
    leaves = {n: p.clone().requires_grad_() for n, p in params.items()}
    gradients = torch.autograd.grad(weights @ shared(leaves), list(leaves.values()), create_graph=True)
    ahead = {n: params[n] - 0.1 * (g + 0.2 * params[n]) for n, g in zip(leaves, gradients, strict=True)}
    (expected,) = torch.autograd.grad(outer(ahead), weights)
    found = hypergradient(shared, outer, params, weights.detach(), 0.1, weight_decay=0.2, method=method)
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=0)


def test_nowhere_to_go_looks_at_theta_alone() -> None:
    places = []

    def tasks(p: Params) -> Tensor:
        places.append(p["a"].clone())
        return torch.stack([(p["a"] ** 2).sum(), p["a"].sum()])

    params = {"a": torch.ones(3, dtype=torch.float64)}
    weights = torch.ones(2, dtype=torch.float64)
    found = hypergradient(tasks, lambda p: p["a"].sum() * 0, params, weights, 0.1, method="finite_difference")
    assert torch.equal(found, torch.zeros(2, dtype=torch.float64))
    assert all(torch.equal(place, params["a"]) for place in places)


def test_unknown_method_and_senseless_eps_are_refused() -> None:
    tasks, outer, theta = small(3, 2)
    weights = torch.ones(2, dtype=torch.float64)
    with pytest.raises(ConfigError, match=r"central(.|\n)*exact or finite_difference"):
        hypergradient(tasks, outer, theta, weights, 0.1, method="central")  # type: ignore[arg-type]
    for eps in (0.0, -1.0, math.nan):
        with pytest.raises(ConfigError, match="positive"):
            hypergradient(tasks, outer, theta, weights, 0.1, method="finite_difference", eps=eps)


def test_a_graph_survives_standing_elsewhere() -> None:
    weight = torch.nn.Parameter(torch.tensor([2.0, 3.0]))
    before = (weight.data_ptr(), weight._version)
    loss = (weight**3).sum()
    with standing_at({"w": weight}, {"w": torch.tensor([5.0, 7.0])}):
        (ahead,) = torch.autograd.grad((weight**2).sum(), [weight])
    assert ahead.tolist() == [10.0, 14.0]
    first = torch.autograd.grad(loss, [weight], retain_graph=True)[0]
    assert first.tolist() == torch.autograd.grad(loss, [weight])[0].tolist() == [12.0, 27.0]
    assert (weight.data_ptr(), weight._version) == before
    with pytest.raises(ZeroDivisionError), standing_at({"w": weight}, {"w": torch.zeros(2)}):
        raise ZeroDivisionError
    assert weight.tolist() == [2.0, 3.0]


def test_audit_compares_the_difference_with_the_product(net: Network) -> None:
    leaves = {k: v.clone().requires_grad_() for k, v in net.theta.items()}
    v = dict(zip(leaves, torch.autograd.grad(net.outer(leaves), list(leaves.values())), strict=True))
    audit = audit_difference(net.tasks, net.theta, v)
    exact = directional_derivative(net.tasks, net.theta, v)
    assert audit.exact == exact.tolist()
    assert [e.scale for e in audit.errors] == list(SCALES)
    assert audit.v_norm == pytest.approx(float(total_norm(list(v.values()))))
    for error in audit.errors:
        assert error.eps * audit.v_norm == pytest.approx(0.01 * error.scale)
        found = directional_derivative(net.tasks, net.theta, v, method="finite_difference", eps=error.eps)
        assert error.overall == pytest.approx(float((found - exact).norm() / exact.norm()), rel=1e-9)
        assert error.relative == pytest.approx(((found - exact) / exact).abs().tolist(), rel=1e-9)
        assert error.same_sign == 1.0
    # a central difference in float64: a hundred times closer for a tenth of ε
    assert audit.errors[1].overall == pytest.approx(audit.errors[0].overall / 100, rel=0.05)
    assert audit_difference(net.tasks, net.theta, v, exact) == audit
    fields = audit.fields(("a", "b", "c"))
    assert fields["differences"][0]["relative"]["b"] == audit.errors[0].relative[1]


def test_audit_of_a_flipped_sign_and_of_nothing() -> None:
    theta = {"x": torch.tensor([0.0], dtype=torch.float64)}

    def tasks(p: Params) -> Tensor:  # slope -1 at 0, but f(ε) > f(-ε) for ε = 0.01
        x = p["x"][0]
        return torch.stack([5e5 * x**3 - x, 0 * x])

    audit = audit_difference(tasks, theta, {"x": torch.ones(1, dtype=torch.float64)})
    assert audit.exact == [-1.0, 0.0]
    assert [e.same_sign for e in audit.errors] == [0.0, 1.0, 1.0, 1.0]
    assert audit.errors[0].relative == [pytest.approx(50, rel=1e-6), None]
    assert audit_difference(tasks, theta, {"x": torch.zeros(1, dtype=torch.float64)}).errors == []
