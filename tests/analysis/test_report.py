"""The report counts what is there, and its FLOPs are torch's own at sparsity 0."""

import json
import math

import numpy as np
import pytest
import torch as th
from sb3_contrib import CrossQ, RecurrentPPO
from stable_baselines3 import A2C, DQN, PPO, SAC, TD3
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from sb3_sparse import SparsityLogger, quantize, sparsity_report
from sb3_sparse.analysis.flops import Flops
from tests.helpers import SUPPORTED, SUPPORTED_IDS, make_model

# torch's counter does not see the fused LSTM; its share is checked by hand below
COUNTED = [pair for pair in SUPPORTED if pair[0] is not RecurrentPPO]
COUNTED_IDS = [name for name in SUPPORTED_IDS if not name.startswith("RecurrentPPO")]


def measured_training_flops(model) -> float:
    """torch's own count of the real ``train()``, per gradient step."""
    if isinstance(model, OffPolicyAlgorithm):
        n_steps = 4  # a multiple of every policy_delay used here
        with FlopCounterMode(display=False) as counter:
            model.train(gradient_steps=n_steps, batch_size=model.batch_size)
        return counter.get_total_flops() / n_steps
    before = model.policy.sparsifier.n_steps("policy")
    with FlopCounterMode(display=False) as counter:
        model.train()
    return counter.get_total_flops() / (model.policy.sparsifier.n_steps("policy") - before)


@pytest.mark.parametrize(("algorithm", "kind"), COUNTED, ids=COUNTED_IDS)
def test_flops_at_sparsity_zero_equal_torchs_counter(algorithm, kind):
    kwargs = {"policy_delay": 2} if algorithm is CrossQ else {}
    model = make_model(algorithm, kind, policy_kwargs=dict(sparsity=0.0), **kwargs)
    model.learn(32)
    report = sparsity_report(model)
    assert report.training is not None
    assert report.training.sparse == report.training.dense == pytest.approx(measured_training_flops(model), rel=1e-12)
    obs, _ = model.policy.obs_to_tensor(model.observation_space.sample())
    with FlopCounterMode(display=False) as counter, th.no_grad():
        model.policy._predict(obs, deterministic=True)
    assert report.inference.sparse == report.inference.dense == counter.get_total_flops()


@pytest.mark.parametrize("algorithm", [TD3, SAC, DQN, PPO])
@pytest.mark.parametrize("share", [True, False])
def test_flops_with_shared_and_separate_extractors(algorithm, share):
    if algorithm is DQN and share:
        pytest.skip("DQN has one network")
    policy_kwargs = dict(sparsity=0.0) | ({} if algorithm is DQN else dict(share_features_extractor=share))
    model = make_model(algorithm, "Cnn", policy_kwargs=policy_kwargs)
    model.learn(32)
    assert sparsity_report(model).training.dense == pytest.approx(measured_training_flops(model), rel=1e-12)


def test_flops_of_a_hand_counted_td3():
    model = make_model(TD3, policy_kwargs=dict(sparsity={"actor": 0.5, "critic": 0.75}, net_arch=[16]), batch_size=8)
    report = sparsity_report(model)
    # actor 7-16-2: 144 weights, 72 kept; each critic 9-16-1: 160 weights, 40 kept
    assert report.inference == Flops(2 * 72, 2 * 144)
    first = model.policy.sparsifier.layers["critic.qf0.0"].n_active
    last = model.policy.sparsifier.layers["critic.qf0.2"].n_active
    actor_last = model.policy.sparsifier.layers["actor.mu.2"].n_active
    targets = 72 + 80
    # forward, weight gradients of all layers, input gradients of all but the first
    critic = 80 + 80 + 2 * last
    # every second step: actor forward, its weight gradients, input gradients of its last layer, and q1 both ways in full
    actor = 72 + 72 + actor_last + 3 * (first + last)
    assert report.training.sparse == 2 * 8 * (targets + critic + actor / 2)


def test_lstm_is_counted_dense():
    model = make_model(RecurrentPPO, policy_kwargs=dict(sparsity=0.5, lstm_hidden_size=8, net_arch=[16]))
    report = sparsity_report(model)
    lstm = 4 * 8 * (7 + 8)
    actor = 8 * 16 + 16 * 2
    assert report.inference == Flops(2 * (lstm + actor / 2), 2 * (lstm + actor))
    # log_std belongs to no network but to the total
    outside = 2
    assert report.networks["actor"].n_left_out == lstm
    assert report.networks["actor"].sparsity == pytest.approx(actor / 2 / (actor + lstm))
    assert report.online.n_parameters_dense == sum(size.n_parameters_dense for size in report.networks.values()) + outside


@pytest.mark.parametrize(("algorithm", "kind"), SUPPORTED, ids=SUPPORTED_IDS)
def test_sizes_add_up(algorithm, kind):
    model = make_model(algorithm, kind, policy_kwargs=dict(sparsity=0.7))
    report = sparsity_report(model)
    assert report.total.n_parameters_dense == sum(parameter.numel() for parameter in model.policy.parameters())
    non_zero = sum(int((layer.weight != 0).sum()) for layer in model.policy.sparsifier.layers.values())
    n_left_out = sum(one.n_weights for one in report.left_out)
    assert report.online.n_active - n_left_out == non_zero == sum(layer.n_active for layer in report.layers)
    assert (n_left_out > 0) == (algorithm is RecurrentPPO)
    n_prunable = report.online.n_weights - n_left_out
    assert report.online.sparsity == pytest.approx(0.7 * n_prunable / report.online.n_weights, abs=1e-2)
    assert report.online.bytes_dense > report.online.bytes_with_indices > report.online.bytes


def test_targets_are_counted_once_when_shared():
    model = make_model(TD3, "Cnn", policy_kwargs=dict(sparsity=0.7, share_features_extractor=True))
    report = sparsity_report(model)
    assert report.total.n_parameters == 2 * report.online.n_parameters
    assert set(report.networks) >= {"actor", "critic", "features_extractor", "actor (target)", "critic (target)"}


def test_formats():
    report = sparsity_report(make_model(A2C, policy_kwargs=dict(sparsity=0.7)))
    table, markdown, plain = str(report), report.to_markdown(), json.loads(report.to_json())
    for layer in report.layers:
        assert layer.name in table
        assert f"| {layer.name} |" in markdown
    assert plain["online"]["bytes_with_indices"] == report.online.bytes_with_indices
    assert [layer["n_active"] for layer in plain["layers"]] == [layer.n_active for layer in report.layers]
    rows = [line for line in markdown.splitlines() if line]
    assert all(row.startswith("| ") and row.endswith(" |") for row in rows)


class GruExtractor(BaseFeaturesExtractor):
    """A features extractor without a layer that could be sparse."""

    def __init__(self, observation_space):
        super().__init__(observation_space, 6)
        self.gru = nn.GRUCell(7, 6)

    def forward(self, values):
        return self.gru(values)


@pytest.mark.parametrize("algorithm", [PPO, TD3])
def test_a_network_in_which_nothing_can_be_sparse(algorithm):
    kwargs = dict(sparsity=0.5, features_extractor_class=GruExtractor, share_features_extractor=True)
    model = make_model(algorithm, policy_kwargs=kwargs)
    report = sparsity_report(model)
    extractor = report.networks["features_extractor"]
    n_weights, n_biases = 3 * 6 * (7 + 6), 3 * 6 * 2
    assert (extractor.n_weights, extractor.n_left_out, extractor.n_other) == (n_weights, n_weights, n_biases)
    assert (extractor.sparsity, extractor.papers_ratio) == (0.0, 1.0)
    assert extractor.bytes_with_indices == extractor.bytes_dense == 4 * (n_weights + n_biases)
    assert "features_extractor" in str(report)
    model.learn(20, callback=SparsityLogger())


def test_a_network_without_a_weight():
    model = make_model(DQN, policy_kwargs=dict(sparsity=0.0, net_arch=[4]))
    masks = {name: th.zeros_like(mask) for name, mask in model.policy.sparsifier.masks().items()}
    model.policy.sparsifier.set_masks(masks, replan=True)
    report = sparsity_report(model)
    assert (report.online.sparsity, report.online.papers_ratio) == (1.0, math.inf)
    plain = json.loads(report.to_json(), parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))
    assert plain["online"]["papers_ratio"] is None


def test_dense_model_is_refused():
    with pytest.raises(TypeError, match="SparseMlpPolicy"):
        sparsity_report(make_model(TD3, sparse=False))


def test_bytes_by_hand():
    model = make_model(DQN, policy_kwargs=dict(distribution={"q_net.q_net.2": 0.75}, net_arch=[16, 16]))
    layers = {layer.name: layer for layer in sparsity_report(model).layers}
    first, second = layers["q_net.q_net.0"], layers["q_net.q_net.2"]
    assert (first.encoding, first.index_bytes, first.packed_bytes) == ("dense", 0, 4 * 7 * 16)
    # 64 of 256 weights: a bitmap takes 32 bytes, rows 4 * 17 + 2 * 64, a gap for each 64 at least, as Rice code about 3.4 bits
    assert (second.encoding, second.index_bytes, second.packed_bytes) == ("rice", 27, 4 * 64 + 27)
    size = sparsity_report(model).networks["q_net"]
    others = 16 + 16 + 3
    assert size.bytes == 4 * (112 + 64 + 48 + others)
    assert size.bytes_with_indices == size.bytes + 27
    assert size.papers_ratio == (112 + 256 + 48) / (112 + 64 + 48)
    assert size.real_ratio == 4 * (112 + 256 + 48 + others) / size.bytes_with_indices


def test_quantized_layers_say_their_bits():
    model = make_model(DQN, policy_kwargs=dict(sparsity=0.9, distribution="uniform", net_arch=[64, 64]))
    dense_ratio = sparsity_report(model).networks["q_net"].papers_ratio
    assert dense_ratio == pytest.approx(10, rel=1e-3)
    data = np.random.default_rng(0).uniform(-1, 1, (64, *model.observation_space.shape)).astype(np.float32)
    report = sparsity_report(quantize(model, data=data))
    # The compression paper's introduction: 10 % of the weights in 8 bits are 40 times smaller
    assert report.networks["q_net"].papers_ratio == pytest.approx(40, rel=1e-3)
    layer = next(layer for layer in report.layers if layer.name == "q_net.q_net.2")
    # The scales of 64 outputs, and of the inputs a scale and a zero point of 8 bits
    assert layer.scale_bytes == 4 * 64 + 4 + 1
    assert layer.packed_bytes == layer.n_active + layer.index_bytes + layer.scale_bytes
    for input_bits, n_bytes in ((16, 4 + 2), (3, 4 + 1), ("float", 0)):
        first, *_ = sparsity_report(quantize(model, 4, input_bits=input_bits, data=data)).layers
        assert first.scale_bytes == 4 * 64 + n_bytes


def test_dead_units_are_counted():
    model = make_model(DQN, policy_kwargs=dict(sparsity=0.0))
    masks = model.policy.sparsifier.masks()
    masks["q_net.q_net.0"][[2, 5]] = False  # no inputs
    masks["q_net.q_net.2"][:, [7, 8, 9]] = False  # no outputs
    model.policy.sparsifier.set_masks(masks, replan=True)
    first, second, last = sparsity_report(model).layers
    assert (first.no_inputs, first.no_outputs) == (2, 3)
    assert (second.no_inputs, second.no_outputs) == (0, 0)
    assert (last.no_inputs, last.no_outputs) == (None, None)
    assert "2 + 3" in str(sparsity_report(model))
    crossq = sparsity_report(make_model(CrossQ, policy_kwargs=dict(sparsity=0.9)))
    assert all(layer.no_inputs is None for layer in crossq.layers)
