"""TAR's revival: shares by hand, what is kept and what comes back, once in a policy's life, resume."""

import math
import re

import pytest
import torch as th
from stable_baselines3 import DQN, PPO, SAC, TD3

from sb3_sparse import SET, Revival, sparse_policy
from sb3_sparse.callbacks.revival import connected_edges, revival_counts
from tests.helpers import SUPPORTED, SUPPORTED_IDS, assert_goes_on_exactly, assert_invariants, make_model, start_training

MAGNITUDE = dict(sparsity=0.7, distribution="er", initial_mask="magnitude")


def test_edges_of_a_connected_graph_by_hand():
    # HalfCheetah's actor, 17-256-256-6
    assert connected_edges((256, 17)) == pytest.approx(273 / 2 * math.log(273)) == pytest.approx(765.7, abs=0.05)
    assert connected_edges((256, 256)) == pytest.approx(1597.0, abs=0.05)
    assert connected_edges((6, 256)) == pytest.approx(729.5, abs=0.05)
    # A kernel is no node
    assert connected_edges((8, 3, 5, 5)) == connected_edges((8, 3))


def test_shares_by_hand():
    shapes = {"a": (256, 17), "b": (256, 256), "c": (6, 256)}
    # 1000 * 765.7, 1597.0 and 729.5 of 3092.2 are 247.6, 516.5 and 235.9: the rest goes to the largest fractions
    assert revival_counts(1000, shapes, {"a": 4000, "b": 60000, "c": 1500}) == {"a": 248, "b": 516, "c": 236}
    # What does not fit into c goes to the others
    tight = revival_counts(1000, shapes, {"a": 4000, "b": 60000, "c": 100})
    assert tight["c"] == 100
    assert sum(tight.values()) == 1000
    assert min(revival_counts(3, shapes, dict.fromkeys(shapes, 9)).values()) == 1


@pytest.mark.parametrize("grown", ["zero", "init"])
def test_before_training_it_is_a_sparser_magnitude_mask_and_the_reserve(grown):
    model = make_model(SAC, policy_kwargs=MAGNITUDE | dict(net_arch=[40, 40]))
    sparsifier = sparse_policy(model).sparsifier
    before = {name: (layer.weight.detach().clone(), layer.weight_mask.clone()) for name, layer in sparsifier.layers.items()}
    callback = Revival(0.2, grown=grown)
    start_training(model, callback, 100)
    for network, names in sparsifier.networks.items():
        pruned = [name for name in names if not before[name][1].all()]
        n_before = {name: int(before[name][1].sum()) for name in names}
        kept = {}
        for name in pruned:
            weight, mask = before[name]
            sizes = weight.abs()[mask].sort(descending=True).values
            kept[name] = mask & (weight.abs() >= sizes[n_before[name] - int(0.2 * n_before[name]) - 1])
        n_revived = sum(n_before[name] - int(kept[name].sum()) for name in pruned)
        n_free = {name: int((~kept[name]).sum()) for name in pruned}
        counts = revival_counts(n_revived, {name: kept[name].shape for name in pruned}, n_free)
        for name in names:
            layer, (weight, mask) = sparsifier.layers[name], before[name]
            if name not in pruned:
                assert th.equal(layer.weight_mask, mask)
                continue
            assert bool(layer.weight_mask[kept[name]].all())
            assert layer.n_active == int(kept[name].sum()) + counts[name]
            # Of weights that were there all the time none has moved
            stayed = layer.weight_mask & mask
            assert th.equal(layer.weight[stayed], weight[stayed])
            grown_values = layer.weight[layer.weight_mask & ~mask].abs()
            assert bool((grown_values == 0).all()) == (grown == "zero")
            assert bool((grown_values <= weight[0].numel() ** -0.5).all())
        assert sum(sparsifier.layers[name].n_active for name in names) == sum(n_before.values())
        (event,) = [event for event in callback.events if event.network == network]
        assert (event.timestep, event.n_dropped) == (0, event.n_grown)
    assert_invariants(model)


def test_every_position_that_does_not_exist_is_as_likely():
    # 60 seeds: the positions that pruning took are revived about equally often, those just dropped among them
    counts = th.zeros(30, 30)
    chances = 0.0
    for seed in range(60):
        model = make_model(
            DQN, policy_kwargs=dict(net_arch=[30, 30], sparsity=0.8, mask_seed=seed, distribution="uniform"), seed=0
        )
        layer = sparse_policy(model).sparsifier.layers["q_net.q_net.2"]
        sparse_policy(model).sparsifier.set_masks({"q_net.q_net.2": th.arange(900).view(30, 30) < layer.n_active})
        start_training(model, Revival(0.5), 100)
        n_kept = layer.n_active - int(layer.weight_mask.flatten()[180:].sum())
        counts += layer.weight_mask
        chances += (layer.n_active - 90) / 810
        assert n_kept >= 90
    revived = counts.flatten()[180:]
    # Binomial with 60 draws; the mean of 720 places has a standard error below 1 % of it
    assert float(revived.mean()) == pytest.approx(chances, rel=0.05)
    halves = revived[:360].mean(), revived[360:].mean()
    assert float(halves[0]) == pytest.approx(float(halves[1]), rel=0.15)


@pytest.mark.parametrize(("start", "moment"), [(50, 50), (0.6, 60), (0, 0), (10, 21)])
def test_once_and_then_never_again(start, moment):
    model = make_model(TD3, policy_kwargs=MAGNITUDE, train_freq=1, gradient_steps=1)
    first = Revival(0.3, start)
    model.learn(100, callback=first)
    moments = {event.network: event.timestep for event in first.events}
    # A TD3 actor makes a step with every second of its critic
    assert {network: moments[network] - moment in (0, 1) for network in ("actor", "critic")} == dict.fromkeys(moments, True)
    masks = sparse_policy(model).sparsifier.masks()
    again = Revival(0.3, 0)
    model.learn(40, callback=again, reset_num_timesteps=False)
    assert again.events == []
    assert all(th.equal(mask, masks[name]) for name, mask in sparse_policy(model).sparsifier.masks().items())


@pytest.mark.parametrize(("algorithm", "kind"), SUPPORTED, ids=SUPPORTED_IDS)
def test_every_policy(algorithm, kind):
    model = make_model(algorithm, kind, policy_kwargs=dict(sparsity=0.6))
    before = dict(sparse_policy(model).sparsifier.n_planned)
    callback = Revival(0.25)
    model.learn(60, callback=callback)
    sparsifier = sparse_policy(model).sparsifier
    assert {event.network for event in callback.events} == set(sparsifier.networks)
    for names in sparsifier.networks.values():
        assert sum(sparsifier.n_planned[name] for name in names) == sum(before[name] for name in names)
    assert_invariants(model)


@pytest.mark.parametrize(("start", "n_events"), [(0, 0), (80, 2)])
def test_goes_on_exactly(tmp_path, start, n_events):
    model = make_model(TD3, policy_kwargs=MAGNITUDE)
    first = Revival(0.3, start)
    model.learn(40, callback=first)
    assert len(first.events) == 2 - n_events
    callbacks = (Revival(0.3, start), Revival(0.3, start))
    assert_goes_on_exactly(model, callbacks, tmp_path, timesteps=(60, 80), total_timesteps=100)
    assert [len(callback.events) for callback in callbacks] == [n_events, n_events]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (dict(reserve=0), "`reserve` must be a number in (0, 1), got 0"),
        (dict(reserve=1.0), "`reserve` must be a number in (0, 1), got 1.0"),
        (dict(start=None), "`start` must be a float in [0, 1] (fraction of the training) or an integer"),
        (dict(start=-1), "`start` must be a float in [0, 1]"),
        (dict(grown="ones"), "`grown` must be"),
    ],
)
def test_arguments_are_refused(arguments, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        Revival(**arguments)


def test_what_cannot_be_revived_is_refused_before_a_step():
    for policy_kwargs, message in (
        (dict(pattern="2:4"), "`pattern`='2:4'"),
        (dict(pattern="block:2x1", sparsity=0.5), "`pattern`='block:2x1'"),
        (dict(sparsity=0.0), "none of its layers is pruned"),
        (dict(sparsity=0.8, net_arch=[4, 4]), "`reserve`=0.1 is "),
    ):
        model = make_model(PPO, policy_kwargs=policy_kwargs)
        with pytest.raises(ValueError, match=re.escape(message)):
            model.learn(64, callback=Revival(0.1))
        assert model.num_timesteps == 0


def test_a_second_updater_is_refused():
    model = make_model(TD3, policy_kwargs=MAGNITUDE)
    with pytest.raises(ValueError, match="already has the updater"):
        model.learn(60, callback=[SET(5, 0.3), Revival(0.3)])


def test_frozen_layers_keep_their_masks():
    model = make_model(DQN, policy_kwargs=MAGNITUDE | dict(net_arch=[30, 30]))
    sparsifier = sparse_policy(model).sparsifier
    sparsifier.layers["q_net.q_net.0"].weight.requires_grad_(False)
    before = sparsifier.masks()
    start_training(model, Revival(0.3), 100)
    changed = {name for name, mask in sparsifier.masks().items() if not th.equal(mask, before[name])}
    assert "q_net.q_net.0" not in changed
    assert "q_net.q_net.2" in changed
