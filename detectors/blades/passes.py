"""The passes of a bi-level step through a network: precision, layout, recomputation and BatchNorm in one place."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from detectors.blades.bilevel import Params
from detectors.blades.encoder import JointEncoder, batch_statistics_only
from detectors.blades.forward_mode import Outputs, convolutions_kept, quick_forward_mode
from detectors.blades.running_statistics import RunningStatistics, Statistics

Work = tuple[tuple[Any, ...], Callable[[Tensor], Tensor]]
"""Inputs of the network, and what becomes of its logits: the task losses `[K]`, or the outer loss."""


@dataclass(frozen=True)
class Modes:
    """How passes run.

    Attributes:
        precision: `bf16` runs forwards under autocast; losses are float32.
        compiled: stands in for the network in passes that are not forward-mode.
        keep: keep convolutions' outputs at θ for the forward-mode pass.
        collect_all: collect BatchNorm's statistics at θ ± εv too, not at θ alone.
        recompute_outer: blocks of the outer pass compute their activations again in its backward.
    """

    precision: Literal["fp32", "tf32", "bf16"] = "fp32"
    compiled: Callable[..., Tensor] | None = None
    keep: bool = True
    collect_all: bool = False
    recompute_outer: bool = False


class NetworkPasses:
    """`bilevel.Passes` through an encoder on an inner and an outer batch.

    Args:
        network: in training mode.
        statistics: its BatchNorm layers; `updates` gives what was collected.
        modes: how passes run.
        inner, outer: inputs, and logits → losses.
    """

    def __init__(
        self, network: JointEncoder, statistics: RunningStatistics, modes: Modes, *, inner: Work, outer: Work
    ) -> None:
        self.network, self.statistics, self.modes = network, statistics, modes
        self.inner, self.outer_work = inner, outer
        self.half = torch.bfloat16 if modes.precision == "bf16" else None
        self.collected: dict[str, Statistics] = {}
        self.kept: Outputs = {}

    def losses(self, at: Literal["theta", "plus", "minus"]) -> Tensor:
        """Task losses of the inner batch. The passes of the difference are float32 whatever the precision."""
        modes = self.modes
        with ExitStack() as stack:
            if at == "theta" or modes.collect_all:
                stack.enter_context(self.statistics.collected(self.collected.setdefault(at, [])))
            else:
                stack.enter_context(batch_statistics_only(self.network))
            if at == "theta" and modes.keep and modes.compiled is None:
                stack.enter_context(convolutions_kept(self.network.image, self.kept))
            return self._through(self._network(), self.inner, self.half if at == "theta" else None)

    def outer(self) -> Tensor:
        """The outer loss of the outer batch."""
        with ExitStack() as stack:
            stack.enter_context(batch_statistics_only(self.network))
            if self.modes.recompute_outer:
                stack.enter_context(recomputed(self.network))
            return self._through(self._network(), self.outer_work, self.half)

    def _network(self) -> Callable[..., Tensor]:
        return self.network if self.modes.compiled is None else self.modes.compiled

    def losses_at(self, params: Params) -> Tensor:
        """Task losses of the inner batch for forward mode at θ: convolutions' outputs are taken from the pass there."""
        return self._functional(params, self.kept, self.half)

    def losses_anywhere(self, params: Params) -> Tensor:
        """Task losses of the inner batch at any parameters, in float32, without a graph (the audit)."""
        return self._functional(params, {}, None)

    def _functional(self, params: Params, kept: Outputs, dtype: torch.dtype | None) -> Tensor:
        def network(*inputs: Any) -> Tensor:
            return torch.func.functional_call(self.network, params, inputs)

        with batch_statistics_only(self.network), quick_forward_mode(self.network.image, kept, dtype):
            return self._through(network, self.inner, None)

    def _through(self, network: Callable[..., Tensor], work: Work, dtype: torch.dtype | None) -> Tensor:
        inputs, to_loss = work
        if dtype is None:
            return to_loss(network(*inputs))
        # Uncached: a cached half-precision copy of a weight would outlive the swap of its values for θ′.
        with torch.autocast(inputs[0].device.type, dtype, cache_enabled=False):
            logits = network(*inputs)
        return to_loss(logits.float())

    def updates(self, count: int) -> list[Statistics]:
        """The statistics that move the running ones: at θ once, or as released at θ, θ + εv, θ − εv and θ again."""
        theta = self.collected["theta"]
        if count == 1:
            return [theta]
        return [theta, self.collected.get("plus", theta), self.collected.get("minus", theta), theta]


class _EachTime(AbstractContextManager[None]):
    """A context that can be entered again: a graph that is gone through twice recomputes twice."""

    def __init__(self, make: Callable[[], AbstractContextManager[None]]) -> None:
        self.make = make

    def __enter__(self) -> None:
        self.inside = self.make()
        self.inside.__enter__()

    def __exit__(self, *error: Any) -> bool | None:
        return self.inside.__exit__(*error)


def checkpointed(block: nn.Module) -> None:
    """Make a block compute its activations again in each backward instead of keeping them; the same numbers.

    Recomputation goes through BatchNorm as the forward did, and moves no running statistics.
    """
    forward = block.forward
    statistics = RunningStatistics(block)

    def again(*inputs: Any, **named: Any) -> Any:
        if not torch.is_grad_enabled():
            return forward(*inputs, **named)
        collecting = any(layer.track_running_stats and layer.training for layer in statistics.layers)

        def contexts() -> tuple[AbstractContextManager[Any], AbstractContextManager[Any]]:
            return nullcontext(), _EachTime(
                statistics.collected if collecting else partial(batch_statistics_only, block)
            )

        return checkpoint(forward, *inputs, use_reentrant=False, preserve_rng_state=False, context_fn=contexts, **named)

    block.forward = again


def blocks_of(network: JointEncoder) -> list[nn.Module]:
    """The residual blocks of the image tower and the layers of the text tower."""
    towers = (*network.image.net.encoder.stages, network.text.clip.encoder)
    return [block for tower in towers for block in tower.layers]


@contextmanager
def recomputed(network: JointEncoder) -> Iterator[None]:
    """Forwards inside are those of :func:`checkpointed` blocks; their backward may come when this is left."""
    blocks = blocks_of(network)
    for block in blocks:
        checkpointed(block)
    try:
        yield
    finally:
        for block in blocks:
            del block.forward  # the instance's own, which hid the class's


@contextmanager
def kernels(modes: Modes) -> Iterator[None]:
    """Torch's switches for a step: TensorFloat-32 where asked for and nowhere else (torch lets cuDNN use it unless
    told not to), and saved tensors that outlive a first backward.

    (Compiled forwards give theirs away in the first backward unless told not to; a step goes back twice.)
    """
    cuda, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
    before = (cuda.allow_tf32, cudnn.allow_tf32)
    try:
        cuda.allow_tf32 = cudnn.allow_tf32 = modes.precision == "tf32"
        if modes.compiled is None:
            yield
        else:
            with torch._functorch.config.patch(donated_buffer=False):
                yield
    finally:
        cuda.allow_tf32, cudnn.allow_tf32 = before
