"""Ranges of a trained network's inputs: which observations to look at, and what the layers see then."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar

import numpy as np
import torch as th
from gymnasium import spaces
from sb3_contrib import MaskablePPO
from sb3_contrib.common.maskable.utils import get_action_masks, is_masking_supported
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.buffers import ReplayBuffer
from torch import nn

from sb3_sparse.nn.layers import SparseLayer
from sb3_sparse.policies.base import SparsePolicyMixin
from sb3_sparse.policies.passes import forward_all, to_tensor

Model = TypeVar("Model", bound=BaseAlgorithm)
#: Observations: an array, or an array by key.
Observations = np.ndarray | Mapping[str, np.ndarray]

BATCH_SIZE = 256


# --- Observations to calibrate with ---


def _length(observations: Observations) -> int:
    lengths = {len(part) for part in observations.values()} if isinstance(observations, Mapping) else {len(observations)}
    if len(lengths) != 1:
        raise ValueError(f"`data` must have as many rows under every key, got {sorted(lengths)}")
    return lengths.pop()


def _slice(observations: Observations, rows: slice | np.ndarray) -> Any:
    if isinstance(observations, Mapping):
        return {key: part[rows] for key, part in observations.items()}
    return observations[rows]


def _given(data: Any, policy: SparsePolicyMixin) -> Observations:
    """``data``, checked."""
    data = {key: np.asarray(part) for key, part in data.items()} if isinstance(data, Mapping) else np.asarray(data)
    if (isinstance(data, np.ndarray) and data.ndim == 0) or _length(data) == 0:
        raise ValueError("calibration without data: `data` holds no observation. Give observations, or leave it out")
    keys = sorted(data) if isinstance(data, Mapping) else None
    wanted = sorted(policy.observation_space) if isinstance(policy.observation_space, spaces.Dict) else None
    if keys != wanted:
        raise ValueError(f"`data` must hold observations of {policy.observation_space}, one per row, got {keys or 'an array'}")
    try:
        _, vectorized = policy.obs_to_tensor(_slice(data, slice(0, 1)))
    except (ValueError, KeyError, TypeError, AssertionError) as error:
        raise ValueError(f"`data` must hold observations of {policy.observation_space}, one per row: {error}") from error
    if not vectorized:
        raise ValueError(f"`data` must hold observations of {policy.observation_space}, one per row, got a single one")
    return data


def _replayed(model: Any, n_samples: int) -> Observations | None:
    """Observations of the replay buffer, evenly spaced in time, as the policy sees them; None if there are none."""
    buffer = getattr(model, "replay_buffer", None)
    if not isinstance(buffer, ReplayBuffer) or buffer.size() == 0:
        return None
    n_rows = min(buffer.size(), -(-n_samples // buffer.n_envs))
    rows = np.linspace(0, buffer.size() - 1, n_rows).astype(np.int64)
    stored: Any = buffer.observations
    normalized = buffer._normalize_obs(_slice(stored, rows), model.get_vec_normalize_env())
    space = model.observation_space
    if isinstance(normalized, dict):
        return {key: part.reshape(-1, *space[key].shape) for key, part in normalized.items()}
    # As environments give them: a buffer stores a discrete observation as a vector of one
    return normalized.reshape(-1, *space.shape)


def _rolled_out(model: Any, n_samples: int) -> Observations | None:
    """Observations of fresh episodes with the model's own actions, noise included; None if it has no environment."""
    env = model.get_env()
    if env is None:
        return None
    normalize = model.get_vec_normalize_env()
    was_training = normalize.training if normalize is not None else False
    if normalize is not None:
        normalize.training = False
    try:
        observation, state, starts = env.reset(), None, np.ones(env.num_envs, dtype=bool)
        collected: list[Any] = []
        while len(collected) * env.num_envs < n_samples:
            collected.append(_copied(observation))
            extra: dict[str, Any] = {}
            if isinstance(model, MaskablePPO) and is_masking_supported(env):
                extra["action_masks"] = get_action_masks(env)
            actions, state = model.predict(observation, state=state, episode_start=starts, **extra)
            observation, _, starts, _ = env.step(actions)
    finally:
        if normalize is not None:
            normalize.training = was_training
        # Its episode was broken off: the next learn() begins with a reset
        model._last_obs = None
    if isinstance(collected[0], dict):
        return {key: np.concatenate([observation[key] for observation in collected]) for key in collected[0]}
    return np.concatenate(collected)


def _copied(observation: Any) -> Any:
    return {key: part.copy() for key, part in observation.items()} if isinstance(observation, dict) else observation.copy()


# --- Calibration ---


class _Range:
    """Range of the inputs of one layer over the batches that it is shown. A forward pre-hook."""

    def __init__(self, percentile: float | None) -> None:
        self.percentile = percentile
        self.lows: list[float] = []
        self.highs: list[float] = []

    def __call__(self, layer: nn.Module, inputs: tuple[th.Tensor, ...]) -> None:
        values = inputs[0].detach()
        if values.is_nested:
            values = th.cat([part.flatten() for part in values.unbind()])
        values = values.float()
        if self.percentile is None:
            low, high = th.aminmax(values)
        else:
            low, high = np.percentile(values.cpu().numpy(), (100 - self.percentile, self.percentile))
        self.lows.append(float(low))
        self.highs.append(float(high))

    @property
    def ends(self) -> tuple[float, float]:
        if self.percentile is None:
            return min(self.lows), max(self.highs)
        return float(np.mean(self.lows)), float(np.mean(self.highs))


def _calibrate(
    policy: SparsePolicyMixin, layers: Mapping[str, SparseLayer], observations: Observations, percentile: float | None
) -> dict[str, _Range]:
    ranges = {name: _Range(percentile) for name in layers}
    handles = [layer.register_forward_pre_hook(ranges[name]) for name, layer in layers.items()]
    policy.set_training_mode(False)
    try:
        with th.no_grad():
            for start in range(0, _length(observations), BATCH_SIZE):
                forward_all(policy, to_tensor(policy, _slice(observations, slice(start, start + BATCH_SIZE))))
    finally:
        for handle in handles:
            handle.remove()
    for name, found in ranges.items():
        if not found.lows:
            raise ValueError(f"layer {name!r} takes no part in choosing or judging actions: name it in `exempt_layers`")
        if not np.isfinite(found.ends).all():
            raise ValueError(f"calibration found values at the inputs of layer {name!r} that are not finite: {found.ends}")
    return ranges
