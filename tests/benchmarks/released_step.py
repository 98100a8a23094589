"""The bi-level step as the released code takes it, written from the documents: the baseline of the benchmark.

Five forwards and three backwards; text context of 77 tokens; contiguous memory; a deep copy of the model that holds
θ′; graphs kept in the passes of the difference, which nobody goes through; BatchNorm's running statistics moved four
times; `autocast(enabled=False)` around the outer forward. Source: docs/fidelity.md and docs/bilevel.md. Its attention
is torch's fused one, as the released model's is.
"""

from __future__ import annotations

import copy
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import AttentionInterface

Losses = Callable[[nn.Module], Tensor]


def fused_causal(module, query, key, value, attention_mask, scaling, dropout=0.0, **kwargs):
    """Causal attention by torch's fused kernel."""
    out = F.scaled_dot_product_attention(query, key, value, is_causal=True, scale=scaling)
    return out.transpose(1, 2).contiguous(), None


AttentionInterface.register("released_causal", fused_causal)


class ReleasedStep:
    """One step a call.

    Args:
        model: the encoder; its text attention is replaced by the fused one.
        weights: λ [K] at the start.
        lr: α; weight_decay: of AdamW and of the virtual step; lambda_lr: β.
    """

    def __init__(
        self, model: nn.Module, weights: Tensor, lr: float = 1e-5, weight_decay: float = 1e-3, lambda_lr: float = 3e-4
    ) -> None:
        model.text.clip.config._attn_implementation = "released_causal"
        self.model, self.copy = model, copy.deepcopy(model)
        self.weights = weights.clone().requires_grad_()
        self.lr, self.weight_decay = lr, weight_decay
        self.optimizer = torch.optim.AdamW(model.parameters(), lr=lr, weight_decay=weight_decay)
        self.weight_optimizer = torch.optim.Adam([self.weights], lr=lambda_lr)

    def __call__(self, task_losses: Losses, outer_loss: Losses) -> list[float]:
        """A step; gives the task losses before it."""
        parameters = list(self.model.parameters())
        loss = (self.weights.detach() * task_losses(self.model)).sum()
        gradients = torch.autograd.grad(loss, parameters)
        with torch.no_grad():
            for ahead, p, g in zip(self.copy.parameters(), parameters, gradients, strict=True):
                ahead.copy_(p - self.lr * (g + self.weight_decay * p))
        with torch.autocast(parameters[0].device.type, enabled=False):
            outer = outer_loss(self.copy)
        v = torch.autograd.grad(outer, list(self.copy.parameters()))
        self.weights.grad = -self.lr * self._difference(task_losses, parameters, v)
        self.weight_optimizer.step()
        self.optimizer.zero_grad()
        losses = task_losses(self.model)
        (self.weights.detach() * losses).sum().backward()
        self.optimizer.step()
        return losses.tolist()

    def _difference(self, task_losses: Losses, parameters: list[Tensor], v: tuple[Tensor, ...]) -> Tensor:
        eps = 0.01 / torch.cat([part.reshape(-1) for part in v]).norm()
        self._shift(parameters, v, eps)
        above = task_losses(self.model)
        self._shift(parameters, v, -2 * eps)
        below = task_losses(self.model)
        self._shift(parameters, v, eps)
        return (above.detach() - below.detach()) / (2 * eps)

    @staticmethod
    def _shift(parameters: list[Tensor], v: tuple[Tensor, ...], by: Tensor) -> None:
        with torch.no_grad():
            for p, part in zip(parameters, v, strict=True):
                p += by * part
