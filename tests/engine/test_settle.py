"""Own masks of targets: the kernels settle as torch does, and the native pass and target update are those of torch."""

from __future__ import annotations

from copy import deepcopy
from typing import Any

import pytest
import torch as th
from hypothesis import given, settings
from hypothesis import strategies as st
from stable_baselines3 import DQN, SAC, TD3
from stable_baselines3.common.utils import polyak_update
from torch import nn

from sb3_sparse import SET, accelerate
from sb3_sparse.engine import native
from sb3_sparse.engine.crossover import Crossovers
from sb3_sparse.engine.sequence import SparseSequential
from sb3_sparse.engine.settle import settle
from sb3_sparse.engine.survivors import Survivors, make_network
from sb3_sparse.masks.patterns import Unstructured, parse_pattern
from sb3_sparse.nn.layers import SparseLinear
from tests.accelerated.twins import engine
from tests.engine.networks import needs_kernels
from tests.helpers import make_model

pytestmark = needs_kernels

#: Few of them, so that many are equally large; the first ones are smaller than what a weight of the mask counts as.
VALUES = [0.0, -0.0, 1e-38, -1e-38, 3e-39, 1e-37, 1.0, -1.0, 0.5, -0.5, 2.0, -3.0, float("inf"), -float("inf")]


def own_layer(n_outputs: int, n_inputs: int, n_active: int, dtype: th.dtype, seed: int) -> SparseLinear:
    """A target layer with a mask of its own, and weights everywhere."""
    generator = th.Generator().manual_seed(seed)
    layer = SparseLinear.from_dense(nn.Linear(n_inputs, n_outputs).to(dtype))
    assert isinstance(layer, SparseLinear)
    layer.replace_mask(parse_pattern("unstructured").select(th.rand(n_outputs, n_inputs, generator=generator), (n_active,)))
    layer.keep_own_mask(Unstructured())
    return layer


def state(layer: SparseLinear) -> list[th.Tensor]:
    assert layer.mask_values is not None
    return [layer.weight.detach().clone(), layer.weight_mask.clone(), layer.mask_values.clone()]


def bits(tensor: th.Tensor) -> th.Tensor:
    """What tells zeros and NaNs apart."""
    return tensor.contiguous().view(th.uint8)


@given(data=st.data(), dtype=st.sampled_from([th.float32, th.float64]))
@settings(deadline=None, max_examples=300)
def test_the_kernels_settle_as_torch_does(data, dtype):
    n_outputs, n_inputs = data.draw(st.integers(1, 9)), data.draw(st.integers(2, 40))
    size = n_outputs * n_inputs
    n_active, seed = data.draw(st.integers(1, size - 1)), data.draw(st.integers(0, 99))
    # Not a copy, which projects its weights
    layer, torchs = (own_layer(n_outputs, n_inputs, n_active, dtype, seed) for _ in range(2))
    with_nan = data.draw(st.booleans()) and data.draw(st.booleans())
    for _ in range(3):
        of = st.sampled_from([*VALUES, float("nan")] if with_nan else VALUES) if data.draw(st.booleans()) else st.floats(-1, 1)
        weights = th.tensor(data.draw(st.lists(of, min_size=size, max_size=size)), dtype=dtype).view(n_outputs, n_inputs)
        with th.no_grad():
            if data.draw(st.booleans()):
                weights *= layer.weight_mask  # what lies outside is 0 or -0
            layer.weight.copy_(weights)
            torchs.weight.copy_(weights)
        torchs.settle()
        before, mask = layer.weight._version, layer.weight_mask.clone()
        settle(layer)
        for mine, others in zip(state(layer), state(torchs), strict=True):
            assert th.equal(bits(mine), bits(others))
        assert (layer.weight._version > before) == bool(((weights != 0) & ~mask).any())
        assert layer.n_active == int(layer.weight_mask.sum()) == n_active


@pytest.mark.parametrize("dtype", [th.float32, th.float64])
def test_a_whole_layer(dtype):
    """As large as those of the papers, many updates towards a network whose topology moves."""
    layer = own_layer(256, 256, 32_000, dtype, 1)
    torchs = deepcopy(layer)
    generator = th.Generator().manual_seed(2)
    for step in range(60):
        if step % 20 == 0:
            online = th.randn(256, 256, generator=generator).to(dtype) * 0.1
            online *= Unstructured().select(th.rand(256, 256, generator=generator), (32_000,))
        with th.no_grad():
            for one in (layer, torchs):
                one.weight.mul_(0.995).add_(online, alpha=0.005)
        settle(layer)
        torchs.settle()
        assert all(th.equal(bits(mine), bits(others)) for mine, others in zip(state(layer), state(torchs), strict=True))


@pytest.mark.parametrize("algorithm", [TD3, SAC, DQN])
def test_targets_with_own_masks_run_natively(algorithm):
    """All along a training: masks and bits of target updates are torch's, and nothing but rounding tells the pass from its."""
    with engine("native"):
        model = make_model(
            algorithm, policy_kwargs=dict(net_arch=[24, 16], sparsity=0.6, mask_seed=1), seed=1, learning_starts=5
        )
    target = model.q_net_target.q_net if algorithm is DQN else model.critic_target.q_networks[0]
    online = model.q_net.q_net if algorithm is DQN else model.critic.q_networks[0]
    for _ in range(3):
        model.learn(20, callback=SET(4, 0.4, target="own_topk"), reset_num_timesteps=False)
        x = th.randn(9, target[0].in_features)
        assert target.native_survivors(x) is not None
        torchs = deepcopy(target)
        torchs.choice = None
        assert th.allclose(target(x), torchs(x), rtol=1e-5, atol=1e-6)
        of_target, of_online = target.survivors(), online.survivors()
        stock = deepcopy(target)
        assert of_target.average(of_online, 0.3)
        polyak_update([p.detach() for p in online.parameters()], [p.detach() for p in stock.parameters()], 0.3)
        assert target.native_survivors(x) is not None  # lets it settle
        stock(x)
        for mine, others in zip(target.parameters(), stock.parameters(), strict=True):
            assert th.equal(bits(mine.detach()), bits(others.detach()))
        assert th.allclose(target(x), stock(x), rtol=1e-5, atol=1e-6)
        assert model.policy.sparsifier.violations() == []


def _train_in_inference(layer: Any) -> None:
    with th.inference_mode():
        layer(th.zeros(1, layer.in_features))


def _give_gradient(layer: Any) -> None:
    layer.weight.grad = th.ones_like(layer.weight)


@pytest.mark.parametrize("before", [_train_in_inference, _give_gradient])
def test_what_was_done_to_a_target_before(before):
    """Tensors of inference mode, and gradients, which are masked too."""
    layer, torchs = (own_layer(6, 5, 11, th.float32, 3) for _ in range(2))
    for one, of in ((layer, settle), (torchs, SparseLinear.settle)):
        with th.no_grad():
            one.weight.copy_(th.arange(30.0).view(6, 5) - 12)
        before(one)
        with th.no_grad():
            one.weight.add_(0.5)
        of(one)
        assert int((one.weight != 0).sum()) == 11
    assert all(th.equal(bits(mine), bits(others)) for mine, others in zip(state(layer), state(torchs), strict=True))
    if layer.weight.grad is not None:
        assert not bool(layer.weight.grad[~layer.weight_mask].any())


def test_nothing_is_averaged_between_different_networks():
    layers = [own_layer(*shape, 11, th.float32, 3) for shape in ((6, 5), (5, 6))]
    target, online = (Survivors([layer], [0]) for layer in layers)
    before = layers[0].weight.detach().clone()
    assert not target.average(online, 0.5)
    assert th.equal(layers[0].weight, before)
    with pytest.raises(ValueError, match="differ"):
        target.network.average_dense(0.5, 0.5, online.network)
    with pytest.raises(ValueError, match="at least one weight"):
        native.module.settle(5, 0, 0, 0, 0)


# --- What others do meanwhile ---


def own_target_model(algorithm: Any = TD3, engine_name: str = "native", **kwargs: Any) -> Any:
    """A model some updates after its targets got masks of their own: the last update has not been read."""
    with engine(engine_name):
        model = make_model(
            algorithm, policy_kwargs=dict(net_arch=[24, 16], sparsity=0.6, mask_seed=1), seed=1, learning_starts=5, **kwargs
        )
    model.learn(33, callback=SET(4, 0.4, target="own_topk"))
    return model


@pytest.mark.parametrize("algorithm", [TD3, SAC, DQN])
@pytest.mark.parametrize("accelerated", [False, True])
def test_looking_changes_nothing(algorithm, accelerated):
    """Settling earlier than the next pass would, and forgetting everything that is kept beside the weights."""
    found = []
    for looks in (False, True):
        model = own_target_model(algorithm)
        if accelerated:
            accelerate(model)
        callback = SET(4, 0.4, target="own_topk")
        for _ in range(9):
            model.learn(3, callback=callback, reset_num_timesteps=False)
            if looks:
                model.get_parameters()
                deepcopy(model.policy)
                assert model.policy.sparsifier.violations() == []
        found.append(model.get_parameters()["policy"])
    assert all(th.equal(bits(value), bits(found[1][key])) for key, value in found[0].items())


@pytest.mark.parametrize("name", ["torch", "native"])
def test_a_copy_made_between_update_and_pass_settles_as_the_target_does(name):
    model = own_target_model(engine_name=name)
    targets = [target for targets in model.policy.sparsifier.targets.values() for target in targets]
    polyak_update(model.critic.parameters(), model.critic_target.parameters(), 0.4)
    assert any(bool((target.weight[~target.weight_mask] != 0).any()) for target in targets)
    copied = deepcopy(model.critic_target)
    x = th.randn(5, 7), th.randn(5, 2)
    for mine, others in zip(model.critic_target(*x), copied(*x), strict=True):
        assert th.equal(mine, others)


def test_gradients_of_targets_are_masked():
    found = []
    for name in ("torch", "native"):
        model = own_target_model(engine_name=name)
        target = model.critic_target.q_networks[0]
        layers = [module for module in target if isinstance(module, SparseLinear)]
        target(th.ones(3, 9)).sum().backward()
        for layer in layers:
            assert not bool(layer.weight.grad[~layer.weight_mask].any())
        norm = th.nn.utils.clip_grad_norm_(target.parameters(), 0.1)
        target.zero_grad()
        target(th.ones(3, 9)).sum().backward()
        # They wait while the target settles on another mask
        with th.no_grad():
            layers[1].weight.add_(0.01)
        target(th.ones(3, 9))
        assert not bool(layers[1].weight.grad[~layers[1].weight_mask].any())
        th.optim.SGD(target.parameters(), lr=0.1).step()
        target(th.ones(3, 9))
        found.append((norm, [layer.weight.detach().clone() for layer in layers]))
    assert th.allclose(found[0][0], found[1][0])
    assert all(th.allclose(mine, others, atol=1e-5) for mine, others in zip(found[0][1], found[1][1], strict=True))


def test_auto_decides_on_a_target_with_own_masks_as_on_a_dense_one():
    model = own_target_model()
    target, online = model.critic_target.q_networks[0], model.critic.q_networks[0]
    widths = [f"{layer.in_features}x{layer.out_features}@1.00" for layer in target.layers]
    assert Crossovers.shape_class(target, 8).startswith(" ".join(widths))
    assert not Crossovers.shape_class(online, 8).startswith(" ".join(widths))
    held = make_network(target.layers, target.activations)
    assert len(held.roots()[0]) == sum(parameter.numel() for parameter in target.parameters())


def test_what_torch_runs_settles_natively_too(monkeypatch):
    """The engine decides on passes; a settling is faster in any case."""
    model = own_target_model()
    for network in (*model.critic_target.q_networks, model.actor_target.mu):
        network._survivors.clear()  # decided already
    monkeypatch.setattr(SparseSequential, "_decide", lambda *_: False)
    polyak_update(model.critic.parameters(), model.critic_target.parameters(), 0.4)
    monkeypatch.setattr(SparseLinear, "replace_mask", lambda *_: pytest.fail("torch's selection"))
    model.critic_target(th.ones(3, 7), th.ones(3, 2))
    model.actor_target(th.ones(3, 7))
    assert model.policy.sparsifier.violations() == []
    assert not any(network._survivors for network in model.critic_target.q_networks)


def test_a_layer_without_weights_and_one_whose_hook_is_gone():
    model = own_target_model()
    sparsifier = model.policy.sparsifier
    layer = sparsifier.layers["critic.qf0.2"]
    sparsifier.set_masks({"critic.qf0.2": th.zeros_like(layer.weight_mask)}, replan=True)
    model.learn(5, reset_num_timesteps=False)
    assert sparsifier.violations() == []
    target = model.critic_target.q_networks[1]
    target[0]._forward_pre_hooks.clear()
    assert target.native_survivors(th.ones(1, 9)) is None
