"""Quantization inside stock training and after it: every algorithm x policy, agreement with the integers, saving, refusals."""

import copy
import random

import numpy as np
import pytest
import torch as th
import yaml
from gymnasium import spaces
from rl_zoo3.utils import get_callback_list
from sb3_contrib import QRDQN, CrossQ, MaskablePPO, RecurrentPPO
from stable_baselines3 import A2C, DQN, PPO, SAC, TD3
from stable_baselines3.common.callbacks import ConvertCallback
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.logger import configure
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize

from sb3_sparse import (
    SET,
    MaskRefresh,
    QuantizationAware,
    RigL,
    SparsityLogger,
    integer_arithmetic,
    integer_forward,
    quantize,
    shrink,
    sparse_policy,
    sparsity_report,
    to_stock,
)
from sb3_sparse.analysis.integer_forward import network_output
from sb3_sparse.nn.integer_layers import integer_layer
from sb3_sparse.nn.state_dict import revealed
from tests.helpers import (
    ALGORITHMS,
    SUPPORTED,
    SUPPORTED_IDS,
    RandomEnv,
    assert_goes_on_exactly,
    assert_invariants,
    equal_state,
    make_model,
    observations,
    watched,
)

#: An LSTM has to be left out by name.
EXEMPT = {RecurrentPPO: ["lstm_*"]}


def sparse_model(algorithm, kind="Mlp", **kwargs):
    return make_model(algorithm, kind, policy_kwargs=dict(sparsity=0.6) | kwargs.pop("policy_kwargs", {}), **kwargs)


def aware(algorithm, **kwargs):
    return QuantizationAware(**(dict(start=0.5, exempt_layers=EXEMPT.get(algorithm, ())) | kwargs))


def quantized_layers(model):
    layers = sparse_policy(model).sparsifier.layers
    return {name: layer for name, layer in layers.items() if layer.quantizer is not None}


def assert_agrees_with_the_integers(model):
    """The network's outputs and the actions are those of the integer reference, to the last bit."""
    shown = observations(model)
    assert np.array_equal(network_output(model, shown), integer_forward(model, shown))
    actions = model.predict(shown, deterministic=True)[0]
    with integer_arithmetic(model.policy):
        assert np.array_equal(model.predict(shown, deterministic=True)[0], actions)


def assert_pruned_weights_stay_zero(model):
    for name, layer in quantized_layers(model).items():
        assert not layer.quantizer.dequantized(layer.weight)[~layer.weight_mask].any(), name
        assert not integer_layer(layer).weight[~layer.weight_mask.numpy()].any(), name


# --- Training ---


@pytest.mark.parametrize(("algorithm", "kind"), SUPPORTED, ids=SUPPORTED_IDS)
def test_every_algorithm_and_policy(algorithm, kind, monkeypatch):
    model = sparse_model(algorithm, kind)
    sparsifier = sparse_policy(model).sparsifier
    networks = list(sparsifier.networks)  # critics too
    if algorithm is CrossQ:
        assert any("BatchRenorm" in type(module).__name__ for module in model.policy.modules())  # stays in float
    with watched(model, monkeypatch) as met:
        model.learn(64 if kind == "Mlp" else 28, callback=aware(algorithm, networks=networks))
    assert met["step"] > 0
    assert set(quantized_layers(model)) == set(sparsifier.layers)
    for name, layer in quantized_layers(model).items():
        assert layer.quantizer.is_ready, name
        assert all(target.quantizer is layer.quantizer for target in sparsifier.targets[name])
    assert_pruned_weights_stay_zero(model)
    assert_agrees_with_the_integers(model)
    assert sparsity_report(model).inference.sparse > 0


@pytest.mark.parametrize(
    "settings",
    [
        dict(bits=2, activation_bits=4, input_bits=16),
        dict(bits=5, activation_bits=2),
        dict(input_bits=3, exempt_layers="last"),
        dict(exempt_layers=["first", "*.2"]),
    ],
)
@pytest.mark.parametrize("algorithm", [SAC, DQN, PPO])
def test_precisions_and_exempt_layers(algorithm, settings, monkeypatch):
    model = sparse_model(algorithm)
    names = {SAC: "actor", DQN: "q_net", PPO: "actor"}
    members = sparse_policy(model).sparsifier.networks[names[algorithm]]
    with watched(model, monkeypatch):
        model.learn(64, callback=aware(algorithm, **settings))
    layers = quantized_layers(model)
    exempt = settings.get("exempt_layers", ())
    if "first" in exempt:
        assert members[0] not in layers
    elif exempt == "last":
        assert members[-1] not in layers
    else:
        assert set(layers) == set(members)
        assert [layer.quantizer.input_bits for layer in layers.values()] == [
            settings.get("input_bits", 8),
            *[settings["activation_bits"]] * (len(members) - 1),
        ]
    for layer in layers.values():
        levels = np.unique(integer_layer(layer).weight)
        assert layer.weight_bits == settings.get("bits", 8)
        assert len(levels) <= 2**layer.weight_bits - 1
    assert_agrees_with_the_integers(model)


@pytest.mark.parametrize("kind", ["Mlp", "MultiInput"])
def test_observations_in_float(kind):
    model = sparse_model(TD3, kind)
    model.learn(64, callback=aware(TD3, input_bits="float"))
    seen = [name for name, layer in quantized_layers(model).items() if layer.quantizer.input_bits is None]
    conv = "actor.features_extractor.extractors.image.cnn.0"
    # Of a dict, the first linear layer sees the vector as it is
    assert seen == (["actor.mu.0"] if kind == "Mlp" else [conv, "actor.mu.0"])
    shown = observations(model)
    step = max(
        float(layer.quantizer.input_parameters()[0]) for name, layer in quantized_layers(model).items() if name not in seen
    )
    assert np.allclose(network_output(model, shown), integer_forward(model, shown), atol=step)
    assert_pruned_weights_stay_zero(model)


@pytest.mark.parametrize(("algorithm", "share"), [(TD3, False), (SAC, True), (PPO, True), (PPO, False)])
def test_images_are_read_without_loss(algorithm, share):
    model = sparse_model(algorithm, "Cnn", policy_kwargs=dict(share_features_extractor=share))
    model.learn(40, callback=aware(algorithm, start=0, averaging=0.5))
    name = next(name for name in quantized_layers(model) if name.endswith("cnn.0"))
    assert (name.split(".")[0] in ("features_extractor", "actor")) or name.startswith("pi_features_extractor")
    layer = quantized_layers(model)[name]
    pixels = observations(model)
    scaled = model.policy.obs_to_tensor(pixels)[0].float() / 255.0
    assert np.array_equal(integer_layer(layer).quantize_input(scaled.numpy()), pixels)


def test_images_are_read_without_loss_by_shrunk_networks_too():
    model = sparse_model(DQN, "Cnn")
    masks = model.policy.sparsifier.masks()
    name = next(name for name in masks if name.endswith("cnn.0"))
    masks[name][:5] = False
    model.policy.sparsifier.set_masks(masks, replan=True)
    small = shrink(model)
    assert sparse_policy(small).sparsifier.layers[name].out_channels == 27
    dark = observations(model) // 2
    layer = quantized_layers(quantize(small, data=dark))[name]
    scaled = model.policy.obs_to_tensor(dark)[0].float() / 255.0
    assert np.array_equal(integer_layer(layer).quantize_input(scaled.numpy()), dark)


def test_default_networks_are_those_that_choose_actions():
    for algorithm, kind, expected in (
        (TD3, "Mlp", {"actor"}),
        (SAC, "Mlp", {"actor"}),
        (DQN, "Mlp", {"q_net"}),
        (QRDQN, "Mlp", {"quantile_net"}),
        (PPO, "Cnn", {"actor", "features_extractor"}),
    ):
        model = sparse_model(algorithm, kind)
        model.learn(20, callback=QuantizationAware(start=0))
        plan = sparse_policy(model).sparsifier.plan
        assert {plan[name].info.network for name in quantized_layers(model)} == expected


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_bit_identical_until_it_begins(algorithm):
    models, streams = [], []
    for callback in (None, aware(algorithm, start=100)):
        model = sparse_model(algorithm)
        model.learn(40, callback=callback)
        models.append(model)
        streams.append(th.get_rng_state())
    assert equal_state(*models)
    assert th.equal(*streams)


@pytest.mark.parametrize(("start", "total", "expected"), [(0.5, 60, 30), (41, 60, 41), (0, 60, 1), (None, 120, 100)])
def test_start(start, total, expected):
    model = sparse_model(DQN)
    found = []

    def watch(variables, _):
        if quantized_layers(model):
            found.append(model.num_timesteps)
        return True

    callback = QuantizationAware() if start is None else QuantizationAware(start=start)  # by default after 1 / 1.2
    model.learn(total, callback=[callback, ConvertCallback(watch)])
    assert found[0] == expected


def test_start_counts_the_whole_of_a_continued_training():
    model = sparse_model(DQN)
    model.learn(40, callback=QuantizationAware(start=0.75))
    assert quantized_layers(model)
    model = sparse_model(DQN)
    model.learn(40)
    callback = QuantizationAware(start=0.75)
    model.learn(40, callback=callback, reset_num_timesteps=False)
    assert callback.clock.first == 60
    assert quantized_layers(model)


def fake_quantized(layer, inputs):
    """Straight-through quantization as a textbook has it: values that exist, and gradients as if they were what went in."""
    reference = integer_layer(layer)
    scale, zero_point = float(reference.input_scale), reference.input_zero_point
    steps = th.round(inputs / scale) + zero_point
    inside = (steps >= 0) & (steps <= 255)
    values = (steps.clamp(0, 255) - zero_point) * scale
    inputs = th.where(inside, inputs + (values - inputs).detach(), values.detach())
    weight = layer.weight + (layer.quantizer.dequantized(layer.weight) - layer.weight).detach()
    return th.nn.functional.linear(inputs, weight, layer.bias)


def test_a_step_trains_on_the_quantized_loss(monkeypatch):
    """One step of stock DQN: target and gradient are those of quantized layers; the target's weights have their own scales."""
    model = sparse_model(DQN, policy_kwargs=dict(net_arch=[16]), target_update_interval=10**6, max_grad_norm=1e9)
    model.learn(60, callback=QuantizationAware(start=0, averaging=0.5))
    layers, targets = sparse_policy(model).sparsifier.layers, sparse_policy(model).sparsifier.targets
    for name, layer in layers.items():
        (target,) = targets[name]
        assert not th.equal(target.weight, layer.weight)
        online, own = integer_layer(layer), integer_layer(target)
        assert (online.input_scale, online.input_zero_point) == (own.input_scale, own.input_zero_point)
        assert not np.array_equal(online.weight_scales, own.weight_scales)
    # Ranges so narrow that inputs of both layers saturate
    layers["q_net.q_net.0"].quantizer.set_range(-0.1, 0.1)
    layers["q_net.q_net.2"].quantizer.set_range(0.0, 0.1)
    drawn, gradients, weights = [], {}, {}
    sample = model.replay_buffer.sample
    monkeypatch.setattr(
        model.replay_buffer, "sample", lambda *args, **kwargs: drawn.append(sample(*args, **kwargs)) or drawn[0]
    )

    def keep(*_):
        for name, layer in layers.items():
            weights[name], gradients[name] = layer.weight.detach().clone(), layer.weight.grad.clone()

    before = copy.deepcopy(model.policy)
    model.policy.optimizer.register_step_pre_hook(keep)
    model.train(gradient_steps=1, batch_size=32)

    def values(first, last, observations):
        return fake_quantized(last, fake_quantized(first, observations).relu())

    (batch,) = drawn
    future = values(*(before.sparsifier.targets[name][0] for name in layers), batch.next_observations).max(1).values.detach()
    for name, layer in before.sparsifier.layers.items():
        assert th.equal(layer.weight, weights[name])
        # The online network, which came after the target, saw the ranges that this very batch had moved
        layer.quantizer.load_state_dict(layers[name].quantizer.state_dict())
    wanted = batch.rewards.flatten() + (1 - batch.dones.flatten()) * 0.99 * future
    before.optimizer.zero_grad()
    found = values(*before.sparsifier.layers.values(), batch.observations).gather(1, batch.actions).flatten()
    th.nn.functional.smooth_l1_loss(found, wanted).backward()
    for name, layer in before.sparsifier.layers.items():
        assert gradients[name].abs().max() > 1e-3
        assert th.allclose(layer.weight.grad, gradients[name], rtol=1e-4, atol=1e-6), name


def test_ranges_follow_training_alone():
    model = sparse_model(TD3)
    model.learn(64, callback=aware(TD3))
    before = {name: layer.quantizer.state_dict() for name, layer in quantized_layers(model).items()}
    counts = {name: int(revealed(state)["n_observed"]) for name, state in before.items()}
    assert len(set(counts.values())) == 1  # the actor's steps, each one batch
    shown = observations(model) * 10
    model.predict(shown)
    model.policy.actor_target(th.as_tensor(shown))
    assert counts == {name: int(layer.quantizer.n_observed) for name, layer in quantized_layers(model).items()}
    model.learn(24, reset_num_timesteps=False)
    assert all(int(layer.quantizer.n_observed) > counts[name] for name, layer in quantized_layers(model).items())


def test_ranges_freeze():
    model = sparse_model(SAC)
    model.learn(64, callback=aware(SAC, freeze_after=3))
    assert {int(layer.quantizer.n_observed) for layer in quantized_layers(model).values()} == {3}


@pytest.mark.parametrize(
    "updater",
    [
        lambda: SET(2, 0.3),
        lambda: RigL(2, 0.3),
        lambda: SET(2, 0.3, target="own_topk"),
        lambda: RigL(2, 0.3, skip_step=True),
    ],
)
@pytest.mark.parametrize("algorithm", [TD3, DQN, PPO])
def test_with_changing_topologies(algorithm, updater, monkeypatch):
    model = sparse_model(algorithm)
    callback = updater()
    networks = list(sparse_policy(model).sparsifier.networks)
    with watched(model, monkeypatch):
        model.learn(80, callback=[callback, aware(algorithm, networks=networks)])
    assert any(event.n_grown > 0 and event.timestep > 45 for event in callback.events)
    assert_pruned_weights_stay_zero(model)
    assert_agrees_with_the_integers(model)


@pytest.mark.parametrize("rule", ["masked_grad", "ste", "sr_ste"])
def test_with_refreshed_masks(rule, monkeypatch):
    model = make_model(TD3, policy_kwargs=dict(pattern="2:4"))
    with watched(model, monkeypatch):
        model.learn(64, callback=[MaskRefresh(2, rule), aware(TD3)])
    assert_agrees_with_the_integers(model)


@pytest.mark.parametrize("algorithm", [PPO, pytest.param(TD3, marks=pytest.mark.expensive)])
def test_compiled_policies(algorithm, monkeypatch):
    model = sparse_model(algorithm)
    if algorithm is PPO:
        model.policy.evaluate_actions = th.compile(model.policy.evaluate_actions, backend="aot_eager")
    else:
        model.policy.actor.forward = th.compile(model.policy.actor.forward, backend="aot_eager")
    with watched(model, monkeypatch):
        model.learn(48, callback=aware(algorithm))
    assert all(layer.quantizer.is_ready for layer in quantized_layers(model).values())
    assert_pruned_weights_stay_zero(model)


def test_rl_zoo3_makes_the_callback_from_yaml():
    text = """
callback:
  - sb3_sparse.QuantizationAware: {bits: 6, input_bits: float, start: 0.25, networks: [q_net], exempt_layers: last}
"""
    (callback,) = get_callback_list(yaml.safe_load(text))
    model = sparse_model(DQN)
    model.learn(60, callback=callback)
    assert callback.clock.first == 15
    assert {name: (layer.weight_bits, layer.quantizer.input_bits) for name, layer in quantized_layers(model).items()} == {
        "q_net.q_net.0": (6, None),
        "q_net.q_net.2": (6, 8),
    }


def test_on_a_gpu():
    if not th.cuda.is_available():
        pytest.skip("no CUDA device")
    model = sparse_model(TD3, device="cuda")
    model.learn(64, callback=aware(TD3))
    assert_invariants(model)
    shown = observations(model)
    assert np.allclose(network_output(model, shown), integer_forward(model, shown), atol=1e-5)


def test_log(tmp_path):
    model = sparse_model(DQN)
    model.set_logger(configure(str(tmp_path), ["csv"]))
    model.learn(60, callback=QuantizationAware(bits=4, start=0.5), log_interval=1)
    header, *rows = (tmp_path / "progress.csv").read_text().splitlines()
    column = header.split(",").index("quantization/weight_bits")
    assert [rows[0].split(",")[column], rows[-1].split(",")[column]] == ["32", "4"]


# --- Saving ---


@pytest.mark.parametrize(("algorithm", "kind"), SUPPORTED, ids=SUPPORTED_IDS)
def test_resume_in_the_middle_continues_exactly(algorithm, kind, tmp_path):
    networks = list(sparse_policy(sparse_model(algorithm, kind)).sparsifier.networks)
    model = sparse_model(algorithm, kind)
    model.learn(48 if kind == "Mlp" else 28, callback=aware(algorithm, networks=networks))
    # Without the callback or with it: what is quantized stays so
    callbacks = SparsityLogger(), aware(algorithm, networks=networks)
    loaded = assert_goes_on_exactly(model, callbacks, tmp_path, gradient_steps=2)
    assert set(quantized_layers(loaded)) == set(quantized_layers(model)) != set()
    shown = observations(model)
    assert np.array_equal(network_output(loaded, shown), network_output(model, shown))
    assert_agrees_with_the_integers(loaded)


def test_resume_before_it_begins(tmp_path):
    model = sparse_model(TD3)
    model.learn(40, callback=QuantizationAware(start=60))
    model.save(tmp_path / "model.zip")
    loaded = TD3.load(tmp_path / "model.zip", env=model.get_env())
    assert not quantized_layers(loaded)
    loaded.learn(40, callback=QuantizationAware(start=60), reset_num_timesteps=False)
    assert quantized_layers(loaded)


@pytest.mark.parametrize(("algorithm", "kind"), [(SAC, "Mlp"), (DQN, "Cnn"), (PPO, "MultiInput")])
def test_deepcopy_and_policy_files(algorithm, kind, tmp_path, monkeypatch):
    model = sparse_model(algorithm, kind)
    model.learn(48, callback=aware(algorithm))
    shown = observations(model)
    outputs = network_output(model, shown)
    copied = copy.deepcopy(model.policy)
    model.policy.save(tmp_path / "policy.pth")
    loaded = type(model.policy).load(tmp_path / "policy.pth")
    with watched(model, monkeypatch):
        model.learn(24, reset_num_timesteps=False)
    assert not np.array_equal(network_output(model, shown), outputs)
    for policy in (copied, loaded):
        assert policy.sparsifier.violations() == []
        model.policy = policy
        assert np.array_equal(network_output(model, shown), outputs)


def test_the_file_decides_what_is_quantized(tmp_path):
    floats, quantized = sparse_model(TD3, seed=1), sparse_model(TD3)
    floats.save(tmp_path / "float.zip")
    quantized.learn(48, callback=aware(TD3))
    quantized.save(tmp_path / "quantized.zip")
    other = sparse_model(TD3, seed=2)
    other.set_parameters(tmp_path / "quantized.zip")
    assert equal_state(other, quantized)
    assert_invariants(other)
    other.set_parameters(tmp_path / "float.zip")
    assert not quantized_layers(other)
    assert equal_state(other, floats)
    assert_invariants(other)
    dense = make_model(TD3, sparse=False)
    quantized.set_parameters(dense.get_parameters())
    assert not quantized_layers(quantized)
    assert_invariants(quantized)


def test_a_change_of_dtype_keeps_the_settings():
    model = sparse_model(TD3)
    model.learn(48, callback=aware(TD3, averaging=0.013))
    model.policy.to(th.bfloat16).to(th.float32)
    for optimizer in model.policy.sparsifier.optimizers.values():
        optimizer.state.clear()
    model.learn(24, callback=aware(TD3, averaging=0.013), reset_num_timesteps=False)
    assert_agrees_with_the_integers(model)


@pytest.mark.parametrize(("algorithm", "kind"), [(TD3, "Mlp"), (DQN, "Cnn"), (PPO, "Mlp")])
def test_to_stock(algorithm, kind):
    model = sparse_model(algorithm, kind)
    model.learn(48, callback=aware(algorithm))
    with pytest.raises(ValueError, match="bake_quantization=True"):
        to_stock(model)
    stock = to_stock(model, bake_quantization=True)
    state = stock.policy.state_dict()
    for name, layer in quantized_layers(model).items():
        reference = integer_layer(layer)
        baked = state[f"{name}.weight"].numpy()
        scales = reference.weight_scales.reshape(-1, *(1,) * (baked.ndim - 1))
        assert np.array_equal(baked, reference.weight.astype(np.float32) * scales)
    assert not any("quantizer" in name for name in state)
    assert_agrees_with_the_integers(model)
    stock.learn(24)


# --- After training ---


@pytest.mark.parametrize(("algorithm", "kind"), SUPPORTED, ids=SUPPORTED_IDS)
def test_quantize_every_algorithm_and_policy(algorithm, kind, monkeypatch):
    model = sparse_model(algorithm, kind)
    model.learn(24)
    before = copy.deepcopy(model.get_parameters())
    networks = list(sparse_policy(model).sparsifier.networks)
    input_bits = 8 if kind == "Cnn" else 16
    kwargs = dict(networks=networks, exempt_layers=EXEMPT.get(algorithm, ()), input_bits=input_bits, n_samples=60)
    quantized = quantize(model, **kwargs)
    assert set(quantized_layers(quantized)) == set(sparse_policy(model).sparsifier.layers)
    assert not quantized_layers(model)
    after = copy.deepcopy(model)
    after.set_parameters(before)
    assert equal_state(model, after)
    assert_invariants(quantized)
    assert_agrees_with_the_integers(quantized)
    shown = observations(model)
    expected, found = network_output(model, shown), network_output(quantized, shown)
    assert not np.array_equal(expected, found)
    assert np.abs(expected - found).max() < 0.2 * np.abs(expected).max()
    with watched(quantized, monkeypatch) as met:
        quantized.learn(32 if kind == "Mlp" else 22)
    assert met["step"] > 0
    assert_agrees_with_the_integers(quantized)


def test_calibration_ranges_by_hand():
    model = sparse_model(DQN)
    data = np.random.default_rng(0).uniform(-1, 1, (600, 7)).astype(np.float32)
    first = quantized_layers(quantize(model, data=data))["q_net.q_net.0"].quantizer
    assert (float(first.low), float(first.high)) == (data.min(), data.max())
    assert int(first.n_observed) == 3  # batches of 256
    cut = quantized_layers(quantize(model, data=data, percentile=90))["q_net.q_net.0"].quantizer
    ends = [np.percentile(data[start : start + 256], (10, 90)) for start in (0, 256, 512)]
    assert np.allclose([float(cut.low), float(cut.high)], np.mean(ends, axis=0), atol=1e-6)


def test_calibration_from_the_replay_buffer_then_from_rollouts(monkeypatch):
    model = sparse_model(TD3)
    model.learn(60)
    model.replay_buffer.observations *= 3
    quantizer = quantized_layers(quantize(model))["actor.mu.0"].quantizer
    stored = model.replay_buffer.observations[:60]
    assert (float(quantizer.low), float(quantizer.high)) == (stored.min(), stored.max())
    fresh = sparse_model(TD3)
    few = quantized_layers(quantize(fresh, n_samples=300))["actor.mu.0"].quantizer
    assert -1 <= float(few.low) < -0.9
    assert 0.9 < float(few.high) <= 1
    assert int(few.n_observed) == 2


@pytest.mark.parametrize("algorithm", [SAC, MaskablePPO])
def test_rollouts_leave_training_as_it_was(algorithm):
    """Same random streams, and the environment, which they share, begins a new episode."""
    states = []
    for calibrated in (False, True):
        model = sparse_model(algorithm, buffer_size=200) if algorithm is SAC else sparse_model(algorithm)
        if calibrated:
            quantize(model, n_samples=50)
        states.append((th.get_rng_state().tolist(), np.random.get_state()[1].tolist(), random.getstate()))
        model.learn(40)
    assert states[0] == states[1]


def test_running_statistics_are_used_and_left_alone():
    env = VecNormalize(make_vec_env(RandomEnv, seed=0), norm_reward=False)
    model = sparse_model(TD3, env=env)
    model.learn(60)
    env.obs_rms.mean += 0.7
    mean, count = env.obs_rms.mean.copy(), env.obs_rms.count
    quantizer = quantized_layers(quantize(model))["actor.mu.0"].quantizer
    normalized = env.normalize_obs(model.replay_buffer.observations[:60])
    assert np.allclose([float(quantizer.low), float(quantizer.high)], [normalized.min(), normalized.max()])
    model.replay_buffer.reset()
    quantize(model, n_samples=40)
    assert np.array_equal(env.obs_rms.mean, mean)
    assert env.obs_rms.count == count
    assert env.training


def test_several_environments_and_dicts():
    env = DummyVecEnv([lambda: RandomEnv("MultiInput")] * 3)
    model = sparse_model(SAC, "MultiInput", env=env)
    model.learn(60)
    quantized = quantize(model, n_samples=10)
    assert_agrees_with_the_integers(quantized)
    model = sparse_model(PPO, "MultiInput", env=DummyVecEnv([lambda: RandomEnv("MultiInput")] * 2))
    assert_agrees_with_the_integers(quantize(model, n_samples=10))
    assert_agrees_with_the_integers(quantize(model, data=observations(model)))


@pytest.mark.parametrize("n_envs", [1, 2])
@pytest.mark.parametrize(
    ("kind", "space"),
    [
        ("Mlp", spaces.Discrete(5)),
        ("Mlp", spaces.MultiDiscrete([3, 4])),
        ("Mlp", spaces.MultiBinary((2, 3))),
        ("Mlp", spaces.Box(-2, 1, (3, 4), np.float32)),
        (
            "MultiInput",
            spaces.Dict(number=spaces.Discrete(4), numbers=spaces.MultiDiscrete([2, 3]), box=spaces.Box(-2, 1, (3,))),
        ),
    ],
    ids=["Discrete", "MultiDiscrete", "MultiBinary", "Box", "Dict"],
)
def test_calibration_from_the_replay_buffer_with_any_observations(kind, space, n_envs):
    def make_env():
        env = RandomEnv(kind, discrete=True)
        env.observation_space = copy.deepcopy(space)
        return env

    model = sparse_model(DQN, kind, env=DummyVecEnv([make_env] * n_envs))
    model.learn(60)
    quantized = quantize(model, n_samples=40)
    quantizer = quantized_layers(quantized)["q_net.q_net.0"].quantizer
    has_box = kind == "MultiInput" or isinstance(space, spaces.Box)
    assert (float(quantizer.low) < -1.5, float(quantizer.high) > 0.7) == (has_box, True)
    assert_agrees_with_the_integers(quantized)


def test_a_saved_model_is_quantized_with_data_alone(tmp_path):
    sparse_model(A2C).save(tmp_path / "model.zip")
    model = A2C.load(tmp_path / "model.zip")
    with pytest.raises(ValueError, match="calibration without data: the model has neither a filled replay buffer nor"):
        quantize(model)
    quantized = quantize(model, data=observations(model))
    assert_agrees_with_the_integers(quantized)


# --- Refusals ---


@pytest.mark.parametrize("make", [QuantizationAware, lambda **kwargs: quantize(sparse_model(DQN), **kwargs)])
@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        (dict(bits=1), r"`bits` must be an integer in \[2, 8\], got 1"),
        (dict(bits=9), r"`bits` must be an integer in \[2, 8\], got 9"),
        (dict(bits=8.0), r"`bits` must be an integer in \[2, 8\], got 8.0"),
        (dict(activation_bits=16), r"`activation_bits` must be an integer in \[2, 8\], got 16"),
        (dict(input_bits=12), r"`input_bits` must be an integer in \[2, 8\], 16 or 'float', got 12"),
        (dict(input_bits="double"), r"16 or 'float', got 'double'"),
        (dict(input_bits=True), r"16 or 'float', got True"),
        (dict(networks=3), r"`networks` must be a name or a list of names, got 3"),
        (dict(exempt_layers=[1]), r"`exempt_layers` must be a name or a list of names, got \[1\]"),
        (dict(averaging=0), r"`averaging` must be a number in \(0, 1\), got 0"),
        (dict(freeze_after=0), r"`freeze_after` must be an integer >= 1, got 0"),
    ],
)
def test_bad_arguments(make, kwargs, message):
    with pytest.raises(ValueError, match=message):
        make(**kwargs)


def test_bad_moments():
    for start in (-1, -0.5, 1.5, "late", True):
        with pytest.raises(ValueError, match="`start` must be"):
            QuantizationAware(start=start)
    with pytest.raises(ValueError, match=r"`start` must be .* got None"):
        QuantizationAware(start=None)


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        (dict(networks="critik"), "`networks` names the unknown network 'critik'; the networks .* are: actor, critic"),
        (dict(exempt_layers="actor.mu.7"), "`exempt_layers` names the unknown layer 'actor.mu.7'; .* actor.mu.0"),
        (dict(exempt_layers="actor.*"), "nothing is left to quantize"),
        (dict(networks=[]), "nothing is left to quantize"),
    ],
)
def test_bad_names_before_any_training(kwargs, message):
    model = sparse_model(TD3)
    for attempt in (
        lambda: model.learn(40, callback=QuantizationAware(**kwargs)),
        lambda: quantize(model, **kwargs),
    ):
        with pytest.raises(ValueError, match=message):
            attempt()
    assert model.num_timesteps == 0


class GruExtractor(BaseFeaturesExtractor):
    def __init__(self, observation_space):
        super().__init__(observation_space, 6)
        self.gru = th.nn.GRUCell(7, 6)

    def forward(self, values):
        return self.gru(values)


class ReflectingExtractor(BaseFeaturesExtractor):
    def __init__(self, observation_space):
        super().__init__(observation_space, 4)
        self.conv = th.nn.Conv2d(1, 4, 3, stride=8, padding=1, padding_mode="reflect")

    def forward(self, values):
        return self.conv(values).mean((2, 3))


def test_layers_that_cannot_be_quantized():
    model = sparse_model(RecurrentPPO)
    with pytest.raises(ValueError, match=r"layer 'lstm_actor' of network 'actor' is a LSTM, which cannot be quantized"):
        model.learn(20, callback=QuantizationAware())
    model = sparse_model(DQN, policy_kwargs=dict(features_extractor_class=GruExtractor))
    with pytest.raises(ValueError, match=r"layer 'q_net.features_extractor.gru' of network 'q_net' is a GRUCell"):
        quantize(model)
    quantized = quantize(model, exempt_layers="q_net.features_extractor.gru")
    assert_agrees_with_the_integers(quantized)
    model = sparse_model(
        DQN, "Cnn", policy_kwargs=dict(features_extractor_class=ReflectingExtractor, features_extractor_kwargs={})
    )
    with pytest.raises(ValueError, match=r"layer .*extractor.conv' cannot be quantized: it has padding_mode='reflect'"):
        quantize(model)


def test_sums_that_could_overflow():
    env = RandomEnv(n_inputs=300)
    model = sparse_model(TD3, env=env)
    message = "layer 'actor.mu.0' could overflow its int32 sums: .* `input_bits`=16 at most 258 products .* it adds 300"
    with pytest.raises(ValueError, match=message):
        model.learn(20, callback=QuantizationAware(input_bits=16))
    with pytest.raises(ValueError, match=message):
        quantize(model, input_bits=16)
    assert_agrees_with_the_integers(quantize(model, 7, input_bits=16))


def test_twice():
    model = sparse_model(DQN)
    model.learn(40, callback=aware(DQN))
    with pytest.raises(ValueError, match=r"layer 'q_net.q_net.0' is quantized already"):
        quantize(model)
    with pytest.raises(ValueError, match=r"already quantized, with other settings: it has .*weights=8.* asked for is .*=4"):
        model.learn(40, callback=aware(DQN, bits=4), reset_num_timesteps=False)
    model.learn(40, callback=aware(DQN), reset_num_timesteps=False)  # the same: goes on
    for name in quantized_layers(model):
        model.policy.sparsifier.set_quantizer(name, None)
    assert "quantizer" not in repr(model.policy)
    assert_invariants(model)
    model.learn(20, callback=aware(DQN, bits=4, start=0), reset_num_timesteps=False)
    assert {layer.weight_bits for layer in quantized_layers(model).values()} == {4}


def test_two_callbacks_for_two_networks():
    model = sparse_model(TD3)
    model.learn(48, callback=[aware(TD3, networks="actor"), aware(TD3, networks="critic", bits=6)])
    assert {name.split(".")[0]: layer.weight_bits for name, layer in quantized_layers(model).items()} == {
        "actor": 8,
        "critic": 6,
    }


def test_stock_and_float_models():
    dense = make_model(PPO, sparse=False)
    with pytest.raises(TypeError, match=r"sb3_sparse.sparsify\(model, sparsity=0\)"):
        quantize(dense)
    with pytest.raises(TypeError, match="SparseMlpPolicy"):
        dense.learn(16, callback=QuantizationAware())
    model = sparse_model(PPO)
    with pytest.raises(ValueError, match="no layer is quantized: train with `QuantizationAware`, or call"):
        integer_forward(model, observations(model))
    with pytest.raises(ValueError, match="the layer is not quantized"):
        integer_layer(model.policy.action_net)
    model.learn(4, callback=QuantizationAware(start=0))  # ... so short that there was one step
    fresh = sparse_model(TD3)
    fresh.learn(4, callback=QuantizationAware(start=0))  # ... and here none
    with pytest.raises(ValueError, match=r"layer 'actor.mu.0' has no range for its inputs yet"):
        integer_forward(fresh, observations(fresh))


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (np.zeros((0, 7), np.float32), "calibration without data: `data` holds no observation"),
        (np.zeros((5, 6), np.float32), r"`data` must hold observations of Box.*\(7,\).*, one per row"),
        (np.zeros(7, np.float32), r"`data` must hold observations of Box.*, one per row"),
        (1.0, "calibration without data"),
        (np.full((5, 7), np.nan, np.float32), "values at the inputs of layer 'q_net.q_net.0' that are not finite"),
    ],
)
def test_bad_data(data, message):
    with pytest.raises(ValueError, match=message):
        quantize(sparse_model(DQN), data=data)


def test_bad_calibration_arguments():
    model = sparse_model(PPO, "MultiInput")
    shown = observations(model)
    with pytest.raises(ValueError, match="as many rows under every key"):
        quantize(model, data={**shown, "vector": shown["vector"][:3]})
    with pytest.raises(ValueError, match="`data` must hold observations of Dict"):
        quantize(model, data={"vector": shown["vector"]})
    with pytest.raises(ValueError, match="`n_samples` must be an integer >= 1, got 0"):
        quantize(model, n_samples=0)
    for percentile in (50, 100, -1, "most"):
        with pytest.raises(ValueError, match=r"`percentile` must be None or a number in \(50, 100\), got"):
            quantize(model, percentile=percentile)


def test_weights_that_are_not_finite():
    model = sparse_model(DQN)
    model.learn(40, callback=aware(DQN))
    with th.no_grad():
        quantized_layers(model)["q_net.q_net.2"].weight[0, 0] = float("nan")
    with pytest.raises(ValueError, match=r"layer 'q_net.q_net.2' has weights that are not finite"):
        integer_forward(model, observations(model))
