"""RLx2 (Tan et al., ICLR 2023): the allocation its code computes and the sizes its table 2 publishes."""

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces
from stable_baselines3 import SAC, TD3

from sb3_sparse import sparsity_report

# Observations and actions of the -v3 environments of the paper
DIMENSIONS = {"HalfCheetah": (17, 6), "Hopper": (11, 3), "Walker2d": (17, 6), "Ant": (111, 8)}


class SpacesOnly(gym.Env):
    def __init__(self, n_observations, n_actions):
        self.observation_space = spaces.Box(-1, 1, (n_observations,), np.float32)
        self.action_space = spaces.Box(-1, 1, (n_actions,), np.float32)


def rlx2_report(algorithm, env, actor, critic):
    return sparsity_report(
        algorithm(
            "SparseMlpPolicy",
            SpacesOnly(*DIMENSIONS[env]),
            policy_kwargs=dict(net_arch=[256, 256], sparsity={"actor": actor, "critic": critic}, distribution="er"),
            buffer_size=1,
            device="cpu",
        )
    )


@pytest.mark.parametrize(
    ("algorithm", "env", "actor", "critic", "actor_layers", "critic_layers"),
    [
        (TD3, "HalfCheetah", 0.90, 0.85, [0.552, 0.944, 0.0], [0.371, 0.896, 0.0]),
        (TD3, "Hopper", 0.98, 0.95, [0.874, 0.990, 0.551], [0.690, 0.968, 0.0]),
        (TD3, "Walker2d", 0.97, 0.95, [0.872, 0.984, 0.651], [0.801, 0.967, 0.0]),
        (TD3, "Ant", 0.96, 0.88, [0.957, 0.974, 0.567], [0.843, 0.901, 0.0]),
    ],
)
def test_layer_sparsities_to_three_decimals(algorithm, env, actor, critic, actor_layers, critic_layers):
    layers = {layer.name: layer for layer in rlx2_report(algorithm, env, actor, critic).layers}
    expected = {f"actor.mu.{index}": value for index, value in zip((0, 2, 4), actor_layers, strict=True)}
    for critic_name in ("qf0", "qf1"):
        expected |= {f"critic.{critic_name}.{index}": value for index, value in zip((0, 2, 4), critic_layers, strict=True)}
    for name, value in expected.items():
        # The figures are rounded to three decimals, ours to whole weights on top of it
        assert layers[name].sparsity == pytest.approx(value, abs=5e-4 + 1 / layers[name].n_weights), name


@pytest.mark.parametrize(
    ("algorithm", "env", "actor", "critic", "size", "test_flops"),
    [
        (TD3, "HalfCheetah", 0.90, 0.85, 0.133, 0.100),
        (TD3, "Hopper", 0.98, 0.95, 0.040, 0.020),
        (TD3, "Walker2d", 0.97, 0.95, 0.043, 0.030),
        (TD3, "Ant", 0.96, 0.88, 0.093, 0.040),
        (SAC, "HalfCheetah", 0.90, 0.80, 0.180, 0.100),
        (SAC, "Hopper", 0.98, 0.95, 0.044, 0.020),
        (SAC, "Walker2d", 0.90, 0.90, 0.100, 0.100),
        (SAC, "Ant", 0.90, 0.75, 0.220, 0.100),
    ],
)
def test_total_size_and_inference_flops_of_table_2(algorithm, env, actor, critic, size, test_flops):
    report = rlx2_report(algorithm, env, actor, critic)
    # Weights without biases, targets counted: SAC has no target actor, which its rows show
    assert 1 - report.total.sparsity == pytest.approx(size, abs=6e-4)
    assert report.inference.sparse / report.inference.dense == pytest.approx(test_flops, abs=6e-4)


def test_dense_size_of_the_paper():
    assert rlx2_report(TD3, "HalfCheetah", 0.9, 0.85).online.n_weights == 214_784
