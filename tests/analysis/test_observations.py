"""Nothing is counted by feeding invented data: reports see the last observations of a model, or samples of its space."""

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3 import DQN, PPO, SAC
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from torch import nn

from sb3_sparse import SparsityLogger, sparsity_report
from sb3_sparse.policies.passes import seen_observations


class SpaceEnv(gym.Env):
    """Observations that a function makes, of any space."""

    def __init__(self, space, make=None, action_space=None):
        self.observation_space, self.make = space, make or space.sample
        self.action_space = action_space or spaces.Discrete(3)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.n_steps = 0
        return self.make(), {}

    def step(self, action):
        self.n_steps += 1
        return self.make(), 1.0, self.n_steps >= 10, False, {}


class Tokens(BaseFeaturesExtractor):
    """Whole numbers that name rows of a table."""

    def __init__(self, space):
        super().__init__(space, 8)
        self.table, self.layer = nn.Embedding(10, 8), nn.Linear(8, 8)

    def forward(self, observations):
        return self.layer(self.table(observations.long()).mean(dim=1))


class Checked(BaseFeaturesExtractor):
    """Refuses what the environment never gives."""

    def __init__(self, space):
        super().__init__(space, 8)
        self.layer = nn.Linear(space.shape[0], 8)

    def forward(self, observations):
        if not bool(((observations >= 2) & (observations <= 3)).all()):
            raise RuntimeError("out of range")
        return self.layer(observations)


class Packed(BaseFeaturesExtractor):
    """Sequences whose length is their first number."""

    def __init__(self, space, last_state=True):
        super().__init__(space, 8)
        self.rnn, self.layer, self.last_state = nn.GRU(1, 8, batch_first=True), nn.Linear(8, 8), last_state

    def forward(self, observations):
        lengths = observations[:, 0].long().clamp(1, 4).cpu()
        packed = nn.utils.rnn.pack_padded_sequence(observations[:, 1:, None], lengths, batch_first=True, enforce_sorted=False)
        sequence, state = self.rnn(packed)
        if self.last_state:
            return self.layer(state[-1])
        return self.layer(nn.utils.rnn.pad_packed_sequence(sequence, batch_first=True)[0].sum(dim=1))


LENGTHS = spaces.Box(np.array([1, 0, 0, 0, 0], np.float32), np.array([4, 1, 1, 1, 1], np.float32))
CASES = {
    "tokens": (spaces.Box(0, 9, (5,), np.int64), Tokens),
    "tokens of several kinds": (spaces.MultiDiscrete([10] * 5), None),
    "range-checked": (spaces.Box(2, 3, (5,), np.float32), Checked),
    "sequences": (LENGTHS, Packed),
    "discrete": (spaces.Discrete(6), None),
    "bits": (spaces.MultiBinary(5), None),
    "float64": (spaces.Box(-1, 1, (5,), np.float64), None),
    "float16": (spaces.Box(-1, 1, (5,), np.float16), None),
    "dict": (spaces.Dict({"a": spaces.Discrete(3), "b": spaces.MultiBinary(3), "c": spaces.Box(-1, 1, (2,))}), None),
}


def make(algorithm, space, extractor=None, env=None, **kwargs):
    policy = "SparseMultiInputPolicy" if isinstance(space, spaces.Dict) else "SparseMlpPolicy"
    policy_kwargs = dict(net_arch=[8], sparsity=0.5) | (dict(features_extractor_class=extractor) if extractor else {})
    action_space = spaces.Box(-1, 1, (2,)) if algorithm is SAC else None
    sizes = dict(n_steps=16, batch_size=8) if algorithm is PPO else dict(learning_starts=10, batch_size=8, buffer_size=100)
    env = env or SpaceEnv(space, action_space=action_space)
    return algorithm(policy, env, policy_kwargs=policy_kwargs | kwargs, device="cpu", seed=0, **sizes)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("algorithm", [PPO, DQN, SAC])
def test_every_space_is_counted_alike_before_and_after_training(algorithm, case):
    space, extractor = CASES[case]
    model = make(algorithm, space, extractor)
    before = sparsity_report(model)
    assert before.not_counted is None
    assert 0 < before.inference.sparse < before.inference.dense
    model.learn(32, callback=SparsityLogger())
    after = sparsity_report(model)
    if case != "sequences":  # those seen last are longer or shorter
        assert (after.inference, after.training) == (before.inference, before.training)


@pytest.mark.parametrize("case", [case for case in CASES if case != "sequences"])
@pytest.mark.parametrize("algorithm", [PPO, DQN, SAC])
def test_policies_in_float64(algorithm, case):
    space, extractor = CASES[case]
    model = make(algorithm, space, extractor)
    counted = sparsity_report(model)
    model.policy.double()
    report = sparsity_report(model)
    assert (report.inference, report.training, report.not_counted) == (counted.inference, counted.training, None)
    assert next(model.policy.parameters()).dtype == th.float64


def test_a_space_that_cannot_vouch_for_its_samples():
    """An unbounded space says nothing of the range; the last observation does."""
    space = spaces.Box(-np.inf, np.inf, (5,), np.float32)
    rng = np.random.default_rng(0)
    env = SpaceEnv(space, lambda: rng.uniform(2, 3, 5).astype(np.float32))
    model = make(PPO, space, Checked, env)
    report = sparsity_report(model)
    assert "does not take what it was shown: RuntimeError: out of range" in report.not_counted
    assert not report.inference.is_known
    assert "out of range" in str(report)
    assert '"inference_flops": {\n    "sparse": null' in report.to_json()
    model.learn(16, callback=SparsityLogger())
    report = sparsity_report(model)
    assert report.not_counted is None
    assert report.inference.sparse > 0
    seen = seen_observations(model, 2)
    assert seen.dtype == np.float32
    assert ((seen >= 2) & (seen <= 3)).all()


@pytest.mark.parametrize("last_state", [True, False])
def test_packed_sequences_are_counted_by_their_steps(last_state):
    """Two sequences of 1 and 4 steps are 5 steps, forwards, and twice that backwards."""
    model = make(PPO, LENGTHS, Packed, features_extractor_kwargs=dict(last_state=last_state))
    model._last_obs = np.array([[1, 0.5, 0, 0, 0], [4, 0.1, 0.2, 0.3, 0.4]], np.float32)
    weights = sum(p.numel() for name, p in model.policy.features_extractor.rnn.named_parameters() if "weight" in name)
    assert weights == 3 * 8 * (1 + 8)
    dense = {"layer": 64, "pi": 64, "vf": 64, "action": 24, "value": 8}
    report = sparsity_report(model)
    decides = dense["layer"] + dense["pi"] + dense["action"]
    assert report.inference.dense == 2 * weights * 5 / 2 + 2 * decides
    recurrent = 3 * 2 * weights * 5 / 2
    assert report.training.dense == model.batch_size * (recurrent + 3 * 2 * sum(dense.values()))
