"""
An environment and an architecture of one's own: layers are found by what they do.

    python docs/examples/own_environment.py [STEPS]     # 3,000 steps, half a minute
"""

import sys

import gymnasium as gym
import numpy as np
import torch as th
from stable_baselines3 import PPO
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from torch import nn

import sb3_sparse


class Reach(gym.Env):
    """A point that shall reach a goal."""

    observation_space = gym.spaces.Dict(
        position=gym.spaces.Box(-1, 1, (2,), np.float32), goal=gym.spaces.Box(-1, 1, (2,), np.float32)
    )
    action_space = gym.spaces.Box(-1, 1, (2,), np.float32)

    def _observation(self):
        return {"position": self.position.copy(), "goal": self.goal.copy()}

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.position, self.goal = self.np_random.uniform(-1, 1, (2, 2)).astype(np.float32)
        self.steps = 0
        return self._observation(), {}

    def step(self, action):
        self.steps += 1
        self.position = np.clip(self.position + 0.1 * action, -1, 1).astype(np.float32)
        distance = float(np.linalg.norm(self.position - self.goal))
        return self._observation(), -distance, distance < 0.05, self.steps >= 50, {}


class Differences(BaseFeaturesExtractor):
    """Features of where one is and where one wants to be."""

    def __init__(self, observation_space):
        super().__init__(observation_space, features_dim=64)
        self.here, self.there = nn.Linear(2, 32), nn.Linear(2, 32)

    def forward(self, observations):
        return th.tanh(th.cat([self.here(observations["position"]), self.there(observations["goal"])], dim=1))


steps = int(sys.argv[1]) if len(sys.argv) > 1 else 3_000
model = PPO(
    "SparseMultiInputPolicy",
    Reach(),
    n_steps=256,
    policy_kwargs=dict(features_extractor_class=Differences, sparsity=0.8, dense_layers=["features_extractor.*"]),
    seed=0,
)
model.learn(steps, callback=sb3_sparse.SET(every=20, drop_fraction=0.2))
print(sb3_sparse.sparsity_report(model))
