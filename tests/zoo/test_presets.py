"""Every preset makes a model that trains, from Python and with the values that rl-zoo3 would use."""

from importlib.util import find_spec

import gymnasium as gym
import pytest
import torch as th
import yaml
from rl_zoo3.utils import ALGOS
from stable_baselines3 import DQN, SAC, TD3
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.noise import NormalActionNoise

import sb3_sparse
from sb3_sparse import DynamicNStepReplayBuffer, RigL, preset
from sb3_sparse.policies.base import SparsePolicyMixin
from sb3_sparse.zoo.presets import preset_file, presets_folder
from tests.helpers import assert_invariants

FILES = sorted(presets_folder().rglob("*.yml"))


def method_of(file):
    """``rlx2/set`` of ``hyperparams/rlx2/set/td3.yml``."""
    return file.parent.relative_to(presets_folder()).as_posix()


HAS_BOX2D = find_spec("Box2D") is not None
DENSE_METHODS = ("dense", "ds/dense", "rlx2/dense", "rlx2/tiny")
IDS = [f"{method_of(file)}-{file.stem}" for file in FILES]


@pytest.mark.parametrize("file", FILES, ids=IDS)
def test_every_entry_can_be_made(file):
    method, algo = method_of(file), file.stem
    for env in yaml.safe_load(file.read_text()):
        if env in ("default", "atari") or env not in gym.envs.registry or (env.startswith("LunarLander") and not HAS_BOX2D):
            continue
        values = preset(method, algo, env)
        assert isinstance(values.pop("n_timesteps"), int)
        callbacks = values.pop("callback")
        assert all(isinstance(callback, BaseCallback) for callback in callbacks)
        assert (method in DENSE_METHODS) == (callbacks == [])
        model = ALGOS[algo](env="CartPole-v1" if algo == "dqn" else "Pendulum-v1", _init_setup_model=False, **values)
        assert issubclass(model.policy_class, SparsePolicyMixin) == (method not in DENSE_METHODS)


@pytest.mark.parametrize(
    ("method", "algo", "env"),
    [
        (method_of(file), file.stem, env)
        for file in FILES
        for env in (["CartPole-v1"] if file.stem == "dqn" else ["Hopper-v4", "HalfCheetah-v4"])
    ],
)
def test_every_preset_trains(method, algo, env):
    pytest.importorskip("mujoco")
    values = preset(method, algo, env)
    callback, _ = values.pop("callback"), values.pop("n_timesteps")
    short = dict(learning_starts=100, train_freq=1, gradient_steps=1, device="cpu", seed=0)
    model = ALGOS[algo](env=env, **(values | short))
    model.learn(130, callback=callback)
    if method not in DENSE_METHODS:
        assert_invariants(model)
        assert any(name.startswith("n_steps") and value > 0 for name, value in model.policy.sparsifier.named_buffers())


def test_values_of_rlx2_on_hopper():
    values = preset("rlx2", "td3", "Hopper-v4")
    assert values["policy"] is sb3_sparse.SparseTD3Policy
    assert values["policy_kwargs"]["sparsity"] == {"actor": 0.98, "critic": 0.95}
    assert values["policy_kwargs"]["distribution"] == "er"
    assert values["replay_buffer_class"] is DynamicNStepReplayBuffer
    assert values["n_timesteps"] == 3_000_000
    assert isinstance(values["action_noise"], NormalActionNoise)
    assert values["action_noise"]._sigma.shape == (3,)
    assert isinstance(values["callback"][0], RigL)
    assert (values["callback"][0].clock.every, values["callback"][0].skip_step) == (10_000, True)
    assert "env" not in values


def test_sparsities_per_environment():
    def sparsity(algo, env):
        values = preset("rlx2", algo, env)["policy_kwargs"]["sparsity"]
        return values["actor"], values["critic"]

    for version in ("v4", "v5"):
        assert [sparsity("td3", f"{env}-{version}") for env in ("HalfCheetah", "Hopper", "Walker2d", "Ant")] == [
            (0.90, 0.85),
            (0.98, 0.95),
            (0.97, 0.95),
            (0.96, 0.88),
        ]
        assert [sparsity("sac", f"{env}-{version}") for env in ("HalfCheetah", "Hopper", "Walker2d", "Ant")] == [
            (0.90, 0.80),
            (0.98, 0.95),
            (0.90, 0.90),
            (0.90, 0.75),
        ]
        for algo, env, epsilons in (
            ("td3", "Hopper", [7, 64]),
            ("td3", "Ant", [40, 64]),
            ("td3", "Humanoid", [61, 64]),
            ("sac", "Walker2d", [12, 80]),
            ("sac", "Hopper", [7, 20]),
            ("sac", "Ant", [30, 64]),
        ):
            kwargs = preset("ds", algo, f"{env}-{version}")["policy_kwargs"]
            assert kwargs["distribution"] == {"er_epsilon": epsilons}
            assert kwargs["net_arch"] == [256, 256]


@pytest.mark.parametrize("algo", ["td3", "sac"])
@pytest.mark.parametrize("env", ["HalfCheetah", "Hopper", "Walker2d", "Ant"])
@pytest.mark.parametrize("version", ["v4", "v5"])
def test_tiny_networks_have_as_many_weights_as_the_sparse_ones(algo, env, version):
    pytest.importorskip("mujoco")

    def n_weights(method):
        values = preset(method, algo, f"{env}-{version}")
        del values["callback"], values["n_timesteps"]
        model = ALGOS[algo](env=f"{env}-{version}", **(values | dict(buffer_size=1, device="cpu")))
        sizes = {}
        for network in ("actor", "critic"):
            modules = [module for module in getattr(model.policy, network).modules() if isinstance(module, th.nn.Linear)]
            sizes[network] = sum(int((module.weight != 0).sum()) for module in modules)
        return sizes

    tiny, sparse = n_weights("rlx2/tiny"), n_weights("rlx2")
    # One unit more or less in each hidden layer is worth about two percent at these widths
    assert all(tiny[network] == pytest.approx(sparse[network], rel=0.025) for network in sparse)


@pytest.mark.parametrize(
    ("variant", "base"), [("rlx2/static", "rlx2"), ("rlx2/set", "rlx2"), ("rlx2/rigl", "rlx2"), ("ds/static", "ds")]
)
@pytest.mark.parametrize("algo", ["td3", "sac"])
def test_baselines_differ_in_callbacks_and_replay_alone(variant, base, algo):
    varying = ("callback", "replay_buffer_class", "replay_buffer_kwargs")
    for env in yaml.safe_load((presets_folder() / base / f"{algo}.yml").read_text()):
        first, second = (yaml.safe_load((presets_folder() / m / f"{algo}.yml").read_text())[env] for m in (variant, base))
        for key in varying:
            first.pop(key, None), second.pop(key, None)
        assert first == second


@pytest.mark.parametrize(("variant", "pattern"), [("rnm/1_4", "1:4"), ("rnm/1_8", "1:8")])
@pytest.mark.parametrize("algo", ["td3", "sac"])
def test_variants_of_rnm_differ_in_the_pattern_alone(variant, pattern, algo):
    first, second = (yaml.safe_load((presets_folder() / m / f"{algo}.yml").read_text()) for m in (variant, "rnm"))
    for env in second:
        assert first[env]["policy_kwargs"].pop("pattern") == pattern
        assert second[env]["policy_kwargs"].pop("pattern") == "2:4"
        for values in (first, second):  # entries of one anchor are one object
            values[env]["policy_kwargs"]["pattern"] = "x"
        assert first[env] == second[env]
        first[env]["policy_kwargs"]["pattern"], second[env]["policy_kwargs"]["pattern"] = pattern, "2:4"


def test_schedules_and_environment_entries():
    values = preset("dense", "sac", "LunarLanderContinuous-v3")
    assert values["learning_rate"](1.0) == pytest.approx(7.3e-4)
    assert values["learning_rate"](0.5) == pytest.approx(3.65e-4)
    pytest.importorskip("ale_py")
    import rl_zoo3.import_envs  # noqa: F401

    for env in ("PongNoFrameskip-v4", "BreakoutNoFrameskip-v4"):
        values = preset("static", "dqn", env)
        assert values["policy"] is sb3_sparse.SparseDQNCnnPolicy
        assert not {"env_wrapper", "frame_stack"} & set(values)


def test_default_and_unknown_environments():
    assert preset("static", "td3", "Reacher-v5")["policy"] is sb3_sparse.SparseTD3Policy
    with pytest.raises(ValueError, match="`env`='Hoper-v4' is unknown to gymnasium"):
        preset("static", "td3", "Hoper-v4")


@pytest.mark.parametrize(("algorithm", "algo"), [(TD3, "td3"), (SAC, "sac"), (DQN, "dqn")])
def test_documented_use(algorithm, algo):
    env = "CartPole-v1" if algo == "dqn" else "Pendulum-v1"
    values = preset("static", algo, env)
    callback, n_timesteps = values.pop("callback"), values.pop("n_timesteps")
    assert n_timesteps > 0
    algorithm(env=env, **values).learn(20, callback=callback)


@pytest.mark.parametrize(
    ("old", "new"), [("rlx2_set", "rlx2/set"), ("ds_dense", "ds/dense"), ("rnm_1_4", "rnm/1_4"), ("rnm_1_8", "rnm/1_8")]
)
def test_names_that_ablations_had_before(old, new):
    assert preset_file(old, "td3") == preset_file(new, "td3")
    assert preset_file(new, "td3").is_file()


def test_the_dense_baseline_of_rlx2_differs_in_nothing_but_sparsity():
    """And in what makes RLx2: targets, replay and topology."""
    dense, sparse = preset("rlx2/dense", "td3", "Hopper-v4"), preset("rlx2", "td3", "Hopper-v4")
    own = {"callback", "policy", "policy_kwargs", "replay_buffer_class", "replay_buffer_kwargs", "action_noise"}
    assert {key: dense[key] for key in dense if key not in own} == {key: sparse[key] for key in sparse if key not in own}
    assert dense["policy_kwargs"]["net_arch"] == sparse["policy_kwargs"]["net_arch"]


def test_tar_differs_from_static_in_the_mask_alone():
    for algo in ("td3", "sac"):
        tar, static = (yaml.safe_load((presets_folder() / m / f"{algo}.yml").read_text()) for m in ("tar", "static"))
        assert tar.keys() == static.keys()
        for env in static:
            first, second = (
                sections[env] | {"policy_kwargs": dict(sections[env]["policy_kwargs"])} for sections in (tar, static)
            )
            assert first["policy_kwargs"].pop("initial_mask") == "magnitude"
            (revival, logger) = first.pop("callback")
            assert [*revival] == ["sb3_sparse.Revival"]
            assert logger == second.pop("callback") == "sb3_sparse.SparsityLogger"
            assert first == second


def test_plad_is_dense_but_for_pruning_and_replay():
    for algo in ("td3", "sac"):
        plad, dense = (yaml.safe_load((presets_folder() / m / f"{algo}.yml").read_text()) for m in ("plad", "dense"))
        assert plad.keys() == dense.keys() - {"LunarLanderContinuous-v3"}
        for env, written in plad.items():
            # Entries of one anchor are one object
            section, reference = dict(written), dict(dense[env])
            pruning, reset, _ = (next(iter(one.values())) if isinstance(one, dict) else one for one in section.pop("callback"))
            assert pruning["final_sparsity"] == {"actor": 0.9, "critic": 0.9}
            assert reset["every"] * 5 == (20_000 if env == "Pendulum-v1" else 1_000_000)
            own = dict(section.pop("policy_kwargs"))
            assert (own.pop("sparsity"), own.pop("distribution")) == (0.0, "erk")
            assert own == reference.pop("policy_kwargs", {})
            assert section.pop("policy").startswith("sb3_sparse.policies.Sparse")
            assert reference.pop("policy") == "MlpPolicy"
            assert section == reference
