"""What a policy is given: what cannot be is refused by name, before a network is made; what stock policies take is taken."""

from functools import partial

import numpy as np
import pytest
import torch as th
from sb3_contrib import QRDQN, TQC, CrossQ, RecurrentPPO
from stable_baselines3 import A2C, DQN, PPO, SAC, TD3
from stable_baselines3.common.torch_layers import CombinedExtractor, FlattenExtractor
from stable_baselines3.td3.policies import TD3Policy

from sb3_sparse import SparsePolicyMixin
from tests.helpers import RandomEnv, make_model

WIDTHS = "`net_arch` must be a list of numbers of units, integers >= 1"


@pytest.mark.parametrize("algorithm", [TD3, SAC, CrossQ, DQN, QRDQN, PPO, A2C])
@pytest.mark.parametrize("net_arch", [[0], [-4], [4.0], ["8"], 16, "16", [[8]], [None], [True], [16, 0]])
def test_widths(algorithm, net_arch):
    with pytest.raises(ValueError, match=WIDTHS):
        make_model(algorithm, policy_kwargs=dict(net_arch=net_arch))


@pytest.mark.parametrize(
    ("algorithm", "net_arch"),
    [
        (TD3, {"pi": [8]}),
        (TD3, {"qf": [8]}),
        (SAC, {"pi": [8], "qf": [0]}),
        (SAC, {"pi": 8, "qf": 8}),
        (TQC, (8, 8)),
        (DQN, {"pi": [8], "qf": [8]}),
        (PPO, {"pi": [8], "vf": "8"}),
    ],
)
def test_widths_by_network(algorithm, net_arch):
    with pytest.raises(ValueError, match=WIDTHS):
        make_model(algorithm, policy_kwargs=dict(net_arch=net_arch))


@pytest.mark.parametrize(
    ("algorithm", "net_arch"),
    [
        (TD3, {"pi": [8], "qf": []}),
        (TD3, []),
        (SAC, [np.int64(8)]),
        (DQN, (8, 8)),
        (PPO, {"pi": [8]}),
        (PPO, {}),
        (A2C, [{"pi": [8], "vf": (4,)}]),  # as it was written before SB3 1.8
    ],
)
@pytest.mark.filterwarnings("ignore:As shared layers")
def test_what_stock_policies_take(algorithm, net_arch):
    for sparse in (False, True):
        make_model(algorithm, sparse=sparse, policy_kwargs=dict(net_arch=net_arch)).learn(24)


@pytest.mark.parametrize(
    ("algorithm", "name", "value"),
    [
        *((algorithm, "activation_fn", value) for algorithm in (TD3, PPO) for value in ("relu", None, 3, th.nn.ReLU())),
        *((algorithm, "optimizer_class", value) for algorithm in (TD3, DQN) for value in ("Adam", None, 3)),
        *((PPO, "features_extractor_class", value) for value in ("FlattenExtractor", 3)),
        (SAC, "features_extractor_class", FlattenExtractor(RandomEnv().observation_space)),
        *((TD3, name, "fast") for name in ("optimizer_kwargs", "features_extractor_kwargs")),
        (RecurrentPPO, "lstm_kwargs", [1]),
        *((algorithm, "n_critics", value) for algorithm in (TD3, SAC, TQC, CrossQ) for value in (0, 1.5, "2", None)),
        *((algorithm, "n_quantiles", value) for algorithm in (TQC, QRDQN) for value in (0, 2.5)),
        *((RecurrentPPO, name, 0) for name in ("lstm_hidden_size", "n_lstm_layers")),
        *((SAC, "log_std_init", value) for value in ("0", None, float("nan"))),
    ],
)
def test_the_argument_is_named(algorithm, name, value):
    with pytest.raises(ValueError, match=f"^`{name}` must be "):
        make_model(algorithm, policy_kwargs={name: value})


def test_an_optimizer_without_a_step():
    with pytest.raises(ValueError, match=r"`optimizer_class`=Optimizer cannot train a policy: it has no step\(\) of its own"):
        make_model(TD3, policy_kwargs=dict(optimizer_class=th.optim.Optimizer))


def test_whatever_makes_an_optimizer_an_activation_or_an_extractor():
    kwargs = dict(
        optimizer_class=partial(th.optim.SGD, momentum=0.9),
        activation_fn=partial(th.nn.LeakyReLU, 0.2),
        features_extractor_class=partial(FlattenExtractor),
    )
    for sparse in (False, True):
        model = make_model(PPO, sparse=sparse, policy_kwargs=kwargs).learn(24)
        assert isinstance(model.policy.optimizer, th.optim.SGD)


def test_extractors_for_other_spaces():
    with pytest.raises(ValueError, match=r"for dict observation spaces, got Box.*`features_extractor_class`"):
        make_model(TD3, policy_kwargs=dict(features_extractor_class=CombinedExtractor))


class ByWord(TD3Policy):
    """A policy that has words for its architectures."""

    def __init__(self, *args, net_arch="small", n_critics="two", **kwargs):
        assert n_critics == "two"
        super().__init__(*args, net_arch={"small": [8], "large": [64]}[net_arch], **kwargs)


class SparseByWord(SparsePolicyMixin, ByWord):
    pass


def test_arguments_of_ones_own_policy_are_its_own_affair():
    model = TD3(SparseByWord, RandomEnv(), policy_kwargs=dict(net_arch="small", sparsity=0.5), device="cpu")
    assert model.policy.sparsifier.layers["actor.mu.0"].weight.shape == (8, 7)
