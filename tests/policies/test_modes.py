"""Training mode is remembered, and still what torch would make of it."""

from __future__ import annotations

from copy import deepcopy
from typing import Any

import pytest
from stable_baselines3 import DQN, PPO, SAC, TD3
from torch import nn

from tests.helpers import ALGORITHMS, make_model


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


@pytest.mark.parametrize("algorithm", [TD3, SAC, DQN, PPO])
def test_a_copy_has_modes_of_its_own(algorithm):
    policy = make_model(algorithm).policy
    policy.set_training_mode(False)
    before, copied = modes(policy), deepcopy(policy)
    copied.set_training_mode(True)
    assert modes(policy) == before
    assert copied.training
