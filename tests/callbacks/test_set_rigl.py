"""SET and RigL at work inside stock train(): cadence, conservation, gradients, state, refusals."""

import copy
import inspect
import math
from itertools import pairwise

import pytest
import torch as th
from sb3_contrib import CrossQ
from stable_baselines3 import DQN, PPO, SAC, TD3
from stable_baselines3.common.callbacks import CallbackList
from stable_baselines3.common.logger import configure

from sb3_sparse import SET, RigL, sparse_policy
from tests.helpers import (
    ALGORITHMS,
    assert_goes_on_exactly,
    assert_invariants,
    equal_state,
    make_model,
    start_training,
    watched,
)

UPDATERS = {
    "SET": lambda: SET(3, 0.3),
    "SET-init-half": lambda: SET(3, 0.3, grown="init", sign_split=True),
    "RigL": lambda: RigL(3, 0.3),
    "RigL-skip": lambda: RigL(3, 0.3, skip_step=True),
    "RigL-timesteps": lambda: RigL(8, 0.3, unit="timesteps"),
}


def pruned_model(algorithm, kind="Mlp", **kwargs):
    return make_model(algorithm, kind, policy_kwargs=dict(sparsity=0.6) | kwargs.pop("policy_kwargs", {}), **kwargs)


@pytest.mark.parametrize("updater", UPDATERS)
@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_every_algorithm(algorithm, updater, monkeypatch):
    model = pruned_model(algorithm)
    before = sparse_policy(model).sparsifier.masks()
    callback = UPDATERS[updater]()
    with watched(model, monkeypatch) as met:
        model.learn(96, callback=callback)
    assert met["step"] > 0
    networks = sparse_policy(model).sparsifier.networks
    assert {event.network for event in callback.events} == set(networks)
    assert all(event.n_dropped == event.n_grown for event in callback.events)
    assert any(event.n_grown > 0 for event in callback.events)
    changed = [name for name, mask in sparse_policy(model).sparsifier.masks().items() if not th.equal(mask, before[name])]
    assert changed


@pytest.mark.parametrize("pattern", ["2:4", "block:2x2"])
@pytest.mark.parametrize("updater", [SET, RigL])
def test_patterns_hold(pattern, updater, monkeypatch):
    sparsity = None if pattern == "2:4" else 0.6
    model = make_model(TD3, policy_kwargs=dict(pattern=pattern, sparsity=sparsity, net_arch=[24, 24]))
    callback = updater(2, 0.4)
    with watched(model, monkeypatch):
        model.learn(60, callback=callback)
    assert any(event.n_grown > 0 for event in callback.events)


@pytest.mark.parametrize("updater", [SET, RigL])
@pytest.mark.parametrize("algorithm", [TD3, SAC, PPO])
def test_shared_features_extractors_evolve_once(algorithm, updater, monkeypatch):
    model = pruned_model(algorithm, "Cnn", policy_kwargs=dict(share_features_extractor=True))
    callback = updater(2, 0.4, "constant", networks=["features_extractor"])
    with watched(model, monkeypatch):
        model.learn(48, callback=callback)
    steps = [event.step for event in callback.events]
    optimizer = sparse_policy(model).sparsifier.optimizer_of("features_extractor")
    assert optimizer == ("policy" if algorithm is PPO else "actor")
    assert steps == [step for step in range(1, sparse_policy(model).sparsifier.n_steps(optimizer) + 1) if step % 2 == 0]


def test_cadence_counts_the_networks_own_steps():
    model = pruned_model(TD3, train_freq=1, gradient_steps=1)
    callback = SET(5, 0.3)
    model.learn(60, callback=callback)
    # learning starts after 20 steps: 40 critic steps, 20 actor steps
    assert [event.step for event in callback.events if event.network == "critic"] == list(range(5, 41, 5))
    assert [event.step for event in callback.events if event.network == "actor"] == list(range(5, 21, 5))


def test_cadence_in_environment_steps():
    model = pruned_model(TD3, train_freq=1, gradient_steps=1)
    callback = RigL(10, 0.3, "constant", unit="timesteps")
    model.learn(60, callback=callback)
    # The actor steps at every second environment step, so it acts on the first even one from 10 on
    assert [event.timestep for event in callback.events if event.network == "critic"] == [21, 30, 40, 50, 60]
    assert [event.timestep for event in callback.events if event.network == "actor"] == [22, 30, 40, 50, 60]


@pytest.mark.parametrize(
    ("start", "stop", "expected"), [(0.5, 0.75, [30, 35, 40]), (30, 41, [30, 35, 40]), (None, 31, [25, 30])]
)
def test_start_and_stop(start, stop, expected):
    model = pruned_model(DQN, train_freq=1, gradient_steps=1)
    callback = SET(5, 0.3, start=start, stop=stop)
    model.learn(60, callback=callback)
    assert [event.timestep for event in callback.events] == expected


def test_cosine_clock_at_exact_steps():
    model = pruned_model(TD3, train_freq=1, gradient_steps=1)
    callback = RigL(8, 0.5)
    model.learn(100, callback=callback)
    critic = [event for event in callback.events if event.network == "critic"]
    # One gradient step per environment step from 20 on: T_end = 80 of the critic's own steps, at which nothing is left to drop
    assert [event.step for event in critic] == list(range(8, 80, 8))
    for event in critic:
        assert event.timestep == 20 + event.step
        assert event.fraction == pytest.approx(0.25 * (1 + math.cos(math.pi * event.step / 80)))


def test_continued_learning_anneals_over_the_whole():
    model = pruned_model(DQN, train_freq=1, gradient_steps=1)
    model.learn(60, callback=RigL(5, 0.5))
    callback = RigL(5, 0.5)
    model.learn(60, callback=callback, reset_num_timesteps=False)
    first = callback.events[0]
    assert (first.timestep, first.step) == (65, 45)
    assert first.fraction == pytest.approx(0.25 * (1 + math.cos(math.pi * 45 / 100)))


@pytest.mark.parametrize("algorithm", [TD3, SAC, CrossQ, DQN, PPO])
def test_growth_is_by_the_networks_own_loss_before_clipping(algorithm, monkeypatch):
    kwargs = {} if algorithm is PPO else dict(gradient_steps=4, train_freq=4)
    model = pruned_model(algorithm, **kwargs)
    sparsifier = model.policy.sparsifier
    callback = RigL(4, 0.5, skip_step=True)
    seen = []
    stock_scores = RigL.growth_scores

    def growth_scores(self, layer):
        dense = layer.dense_gradient
        # What the optimizer is about to use is the dense gradient, masked and perhaps clipped: one common factor
        used, masked = layer.weight.grad, dense * layer.weight_mask
        factor = (used.norm() / masked.norm()) if masked.norm() > 0 else 1.0
        assert th.allclose(used, masked * factor, rtol=1e-4, atol=1e-12)
        assert factor <= 1 + 1e-4
        seen.append(float((dense * ~layer.weight_mask).abs().max()))
        return stock_scores(self, layer)

    monkeypatch.setattr(RigL, "growth_scores", growth_scores)
    model.learn(96, callback=callback)
    assert seen
    assert max(seen) > 0
    assert not any(layer.wants_dense_gradient for layer in sparsifier.layers.values())
    assert all(layer.dense_gradient is None for layer in sparsifier.layers.values())


def test_grown_positions_are_those_of_the_largest_gradients():
    model = pruned_model(TD3)
    callback = RigL(4, 0.3, skip_step=True, networks="critic")
    records = []

    def record(self, network, step):
        before = {name: (layer.weight_mask.clone(), layer.dense_gradient.clone()) for name, layer in layers.items()}
        weights = {name: layer.weight.detach().clone() for name, layer in layers.items()}
        fraction = type(self)._update(self, network, step)
        for name, (mask, gradient) in before.items():
            new = layers[name].weight_mask
            grown, left = new & ~mask, ~new
            # Nothing that was left out has a larger gradient than what was grown
            assert not grown.any() or gradient.abs()[grown].min() >= gradient.abs()[left].max()
            assert not layers[name].weight[grown].any()
            assert th.equal(layers[name].weight[mask & new], weights[name][mask & new])
            records.append(int(grown.sum()))
        return fraction

    layers = {
        name: layer
        for name, layer in model.policy.sparsifier.layers.items()
        if "critic" in name and layer.mask_values is not None
    }
    callback._update = record.__get__(callback)
    model.learn(60, callback=callback)
    assert sum(records) > 0


def test_skip_step_leaves_the_network_out_of_that_step_only():
    model = pruned_model(TD3, train_freq=1, gradient_steps=1)
    sparsifier = model.policy.sparsifier
    layer = sparsifier.layers["critic.qf0.2"]
    history = {}
    callback = RigL(5, 0.3, "constant", skip_step=True, networks="critic")
    for hook, when in (("register_step_pre_hook", "before"), ("register_step_post_hook", "after")):
        getattr(sparsifier.optimizers["critic"], hook)(
            lambda *_, when=when: history.setdefault(when, []).append(
                (layer.bias.detach().clone(), layer.weight.detach().clone())
            )
        )
    model.learn(40, callback=callback)
    for index, ((bias, weight), (bias_after, weight_after)) in enumerate(
        zip(history["before"], history["after"], strict=True)
    ):
        is_event = (index + 1) % 5 == 0
        assert th.equal(bias, bias_after) == is_event
        assert th.equal(weight, weight_after) == is_event
    assert sparsifier.n_steps("critic") == 20


def test_grown_values():
    for grown, expected in (("zero", True), ("init", False)):
        model = pruned_model(TD3, train_freq=1, gradient_steps=1)
        callback = SET(5, 0.5, grown=grown, stop=26)
        before = model.policy.sparsifier.masks()
        model.learn(25, callback=callback)
        layer = model.policy.sparsifier.layers["critic.qf0.2"]
        new = layer.weight_mask & ~before["critic.qf0.2"]
        assert new.any()
        assert bool((layer.weight[new] == 0).all()) == expected
        assert layer.weight[new].abs().max() <= layer.in_features**-0.5


def test_state_survives_saving_and_training_goes_on(tmp_path):
    model = pruned_model(TD3)
    model.learn(60, callback=SET(4, 0.3))
    model.save(tmp_path / "model.zip")
    loaded = TD3.load(tmp_path / "model.zip", env=model.get_env())
    assert equal_state(model, loaded)
    callback = SET(4, 0.3)
    loaded.learn(40, callback=callback, reset_num_timesteps=False)
    explored = [event.explored for event in callback.events if event.network == "critic"]
    masks = TD3.load(tmp_path / "model.zip").policy.sparsifier.masks()
    present = sum(int(mask.sum()) for name, mask in masks.items() if "critic" in name)
    total = sum(mask.numel() for name, mask in masks.items() if "critic" in name)
    assert explored == sorted(explored)
    assert explored[0] > present / total + 0.05
    assert [event.step % 4 for event in callback.events] == [0] * len(callback.events)
    assert_invariants(loaded)
    # A static file brings no such state along
    pruned_model(TD3, seed=5).save(tmp_path / "static.zip")
    loaded.set_parameters(tmp_path / "static.zip")
    assert not [name for name, _ in loaded.policy.named_buffers() if "updater_state" in name]


def test_updaters_are_let_go_at_the_end_and_not_copied():
    model = pruned_model(TD3)
    callback = RigL(4, 0.3)
    copies = []
    callback_on_step = callback._on_step

    def on_step():
        if callback.num_timesteps == 40:
            copies.append(copy.deepcopy(model.policy))
        return callback_on_step()

    callback._on_step = on_step
    model.learn(60, callback=callback)
    assert model.policy.sparsifier.updaters == {}
    assert copies[0].sparsifier.updaters == {}
    assert copies[0].sparsifier.violations() == []
    masks = model.policy.sparsifier.masks()
    model.learn(20, reset_num_timesteps=False)
    assert all(th.equal(mask, masks[name]) for name, mask in model.policy.sparsifier.masks().items())


def test_an_interrupted_training_can_be_repeated():
    model = pruned_model(TD3)
    callback = SET(4, 0.3)
    callback._on_step = lambda: 1 / 0
    with pytest.raises(ZeroDivisionError):
        model.learn(30, callback=callback)
    del callback._on_step
    model.learn(30, callback=callback)
    assert callback.events


def test_different_updaters_for_different_networks(tmp_path):
    model = pruned_model(TD3)
    model.set_logger(configure(str(tmp_path), ["csv"]))
    actor, critic = SET(2, 0.3, networks="actor"), RigL(5, 0.4, networks=["critic"])
    model.learn(80, callback=CallbackList([actor, critic]), log_interval=1)
    assert {event.network for event in actor.events} == {"actor"}
    assert {event.network for event in critic.events} == {"critic"}
    header = (tmp_path / "progress.csv").read_text().splitlines()[0]
    for key in ("dropped", "grown", "divergence", "explored", "fraction"):
        assert f"topology/actor_{key}" in header
        assert f"topology/critic_{key}" in header


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: SET(0, 0.3), "`every` must be an integer >= 1, got 0"),
        (lambda: SET(1.5, 0.3), "`every` must be an integer >= 1, got 1.5"),
        (lambda: SET(10, 0.0), r"`drop_fraction` must be a number in \(0, 1\), got 0.0"),
        (lambda: RigL(10, 1), r"`drop_fraction` must be a number in \(0, 1\), got 1"),
        (lambda: SET(10, 0.3, "cubic"), "`drop_schedule` must be one of 'constant', 'cosine', 'linear', got 'cubic'"),
        (lambda: SET(10, 0.3, start=1.5), r"`start` must be None, a float in \[0, 1\] .* got 1.5"),
        (lambda: SET(10, 0.3, stop=-1), "`stop` must be None"),
        (lambda: SET(10, 0.3, start=0.5, stop=0.5), "`stop`=0.5 must be after `start`=0.5"),
        (lambda: SET(10, 0.3, grown="random"), "`grown` must be one of 'zero', 'init', got 'random'"),
        (lambda: SET(10, 0.3, sign_split="odd"), "`sign_split` must be one of True, False, 'half', 'proportional', got 'odd'"),
        (lambda: SET(10, 0.3, networks=3), "`networks` must be None, a name or a list of names, got 3"),
        (lambda: RigL(10, 0.3, networks=["actor", 1]), r"`networks` must be .* a list of names, got \['actor', 1\]"),
        (lambda: SET(10, 0.3, networks=[]), r"`networks` must be .* a list of names, got \[\]"),
        (lambda: SET(10, 0.3, skip_step="no"), "`skip_step` must be one of True, False, got 'no'"),
        (lambda: SET(10, 0.3, unit="episodes"), "`unit` must be one of 'steps', 'timesteps', got 'episodes'"),
    ],
)
def test_bad_arguments(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize(
    ("policy_kwargs", "callback", "message"),
    [
        (
            {},
            SET(3, 0.3, networks="q_net"),
            "`networks` names the unknown network 'q_net'; the networks of this policy are: actor, critic",
        ),
        (dict(sparsity=0.0), SET(3, 0.3), "SET has no network to update .*actor: none of its layers is pruned"),
        (
            dict(sparsity={"critic": 0.5}),
            SET(3, 0.3, networks="actor"),
            "SET cannot update network 'actor': none of its layers",
        ),
        (dict(pattern="block:2x2"), SET(3, 0.3, sign_split=True), "has no meaning for whole blocks"),
        ({}, SET(3, 0.3, start=0.9, stop=20), r"must be after `start`=0.9 \(environment step 54\) in a training of 60 steps"),
        (
            {},
            CallbackList([SET(3, 0.3), RigL(3, 0.3, networks="critic")]),
            "'critic' already has the updater SET; RigL cannot",
        ),
    ],
)
def test_bad_combinations_fail_before_training(policy_kwargs, callback, message):
    model = pruned_model(TD3, policy_kwargs=policy_kwargs)
    with pytest.raises(ValueError, match=message):
        model.learn(60, callback=callback)
    assert model.num_timesteps == 0


def test_dense_policies_are_refused():
    with pytest.raises(TypeError, match="not sparse"):
        make_model(TD3, sparse=False).learn(10, callback=SET(3, 0.3))


@pytest.mark.parametrize("algorithm", [TD3, SAC, DQN])
@pytest.mark.parametrize("updater", [SET, RigL])
def test_targets_with_masks_of_their_own(algorithm, updater, monkeypatch, tmp_path):
    model = pruned_model(algorithm, tau=0.1) if algorithm is not DQN else pruned_model(algorithm)
    sparsifier = model.policy.sparsifier
    differed = []

    def check(target, inputs, online):
        assert int((target.weight != 0).sum()) <= online.n_active == target.n_active
        differed.append(not th.equal(target.weight_mask, online.weight_mask))

    for name, targets in sparsifier.targets.items():
        for target in targets:
            # After the layer's own forward pass began, so after it settled
            target.register_forward_hook(
                lambda target, inputs, output, online=sparsifier.layers[name]: check(target, inputs, online)
            )
    with watched(model, monkeypatch):
        model.learn(80, callback=updater(2, 0.4, target="own_topk"))
    assert any(differed)
    # The mode outlives the callback, saving and copying
    model.save(tmp_path / "model.zip")
    for policy in (algorithm.load(tmp_path / "model.zip").policy, copy.deepcopy(model.policy)):
        for targets in policy.sparsifier.targets.values():
            for target in targets:
                with th.no_grad():
                    target.weight.add_(0.01)
        assert policy.sparsifier.violations() == []
    with watched(model, monkeypatch):
        model.learn(24, reset_num_timesteps=False)
    # ... until another says otherwise
    with watched(model, monkeypatch):
        model.learn(24, callback=SET(2, 0.2), reset_num_timesteps=False)
    for name, targets in sparsifier.targets.items():
        assert all(th.equal(target.weight_mask, sparsifier.layers[name].weight_mask) for target in targets)


def test_own_topk_by_hand():
    model = pruned_model(TD3)
    sparsifier = model.policy.sparsifier
    layer, (target,) = sparsifier.layers["actor.mu.2"], sparsifier.targets["actor.mu.2"]
    sparsifier.set_target_masks("actor", "own_topk")
    with th.no_grad():
        target.weight.copy_(th.arange(target.weight.numel()).view_as(target.weight) + 1.0)
    target(th.zeros(1, target.in_features))
    kept = target.weight.flatten().nonzero().flatten().tolist()
    assert kept == list(range(target.weight.numel() - layer.n_active, target.weight.numel()))
    sparsifier.set_target_masks("actor", "online")
    assert th.equal(target.weight_mask, layer.weight_mask)
    with pytest.raises(ValueError, match="`target` must be one of 'online', 'own_topk', got 'dense'"):
        sparsifier.set_target_masks("actor", "dense")


@pytest.mark.parametrize("target", ["online", "own_topk"])
def test_last_event_prunes_only_and_once(target, monkeypatch, tmp_path):
    model = pruned_model(TD3, train_freq=1, gradient_steps=1)
    callback = SET(5, 0.3, stop=45, last_event="prune_only", target=target, networks="critic")
    before = dict(model.policy.sparsifier.n_planned)
    with watched(model, monkeypatch):
        model.learn(80, callback=callback)
    *earlier, last = callback.events
    assert all(event.n_grown > 0 for event in earlier)
    assert (last.timestep, last.n_grown) == (45, 0)
    assert last.n_dropped == sum(
        int(0.3 * before[name]) for name in before if name.startswith("critic") and name in callback._layers_of("critic")
    )
    after = model.policy.sparsifier.n_planned
    assert sum(before.values()) - sum(after.values()) == last.n_dropped
    with pytest.raises(ValueError, match="needs a `stop`"):
        SET(5, 0.3, last_event="prune_only")


@pytest.mark.parametrize("skip_step", [False, True])
@pytest.mark.parametrize(
    ("optimizer_class", "options"),
    [(th.optim.Adam, {}), (th.optim.AdamW, dict(amsgrad=True)), (th.optim.SGD, dict(momentum=0.9)), (th.optim.RMSprop, {})],
)
def test_kept_moments_are_those_of_masked_gradients(optimizer_class, options, skip_step, tmp_path):
    """The reference is RLx2's way: mask the gradients and never touch the moments."""
    model = pruned_model(TD3, policy_kwargs=dict(optimizer_class=optimizer_class, optimizer_kwargs=options))
    sparsifier = model.policy.sparsifier
    layer, optimizer = sparsifier.layers["critic.qf0.2"], sparsifier.optimizers["critic"]
    callback = RigL(4, 0.5, "constant", start=0, moments="keep", skip_step=skip_step, networks="critic")
    start_training(model, callback, 1000)
    twin = th.nn.Parameter(layer.weight.detach().clone())
    reference = optimizer_class([twin], **{"lr": model.learning_rate, **options})
    generator = th.Generator().manual_seed(0)
    ever_regrown = 0
    seen_dropped = th.zeros_like(layer.weight_mask)
    for step in range(1, 41):
        gradient = th.randn(layer.weight.shape, generator=generator)
        mask = layer.weight_mask.clone()
        optimizer.zero_grad()
        sum(
            (other.weight * gradient if other is layer else other.weight).sum() for other in sparsifier.layers.values()
        ).backward()
        optimizer.step()
        if not (skip_step and step % 4 == 0):
            twin.grad = gradient * mask
            reference.step()
        new = layer.weight_mask
        ever_regrown += int((new & ~mask & seen_dropped).sum())
        seen_dropped |= mask & ~new
        for key, value in reference.state[twin].items():
            if value.shape == new.shape:
                assert th.allclose(optimizer.state[layer.weight][key][new], value[new], rtol=1e-4, atol=1e-7), (step, key)
        assert sparsifier.violations() == []
    assert ever_regrown > 20


def test_kept_moments_need_a_known_optimizer():
    model = pruned_model(TD3, policy_kwargs=dict(optimizer_class=th.optim.Adagrad))
    with pytest.raises(ValueError, match="`moments`='keep' needs Adam, AdamW, SGD or RMSprop, its optimizer is Adagrad"):
        model.learn(30, callback=SET(3, 0.3, moments="keep", networks="actor"))
    with pytest.raises(ValueError, match="`moments` must be one of 'reset', 'keep', got 'warm'"):
        SET(3, 0.3, moments="warm")


@pytest.mark.parametrize("algorithm", [TD3, SAC, PPO])
def test_kept_moments_in_training(algorithm, monkeypatch):
    model = pruned_model(algorithm)
    with watched(model, monkeypatch):
        model.learn(96, callback=RigL(2, 0.4, moments="keep"))


@pytest.mark.parametrize(
    "make",
    [
        lambda: SET(2, 0.3, grown="init", target="own_topk"),
        lambda: RigL(2, 0.3, moments="keep"),
        lambda: RigL(2, 0.3, skip_step=True),
        lambda: RigL(8, 0.3, unit="timesteps"),
    ],
    ids=["SET-own_topk", "RigL-keep", "RigL-skip", "RigL-timesteps"],
)
@pytest.mark.parametrize("algorithm", [TD3, SAC, PPO])
def test_resume_continues_exactly(algorithm, make, tmp_path):
    first, *callbacks = (make() for _ in range(3))
    model = pruned_model(algorithm)
    model.learn(64, callback=first)
    assert_goes_on_exactly(model, callbacks, tmp_path, timesteps=(80,), total_timesteps=128)
    assert callbacks[0].events == callbacks[1].events != []


def test_rigl_is_set_with_other_growth():
    """One list of arguments, which the signature shows."""
    shown = inspect.signature(RigL).parameters
    assert list(shown) == list(inspect.signature(SET).parameters)
    assert {
        "every",
        "drop_fraction",
        "drop_schedule",
        "start",
        "stop",
        "unit",
        "networks",
        "skip_step",
        "on_nonfinite",
    } <= set(shown)
    assert "__init__" not in vars(RigL)
    assert (SET(5, 0.3).drop_schedule, RigL(5, 0.3).drop_schedule) == ("constant", "cosine")
    assert RigL(5, 0.3, "linear").drop_schedule == "linear"


def test_an_annealed_last_event_is_warned_of():
    with pytest.warns(UserWarning, match="`last_event`='prune_only' has nothing to drop: with `drop_schedule`='cosine' the"):
        callback = RigL(2, 0.3, stop=30, last_event="prune_only")
    model = pruned_model(TD3)
    planned = dict(model.policy.sparsifier.n_planned)
    model.learn(50, callback=callback)
    assert model.policy.sparsifier.n_planned == planned
    assert all(event.timestep < 30 for event in callback.events)


@pytest.mark.parametrize("skip_step", [False, True])
def test_random_growth_can_skip_the_step_too(skip_step):
    """RLx2's code does so for its SET baseline."""
    model = pruned_model(TD3, train_freq=1, gradient_steps=1)
    callback, biases = SET(5, 0.3, skip_step=skip_step, networks="critic"), []
    layer = model.policy.sparsifier.layers["critic.qf0.2"]
    model.policy.sparsifier.optimizers["critic"].register_step_post_hook(lambda *_: biases.append(layer.bias.detach().clone()))
    model.learn(40, callback=callback)
    same = [step + 2 for step, (before, after) in enumerate(pairwise(biases)) if th.equal(before, after)]
    assert same == ([5, 10, 15, 20] if skip_step else [])
    assert [event.step for event in callback.events] == [5, 10, 15, 20]
