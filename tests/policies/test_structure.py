"""Custom architectures: layers are found by what they do, what is left out is said, and nothing is bypassed silently."""

import copy
import random
import warnings

import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from sb3_contrib import CrossQ, RecurrentPPO
from stable_baselines3 import A2C, DQN, PPO, SAC, TD3
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from stable_baselines3.td3.policies import Actor, TD3Policy
from torch import nn
from torch.nn import functional as F
from torch.nn.utils import prune

from sb3_sparse import QuantizationAware, SparsePolicyMixin, quantize, sparse_policy, sparsify, sparsity_report
from sb3_sparse.policies import SPARSE_POLICIES
from sb3_sparse.policies.structure import find_structure
from tests.helpers import (
    SUPPORTED,
    SUPPORTED_IDS,
    RandomEnv,
    assert_invariants,
    equal_state,
    make_model,
    observations,
    save_and_load,
    shuffle_masks,
    watched,
)

# --- Networks of the on-policy algorithms ---


class Towers(nn.Module):
    """An ``mlp_extractor`` with a shared trunk and names of its own."""

    latent_dim_pi, latent_dim_vf = 12, 10

    def __init__(self, features_dim):
        super().__init__()
        # Registered in another order than they run
        self.to_values = nn.Sequential(nn.Linear(16, 10), nn.Tanh())
        self.to_actions = nn.Sequential(nn.Linear(16, 12), nn.Tanh())
        self.trunk = nn.Sequential(nn.Linear(features_dim, 16), nn.ReLU())

    def forward(self, features):
        return self.forward_actor(features), self.forward_critic(features)

    def forward_actor(self, features):
        return self.to_actions(self.trunk(features))

    def forward_critic(self, features):
        return self.to_values(self.trunk(features))


class OwnPolicy(ActorCriticPolicy):
    def _build_mlp_extractor(self):
        self.mlp_extractor = Towers(self.features_dim)


class SparseOwnPolicy(SparsePolicyMixin, OwnPolicy):
    pass


def own_model(algorithm=PPO, policy=SparseOwnPolicy, **policy_kwargs):
    kwargs = dict(n_steps=16, batch_size=8, n_epochs=2) if algorithm is PPO else dict(n_steps=8)
    return algorithm(policy, RandomEnv(), policy_kwargs=policy_kwargs, seed=0, device="cpu", **kwargs)


@pytest.mark.parametrize("algorithm", [PPO, A2C])
def test_a_shared_trunk_and_towers_with_own_names(algorithm, monkeypatch, tmp_path):
    model = own_model(algorithm, sparsity=0.7)
    sparsifier = model.policy.sparsifier
    assert sparsifier.networks == {
        "features_extractor": ["mlp_extractor.trunk.0"],
        "actor": ["mlp_extractor.to_actions.0", "action_net"],
        "critic": ["mlp_extractor.to_values.0", "value_net"],
    } or sorted(sparsifier.networks) == ["actor", "critic", "features_extractor"]
    assert sparsifier.networks["actor"] == ["mlp_extractor.to_actions.0", "action_net"]  # from the observation on
    assert [sparsifier.plan[name].info.depth for name in sparsifier.networks["critic"]] == [0, 1]
    report = sparsity_report(model)
    total = sum(p.numel() for p in model.policy.parameters() if p.ndim > 1)
    zeros = sum(int((p == 0).sum()) for p in model.policy.parameters() if p.ndim > 1)
    assert report.online.n_weights == total
    assert report.online.sparsity == pytest.approx(zeros / total) == pytest.approx(0.7, abs=0.01)
    shuffled = shuffle_masks(model)
    with watched(model, monkeypatch) as met:
        model.learn(48)
    shuffled.remove()
    assert met["step"] > 0
    save_and_load(model, tmp_path)


def test_sparsity_zero_is_the_stock_policy_bit_by_bit(auto_engine):
    stock, sparse = own_model(policy=OwnPolicy).learn(48), own_model(sparsity=0.0).learn(48)
    assert equal_state(stock, sparse, ignore_masks=True)


def test_watching_a_policy_moves_no_random_stream():
    def streams():
        return th.get_rng_state(), random.getstate(), np.random.get_state()[1].copy()

    results = []
    for policy, kwargs in ((OwnPolicy, {}), (SparseOwnPolicy, dict(sparsity=0.7))):
        own_model(policy=policy, **kwargs)
        results.append(streams())
    assert th.equal(results[0][0], results[1][0])
    assert results[0][1] == results[1][1]
    assert np.array_equal(results[0][2], results[1][2])


def test_what_a_given_agent_is_made_of_is_what_a_new_one_would_be():
    dense = own_model(policy=OwnPolicy).learn(32)
    model = sparsify(dense, 0.7, policy_class=SparseOwnPolicy)
    assert model.policy.sparsifier.n_planned == own_model(sparsity=0.7).policy.sparsifier.n_planned
    assert_invariants(model)


def test_quantization_leaves_no_layer_of_the_actor_in_float():
    model = own_model(sparsity=0.5).learn(32)
    quantized = quantize(model, data=observations(model))
    layers = {name for name, layer in quantized.policy.sparsifier.layers.items() if layer.quantizer is not None}
    assert layers == {"mlp_extractor.trunk.0", "mlp_extractor.to_actions.0", "action_net"}
    for name in layers:
        layer = quantized.policy.sparsifier.layers[name]
        layer.ran = False
    quantized.predict(observations(model))
    assert all(quantized.policy.sparsifier.layers[name].ran for name in layers)


# --- A policy that holds more than the stock one ---


class TrunkPolicy(ActorCriticPolicy):
    """Layers of its own in front, behind, and for training alone."""

    def _build(self, lr_schedule):
        self.front = nn.Linear(self.features_dim, self.features_dim)
        self.auxiliary = nn.Linear(self.features_dim, 5)
        super()._build(lr_schedule)

    def extract_features(self, obs, features_extractor=None):
        features = super().extract_features(obs, features_extractor)
        return th.relu(self.front(features))


class SparseTrunkPolicy(SparsePolicyMixin, TrunkPolicy):
    pass


def test_layers_of_the_policy_itself():
    model = own_model(policy=SparseTrunkPolicy, sparsity=0.5)
    networks = model.policy.sparsifier.networks
    assert networks["features_extractor"] == ["front"]
    assert networks["auxiliary"] == ["auxiliary"]  # an optimizer trains it
    model.learn(32)
    assert_invariants(model)


class Refusing(TrunkPolicy):
    """Takes no observation that the environment did not give."""

    def extract_features(self, obs, features_extractor=None):
        if not getattr(self, "is_awake", False):
            raise RuntimeError("not now")
        return super().extract_features(obs, features_extractor)


class SparseRefusing(SparsePolicyMixin, Refusing):
    pass


def test_a_policy_that_cannot_be_watched_goes_by_its_optimizer():
    model = own_model(policy=SparseRefusing, sparsity=0.5)
    assert set(model.policy.sparsifier.networks["features_extractor"]) == {"front", "auxiliary"}
    model.policy.is_awake = True
    model.learn(32)
    assert_invariants(model)


# --- Off-policy: own actors and critics ---


class OwnActor(Actor):
    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        width = self.features_dim
        self.body = nn.ModuleDict({"first": nn.Linear(width, 16), "second": nn.Linear(16, 16)})
        self.mu = nn.Linear(16, self.action_space.shape[0])

    def forward(self, obs):
        x = th.relu(self.body["first"](self.extract_features(obs, self.features_extractor)))
        return th.tanh(self.mu(th.relu(self.body["second"](x))))


class OwnActorPolicy(TD3Policy):
    def make_actor(self, features_extractor=None):
        kwargs = self._update_features_extractor(self.actor_kwargs, features_extractor)
        return OwnActor(**kwargs).to(self.device)


class SparseOwnActorPolicy(SparsePolicyMixin, OwnActorPolicy):
    pass


def test_an_actor_of_ones_own(monkeypatch, tmp_path):
    model = make_model(TD3)
    model = TD3(SparseOwnActorPolicy, RandomEnv(), policy_kwargs=dict(sparsity=0.7), learning_starts=20, device="cpu", seed=0)
    assert model.policy.sparsifier.networks["actor"] == ["actor.mu", "actor.body.first", "actor.body.second"]
    shuffle_masks(model)
    with watched(model, monkeypatch) as met:
        model.learn(60)
    assert met["polyak"] > 0


# --- What is left out ---


class OwnLinear(nn.Linear):
    def forward(self, x):
        return 2 * super().forward(x)


class Zoo(BaseFeaturesExtractor):
    """Everything that has weights and is no Linear or Conv2d."""

    def __init__(self, observation_space):
        super().__init__(observation_space, 8)
        width = observation_space.shape[0]
        self.matrix = nn.Parameter(th.randn(width, 8) / 3)
        self.conv = nn.Conv1d(1, 2, 3, padding=1)
        self.own = OwnLinear(2 * width, 8)
        self.lstm = nn.LSTM(8, 8, batch_first=True)
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.embedding = nn.Embedding(4, 8)
        self.norm = nn.LayerNorm([1, 8])
        self.head = nn.Linear(8, 8)

    def forward(self, x):
        y = x @ self.matrix + self.own(self.conv(x.unsqueeze(1)).flatten(1)) + self.embedding.weight[0]
        y, _ = self.lstm(y.unsqueeze(1))
        y, _ = self.attention(y, y, y)
        return self.head(self.norm(y).flatten(1))


LEFT_OUT = {
    "": ("Zoo", 7 * 8),
    ".conv": ("Conv1d", 2 * 3),
    ".own": ("OwnLinear", 14 * 8),
    ".lstm": ("LSTM", 2 * 4 * 8 * 8),
    ".attention": ("MultiheadAttention", 3 * 8 * 8),
    ".attention.out_proj": ("NonDynamicallyQuantizableLinear", 8 * 8),
    ".embedding": ("Embedding", 4 * 8),
}


@pytest.mark.parametrize(("algorithm", "extractor"), [(TD3, "actor.features_extractor"), (PPO, "features_extractor")])
def test_what_cannot_be_sparse_is_said_at_creation_and_in_the_report(algorithm, extractor):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        model = make_model(algorithm, policy_kwargs=dict(sparsity=0.8, features_extractor_class=Zoo))
    (message,) = [str(one.message) for one in caught if "stay dense" in str(one.message)]
    report = sparsity_report(model)
    found = {one.name: (one.kind, one.n_weights) for one in report.left_out if one.name.startswith(extractor)}
    assert found == {f"{extractor}{name}": value for name, value in LEFT_OUT.items()}
    n_left_out = sum(one.n_weights for one in report.left_out)
    assert message.startswith(f"{n_left_out / report.online.n_weights:.1%} of the policy's weights stay dense")
    lstm = next(one for one in report.left_out if one.kind == "LSTM")
    assert f"{lstm.name} (LSTM, {lstm.n_weights / report.online.n_weights:.1%}: only nn.Linear and nn.Conv2d" in message
    assert "a subclass of nn.Linear may have a forward of its own" in message
    # The percentage is of all weights
    online = [p for name, p in model.policy.named_parameters() if "target" not in name and p.ndim > 1 and "norm" not in name]
    assert report.online.n_weights == sum(p.numel() for p in online)
    assert report.online.sparsity == pytest.approx(sum(int((p == 0).sum()) for p in online) / report.online.n_weights)
    assert report.online.n_left_out == n_left_out
    for text in (str(report), report.to_markdown(), report.to_json()):
        assert "NonDynamicallyQuantizableLinear" in text
    assert report.to_dict()["left_out"][0]["network"] == report.left_out[0].network
    assert report.inference.dense > 2 * sum(p.numel() for p in online if "attention" in str(p))
    with pytest.raises(ValueError, match=r"is a .*, which cannot be quantized: only nn.Linear and nn.Conv2d can"):
        quantize(model, data=observations(model))
    model.learn(24)
    assert_invariants(model)


def test_nothing_is_said_where_nothing_is_left_out_or_pruned():
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*stay dense.*")
        for algorithm, kind in ((TD3, "Cnn"), (SAC, "MultiInput"), (CrossQ, "Mlp"), (PPO, "Mlp")):
            kwargs = dict(use_sde=True) if algorithm is PPO else {}
            make_model(algorithm, kind, policy_kwargs=dict(sparsity=0.8), **kwargs)
        make_model(RecurrentPPO, policy_kwargs=dict(sparsity=0.0))
    with pytest.warns(UserWarning, match=r"stay dense.*lstm_actor \(LSTM.*lstm_critic \(LSTM"):
        make_model(RecurrentPPO, policy_kwargs=dict(sparsity=0.5))


def test_flops_of_what_is_left_out_are_counted():
    policy_kwargs = dict(sparsity=0.0, features_extractor_class=Zoo, net_arch=[4])
    report = sparsity_report(make_model(DQN, policy_kwargs=policy_kwargs))
    products = {
        "matrix": 7 * 8,
        "conv": 2 * 3 * 7,
        "own": 14 * 8,
        "lstm": 2 * 4 * 8 * 8,
        "attention": 4 * 8 * 8,
        "head": 8 * 8 + 8 * 4 + 4 * 3,
    }
    # Attention over a sequence of one adds a product of 1 x 8 by 8 x 1, and back
    assert report.inference.dense == pytest.approx(2 * (sum(products.values()) + 2 * 8), abs=2 * 2 * 8)
    assert report.training.dense > 2 * report.inference.dense


# --- Parametrised layers ---

PARAMETRISED = {
    "weight_norm": nn.utils.parametrizations.weight_norm,
    "spectral_norm": nn.utils.parametrizations.spectral_norm,
    "orthogonal": nn.utils.parametrizations.orthogonal,
    "old weight_norm": nn.utils.weight_norm,
    "old spectral_norm": nn.utils.spectral_norm,
    "prune": lambda layer: prune.l1_unstructured(layer, "weight", 0.5),
}


class Parametrised(BaseFeaturesExtractor):
    def __init__(self, observation_space, how="weight_norm"):
        super().__init__(observation_space, 8)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            self.first = PARAMETRISED[how](nn.Linear(observation_space.shape[0], 8))
        self.second = nn.Linear(8, 8)

    def forward(self, x):
        return self.second(th.relu(self.first(x)))


@pytest.mark.parametrize("how", PARAMETRISED)
@pytest.mark.parametrize("algorithm", [TD3, PPO])
def test_parametrised_layers_stay_dense_and_are_named(algorithm, how, tmp_path):
    kwargs = dict(features_extractor_class=Parametrised, features_extractor_kwargs=dict(how=how), sparsity=0.7)
    reason = "is made by a parametrisation" if "old" not in how and how != "prune" else "is made of other parameters"
    with pytest.warns(UserWarning, match=rf"stay dense.*features_extractor.first \(.*Linear.*its weight {reason}"):
        model = make_model(algorithm, policy_kwargs=kwargs)
    assert not any(name.endswith(".first") for name in model.policy.sparsifier.layers)
    assert any(name.endswith(".second") for name in model.policy.sparsifier.layers)
    model.learn(48)
    assert_invariants(model)
    assert all(bool(th.isfinite(p).all()) for p in model.policy.parameters())
    save_and_load(model, tmp_path)


def test_a_policy_of_nothing_else_says_why():
    class Extractor(BaseFeaturesExtractor):
        def __init__(self, observation_space):
            super().__init__(observation_space, 3)
            self.only = nn.utils.parametrizations.weight_norm(nn.Linear(observation_space.shape[0], 3))

        def forward(self, x):
            return self.only(x)

    class Net(DQN.policy_aliases["MlpPolicy"]):
        def make_q_net(self):
            net = super().make_q_net()
            net.q_net = nn.Sequential()
            return net

    class SparseNet(SparsePolicyMixin, Net):
        pass

    with pytest.raises(ValueError, match=r"no nn.Linear or nn.Conv2d layer that could be made sparse.*parametrisation"):
        DQN(SparseNet, RandomEnv(discrete=True), policy_kwargs=dict(features_extractor_class=Extractor), device="cpu")


def test_lazy_layers_are_refused():
    class Lazy(BaseFeaturesExtractor):
        def __init__(self, observation_space):
            super().__init__(observation_space, 8)
            self.net = nn.LazyLinear(8)

        def forward(self, x):
            return self.net(x)

    # Torch itself refuses the optimizer or the copy to a target
    with pytest.raises((ValueError, RuntimeError), match=r"lazy ones cannot be made sparse|[Uu]ninitialized"):
        make_model(TD3, policy_kwargs=dict(features_extractor_class=Lazy))


# --- Containers ---


def critic_policy(container, registered=True):
    """A TD3 policy whose critic holds its q-networks in another container."""
    base = TD3Policy

    class ContainerPolicy(base):
        def make_critic(self, features_extractor=None):
            critic = super().make_critic(features_extractor)
            networks = list(critic.q_networks)
            if container is nn.ModuleList or container is nn.ModuleDict:
                for index in range(len(networks)):
                    delattr(critic, f"qf{index}")
                del critic.q_networks
            if container in (dict, nn.ModuleDict):
                critic.q_networks = container({f"q{index}": network for index, network in enumerate(networks)})
                critic.forward = lambda obs, actions: tuple(
                    network(th.cat([critic.extract_features(obs, critic.features_extractor), actions], dim=1))
                    for network in critic.q_networks.values()
                )
                critic.q1_forward = lambda obs, actions: critic.forward(obs, actions)[0]
            else:
                critic.q_networks = container(networks)
            return critic

    class SparseContainerPolicy(SparsePolicyMixin, ContainerPolicy):
        pass

    return SparseContainerPolicy


@pytest.mark.parametrize("engine", ["torch", "native", "auto"])
@pytest.mark.parametrize("container", [list, tuple, dict, nn.ModuleList, nn.ModuleDict])
def test_critics_that_hold_their_networks_in_any_container(container, engine, monkeypatch):
    monkeypatch.setenv("SB3_SPARSE_ENGINE", engine)
    kwargs = dict(sparsity=0.7, net_arch=[16, 12])
    model = TD3(critic_policy(container), RandomEnv(), policy_kwargs=kwargs, learning_starts=20, device="cpu", seed=0)
    names = model.policy.sparsifier.networks["critic"]
    assert len(names) == 6
    assert [model.policy.sparsifier.plan[name].info.depth for name in names] == [0, 0, 1, 1, 2, 2]
    shuffle_masks(model)
    with watched(model, monkeypatch) as met:
        model.learn(48)
    assert met["step"] > 0


class Unregistered(TD3Policy):
    """A network in a plain list that no module registers, but an optimizer trains."""

    def _build(self, lr_schedule):
        super()._build(lr_schedule)
        self.__dict__["hidden"] = [nn.Linear(7, 7)]
        self.actor.optimizer.add_param_group({"params": list(self.hidden[0].parameters())})


class SparseUnregistered(SparsePolicyMixin, Unregistered):
    pass


def test_weights_outside_of_all_modules_are_said():
    with pytest.warns(UserWarning, match=r"\(in no module\) \(Parameter.*the optimizer of 'actor' trains it, but no module"):
        model = TD3(SparseUnregistered, RandomEnv(), policy_kwargs=dict(sparsity=0.7), device="cpu")
    report = sparsity_report(model)
    assert report.online.n_left_out == 49


def test_a_target_that_is_built_differently_is_refused():
    class Odd(TD3Policy):
        def _build(self, lr_schedule):
            super()._build(lr_schedule)
            self.actor_target.mu = nn.Sequential(nn.Linear(7, 2), nn.Tanh())

    class SparseOdd(SparsePolicyMixin, Odd):
        pass

    with pytest.raises(ValueError, match=r"actor_target has no layer 'mu.2' like that of actor"):
        TD3(SparseOdd, RandomEnv(), policy_kwargs=dict(net_arch=[8]), device="cpu")


# --- What bypasses a layer's forward ---


class Functional(BaseFeaturesExtractor):
    """Uses one layer's weight functionally, one both ways, and calls one."""

    def __init__(self, observation_space):
        super().__init__(observation_space, 8)
        self.functional = nn.Linear(observation_space.shape[0], 8)
        self.both = nn.Linear(8, 8)
        self.called = nn.Linear(8, 8)

    def forward(self, x):
        x = F.linear(x, self.functional.weight, self.functional.bias)
        return self.called(self.both(x) @ self.both.weight.t())


@pytest.mark.parametrize("algorithm", [TD3, DQN, PPO])
def test_functional_calls_are_pruned_and_not_quantized(algorithm, monkeypatch):
    model = make_model(algorithm, policy_kwargs=dict(sparsity=0.5, features_extractor_class=Functional))
    bypassed = {name.rpartition(".")[2] for name in model.policy.structure.bypassed}
    assert bypassed == {"functional", "both"}
    shuffled = shuffle_masks(model)
    with watched(model, monkeypatch):
        model.learn(40)
    shuffled.remove()
    with pytest.raises(ValueError, match=r"functional' cannot be quantized: its weight is used outside"):
        quantize(model, data=observations(model))
    with pytest.raises(ValueError, match=r"cannot be quantized: its weight is used outside of its forward"):
        model.learn(10, callback=QuantizationAware(begin=0))
    exempt = ["*.functional", "*.both"]
    quantized = quantize(model, data=observations(model), exempt_layers=exempt)
    assert any(layer.quantizer is not None for layer in quantized.policy.sparsifier.layers.values())


class EvaluationOnly(BaseFeaturesExtractor):
    """A fused pass of one's own where torch's would be: in evaluation without gradients."""

    def __init__(self, observation_space):
        super().__init__(observation_space, 8)
        self.net = nn.Linear(observation_space.shape[0], 8)

    def forward(self, x):
        if not self.training and not th.is_grad_enabled():
            return x @ self.net.weight.t() + self.net.bias
        return self.net(x)


def test_a_fused_pass_of_ones_own_is_found():
    model = make_model(TD3, policy_kwargs=dict(sparsity=0.5, features_extractor_class=EvaluationOnly))
    assert any(name.endswith("net") for name in model.policy.structure.bypassed)
    with pytest.raises(ValueError, match="cannot be quantized: its weight is used outside of its forward"):
        quantize(model, data=observations(model))


def test_targets_cannot_keep_their_own_masks_where_weights_are_read_past_them():
    model = make_model(TD3, policy_kwargs=dict(sparsity=0.5, features_extractor_class=Functional))
    with pytest.raises(ValueError, match=r"`target`='own_topk' cannot be had for layer .*functional"):
        model.policy.sparsifier.set_target_masks("actor", "own_topk")


class Tied(BaseFeaturesExtractor):
    def __init__(self, observation_space):
        super().__init__(observation_space, 7)
        self.first, self.second = nn.Linear(7, 7), nn.Linear(7, 7)
        self.second.weight = self.first.weight

    def forward(self, x):
        return self.second(th.tanh(self.first(x)))


def test_layers_that_share_a_weight_stay_dense(tmp_path):
    with pytest.warns(UserWarning, match=r"first \(Linear.*its weight is that of .*second, too"):
        model = make_model(TD3, policy_kwargs=dict(sparsity=0.5, features_extractor_class=Tied))
    assert not any("features_extractor" in name for name in model.policy.sparsifier.layers)
    model.learn(40)
    assert_invariants(model)
    save_and_load(model, tmp_path)


class Transformer(BaseFeaturesExtractor):
    """The observation as a sequence of tokens."""

    def __init__(self, observation_space, padded=False, stack=True):
        super().__init__(observation_space, 8)
        layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True)
        self.embed = nn.Linear(1, 8)
        self.encoder = nn.TransformerEncoder(layer, 2) if stack else layer
        self.padded = padded

    def forward(self, x):
        tokens = self.embed(x.unsqueeze(-1))
        mask = None
        if self.padded:
            mask = th.zeros(tokens.shape[:2], dtype=th.bool, device=x.device)
            mask[:, -2:] = True
        return self.encoder(tokens, src_key_padding_mask=mask)[:, 0]


@pytest.mark.filterwarnings("ignore:.*nested tensors.*")
@pytest.mark.parametrize(("padded", "stack"), [(False, True), (True, True), (False, False), (True, False)])
@pytest.mark.parametrize("algorithm", [TD3, PPO])
def test_a_quantized_transformer_decides_by_its_quantized_layers(algorithm, padded, stack, tmp_path):
    kwargs = dict(
        sparsity=0.5,
        features_extractor_class=Transformer,
        features_extractor_kwargs=dict(padded=padded, stack=stack),
    )
    model = make_model(algorithm, policy_kwargs=kwargs).learn(32)
    attention = ["*.self_attn", "*.self_attn.out_proj"]
    quantized = quantize(model, 4, 4, 4, data=observations(model), exempt_layers=attention)
    for one in (quantized, save_and_load(quantized, tmp_path), sparsify(quantized, 0.6)):
        policy = copy.deepcopy(one.policy)
        layers = {name: layer for name, layer in policy.sparsifier.layers.items() if layer.quantizer is not None}
        assert any("linear1" in name for name in layers)
        for layer in layers.values():
            layer.ran = False
        actions = policy.predict(observations(model), deterministic=True)[0]
        assert all(layer.ran for layer in layers.values())
        # The same without any fused kernel
        enabled = th.backends.mha.get_fastpath_enabled()
        th.backends.mha.set_fastpath_enabled(False)
        try:
            slow = policy.predict(observations(model), deterministic=True)[0]
        finally:
            th.backends.mha.set_fastpath_enabled(enabled)
        assert np.allclose(actions, slow, atol=1e-5)
    assert enabled  # a global switch, which is left alone


@pytest.mark.parametrize("algorithm", [TD3, PPO])
def test_a_pruned_transformer_decides_as_its_slow_path(algorithm):
    """Fused kernels read the weight itself, whose pruned positions are zeros."""
    model = make_model(algorithm, policy_kwargs=dict(sparsity=0.7, features_extractor_class=Transformer)).learn(32)
    fast = model.predict(observations(model), deterministic=True)[0]
    th.backends.mha.set_fastpath_enabled(False)
    try:
        slow = model.predict(observations(model), deterministic=True)[0]
    finally:
        th.backends.mha.set_fastpath_enabled(True)
    assert np.allclose(fast, slow, atol=1e-5)


# --- Stock policies stay what they are ---


@pytest.mark.parametrize(("algorithm", "kind"), SUPPORTED, ids=SUPPORTED_IDS)
def test_stock_policies_are_not_watched(algorithm, kind, monkeypatch):
    import sb3_sparse.policies.structure as structure

    monkeypatch.setattr(structure, "watch", lambda *_: pytest.fail("a stock policy needs no watching"))
    policy = make_model(algorithm, kind).policy
    assert not policy.structure.is_strange
    assert policy.structure.bypassed == frozenset()
    assert {one.kind for one in policy.structure.left_out} == ({"LSTM"} if algorithm is RecurrentPPO else set())
    # The same seen from the stock policy
    assert find_structure(make_model(algorithm, kind, sparse=False).policy).layers == policy.structure.layers


def test_watching_finds_what_the_table_says():
    """Every stock policy, watched as if it were none."""
    from sb3_sparse.policies.usage import watch

    for algorithm in SPARSE_POLICIES:
        policy = sparse_policy(make_model(algorithm))
        usage = watch(policy, list(policy.sparsifier.layers))
        assert usage is not None, algorithm
        assert usage.bypassed == set()
        for name, plan in policy.sparsifier.plan.items():
            weight = f"{name}.weight"
            if plan.info.network == "critic":
                assert weight in usage.judges - usage.decides, name
            else:
                assert weight in usage.decides, name


def test_spaces_are_sampled_by_generators_of_their_own():
    env = RandomEnv()
    env.observation_space.seed(3)
    expected = copy.deepcopy(env.observation_space).sample()
    model = TD3(SparseOwnActorPolicy, env, policy_kwargs=dict(sparsity=0.5), device="cpu")
    sparsity_report(model)
    assert np.array_equal(model.observation_space.sample(), expected)
    assert isinstance(model.observation_space, spaces.Box)
