"""Episodes that are always the same, and a policy that has learnt nothing."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch as th
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.vec_env import VecEnv


@contextmanager
def same_randomness() -> Iterator[None]:
    """Whatever is drawn inside, the global generators of Python, NumPy and torch are afterwards where they were."""
    states = random.getstate(), np.random.get_state(), th.get_rng_state()
    try:
        yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])
        th.set_rng_state(states[2])


def play(model: Any, env: VecEnv, seeds: Sequence[int], *, deterministic: bool = True) -> tuple[list[float], list[int]]:
    """
    Play fixed episodes: each begins from a reset with its own seed, so every agent meets the same ones. Global generators are
    left where they were.

    :param model: Anything with SB3's ``predict``.
    :param env: One environment.
    :param seeds: A seed for each episode.
    :param deterministic: Whether the policy acts deterministically.
    :return: Return and length of each episode.
    """
    returns: list[float] = []
    lengths: list[int] = []
    with same_randomness():
        for seed in seeds:
            # Policies that act at random, too, do so from here
            th.manual_seed(seed)
            env.seed(seed)
            env.action_space.seed(seed)
            episode, length = evaluate_policy(model, env, 1, deterministic=deterministic, return_episode_rewards=True)
            assert isinstance(episode, list)
            assert isinstance(length, list)
            returns += map(float, episode)
            lengths += map(int, length)
    return returns, lengths


class RandomPolicy:
    """
    Acts at random.

    :param env: Whose actions they are.
    """

    def __init__(self, env: VecEnv) -> None:
        self.env = env

    def predict(self, observation: Any, state: Any = None, episode_start: Any = None, deterministic: bool = False) -> Any:
        """
        Act at random.

        :return: As SB3's ``predict``.
        """
        return np.stack([self.env.action_space.sample() for _ in range(self.env.num_envs)]), state
