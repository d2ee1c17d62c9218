"""What optimizers remember of every weight: reading it, starting it afresh, and how it fades while a weight is pruned."""

from __future__ import annotations

from typing import Any

import torch as th
from torch import nn

#: Optimizer state that does not start at zero: state name -> (option that holds the start value, value without it).
#: SB3's RMSpropTFLike starts its mean square at one, Adagrad its sum and Rprop its step size at an option.
STARTS: dict[str, dict[str, tuple[str, float]]] = {
    "RMSpropTFLike": {"square_avg": ("", 1.0)},
    "Adagrad": {"sum": ("initial_accumulator_value", 0.0)},
    "Rprop": {"step_size": ("lr", 0.0)},
}

#: Factor by which a step with a zero gradient multiplies a moment: state name -> option, or option and index.
_FADES: dict[type[th.optim.Optimizer], dict[str, Any]] = {
    th.optim.Adam: {"exp_avg": ("betas", 0), "exp_avg_sq": ("betas", 1), "max_exp_avg_sq": None},
    th.optim.SGD: {"momentum_buffer": "momentum"},
    th.optim.RMSprop: {"square_avg": "alpha", "grad_avg": "alpha", "momentum_buffer": "momentum"},
}
_FADES[th.optim.AdamW] = _FADES[th.optim.Adam]


def class_of(optimizer: th.optim.Optimizer) -> type[th.optim.Optimizer]:
    """
    :param optimizer: An optimizer.
    :return: Its class, or the stock class that it stands for: what an engine makes of an optimizer says so by ``stands_for``.
    """
    return getattr(type(optimizer), "stands_for", type(optimizer))


def moments_of(optimizer: th.optim.Optimizer, weight: nn.Parameter) -> list[tuple[str, th.Tensor]]:
    """
    An optimizer's state of a weight that has one value per position. Looked up each time: loading replaces it.

    :param optimizer: An optimizer.
    :param weight: One of its parameters, or another one.
    :return: Name and tensor, shape of the weight, of every such state.
    """
    state = optimizer.state.get(weight, {})
    return [(key, value) for key, value in state.items() if isinstance(value, th.Tensor) and value.shape == weight.shape]


def starts_elsewhere(optimizer: th.optim.Optimizer, key: str) -> bool:
    """
    :param optimizer: An optimizer.
    :param key: Name of a moment.
    :return: Whether that moment starts at something else than zero.
    """
    return key in STARTS.get(class_of(optimizer).__name__, {})


@th.no_grad()
def restart_moments(optimizer: th.optim.Optimizer, weight: nn.Parameter, where: th.Tensor) -> None:
    """
    Put the moments of a weight back to where they start.

    :param optimizer: An optimizer.
    :param weight: One of its parameters, or another one.
    :param where: Bool, shape of the weight: the positions.
    """
    starts = STARTS.get(class_of(optimizer).__name__, {})
    for key, value in moments_of(optimizer, weight):
        option, default = starts.get(key, ("", 0.0))
        value.masked_fill_(where, float(optimizer.defaults.get(option, default)))


def can_fade(optimizer: th.optim.Optimizer) -> bool:
    """
    :param optimizer: An optimizer.
    :return: Whether :func:`fade` knows its moments.
    """
    return class_of(optimizer) in _FADES


def fade(optimizer: th.optim.Optimizer, key: str, n_steps: int) -> float:
    """
    By what a moment shrinks while its gradient is zero.

    :param optimizer: Adam, AdamW, SGD or RMSprop.
    :param key: Name of the moment.
    :param n_steps: Number of optimizer steps.
    :return: The factor.
    """
    option = _FADES[class_of(optimizer)].get(key)
    if option is None:  # a running maximum stays
        return 1.0
    group = optimizer.param_groups[0]
    factor = group[option] if isinstance(option, str) else group[option[0]][option[1]]
    return float(factor) ** n_steps
