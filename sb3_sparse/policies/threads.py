"""
Distributions for several threads.

Stock policies keep the action distribution of their last pass in one object. A thread that predicts would exchange it under a
thread that trains, between the pass and its use. Here every thread sees the distribution of its own last pass.
"""

from __future__ import annotations

import threading
from functools import cache
from typing import Any

from stable_baselines3.common.distributions import Distribution
from torch import nn

#: What a pass leaves behind in a distribution object, in stock SB3 and sb3-contrib.
_OF_A_PASS = ("distribution", "distributions", "gaussian_actions", "_latent_sde")


class _Local(threading.local):
    """What the passes of each thread have left behind. A copy has none."""

    def __reduce_ex__(self, protocol: Any) -> Any:
        return _Local, ()


class _PerThread:
    """Put in front of a distribution class."""

    _local: _Local

    def __setattr__(self, name: str, value: Any) -> None:
        if name in _OF_A_PASS:
            setattr(self._local, name, value)
        else:
            super().__setattr__(name, value)

    def __getattr__(self, name: str) -> Any:
        if name in _OF_A_PASS and "_local" in self.__dict__:
            return getattr(self._local, name, None)
        raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")

    def __reduce_ex__(self, protocol: Any) -> Any:
        return _restore, (type(self).__mro__[2], self.__dict__)


@cache
def _per_thread(kind: type[Distribution]) -> type[Distribution]:
    return type(kind.__name__, (_PerThread, kind), {"__module__": kind.__module__, "__qualname__": kind.__qualname__})


def _restore(kind: type[Distribution], attributes: dict[str, Any]) -> Distribution:
    distribution = object.__new__(_per_thread(kind))
    distribution.__dict__.update(attributes)
    return distribution


def kind_of(distribution: object) -> type:
    """
    Find out what a distribution object was before every thread got passes of its own.

    :param distribution: A distribution object, or anything else.
    :return: Its class.
    """
    return type(distribution).__mro__[2] if isinstance(distribution, _PerThread) else type(distribution)


def keep_passes_apart(policy: nn.Module) -> None:
    """
    Let every thread have the action distribution of its own last pass.

    :param policy: A policy; the distribution objects in it are replaced.
    """
    for module in policy.modules():
        distribution = module.__dict__.get("action_dist")
        if isinstance(distribution, Distribution) and not isinstance(distribution, _PerThread):
            kept = {name: value for name, value in distribution.__dict__.items() if name not in _OF_A_PASS}
            apart = _restore(type(distribution), {**kept, "_local": _Local()})
            for name in distribution.__dict__.keys() - kept.keys():
                setattr(apart, name, distribution.__dict__[name])
            module.action_dist = apart  # type: ignore[assignment]
