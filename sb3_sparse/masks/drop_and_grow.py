"""
How a mask changes at an update. Pure functions on tensors: they know nothing of networks, optimizers or clocks.

An update drops active weights of the least magnitude and grows as many positions by some score, so that the number of
positions stays exactly the same. SET (Mocanu et al. 2018; DS-TD3, Sokar et al. 2022) scores at random, RigL (Evci et al.
2020; RLx2, Tan et al. 2023) by the magnitude of the dense gradient: nothing else differs.
"""

from __future__ import annotations

import torch as th

from sb3_sparse.masks.magnitude import magnitudes
from sb3_sparse.masks.patterns import Block, Pattern, top_mask

#: How :func:`survivors` divides the weights to drop between the signs.
SIGN_SPLITS = (False, "half", "proportional")


def survivors(
    pattern: Pattern, weight: th.Tensor, mask: th.Tensor, fraction: float, *, sign_split: bool | str = False
) -> th.Tensor:
    """
    Drop the active weights of least magnitude. Dropped are ``floor(fraction * active)`` weights, or as many whole blocks
    of each size. NaN counts as 0.

    :param pattern: The layer's pattern. N:M drops like unstructured; :func:`regrow` fills the groups up again.
    :param weight: The weights.
    :param mask: Bool, same shape.
    :param fraction: Fraction of the active weights to drop, in [0, 1].
    :param sign_split: False: by magnitude alone. ``"half"``: half of them are the smallest positive, half the negative
        closest to zero (DS-TD3, section 4.1); a sign with too few gives the rest to the other; exact zeros count as positive.
        ``"proportional"``: of each sign the fraction, as DS-TD3's released code has it: it keeps what lies beyond the weight
        at the place of the fraction, so of p positive weights ``floor(fraction * p) + 1`` are dropped, of n negative ones
        ``n - floor((1 - fraction) * n)``, and of exact zeros all, but never the last weight of
        a layer. Unstructured and N:M only.
    :return: Bool mask of the weights that stay.
    """
    sizes = magnitudes(weight, mask)
    if isinstance(pattern, Block):
        return pattern.keep_blocks(sizes, mask, fraction)
    n_active = int(mask.sum())
    n_drop = int(fraction * n_active)
    if not sign_split:
        return top_mask(sizes, n_active - n_drop)
    negative = mask & (weight < 0)
    positive = mask & ~negative
    if sign_split == "half":
        n_negative, n_positive = int(negative.sum()), int(positive.sum())
        drop_negative = min(max(n_drop // 2, n_drop - n_positive), n_negative)
        drop_positive = n_drop - drop_negative
    else:
        positive &= sizes > 0
        n_negative, n_positive = int(negative.sum()), int(positive.sum())
        drop_negative = n_negative - int((1 - fraction) * n_negative)
        drop_positive = min(int(fraction * n_positive) + 1, n_positive)
        if drop_negative == n_negative and drop_positive == n_positive and n_active:
            return top_mask(sizes, 1)  # never the last one
    return top_mask(th.where(positive, sizes, -th.inf), n_positive - drop_positive) | top_mask(
        th.where(negative, sizes, -th.inf), n_negative - drop_negative
    )


def regrow(pattern: Pattern, kept: th.Tensor, mask: th.Tensor, scores: th.Tensor) -> th.Tensor:
    """
    Fill up to the number of positions the mask had. A weight that was just dropped may be grown again.

    :param pattern: The layer's pattern.
    :param kept: Bool mask of the weights that stayed, a subset of ``mask``.
    :param mask: Bool mask before the update.
    :param scores: Finite growth scores, shape of the weight; the highest are grown, ties go to the lower index.
    :return: Bool mask with exactly as many positions as ``mask``, containing ``kept``.
    """
    return pattern.select(th.where(kept, th.inf, scores), pattern.budget_of(mask))
