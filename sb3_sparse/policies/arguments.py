"""What a policy is given: everything that can be refused by name is, before a network is made."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from difflib import get_close_matches
from typing import Any

from gymnasium import spaces
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.torch_layers import CombinedExtractor, FlattenExtractor, NatureCNN
from torch import nn

from sb3_sparse.masks.config import SparsityConfig
from sb3_sparse.nn.optimizer_state import OPTIMIZER_HELP, refusal
from sb3_sparse.utils.checks import is_integer, is_number, require_integer

#: Where the classes come from whose arguments are known to mean what Stable-Baselines3 says.
STOCK_PACKAGES = ("stable_baselines3", "sb3_contrib")


def constructor_parameters(policy: type[BasePolicy]) -> dict[str, inspect.Parameter]:
    """
    Parameters of a policy's constructor and, as long as it hands ``**kwargs`` on, of those it extends.

    :param policy: A policy class.
    :return: Parameters by name, in order.
    """
    collected: dict[str, inspect.Parameter] = {}
    for cls in policy.__mro__:
        if "__init__" in vars(cls):
            parameters = list(inspect.signature(vars(cls)["__init__"]).parameters.values())[1:]
            variadic = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
            own = {parameter.name: parameter for parameter in parameters if parameter.kind not in variadic}
            collected = {**{name: value for name, value in own.items() if name not in collected}, **collected}
            if not any(parameter.kind is inspect.Parameter.VAR_KEYWORD for parameter in parameters):
                break
    return collected


def check_arguments(
    policy: type[BasePolicy], stock_policy: type[BasePolicy], observation_space: spaces.Space, kwargs: Mapping[str, Any]
) -> None:
    """
    Check what goes to the stock policy.

    :param policy: The sparse policy class.
    :param stock_policy: The one behind it.
    :param observation_space: Observation space.
    :param kwargs: Arguments of the stock policy.
    :raises TypeError: For a keyword that neither knows.
    :raises ValueError: For optimizers that cannot train a policy, observation spaces that it cannot take, and values that
        Stable-Baselines3 would stumble over without naming them.
    """
    stock = constructor_parameters(stock_policy)
    # The first three, spaces and schedule, are the algorithm's to give
    known = (*SparsityConfig.argument_names(), *list(stock)[3:])
    for name in kwargs:
        if name not in known:
            close = get_close_matches(name, known, n=1)
            hint = f" (did you mean {close[0]!r}?)" if close else ""
            raise TypeError(f"unknown policy_kwargs {name!r}{hint}; {policy.__name__} takes: {', '.join(known)}")
    # What a policy of somebody's own makes of an argument is its own affair
    if stock_policy.__module__.partition(".")[0] in STOCK_PACKAGES:
        _check_stock_arguments(stock_policy, kwargs)
    optimizer_class = kwargs.get("optimizer_class")
    if isinstance(optimizer_class, type) and (reason := refusal(optimizer_class)) is not None:
        raise ValueError(f"`optimizer_class`={optimizer_class.__name__} cannot train a policy: {reason}. {OPTIMIZER_HELP}")
    extractor = kwargs.get("features_extractor_class") or stock["features_extractor_class"].default
    if isinstance(extractor, type):  # otherwise whatever makes one
        _check_observations(policy, extractor, observation_space)


def _check_observations(policy: type[BasePolicy], extractor: type, observation_space: spaces.Space) -> None:
    if isinstance(observation_space, spaces.Dict) and issubclass(extractor, (FlattenExtractor, NatureCNN)):
        raise ValueError(
            f"You must use `SparseMultiInputPolicy` when working with dict observation space, not {policy.__name__} "
            f"with {extractor.__name__} as `features_extractor_class`"
        )
    if not isinstance(observation_space, spaces.Dict) and issubclass(extractor, CombinedExtractor):
        raise ValueError(
            f"{policy.__name__} is for dict observation spaces, got {observation_space}: use `SparseMlpPolicy`, or "
            "`SparseCnnPolicy` for images, or another `features_extractor_class`"
        )


# --- Values of stock arguments ---


def _check_stock_arguments(stock_policy: type[BasePolicy], kwargs: Mapping[str, Any]) -> None:
    if kwargs.get("net_arch") is not None:
        _check_net_arch(stock_policy, kwargs["net_arch"])
    for name, allowed in (
        ("activation_fn", "a class of torch.nn, such as nn.ReLU"),
        ("optimizer_class", "a class of torch.optim, such as Adam"),
        ("features_extractor_class", "a class that extends BaseFeaturesExtractor"),
    ):
        # An instance of a module can be called, too, but makes no other one
        if name in kwargs and (not callable(kwargs[name]) or isinstance(kwargs[name], nn.Module)):
            raise ValueError(f"`{name}` must be {allowed}, got {kwargs[name]!r}")
    for name in ("optimizer_kwargs", "features_extractor_kwargs", "lstm_kwargs"):
        if not isinstance(kwargs.get(name), (Mapping, type(None))):
            raise ValueError(f"`{name}` must be None or a dict of keyword arguments, got {kwargs[name]!r}")
    for name in ("n_critics", "n_quantiles", "lstm_hidden_size", "n_lstm_layers"):
        if name in kwargs:
            require_integer(name, kwargs[name], low=1)
    if "log_std_init" in kwargs and not is_number(kwargs["log_std_init"]):
        raise ValueError(f"`log_std_init` must be a number, got {kwargs['log_std_init']!r}")


def _check_net_arch(stock_policy: type[BasePolicy], net_arch: Any) -> None:
    parameters = constructor_parameters(stock_policy)
    # Actor-critic policies of on-policy algorithms can do without either key
    on_policy, q_network = "ortho_init" in parameters, not {"ortho_init", "n_critics"} & set(parameters)
    towers = [] if q_network else ["pi", "vf" if on_policy else "qf"]
    if on_policy and isinstance(net_arch, (list, tuple)) and len(net_arch) == 1 and isinstance(net_arch[0], Mapping):
        net_arch = net_arch[0]  # as it was written once; Stable-Baselines3 has a warning for it
    # Off-policy, only a list is taken for the architecture of both networks
    is_right = on_policy or q_network or isinstance(net_arch, (list, Mapping))
    if towers and isinstance(net_arch, Mapping):
        is_right = on_policy or all(tower in net_arch for tower in towers)
        widths = [net_arch[tower] for tower in towers if tower in net_arch]
    else:
        widths = [net_arch]
    if not is_right or not all(_are_widths(one) for one in widths):
        maps = f", or a dict of such lists by {' and '.join(map(repr, towers))}" if towers else ""
        raise ValueError(f"`net_arch` must be a list of numbers of units, integers >= 1{maps}; got {net_arch!r}")


def _are_widths(widths: Any) -> bool:
    return isinstance(widths, (list, tuple)) and all(is_integer(width) and width >= 1 for width in widths)


def check_optimizer(name: str, optimizer: Any) -> None:
    """
    Refuse an optimizer that a policy has been given or has made itself.

    :param name: Name of the network that owns it.
    :param optimizer: The optimizer.
    :raises ValueError: If it cannot train a policy, with the reason.
    """
    if (reason := refusal(optimizer)) is not None:
        cls = type(optimizer).__name__
        raise ValueError(f"the optimizer of {name!r} is a {cls}, which cannot train a policy: {reason}. {OPTIMIZER_HELP}")
