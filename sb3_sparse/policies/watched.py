"""Modules that are taken to do what their class says, and what tells that they do not."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from stable_baselines3.common.torch_layers import FlattenExtractor
from torch import nn
from torch.nn.modules import module as torch_module

#: Methods by which an object could do something else than its class.
_METHODS = frozenset(
    {
        *("forward", "__call__", "extract_features", "action_log_prob", "get_action_dist_params", "q1_forward", "train"),
        *("_predict", "obs_to_tensor"),
    }
)
_global_hooks: list[dict[int, Any]] = [
    torch_module._global_forward_hooks,
    torch_module._global_forward_pre_hooks,
    torch_module._global_backward_hooks,
    torch_module._global_backward_pre_hooks,
]


def is_flat(extractor: nn.Module) -> bool:
    """
    Find out whether features are the observations, flattened.

    :param extractor: A features extractor.
    :return: Whether it is the stock one, and still has the stock layer.
    """
    flatten = getattr(extractor, "flatten", None)
    return (
        type(extractor) is FlattenExtractor and type(flatten) is nn.Flatten and (flatten.start_dim, flatten.end_dim) == (1, -1)
    )


class Watched:
    """
    Modules that a stock pass goes through and whose work is done without calling them.

    :param modules: The modules.
    """

    def __init__(self, modules: Sequence[nn.Module]) -> None:
        self._modules = [(module, type(module), module.__dict__, [*module._modules.values()]) for module in modules]
        self._hooks = list(_global_hooks)
        for module in modules:
            self._hooks += [
                module._forward_hooks,
                module._forward_pre_hooks,
                module._backward_hooks,
                module._backward_pre_hooks,
            ]

    def is_present(self) -> bool:
        """Whether the modules still have the children that they had."""
        for _, _, attributes, known in self._modules:  # noqa: SIM110, called before every pass
            if [*attributes["_modules"].values()] != known:
                return False
        return True

    def why_not(self) -> str | None:
        """What a stock pass would do besides, if anything."""
        if any(self._hooks):
            return "a module has hooks"
        for module, kind, attributes, _ in self._modules:
            if type(module) is not kind or not attributes.keys().isdisjoint(_METHODS):
                return f"{type(module).__name__} has a method of its own"
        return None
