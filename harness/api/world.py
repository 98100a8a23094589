"""Several processes that train one network together: who am I, gather, sum.

Losses that look at pairs are no means of the processes' losses, so each process computes the loss of the whole batch:
it gathers the outputs of all (with gradient for its own), and parameters' gradients are summed. Every process then has
the same losses, and whatever follows from them. Who started the processes does not matter: `torch.distributed` is
what they share.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, distributed

from harness.api.errors import ConfigError


@dataclass(frozen=True)
class World:
    """This process among those that train together; the default is alone."""

    rank: int = 0
    size: int = 1

    @classmethod
    def here(cls) -> World:
        """The world that `torch.distributed` was started with; alone where it was not."""
        if not (distributed.is_available() and distributed.is_initialized()):
            return cls()
        return cls(distributed.get_rank(), distributed.get_world_size())

    def part(self, count: int) -> slice:
        """This process's part of a batch of `count`: equal parts, in the order of ranks.

        Raises:
            ConfigError: the batch cannot be cut into equal parts.
        """
        if count % self.size:
            fix = f"a multiple of {self.size}; a split with fewer images than a batch gives a batch of all it has"
            raise ConfigError(f"a batch of {count} cannot be shared by {self.size} processes", "batch_size", fix)
        each = count // self.size
        return slice(self.rank * each, (self.rank + 1) * each)

    def gather(self, values: Tensor) -> Tensor:
        """`[size · B, ...]` of every process's `values [B, ...]`, in the order of ranks, on every process.

        Differentiable in reverse mode (a process gets the gradient of its own part: sum parameters' gradients after)
        and in forward mode. Floating point.
        """
        return values if self.size == 1 else _Gather.apply(values, self.rank, self.size)

    def gather_plain(self, values: Tensor) -> Tensor:
        """As `gather`, for values of any kind and without gradient."""
        if self.size == 1:
            return values
        if values.dtype == torch.bool:  # not every backend sends truth values
            return _gathered(values.to(torch.uint8), self.size).to(torch.bool)
        return _gathered(values.detach(), self.size)

    def sum_(self, tensors: Iterable[Tensor]) -> None:
        """Add up over the processes, in place; in one message."""
        parts = [t for t in tensors if t is not None]
        if self.size == 1 or not parts:
            return
        flat = torch.cat([t.reshape(-1) for t in parts])
        distributed.all_reduce(flat)
        with torch.no_grad():
            for t, summed in zip(parts, flat.split([t.numel() for t in parts]), strict=True):
                t.copy_(summed.view(t.shape))

    def any(self, said: Sequence[bool], device: str = "cpu") -> list[bool]:
        """Of each thing whether any process says so; one message."""
        if self.size == 1:
            return list(said)
        votes = torch.tensor([float(one) for one in said], device=device)
        distributed.all_reduce(votes)
        return [vote > 0 for vote in votes.tolist()]

    def first(self, value: Any) -> Any:
        """What rank 0 has, on every process (JSON-like values)."""
        if self.size == 1:
            return value
        box = [value]
        distributed.broadcast_object_list(box, src=0)
        return box[0]

    def alike(self, tensors: Iterable[Tensor]) -> bool:
        """Whether all processes hold these tensors to the bit; one message of 32 bytes."""
        if self.size == 1:
            return True
        digest, device = hashlib.sha256(), "cpu"
        for t in tensors:
            device = str(t.device) if t.is_cuda else device
            digest.update(t.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
        mine = torch.tensor([list(digest.digest())], dtype=torch.uint8, device=device)
        everyones = _gathered(mine, self.size)
        return bool((everyones == mine).all().item())

    def wait(self) -> None:
        """Until all processes are here."""
        if self.size > 1:
            distributed.barrier()


def _gathered(values: Tensor, size: int) -> Tensor:
    parts = [torch.empty_like(values, memory_format=torch.contiguous_format) for _ in range(size)]
    distributed.all_gather(parts, values.contiguous())
    return torch.cat(parts)


class _Gather(torch.autograd.Function):
    """Gather with derivatives; every process goes through it in the same order, so that messages meet."""

    @staticmethod
    def forward(values: Tensor, rank: int, size: int) -> Tensor:
        return _gathered(values, size)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, int, int], output: Tensor) -> None:
        values, ctx.rank, ctx.size = inputs
        ctx.rows = len(values)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        return gradients[0][ctx.rank * ctx.rows : (ctx.rank + 1) * ctx.rows], None, None

    @staticmethod
    def jvp(ctx: Any, tangent: Tensor, *rest: Any) -> Tensor:
        return _gathered(tangent, ctx.size)
