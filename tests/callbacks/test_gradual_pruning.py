"""Gradual pruning: Zhu and Gupta's numbers by hand, exact and monotone masks everywhere, stock before it begins, resume."""

from fractions import Fraction
from itertools import pairwise

import pytest
import torch as th
from hypothesis import given
from hypothesis import strategies as st
from stable_baselines3 import DQN, PPO, SAC, TD3
from stable_baselines3.common.logger import configure
from stable_baselines3.common.utils import set_random_seed

from sb3_sparse import SET, GradualPruning, sparse_policy
from sb3_sparse.masks.magnitude import largest_of_layer, largest_of_network
from sb3_sparse.masks.patterns import Block, NofM, Unstructured
from sb3_sparse.masks.schedules import gradual
from tests.helpers import (
    ALGORITHMS,
    SUPPORTED,
    SUPPORTED_IDS,
    assert_goes_on_exactly,
    equal_state,
    make_model,
    start_training,
    watched,
)


def dense_model(algorithm, kind="Mlp", **kwargs):
    return make_model(algorithm, kind, policy_kwargs=dict(sparsity=0.0) | kwargs.pop("policy_kwargs", {}), **kwargs)


def step_by_step(algorithm, **kwargs):
    """One gradient step after every environment step from 20 on."""
    return dense_model(algorithm, train_freq=1, gradient_steps=1, **kwargs)


def sparsities(callback, network):
    return [event.sparsity for event in callback.events if event.network == network]


# --- The rule ---


def test_cubic_by_hand():
    # s = 0.8 - 0.8 * (1 - k/4)**3: a rise of 37/64, 19/64, 7/64 and 1/64 of the whole
    expected = [0.8 * (1 - Fraction(n, 64)) for n in (64, 27, 8, 1, 0)]
    assert [gradual(0.0, 0.8, k / 4) for k in range(5)] == pytest.approx([float(value) for value in expected])
    assert gradual(0.3, 0.95, 1.0) == 0.95
    assert gradual(0.3, 0.95, 0.0) == pytest.approx(0.3)


@pytest.mark.parametrize("scope", ["layer", "global"])
def test_exact_counts_at_exact_moments(scope):
    model = step_by_step(DQN, policy_kwargs=dict(net_arch=[20, 10]))
    # q_net 7-20-10-3: 140 + 200 + 30 weights
    total = 370
    callback = GradualPruning(0.9, 40, 80, updates=8, scope=scope)
    counts = {}
    update = callback._update

    def record(network, step):
        fraction = update(network, step)
        counts[model.num_timesteps] = callback._n_active(callback._layers_of(network))
        return fraction

    callback._update = record
    model.learn(100, callback=callback)
    expected = {40 + 5 * k: round(total * (1 - 0.9 * (1 - (1 - k / 8) ** 3))) for k in range(1, 9)}
    assert counts == expected
    assert counts[80] == 37


def test_fractions_are_of_the_total_and_integers_are_steps():
    for start, stop in ((0.2, 0.8), (20, 80), (0.2, 80)):
        model = step_by_step(DQN, learning_starts=10)
        callback = GradualPruning(0.5, start, stop, updates=6)
        model.learn(100, callback=callback)
        assert [event.timestep for event in callback.events] == [30, 40, 50, 60, 70, 80]


def test_layer_scope_follows_the_distribution():
    for distribution in ("uniform", "er", {"critic.qf*.2": 0.75}):
        policy_kwargs = dict(distribution=distribution) | ({} if isinstance(distribution, dict) else dict(sparsity=0.8))
        planned = make_model(TD3, policy_kwargs=policy_kwargs).policy.sparsifier.n_planned
        model = dense_model(TD3)
        final = None if isinstance(distribution, dict) else 0.8
        callback = GradualPruning(final, 0.2, 0.6, updates=5, distribution=distribution)
        model.learn(60, callback=callback)
        assert model.policy.sparsifier.n_planned == planned
        assert {event.network for event in callback.events} == ({"critic"} if final is None else {"actor", "critic"})


def test_policys_own_distribution_is_the_default():
    model = dense_model(TD3, policy_kwargs=dict(distribution="uniform"))
    model.learn(60, callback=GradualPruning(0.8, updates=3))
    uniform = make_model(TD3, policy_kwargs=dict(distribution="uniform", sparsity=0.8))
    assert model.policy.sparsifier.n_planned == uniform.policy.sparsifier.n_planned


def test_global_scope_keeps_the_largest_of_the_network():
    model = dense_model(DQN)
    callback = GradualPruning(0.75, 30, 32, updates=1, scope="global")
    model.learn(29)
    start_training(model, callback, 100)
    model.num_timesteps = 40
    layers = model.policy.sparsifier.layers
    weights = {}
    # The moment it is decided: what the optimizer has just written
    callback_update = callback._update

    def record(network, step):
        weights.update({name: layer.weight.detach().clone() for name, layer in layers.items()})
        return callback_update(network, step)

    callback._update = record
    set_random_seed(0)
    model.train(gradient_steps=1, batch_size=8)
    everything = th.cat([weight.abs().flatten() for weight in weights.values()])
    n_keep = round(0.25 * len(everything))
    threshold = everything.sort(descending=True).values[n_keep - 1]
    for name, layer in layers.items():
        assert th.equal(layer.weight_mask, weights[name].abs() >= threshold)
    assert sum(layer.n_active for layer in layers.values()) == n_keep


# --- Everywhere ---


@pytest.mark.parametrize(("algorithm", "kind"), SUPPORTED, ids=SUPPORTED_IDS)
def test_every_algorithm_and_policy(algorithm, kind, monkeypatch):
    model = dense_model(algorithm, kind)
    callback = GradualPruning(0.8, 0.3, 0.9, updates=6)
    masks = []
    update = callback._update

    def record(network, step):
        fraction = update(network, step)
        masks.append((network, sparse_policy(model).sparsifier.masks()))
        return fraction

    callback._update = record
    with watched(model, monkeypatch) as met:
        model.learn(48 if kind == "Mlp" else 32, callback=callback)
    assert met["step"] > 0
    sparsifier = sparse_policy(model).sparsifier
    planned = sparse_policy(make_model(algorithm, kind, policy_kwargs=dict(sparsity=0.8))).sparsifier.n_planned
    assert sparsifier.n_planned == planned
    assert {network for network, _ in masks} == set(sparsifier.networks)
    for (_, before), (_, after) in pairwise(masks):
        assert not any(bool((after[name] & ~before[name]).any()) for name in after)
    assert all(event.n_grown == 0 for event in callback.events)


@pytest.mark.parametrize(
    ("pattern", "scope"), [("2:4", "layer"), ("1:4", "layer"), ("block:2x2", "layer"), ("block:2x2", "global")]
)
@pytest.mark.parametrize("algorithm", [TD3, DQN, PPO])
def test_patterns_hold_at_every_step(algorithm, pattern, scope, monkeypatch, tmp_path):
    final = None if ":4" in pattern else 0.7
    model = dense_model(algorithm, policy_kwargs=dict(pattern=pattern, net_arch=[24, 18]))
    with watched(model, monkeypatch):
        model.learn(48, callback=GradualPruning(final, 0.1, 100, updates=10, scope=scope))
    # Half-way: the masks are no final ones, and they can be saved and loaded
    sparsifier = sparse_policy(model).sparsifier
    assert 0 < sum(sparsifier.n_planned.values()) < sum(plan.info.n_weights for plan in sparsifier.plan.values())
    model.save(tmp_path / "model.zip")
    loaded = algorithm.load(tmp_path / "model.zip", env=model.get_env())
    assert equal_state(model, loaded)
    with watched(loaded, monkeypatch):
        loaded.learn(80, callback=GradualPruning(final, 0, 100, updates=10, scope=scope), reset_num_timesteps=True)
    planned = sparse_policy(
        make_model(algorithm, policy_kwargs=dict(pattern=pattern, net_arch=[24, 18], sparsity=final))
    ).sparsifier.n_planned
    assert sparse_policy(loaded).sparsifier.violations() == []
    if algorithm is TD3 and scope == "layer":
        loaded.learn(40, callback=GradualPruning(final, 0, 10, updates=2, scope=scope))
        assert sparse_policy(loaded).sparsifier.n_planned == planned


def test_n_of_m_goes_through_every_k_of_m():
    model = step_by_step(DQN, policy_kwargs=dict(pattern="1:4", net_arch=[16]))
    callback = GradualPruning(start=20, stop=80, updates=30)
    model.learn(100, callback=callback)
    met = list(dict.fromkeys(round((1 - value) * (7 * 16 + 16 * 3)) for value in sparsities(callback, "q_net")))
    # 7 inputs: groups of 4 and 3, so K:4 keeps 112, 96, 64, 32 of 112 weights; 16 inputs: 48, 36, 24, 12. One thirtieth on the
    # way 104.3 and 44.5 are wanted, nearest to 112 and 48; two thirtieths 97.0 and 41.3, nearest to 96 and 36; and so on
    assert met == [112 + 48, 96 + 36, 64 + 36, 64 + 24, 32 + 24, 32 + 12]


@pytest.mark.parametrize(("pattern", "sparsity"), [("block:2x2", 0.92), ("block:2x4", 0.88), ("3:4", None), ("2:3", None)])
def test_the_end_is_the_final_plan_on_ragged_widths(pattern, sparsity):
    # 7 inputs, 9 and 7 units, 3 outputs: edges of every kind
    kwargs = dict(pattern=pattern, net_arch=[9, 7])
    model = step_by_step(DQN, policy_kwargs=kwargs)
    model.learn(60, callback=GradualPruning(sparsity, 0.4, 0.8, updates=5))
    planned = make_model(DQN, policy_kwargs=kwargs | dict(sparsity=sparsity)).policy.sparsifier.plan
    for name, layer in model.policy.sparsifier.layers.items():
        assert planned[name].pattern.budget_of(layer.weight_mask) == planned[name].budget, name


@given(st.sampled_from([Unstructured(), NofM(2, 4), Block(2, 3)]), st.integers(0, 10**6), st.booleans())
def test_layers_never_regrow_whatever_the_weights(pattern, seed, broken):
    generator = th.Generator().manual_seed(seed)
    weight = th.randn(5, 9, generator=generator)
    mask = th.ones_like(weight, dtype=th.bool)
    for wanted in (40, 31, 20, 12):
        weight = (weight + th.randn(5, 9, generator=generator)) * mask
        if broken:
            weight[th.rand(5, 9, generator=generator) < 0.3] = float("nan")
        budget = pattern.budget(weight.shape, wanted)
        new = largest_of_layer(pattern, weight, mask, budget)
        assert int(new.sum()) == pattern.n_active(weight.shape, budget)
        assert not (new & ~mask).any()
        mask = new


@given(st.sampled_from([Unstructured(), Block(2, 2), Block(3, 1)]), st.integers(0, 10**6), st.floats(0.05, 1))
def test_global_selection_is_exact_nested_and_greedy(pattern, seed, density):
    generator = th.Generator().manual_seed(seed)
    shapes = {"a": (5, 7), "b": (4, 6), "c": (2, 3, 2, 2)}
    weights = {name: th.randn(shape, generator=generator) for name, shape in shapes.items()}
    masks = {name: th.ones_like(weight, dtype=th.bool) for name, weight in weights.items()}
    patterns = dict.fromkeys(shapes, pattern)
    total = sum(weight.numel() for weight in weights.values())
    n_keep = max(round(density * total), 3 * 4)
    first = largest_of_network(patterns, weights, masks, n_keep)
    kept = sum(int(mask.sum()) for mask in first.values())
    largest_piece = max(int(pattern.pieces(weight)[1].max()) for weight in weights.values())
    assert n_keep - largest_piece < kept <= n_keep
    assert all(mask.any() and pattern.is_legal(mask) for mask in first.values())
    if isinstance(pattern, Unstructured):
        assert kept == n_keep
        best = {name: int(weight.abs().argmax()) for name, weight in weights.items()}
        lowest = (
            min(
                float(value)
                for name, weight in weights.items()
                for value in (weight.abs() * first[name]).flatten()[th.arange(weight.numel()) != best[name]]
                if value > 0
            )
            if kept > 3
            else 0.0
        )
        dropped = [float(weight.abs()[~first[name]].max()) for name, weight in weights.items() if not first[name].all()]
        assert kept == 3 or not dropped or lowest >= max(dropped)
    second = largest_of_network(patterns, weights, first, n_keep // 2)
    assert not any((second[name] & ~first[name]).any() for name in second)
    assert all(mask.any() for mask in second.values())


# --- Before it begins, after it ends ---


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_stock_bit_for_bit_until_it_begins(algorithm, auto_engine):
    stock = make_model(algorithm, sparse=False).learn(48)
    callback = GradualPruning(0.8, 48, 200)
    model = dense_model(algorithm).learn(48, callback=callback)
    assert callback.events == []
    assert equal_state(stock, model, ignore_masks=True)
    for one in (stock, model):
        set_random_seed(1)
        one.learn(48, callback=callback if one is model else None, reset_num_timesteps=False)
    assert callback.events
    assert not equal_state(stock, model, ignore_masks=True)


def test_frozen_after_the_end():
    model = step_by_step(SAC)
    callback = GradualPruning(0.7, 0.25, 0.5, updates=4)
    model.learn(80, callback=callback)
    assert callback.events[-1].timestep == 40
    masks = model.policy.sparsifier.masks()
    again = GradualPruning(0.7, 0.25, 0.5, updates=4)
    model.learn(40, callback=again, reset_num_timesteps=False)
    assert [event for event in again.events if event.n_dropped] == []
    assert all(th.equal(mask, masks[name]) for name, mask in model.policy.sparsifier.masks().items())


def test_what_met_no_step_before_the_end_is_done_at_the_end():
    # The actor steps at even steps; the end is an odd one
    model = step_by_step(TD3)
    callback = GradualPruning(0.7, 30, 61, updates=31)
    model.learn(61, callback=callback)
    planned = make_model(TD3, policy_kwargs=dict(sparsity=0.7)).policy.sparsifier.n_planned
    assert model.policy.sparsifier.n_planned == planned
    assert model.policy.sparsifier.violations() == []


def test_one_network_alone():
    model = step_by_step(TD3)
    callback = GradualPruning({"actor": 0.9}, updates=4)
    model.learn(60, callback=callback)
    assert {event.network for event in callback.events} == {"actor"}
    assert all(layer.mask_values is None for name, layer in model.policy.sparsifier.layers.items() if "critic" in name)


def test_from_sparse_to_sparser_beside_another_updater(monkeypatch):
    model = make_model(TD3, policy_kwargs=dict(sparsity=0.5), train_freq=1, gradient_steps=1)
    pruning = GradualPruning({"critic": 0.8}, 0.3, 0.8, updates=5)
    with watched(model, monkeypatch):
        model.learn(100, callback=[pruning, SET(4, 0.3, networks="actor")])
    # Two critics of 9-16-12-1
    total, first = 696, 348
    expected = [1 - round(first + (139 - first) * (1 - (1 - k / 5) ** 3)) / total for k in range(1, 6)]
    assert sparsities(pruning, "critic") == pytest.approx(expected)


def test_dense_layers_stay_dense():
    model = dense_model(DQN, policy_kwargs=dict(dense_layers="last"))
    for scope in ("layer", "global"):
        model.learn(60, callback=GradualPruning(0.5 if scope == "layer" else 0.7, 0.4, 0.8, updates=3, scope=scope))
        layers = model.policy.sparsifier.layers
        assert layers["q_net.q_net.4"].mask_values is None
        active, total = (
            sum(n) for n in zip(*((layer.n_active, layer.weight.numel()) for layer in layers.values()), strict=True)
        )
        assert active == round(total * (0.5 if scope == "layer" else 0.3))


# --- Saving, continuing, watching ---


@pytest.mark.parametrize("scope", ["layer", "global"])
@pytest.mark.parametrize("algorithm", [TD3, SAC, PPO])
def test_resume_continues_exactly(algorithm, scope, tmp_path):
    first, *callbacks = (GradualPruning(0.8, 30, 120, updates=45, scope=scope) for _ in range(3))
    model = dense_model(algorithm)
    model.learn(64, callback=first)
    assert_goes_on_exactly(model, callbacks, tmp_path, timesteps=(80, 100, 128), total_timesteps=128)
    assert callbacks[0].events == callbacks[1].events != []


def test_continued_learning_is_one_schedule():
    model = step_by_step(DQN)
    first, second = GradualPruning(0.9, 40, 100, updates=12), GradualPruning(0.9, 40, 100, updates=12)
    model.learn(63, callback=first)
    model.learn(57, callback=second, reset_num_timesteps=False)
    whole = step_by_step(DQN)
    callback = GradualPruning(0.9, 40, 100, updates=12)
    whole.learn(120, callback=callback)
    assert [(event.timestep, event.sparsity) for event in first.events + second.events] == [
        (event.timestep, event.sparsity) for event in callback.events
    ]


def test_longer_training_stretches_the_schedule():
    """Fractions are of the new total; what has been pruned stays so until the schedule has caught up."""
    model = step_by_step(DQN)
    model.learn(60, callback=GradualPruning(0.9, 0.5, 1.0, updates=10))
    callback = GradualPruning(0.9, 0.25, 1.0, updates=10)
    before = model.policy.sparsifier.masks()
    model.learn(60, callback=callback, reset_num_timesteps=False)
    assert sum(event.n_dropped for event in callback.events) == 0
    assert all(th.equal(mask, before[name]) for name, mask in model.policy.sparsifier.masks().items())


def test_log(tmp_path):
    model = dense_model(PPO)
    model.set_logger(configure(str(tmp_path), ["csv"]))
    callback = GradualPruning(0.8, 0.1, 0.9, updates=4)
    model.learn(64, callback=callback, log_interval=1)
    header, *rows = (line.split(",") for line in (tmp_path / "progress.csv").read_text().splitlines())
    logged = [
        float(row[header.index("topology/actor_sparsity")]) for row in rows if row[header.index("topology/actor_sparsity")]
    ]
    assert logged
    assert set(logged) <= set(sparsities(callback, "actor"))


# --- Mistakes ---


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: GradualPruning(1.0), r"`final_sparsity` must be a number in \[0, 1\), got 1.0"),
        (
            lambda: GradualPruning({"actor": -0.1}),
            r"`final_sparsity` of network 'actor' must be a number in \[0, 1\), got -0.1",
        ),
        (lambda: GradualPruning({}), "got an empty map"),
        (lambda: GradualPruning(0.9, 0.8, 0.2), "`stop`=0.2 must be after `start`=0.8"),
        (lambda: GradualPruning(0.9, 100, 100), "`stop`=100 must be after `start`=100"),
        (lambda: GradualPruning(0.9, start=1.5), r"`start` must be a float in \[0, 1\] .* got 1.5"),
        (lambda: GradualPruning(0.9, stop=None), r"`stop` must be a float in \[0, 1\] .* or an integer .*, got None"),
        (lambda: GradualPruning(0.9, updates=0), "`updates` must be an integer >= 1, got 0"),
        (lambda: GradualPruning(0.9, scope="network"), "`scope` must be one of 'layer', 'global', got 'network'"),
        (
            lambda: GradualPruning(0.9, scope="global", distribution="erk"),
            "`scope`='global' and `distribution`='erk' are both",
        ),
        (lambda: GradualPruning(0.9, distribution={"actor.mu.0": 0.5}), "`final_sparsity`=0.9 and an explicit `distribution`"),
        (lambda: GradualPruning(0.9, distribution="ekr"), "`distribution` must be .* got 'ekr'"),
    ],
)
def test_bad_arguments(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize(
    ("policy_kwargs", "callback", "message"),
    [
        (
            dict(sparsity=0.5),
            GradualPruning(0.3),
            "`final_sparsity` of network 'actor' is 0.2988, below its present sparsity 0.5000",
        ),
        (
            dict(sparsity=0.5, distribution="uniform"),
            GradualPruning(0.6, distribution="er"),
            "the final plan gives layer 'actor.mu.4' .* more than the 12 it has: pruned weights never return",
        ),
        ({}, GradualPruning({"q_net": 0.9}), "`final_sparsity` names the unknown network 'q_net'; .* are: actor, critic"),
        ({}, GradualPruning(distribution={"actor.0": 0.9}), "names the unknown layer 'actor.0'"),
        ({}, GradualPruning(), "`final_sparsity` is left out, and nothing it could follow from"),
        ({}, GradualPruning(0.999), "`final_sparsity`=0.999 of network 'actor' cannot be reached"),
        (dict(pattern="2:4"), GradualPruning(0.9), "`final_sparsity`=0.9 of network 'actor' and `pattern`='2:4' disagree"),
        (dict(pattern="2:4"), GradualPruning(scope="global"), "`scope`='global' cannot be used with `pattern`='2:4'"),
        (dict(pattern="2:8"), GradualPruning(), "`pattern`='2:8' is impossible for layer 'actor.mu.0': it has 7 inputs"),
        ({}, GradualPruning(0.9, 0.9, 20), r"`stop`=20 .* must be after `start`=0.9 \(environment step 54\)"),
        (
            dict(dense_layers=["actor.mu.*"], sparsity={"critic": 0.0}),
            GradualPruning({"actor": 0.0, "critic": 0.5}),
            "GradualPruning cannot update network 'actor': all of its layers are in `dense_layers`",
        ),
    ],
)
def test_bad_combinations_fail_before_training(policy_kwargs, callback, message):
    model = dense_model(TD3, policy_kwargs=policy_kwargs)
    with pytest.raises(ValueError, match=message):
        model.learn(60, callback=callback)
    assert model.num_timesteps == 0
    assert model.policy.sparsifier.updaters == {}


def test_a_beginning_that_has_passed_is_refused():
    model = dense_model(DQN)
    model.learn(60)
    with pytest.raises(ValueError, match=r"`start`=0.1 \(environment step 12\) lies before the present step 60"):
        model.learn(60, callback=GradualPruning(0.9, 0.1, 0.4), reset_num_timesteps=False)
    model.learn(60, callback=GradualPruning(0.9, 70, 100), reset_num_timesteps=False)
    assert sum(model.policy.sparsifier.n_planned.values()) == round(0.1 * 340)


def test_dense_policies_are_refused():
    with pytest.raises(TypeError, match="not sparse"):
        make_model(TD3, sparse=False).learn(10, callback=GradualPruning(0.9))


# --- What is kept ---


@pytest.mark.parametrize("rescale", ["unit", "fan_in"])
def test_survivors_are_standardized_at_every_update(rescale):
    model = step_by_step(SAC, policy_kwargs=dict(net_arch=[30, 20]))
    sparsifier = sparse_policy(model).sparsifier
    callback = GradualPruning({"critic": 0.8}, 40, 80, updates=2, rescale=rescale)
    update, seen = callback._update, []

    def look(network, step):
        targets = {name: [target.weight.detach().clone() for target in sparsifier.targets[name]] for name in sparsifier.layers}
        fraction = update(network, step)
        for name in sparsifier.networks["critic"]:
            layer = sparsifier.layers[name]
            kept = layer.weight.detach()[layer.weight_mask].double()
            fan_in = layer.n_active / layer.weight.shape[0]
            assert kept.mean() == pytest.approx(0, abs=1e-5)
            assert kept.std(correction=0) == pytest.approx(1 if rescale == "unit" else fan_in**-0.5, rel=1e-4)
            # The target loses what is pruned, and nothing else happens to it
            for before, target in zip(targets[name], sparsifier.targets[name], strict=True):
                assert th.equal(target.weight, before * layer.weight_mask)
        seen.append(model.num_timesteps)
        assert sparsifier.violations() == []
        return fraction

    callback._update = look
    model.learn(100, callback=callback)
    assert seen == [60, 80]


def test_without_rescaling_survivors_keep_their_values():
    model = step_by_step(DQN)
    sparsifier = sparse_policy(model).sparsifier
    callback = GradualPruning(0.8, 40, 80, updates=2)
    update = callback._update

    def look(network, step):
        before = {name: layer.weight.detach().clone() for name, layer in sparsifier.layers.items()}
        fraction = update(network, step)
        for name, layer in sparsifier.layers.items():
            assert th.equal(layer.weight, before[name] * layer.weight_mask)
        return fraction

    callback._update = look
    model.learn(100, callback=callback)
    assert len(callback.events) == 2


def test_rescaling_goes_on_exactly(tmp_path):
    kwargs = dict(final_sparsity=0.8, start=20, stop=90, updates=5, rescale="fan_in")
    model = dense_model(TD3)
    model.learn(50, callback=GradualPruning(**kwargs))
    assert_goes_on_exactly(
        model, (GradualPruning(**kwargs), GradualPruning(**kwargs)), tmp_path, timesteps=(60, 75, 90), total_timesteps=100
    )


def test_unknown_rescaling_is_refused():
    with pytest.raises(ValueError, match=r"`rescale` must be .*'unit'.*'fan_in'.*, got 'half'"):
        GradualPruning(0.5, rescale="half")


def test_the_native_engine_sees_rescaled_weights():
    pytest.importorskip("sb3_sparse.engine._native")
    weights = []
    for engine in ("torch", "native"):
        policy_kwargs = dict(sparsity=0.8, net_arch=[128, 128], engine=engine)
        model = make_model(SAC, policy_kwargs=policy_kwargs, train_freq=1, gradient_steps=1)
        model.learn(60, callback=GradualPruning(0.95, 25, 50, updates=3, rescale="fan_in"))
        weights.append(th.cat([weight.detach().flatten() for weight in model.policy.parameters()]))
    # Another order of sums
    assert th.allclose(*weights, atol=1e-5)
