"""The bi-level step of BLADES: how the task weights λ learn from the outer loss.

Pure torch: it knows parameters, a vector of task losses and an outer loss, no network and no data. Source: METHOD
"Bi-level step"; supplement of the paper, eqs. 14-19; AIGFD_BLO at 5f26ede for the central difference.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Literal, NamedTuple, Protocol

import torch
from torch import Tensor

from harness.api.errors import ConfigError

Method = Literal["exact", "finite_difference"]
Params = dict[str, Tensor]
TaskLosses = Callable[[Params], Tensor]

RADIUS = 0.01  # the released difference moves θ by this much, whatever v is: ε = 0.01/‖v‖


def total_norm(tensors: Sequence[Tensor]) -> Tensor:
    """‖·‖₂ of all tensors taken as one vector, scalar."""
    return torch.nn.utils.get_total_norm(list(tensors))


def hypergradient(
    task_losses: TaskLosses,
    outer_loss: Callable[[Params], Tensor],
    params: Mapping[str, Tensor],
    weights: Tensor,
    lr: float,
    *,
    weight_decay: float = 0.0,
    method: Method = "exact",
    eps: float | None = None,
) -> Tensor:
    """∇_λ of the outer loss after one virtual step, `[K]`, detached.

    Component i is −lr times the derivative of task loss i along v, where v = ∇ outer_loss at
    θ′ = θ − lr·(∇ Σ λ_i ℓ_i + weight_decay·θ). The exact method is eq. 17 itself: one forward-mode pass. The
    difference is eq. 18: (ℓ(θ + εv) − ℓ(θ − εv)) / 2ε, two forwards without a graph. Where v = 0, so is the result.

    Args:
        task_losses: parameters → ℓ `[K]`; for the exact method every operation in it needs a forward-mode derivative
            (BatchNorm in training mode: inside `encoder.batch_statistics_only`; attention: written out).
        outer_loss: parameters → scalar.
        params: name → θ; read only.
        weights: λ `[K]`.
        lr: α, of the virtual step and of the factor.
        weight_decay: of the virtual step (FIDELITY `virtual_weight_decay`).
        method: `exact` or `finite_difference`.
        eps: ε of the difference; by default 0.01/‖v‖, as released.

    Raises:
        ConfigError: an unknown method, or an ε that is not positive and finite.
    """
    leaves = {name: p.detach().clone().requires_grad_() for name, p in params.items()}
    total = (weights.detach() * task_losses(leaves)).sum()
    gradients = gradients_of(total, list(leaves.values()))
    theta = {name: p.detach() for name, p in params.items()}
    # copies: two gradients of a caller's loss may be one tensor (that of a + b), or have no memory of their own
    copies = {name: g.clone() for name, g in zip(theta, gradients, strict=True)}
    ahead = {name: p.requires_grad_() for name, p in virtual_parameters(theta, copies, lr, weight_decay).items()}
    v = dict(zip(theta, gradients_of(outer_loss(ahead), list(ahead.values())), strict=True))
    return -lr * directional_derivative(task_losses, theta, v, method=method, eps=eps)


def gradients_of(loss: Tensor, parameters: Sequence[Tensor], retain_graph: bool = False) -> list[Tensor]:
    """∂loss/∂p of every parameter, detached; zeros for one that the loss does not depend on."""
    if not loss.requires_grad:
        return [torch.zeros_like(p) for p in parameters]
    return list(torch.autograd.grad(
        loss, parameters, retain_graph=retain_graph, allow_unused=True, materialize_grads=True
    ))  # fmt: skip


def virtual_parameters(params: Params, gradients: Params, lr: float, weight_decay: float = 0.0) -> Params:
    """θ′ = θ − lr·(g + weight_decay·θ), written into the memory of `gradients` (eq. 14a; a plain gradient step).

    Each gradient needs memory of its own. The optimiser's moments play no part, as released (FIDELITY `virtual_step`).
    """
    with torch.no_grad():
        moved = {}
        for name, gradient in gradients.items():
            gradient.mul_(-lr).add_(params[name], alpha=1 - lr * weight_decay)
            moved[name] = gradient
    return moved


def difference_step(direction: Mapping[str, Tensor]) -> float:
    """ε = 0.01/‖v‖, the released choice (DARTS); infinite for v = 0."""
    norm = float(total_norm(list(direction.values())))
    return RADIUS / norm if norm != 0 else math.inf


def directional_derivative(
    task_losses: TaskLosses,
    params: Mapping[str, Tensor],
    direction: Mapping[str, Tensor],
    *,
    method: Method = "exact",
    eps: float | None = None,
) -> Tensor:
    """Derivative of the vector of task losses along a direction at θ, `[K]`; arguments as in `hypergradient`.

    Raises:
        ConfigError: an unknown method, or an ε that is not positive and finite.
    """
    if method == "exact":
        with torch.no_grad():
            product: Tensor = torch.func.jvp(task_losses, (dict(params),), (dict(direction),))[1]
        return product.detach()
    eps = _checked(method, eps, direction)
    with torch.no_grad():
        if eps == math.inf:  # v = 0: nowhere to go, and θ + ∞·0 is no place to look at
            return torch.zeros_like(task_losses(dict(params)))
        moved = {name: torch.add(params[name], v, alpha=eps) for name, v in direction.items()}
        above = task_losses(moved)
        for name, v in direction.items():
            torch.sub(params[name], v, alpha=eps, out=moved[name])
        return (above - task_losses(moved)) / (2 * eps)


def _checked(method: str, eps: float | None, direction: Mapping[str, Tensor]) -> float:
    if method != "finite_difference":
        raise ConfigError(f"unknown method {method!r}", fix="use exact or finite_difference")
    if eps is None:
        return difference_step(direction)
    if not 0 < eps < math.inf:
        raise ConfigError(f"eps must be positive and finite, not {eps}", fix="leave it out for 0.01/‖v‖")
    return eps


class NotFinite(ArithmeticError):
    """A loss or gradient of a bi-level update is not finite; `values` holds what it was, a number a task: losses,
    components of the hypergradient, or norms of the weighted gradients."""

    def __init__(self, what: str, values: Sequence[float] = ()) -> None:
        super().__init__(what)
        self.values = list(values)


class Passes(Protocol):
    """The passes through a network that one bi-level update makes, all on the same two batches.

    ``losses`` and ``outer`` go through the network's own parameters as they stand, with a graph where gradients are
    enabled; `bilevel_update` puts θ′ and θ ± εv in their place where it needs them.
    """

    def losses(self, at: Literal["theta", "plus", "minus"]) -> Tensor:
        """Task losses `[K]` of the inner batch; `at` says where the parameters stand."""

    def outer(self) -> Tensor:
        """The outer loss of the outer batch, scalar."""

    def losses_at(self, params: Params) -> Tensor:
        """Task losses `[K]` of the inner batch for forward mode, after ``losses("theta")``: the values of `params`
        are θ, their tangents are not known beforehand."""


class BilevelResult(NamedTuple):
    """What one update saw: ℓ `[K]` at θ, the outer loss at θ′, the hypergradient `[K]`, λ before `[K]`."""

    losses: list[float]
    outer: float
    hypergradient: list[float]
    weights: list[float]


@contextmanager
def standing_at(parameters: Mapping[str, Tensor], values: Mapping[str, Tensor]) -> Iterator[None]:
    """Inside, the parameters hold `values`; no copy is made, and afterwards they hold their own memory again.

    `.data` is swapped, not written: a graph made at θ keeps its saved tensors and their version counters, and can be
    gone through again once θ is back. (Such a graph must not be gone through inside.)
    """
    own = {name: p.data for name, p in parameters.items()}
    try:
        for name, p in parameters.items():
            p.data = values[name]
        yield
    finally:
        for name, p in parameters.items():
            p.data = own[name]


def bilevel_update(
    passes: Passes,
    parameters: Mapping[str, Tensor],
    weights: Tensor,
    optimizer: torch.optim.Optimizer,
    weights_optimizer: torch.optim.Optimizer,
    *,
    lr: float,
    factor: float,
    weight_decay: float = 0.0,
    method: Method = "exact",
    lagged: bool = False,
    inspect: Callable[[Params, Tensor], None] | None = None,
    add_up: Callable[[Sequence[Tensor]], None] = lambda gradients: None,
) -> BilevelResult:
    """One whole step: virtual step, λ by its own optimiser, then θ by its own with the *new* λ (eqs. 14a-c).

    One forward at θ serves the virtual and the real backward. In all: 1 forward and 2 backwards at θ, 1 forward and
    backward at θ′, and one forward-mode pass, or two forwards without a graph. No copy of the network is made: θ′ is
    written into the memory of the virtual gradient, θ ± εv into one buffer.

    Args:
        passes: the network on an inner and an outer batch.
        parameters: name → θ, leaves; those that `optimizer` updates.
        weights: λ `[K]`, the leaf that `weights_optimizer` updates.
        lr: α of the virtual step.
        factor: α in front of the product (FIDELITY `outer_lr_scale`).
        weight_decay, method: as in `hypergradient`.
        lagged: θ is updated with the λ from before this step. Saves one backward and the kept graph; not eq. 14c.
        inspect: called with v and the derivative along it `[K]`, before λ moves (the audit).
        add_up: sums gradients in place over processes that each see a part of the batches (losses are the whole's).

    Raises:
        NotFinite: a loss or gradient is not finite. Parameters, λ and both optimisers are as they were.
    """
    names, leaves = list(parameters), list(parameters.values())
    losses = passes.losses("theta")
    before = weights.detach().clone()
    values = _finite("loss", losses)
    gradients = gradients_of((before * losses).sum(), leaves, retain_graph=not lagged)
    add_up(gradients)
    if not torch.isfinite(total_norm(gradients)):
        raise _blamed(passes, leaves, before, add_up)
    moved = gradients if not lagged else [g.clone() for g in gradients]
    theta = {name: p.detach() for name, p in parameters.items()}
    ahead = virtual_parameters(theta, dict(zip(names, moved, strict=True)), lr, weight_decay)
    with standing_at(parameters, ahead):
        outer = passes.outer()
        [outer_value] = _finite("outer loss", outer.reshape(1))
        v = dict(zip(names, gradients_of(outer, leaves), strict=True))
    add_up(list(v.values()))
    del ahead, moved
    if not lagged:
        del gradients
    product = _product(passes, parameters, theta, v, method)
    slope = -factor * product
    result = BilevelResult(values, outer_value, _finite("hypergradient", slope), before.tolist())
    if inspect is not None:
        inspect(v, product)
    del v
    with _undone(weights, weights_optimizer, optimizer):
        weights.grad = slope.to(weights.dtype)
        weights_optimizer.step()
        weights.grad = None
        optimizer.zero_grad(set_to_none=True)
        if lagged:
            for p, g in zip(leaves, gradients, strict=True):
                p.grad = g
        elif losses.requires_grad:
            (weights.detach() * losses).sum().backward()
            add_up([p.grad for p in leaves if p.grad is not None])
        if not torch.isfinite(total_norm([p.grad for p in leaves if p.grad is not None])):
            raise _blamed(passes, leaves, weights.detach(), add_up)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return result


@contextmanager
def _undone(
    weights: Tensor, weights_optimizer: torch.optim.Optimizer, optimizer: torch.optim.Optimizer
) -> Iterator[None]:
    """Where what is inside fails, λ and its optimiser are as they were before, and no gradient stays."""
    before, state = weights.detach().clone(), copy.deepcopy(weights_optimizer.state_dict())
    try:
        yield
    except BaseException:
        weights.grad = None
        optimizer.zero_grad(set_to_none=True)
        weights_optimizer.load_state_dict(state)
        with torch.no_grad():
            weights.copy_(before)
        raise


def _blamed(
    passes: Passes, leaves: Sequence[Tensor], weights: Tensor, add_up: Callable[[Sequence[Tensor]], None]
) -> NotFinite:
    """The error of a gradient at θ that is not finite, with the norm of each task's part of it.

    Goes forward once more, and backward once a task: for the message alone, when the step is lost.
    """
    norms = []
    losses = passes.losses("theta")
    for weight, loss in zip(weights, losses, strict=True):
        part = gradients_of(weight * loss, leaves, retain_graph=True)
        add_up(part)
        norms.append(float(total_norm(part)))
    return NotFinite("gradient is not finite", norms)


def _product(passes: Passes, parameters: Mapping[str, Tensor], theta: Params, v: Params, method: Method) -> Tensor:
    """The derivative of the task losses along v `[K]`."""
    norm = float(total_norm(list(v.values())))
    if not math.isfinite(norm):
        raise NotFinite("outer gradient is not finite", [norm])
    if method == "exact":
        return directional_derivative(passes.losses_at, theta, v)
    sides = iter(("plus", "minus"))

    def losses(values: Params) -> Tensor:
        with standing_at(parameters, values):
            return passes.losses(next(sides))  # type: ignore[arg-type]

    return directional_derivative(losses, theta, v, method=method)


def _finite(what: str, numbers: Tensor) -> list[float]:
    values: list[float] = numbers.detach().tolist()
    if not all(map(math.isfinite, values)):
        raise NotFinite(f"{what} is not finite", values)
    return values
