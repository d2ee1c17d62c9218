"""Training mode is remembered, and still what torch would make of it."""

from __future__ import annotations

from copy import deepcopy
from typing import Any

import pytest
import torch as th
from stable_baselines3 import DQN, PPO, SAC, TD3
from stable_baselines3.td3.policies import TD3Policy
from torch import nn

from sb3_sparse.policies.base import SparsePolicyMixin
from tests.helpers import ALGORITHMS, RandomEnv, make_model


def modes(policy: nn.Module) -> dict[str, bool]:
    return {name: module.training for name, module in policy.named_modules()}


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_modes_are_stocks(algorithm):
    policy, stock = make_model(algorithm).policy, make_model(algorithm, sparse=False).policy
    for mode in (True, False, True, True, False):
        for one in (policy, stock):
            one.set_training_mode(mode)
        mine, others = modes(policy), modes(stock)
        assert {name: mine[name] for name in others} == others


def a_new_layer(policy: Any) -> None:
    policy.actor.mu[1] = nn.Dropout()


def one_more_layer(policy: Any) -> None:
    policy.actor.add_module("more", nn.Dropout())


def one_in_another_mode(policy: Any) -> None:
    policy.actor.mu[0].train(not policy.training)


def a_train_of_its_own(policy: Any) -> None:
    # As networks with frozen statistics have it
    policy.actor.mu[0].train = lambda mode=True: None


@pytest.mark.parametrize("change", [a_new_layer, one_more_layer, one_in_another_mode, a_train_of_its_own])
@pytest.mark.parametrize("mode", [True, False])
def test_what_changed_is_noticed(change, mode):
    policy, expected = make_model(TD3).policy, make_model(TD3, sparse=False).policy
    for one in (policy, expected):
        one.set_training_mode(not mode)
        one.set_training_mode(mode)
        change(one)
        one.set_training_mode(not mode)
    mine, others = modes(policy), modes(expected)
    assert {name: mine[name] for name in others} == others


def test_a_class_with_a_mode_of_its_own():
    class Frozen(nn.Linear):
        def train(self, mode: bool = True) -> nn.Linear:
            return super().train(False)

    model = make_model(SAC)
    model.policy.actor.extra = Frozen(2, 2)
    for _ in range(2):
        model.policy.set_training_mode(True)
        assert not model.policy.actor.extra.training
        assert model.policy.actor.training


def test_a_policy_with_a_mode_of_its_own():
    class Frozen(TD3Policy):
        def set_training_mode(self, mode: bool) -> None:
            super().set_training_mode(mode)
            self.actor.features_extractor.train(False)

    class SparseFrozen(SparsePolicyMixin, Frozen):
        pass

    policy = TD3(SparseFrozen, RandomEnv(), policy_kwargs=dict(sparsity=0.5)).policy
    for _ in range(3):
        policy.set_training_mode(True)
        assert not policy.actor.features_extractor.training
        assert policy.actor.training


def test_a_network_with_a_mode_of_its_own():
    policy = make_model(TD3).policy
    policy.set_training_mode(True)
    policy.actor.set_training_mode = lambda mode: None
    policy.set_training_mode(False)
    assert policy.actor.training
    assert not policy.critic.training


def test_who_looks_at_its_mode_sees_it():
    class Merging(nn.Module):
        n_merges = 0

        def train(self, mode: bool = True) -> nn.Module:
            self.n_merges += int(self.training and not mode)
            return super().train(mode)

    policy = make_model(TD3).policy
    policy.actor.merging = Merging()
    for mode in (True, False, False, True, False):
        policy.set_training_mode(mode)
    assert policy.actor.merging.n_merges == 2


@pytest.mark.parametrize("wrap", [th.compile, th.jit.script])
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_modules_that_keep_their_mode_elsewhere(wrap, monkeypatch):
    # Who compiles for the first time turns it off for good
    monkeypatch.setattr(th.distributions.Distribution, "_validate_args", th.distributions.Distribution._validate_args)
    policy = make_model(TD3).policy
    policy.actor.wrapped = wrap(nn.Flatten())
    for mode in (True, False, True):
        policy.set_training_mode(mode)
        assert policy.actor.wrapped.training == mode


@pytest.mark.parametrize("algorithm", [TD3, SAC, DQN, PPO])
def test_a_copy_has_modes_of_its_own(algorithm):
    policy = make_model(algorithm).policy
    policy.set_training_mode(False)
    before, copied = modes(policy), deepcopy(policy)
    copied.set_training_mode(True)
    assert modes(policy) == before
    assert copied.training
