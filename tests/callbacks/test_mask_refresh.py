"""MaskRefresh: its rules step by step against explicit formulas, N:M in all six TD3 networks, state, refusals."""

import pytest
import torch as th
from sb3_contrib import CrossQ
from stable_baselines3 import A2C, DQN, PPO, SAC, TD3

from sb3_sparse import MaskRefresh, sparse_policy
from sb3_sparse.callbacks.mask_refresh import RULES
from tests.helpers import ALGORITHMS, assert_goes_on_exactly, assert_invariants, make_model, start_training, watched

DIVISIBLE = dict(net_arch=[16, 16])


def nm_model(algorithm=TD3, pattern="2:4", **kwargs):
    policy_kwargs = DIVISIBLE | dict(pattern=pattern) | kwargs.pop("policy_kwargs", {})
    return make_model(algorithm, policy_kwargs=policy_kwargs, **kwargs)


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_every_algorithm(algorithm, rule, monkeypatch):
    model = nm_model(algorithm)
    callback = MaskRefresh(2, rule, decay=0.01)
    with watched(model, monkeypatch) as met:
        model.learn(80, callback=callback)
    assert met["step"] > 0
    assert {event.network for event in callback.events} == set(sparse_policy(model).sparsifier.networks)
    assert any(event.divergence > 0 for event in callback.events)


@pytest.mark.parametrize("pattern", ["2:4", "1:4", "3:7"])
@pytest.mark.parametrize("rule", RULES)
def test_n_of_m_in_all_six_networks_after_every_step_and_polyak_update(pattern, rule, monkeypatch):
    model = nm_model(pattern=pattern, learning_rate=1e-2)
    n, m = map(int, pattern.split(":"))
    networks = ["actor", "actor_target", "critic", "critic_target"]

    def check(*_):
        for network in networks:
            for module in model.policy.get_submodule(network).modules():
                if isinstance(module, th.nn.Linear):
                    for start in range(0, module.in_features, m):
                        group = module.weight[:, start : start + m]
                        assert int((group != 0).sum(dim=1).max()) <= min(n, group.shape[1])

    for optimizer in model.policy.sparsifier.optimizers.values():
        optimizer.register_step_post_hook(check)
    with watched(model, monkeypatch) as met:
        model.learn(100, callback=MaskRefresh(3, rule))
    check()
    assert met["polyak"] > 0


@pytest.mark.parametrize("rule", RULES)
def test_masks_never_freeze(rule):
    model = nm_model(learning_rate=3e-3)
    callback = MaskRefresh(5, rule)
    model.learn(300, callback=callback)
    late = [event for event in callback.events if event.timestep > 200]
    assert sum(event.divergence for event in late) > 0


def reference_run(rule, decay, n_steps, every, weight_decay=0.0):
    """The rules written out for one 2:4 layer under SGD with momentum, on the same gradients."""
    model = nm_model(
        DQN,
        policy_kwargs=dict(
            net_arch=[16], optimizer_class=th.optim.SGD, optimizer_kwargs=dict(momentum=0.9, weight_decay=weight_decay)
        ),
        learning_rate=0.05,
        max_grad_norm=1e9,
    )
    callback = MaskRefresh(every, rule, decay=decay, start=0)
    start_training(model, callback, 100)
    layer = model.policy.sparsifier.layers["q_net.q_net.0"]
    optimizer = model.policy.optimizer
    shadow = callback.state("q_net").shadow["q_net.q_net.0"].clone()
    mask = layer.weight_mask.clone()
    momentum = th.zeros_like(shadow)
    generator = th.Generator().manual_seed(0)
    for step in range(1, n_steps + 1):
        inputs, goal = th.randn(8, 7, generator=generator), th.randn(8, 3, generator=generator)
        optimizer.zero_grad()
        (model.policy.q_net.q_net(inputs) - goal).square().mean().backward()
        head = model.policy.q_net.q_net[2]
        # Dense gradient of the first layer, by hand
        hidden = inputs @ (shadow * mask).T + layer.bias
        error = 2 * (th.relu(hidden) @ head.weight.T + head.bias - goal) / goal.numel()
        gradient = (((error @ head.weight) * (hidden > 0)).T @ inputs).detach()
        optimizer.step()
        if rule == "masked_grad":
            gradient = (gradient + weight_decay * shadow) * mask
        else:
            gradient = gradient + weight_decay * shadow
            if rule == "sr_ste":
                gradient = gradient + decay * shadow * ~mask
        momentum = 0.9 * momentum + gradient
        if rule == "masked_grad":
            momentum = momentum * mask
        shadow = shadow - 0.05 * momentum
        if step % every == 0:
            groups = th.nn.functional.pad(shadow.abs(), (0, 1), value=-1).view(16, 2, 4)
            new = th.zeros_like(groups, dtype=th.bool).scatter_(2, groups.topk(2, dim=2).indices, True).view(16, 8)[:, :7]
            momentum = momentum * (mask & new) if rule == "masked_grad" else momentum
            mask = new
        yield layer, shadow, mask


@pytest.mark.parametrize(
    ("rule", "decay", "weight_decay"),
    [("masked_grad", 1.0, 0.0), ("ste", 1.0, 0.01), ("sr_ste", 0.3, 0.0), ("sr_ste", 0.3, 0.01)],
)
@pytest.mark.parametrize("every", [1, 3])
def test_rules_against_explicit_formulas(rule, decay, weight_decay, every):
    flips = 0
    before = None
    for layer, shadow, mask in reference_run(rule, decay, 30, every, weight_decay):
        assert th.equal(layer.weight_mask, mask)
        assert th.allclose(layer.weight, shadow * mask, atol=1e-5)
        flips += 0 if before is None else int((before ^ mask).sum())
        before = mask.clone()
    assert flips > 0


def test_the_shadow_starts_with_the_stock_initial_weights():
    stock, model = make_model(TD3, sparse=False, policy_kwargs=DIVISIBLE), nm_model()
    callback = MaskRefresh(1000)
    model.learn(1, callback=callback)
    for name in model.policy.sparsifier.layers:
        shadow = callback.state(name.split(".")[0]).shadow[name]
        assert th.equal(shadow, stock.policy.get_submodule(name).weight)


def test_a_pruned_weight_comes_back_with_its_value():
    model = nm_model()
    sparsifier = model.policy.sparsifier
    layer = sparsifier.layers["actor.mu.2"]
    callback = MaskRefresh(1, start=0)
    start_training(model, callback, 100)
    shadow = callback.state("actor").shadow["actor.mu.2"]
    position = (0, int((~layer.weight_mask[0]).nonzero()[0]))
    value = float(shadow[position])
    with th.no_grad():
        layer.weight[0, : (position[1] // 4) * 4 + 4] *= 1e-3  # what is active there falls behind it
    callback._act("actor", 1)
    assert layer.weight_mask[position]
    assert layer.weight[position].item() == value
    assert_invariants(model)


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("algorithm", [TD3, PPO])
def test_resume_continues_exactly(algorithm, rule, tmp_path):
    first, *callbacks = (MaskRefresh(2, rule) for _ in range(3))
    model = nm_model(algorithm)
    model.learn(64, callback=first)
    loaded = assert_goes_on_exactly(model, callbacks, tmp_path)
    assert any("shadow" in name for name, _ in loaded.policy.named_buffers())
    assert callbacks[0].events == callbacks[1].events != []


def test_learning_rate_schedules_reach_the_shadow():
    rates = []
    model = nm_model(learning_rate=lambda remaining: 1e-3 * remaining)
    callback = MaskRefresh(2, "ste")
    model.policy.sparsifier.optimizers["critic"].register_step_post_hook(
        lambda optimizer, *_: rates.append(
            (optimizer.param_groups[0]["lr"], callback._shadow_optimizers["critic"].param_groups[0]["lr"])
        )
    )
    model.learn(60, callback=callback)
    assert all(own == shadow for own, shadow in rates)
    assert len(set(rates)) > 5


def test_without_a_shadow_so_far_pruned_weights_are_drawn(tmp_path):
    model = nm_model().learn(40)
    masks = model.policy.sparsifier.masks()
    callback = MaskRefresh(1000)
    model.learn(1, callback=callback, reset_num_timesteps=False)
    shadow = callback.state("actor").shadow["actor.mu.2"]
    outside = shadow[~masks["actor.mu.2"]]
    assert outside.abs().max() <= 16**-0.5
    assert outside.std() > 0.1 * 16**-0.5


@pytest.mark.parametrize("optimizer_class", [th.optim.AdamW, th.optim.RMSprop])
@pytest.mark.parametrize("algorithm", [SAC, A2C, CrossQ])
def test_other_optimizers(algorithm, optimizer_class, monkeypatch):
    model = nm_model(algorithm, policy_kwargs=dict(optimizer_class=optimizer_class, optimizer_kwargs=dict(weight_decay=0.01)))
    with watched(model, monkeypatch):
        model.learn(64, callback=MaskRefresh(2, "sr_ste"))


def test_bad_input():
    with pytest.raises(ValueError, match="`rule` must be one of 'masked_grad', 'ste', 'sr_ste', got 'srste'"):
        MaskRefresh(10, "srste")
    with pytest.raises(ValueError, match="`decay` must be a positive number, got 0"):
        MaskRefresh(10, "sr_ste", decay=0)
    with pytest.raises(ValueError, match="`every` must be an integer >= 1, got 0"):
        MaskRefresh(0)
    model = make_model(TD3, policy_kwargs=dict(sparsity=0.5))
    with pytest.raises(ValueError, match=r'no network to update .*its pattern is unstructured; masks of pattern "N:M" can'):
        model.learn(10, callback=MaskRefresh(10))
    with pytest.raises(ValueError, match="MaskRefresh cannot update network 'actor': its pattern is unstructured"):
        model.learn(10, callback=MaskRefresh(10, networks="actor"))


@pytest.mark.parametrize("rule", RULES)
def test_training_without_the_callback_in_between_is_not_undone(rule):
    model = nm_model()
    model.learn(60, callback=MaskRefresh(4, rule))
    model.learn(60, reset_num_timesteps=False)
    trained = {name: layer.weight.detach().clone() for name, layer in model.policy.sparsifier.layers.items()}
    callback = MaskRefresh(1000, rule)
    start_training(model, callback, 1000)
    for name, weight in trained.items():
        mask = model.policy.sparsifier.layers[name].weight_mask
        shadow = callback.state(name.split(".")[0]).shadow[name]
        assert th.equal(shadow[mask], weight[mask])
