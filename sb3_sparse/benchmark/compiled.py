"""Stock models whose networks :func:`torch.compile` has compiled: the first thing a user of stock tries for speed."""

from __future__ import annotations

import torch as th
from stable_baselines3 import SAC, TD3
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm

_NETWORKS = ("actor", "actor_target", "critic", "critic_target", "q_net", "q_net_target")


def compile_networks(model: OffPolicyAlgorithm) -> OffPolicyAlgorithm:
    """
    Have every pass that ``train()`` and ``predict`` make compiled, at its first use.

    :param model: A stock TD3, SAC or DQN; changed in place.
    :return: The same.
    """
    for name in _NETWORKS:
        if (network := getattr(model.policy, name, None)) is not None:
            network.compile()
    # Passes by another name than forward()
    if isinstance(model, TD3):
        model.critic.q1_forward = th.compile(model.critic.q1_forward)  # type: ignore[method-assign]
    elif isinstance(model, SAC):
        model.actor.action_log_prob = th.compile(model.actor.action_log_prob)  # type: ignore[method-assign]
    return model
