"""
Normalisation over units some of which are constant.

In a sparse network a unit may have no inputs, or only inputs that are constant over a batch; its variance over the batch is
exactly zero then. Torch's own normalisations have their epsilon under the root, so that their gradients stay finite. CrossQ's
batch renormalisation takes the root of the bare variance after its warm-up, and the derivative of that root at zero times zero
is NaN, which reaches every parameter before it.
"""

from __future__ import annotations

from typing import Any

import torch as th
from sb3_contrib.common.torch_layers import BatchRenorm
from torch import nn


class _KeepFinite(th.autograd.Function):
    """
    Hands its input on. In the backward pass, a unit that is constant over the batch gets a gradient of zero where it would
    get one that is not finite. What normalises over the batch takes the mean of a constant away, so that zero is the truth.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(x: th.Tensor) -> th.Tensor:
        return x.view_as(x)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[th.Tensor], output: th.Tensor) -> None:
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx: Any, *gradients: th.Tensor) -> th.Tensor:
        (x,), (gradient,) = ctx.saved_tensors, gradients
        constant = (x == x[:1]).all(dim=0)
        return gradient.masked_fill(constant & ~th.isfinite(gradient), 0.0)


def _guard(module: nn.Module, inputs: tuple[th.Tensor, ...]) -> tuple[th.Tensor, ...] | None:
    """Forward pre-hook of a batch renormalisation. A plain function, so that copies keep it."""
    x = inputs[0]
    if module.training and x.requires_grad and th.is_grad_enabled():
        return (_KeepFinite.apply(x), *inputs[1:])
    return None


def keep_gradients_finite(policy: nn.Module) -> None:
    """
    Let constant units do no harm in a policy's batch renormalisations. Nothing else changes: outputs and all gradients that
    are finite stay as they are, to the last bit.

    :param policy: A policy, changed in place.
    """
    for module in policy.modules():
        if isinstance(module, BatchRenorm) and _guard not in module._forward_pre_hooks.values():
            module.register_forward_pre_hook(_guard)
