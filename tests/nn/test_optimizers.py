"""Every optimizer that a policy can be given: the invariants hold after each of its steps, or it is refused by name."""

import copy

import pytest
import torch as th
from stable_baselines3 import DQN, PPO, SAC, TD3
from stable_baselines3.common.logger import Logger
from stable_baselines3.common.sb2_compat.rmsprop_tf_like import RMSpropTFLike

from sb3_sparse.nn.optimizer_state import keeps_zeros, refusal
from tests.helpers import (
    assert_invariants,
    equal_state,
    make_model,
    save_and_load,
    shuffle_masks,
    train_on_data_of,
    watched,
)

OPTIMIZERS = sorted(
    (value for value in vars(th.optim).values() if isinstance(value, type) and issubclass(value, th.optim.Optimizer)),
    key=lambda optimizer: optimizer.__name__,
)
REFUSED = {
    "LBFGS": r"its step\(\) needs a closure",
    "Muon": "it takes matrices alone",
    "SparseAdam": "gradients of sparse layout alone",
}
VARIANTS = {
    "Adam": [dict(amsgrad=True), dict(maximize=True), dict(foreach=True), dict(foreach=False), dict(fused=True)],
    "AdamW": [dict(weight_decay=0.1, amsgrad=True), dict(foreach=False)],
    "Adamax": [dict(weight_decay=0.1), dict(foreach=False), dict(maximize=True)],
    "Adadelta": [dict(weight_decay=0.1), dict(foreach=False)],
    "Adagrad": [dict(initial_accumulator_value=0.1), dict(lr_decay=0.1, foreach=False)],
    "ASGD": [dict(lambd=0.1, t0=3), dict(foreach=False)],
    "NAdam": [dict(decoupled_weight_decay=True, weight_decay=0.1), dict(foreach=False)],
    "RAdam": [dict(decoupled_weight_decay=True, weight_decay=0.1), dict(foreach=False)],
    "RMSprop": [dict(momentum=0.5, centered=True, weight_decay=0.1), dict(foreach=False)],
    "Rprop": [dict(foreach=False)],
    "SGD": [dict(momentum=0.9, nesterov=True), dict(momentum=0.9, dampening=0.5, weight_decay=0.1), dict(maximize=True)],
    "Adafactor": [dict(weight_decay=0.1)],
}


class Noisy(th.optim.Adam):
    """Noise on weights and moments, and what no weight can be, where there is no gradient."""

    @th.no_grad()
    def step(self, closure=None):
        loss = super().step(closure)
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    parameter.add_(0.01)
                    self.state[parameter]["exp_avg_sq"].add_(1e-3)
                    self.state[parameter]["shadow"] = th.where(parameter.grad == 0, th.nan, parameter)
        return loss


class HalfAdagrad(th.optim.Adagrad):
    """Starts as Adagrad does."""


class Closure(th.optim.SGD):
    def step(self, closure):
        return super().step(closure)


CASES = [
    *((optimizer, {}) for optimizer in OPTIMIZERS if optimizer.__name__ not in (*REFUSED, "Optimizer")),
    *((getattr(th.optim, name), kwargs) for name, variants in VARIANTS.items() for kwargs in variants),
    (RMSpropTFLike, {}),
    (RMSpropTFLike, dict(momentum=0.5, centered=True)),
    (HalfAdagrad, dict(initial_accumulator_value=0.1)),
]


def name_of(value):
    return value.__name__ if isinstance(value, type) else "-".join(map(str, value)) or "default"


@pytest.mark.parametrize(("optimizer_class", "optimizer_kwargs"), CASES, ids=name_of)
def test_invariants_after_every_step(optimizer_class, optimizer_kwargs, monkeypatch, tmp_path):
    policy_kwargs = dict(sparsity=0.7, optimizer_class=optimizer_class, optimizer_kwargs=optimizer_kwargs)
    model = make_model(SAC, policy_kwargs=policy_kwargs)
    shuffled = shuffle_masks(model)
    with watched(model, monkeypatch) as met:
        model.learn(48)
    shuffled.remove()
    assert met["step"] >= 8
    for parameter in model.policy.parameters():
        assert bool(th.isfinite(parameter).all())
    # What is saved goes on as if it had not been
    loaded = save_and_load(model, tmp_path)
    for one in (model, loaded):
        one.set_logger(Logger(None, []))
        train_on_data_of(model, one, gradient_steps=3)
    assert equal_state(model, loaded)
    assert_invariants(loaded)


@pytest.mark.parametrize("algorithm", [PPO, DQN])
@pytest.mark.parametrize("optimizer_class", [th.optim.Adamax, th.optim.ASGD, th.optim.Adafactor, th.optim.Adadelta])
def test_where_gradients_are_clipped(algorithm, optimizer_class, monkeypatch):
    model = make_model(algorithm, policy_kwargs=dict(sparsity=0.7, optimizer_class=optimizer_class))
    shuffle_masks(model)
    with watched(model, monkeypatch) as met:
        model.learn(64)
    assert met["step"] >= 4
    assert met["clip"] > 0


@pytest.mark.parametrize("optimizer_class", [th.optim.Adamax, th.optim.Adadelta, th.optim.NAdam, th.optim.ASGD])
def test_sparsity_zero_is_stock_bit_by_bit(optimizer_class, auto_engine):
    kwargs = dict(optimizer_class=optimizer_class)
    models = [
        make_model(TD3, sparse=sparse, policy_kwargs=kwargs | (dict(sparsity=0.0) if sparse else {})).learn(60)
        for sparse in (False, True)
    ]
    assert equal_state(*models, ignore_masks=True)


def test_an_optimizer_of_ones_own_that_touches_everything():
    model = make_model(TD3, policy_kwargs=dict(sparsity=0.7, optimizer_class=Noisy))
    sparsifier = model.policy.sparsifier
    assert not any(keeps_zeros(optimizer) for optimizer in sparsifier.optimizers.values())
    broken = []
    for optimizer in sparsifier.optimizers.values():
        optimizer.register_step_post_hook(lambda *_: broken.extend(sparsifier.violations()))
    model.learn(48)
    assert sparsifier.n_steps("critic") > 4
    assert broken == []
    for layer in sparsifier.layers.values():
        assert bool(th.isfinite(layer.weight).all())
        shadow = sparsifier.optimizers["critic"].state.get(layer.weight, {}).get("shadow")
        if shadow is not None:
            assert bool((shadow[~layer.weight_mask] == 0).all())


def test_adamax_keeps_no_epsilon_where_there_is_no_weight():
    model = make_model(TD3, policy_kwargs=dict(sparsity=0.7, optimizer_class=th.optim.Adamax)).learn(48)
    for layer in model.policy.sparsifier.layers.values():
        for optimizer in model.policy.sparsifier.optimizers.values():
            if layer.weight in optimizer.state:
                moment = optimizer.state[layer.weight]["exp_inf"]
                assert not bool(moment[~layer.weight_mask].any())
                assert bool(moment[layer.weight_mask].any())


@pytest.mark.parametrize("name", REFUSED)
@pytest.mark.parametrize("algorithm", [TD3, PPO])
def test_what_is_refused_is_refused_at_creation(algorithm, name):
    optimizer_class = getattr(th.optim, name)
    with pytest.raises(ValueError, match=rf"`optimizer_class`={name} cannot train .*{REFUSED[name]}.*Adam"):
        make_model(algorithm, policy_kwargs=dict(optimizer_class=optimizer_class))


def test_optimizers_of_ones_own_are_refused_by_what_they_do():
    with pytest.raises(ValueError, match=r"`optimizer_class`=Closure cannot train .*needs a closure"):
        make_model(TD3, policy_kwargs=dict(optimizer_class=Closure))
    with pytest.raises(ValueError, match=r"`optimizer_class`=Wrapped cannot train .*no torch.optim.Optimizer"):
        make_model(TD3, policy_kwargs=dict(optimizer_class=Wrapped))
    # A function says what it makes only when it has made it
    with pytest.raises(ValueError, match=r"optimizer of 'actor' is a Closure, .*needs a closure"):
        make_model(TD3, policy_kwargs=dict(optimizer_class=lambda *args, **kwargs: Closure(*args, **kwargs)))
    with pytest.raises(ValueError, match=r"optimizer of 'policy' is a Wrapped, .*no torch.optim.Optimizer"):
        make_model(PPO, policy_kwargs=dict(optimizer_class=lambda *args, **kwargs: Wrapped(*args, **kwargs)))


class Wrapped:
    """Looks like an optimizer, and has no hooks."""

    def __init__(self, parameters, lr=1e-3):
        self.inner = th.optim.Adam(parameters, lr=lr)
        self.param_groups = self.inner.param_groups


def test_every_optimizer_of_torch_is_known():
    for optimizer in OPTIMIZERS:
        if optimizer is not th.optim.Optimizer:
            assert (refusal(optimizer) is not None) == (optimizer.__name__ in REFUSED)


@pytest.mark.parametrize("optimizer_class", [th.optim.Adamax, th.optim.Rprop, th.optim.ASGD])
def test_a_deepcopy_keeps_the_invariants_too(optimizer_class):
    model = make_model(TD3, policy_kwargs=dict(sparsity=0.7, optimizer_class=optimizer_class)).learn(40)
    copied = copy.deepcopy(model.policy)
    for optimizer in copied.sparsifier.optimizers.values():
        optimizer.zero_grad()
        sum(layer.weight.square().sum() + layer.weight.sum() for layer in copied.sparsifier.layers.values()).backward()
        optimizer.step()
        assert copied.sparsifier.violations() == []
