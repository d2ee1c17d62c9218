"""Saving and loading: round trips, to and from dense models, with and without this package, and what errors say."""

import json
import subprocess
import sys
import zipfile

import numpy as np
import pytest
import torch as th
from sb3_contrib import CrossQ
from stable_baselines3 import A2C, DQN, PPO, SAC, TD3
from stable_baselines3.common.logger import Logger

from sb3_sparse import quantize, shrink, sparse_policy, sparsify, to_stock
from sb3_sparse.policies.algorithms import SparseTD3Policy
from tests.helpers import (
    ALGORITHMS,
    SUPPORTED,
    SUPPORTED_IDS,
    assert_invariants,
    equal_state,
    make_model,
    observations,
    same_actions,
    save_and_load,
    shuffle_masks,
    train_on_data_of,
    watched,
)


def trained(algorithm, kind="Mlp", **policy_kwargs):
    model = make_model(algorithm, kind, policy_kwargs=dict(sparsity=0.7) | policy_kwargs)
    shuffled = shuffle_masks(model)
    model.learn(40)
    shuffled.remove()
    return model


@pytest.mark.parametrize(("algorithm", "kind"), SUPPORTED, ids=SUPPORTED_IDS)
def test_round_trip_and_training_goes_on_as_the_original_would(algorithm, kind, tmp_path, monkeypatch):
    model = trained(algorithm, kind)
    loaded = save_and_load(model, tmp_path)
    for one in (model, loaded):
        one.set_logger(Logger(None, []))
        train_on_data_of(model, one, gradient_steps=4)
        # Masks change from the same generator state, so to the same masks
        name = next(name for name, layer in sparse_policy(one).sparsifier.layers.items() if layer.mask_values is not None)
        plan = sparse_policy(one).sparsifier.plan[name]
        scores = th.rand(plan.info.shape, generator=sparse_policy(one).sparsifier.next_generator())
        sparse_policy(one).sparsifier.set_masks({name: plan.pattern.select(scores, plan.budget)})
    assert equal_state(model, loaded)
    with watched(loaded, monkeypatch) as met:
        loaded.learn(24, reset_num_timesteps=False)
    assert met["step"] > 0


def test_masks_are_saved_as_bool_and_kwargs_as_json(tmp_path):
    model = trained(TD3, sparsity={"actor": 0.8, "critic": 0.5}, distribution="er")
    model.save(tmp_path / "model.zip")
    with zipfile.ZipFile(tmp_path / "model.zip") as file:
        data = json.loads(file.read("data"))
        state = th.load(file.open("policy.pth"), weights_only=True)
    # Beside the keys, which are the stock policy's
    assert not any("mask" in name or "sparsifier" in name for name in state)
    masks = [
        own["sb3_sparse"]["weight_mask"] for own in state._metadata.values() if "weight_mask" in own.get("sb3_sparse", {})
    ]
    assert len(masks) == 18
    assert all(mask.dtype == th.bool for mask in masks)
    assert not any("mask_values" in name for name in state)
    assert data["policy_kwargs"] == dict(net_arch=[16, 12], sparsity={"actor": 0.8, "critic": 0.5}, distribution="er")
    # The class is stored by name, not by value
    assert "sb3_sparse.policies" in data["policy_class"]["__module__"]


def test_policy_save_and_load(tmp_path):
    model = trained(SAC, pattern="block:2x2")
    model.policy.save(tmp_path / "policy.pth")
    policy = type(model.policy).load(tmp_path / "policy.pth")
    assert policy.sparsity_config == model.policy.sparsity_config
    assert all(th.equal(value, policy.state_dict()[name]) for name, value in model.policy.state_dict().items())
    assert policy.sparsifier.violations() == []


@pytest.mark.parametrize(("algorithm", "kind"), SUPPORTED, ids=SUPPORTED_IDS)
def test_to_stock(algorithm, kind, tmp_path):
    model = trained(algorithm, kind)
    before = {name: value.clone() for name, value in model.policy.state_dict().items()}
    stock = to_stock(model)
    assert type(stock.policy) is type(make_model(algorithm, kind, sparse=False).policy)
    assert equal_state(model, stock, ignore_masks=True)
    assert all(th.equal(value, before[name]) for name, value in model.policy.state_dict().items())
    assert same_actions(model, stock, bits=False)  # another engine
    stock.save(tmp_path / "stock.zip")
    with zipfile.ZipFile(tmp_path / "stock.zip") as file:
        assert b"sparse" not in file.read("data").lower()
    stock.learn(24)


@pytest.mark.parametrize(
    "convert",
    [to_stock, shrink, lambda model: quantize(model, data=observations(model)), lambda model: sparsify(model, 0.9)],
    ids=["to_stock", "shrink", "quantize", "sparsify"],
)
@pytest.mark.parametrize("algorithm", [SAC, PPO])
def test_conversions_leave_the_old_model_to_train_on_as_it_would_have(algorithm, convert):
    models = []
    for converted in (False, True):
        model = make_model(algorithm, policy_kwargs=dict(sparsity=0.7)).learn(40)
        if converted:
            new = convert(model)
            assert new.seed == model.seed == 0
            assert new.num_timesteps == model.num_timesteps
            # Nor does the new one meet the very episodes again
            assert model.get_env()._seeds == [None]
        models.append(model.learn(40, reset_num_timesteps=False))
    assert equal_state(*models)


def test_to_stock_refuses_dense_models():
    with pytest.raises(TypeError, match="SparseMlpPolicy"):
        to_stock(make_model(PPO, sparse=False))


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_dense_zip_into_sparse_policy(algorithm, tmp_path, monkeypatch):
    dense = make_model(algorithm, sparse=False, seed=1)
    dense.learn(48)
    dense.save(tmp_path / "dense.zip")
    model = make_model(algorithm, policy_kwargs=dict(sparsity=0.7), seed=2)
    model.set_parameters(tmp_path / "dense.zip")
    assert_invariants(model)
    for name, layer in sparse_policy(model).sparsifier.layers.items():
        weight = dense.policy.get_submodule(name).weight
        assert th.equal(layer.weight[layer.weight_mask], weight[layer.weight_mask])
        # The largest weights stay, in the number the plan says
        if not layer.weight_mask.all():
            assert weight.abs()[layer.weight_mask].min() >= weight.abs()[~layer.weight_mask].max()
    # Moments came along, masked
    assert any(optimizer.state for optimizer in sparse_policy(model).sparsifier.optimizers.values())
    with watched(model, monkeypatch):
        model.learn(40)


@pytest.mark.parametrize(("pattern", "sparsity"), [("block:2x2", 0.92), ("block:2x4", 0.88), ("2:3", None)])
def test_dense_parameters_into_ragged_patterns_give_what_was_planned(pattern, sparsity):
    model = make_model(DQN, policy_kwargs=dict(pattern=pattern, sparsity=sparsity, net_arch=[9, 7]))
    planned = dict(model.policy.sparsifier.n_planned)
    model.set_parameters(make_model(DQN, sparse=False, policy_kwargs=dict(net_arch=[9, 7])).get_parameters())
    assert model.policy.sparsifier.n_planned == planned
    assert_invariants(model)


def test_dense_parameters_in_any_order_and_in_part(tmp_path):
    dense = make_model(TD3, sparse=False, seed=1).learn(48)
    parameters = dense.get_parameters()
    model = make_model(TD3, policy_kwargs=dict(sparsity=0.7))
    model.set_parameters(dict(reversed(parameters.items())))
    assert_invariants(model)
    model = make_model(TD3, policy_kwargs=dict(sparsity=0.7)).learn(48)
    model.set_parameters({"policy": parameters["policy"]}, exact_match=False)
    assert_invariants(model)
    model.policy.actor.load_state_dict(dense.policy.actor.state_dict(), strict=False)
    assert_invariants(model)


@pytest.mark.parametrize("pattern", ["unstructured", "2:4", "block:2x2"])
def test_sparse_through_dense_and_back_keeps_the_masks(pattern, tmp_path):
    policy_kwargs = dict(pattern=pattern, sparsity=None if pattern == "2:4" else 0.7)
    model = make_model(TD3, policy_kwargs=policy_kwargs)
    to_stock(model).save(tmp_path / "stock.zip")
    again = make_model(TD3, policy_kwargs=policy_kwargs, seed=9)
    again.set_parameters(tmp_path / "stock.zip")
    for name, mask in model.policy.sparsifier.masks().items():
        assert th.equal(mask, again.policy.sparsifier.layers[name].weight_mask)
    assert_invariants(again)


def test_masks_in_the_file_win_over_policy_kwargs(tmp_path):
    model = trained(TD3)
    model.save(tmp_path / "model.zip")
    other = make_model(TD3, policy_kwargs=dict(sparsity=0.3))
    other.set_parameters(tmp_path / "model.zip")
    assert equal_state(model, other)
    assert other.policy.sparsifier.n_planned == model.policy.sparsifier.n_planned
    assert_invariants(other)


def test_assigning_load_keeps_gradients_masked():
    model, other = trained(DQN), make_model(DQN, policy_kwargs=dict(sparsity=0.7))
    other.policy.load_state_dict(model.policy.state_dict(), assign=True)
    layer = next(layer for layer in other.policy.sparsifier.layers.values() if layer.mask_values is not None)
    layer(th.ones(2, layer.in_features)).sum().backward()
    assert not layer.weight.grad[~layer.weight_mask].any()


def run_without_plugin(code):
    block = """
import sys
class Block:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "sb3_sparse":
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, Block())
"""
    return subprocess.run([sys.executable, "-c", block + code], capture_output=True, text=True, timeout=300)


def test_stock_sb3_without_the_plugin_uses_a_sparse_zip(tmp_path):
    model = make_model(TD3, env="Pendulum-v1", policy_kwargs=dict(sparsity=0.7)).learn(40)
    model.save(tmp_path / "sparse.zip")
    to_stock(model).save(tmp_path / "stock.zip")
    observation = [[0.1, 0.2, 0.3]]
    expected = model.predict(np.array(observation, dtype=np.float32))[0].tolist()
    result = run_without_plugin(
        f"""
import numpy as np
from stable_baselines3 import TD3
observation = np.array({observation}, dtype=np.float32)
model = TD3("MlpPolicy", "Pendulum-v1", policy_kwargs=dict(net_arch=[16, 12]), device="cpu")
model.set_parameters(r"{tmp_path / "sparse.zip"}", exact_match=False)
assert model.predict(observation)[0].tolist() == {expected}
assert TD3.load(r"{tmp_path / "stock.zip"}", device="cpu").predict(observation)[0].tolist() == {expected}
try:
    TD3.load(r"{tmp_path / "sparse.zip"}")
except ModuleNotFoundError as error:
    print(error)
"""
    )
    assert result.returncode == 0, result.stderr
    assert "No module named 'sb3_sparse" in result.stdout


def test_load_imports_the_plugin_by_itself(tmp_path):
    make_model(TD3, env="Pendulum-v1", policy_kwargs=dict(sparsity=0.7)).save(tmp_path / "sparse.zip")
    code = f'from stable_baselines3 import TD3; print(type(TD3.load(r"{tmp_path / "sparse.zip"}").policy).__name__)'
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300)
    assert result.stdout.strip() == "SparseTD3Policy", result.stderr


@pytest.mark.parametrize("sparse", [True, False])
def test_another_architecture_says_what_to_do_and_changes_nothing(sparse, tmp_path):
    make_model(TD3, sparse=sparse, policy_kwargs=dict(net_arch=[20, 12])).save(tmp_path / "other.zip")
    model = trained(TD3)
    before = {name: value.clone() for name, value in model.policy.state_dict().items()}
    with pytest.raises(RuntimeError, match=r"another architecture: actor.mu.0.weight has shape \(20, 7\) there"):
        model.set_parameters(tmp_path / "other.zip")
    assert all(th.equal(value, before[name]) for name, value in model.policy.state_dict().items())


def test_masks_that_break_the_plan_are_refused(tmp_path):
    model = trained(TD3)
    model.save(tmp_path / "model.zip")
    for policy_kwargs, message in (
        (dict(pattern="2:4"), "breaks the pattern '2:4' of this policy"),
        (dict(dense_layers="first", sparsity=0.3), "which `dense_layers` keeps dense here"),
    ):
        other = make_model(TD3, policy_kwargs=policy_kwargs)
        before = other.policy.sparsifier.masks()
        with pytest.raises(RuntimeError, match=message):
            other.set_parameters(tmp_path / "model.zip")
        assert all(th.equal(mask, before[name]) for name, mask in other.policy.sparsifier.masks().items())


def test_custom_objects_replace_a_dense_policy(tmp_path):
    make_model(TD3, sparse=False).learn(40).save(tmp_path / "dense.zip")
    kwargs = dict(net_arch=[16, 12], sparsity=0.5)
    model = TD3.load(tmp_path / "dense.zip", custom_objects={"policy_class": SparseTD3Policy, "policy_kwargs": kwargs})
    assert_invariants(model)


@pytest.mark.parametrize("algorithm", [A2C, CrossQ])
def test_pickled_policies(algorithm):
    import pickle

    # Stock distributions hold on to the graph of the last pass; a policy that has just been made can be pickled
    policy = make_model(algorithm, policy_kwargs=dict(sparsity=0.7)).policy
    copied = pickle.loads(pickle.dumps(policy))
    assert copied.sparsifier.violations() == []
