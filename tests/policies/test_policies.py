"""Registration, what policies accept, and what they refuse."""

import inspect

import pytest
import torch as th
from gymnasium import spaces
from sb3_contrib import ARS, TRPO, RecurrentPPO
from stable_baselines3 import A2C, DDPG, DQN, PPO, SAC, TD3
from stable_baselines3.common.logger import Logger
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from stable_baselines3.td3.policies import TD3Policy

import sb3_sparse
from sb3_sparse import SparsePolicyMixin, SparsityLogger, sparse_policy
from sb3_sparse.nn.layers import SparseConv2d, SparseLinear
from sb3_sparse.policies import algorithms as policies
from sb3_sparse.policies.algorithms import SPARSE_POLICIES
from tests.helpers import ALGORITHMS, SUPPORTED, SUPPORTED_IDS, RandomEnv, assert_invariants, make_model


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_every_stock_alias_has_a_sparse_one(algorithm):
    stock = {alias for alias in algorithm.policy_aliases if not alias.startswith("Sparse")}
    sparse = {alias.removeprefix("Sparse") for alias in algorithm.policy_aliases if alias.startswith("Sparse")}
    assert stock == sparse
    for alias in stock:
        sparse_class, stock_class = algorithm.policy_aliases[f"Sparse{alias}"], algorithm.policy_aliases[alias]
        assert issubclass(sparse_class, stock_class)
        assert sparse_class.stock_policy() is stock_class


def test_registering_twice_changes_nothing():
    before = {algorithm: dict(algorithm.policy_aliases) for algorithm in ALGORITHMS}
    sb3_sparse.register_policies()
    assert before == {algorithm: dict(algorithm.policy_aliases) for algorithm in ALGORITHMS}


def test_classes_are_module_attributes():
    classes = {policy for members in SPARSE_POLICIES.values() for policy in members}
    for policy in classes:
        assert getattr(policies, policy.__name__) is policy is getattr(sb3_sparse, policy.__name__)
        assert policy.__module__ == "sb3_sparse.policies"
        assert policy.__qualname__ == policy.__name__


@pytest.mark.parametrize(("algorithm", "kind"), SUPPORTED, ids=SUPPORTED_IDS)
def test_all_layers_of_online_and_target_networks_are_sparse(algorithm, kind):
    model = make_model(algorithm, kind, policy_kwargs=dict(sparsity=0.6))
    sparsifier = model.policy.sparsifier
    for module in model.policy.modules():
        if isinstance(module, (th.nn.Linear, th.nn.Conv2d)):
            assert isinstance(module, (SparseLinear, SparseConv2d))
    pruned = {network: sum(sparsifier.n_planned[name] for name in names) for network, names in sparsifier.networks.items()}
    total = {
        network: sum(sparsifier.plan[name].info.n_weights for name in names) for network, names in sparsifier.networks.items()
    }
    assert all(pruned[network] == round(0.4 * total[network]) for network in pruned)
    if hasattr(model.policy, "critic_target") or hasattr(model.policy, "q_net_target"):
        assert any(sparsifier.targets.values())


def test_defaults_are_sparse():
    model = TD3("SparseMlpPolicy", "Pendulum-v1", device="cpu")
    kept = sum(layer.n_active for layer in model.policy.sparsifier.layers.values())
    total = sum(layer.weight.numel() for layer in model.policy.sparsifier.layers.values())
    assert kept / total == pytest.approx(0.2, abs=1e-4)


def test_the_callers_policy_kwargs_are_not_changed():
    policy_kwargs = dict(sparsity={"actor": 0.5, "critic": 0.5}, dense_layers=["last"], net_arch=[16])
    given = {key: value.copy() for key, value in policy_kwargs.items()}
    TD3("SparseMlpPolicy", "Pendulum-v1", policy_kwargs=policy_kwargs)
    assert policy_kwargs == given


def test_stock_arguments_and_names_still_work():
    policy_kwargs = dict(net_arch=dict(pi=[8], qf=[24, 16]), activation_fn=th.nn.Tanh, n_critics=3, sparsity=0.5)
    model = make_model(TD3, policy_kwargs=policy_kwargs)
    layers = model.policy.sparsifier.layers
    assert [name for name in layers if name.startswith("critic.qf2")] == ["critic.qf2.0", "critic.qf2.2", "critic.qf2.4"]
    model.learn(40)
    assert_invariants(model)


@pytest.mark.parametrize("algorithm", [SAC, PPO, A2C])
def test_state_dependent_exploration(algorithm):
    model = make_model(algorithm, use_sde=True, policy_kwargs=dict(sparsity=0.6))
    model.learn(40)
    assert_invariants(model)


def test_first_and_last_of_every_kind_of_network():
    def exempt(algorithm, kind="Mlp", **kwargs):
        plan = make_model(algorithm, kind, policy_kwargs=dict(sparsity=0.3, **kwargs)).policy.sparsifier.plan
        return {name for name, layer in plan.items() if layer.exempt}

    assert exempt(SAC, dense_layers="last") == {"actor.mu", "actor.log_std", "critic.qf0.4", "critic.qf1.4"}
    assert exempt(SAC, dense_layers="first") == {"actor.latent_pi.0", "critic.qf0.0", "critic.qf1.0"}
    assert exempt(PPO, dense_layers="last") == {"action_net", "value_net"}
    assert exempt(DQN, "Cnn", dense_layers="first") == {"q_net.features_extractor.cnn.0"}
    assert exempt(DQN, "MultiInput", dense_layers="first") == {"q_net.features_extractor.extractors.image.cnn.0"}
    assert exempt(RecurrentPPO, dense_layers=["first"]) == {"mlp_extractor.policy_net.0", "mlp_extractor.value_net.0"}


class CustomLinear(th.nn.Linear):
    """A subclass with a forward of its own cannot be replaced."""

    def forward(self, x):
        return super().forward(x) * 2


class CustomExtractor(BaseFeaturesExtractor):
    def __init__(self, observation_space: spaces.Box, features_dim: int = 6):
        super().__init__(observation_space, features_dim)
        self.net = th.nn.Sequential(th.nn.Linear(observation_space.shape[0], 9), th.nn.ReLU(), CustomLinear(9, features_dim))

    def forward(self, x: th.Tensor) -> th.Tensor:
        return self.net(x)


def test_custom_extractors_and_own_sparse_policies():
    model = make_model(TD3, policy_kwargs=dict(sparsity=0.5, features_extractor_class=CustomExtractor))
    assert "actor.features_extractor.net.0" in model.policy.sparsifier.layers
    assert type(model.policy.actor.features_extractor.net[2]) is CustomLinear
    model.learn(40)
    assert_invariants(model)

    class MyPolicy(TD3Policy):
        def __init__(self, *args, extra=1, **kwargs):
            super().__init__(*args, **kwargs)

    class MySparsePolicy(SparsePolicyMixin, MyPolicy):
        pass

    assert MySparsePolicy.stock_policy() is MyPolicy
    model = TD3(MySparsePolicy, RandomEnv(), policy_kwargs=dict(net_arch=[16], sparsity=0.5, extra=2))
    assert_invariants(model)


# --- Bad input ---


@pytest.mark.parametrize(
    ("policy_kwargs", "error", "message"),
    [
        (
            dict(sparsty=0.5),
            TypeError,
            r"unknown policy_kwargs 'sparsty' \(did you mean 'sparsity'\?\); SparseTD3Policy takes",
        ),
        (dict(net_arc=[3]), TypeError, r"unknown policy_kwargs 'net_arc' \(did you mean 'net_arch'\?\)"),
        (dict(sparsity=1.2), ValueError, r"`sparsity` must be a number in \[0, 1\), got 1.2"),
        (dict(sparsity={"q_net": 0.5}), ValueError, "unknown network 'q_net'; the networks .* are: actor, critic"),
        (dict(dense_layers=["actor.mu.1"]), ValueError, "the layers of this policy are: actor.mu.0, actor.mu.2"),
        (dict(pattern="2:8"), ValueError, "layer 'actor.mu.0': it has 7 inputs per row, fewer than M=8"),
    ],
)
def test_bad_policy_kwargs(policy_kwargs, error, message):
    with pytest.raises(error, match=message):
        make_model(TD3, policy_kwargs=policy_kwargs)


@pytest.mark.parametrize("alias", ["MlpPolicy", "CnnPolicy"])
@pytest.mark.parametrize("algorithm", [TD3, DQN, PPO])
def test_dict_observations_need_the_multi_input_policy(algorithm, alias):
    env = RandomEnv("MultiInput", discrete=algorithm is DQN)
    with pytest.raises(ValueError, match="You must use `SparseMultiInputPolicy` when working with dict observation space"):
        algorithm(f"Sparse{alias}", env)


def test_the_multi_input_policy_needs_dict_observations():
    with pytest.raises(ValueError, match="use `SparseMlpPolicy`"):
        DDPG("SparseMultiInputPolicy", RandomEnv())


@pytest.mark.parametrize(("algorithm", "reason"), [(TRPO, "line search"), (ARS, "neither gradients nor an optimizer")])
def test_unsupported_algorithms_say_why(algorithm, reason):
    for alias in [alias for alias in algorithm.policy_aliases if alias.startswith("Sparse")]:
        env = RandomEnv("Mlp")
        with pytest.raises(NotImplementedError, match=reason):
            algorithm(alias, env)
    assert algorithm.policy_aliases["SparseMlpPolicy"] is not None


def test_sparse_policy_of_a_dense_model():
    with pytest.raises(TypeError, match=r"TD3Policy, which is not sparse.*TD3\(\"SparseMlpPolicy\""):
        sparse_policy(make_model(TD3, sparse=False))


def test_everything_public_is_documented():
    for name in sb3_sparse.__all__:
        assert inspect.getdoc(getattr(sb3_sparse, name)), name


# --- SparsityLogger ---


@pytest.mark.parametrize("algorithm", [TD3, DQN, PPO])
def test_logger_records_every_network(algorithm, tmp_path):
    from stable_baselines3.common.logger import configure

    model = make_model(algorithm, policy_kwargs=dict(sparsity=0.7))
    model.set_logger(configure(str(tmp_path), ["csv", "tensorboard"]))
    model.learn(64, callback=SparsityLogger(), log_interval=1)
    header = (tmp_path / "progress.csv").read_text().splitlines()
    columns = header[0].split(",")
    for network in model.policy.sparsifier.networks:
        column = columns.index(f"sparsity/{network}")
        assert float(header[-1].split(",")[column]) == pytest.approx(0.7, abs=1e-2)
        assert f"sparsity/{network}_weights" in columns
    assert {"sparsity/inference_flops", "sparsity/training_flops", "sparsity/bytes"} <= set(columns)
    assert list(tmp_path.glob("events*"))


def test_logger_follows_a_changing_number_of_weights():
    model = make_model(TD3, policy_kwargs=dict(sparsity=0.5))
    model.set_logger(Logger(None, []))
    logger = SparsityLogger(verbose=1)
    logger.init_callback(model)
    logger._on_training_start()
    before = logger._refresh()
    assert logger._refresh() is before
    mask = model.policy.sparsifier.layers["actor.mu.2"].weight_mask.clone()
    mask.view(-1)[mask.view(-1).nonzero()[0]] = False
    model.policy.sparsifier.set_masks({"actor.mu.2": mask}, replan=True)
    assert logger._refresh().inference.sparse == before.inference.sparse - 2


def test_logger_refuses_dense_models():
    with pytest.raises(TypeError, match="not sparse"):
        make_model(TD3, sparse=False).learn(10, callback=SparsityLogger())
