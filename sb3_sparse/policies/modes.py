"""
Training and evaluation mode, remembered.

Stock algorithms set the mode of a whole policy several times for each environment step, and torch walks through all of its
modules each time. Here the modules that such a walk reaches are known, as long as they are what they were.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from stable_baselines3.common.policies import BaseModel
from torch import nn

from sb3_sparse.engine.sequence import SparseSequential

#: Packages whose ``set_training_mode`` does nothing but to set modes.
_KNOWN = ("stable_baselines3.", "sb3_contrib.", "sb3_sparse.")
_PLAIN_TRAIN = (nn.Module.train, SparseSequential.train)


def _is_plain(module: nn.Module) -> bool:
    """Whether setting a module's mode sets its attribute, goes on to its children and does nothing else."""
    kind = type(module)
    if kind.train not in _PLAIN_TRAIN or not module.__dict__.keys().isdisjoint(("train", "set_training_mode")):
        return False
    return not isinstance(module, BaseModel) or type(module).set_training_mode.__module__.startswith(_KNOWN)


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
        for module, kind, attributes, known in self._modules:
            if type(module) is not kind or "train" in attributes:
                return False
            children = attributes["_modules"]
            if (children or known) and [*children.values()] != known:
                return False
            attributes["training"] = mode
        return bool(self._modules)

    def find(self, policy: nn.Module, set_mode: Callable[[bool], None], mode: bool) -> None:
        """
        Set the mode by the policy's own method, and remember which modules it reached.

        :param policy: A policy.
        :param set_mode: Its own method.
        :param mode: Whether to train.
        """
        before = [(module, module.__dict__["training"]) for module in policy.modules()]
        for module, _ in before:
            module.__dict__["training"] = None
        try:
            set_mode(mode)
        finally:
            reached = [module for module, _ in before if module.__dict__["training"] is not None]
            for module, training in before:
                if module.__dict__["training"] is None:
                    module.__dict__["training"] = training
        found = [(module, type(module), module.__dict__, [*module._modules.values()]) for module in reached]
        self._modules = found if all(map(_is_plain, reached)) else []
