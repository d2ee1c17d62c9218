"""Shrinking: the same actions and values from smaller matrices, bit for bit where sums have no rounding."""

import numpy as np
import pytest
import torch as th
from hypothesis import given, settings
from hypothesis import strategies as st
from sb3_contrib import QRDQN, TQC, CrossQ
from stable_baselines3 import DQN, PPO, SAC, TD3
from stable_baselines3.common.utils import set_random_seed
from stable_baselines3.dqn.policies import QNetwork
from torch import nn

from sb3_sparse import GradualPruning, integer_forward, quantize, shrink, sparse_policy, sparsify, sparsity_report, to_stock
from sb3_sparse.analysis.dead_units import Copy, Hidden, dead_units, find_hidden
from sb3_sparse.analysis.integer_forward import network_output
from sb3_sparse.conversion.shrink import NarrowNatureCNN
from tests.helpers import DISCRETE, SUPPORTED, SUPPORTED_IDS, RandomEnv, assert_invariants, make_model, observations

SHRINKABLE = [(pair, name) for pair, name in zip(SUPPORTED, SUPPORTED_IDS, strict=True) if pair[0] is not CrossQ]


def outputs(model):
    """Everything the online and target networks compute: actions, values, Q-values of both."""
    policy, found = model.policy, []
    obs = policy.obs_to_tensor(observations(model, 12))[0]
    model.policy.set_training_mode(False)
    with th.no_grad():
        if hasattr(policy, "lstm_hidden_state_shape"):
            actions, _ = model.predict(observations(model, 1), deterministic=True)
            return [th.as_tensor(actions)]
        if hasattr(policy, "mlp_extractor"):
            found += [policy.get_distribution(obs).mode().float(), policy.predict_values(obs)]
        for name in ("actor", "actor_target"):
            if getattr(policy, name, None) is not None:
                actor = getattr(policy, name)
                found.append(actor(obs, deterministic=True) if hasattr(actor, "latent_pi") else actor(obs))
        actions = th.linspace(-1, 1, 24).view(12, 2)
        for name in ("critic", "critic_target"):
            if getattr(policy, name, None) is not None:
                values = getattr(policy, name)(obs, actions)
                found += list(values) if isinstance(values, tuple) else [values]
        for name in ("q_net", "q_net_target", "quantile_net", "quantile_net_target"):
            if getattr(policy, name, None) is not None:
                found.append(getattr(policy, name)(obs))
    return found


def same_outputs(first, second, *, exactly=False):
    set_random_seed(0)
    before = outputs(first)
    set_random_seed(0)
    after = outputs(second)
    assert len(before) == len(after) > 0
    compare = th.equal if exactly else lambda a, b: th.allclose(a, b, rtol=1e-5, atol=1e-6)
    return all(compare(a, b) for a, b in zip(before, after, strict=True))


def cut_units(model, fraction, seed=0):
    """Prune whole rows and columns at random, so that units die in every hidden layer."""
    sparsifier = sparse_policy(model).sparsifier
    generator = th.Generator().manual_seed(seed)
    masks = sparsifier.masks()
    for name, mask in masks.items():
        if sparsifier.plan[name].info.depth > 0:
            mask[:, th.rand(mask.shape[1], generator=generator) < fraction] = False
        if mask.shape[0] > 3:
            mask[th.rand(mask.shape[0], generator=generator) < fraction] = False
    sparsifier.set_masks(masks, replan=True)


@pytest.mark.parametrize(("algorithm", "kind"), [pair for pair, _ in SHRINKABLE], ids=[name for _, name in SHRINKABLE])
def test_every_algorithm_and_policy(algorithm, kind):
    # Tanh: constants of units without inputs are not zero
    model = make_model(algorithm, kind, policy_kwargs=dict(sparsity=0.3, activation_fn=nn.Tanh))
    model.learn(40)
    cut_units(model, 0.3)
    before = {name: value.clone() for name, value in model.policy.state_dict().items()}
    small = shrink(model)
    assert all(th.equal(value, before[name]) for name, value in model.policy.state_dict().items())
    assert type(small.policy) is type(model.policy)
    assert small.num_timesteps == model.num_timesteps
    assert same_outputs(model, small)
    assert (
        sum(small.policy_kwargs["net_arch"]["pi"] if algorithm not in (DQN, QRDQN) else small.policy_kwargs["net_arch"]) < 28
    )
    assert_invariants(small)
    # Nothing more to take but what fills up twins of unequal width
    again = shrink(small)
    assert [p.shape for p in again.policy.parameters()] == [p.shape for p in small.policy.parameters()]
    small.learn(24)
    assert_invariants(small)


def test_a_chain_by_hand():
    model = make_model(DQN, policy_kwargs=dict(sparsity=0.0, net_arch=[4, 2]))
    sparsifier, (first, second, _) = model.policy.sparsifier, model.policy.sparsifier.layers.values()
    with th.no_grad():
        first.bias.copy_(th.tensor([2.0, -3.0, 1.0, 0.5]))
        second.weight.copy_(th.tensor([[1.0, 10.0, 3.0, 4.0], [5.0, 6.0, 7.0, 8.0]]))
        second.bias.copy_(th.tensor([100.0, 200.0]))
    masks = sparsifier.masks()
    masks["q_net.q_net.0"][[0, 1]] = False  # constants relu(2) = 2 and relu(-3) = 0
    masks["q_net.q_net.2"][:, 3] = False  # unit 3 is read by no one
    sparsifier.set_masks(masks, replan=True)
    small = shrink(model)
    assert small.policy_kwargs["net_arch"] == [1, 2]
    assert small.policy.q_net.q_net[2].bias.tolist() == [100 + 2 * 1, 200 + 2 * 5]
    assert small.policy.q_net.q_net[2].weight.tolist() == [[3.0], [7.0]]
    assert th.equal(small.policy.q_net.q_net[0].weight[0], first.weight[2])


def test_death_spreads_both_ways():
    model = make_model(DQN, policy_kwargs=dict(sparsity=0.0, net_arch=[3, 3, 3]))
    sparsifier = model.policy.sparsifier
    masks = sparsifier.masks()
    masks["q_net.q_net.0"][0] = False  # unit 0 of the first layer has no inputs ...
    masks["q_net.q_net.2"][0] = th.tensor([True, False, False])  # ... and is all that unit 0 of the second reads
    masks["q_net.q_net.4"][2] = th.tensor([False, False, True])  # unit 2 of the second is read by unit 2 of the third alone,
    masks["q_net.q_net.4"][:2, 2] = False
    masks["q_net.q_net.6"][:, 2] = False  # which no one reads
    sparsifier.set_masks(masks, replan=True)
    layers = {layer.name: (layer.no_inputs, layer.no_outputs) for layer in sparsity_report(model).layers}
    assert layers == {
        "q_net.q_net.0": (1, 0),
        "q_net.q_net.2": (1, 1),
        "q_net.q_net.4": (0, 1),
        "q_net.q_net.6": (None, None),
    }
    small = shrink(model)
    assert small.policy_kwargs["net_arch"] == [2, 1, 2]
    assert same_outputs(model, small)


@settings(max_examples=25)
@given(st.integers(0, 10**6), st.floats(0.3, 0.98), st.sampled_from([DQN, SAC, PPO, TD3]))
def test_bit_for_bit_with_whole_numbers(seed, sparsity, algorithm):
    kwargs = dict(sparsity=sparsity, distribution="uniform", mask_seed=seed, net_arch=[7, 6, 5], activation_fn=nn.ReLU)
    try:
        model = make_model(algorithm, policy_kwargs=kwargs)
    except ValueError as error:
        assert "cannot be reached" in str(error)
        return
    generator = th.Generator().manual_seed(seed)
    policy = model.policy
    with th.no_grad():
        for parameter in policy.parameters():
            parameter.copy_(th.randint(-2, 3, parameter.shape, generator=generator))
    policy.sparsifier.project()
    small = shrink(model)
    obs = th.randint(-3, 4, (20, 7), generator=generator).float()
    with th.no_grad():
        for one in ("q_net", "mlp_extractor", "actor", "actor_target", "critic", "critic_target"):
            if getattr(policy, one, None) is None:
                continue
            results = []
            for module in (policy, small.policy):
                net = getattr(module, one)
                if one == "mlp_extractor":
                    results.append((module.action_net(net.forward_actor(obs)), module.value_net(net.forward_critic(obs))))
                elif one.startswith("critic"):
                    results.append(net(obs, th.cat([obs, obs], dim=1)[:, 5:7]))
                elif hasattr(net, "latent_pi"):
                    results.append((net.mu(net.latent_pi(obs)), net.log_std(net.latent_pi(obs))))
                else:
                    results.append((net(obs),))
            assert all(th.equal(a, b) for a, b in zip(*results, strict=True))


@pytest.mark.parametrize("algorithm", [DQN, PPO, SAC])
@pytest.mark.parametrize("share", [True, False])
def test_channels(algorithm, share):
    if algorithm is DQN and share:
        pytest.skip("DQN has one network")
    policy_kwargs = dict(sparsity=0.0) | ({} if algorithm is DQN else dict(share_features_extractor=share))
    model = make_model(algorithm, "Cnn", policy_kwargs=policy_kwargs)
    sparsifier = model.policy.sparsifier
    masks = sparsifier.masks()
    for name, mask in masks.items():
        if name.endswith("cnn.0"):
            mask[:5] = False  # channels without inputs, constant relu(bias)
        elif name.endswith("cnn.2"):
            mask[:, 5:8] = False  # channels without outputs
            mask[10:30] = False
        elif name.endswith("linear.0"):
            mask[:, : mask.shape[1] // 64 * 7] = False  # the pixels of seven channels
            mask[3] = False
    sparsifier.set_masks(masks, replan=True)
    with th.no_grad():
        for module in model.policy.modules():
            if isinstance(module, nn.Conv2d):
                module.bias.abs_()
    small = shrink(model)
    assert small.policy_kwargs["features_extractor_class"] is NarrowNatureCNN
    assert small.policy_kwargs["features_extractor_kwargs"] == {"features_dim": 23, "channels": (24, 44, 57)}
    assert same_outputs(model, small)
    small.learn(24)
    twin = to_stock(small)
    assert same_outputs(small, twin)


@pytest.mark.parametrize("algorithm", [DQN, PPO, SAC])
def test_channels_of_the_default_architecture(algorithm):
    """Left to themselves, stock policies choose their hidden layers by the extractor's class, which shrinking changes."""
    env = RandomEnv("Cnn", discrete=algorithm in DISCRETE)
    kwargs = dict(buffer_size=10) if algorithm is not PPO else dict(n_steps=8, batch_size=8)
    model = algorithm("CnnPolicy", env, seed=0, device="cpu", **kwargs)
    sparse = sparsify(model, 0.99, distribution="uniform")
    small = shrink(sparse)
    assert small.policy_kwargs["features_extractor_class"] is NarrowNatureCNN
    for old, new in zip(outputs(sparse), outputs(small), strict=True):
        th.testing.assert_close(new, old, rtol=0, atol=1e-5)


def test_stock_models_with_zeros_shrink_alike(tmp_path):
    model = make_model(TD3, policy_kwargs=dict(sparsity=0.9))
    small, stock = shrink(model), shrink(to_stock(model))
    assert stock.policy_kwargs["net_arch"] == small.policy_kwargs["net_arch"]
    assert "sparse" not in type(stock.policy).__name__.lower()
    assert same_outputs(small, stock)  # another engine
    small.save(tmp_path / "small.zip")
    assert same_outputs(TD3.load(tmp_path / "small.zip"), small, exactly=True)


def test_twins_of_unequal_width_are_filled_up():
    model = make_model(TD3, policy_kwargs=dict(sparsity=0.0))
    masks = model.policy.sparsifier.masks()
    masks["critic.qf0.0"][:10] = False
    masks["critic.qf1.0"][:3] = False
    model.policy.sparsifier.set_masks(masks, replan=True)
    small = shrink(model)
    assert small.policy_kwargs["net_arch"] == {"pi": [16, 12], "qf": [13, 12]}
    assert same_outputs(model, small)
    layer = small.policy.sparsifier.layers["critic.qf0.0"]
    assert layer.n_active == 6 * 9
    assert_invariants(small)


@pytest.mark.parametrize("algorithm", [SAC, PPO, TQC])
def test_state_dependent_exploration_keeps_what_it_reads(algorithm):
    model = make_model(algorithm, policy_kwargs=dict(sparsity=0.3), use_sde=True)
    cut_units(model, 0.4)
    small = shrink(model)
    widths = small.policy_kwargs["net_arch"]["pi"]
    assert widths[0] < 16
    assert widths[1] == 12
    assert same_outputs(model, small)


def test_moments_are_cut_alike():
    """Units without outputs have no part in training: with and without them it goes the same way."""
    model = make_model(DQN, policy_kwargs=dict(sparsity=0.0))
    masks = model.policy.sparsifier.masks()
    masks["q_net.q_net.2"][:, 4:9] = False
    masks["q_net.q_net.4"][:, :3] = False
    model.policy.sparsifier.set_masks(masks, replan=True)
    model.learn(60)
    small = shrink(model)
    assert small.policy_kwargs["net_arch"] == [11, 9]
    for one in (model, small):
        one.replay_buffer = model.replay_buffer
        one.set_logger(model.logger)
        set_random_seed(5)
        one.train(gradient_steps=30, batch_size=8)
    assert same_outputs(model, small)
    assert not same_outputs(model, shrink(make_model(DQN, policy_kwargs=dict(sparsity=0.0))))


def test_patterns_are_given_up():
    model = make_model(DQN, policy_kwargs=dict(pattern="2:4"))
    cut_units(model, 0.3)
    small = shrink(model)
    assert small.policy.sparsity_config.pattern == "unstructured"
    assert {plan.pattern.spec for plan in small.policy.sparsifier.plan.values()} == {"unstructured"}
    # Nothing died: nothing changes
    whole = shrink(make_model(DQN, policy_kwargs=dict(pattern="2:4", dense_layers="last")))
    assert whole.policy.sparsity_config.pattern == "2:4"


def test_what_does_not_depend_on_widths_is_kept():
    own = dict(engine="torch", initial_mask="magnitude", mask_seed=7)
    model = make_model(TD3, policy_kwargs=dict(sparsity=0.0, dense_layers=["first", "*.4"]) | own)
    masks = model.policy.sparsifier.masks()
    for name in ("actor.mu.2", "critic.qf0.2"):
        masks[name][:, :5] = False
    model.policy.sparsifier.set_masks(masks, replan=True)
    small = shrink(model)
    assert own.items() <= small.policy_kwargs.items()
    # One of the twins lost units, and is filled up with zeros: it cannot be dense
    assert small.policy_kwargs["dense_layers"] == ["actor.mu.0", "actor.mu.4", "critic.qf1.0", "critic.qf0.4", "critic.qf1.4"]
    assert same_outputs(model, small)
    small.learn(60, callback=GradualPruning({"actor": 0.5}, 0.4, 0.8, updates=3))
    assert small.policy.sparsifier.layers["actor.mu.0"].mask_values is None
    assert "dense_layers" not in shrink(make_model(TD3, policy_kwargs=dict(sparsity=0.95))).policy_kwargs


def test_a_network_that_lost_everything():
    model = make_model(DQN, policy_kwargs=dict(sparsity=0.0))
    masks = model.policy.sparsifier.masks()
    masks["q_net.q_net.2"][:] = False
    model.policy.sparsifier.set_masks(masks, replan=True)
    small = shrink(model)
    assert small.policy_kwargs["net_arch"] == [1, 1]
    assert same_outputs(model, small)
    assert "0 / " in str(sparsity_report(small))


def test_padded_convolutions_keep_constants():
    first, second = nn.Conv2d(1, 3, 3, padding=1), nn.Conv2d(3, 2, 3, padding=1)
    with th.no_grad():
        first.weight[:2] = 0.0
        first.bias[0], first.bias[1] = 1.0, -1.0  # the second's relu is zero, which padding is too
    hidden = Hidden("conv", "conv.0", nn.ReLU(), [Copy(first, [(second, 9)])])
    assert dead_units([hidden]).alive["conv"].tolist() == [True, False, True]


class MyQNetwork(QNetwork):
    """A user's own network."""


def test_networks_of_ones_own_are_refused():
    model = make_model(DQN, policy_kwargs=dict(sparsity=0.8))
    model.policy.q_net.__class__ = MyQNetwork
    with pytest.raises(NotImplementedError, match="q_net is a MyQNetwork: only networks of stock classes"):
        shrink(model)
    assert {layer.no_inputs for layer in sparsity_report(model).layers} == {None}


@pytest.mark.parametrize("algorithm", [DQN, SAC])
def test_quantized_models_stay_quantized(algorithm):
    model = make_model(algorithm, policy_kwargs=dict(sparsity=0.3, net_arch=[32, 32], activation_fn=nn.Tanh)).learn(40)
    cut_units(model, 0.3)
    shown = observations(model, 200)
    quantized = quantize(model, data=shown)
    small = shrink(quantized)
    assert find_hidden(small.policy)[0].copies[0].layer.out_features < 32
    assert np.array_equal(network_output(small, shown), integer_forward(small, shown))
    # Not the same actions (scales change), but as near as quantization itself came
    floats, before, after = (network_output(one, shown) for one in (model, quantized, small))
    assert 0 < np.abs(after - before).max() < 2 * np.abs(before - floats).max()
    assert_invariants(small)


def test_networks_that_are_no_plain_chains_are_refused():
    model = make_model(CrossQ, policy_kwargs=dict(sparsity=0.8))
    with pytest.raises(NotImplementedError, match="BatchRenorm1d: only chains of Linear or Conv2d layers"):
        shrink(model)
    with pytest.raises(NotImplementedError, match="BatchRenorm1d"):
        find_hidden(make_model(CrossQ, sparse=False).policy)
