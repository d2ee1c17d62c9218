"""Whether a sparse network keeps its promises: exact zeros, exact counts, legal patterns, targets that follow."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch as th

from sb3_sparse.nn.layers import SparseLayer
from sb3_sparse.nn.optimizer_state import moments_of, starts_elsewhere

if TYPE_CHECKING:
    from sb3_sparse.nn.sparsifier import Sparsifier


def violations(sparsifier: Sparsifier) -> list[str]:
    """
    Check the invariants of every layer.

    :param sparsifier: The sparsifier of a policy.
    :return: One line for each breach; empty when all hold.
    """
    return [breach for name in sparsifier.layers for breach in _layer_violations(sparsifier, name)]


def _layer_violations(sparsifier: Sparsifier, name: str) -> list[str]:
    layer, plan, found = sparsifier.layers[name], sparsifier.plan[name], []
    pruned = ~layer.weight_mask
    tensors: list[tuple[str, th.Tensor | None]] = [("weight", layer.weight), ("gradient", layer.weight.grad)]
    for optimizer in sparsifier.optimizers.values():
        moments = moments_of(optimizer, layer.weight)
        tensors += [(f"moment {key}", value) for key, value in moments if not starts_elsewhere(optimizer, key)]
    for what, tensor in tensors:
        if tensor is not None and bool((tensor[pruned] != 0).any()):
            found.append(f"{name}: {what} is not 0 outside the mask")
    n_active, n_planned = int(layer.weight_mask.sum()), sparsifier.n_planned[name]
    if not layer.n_active == n_active == n_planned:
        found.append(f"{name}: {n_active} positions, planned are {n_planned}")
    if not plan.pattern.is_legal(layer.weight_mask):
        found.append(f"{name}: the mask breaks the pattern {plan.pattern.spec!r}")
    for target in sparsifier.targets[name]:
        found += [f"{name}: {breach}" for breach in _target_violations(layer, target)]
    return found


def _target_violations(layer: SparseLayer, target: SparseLayer) -> list[str]:
    target.settle()  # looking at it is reading it
    found = []
    if bool((target.weight[~target.weight_mask] != 0).any()):
        found.append("target weight is not 0 outside the mask")
    if target.own_pattern is None and not th.equal(target.weight_mask, layer.weight_mask):
        found.append("the target's mask differs")
    if target.quantizer is not layer.quantizer:
        found.append("the target is not quantized as the online layer is")
    n_active = int(target.weight_mask.sum())
    if target.n_active != layer.n_active or target.n_active != n_active:
        found.append(f"the target has {n_active} positions, online are {layer.n_active}")
    if target.own_pattern is not None and not target.own_pattern.is_legal(target.weight_mask):
        found.append("the target's mask breaks the pattern")
    return found
