"""What optimizers remember of every weight: reading it, starting it afresh, and how it fades while a weight is pruned."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
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

#: What may be given as an optimizer, for messages.
OPTIMIZER_HELP = (
    "Allowed are the optimizers of torch.optim but LBFGS, Muon and SparseAdam (Adam, AdamW, SGD, RMSprop, ...), "
    "stable_baselines3's RMSpropTFLike, and any other torch.optim.Optimizer whose step() needs no closure"
)
_KNOWN_MODULES = ("torch.optim.", "stable_baselines3.")

#: Factor by which a step with a zero gradient multiplies a moment: state name -> option, or option and index.
_FADES: dict[type[th.optim.Optimizer], dict[str, Any]] = {
    th.optim.Adam: {"exp_avg": ("betas", 0), "exp_avg_sq": ("betas", 1), "max_exp_avg_sq": None},
    th.optim.SGD: {"momentum_buffer": "momentum"},
    th.optim.RMSprop: {"square_avg": "alpha", "grad_avg": "alpha", "momentum_buffer": "momentum"},
}
_FADES[th.optim.AdamW] = _FADES[th.optim.Adam]

#: Optimizers by name whose weights, and moments that start at zero, stay at exactly zero while the gradient is zero. Whatever
#: another one makes of its moments is put back after every step: Adamax keeps its epsilon in ``exp_inf``.
_KEEPS_ZEROS = (
    *("ASGD", "Adadelta", "Adafactor", "Adagrad", "Adam", "AdamW", "NAdam", "RAdam", "RMSprop", "Rprop", "SGD"),
    "RMSpropTFLike",
)

#: States of torch's optimizers that have a value for every position of their parameter.
_PER_POSITION = (
    *("exp_avg", "exp_avg_sq", "max_exp_avg_sq", "exp_inf", "momentum_buffer", "square_avg", "grad_avg", "acc_delta"),
    *("sum", "prev", "step_size", "ax"),
)


def class_of(optimizer: th.optim.Optimizer) -> type[th.optim.Optimizer]:
    """
    Say which class an optimizer is of.

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


def keeps_zeros(optimizer: th.optim.Optimizer) -> bool:
    """
    Whether an optimizer leaves alone what is zero and has a gradient of zero.

    :param optimizer: An optimizer.
    :return: True only for those that are known to.
    """
    return class_of(optimizer).__name__ in _KEEPS_ZEROS and class_of(optimizer).__module__.startswith(_KNOWN_MODULES)


def refusal(optimizer: Any) -> str | None:
    """
    Why an optimizer cannot train a policy of Stable-Baselines3, sparse or not.

    :param optimizer: An optimizer, its class, or whatever was given as one.
    :return: The reason, None if there is none.
    """
    cls = optimizer if isinstance(optimizer, type) else type(optimizer)
    if not issubclass(cls, th.optim.Optimizer):
        return "it is no torch.optim.Optimizer, and masks are kept by the hooks of one"
    if cls.step is th.optim.Optimizer.step:
        return "it has no step() of its own"
    if issubclass(cls, th.optim.SparseAdam):
        return "it takes gradients of sparse layout alone, and those of linear layers and convolutions are dense"
    if issubclass(cls, getattr(th.optim, "Muon", ())):
        return "it takes matrices alone, and policies have biases"
    closure = inspect.signature(cls.step).parameters.get("closure")
    if closure is not None and closure.default is inspect.Parameter.empty:
        return "its step() needs a closure, and Stable-Baselines3 calls step() without one"
    return None


def starts_elsewhere(optimizer: th.optim.Optimizer, key: str) -> bool:
    """
    Whether a moment does not start at zero.

    :param optimizer: An optimizer.
    :param key: Name of a moment.
    :return: Whether that moment starts at something else than zero.
    """
    return key in _starts(optimizer)


def _starts(optimizer: th.optim.Optimizer) -> dict[str, tuple[str, float]]:
    # A class of somebody's own starts as the one it extends
    return next((STARTS[cls.__name__] for cls in class_of(optimizer).__mro__ if cls.__name__ in STARTS), {})


@th.no_grad()
def restart_moments(optimizer: th.optim.Optimizer, weight: nn.Parameter, where: th.Tensor) -> None:
    """
    Put the moments of a weight back to where they start.

    :param optimizer: An optimizer.
    :param weight: One of its parameters, or another one.
    :param where: Bool, shape of the weight: the positions.
    """
    starts = _starts(optimizer)
    for key, value in moments_of(optimizer, weight):
        option, default = starts.get(key, ("", 0.0))
        value.masked_fill_(where, float(optimizer.defaults.get(option, default)))


@th.no_grad()
def clear_moments(optimizer: th.optim.Optimizer, weight: nn.Parameter, where: th.Tensor) -> None:
    """
    Put the moments of a weight that start at zero back to zero; others may be anything where no weight is.

    :param optimizer: An optimizer.
    :param weight: One of its parameters, or another one.
    :param where: Bool, shape of the weight: the positions.
    """
    for key, value in moments_of(optimizer, weight):
        if not starts_elsewhere(optimizer, key):
            value.masked_fill_(where, 0)


def can_fade(optimizer: th.optim.Optimizer) -> bool:
    """
    Whether it is known how an optimizer's moments fade.

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


def check_loadable(optimizer: th.optim.Optimizer, name: str, state_dict: Mapping[str, Any]) -> None:
    """
    Refuse a state that cannot be an optimizer's, before anything is overwritten.

    :param optimizer: The optimizer that is to be loaded.
    :param name: Name of the network that owns it, for messages.
    :param state_dict: What is to be loaded.
    :raises ValueError: For other groups of parameters, as torch does.
    :raises RuntimeError: For moments of another shape than their parameter's, and values that are not finite.
    """
    groups, saved_groups = optimizer.param_groups, state_dict["param_groups"]
    if len(groups) != len(saved_groups):
        raise ValueError(f"{name}.optimizer: loaded state dict has a different number of parameter groups")
    if any(len(own["params"]) != len(saved["params"]) for own, saved in zip(groups, saved_groups, strict=True)):
        raise ValueError(
            f"{name}.optimizer: loaded state dict contains a parameter group that doesn't match the size of optimizer's group"
        )
    parameters = [parameter for group in groups for parameter in group["params"]]
    indices = [index for group in saved_groups for index in group["params"]]
    for index, parameter in zip(indices, parameters, strict=True):
        for key, value in state_dict["state"].get(index, {}).items():
            if not isinstance(value, th.Tensor):
                continue
            if key in _PER_POSITION and value.shape != parameter.shape:
                raise RuntimeError(
                    f"{name}.optimizer: {key} of parameter {index} has shape {tuple(value.shape)}, the parameter "
                    f"{tuple(parameter.shape)}: the file is damaged, or of another architecture"
                )
            if value.is_floating_point() and not bool(th.isfinite(value).all()):
                raise RuntimeError(
                    f"{name}.optimizer: {key} of parameter {index} has values that are not finite: the file is damaged, or "
                    "its training had diverged"
                )
