"""
Training and evaluation mode, remembered.

Stock algorithms set the mode of a whole policy several times for each environment step, and torch walks through all of its
modules each time. Here the modules that such a walk reaches are known, as long as they are what they were.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from sb3_contrib.crossq.policies import CrossQPolicy
from sb3_contrib.qrdqn.policies import QRDQNPolicy
from sb3_contrib.tqc.policies import TQCPolicy
from stable_baselines3.common.policies import BaseModel
from stable_baselines3.dqn.policies import DQNPolicy
from stable_baselines3.sac.policies import SACPolicy
from stable_baselines3.td3.policies import TD3Policy
from torch import nn

from sb3_sparse.engine.sequence import SparseSequential

#: Stock methods that set the mode of a policy, with the networks that they hand it to; those of others do what they like.
_NETWORKS: dict[Any, tuple[str, ...]] = {
    **{kind.set_training_mode: ("actor", "critic") for kind in (TD3Policy, SACPolicy, TQCPolicy, CrossQPolicy)},
    DQNPolicy.set_training_mode: ("q_net",),
    QRDQNPolicy.set_training_mode: ("quantile_net",),
}
_PLAIN_TRAIN = (nn.Module.train, SparseSequential.train)
#: Methods by which a module could do something else than its class.
_METHODS = ("train", "set_training_mode")


def _is_plain(module: nn.Module) -> bool:
    """Whether setting a module's mode sets its attribute, goes on to its children and does nothing else."""
    kind, attributes = type(module), module.__dict__
    # Compiled and scripted modules have their mode elsewhere
    if kind.train not in _PLAIN_TRAIN or kind.__setattr__ is not nn.Module.__setattr__ or "training" not in attributes:
        return False
    return attributes.keys().isdisjoint(_METHODS) and not hasattr(kind, "training")


def _reached(policy: nn.Module, set_mode: Any) -> list[nn.Module] | None:
    """The modules whose mode a policy's method sets, None if that is not known."""
    if set_mode is BaseModel.set_training_mode:
        modules = [*policy.modules()]
    elif set_mode in _NETWORKS:
        networks: Sequence[Any] = [getattr(policy, name) for name in _NETWORKS[set_mode]]
        if any(type(network).set_training_mode is not BaseModel.set_training_mode for network in networks):
            return None
        modules = [policy, *(module for network in networks for module in network.modules())]
    else:
        return None
    return modules if all(map(_is_plain, modules)) else None


class Modes:
    """The modules whose mode a policy sets. A copy has to find its own."""

    def __init__(self) -> None:
        #: Each with its class, attributes, and children.
        self._modules: list[tuple[nn.Module, type[nn.Module], dict[str, Any], list[Any]]] = []

    def __reduce__(self) -> Any:
        return Modes, ()

    def set(self, mode: bool) -> bool:
        """
        Set the mode of all modules.

        :param mode: Whether to train.
        :return: False, with the mode of some set, if the modules are not known or not what they were.
        """
        modules = self._modules
        for module, kind, attributes, known in modules:
            if type(module) is not kind or "train" in attributes or "set_training_mode" in attributes:
                return False
            children = attributes["_modules"]
            if (children or known) and [*children.values()] != known:
                return False
            attributes["training"] = mode
        return bool(modules)

    def find(self, policy: nn.Module, set_mode: Callable[[bool], None], mode: bool) -> None:
        """
        Set the mode by the policy's own method, and remember which modules it reaches.

        :param policy: A policy.
        :param set_mode: Its own method.
        :param mode: Whether to train.
        """
        set_mode(mode)
        reached = _reached(policy, getattr(set_mode, "__func__", None)) or []
        self._modules = [(module, type(module), module.__dict__, [*module._modules.values()]) for module in reached]
