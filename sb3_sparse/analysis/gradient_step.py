"""
What one gradient step of each algorithm computes, for counting its FLOPs.

Each function runs the forward and backward passes of one stock ``train()`` iteration on a policy (a copy: gradients are left
in it) in the same order and under the same gradient modes, without optimizers, targets' updates or losses that matter. A
test compares the count with ``torch.utils.flop_counter`` around the real ``train()``.
"""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from typing import Any

import torch as th
from sb3_contrib import QRDQN, TQC, CrossQ, MaskablePPO, RecurrentPPO
from sb3_contrib.common.recurrent.type_aliases import RNNStates
from stable_baselines3 import A2C, DQN, PPO, SAC, TD3
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.preprocessing import get_obs_shape
from stable_baselines3.common.type_aliases import PyTorchObs

from sb3_sparse.analysis.flops import Flops, count_flops

#: Two samples: batch normalisation needs more than one, and FLOPs are proportional to the batch.
N_SAMPLES = 2

Update = Callable[[], None]


def _sum(values: Any) -> th.Tensor:
    return sum((value.sum() for value in values), th.zeros(())) if isinstance(values, tuple) else values.sum()


def _td3(policy: Any, model: Any, obs: PyTorchObs, actions: th.Tensor) -> list[tuple[Update, float]]:
    def critic() -> None:
        with th.no_grad():
            policy.critic_target(obs, policy.actor_target(obs))
        _sum(policy.critic(obs, actions)).backward()

    def actor() -> None:
        policy.critic.q1_forward(obs, policy.actor(obs)).sum().backward()

    return [(critic, 1.0), (actor, 1.0 / model.policy_delay)]


def _sac(policy: Any, model: Any, obs: PyTorchObs, actions: th.Tensor) -> list[tuple[Update, float]]:
    def step() -> None:
        actions_pi, log_prob = policy.actor.action_log_prob(obs)
        with th.no_grad():
            policy.critic_target(obs, policy.actor.action_log_prob(obs)[0])
        _sum(policy.critic(obs, actions)).backward()
        (_sum(policy.critic(obs, actions_pi)) + log_prob.sum()).backward()

    return [(step, 1.0)]


def _crossq(policy: Any, model: Any, obs: PyTorchObs, actions: th.Tensor) -> list[tuple[Update, float]]:
    def critic() -> None:
        with th.no_grad():
            policy.actor.action_log_prob(obs)
        assert isinstance(obs, th.Tensor)
        _sum(policy.critic(th.cat([obs, obs]), th.cat([actions, actions]))).backward()

    def actor() -> None:
        actions_pi, log_prob = policy.actor.action_log_prob(obs)
        (_sum(policy.critic(obs, actions_pi)) + log_prob.sum()).backward()

    return [(critic, 1.0), (actor, 1.0 / model.policy_delay)]


def _q_network(network: str) -> Callable[..., list[tuple[Update, float]]]:
    def update(policy: Any, model: Any, obs: PyTorchObs, actions: th.Tensor) -> list[tuple[Update, float]]:
        def step() -> None:
            with th.no_grad():
                getattr(policy, f"{network}_target")(obs)
            getattr(policy, network)(obs).sum().backward()

        return [(step, 1.0)]

    return update


def _sum_evaluation(values: th.Tensor, log_prob: th.Tensor, entropy: th.Tensor | None) -> th.Tensor:
    return values.sum() + log_prob.sum() + (entropy.sum() if entropy is not None else 0.0)


def _on_policy(policy: Any, model: Any, obs: PyTorchObs, actions: th.Tensor) -> list[tuple[Update, float]]:
    return [(lambda: _sum_evaluation(*policy.evaluate_actions(obs, actions)).backward(), 1.0)]


def _recurrent(policy: Any, model: Any, obs: PyTorchObs, actions: th.Tensor) -> list[tuple[Update, float]]:
    states, episode_starts = _lstm_states(policy)

    def step() -> None:
        _sum_evaluation(*policy.evaluate_actions(obs, actions, RNNStates(states, states), episode_starts)).backward()

    return [(step, 1.0)]


def _lstm_states(policy: Any) -> tuple[tuple[th.Tensor, th.Tensor], th.Tensor]:
    n_layers, _, hidden_size = policy.lstm_hidden_state_shape
    zeros = th.zeros(n_layers, N_SAMPLES, hidden_size, device=policy.device)
    return (zeros, zeros), th.zeros(N_SAMPLES, device=policy.device)


_UPDATES: dict[type[BaseAlgorithm], Callable[..., list[tuple[Update, float]]]] = {
    TD3: _td3,
    SAC: _sac,
    TQC: _sac,
    CrossQ: _crossq,
    DQN: _q_network("q_net"),
    QRDQN: _q_network("quantile_net"),
    PPO: _on_policy,
    A2C: _on_policy,
    MaskablePPO: _on_policy,
    RecurrentPPO: _recurrent,
}


def _dummy_batch(policy: Any) -> tuple[PyTorchObs, th.Tensor]:
    def zeros(shape: tuple[int, ...]) -> th.Tensor:
        return th.zeros(N_SAMPLES, *shape, device=policy.device)

    shape = get_obs_shape(policy.observation_space)
    obs = {key: zeros(value) for key, value in shape.items()} if isinstance(shape, dict) else zeros(shape)
    return obs, zeros(policy.action_space.shape)


def batch_size(model: BaseAlgorithm) -> int:
    """
    :param model: A model of any algorithm.
    :return: How many samples one gradient step uses.
    """
    return model.n_steps * model.n_envs if isinstance(model, A2C) else getattr(model, "batch_size", 1)


def training_flops(model: BaseAlgorithm, policy: Any) -> Flops | None:
    """
    FLOPs of one gradient step, averaged over delayed actor updates, at the model's batch size.

    :param model: A model of any algorithm.
    :param policy: Its policy; not changed.
    :return: The count, or None for an algorithm this library does not know.
    """
    update = next((update for algorithm, update in _UPDATES.items() if isinstance(model, algorithm)), None)
    if update is None:
        return None
    policy = deepcopy(policy).float()
    total = Flops()
    with th.random.fork_rng(devices=[]), th.enable_grad(), count_flops(policy) as recorder:
        for run, weight in update(policy, model, *_dummy_batch(policy)):
            before = recorder.total
            run()
            total += (recorder.total + before * -1.0) * weight
    return total * (batch_size(model) / N_SAMPLES)


def inference_flops(policy: Any) -> Flops:
    """
    FLOPs of deciding on one action.

    :param policy: A policy; not changed.
    :return: The count.
    """
    policy = deepcopy(policy).float()
    policy.set_training_mode(False)
    obs, _ = _dummy_batch(policy)
    arguments = _lstm_states(policy) if hasattr(policy, "lstm_hidden_state_shape") else ()
    with th.no_grad(), th.random.fork_rng(devices=[]), count_flops(policy) as recorder:
        policy._predict(obs, *arguments, deterministic=True)
    return recorder.total * (1.0 / N_SAMPLES)
