"""
Own masks of target layers, settled by the kernels.

:meth:`~sb3_sparse.nn.layers.SparseLayer.settle` says what it is to settle, and does it for every pattern. Here the same is
done for unstructured masks, in place, so that the native network of the layer stays: it holds the *support*, all weights that
target updates have made nonzero; the mask is a part of it. The support changes when the topology of the online layer does.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch as th
from torch.autograd.graph import increment_version

from sb3_sparse.engine import native
from sb3_sparse.engine.locks import make_lock
from sb3_sparse.engine.parameter import plain_grad
from sb3_sparse.masks.patterns import Unstructured
from sb3_sparse.nn.layers import SparseLayer, settle_first

#: ``Settled`` in ``src/settle.h``.
_ALREADY, _BEYOND, _NOT_NUMBERS = 0, 2, 3
#: Held while layers settle: whoever comes second finds nothing left to do.
_settling = make_lock()


def only_settles(hooks: Sequence[dict[int, Any]]) -> bool:
    """
    Find out whether all that hooks do is to let layers settle.

    :param hooks: Hooks of modules.
    :return: Whether the kernels may do it in their place.
    """
    return all(hook is settle_first for of_one in hooks for hook in of_one.values())


def settles_natively(layer: SparseLayer) -> bool:
    """
    Find out whether a layer's own mask is one that the kernels settle.

    :param layer: A layer with an own mask.
    :return: Whether its pattern leaves it any mask.
    """
    return type(layer.own_pattern) is Unstructured


def settle(layers: Sequence[SparseLayer]) -> None:
    """
    Let the layers with masks of their own keep their largest weights, as many as they had.

    :param layers: Layers whose parameters the kernels can read; own masks are unstructured.
    """
    with _settling:
        for layer in layers:
            if layer.own_pattern is not None:
                _settle(layer)


def _settle(layer: SparseLayer) -> None:
    weight, mask, values = layer.weight, layer.weight_mask, layer.mask_values
    if values is None:
        return  # every weight exists
    plain = mask.is_cpu and mask.is_contiguous() and values.is_cpu and values.is_contiguous() and values.dtype == weight.dtype
    if not plain or plain_grad(weight) is not None:
        return layer.settle()
    support = layer.support if layer.support is not None else mask.clone()
    settle_weight = native.module.settle if weight.dtype == th.float32 else native.module.settleDouble
    places = th.Tensor.data_ptr(weight), mask.data_ptr(), values.data_ptr(), support.data_ptr()
    settled = settle_weight(weight.numel(), layer.n_active, *places)
    if settled == _NOT_NUMBERS:
        layer.settle()
    elif settled != _ALREADY:
        increment_version([weight])
        if settled == _BEYOND:
            layer.support = support
            layer.mask_version += 1
    return None
