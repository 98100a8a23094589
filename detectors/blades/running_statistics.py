"""Running statistics of BatchNorm as a bi-level step needs them: collected in a pass, committed when it is over."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor, nn

Statistics = list[tuple[Tensor, Tensor]]
"""Mean and unbiased variance `[C]` of one batch, a pair a layer."""


class _Kept(NamedTuple):
    mean: Tensor
    variance: Tensor
    batches: Tensor
    momentum: float | None


class RunningStatistics:
    """The BatchNorm layers of a module, in order; those in evaluation mode (frozen) are left alone.

    A step that fails must leave running statistics alone, and the released one moves them four times, once from
    activations that we go through only once. So passes collect what the batch's statistics are, and `commit` moves.
    """

    def __init__(self, module: nn.Module) -> None:
        self.layers = [m for m in module.modules() if isinstance(m, nn.BatchNorm2d) and m.track_running_stats]

    def moving(self) -> list[nn.BatchNorm2d]:
        """The layers in training mode: the others normalise with their running statistics, and keep them."""
        return [layer for layer in self.layers if layer.training]

    @contextmanager
    def collected(self, into: Statistics | None = None) -> Iterator[None]:
        """Inside, a forward in training mode collects `into`; running statistics are afterwards as before."""
        layers = self.moving()
        kept = [_Kept(*self._buffers(layer), layer.momentum) for layer in layers]
        try:
            for layer, old in zip(layers, kept, strict=True):
                layer.running_mean, layer.running_var = torch.zeros_like(old.mean), torch.ones_like(old.variance)
                layer.num_batches_tracked = torch.zeros_like(old.batches)
                layer.momentum = 1.0  # the new statistic replaces the old: torch writes the batch's own
            yield
            if into is not None:
                into[:] = [self._buffers(layer)[:2] for layer in layers]
        finally:
            for layer, old in zip(layers, kept, strict=True):
                layer.running_mean, layer.running_var, layer.num_batches_tracked = old[:3]
                layer.momentum = old.momentum

    def commit(self, batches: Sequence[Statistics]) -> None:
        """Move the running statistics once for each of these batches, in order, as torch does (unbiased variance)."""
        with torch.no_grad():
            for statistics in batches:
                for layer, new in zip(self.moving(), statistics, strict=True):
                    mean, variance, count = self._buffers(layer)
                    count += 1
                    share = 1 / float(count) if layer.momentum is None else layer.momentum
                    for old, value in zip((mean, variance), new, strict=True):
                        old.copy_((1 - share) * old.double() + share * value.double())

    @staticmethod
    def _buffers(layer: nn.BatchNorm2d) -> tuple[Tensor, Tensor, Tensor]:
        mean, variance, count = layer.running_mean, layer.running_var, layer.num_batches_tracked
        assert mean is not None
        assert variance is not None
        assert count is not None
        return mean, variance, count
