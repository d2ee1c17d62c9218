"""
Own masks of target layers, settled by the kernels.

:meth:`~sb3_sparse.nn.layers.SparseLayer.settle` says what it is to settle, and does it for every pattern. Here the same is
done for unstructured masks, in place. The native network of such a layer holds all its weights, so that it stays when the mask
changes, and a pass depends on the weights alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch as th
from torch.autograd.graph import increment_version

from sb3_sparse.engine import native
from sb3_sparse.engine.locks import make_lock
from sb3_sparse.engine.parameter import LazyGradParameter, plain_grad
from sb3_sparse.engine.survivors import can_read
from sb3_sparse.masks.patterns import Unstructured
from sb3_sparse.nn.layers import SparseLayer, settles

#: ``Settled`` in ``src/settle.h``; the last means that torch is to do it.
_NOW, _LEFT = 1, 2
#: Held while layers settle: whoever comes second finds nothing left to do.
_settling = make_lock()


def only_settle(hooks: Sequence[dict[int, Any]]) -> bool:
    """
    Find out whether all that hooks do is to let layers settle.

    :param hooks: Hooks of modules.
    :return: Whether the kernels may do it in their place.
    """
    return all(settles(hook) for of_one in hooks for hook in of_one.values())


def settles_natively(layer: SparseLayer) -> bool:
    """
    Find out whether a layer's own mask is one that the kernels settle.

    :param layer: A layer with an own mask.
    :return: Whether its pattern leaves it any mask, and nobody has taken away the hook by which torch lets it settle.
    """
    return type(layer.own_pattern) is Unstructured and any(map(settles, layer._forward_pre_hooks.values()))


def settle(layer: SparseLayer) -> None:
    """
    Let a layer with a mask of its own keep its largest weights, as many as it had.

    :param layer: A layer whose own mask is unstructured. Where the kernels cannot read it, torch does it.
    """
    with _settling:
        if layer.mask_values is not None and _settle(layer, layer.mask_values) == _LEFT:
            layer.settle()


def _settle(layer: SparseLayer, values: th.Tensor) -> int:
    weight, mask = layer.weight, layer.weight_mask
    waits = isinstance(weight, LazyGradParameter) and weight.gradient_waits()
    # Gradients are masked, too
    if waits or plain_grad(weight) is not None or layer.n_active == 0 or not can_read([layer], values.dtype):
        return _LEFT
    if not (mask.is_cpu and mask.is_contiguous() and values.is_cpu and values.is_contiguous()):
        return _LEFT
    settle_weight = native.module.settle if weight.dtype == th.float32 else native.module.settleDouble
    places = th.Tensor.data_ptr(weight), mask.data_ptr(), values.data_ptr()
    settled: int = settle_weight(weight.numel(), layer.n_active, *places)
    if settled == _NOW:
        increment_version([weight])
    return settled
