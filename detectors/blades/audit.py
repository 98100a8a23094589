"""The audit of the difference: how far eq. 18's central difference is from the product of eq. 17 it stands for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from detectors.blades.bilevel import TaskLosses, difference_step, directional_derivative, total_norm

SCALES = (1.0, 0.1, 0.01, 0.001)
"""Of the released ε = 0.01/‖v‖."""


class DifferenceError(NamedTuple):
    """The difference at one ε against the exact product.

    `relative [K]`: |difference − exact| / |exact| a task, None where the exact product is 0; `overall`: the same of
    the two vectors' norms, None where v or the product is 0; `same_sign`: share of the tasks with a product whose
    sign agrees, None where there is none.
    """

    scale: float
    eps: float
    difference: list[float]
    relative: list[float | None]
    overall: float | None
    same_sign: float | None


class Audit(NamedTuple):
    """The exact product `[K]`, ‖v‖, and the difference at each ε."""

    exact: list[float]
    v_norm: float
    errors: list[DifferenceError]

    def fields(self, names: Sequence[str]) -> dict[str, Any]:
        """JSON values, tasks by name."""
        rows = [
            {**error._asdict(), "difference": dict(zip(names, error.difference, strict=True)),
             "relative": dict(zip(names, error.relative, strict=True))}
            for error in self.errors
        ]  # fmt: skip
        return {"exact": dict(zip(names, self.exact, strict=True)), "v_norm": self.v_norm, "differences": rows}


def audit_difference(
    task_losses: TaskLosses,
    params: Mapping[str, Tensor],
    direction: Mapping[str, Tensor],
    exact: Tensor | None = None,
    scales: Sequence[float] = SCALES,
) -> Audit:
    """Compare the difference along `direction` with the exact product, at the released ε times each scale.

    Costs a forward-mode pass (unless `exact [K]` is given) and two forwards a scale. FIDELITY `hypergradient` says
    why one wants to know. A direction that is 0 gives no differences.
    """
    if exact is None:
        exact = directional_derivative(task_losses, params, direction)
    norm = float(total_norm(list(direction.values())))
    errors = []
    for scale in scales if norm > 0 else ():
        eps = difference_step(direction) * scale
        found = directional_derivative(task_losses, params, direction, method="finite_difference", eps=eps)
        errors.append(_compare(scale, eps, found.double(), exact.double()))
    return Audit(exact.tolist(), norm, errors)


def _compare(scale: float, eps: float, found: Tensor, exact: Tensor) -> DifferenceError:
    error, there = (found - exact).abs(), exact != 0
    relative = [float(e / abs(x)) if x != 0 else None for e, x in zip(error, exact.tolist(), strict=True)]
    some = bool(there.any())
    overall = float(error.norm() / exact.norm()) if some else None
    same = float((torch.sign(found) == torch.sign(exact))[there].double().mean()) if some else None
    return DifferenceError(scale, eps, found.tolist(), relative, overall, same)
