"""Files and names of earlier releases: models, replay buffers and configurations written by version 0.1.0 go on working."""

import json
import pickle
from importlib import import_module
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces
from stable_baselines3 import DQN, PPO, SAC, TD3
from stable_baselines3.common.save_util import load_from_pkl

import sb3_sparse
from sb3_sparse.utils.old_paths import MOVED
from sb3_sparse.zoo.presets import find_class
from tests.helpers import RandomEnv, assert_invariants

#: Written by version 0.1.0, when all modules lay in one folder; ``answers.json`` has what the models predicted then.
OLD = Path(__file__).parent / "data" / "0.1.0"
ANSWERS = json.loads((OLD / "answers.json").read_text())
MODELS = {
    "td3_rigl": (TD3, "Pendulum-v1"),
    "sac_compress": (SAC, "Pendulum-v1"),
    "ppo_n_of_m": (PPO, "CartPole-v1"),
    "dqn_shrunk": (DQN, None),
}


def _environment(name):
    if MODELS[name][1] is not None:
        return gym.make(MODELS[name][1])
    env = RandomEnv("Cnn", discrete=True)
    env.observation_space = spaces.Box(0, 255, (36, 36, 1), np.uint8)
    return env


def _observations(name):
    if name == "dqn_shrunk":
        return (np.arange(2 * 36 * 36) % 256).astype(np.uint8).reshape(2, 1, 36, 36)
    return np.linspace(-1, 1, 20 if name == "ppo_n_of_m" else 15, dtype=np.float32).reshape(5, -1)


@pytest.mark.parametrize("name", MODELS)
def test_old_models_answer_as_before_and_train_on(name):
    model = MODELS[name][0].load(OLD / f"{name}.zip", env=_environment(name))
    np.testing.assert_allclose(model.predict(_observations(name), deterministic=True)[0], ANSWERS[name], rtol=1e-4, atol=1e-6)
    assert_invariants(model)
    model.learn(64, reset_num_timesteps=False)
    assert_invariants(model)
    assert sb3_sparse.sparsity_report(model).to_dict()


def test_an_old_topology_goes_on_changing():
    model = TD3.load(OLD / "td3_rigl.zip", env=gym.make("Pendulum-v1"))
    model.load_replay_buffer(OLD / "td3_rigl_buffer.pkl")
    assert type(model.replay_buffer) is sb3_sparse.DynamicNStepReplayBuffer
    masks = sb3_sparse.sparse_policy(model).sparsifier.masks()
    callback = sb3_sparse.RigL(every=10, drop_fraction=0.3)
    model.learn(60, callback=callback, reset_num_timesteps=False)
    assert callback.events
    assert any((mask != masks[name]).any() for name, mask in sb3_sparse.sparse_policy(model).sparsifier.masks().items())
    assert_invariants(model)


OLD_CLASSES = [
    "policies.SparseTD3Policy",
    "policies.SparseSACMultiInputPolicy",
    "policies.SparsePolicyMixin",
    "shrink.NarrowNatureCNN",
    "buffers.DynamicNStepReplayBuffer",
    "growth.SET",
    "growth.RigL",
    "refresh.MaskRefresh",
    "gradual.GradualPruning",
    "quantization_aware.QuantizationAware",
    "replay.DelayedNStep",
    "replay.DynamicReplayCapacity",
    "callbacks.SparsityLogger",
    "topology.TopologyEvent",
    "report.SparsityReport",
    "tuning.search_for.SearchFor",
]


@pytest.mark.parametrize("path", OLD_CLASSES)
def test_old_paths_of_classes(path):
    """As a pickle and as rl-zoo3 look them up."""
    module, name = f"sb3_sparse.{path}".rsplit(".", 1)
    found = find_class(f"{module}.{name}")
    assert found.__name__ == name
    assert pickle.loads(f"c{module}\n{name}\n.".encode()) is found


@pytest.mark.parametrize("old", MOVED)
def test_old_modules_can_be_imported(old):
    module = import_module(f"sb3_sparse.{old}")
    with pytest.raises(AttributeError, match="has no attribute 'nothing_like_it'"):
        _ = module.nothing_like_it


@pytest.mark.parametrize(
    "name",
    ["SparseTD3Policy", "SparseDQNCnnPolicy", "register_policies", "integer_forward", "SparsityReport", "TopologyEvent"],
)
def test_names_that_stood_at_the_top(name):
    assert getattr(sb3_sparse, name).__name__ == name
    assert name not in sb3_sparse.__all__


def test_old_paths_leave_the_functions_alone():
    import_module("sb3_sparse.shrink")
    assert callable(sb3_sparse.shrink)
    with pytest.raises(AttributeError, match="module 'sb3_sparse' has no attribute 'SparseNothing'"):
        _ = sb3_sparse.SparseNothing


def test_saved_models_name_policies_by_a_path_that_stays(tmp_path):
    model = TD3("SparseMlpPolicy", "Pendulum-v1", policy_kwargs={"net_arch": [16]})
    assert model.policy_class.__module__ == "sb3_sparse.policies"
    model.save(tmp_path / "model")
    assert type(TD3.load(tmp_path / "model").policy) is find_class("sb3_sparse.policies.SparseTD3Policy")


def test_old_replay_buffers_are_read_without_a_model():
    assert load_from_pkl(OLD / "td3_rigl_buffer.pkl").n_steps == 3
