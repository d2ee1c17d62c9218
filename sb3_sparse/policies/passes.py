"""
What a policy computes: the pass that decides on actions, and the one that judges them. They are run to see what happens on the
way, never to train.

Observations are never made up: they are the last ones that a model saw, or samples of its observation space, drawn by
generators of their own.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from copy import deepcopy
from typing import Any

import numpy as np
import torch as th
from gymnasium import spaces
from sb3_contrib.common.recurrent.type_aliases import RNNStates
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.distributions import Distribution
from torch import nn

# --- Observations ---


def sample(space: spaces.Space, n_samples: int, seed: int = 0) -> Any:
    """
    Samples of a space; its own generators are left alone.

    :param space: A space.
    :param n_samples: How many.
    :param seed: Seed of the samples.
    :return: Array with one sample per row, or a dict of such arrays.
    """
    space = deepcopy(space)
    space.seed(seed)
    samples: list[Any] = [space.sample() for _ in range(n_samples)]
    if isinstance(space, spaces.Dict):
        return {key: np.stack([one[key] for one in samples]) for key in space}
    return np.stack(samples)


def seen_observations(model: BaseAlgorithm, n_samples: int) -> Any:
    """
    Observations as a model's policy sees them.

    :param model: A model.
    :param n_samples: How many.
    :return: The last observations of its environments, repeated where there are too few; without any, samples of its
        observation space.
    """
    last: Any = getattr(model, "_last_obs", None)
    if last is None:
        return sample(model.observation_space, n_samples)

    def rows(array: np.ndarray) -> np.ndarray:
        return np.stack([np.asarray(array[index % len(array)]) for index in range(n_samples)])

    return {key: rows(value) for key, value in last.items()} if isinstance(last, Mapping) else rows(last)


def to_tensor(policy: Any, observations: Any) -> Any:
    """
    Observations as tensors on a policy's device.

    :param policy: A policy.
    :param observations: One per row.
    :return: A tensor, or a dict of tensors.
    """
    return policy.obs_to_tensor(observations)[0]


# --- Passes ---


def copied(policy: Any) -> Any:
    """
    A copy of a policy, which stock torch refuses to make once it has been trained: the action distribution of its last pass
    hangs on to that pass's graph.

    :param policy: A policy.
    :return: The copy, with a distribution without a graph.
    """
    return deepcopy(policy, detached_distributions(policy))


def detached_distributions(policy: nn.Module) -> dict[int, Any]:
    """
    What a copy of a policy shall have in place of tensors that cannot be copied.

    :param policy: A policy.
    :return: Copies by identity, as ``deepcopy`` takes them.
    """
    return {
        id(tensor): tensor.detach().clone()
        for module in policy.modules()
        for tensor in graph_tensors(module.__dict__.get("action_dist"))
    }


def graph_tensors(value: Any) -> Iterator[th.Tensor]:
    """
    Tensors with a history that something holds.

    :param value: A tensor, a list or tuple, a distribution.
    :return: Those in it, at any depth.
    """
    if isinstance(value, th.Tensor):
        if not value.is_leaf:
            yield value
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from graph_tensors(item)
    elif isinstance(value, (Distribution, th.distributions.Distribution)):
        yield from graph_tensors(list(vars(value).values()))


def lstm_states(policy: Any, n_samples: int) -> tuple[tuple[th.Tensor, th.Tensor], th.Tensor] | None:
    """
    What the LSTMs of a policy begin with.

    :param policy: A policy.
    :param n_samples: Size of the batch.
    :return: Hidden and cell state, and that no episode begins; None for a policy without LSTMs.
    """
    if not hasattr(policy, "lstm_hidden_state_shape"):
        return None
    n_layers, _, hidden_size = policy.lstm_hidden_state_shape
    zeros = th.zeros(n_layers, n_samples, hidden_size, device=policy.device)
    return (zeros, zeros), th.zeros(n_samples, device=policy.device)


def _n_samples(obs: Any) -> int:
    return len(next(iter(obs.values())) if isinstance(obs, Mapping) else obs)


def _is_actor_critic(policy: Any) -> bool:
    """Whether it is a policy of an on-policy algorithm. Those of MaskablePPO have no class in common with the others."""
    return hasattr(policy, "evaluate_actions")


def network_that_decides(policy: Any) -> Any:
    """
    The network whose output says which action is taken.

    :param policy: A policy of an off-policy algorithm.
    :return: Its actor, or its Q or quantile network.
    """
    return next(getattr(policy, name) for name in ("actor", "q_net", "quantile_net") if hasattr(policy, name))


def decide(policy: Any, obs: Any) -> Any:
    """
    The pass that decides on actions, up to what their distribution is made of.

    :param policy: A policy.
    :param obs: Tensors.
    :return: Whatever comes out: a tensor, or a distribution.
    """
    if not _is_actor_critic(policy):
        return network_that_decides(policy)(obs)
    states = lstm_states(policy, _n_samples(obs))
    return policy.get_distribution(obs, *states)[0] if states is not None else policy.get_distribution(obs)


def judge(policy: Any, obs: Any, actions: Any) -> Any:
    """
    The pass that judges states or actions.

    :param policy: A policy.
    :param obs: Tensors.
    :param actions: What :func:`decide` returned for them; read by critics of actions alone.
    :return: Values; None where the network that decides is all there is.
    """
    if _is_actor_critic(policy):
        return policy.predict_values(obs, *(lstm_states(policy, _n_samples(obs)) or ()))
    if hasattr(policy, "critic"):
        return policy.critic(obs, actions)
    return None


def forward_all(policy: Any, obs: Any) -> None:
    """
    Let every online network see a batch once, as in the collecting of experience.

    :param policy: A policy.
    :param obs: Tensors.
    """
    states = lstm_states(policy, _n_samples(obs))
    if states is not None:
        policy(obs, RNNStates(states[0], states[0]), states[1])
    elif _is_actor_critic(policy):
        policy(obs)
    else:
        judge(policy, obs, policy._predict(obs))
