"""What the network that chooses actions answers, and what integers would answer."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch as th
from stable_baselines3.common.base_class import BaseAlgorithm
from torch import nn

from sb3_sparse.nn.integer_layers import integer_arithmetic
from sb3_sparse.policies.base import sparse_policy


def network_output(model: BaseAlgorithm, observation: Any) -> np.ndarray:
    """
    The output of the network that chooses actions, as it is before actions are drawn, clipped or rescaled: actions in [-1, 1]
    (TD3, SAC and relatives), Q values (DQN), quantiles (QR-DQN), or the action distribution's parameters (PPO, A2C).

    :param model: A model with a sparse policy.
    :param observation: As for ``predict``.
    :return: Float32, one row per observation.
    """
    policy = sparse_policy(model)
    network = next(
        module
        for name in ("actor", "q_net", "quantile_net", "action_net")
        if isinstance(module := getattr(policy, name, None), nn.Module)
    )
    outputs: list[th.Tensor] = []
    handle = network.register_forward_hook(lambda module, inputs, output: outputs.append(output))
    try:
        policy.predict(observation, deterministic=True)
    finally:
        handle.remove()
    return outputs[0].cpu().numpy()


def integer_forward(model: BaseAlgorithm, observation: Any) -> np.ndarray:
    """
    Compute the output of a quantized network with integers.

    :func:`network_output` of a quantized model computed with integers, as :mod:`sb3_sparse.quantization.integer` defines it.
    On a CPU ``predict`` answers the same to the last bit, if every quantized layer has quantized inputs.

    :param model: A model with a quantized policy.
    :param observation: As for ``predict``.
    :return: Float32, one row per observation.
    :raises TypeError: If the model's policy is not sparse.
    :raises ValueError: If no layer is quantized.
    """
    with integer_arithmetic(sparse_policy(model)):
        return network_output(model, observation)
