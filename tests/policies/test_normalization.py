"""Units that are constant over a batch, in every kind of normalisation: gradients stay finite, and the rest is torch's."""

import copy

import pytest
import torch as th
from sb3_contrib import CrossQ
from sb3_contrib.common.torch_layers import BatchRenorm1d
from stable_baselines3 import DQN, PPO, SAC, TD3
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from torch import nn

from sb3_sparse.policies.normalization import keep_gradients_finite
from tests.helpers import assert_invariants, equal_state, make_model


def all_finite(model):
    optimizers = [model.policy.sparsifier.optimizers[name] for name in model.policy.sparsifier.optimizers]
    moments = [
        value
        for optimizer in optimizers
        for state in optimizer.state.values()
        for value in state.values()
        if isinstance(value, th.Tensor)
    ]
    tensors = [*model.policy.parameters(), *(p.grad for p in model.policy.parameters() if p.grad is not None), *moments]
    return all(bool(th.isfinite(value).all()) for value in tensors)


@pytest.mark.parametrize("engine", ["torch", "native"])
@pytest.mark.parametrize("sparsity", [0.95, 0.8])
def test_crossq_trains_on_after_its_warm_up(sparsity, engine, monkeypatch):
    monkeypatch.setenv("SB3_SPARSE_ENGINE", engine)
    kwargs = dict(sparsity=sparsity, net_arch=[32, 32], renorm_warmup_steps=5)
    model = make_model(CrossQ, policy_kwargs=kwargs, batch_size=16)
    rows = [layer.weight_mask.any(dim=1) for layer in model.policy.sparsifier.layers.values()]
    assert sparsity < 0.9 or not all(bool(row.all()) for row in rows)  # there are units without inputs
    model.learn(120)
    assert model._n_updates > 20
    assert all_finite(model)
    assert_invariants(model)


def test_crossq_is_stock_bit_by_bit_after_its_warm_up_where_nothing_is_dead(auto_engine):
    models = [
        make_model(
            CrossQ,
            sparse=sparse,
            policy_kwargs=dict(renorm_warmup_steps=5) | (dict(sparsity=0.0) if sparse else {}),
        ).learn(80)
        for sparse in (False, True)
    ]
    assert models[0]._n_updates > 10
    assert equal_state(*models, ignore_masks=True)


@pytest.mark.parametrize("steps", [0, 10])
def test_batch_renormalisation_is_torchs_but_for_what_is_not_finite(steps):
    stock = BatchRenorm1d(4, warmup_steps=5)
    stock.steps.fill_(steps)
    guarded = copy.deepcopy(stock)
    keep_gradients_finite(guarded)
    keep_gradients_finite(guarded)
    assert len(guarded._forward_pre_hooks) == 1
    x = th.randn(8, 4, generator=th.Generator().manual_seed(0))
    x[:, 1] = 0.3
    upstream = th.randn(8, 4, generator=th.Generator().manual_seed(1))
    gradients = []
    for module in (stock, copy.deepcopy(guarded)):
        inputs = x.clone().requires_grad_()
        output = module(inputs)
        output.backward(upstream)
        gradients.append((output.detach(), inputs.grad, module.scale.grad, module.bias.grad))
    (one, grad, *rest), (other, guarded_grad, *guarded_rest) = gradients
    assert th.equal(one, other)
    assert all(th.equal(*pair) for pair in zip(rest, guarded_rest, strict=True))
    broken = ~th.isfinite(grad)
    assert bool(broken.any()) == (steps > 5)
    assert not bool(broken[:, [0, 2, 3]].any())
    assert th.equal(guarded_grad, grad.masked_fill(broken, 0.0))


def test_other_modes_of_torch():
    module = BatchRenorm1d(3, warmup_steps=0)
    module.steps.fill_(1)
    keep_gradients_finite(module)
    module.eval()
    x = th.randn(5, 3)
    grads = th.func.grad(lambda value: module(value).square().sum())(x)
    assert bool(th.isfinite(grads).all())
    with th.inference_mode():
        module.train()(x)
    inputs = x.double().requires_grad_()
    double = copy.deepcopy(module).double().train()
    (first,) = th.autograd.grad(double(inputs).square().sum(), inputs, create_graph=True)
    (second,) = th.autograd.grad(first.sum(), inputs)
    assert bool(th.isfinite(second).all())


NORMS = {
    "batch": lambda width: nn.BatchNorm1d(width),
    "layer": lambda width: nn.LayerNorm(width),
    "group": lambda width: nn.GroupNorm(4, width),
    "small groups": lambda width: nn.GroupNorm(width // 2, width),
    "renorm": lambda width: BatchRenorm1d(width, warmup_steps=3),
    "rms": lambda width: nn.RMSNorm(width),
}


class Normalised(BaseFeaturesExtractor):
    def __init__(self, observation_space, norm="batch"):
        super().__init__(observation_space, 8)
        self.net = nn.Sequential(
            nn.Linear(observation_space.shape[0], 16), NORMS[norm](16), nn.ReLU(), nn.Linear(16, 8), NORMS[norm](8)
        )

    def forward(self, observations):
        return self.net(observations)


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("algorithm", [SAC, DQN, PPO])
def test_dead_units_before_every_normalisation(algorithm, norm):
    kwargs = dict(
        sparsity=0.0, features_extractor_class=Normalised, features_extractor_kwargs=dict(norm=norm), activation_fn=nn.Tanh
    )
    model = make_model(algorithm, policy_kwargs=kwargs)
    sparsifier = model.policy.sparsifier
    masks = sparsifier.masks()
    for name, mask in masks.items():
        if name.endswith("net.0"):
            mask[4:] = False  # whole groups, and the units of which others live
        elif name.endswith("net.3"):
            mask[:, :4] = False  # fed by dead units alone
    assert any(not bool(mask.all()) for mask in masks.values())
    sparsifier.set_masks(masks, replan=True)
    model.learn(80)
    assert all_finite(model)
    assert_invariants(model)


class AllDead(BaseFeaturesExtractor):
    def __init__(self, observation_space):
        super().__init__(observation_space, 8)
        self.net = nn.Sequential(nn.Linear(observation_space.shape[0], 8), nn.LayerNorm(8))

    def forward(self, observations):
        return self.net(observations)


def test_a_layer_of_dead_units_that_are_all_the_same():
    """Their variance over the units is zero, too."""
    model = make_model(TD3, policy_kwargs=dict(sparsity=0.0, features_extractor_class=AllDead))
    sparsifier = model.policy.sparsifier
    masks = {name: mask & False for name, mask in sparsifier.masks().items() if "features_extractor" in name}
    sparsifier.set_masks(masks, replan=True)
    with th.no_grad():
        for name in masks:
            sparsifier.layers[name].bias.fill_(0.5)
    model.learn(60)
    assert all_finite(model)
