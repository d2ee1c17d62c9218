"""A model's decision as a graph: the same answers as ``predict``, for every algorithm, policy, space and precision."""

import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from sb3_contrib import CrossQ, MaskablePPO, RecurrentPPO
from stable_baselines3 import A2C, DQN, PPO, SAC, TD3
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from stable_baselines3.common.vec_env import DummyVecEnv, VecFrameStack, VecNormalize
from torch import nn

from sb3_sparse import quantize, to_stock
from sb3_sparse.analysis.integer_forward import integer_forward, network_output
from sb3_sparse.export.decision import bernoulli_threshold, decision_of
from sb3_sparse.export.normalization import normalized
from sb3_sparse.export.parity import model_actions, random_observations, require_same_decision
from sb3_sparse_runtime import compiled
from sb3_sparse_runtime.compiled import CompiledRunner
from sb3_sparse_runtime.operations import ArgMax, Bound, Convolve, Normalize, Quantize, Unscale
from tests.export.subjects import IDS, SUPPORTED, SpacesEnv, arrays, bits_of, graph_actions, known, model_of
from tests.helpers import RandomEnv, make_model, observations

needs_runner = pytest.mark.skipif(compiled.module is None, reason="the compiled runner was not built")


def close(graph, first, second):
    """Whether actions are the same, but for the last bits of float32 numbers."""
    if graph.action.kind == "box":
        return np.allclose(first, second, atol=2e-6)
    return np.array_equal(first, second)


@pytest.mark.parametrize("bits", [0, 8])
@pytest.mark.parametrize(("algorithm", "kind"), SUPPORTED, ids=IDS)
def test_every_algorithm_and_policy_decides_as_predict_does(algorithm, kind, bits):
    model = known(algorithm, kind, bits)
    graph, given = decision_of(model), observations(model)
    expected, _ = model.predict(given, deterministic=True)
    values = graph.evaluate(arrays(graph, given))
    actions = values[graph.outputs["action"]].reshape(expected.shape)
    assert close(graph, actions, expected)
    if graph.action.kind == "discrete":
        # The choice is little to compare; what it is made of is more
        outputs = network_output(model, given)
        scores = outputs.mean(axis=1) if outputs.ndim == 3 else outputs
        assert np.allclose(values[graph.operations[-1].inputs[0]], scores, atol=2e-6)
    else:
        assert len(np.unique(expected)) > 1
    if compiled.module is None:
        return
    for avx512 in {False, compiled.module.has_avx512()}:
        ran = CompiledRunner(graph, avx512=avx512)(arrays(graph, given)).reshape(expected.shape)
        assert close(graph, ran, expected)
        if bits:
            assert np.array_equal(bits_of(ran), bits_of(actions))


@pytest.mark.parametrize("bits", [8, 5, 2])
@pytest.mark.parametrize(("algorithm", "kind"), [(DQN, "Mlp"), (TD3, "Cnn"), (PPO, "MultiInput"), (SAC, "Mlp")])
def test_integers_are_those_of_the_reference_to_the_last_bit(algorithm, kind, bits):
    model = known(algorithm, kind, bits)
    graph, given = decision_of(model), observations(model)
    values = graph.evaluate(arrays(graph, given))
    last = graph.layers[-1].output
    expected = integer_forward(model, given)
    # The actions of TD3 and SAC end in tanh, whose last bits are another library's; before it is what integers make
    got = th.from_numpy(values[last])
    got = th.tanh(got) if algorithm in (TD3, SAC) else got
    assert np.array_equal(bits_of(got.numpy().reshape(expected.shape)), bits_of(expected))


@pytest.mark.parametrize("algorithm", [TD3, DQN, PPO])
def test_stock_models_and_baked_ones_are_exported_too(algorithm):
    model = known(algorithm)
    for stock in (to_stock(model), make_model(algorithm, sparse=False)):
        graph, given = decision_of(stock), observations(stock)
        expected, _ = stock.predict(given, deterministic=True)
        assert close(graph, graph_actions(graph, given).reshape(expected.shape), expected)


OBSERVATIONS = [
    spaces.Discrete(5),
    spaces.MultiDiscrete([3, 4, 2]),
    spaces.MultiBinary(6),
    spaces.Box(-1, 1, (3, 4), np.float64),
    spaces.Box(0, 255, (7,), np.uint8),
    spaces.Box(-5, 5, (4,), np.int64),
    spaces.Dict(
        {
            "choice": spaces.Discrete(4),
            "switches": spaces.MultiBinary(3),
            "levels": spaces.MultiDiscrete([2, 3]),
            "vector": spaces.Box(-1, 1, (2, 2), np.float32),
            "v0": spaces.Box(0, 255, (1, 36, 36), np.uint8),
        }
    ),
]


@pytest.mark.parametrize("bits", [0, 8])
@pytest.mark.parametrize("space", OBSERVATIONS, ids=lambda space: type(space).__name__)
def test_every_observation_space(space, bits):
    kind = "MultiInput" if isinstance(space, spaces.Dict) else "Mlp"
    env = SpacesEnv(space, spaces.Box(-1, 1, (2,), np.float32))
    model = model_of(PPO, kind, bits, env=env)
    graph, given = decision_of(model), observations(model)
    expected, _ = model.predict(given, deterministic=True)
    assert close(graph, graph_actions(graph, given), expected)
    if compiled.module is not None:
        assert close(graph, CompiledRunner(graph)(arrays(graph, given)), expected)


ACTIONS = [
    spaces.Box(np.array([-2, 0.5], np.float32), np.array([1, 3], np.float32)),
    spaces.Box(-1, 1, (2, 2), np.float64),
    spaces.Discrete(5),
    spaces.MultiDiscrete([3, 1, 4]),
    spaces.MultiBinary(4),
]


@pytest.mark.parametrize("space", ACTIONS, ids=str)
def test_every_action_space(space):
    model = model_of(PPO, env=SpacesEnv(spaces.Box(-1, 1, (5,), np.float32), space))
    graph, given = decision_of(model), observations(model)
    expected, _ = model.predict(given, deterministic=True)
    assert close(graph, graph_actions(graph, given).reshape(expected.shape), expected)


@pytest.mark.parametrize("algorithm", [SAC, TD3])
def test_actions_are_unscaled_to_any_bounds(algorithm):
    box = spaces.Box(np.array([-2, 0.5], np.float32), np.array([1, 3], np.float32))
    model = model_of(algorithm, env=SpacesEnv(spaces.Box(-1, 1, (5,), np.float32), box))
    graph, given = decision_of(model), observations(model)
    expected, _ = model.predict(given, deterministic=True)
    assert np.abs(graph_actions(graph, given) - expected).max() < 1e-6
    assert isinstance(graph.operations[-1], Unscale)


def test_ppo_with_gsde_squashes_or_clips():
    for squash in (True, False):
        model = model_of(PPO, use_sde=True, policy_kwargs=dict(squash_output=squash))
        graph, given = decision_of(model), observations(model)
        assert isinstance(graph.operations[-1], Unscale if squash else Bound)
        assert np.allclose(graph_actions(graph, given), model.predict(given, deterministic=True)[0], atol=2e-6)
    sac = model_of(SAC, use_sde=True)
    given = observations(sac)
    assert np.allclose(graph_actions(decision_of(sac), given), sac.predict(given, deterministic=True)[0], atol=2e-6)


ACTIVATIONS = [nn.ReLU, nn.Tanh, nn.ELU, nn.LeakyReLU, nn.Sigmoid, nn.Hardtanh, nn.ReLU6, nn.Identity]


@pytest.mark.parametrize("bits", [0, 8])
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_every_activation_function(activation, bits):
    model = model_of(A2C, bits=bits, policy_kwargs=dict(activation_fn=activation))
    graph, given = decision_of(model), observations(model)
    expected, _ = model.predict(given, deterministic=True)
    actions = graph_actions(graph, given)
    # Quantized, also behind a function of which every library has other last bits
    assert np.array_equal(actions, expected) if bits else np.allclose(actions, expected, atol=2e-6)
    if compiled.module is not None:
        ran = CompiledRunner(graph)(arrays(graph, given))
        assert np.array_equal(ran, actions) if bits else np.allclose(ran, actions, atol=2e-6)


def test_weights_of_few_bits_with_inputs_in_float_and_in_16_bits():
    for input_bits in ("float", 16):
        plain = model_of(TD3)
        model = quantize(plain, data=observations(plain, 64), bits=3, input_bits=input_bits)
        graph, given = decision_of(model), observations(model)
        quantizers = [operation for operation in graph.operations if isinstance(operation, Quantize)]
        assert [one.bits for one in quantizers] == ([8, 8] if input_bits == "float" else [16, 8, 8])
        expected, _ = model.predict(given, deterministic=True)
        assert np.allclose(graph_actions(graph, given), expected, atol=1e-6 if input_bits == 16 else 1e-2)
        if compiled.module is not None:
            for avx512 in {False, compiled.module.has_avx512()}:
                ran = CompiledRunner(graph, avx512=avx512)(arrays(graph, given))
                assert np.array_equal(ran, graph_actions(graph, given)) or input_bits == "float"


def test_convolutions_of_any_geometry():
    space = spaces.Box(0, 255, (2, 17, 15), np.uint8)
    model = make_model(
        TD3, "Cnn", env=SpacesEnv(spaces.Box(0, 255, (2, 36, 36), np.uint8), spaces.Box(-1, 1, (2,), np.float32))
    )
    extractor = model.policy.actor.features_extractor
    extractor.cnn = nn.Sequential(
        nn.Conv2d(2, 6, (3, 5), stride=(2, 1), padding=(2, 1), dilation=(1, 2), groups=2),
        nn.LeakyReLU(),
        nn.Conv2d(6, 4, 2, padding="same"),
        nn.ReLU(),
        nn.Flatten(),
    )
    with th.no_grad():
        n_flat = extractor.cnn(th.zeros(1, *space.shape)).shape[1]
    extractor.linear = nn.Sequential(nn.Linear(n_flat, 24), nn.ReLU())
    for owner in (model.policy, model.policy.actor):
        owner.observation_space = space
    model.observation_space = space
    graph, given = decision_of(model), observations(model)
    expected, _ = model.policy.predict(given, deterministic=True)
    assert any(isinstance(one, Convolve) and one.geometry.groups == 2 for one in graph.operations)
    assert np.allclose(graph_actions(graph, given), expected, atol=2e-6)
    if compiled.module is not None:
        assert np.allclose(CompiledRunner(graph)(arrays(graph, given)), expected, atol=2e-6)


# --- Observations that are normalised ---


def normalizing(env, n_steps=50, n_actions=2, **kwargs):
    vec_env = VecNormalize(DummyVecEnv([lambda: env]), clip_obs=1.5, **kwargs)
    vec_env.seed(0)
    vec_env.reset()
    for _ in range(n_steps):
        vec_env.step(np.zeros((1, n_actions)))
    return vec_env


def test_statistics_of_vec_normalize_are_part_of_the_decision():
    env = normalizing(
        SpacesEnv(
            spaces.Box(np.array([-1, 100, 3], np.float32), np.array([1, 140, 3.1], np.float32)), RandomEnv().action_space
        )
    )
    for bits in (0, 8):
        model = make_model(TD3, env=env)
        model = quantize(model, bits=bits) if bits else model
        given = np.stack([env.observation_space.sample() for _ in range(50)])
        graph = decision_of(model, normalize=env)
        expected, _ = model.predict(env.normalize_obs(given), deterministic=True)
        assert np.abs(graph_actions(graph, given) - expected).max() < 1e-6
        assert (np.abs(env.normalize_obs(given)) == 1.5).any()
        if compiled.module is not None:
            assert np.abs(CompiledRunner(graph)(arrays(graph, given)) - expected).max() < 1e-6


def test_statistics_of_a_dictionary_and_those_of_single_frames():
    dictionary = spaces.Dict({"vector": spaces.Box(-1, 3, (3,), np.float32), "other": spaces.Box(-1, 1, (2,), np.float32)})
    env = normalizing(SpacesEnv(dictionary, RandomEnv().action_space), norm_obs_keys=["vector"])
    model = make_model(PPO, "MultiInput", env=env)
    graph = decision_of(model, normalize=env)
    assert [operation.inputs for operation in graph.operations if isinstance(operation, Normalize)] == [("vector",)]
    given = random_observations(graph, 20)
    expected, _ = model.predict(env.normalize_obs(given), deterministic=True)
    assert np.allclose(graph_actions(graph, given), expected, atol=2e-6)

    single = normalizing(RandomEnv(n_inputs=4))
    stacked = VecFrameStack(single, 3)
    model = make_model(PPO, env=stacked)
    graph = decision_of(model, normalize=single)
    given = random_observations(graph, 20)["observation"]
    assert given.shape == (20, 12)
    frames = [single.normalize_obs(given[:, 4 * index : 4 * index + 4]) for index in range(3)]
    assert np.array_equal(normalized(single, given), np.concatenate(frames, axis=1))
    expected, _ = model.predict(normalized(single, given), deterministic=True)
    assert np.allclose(graph_actions(graph, given), expected, atol=2e-6)
    assert np.allclose(model_actions(model, {"observation": given}, single), expected)


def test_statistics_that_do_not_fit_are_refused():
    model = known(TD3)
    with pytest.raises(ValueError, match=r"statistics are of observations of shape \(4,\), the policy sees \(7,\)"):
        decision_of(model, normalize=normalizing(RandomEnv(n_inputs=4)))
    only_rewards = normalizing(RandomEnv(), norm_obs=False)
    assert not any(isinstance(operation, Normalize) for operation in decision_of(model, normalize=only_rewards).operations)


# --- Actions ---


@pytest.mark.parametrize("algorithm", [SAC, PPO])
def test_mean_and_standard_deviation(algorithm):
    model = known(algorithm)
    graph, given = decision_of(model, distribution=True), observations(model)
    values = graph.evaluate(arrays(graph, given))
    tensor = model.policy.obs_to_tensor(given)[0]
    with th.no_grad():
        if algorithm is SAC:
            mean, log_std, _ = model.policy.actor.get_action_dist_params(tensor)
            std = log_std.exp()
        else:
            found = model.policy.get_distribution(tensor).distribution
            mean, std = found.mean, found.stddev
    assert np.allclose(values[graph.outputs["mean"]], mean.numpy(), atol=2e-6)
    assert np.allclose(values[graph.outputs["std"]], std.numpy(), rtol=1e-5)
    assert np.allclose(values[graph.outputs["action"]], model.predict(given, deterministic=True)[0], atol=2e-6)


@pytest.mark.parametrize(
    ("algorithm", "kwargs", "said"),
    [
        (TD3, {}, "deterministic"),
        (DQN, {}, "no distribution"),
        (MaskablePPO, {}, "only a Gaussian"),
        (PPO, {"use_sde": True}, "gSDE"),
        (SAC, {"use_sde": True}, "gSDE"),
    ],
)
def test_a_distribution_that_there_is_not_is_refused(algorithm, kwargs, said):
    with pytest.raises(ValueError, match=said):
        decision_of(model_of(algorithm, **kwargs), distribution=True)


def test_masks_forbid_choices_as_in_maskable_ppo():
    model = known(MaskablePPO)
    graph, given = decision_of(model), observations(model)
    assert isinstance(graph.chooser, ArgMax)
    masks = np.random.default_rng(0).random((len(given), 3)) < 0.5
    masks[:, 0] |= ~masks.any(axis=1)
    expected, _ = model.predict(given, deterministic=True, action_masks=masks)
    free, _ = model.predict(given, deterministic=True)
    assert (expected != free).any()
    values = graph.evaluate(arrays(graph, given), masks)
    assert np.array_equal(values[graph.outputs["action"]].ravel(), expected)
    if compiled.module is not None:
        assert np.array_equal(CompiledRunner(graph)(arrays(graph, given), masks).ravel(), expected)


def test_the_bernoulli_threshold_is_where_torch_rounds():
    threshold = np.float32(bernoulli_threshold())
    above = np.nextafter(threshold, np.float32(1))
    probabilities = th.sigmoid(th.tensor([threshold, above]))
    assert th.round(probabilities).tolist() == [0, 1]


# --- What cannot be exported is named ---


class OwnExtractor(BaseFeaturesExtractor):
    def __init__(self, observation_space):
        super().__init__(observation_space, 7)

    def forward(self, observations):
        return observations


def with_layer(layer):
    model = make_model(TD3)
    model.policy.actor.mu[1] = layer
    return model


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: make_model(CrossQ), "SparseCrossQPolicy, which cannot be exported; supported are those of TD3"),
        (lambda: make_model(RecurrentPPO), "recurrent"),
        (lambda: with_layer(nn.GELU()), "layer 'actor.mu.1' is a GELU, which cannot be exported; supported are: Conv2d"),
        (lambda: with_layer(nn.LayerNorm(16)), "layer 'actor.mu.1' is a LayerNorm"),
        (lambda: with_layer(nn.Flatten(0)), "must flatten everything"),
        (
            lambda: make_model(TD3, policy_kwargs=dict(features_extractor_class=OwnExtractor)),
            "features extractor is a OwnExtractor",
        ),
        (
            lambda: make_model(DQN, env=SpacesEnv(spaces.Box(-1, 1, (3,)), spaces.Discrete(3, start=1))),
            r"Discrete\(3, start=1\), which cannot be exported: its values must start at 0",
        ),
        (
            lambda: make_model(PPO, "MultiInput", env=SpacesEnv(spaces.Dict({"a-b": spaces.Discrete(3)}), spaces.Discrete(2))),
            "key 'a-b' cannot be exported",
        ),
    ],
)
def test_what_cannot_be_exported_is_named(make, said):
    with pytest.raises(ValueError, match=said):
        decision_of(make())


def test_a_network_that_has_diverged_or_seen_no_data_is_refused():
    model = make_model(TD3)
    with th.no_grad():
        model.policy.actor.mu[2].weight[0, 0] = np.nan
    with pytest.raises(ValueError, match=r"layer 'actor.mu.2' has values that are not finite"):
        decision_of(model)
    model = known(TD3, "Mlp", 8)
    fresh = make_model(TD3)
    from sb3_sparse.quantization.fake_quantizer import Quantizer

    fresh.policy.actor.mu[0].set_quantizer(Quantizer())
    with pytest.raises(ValueError, match="has no range for its inputs yet"):
        decision_of(fresh)
    assert decision_of(model)


def test_what_hooks_do_is_noticed():
    model = make_model(TD3)
    graph = decision_of(model)
    require_same_decision(model, graph, None)
    model.policy.actor.mu[0].register_forward_hook(lambda module, inputs, output: output + 1)
    with pytest.raises(ValueError, match="decides otherwise than its layers say"):
        require_same_decision(model, decision_of(model), None)


def test_a_graph_shares_nothing_with_its_model():
    model = make_model(TD3)
    graph, given = decision_of(model), observations(model)
    before = graph_actions(graph, given)
    with th.no_grad():
        for parameter in model.policy.parameters():
            parameter.zero_()
    assert np.array_equal(graph_actions(graph, given), before)
