"""The learning rate of an epoch, and what a watched metric decides: a lower rate, the best weights, an early end."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from harness.api.errors import ConfigError
from harness.api.training import Recipe, Watched


def learning_rate(recipe: Recipe, epoch: int) -> float:
    """The rate of an epoch, from 0: constant, or cosine to 0 over the recipe's ``period``, changed once an epoch.

    For ``plateau`` the rate before any metric was seen. Source: METHOD "Bi-level step", constants. *Deviation*: the
    period is the recipe's epochs unless it says another; the released command's is 20 of 100 epochs, and so its rate
    rises again after 20, falls after 40, and so on (FIDELITY ``epochs``, ``schedule``).
    """
    if recipe.schedule == "cosine":
        return recipe.lr * 0.5 * (1 + math.cos(math.pi * epoch / (recipe.period or recipe.epochs)))
    return recipe.lr


@dataclass
class _Seen:
    """A watched metric so far: its best value (None: not seen) and evaluations since."""

    best: float | None = None
    since: int = 0

    def take(self, value: float, rule: Watched) -> bool:
        """Whether a value is the best so far; one that is not a number never is."""
        sign = 1.0 if rule.mode == "max" else -1.0
        better = not math.isnan(value) and (self.best is None or sign * (value - self.best) > rule.min_delta)
        self.best, self.since = (value, 0) if better else (self.best, self.since + 1)
        return better


class Schedule:
    """Rates and stops of one training; ``state`` is all it remembers."""

    def __init__(self, recipe: Recipe) -> None:
        self.recipe = recipe
        self.scale, self.stopped = 1.0, False
        self._plateau, self._stop = _Seen(), _Seen()

    def rate(self, epoch: int) -> float:
        """The rate of an epoch, from 0."""
        return learning_rate(self.recipe, epoch) * self.scale

    def evaluates(self, epoch: int) -> bool:
        """Whether metrics are taken after this epoch, from 0."""
        recipe = self.recipe
        if epoch + 1 == recipe.epochs or recipe.plateau or recipe.early_stop:
            return True
        return recipe.evaluate_every > 0 and (epoch + 1) % recipe.evaluate_every == 0

    def take(self, metrics: Mapping[str, float]) -> bool:
        """Learn from an evaluation; whether these are the weights to keep. ``stopped`` says whether training ends.

        Raises:
            ConfigError: a watched metric is not among them.
        """
        plateau, stop = self.recipe.plateau, self.recipe.early_stop
        if plateau is not None:
            self._plateau.take(self._value(metrics, plateau), plateau)
            if self._plateau.since >= plateau.patience:
                lower = self.recipe.lr * self.scale * plateau.factor
                self.stopped |= lower < plateau.min_lr
                if not self.stopped:
                    self.scale *= plateau.factor
                self._plateau.since = 0
        if stop is None:
            return True
        better = self._stop.take(self._value(metrics, stop), stop)
        self.stopped |= self._stop.since >= stop.patience
        return better

    def _value(self, metrics: Mapping[str, float], rule: Watched) -> float:
        if rule.metric not in metrics:
            raise ConfigError(
                f"the recipe watches {rule.metric!r}, which is not among the metrics on `select`",
                where=f"recipe {self.recipe.recipe}", fix=f"metrics here: {', '.join(metrics) or 'none'}",
            )  # fmt: skip
        return float(metrics[rule.metric])

    def state(self) -> dict[str, Any]:
        """JSON values; ``load`` takes them back."""
        seen = {"plateau": asdict(self._plateau), "stop": asdict(self._stop)}
        return {"scale": self.scale, "stopped": self.stopped, **seen}

    def load(self, state: Mapping[str, Any]) -> None:
        """Go on from a ``state``."""
        self.scale, self.stopped = float(state["scale"]), bool(state["stopped"])
        self._plateau, self._stop = _Seen(**state["plateau"]), _Seen(**state["stop"])
