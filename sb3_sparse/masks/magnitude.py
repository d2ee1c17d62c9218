"""
Which weights magnitude pruning keeps: the largest of each layer, or the largest of a whole network. Pure functions on tensors.

A weight that is pruned never returns: masks are chosen among the positions that exist.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch as th

from sb3_sparse.masks.patterns import Budget, Pattern
from sb3_sparse.utils.checks import require_choice

#: Across what magnitudes are compared.
SCOPES = ("layer", "global")


def magnitudes(weight: th.Tensor, mask: th.Tensor) -> th.Tensor:
    """
    Score a weight's positions by magnitude.

    :param weight: A weight.
    :param mask: Bool, same shape: which positions exist.
    :return: Its magnitude, -inf where it does not exist. NaN, which a diverged network may hold, counts as 0.0, so that it
        loses against every weight but never lets a pruned one return.
    """
    return th.where(mask, weight.detach().abs().nan_to_num(nan=0.0, posinf=th.inf), -th.inf)


def largest_of_layer(pattern: Pattern, weight: th.Tensor, mask: th.Tensor, budget: Budget) -> th.Tensor:
    """
    Choose the largest weights of a layer.

    :param pattern: The layer's pattern.
    :param weight: The weight.
    :param mask: Bool, same shape: a legal mask.
    :param budget: How much to keep, in no part more than the mask has.
    :return: Bool mask of the largest existing weights, groups or blocks; ties go to the lower index.
    """
    return pattern.select(magnitudes(weight, mask), budget)


def largest_of_network(
    patterns: Mapping[str, Pattern], weights: Mapping[str, th.Tensor], masks: Mapping[str, th.Tensor], n_keep: int
) -> dict[str, th.Tensor]:
    """
    Compare magnitudes across layers; blocks by the mean magnitude of their members. The largest are kept one after the other
    as long as they fit into ``n_keep``: with single weights exactly that many are kept, with blocks fewer by less than one
    block. The largest of each layer stays in any case, so that no layer is cut off.

    :param patterns: Pattern of every layer; not N:M.
    :param weights: The weights by layer, all on one device; ties go to the earlier layer and the lower index.
    :param masks: Bool, same shapes: legal masks.
    :param n_keep: Positions to keep in all layers together.
    :return: Bool masks, subsets of ``masks``.
    """
    pieces = {name: patterns[name].pieces(magnitudes(weights[name], masks[name])) for name in weights}
    scores = th.cat([score for score, _ in pieces.values()])
    sizes = th.cat([size for _, size in pieces.values()])
    lengths = [len(score) for score, _ in pieces.values()]
    ends = th.tensor(lengths).cumsum(0).tolist()
    best = th.tensor(
        [end - length + int(score.argmax()) for end, length, (score, _) in zip(ends, lengths, pieces.values(), strict=True)],
        device=scores.device,
    )
    exists = scores > -th.inf
    scores = scores.clone()
    scores[best] = th.where(exists[best], th.inf, -th.inf)
    order = scores.sort(descending=True, stable=True).indices
    kept = th.zeros_like(exists)
    kept[order] = sizes[order].cumsum(0) <= n_keep
    kept[best] = True
    kept &= exists
    return {
        name: patterns[name].from_pieces(part, weights[name].shape)
        for name, part in zip(weights, kept.split(lengths), strict=True)
    }


def rounding_of_network(patterns: Mapping[str, Pattern], weights: Mapping[str, th.Tensor]) -> int:
    """
    Say by how much a network's number of positions may be missed.

    :param patterns: Pattern of every layer; not N:M.
    :param weights: The weights by layer.
    :return: By how many positions :func:`largest_of_network` may fall short: one less than the largest block has.
    """
    return max(int(patterns[name].pieces(weight.detach())[1].max()) for name, weight in weights.items()) - 1


def check_scope(scope: str, distribution: Any) -> str:
    """
    Check the argument ``scope``.

    :param scope: ``"layer"`` or ``"global"``.
    :param distribution: The distribution that was given beside it.
    :return: The scope.
    :raises ValueError: If it is neither, or global beside a distribution.
    """
    require_choice("scope", scope, SCOPES)
    if scope == "global" and distribution is not None:
        raise ValueError(
            f"`scope`='global' and `distribution`={distribution!r} are both given: with the global scope the magnitudes "
            "decide how a network's sparsity is spread over its layers. Leave one of them out"
        )
    return scope
