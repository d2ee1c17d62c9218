"""Frozen layers (``requires_grad_(False)``), before a training or in its middle: they keep their masks, the others go on."""

import copy

import pytest
import torch as th
from stable_baselines3 import DQN, PPO, SAC, TD3
from stable_baselines3.common.callbacks import BaseCallback

from sb3_sparse import SET, GradualPruning, MaskRefresh, RigL, sparse_policy
from tests.helpers import assert_invariants, make_model, save_and_load, start_training, train_on_data_of, watched

UPDATERS = {
    "SET": (lambda: SET(2, 0.4), {}),
    "SET-own-keep": (lambda: SET(2, 0.4, target="own_topk", moments="keep", grown="init"), {}),
    "SET-prune-only": (lambda: SET(2, 0.4, stop=60, last_event="prune_only"), {}),
    "RigL": (lambda: RigL(2, 0.4), {}),
    "RigL-skip-keep": (lambda: RigL(2, 0.4, moments="keep", skip_step=True), {}),
    "RigL-timesteps": (lambda: RigL(4, 0.4, unit="timesteps"), {}),
    "RigL-2:4": (lambda: RigL(2, 0.4), {"pattern": "2:4"}),
    "RigL-block": (lambda: RigL(2, 0.4), {"pattern": "block:2x2", "sparsity": 0.5}),
    "MaskRefresh": (lambda: MaskRefresh(2), {"pattern": "2:4"}),
    "MaskRefresh-ste": (lambda: MaskRefresh(2, "sr_ste"), {"pattern": "2:4"}),
    "GradualPruning": (lambda: GradualPruning(0.9, 0, 90, updates=30), {"sparsity": 0.4}),
    "GradualPruning-2:4": (lambda: GradualPruning(None, 0, 90, updates=30), {"pattern": "2:4", "sparsity": 0.0}),
    "GradualPruning-global": (lambda: GradualPruning(0.9, 0, 90, updates=30, scope="global"), {"sparsity": 0.4}),
}


def frozen_names(model, what):
    """One layer of each network, or all of one network."""
    names = sparse_policy(model).sparsifier.layers
    if what == "network":
        return [name for name in names if not name.startswith("actor")]
    return [name for name in names if name.endswith(".2")]


def freeze(model, names, frozen=True):
    for name in names:
        sparse_policy(model).sparsifier.layers[name].weight.requires_grad_(not frozen)


class At(BaseCallback):
    """Calls something at certain environment steps."""

    def __init__(self, **calls):
        super().__init__()
        self.calls = {int(name[1:]): call for name, call in calls.items()}

    def _on_step(self):
        if (call := self.calls.pop(self.num_timesteps, None)) is not None:
            call()
        return True


def frozen_model(name, algorithm=TD3, **kwargs):
    policy_kwargs = {"net_arch": [16, 16], **(UPDATERS[name][1] or {"sparsity": 0.6})}
    return make_model(algorithm, policy_kwargs=policy_kwargs, train_freq=1, gradient_steps=1, **kwargs)


@pytest.mark.parametrize("when", ["before", "during"])
@pytest.mark.parametrize("what", ["one", "network"])
@pytest.mark.parametrize("name", UPDATERS)
def test_frozen_layers_keep_their_masks_and_others_go_on(name, what, when, monkeypatch):
    model, callback = frozen_model(name), UPDATERS[name][0]()
    sparsifier, names, before = model.policy.sparsifier, frozen_names(model, what), {}
    planned = dict(sparsifier.n_planned)

    def begin():
        freeze(model, names)
        before.update(
            {name: (mask, sparsifier.layers[name].weight.detach().clone()) for name, mask in sparsifier.masks().items()}
        )

    with watched(model, monkeypatch):
        if when == "before":
            begin()
            model.learn(100, callback=callback)
        else:
            model.learn(100, callback=[At(t26=begin) if "Gradual" in name else At(t45=begin), callback])
    changed = {name for name, mask in sparsifier.masks().items() if not th.equal(mask, before[name][0])}
    assert not changed & set(names)
    assert changed
    assert all(th.equal(sparsifier.layers[name].weight, before[name][1]) for name in names)
    if not name.startswith(("Gradual", "SET-prune")):
        assert sparsifier.n_planned == planned


@pytest.mark.parametrize("algorithm", [SAC, DQN, PPO])
@pytest.mark.parametrize("name", ["RigL", "RigL-skip-keep", "GradualPruning"])
def test_a_frozen_features_extractor(algorithm, name):
    shared = {} if algorithm is DQN else {"share_features_extractor": True}
    model = make_model(algorithm, "Cnn", policy_kwargs=dict(sparsity=0.4, distribution="uniform", **shared))
    sparsifier = sparse_policy(model).sparsifier
    names = [name for name in sparsifier.layers if "features_extractor" in name]
    assert names
    before = sparsifier.masks()
    freeze(model, names)
    callback = UPDATERS[name][0]()
    model.learn(64, callback=callback)
    changed = {name for name, mask in sparsifier.masks().items() if not th.equal(mask, before[name])}
    assert changed
    assert not changed & set(names)
    assert_invariants(model)


@pytest.mark.parametrize("scope", ["layer", "global"])
def test_thawed_layers_catch_up_with_the_schedule(scope):
    """Gradual pruning gives them at the next update what the others have, and in the end the plan."""
    model = make_model(DQN, policy_kwargs=dict(sparsity=0.0, net_arch=[20, 10]), train_freq=1, gradient_steps=1)
    layers, name, counts = model.policy.sparsifier.layers, "q_net.q_net.2", {}

    def note(key):
        counts[key] = layers[name].n_active

    thaw = At(t55=lambda: note("frozen"), t60=lambda: freeze(model, [name], frozen=False), t65=lambda: note("thawed"))
    freeze(model, [name])
    model.learn(100, callback=[GradualPruning(0.9, 20, 80, updates=30, scope=scope), thaw])
    assert counts["frozen"] == layers[name].weight.numel() > counts["thawed"]
    assert sum(layer.n_active for layer in layers.values()) == round(0.1 * 370)


@pytest.mark.parametrize("scope", ["layer", "global"])
def test_layers_that_stay_frozen_are_left_out_of_the_final_number(scope):
    model = make_model(
        DQN, policy_kwargs=dict(sparsity=0.0, net_arch=[20, 10], distribution="uniform"), train_freq=1, gradient_steps=1
    )
    layers, name = model.policy.sparsifier.layers, "q_net.q_net.2"
    freeze(model, [name])  # 200 of 370 weights
    first, second = (GradualPruning(0.9, 20, 80, updates=30, scope=scope) for _ in range(2))
    model.learn(100, callback=first)
    assert layers[name].n_active == 200
    assert sum(layer.n_active for layer in layers.values()) - 200 == 17
    # Thawed, it goes where it should have gone
    freeze(model, [name], frozen=False)
    model.learn(20, callback=second, reset_num_timesteps=False)
    assert sum(layer.n_active for layer in layers.values()) == 37


def test_a_layer_without_a_part_in_the_loss_keeps_its_mask():
    """Nothing is grown by a gradient that is not there, or by that of an earlier step."""
    model = make_model(TD3, policy_kwargs=dict(sparsity=0.6))
    sparsifier, callback = model.policy.sparsifier, RigL(1, 0.4, networks="critic")
    start_training(model, callback, 100)
    optimizer = sparsifier.optimizers["critic"]
    for names in (["critic.qf0.0", "critic.qf1.0"], ["critic.qf0.0"]):
        before = sparsifier.masks()
        optimizer.zero_grad()
        generator = th.Generator().manual_seed(len(names))
        sum((sparsifier.layers[name].weight * th.randn(16, 9, generator=generator)).sum() for name in names).backward()
        model.num_timesteps = 50
        optimizer.step()
        changed = {name for name, mask in sparsifier.masks().items() if not th.equal(mask, before[name])}
        assert changed == set(names)
    # A gradient that was put there by hand says nothing of pruned weights
    optimizer.zero_grad()
    layer = sparsifier.layers["critic.qf0.0"]
    layer.weight.grad = th.ones_like(layer.weight)
    with pytest.raises(RuntimeError, match="was the optimizer stepped by hand"):
        optimizer.step()


@pytest.mark.parametrize("way", ["deepcopy", "save"])
def test_copies_of_frozen_layers_mask_their_gradients_when_they_thaw(way, tmp_path):
    model = frozen_model("RigL")
    model.learn(30)
    name = "critic.qf0.2"
    freeze(model, [name])
    if way == "deepcopy":
        policy = copy.deepcopy(model.policy)
        assert not policy.sparsifier.layers[name].weight.requires_grad
    else:
        policy = save_and_load(model, tmp_path).policy
    layer = policy.sparsifier.layers[name]
    layer.weight.requires_grad_(True)
    layer.weight.sum().backward()
    assert layer.weight.grad is not None
    assert not layer.weight.grad[~layer.weight_mask].any()
    assert layer.weight.grad[layer.weight_mask].all()


def test_freezing_and_thawing_while_a_shadow_learns():
    """A shadow waits with its layer."""
    model = frozen_model("MaskRefresh-ste")
    callback = MaskRefresh(2, "ste")
    name = "critic.qf0.2"
    shadows = []

    def note():
        shadows.append(callback.state("critic").shadow[name].clone())

    calls = At(
        t30=lambda: (freeze(model, [name]), note()), t50=lambda: (note(), freeze(model, [name], frozen=False)), t70=note
    )
    model.learn(80, callback=[calls, callback])
    assert th.equal(shadows[0], shadows[1])
    assert not th.equal(shadows[1], shadows[2])
    assert_invariants(model)
    train_on_data_of(model, model)
