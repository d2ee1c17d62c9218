"""
What one gradient step of each algorithm computes, for counting its FLOPs.

Each function runs the forward and backward passes of one stock ``train()`` iteration on a policy (a copy: gradients are left
in it) in the same order and under the same gradient modes, without optimizers, targets' updates or losses that matter. A
test compares the count with ``torch.utils.flop_counter`` around the real ``train()``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch as th
from sb3_contrib import QRDQN, TQC, CrossQ, MaskablePPO, RecurrentPPO
from sb3_contrib.common.recurrent.type_aliases import RNNStates
from stable_baselines3 import A2C, DQN, PPO, SAC, TD3
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.type_aliases import PyTorchObs

from sb3_sparse.analysis.flops import Flops, count_flops
from sb3_sparse.policies.passes import copied, lstm_states, sample, seen_observations, to_tensor
from sb3_sparse.utils.randomness import devices_of, undisturbed_randomness

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
    found = lstm_states(policy, N_SAMPLES)
    assert found is not None
    states, episode_starts = found

    def step() -> None:
        _sum_evaluation(*policy.evaluate_actions(obs, actions, RNNStates(states, states), episode_starts)).backward()

    return [(step, 1.0)]


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


def batch_size(model: BaseAlgorithm) -> int:
    """
    Say how many samples one gradient step of a model uses.

    :param model: A model of any algorithm.
    :return: How many samples one gradient step uses.
    """
    return model.n_steps * model.n_envs if isinstance(model, A2C) else getattr(model, "batch_size", 1)


def _policies(policy: Any) -> Iterator[Any]:
    """Copies of a policy that may take what stock preprocessing makes of observations: as it is, or in float32."""
    yield copied(policy)
    if next(policy.parameters()).dtype != th.float32:
        yield copied(policy).float()


def _counted(policy: Any, observations: Any, count: Callable[[Any, Any], Flops]) -> Flops:
    """
    Count on a copy, with all random streams left alone.

    :raises NotImplementedError: If the policy refuses the observations.
    """
    reasons = []
    try:
        with undisturbed_randomness(devices_of(policy)):
            for own in _policies(policy):
                try:
                    return count(own, to_tensor(own, observations))
                except Exception as error:
                    reasons.append(f"{type(error).__name__}: {error}")
    except Exception as error:
        reasons.append(f"{type(error).__name__}: {error}")
    raise NotImplementedError(f"FLOPs cannot be counted, for the policy does not take what it was shown: {reasons[0]}")


def training_flops(model: BaseAlgorithm, policy: Any) -> Flops | None:
    """
    FLOPs of one gradient step, averaged over delayed actor updates, at the model's batch size.

    :param model: A model of any algorithm.
    :param policy: Its policy; not changed, and no random stream either.
    :return: The count, or None for an algorithm this library does not know.
    :raises NotImplementedError: If the policy does not take the observations it is shown, saying why.
    """
    update = next((update for algorithm, update in _UPDATES.items() if isinstance(model, algorithm)), None)
    if update is None:
        return None

    def count(own: Any, obs: PyTorchObs) -> Flops:
        total = Flops()
        with th.enable_grad(), count_flops(own) as recorder:
            for run, weight in update(own, model, obs, actions):
                before = recorder.total
                run()
                total += (recorder.total + before * -1.0) * weight
        return total * (batch_size(model) / N_SAMPLES)

    actions = th.as_tensor(sample(policy.action_space, N_SAMPLES), device=policy.device)
    return _counted(policy, seen_observations(model, N_SAMPLES), count)


def inference_flops(model: BaseAlgorithm, policy: Any) -> Flops:
    """
    FLOPs of deciding on one action.

    :param model: A model of any algorithm.
    :param policy: Its policy; not changed, and no random stream either.
    :return: The count.
    :raises NotImplementedError: If the policy does not take the observations it is shown, saying why.
    """

    def count(own: Any, obs: PyTorchObs) -> Flops:
        own.set_training_mode(False)
        # With gradients: torch's fused attention in evaluation is something that no counter looks into
        with th.enable_grad(), count_flops(own) as recorder:
            own._predict(obs, *(lstm_states(own, N_SAMPLES) or ()), deterministic=True)
        return recorder.total * (1.0 / N_SAMPLES)

    return _counted(policy, seen_observations(model, N_SAMPLES), count)
