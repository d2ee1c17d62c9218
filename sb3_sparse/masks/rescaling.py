"""What pruning may do to the weights that it keeps: bring a layer's survivors to a fixed scale. Pure functions on tensors."""

from __future__ import annotations

import torch as th

#: Standard deviations that kept weights may be given.
RESCALES = ("unit", "fan_in")


def standardized(weight: th.Tensor, mask: th.Tensor, scale: str) -> th.Tensor:
    """
    Standardize the weights of a layer that exist: ``(a - mean) / sd`` over all of them, population standard deviation.

    :param weight: The weight, ``[out, ...]``, exactly 0 where the mask is False.
    :param mask: Bool, same shape: which positions exist.
    :param scale: ``"unit"``: as they are then, with a standard deviation of 1. ``"fan_in"``: divided by the square root of the
        mean number of inputs that an output has left, so that a layer neither enlarges nor shrinks its inputs (Brock et al.
        2021, arXiv 2101.08692, equation 1, has the same for each row of a dense weight).
    :return: The new weight, exactly 0 where the mask is False. A layer with fewer than two weights, or with weights that are
        all equal or not finite, stays as it is: there is nothing to divide by.
    """
    kept = weight.detach()[mask].double()
    if len(kept) < 2:
        return weight.detach().clone()
    deviation = kept.std(correction=0)
    if not bool(deviation.isfinite()) or float(deviation) == 0.0:
        return weight.detach().clone()
    if scale == "fan_in":
        deviation = deviation * (len(kept) / len(weight)) ** 0.5
    result = th.zeros_like(weight)
    result[mask] = ((kept - kept.mean()) / deviation).to(weight.dtype)
    return result
