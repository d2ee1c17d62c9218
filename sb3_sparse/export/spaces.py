"""Observation and action spaces of gymnasium's, as deployed policies know them."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from gymnasium import spaces
from stable_baselines3.common.preprocessing import is_image_space

from sb3_sparse_runtime.spaces import DTYPES, Space, Spaces

_OBSERVATIONS = "Box, Discrete, MultiDiscrete, MultiBinary, and Dict of these"
_ACTIONS = "Box, Discrete, MultiDiscrete and MultiBinary"


def _dtype(space: Any, name: str) -> str:
    dtype = np.dtype(space.dtype).name
    if dtype not in DTYPES:
        raise ValueError(f"{name} has the dtype {dtype}, which cannot be exported; supported are: {', '.join(DTYPES)}")
    return dtype


def _require_start_of_zero(space: Any, name: str) -> None:
    # Stock policies ignore `start`; what an environment would make of that is not known here
    if np.any(np.asarray(space.start) != 0):
        raise ValueError(f"{name} is {space}, which cannot be exported: its values must start at 0")


def one_space(space: spaces.Space, name: str, supported: str) -> Space:
    """
    Describe a space that has no keys.

    :param space: A space without keys.
    :param name: What errors call it.
    :param supported: What they say is supported.
    :return: The same as a value.
    :raises ValueError: If it cannot be exported.
    """
    if isinstance(space, spaces.Box):
        if math.prod(space.shape) == 0:
            raise ValueError(f"{name} is {space}, which is empty")
        return Space("box", space.shape, _dtype(space, name), image=is_image_space(space))
    if isinstance(space, spaces.Discrete):
        _require_start_of_zero(space, name)
        return Space("discrete", (), _dtype(space, name), (int(space.n),))
    if isinstance(space, spaces.MultiDiscrete):
        _require_start_of_zero(space, name)
        if len(space.shape) != 1:
            raise ValueError(f"{name} is {space}, which cannot be exported: it must have one dimension")
        return Space("multi_discrete", space.shape, _dtype(space, name), tuple(map(int, space.nvec)))
    if isinstance(space, spaces.MultiBinary):
        return Space("multi_binary", space.shape, _dtype(space, name))
    raise ValueError(f"{name} is {space}, which cannot be exported; supported are {supported}")


def observation_spaces(space: spaces.Space) -> Spaces:
    """
    Describe an observation space.

    :param space: Observation space of a policy.
    :return: The same as a value, or by key.
    :raises ValueError: If it cannot be exported.
    """
    if isinstance(space, spaces.Dict):
        for key in space:
            # A key becomes the name of an input in every format
            if not isinstance(key, str) or not key.isidentifier() or not key.isascii():
                raise ValueError(f"the observation space's key {key!r} cannot be exported: it must be an ASCII identifier")
        return {key: one_space(part, f"the observation space's {key!r}", _OBSERVATIONS) for key, part in space.items()}
    return one_space(space, "the observation space", _OBSERVATIONS)


def action_space(space: spaces.Space) -> Space:
    """
    Describe an action space.

    :param space: Action space of a policy.
    :return: The same as a value.
    :raises ValueError: If it cannot be exported.
    """
    return one_space(space, "the action space", _ACTIONS)
