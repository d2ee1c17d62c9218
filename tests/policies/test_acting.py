"""Acting by one native call: the actions, random numbers and refusals of stock ``predict``."""

from __future__ import annotations

from copy import deepcopy
from typing import Any

import numpy as np
import pytest
import torch as th
from stable_baselines3 import DDPG, DQN, SAC, TD3
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.torch_layers import FlattenExtractor
from torch import nn

from sb3_sparse import quantize
from sb3_sparse.engine import native
from sb3_sparse.policies.algorithms import SparseTD3Policy
from tests.helpers import RandomEnv, make_model

pytestmark = pytest.mark.skipif(not native.available(), reason="needs the compiled kernels")
ALGORITHMS = [TD3, DDPG, SAC, DQN]


def acts_natively(model: Any, observation: Any) -> bool:
    return model.policy.__dict__["_acting"].act(model.policy, observation, True) is not None


def assert_equal(model: Any, observation: Any, *, deterministic: bool) -> None:
    """Array, dtype, shape and what is left of the random numbers."""
    found = []
    for predict in (type(model.policy).predict, BasePolicy.predict):
        th.manual_seed(1)
        actions, state = predict(model.policy, observation, None, None, deterministic)
        found.append((actions, state, float(th.rand(1))))
    (mine, state, left), (stock, other, also) = found
    assert np.array_equal(mine, stock)
    assert (mine.dtype, mine.shape, state, left) == (stock.dtype, stock.shape, other, also)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("deterministic", [True, False])
def test_as_stock(algorithm, dtype, deterministic):
    model = make_model(algorithm, policy_kwargs=dict(sparsity=0.5))
    rng = np.random.default_rng(0)
    for shape in ((7,), (1, 7), (4, 7)):
        observation = rng.normal(size=shape).astype(dtype)
        before = observation.copy()
        assert_equal(model, observation, deterministic=deterministic)
        assert acts_natively(model, observation)
        assert np.array_equal(observation, before)
    assert_equal(model, rng.normal(size=(4, 14)).astype(dtype)[:, ::2], deterministic=deterministic)
    assert not model.policy.training


def test_actions_in_other_ranges():
    env = RandomEnv()
    env.action_space = type(env.action_space)(np.float32([-2, 0]), np.float32([1, 5]))
    model = make_model(TD3, env=env, policy_kwargs=dict(sparsity=0.5))
    assert_equal(model, np.ones((2, 7), np.float32), deterministic=True)


def test_what_sac_leaves_behind():
    model = make_model(SAC, policy_kwargs=dict(sparsity=0.5))
    observation = np.ones((2, 7), np.float32)
    model.policy.predict(observation)
    assert acts_natively(model, observation)
    mine = model.actor.action_dist.distribution.mean
    BasePolicy.predict(model.policy, observation)
    assert th.equal(mine, model.actor.action_dist.distribution.mean)


def hook(model: Any) -> None:
    model.actor.register_forward_hook(lambda *_: None)


def hook_of_a_layer(model: Any) -> None:
    model.actor.mu[0].register_forward_hook(lambda *_: None)


def own_forward(model: Any) -> None:
    model.actor.forward = lambda obs: th.zeros(len(obs), 2)


def own_features(model: Any) -> None:
    model.actor.features_extractor.forward = lambda obs: obs * 0


def other_features(model: Any) -> None:
    class Halved(FlattenExtractor):
        def forward(self, observations: th.Tensor) -> th.Tensor:
            return super().forward(observations) * 0.5

    model.actor.features_extractor = Halved(model.observation_space)


def hook_of_flatten(model: Any) -> None:
    model.actor.features_extractor.flatten.register_forward_hook(lambda _module, _inputs, output: output * 0.5)


def another_flatten(model: Any) -> None:
    model.actor.features_extractor.flatten = nn.Sequential(nn.Flatten(), nn.Hardtanh(-0.1, 0.1))


def own_tensors(model: Any) -> None:
    model.policy.obs_to_tensor = lambda observation: (th.zeros(1, 7), False)


CHANGES = [hook, hook_of_a_layer, own_forward, own_features, other_features, hook_of_flatten, another_flatten, own_tensors]


@pytest.mark.parametrize("change", CHANGES)
def test_what_is_unknown_is_stocks(change):
    model = make_model(TD3, policy_kwargs=dict(sparsity=0.5))
    observation = np.linspace(-1, 1, 7, dtype=np.float32)
    assert_equal(model, observation, deterministic=True)
    assert acts_natively(model, observation)
    change(model)
    assert not acts_natively(model, observation)
    assert_equal(model, observation, deterministic=True)


@pytest.mark.parametrize("observation", [(np.zeros(7, np.float32), {}), np.zeros((2, 3), np.float32), np.zeros(3, np.float32)])
def test_refusals_are_stocks(observation):
    model = make_model(TD3, policy_kwargs=dict(sparsity=0.5))
    said = []
    for predict in (type(model.policy).predict, BasePolicy.predict):
        with pytest.raises(ValueError, match=r"predict|shape") as caught:
            predict(model.policy, observation)
        said.append(str(caught.value))
    assert said[0] == said[1]


@pytest.mark.parametrize("dtype", [np.longdouble, np.dtype(np.float32).newbyteorder(), np.dtype(np.float64).newbyteorder()])
def test_what_torch_does_not_take(dtype):
    model = make_model(TD3, policy_kwargs=dict(sparsity=0.5))
    said = []
    for predict in (type(model.policy).predict, BasePolicy.predict):
        with pytest.raises((TypeError, ValueError), match=r"numpy|byte order") as caught:
            predict(model.policy, np.ones(7, dtype))
        said.append(str(caught.value))
    assert said[0] == said[1]


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_nobody(algorithm):
    assert_equal(make_model(algorithm, policy_kwargs=dict(sparsity=0.5)), np.zeros((0, 7), np.float32), deterministic=True)


@pytest.mark.filterwarnings("error")
def test_what_becomes_infinite_is_not_warned_of():
    assert_equal(make_model(DQN, policy_kwargs=dict(sparsity=0.5)), np.full((2, 7), 1e300), deterministic=True)


def test_a_policy_that_sees_something_else():
    class Doubled(SparseTD3Policy):
        def obs_to_tensor(self, observation: Any) -> Any:
            tensor, is_vectorized = super().obs_to_tensor(observation)
            return tensor * 2, is_vectorized

    model = TD3(Doubled, RandomEnv(), policy_kwargs=dict(sparsity=0.5))
    assert_equal(model, np.linspace(-1, 1, 7, dtype=np.float32), deterministic=True)


def test_integers_and_lists():
    model = make_model(TD3, policy_kwargs=dict(sparsity=0.5))
    for observation in (np.ones(7, np.int64), [0.5] * 7):
        assert_equal(model, observation, deterministic=True)


def test_a_quantized_actor():
    model = make_model(SAC, policy_kwargs=dict(sparsity=0.5, net_arch=[16, 16]), learning_starts=10)
    model.learn(30)
    observation = np.ones((3, 7), np.float32)
    model.policy.predict(observation)
    quantized = quantize(model)
    for one in (model, quantized):
        assert_equal(one, observation, deterministic=True)


def test_a_copy_acts_by_its_own_networks():
    model = make_model(TD3, policy_kwargs=dict(sparsity=0.5))
    observation = np.ones(7, np.float32)
    first, _ = model.policy.predict(observation)
    copied = deepcopy(model.policy)
    with th.no_grad():
        copied.actor.mu[-2].bias.add_(1.0)
    assert np.array_equal(model.policy.predict(observation)[0], first)
    assert not np.array_equal(copied.predict(observation)[0], first)


def test_other_networks_are_noticed():
    model = make_model(TD3, policy_kwargs=dict(sparsity=0.5))
    observation = np.ones(7, np.float32)
    model.policy.predict(observation)
    model.policy.actor = deepcopy(model.policy.actor)
    with th.no_grad():
        model.policy.actor.mu[-2].bias.add_(1.0)
    assert_equal(model, observation, deterministic=True)
