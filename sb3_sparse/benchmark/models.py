"""Models to measure: every algorithm's ``train()`` on synthetic data, nothing but gradient steps."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import gymnasium as gym
import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3 import DQN, SAC, TD3
from stable_baselines3.common.logger import Logger
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm

ALGORITHMS: dict[str, type[OffPolicyAlgorithm]] = {"td3": TD3, "sac": SAC, "dqn": DQN}
#: HalfCheetah's
N_OBSERVATIONS, N_ACTIONS = 17, 6
BUFFER_SIZE = 10_000


class SyntheticEnv(gym.Env):
    """Spaces only; nothing steps it."""

    def __init__(self, discrete: bool) -> None:
        self.observation_space = spaces.Box(-1, 1, (N_OBSERVATIONS,), np.float32)
        self.action_space: Any = spaces.Discrete(N_ACTIONS) if discrete else spaces.Box(-1, 1, (N_ACTIONS,), np.float32)


def make_model(
    algo: str,
    net_arch: Sequence[int],
    policy_kwargs: dict[str, Any] | None,
    *,
    batch_size: int,
    seed: int = 0,
    sparse: bool | None = None,
) -> OffPolicyAlgorithm:
    """
    A model whose replay buffer is full of random transitions.

    :param algo: A key of :data:`ALGORITHMS`.
    :param net_arch: Widths of the hidden layers.
    :param policy_kwargs: Of the policy; None for the stock policy without any.
    :param batch_size: Samples per gradient step.
    :param seed: Seed of weights, masks and data.
    :param sparse: Whether the policy is the sparse one; None: if it is given any ``policy_kwargs``.
    :return: The model.
    """
    algorithm: Any = ALGORITHMS[algo]
    model = algorithm(
        "SparseMlpPolicy" if (policy_kwargs is not None if sparse is None else sparse) else "MlpPolicy",
        SyntheticEnv(discrete=algorithm is DQN),
        policy_kwargs={"net_arch": list(net_arch), **(policy_kwargs or {})},
        buffer_size=BUFFER_SIZE,
        batch_size=batch_size,
        seed=seed,
        device="cpu",
    )
    fill(model, seed)
    th.manual_seed(seed)
    return model


def fill(model: OffPolicyAlgorithm, seed: int) -> None:
    """
    Fill a model's replay buffer with random transitions, and silence its logger.

    :param model: An off-policy model on :class:`SyntheticEnv`.
    :param seed: Seed of the data.
    """
    model.set_logger(Logger(None, []))
    buffer: Any = model.replay_buffer
    rng = np.random.default_rng(seed)
    buffer.observations[:] = rng.uniform(-1, 1, buffer.observations.shape)
    buffer.next_observations[:] = rng.uniform(-1, 1, buffer.next_observations.shape)
    if isinstance(model.action_space, spaces.Discrete):
        buffer.actions[:] = rng.integers(N_ACTIONS, size=buffer.actions.shape)
    else:
        buffer.actions[:] = rng.uniform(-1, 1, buffer.actions.shape)
    buffer.rewards[:] = rng.uniform(0, 1, buffer.rewards.shape)
    buffer.full = True
