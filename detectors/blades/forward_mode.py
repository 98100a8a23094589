"""The forward-mode pass through the image tower, made about as cheap as two and a half forwards.

Torch has forward-mode rules for every layer, but two of them cost more than they must. A convolution is computed
again although its result at θ is still there, kept by the graph of the inner forward; and BatchNorm's rule is a
dozen passes over memory, although the normalisation's Jacobian is symmetric and the fused backward kernel therefore
applies it. Both are replaced inside `quick_forward_mode`; values are torch's up to the order of sums.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import Function

Outputs = dict[nn.Conv2d, Tensor]
Forward = Callable[[Tensor], Tensor]


@contextmanager
def convolutions_kept(module: nn.Module, kept: Outputs) -> Iterator[None]:
    """Inside, each convolution's output is put into `kept`: tensors that the graph of a forward keeps anyway."""

    def keep(layer: nn.Module, _: Any, output: Tensor) -> None:
        assert isinstance(layer, nn.Conv2d)
        kept[layer] = output.detach()

    hooks = [m.register_forward_hook(keep) for m in module.modules() if isinstance(m, nn.Conv2d)]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


@contextmanager
def quick_forward_mode(
    module: nn.Module, kept: Mapping[nn.Conv2d, Tensor], dtype: torch.dtype | None = None
) -> Iterator[None]:
    """Inside, layers of `module` use the cheap forward-mode rules; for passes without a graph, in training mode.

    A convolution that is in `kept` gives that output instead of computing it, so its input and weight must be those
    of the pass that made it. Running statistics are neither used nor moved. With `dtype`, convolutions and what lies
    between them are in that precision, as under autocast (which forward mode cannot pass), linear layers in their own.
    """
    changed: list[nn.Module] = []
    try:
        for layer in module.modules():
            forward = _cheap(layer, kept, dtype)
            if forward is not None:
                layer.forward = forward  # hides the method of the class until it is deleted
                changed.append(layer)
        yield
    finally:
        for layer in changed:
            del layer.forward


def _cheap(layer: nn.Module, kept: Mapping[nn.Conv2d, Tensor], dtype: torch.dtype | None) -> Forward | None:
    """A stand-in for the layer's forward, or None where torch's own is as good."""
    if type(layer) is nn.Conv2d and layer.bias is None and layer.padding_mode == "zeros":
        options = (layer.stride, layer.padding, layer.dilation, layer.groups)

        def convolution(inputs: Tensor) -> Tensor:
            return _Convolution.apply(_to(inputs, dtype), _to(layer.weight, dtype), kept.get(layer), options)

        return convolution
    if type(layer) is nn.BatchNorm2d and layer.training and layer.affine:
        return lambda inputs: _QuickBatchNorm.apply(inputs, layer.weight, layer.bias, layer.eps)[0]
    if type(layer) is nn.Linear and dtype is not None:
        return lambda inputs: nn.functional.linear(inputs.to(layer.weight.dtype), layer.weight, layer.bias)
    return None


def _to(tensor: Tensor, dtype: torch.dtype | None) -> Tensor:
    return tensor if dtype is None else tensor.to(dtype)


class _Convolution(Function):
    """A convolution without bias whose output may be known; its tangent is w∗ẋ + ẇ∗x."""

    @staticmethod
    def forward(inputs: Tensor, weight: Tensor, output: Tensor | None, options: tuple[Any, ...]) -> Tensor:
        if output is None:
            return nn.functional.conv2d(inputs, weight, None, *options)
        return output.view_as(output)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        x, weight, _, ctx.options = inputs
        ctx.save_for_forward(x, weight)
        ctx.set_materialize_grads(False)

    @staticmethod
    def jvp(ctx: Any, x_tangent: Tensor | None, weight_tangent: Tensor | None, *_: Any) -> Tensor | None:
        x, weight = ctx.saved_tensors
        parts = []
        if x_tangent is not None:
            parts.append(nn.functional.conv2d(x_tangent, weight, None, *ctx.options))
        if weight_tangent is not None:
            parts.append(nn.functional.conv2d(x, weight_tangent, None, *ctx.options))
        return parts[0].add_(parts[1]) if len(parts) == 2 else (parts[0] if parts else None)


class _QuickBatchNorm(Function):
    """BatchNorm by the batch's statistics; the tangent of x̂ is the backward kernel applied to ẋ."""

    @staticmethod
    def forward(x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> tuple[Tensor, Tensor, Tensor]:
        return torch.native_batch_norm(x, weight, bias, None, None, True, 0.0, eps)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Any, ...]) -> None:
        x, weight, _, ctx.eps = inputs
        _, mean, scale = output
        ctx.save_for_forward(x, weight, mean, scale)
        ctx.mark_non_differentiable(mean, scale)
        ctx.set_materialize_grads(False)

    @staticmethod
    def jvp(
        ctx: Any, x_tangent: Tensor | None, weight_tangent: Tensor | None, bias_tangent: Tensor | None, *_: Any
    ) -> tuple[Tensor | None, None, None]:
        x, weight, mean, scale = ctx.saved_tensors
        tangent: Tensor | None = None
        if x_tangent is not None:
            tangent = torch.ops.aten.native_batch_norm_backward(
                x_tangent, x, weight, None, None, mean, scale, True, ctx.eps, [True, False, False]
            )[0]
        if weight_tangent is not None or bias_tangent is not None:
            slope = torch.zeros_like(weight) if weight_tangent is None else weight_tangent
            affine = torch.native_batch_norm(x, slope, bias_tangent, None, None, True, 0.0, ctx.eps)[0]
            tangent = affine if tangent is None else tangent.add_(affine)
        return tangent, None, None
