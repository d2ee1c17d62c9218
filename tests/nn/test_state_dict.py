"""The state dict of a sparse policy has a stock policy's keys; what else it needs travels beside them."""

import copy
import io
import subprocess
import sys
import zipfile

import numpy as np
import pytest
import torch as th
from sb3_contrib import QRDQN
from stable_baselines3 import A2C, DQN, PPO, SAC, TD3
from stable_baselines3.common.save_util import load_from_zip_file, save_to_zip_file

from sb3_sparse import RigL, quantize, sparse_policy
from sb3_sparse.nn.state_dict import revealed
from sb3_sparse.utils.metadata import ENTRY
from tests.helpers import (
    SUPPORTED,
    SUPPORTED_IDS,
    assert_invariants,
    equal_state,
    make_model,
    observations,
    same_actions,
    shuffle_masks,
)


def trained(algorithm, kind="Mlp", **policy_kwargs):
    model = make_model(algorithm, kind, policy_kwargs=dict(sparsity=0.7) | policy_kwargs)
    shuffled = shuffle_masks(model)
    model.learn(40)
    shuffled.remove()
    return model


def masks_of(model):
    return sparse_policy(model).sparsifier.masks()


def same_masks(model, masks):
    return all(th.equal(mask, masks[name]) for name, mask in masks_of(model).items())


@pytest.mark.parametrize(("algorithm", "kind"), SUPPORTED, ids=SUPPORTED_IDS)
def test_the_keys_are_those_of_the_stock_policy(algorithm, kind):
    sparse, stock = (make_model(algorithm, kind, sparse=sparse) for sparse in (True, False))
    assert list(sparse.policy.state_dict()) == list(stock.policy.state_dict())
    # A stock policy takes all of it, strictly
    stock.set_parameters(sparse.get_parameters())
    assert same_actions(sparse, stock, bits=False)


def test_masks_are_beside_the_keys_and_survive_torch_save_and_deepcopy():
    model = trained(TD3)
    state = model.policy.state_dict()
    file = io.BytesIO()
    th.save(state, file)
    file.seek(0)
    for copied in (copy.deepcopy(state), th.load(file, weights_only=True)):
        other = make_model(TD3, policy_kwargs=dict(sparsity=0.3))
        other.policy.load_state_dict(copied)
        assert same_masks(other, masks_of(model))
        assert other.policy.sparsifier.n_steps("critic") == model.policy.sparsifier.n_steps("critic") > 0
        assert_invariants(other)


def old_format(parameters):
    """As versions before wrote it: everything among the keys."""
    return {name: dict(revealed(value)) if name == "policy" else value for name, value in parameters.items()}


@pytest.mark.parametrize("algorithm", [TD3, DQN, PPO])
@pytest.mark.parametrize("quantized", [False, True])
def test_zips_of_older_versions_load(algorithm, quantized, tmp_path):
    model = make_model(algorithm, policy_kwargs=dict(sparsity=0.7))
    model.learn(48, callback=RigL(every=2, drop_fraction=0.3))
    if quantized:
        model = quantize(model, data=observations(model))
    model.save(tmp_path / "new.zip")
    data, params, variables = load_from_zip_file(tmp_path / "new.zip", device="cpu")
    params = old_format(params)
    assert any(key.endswith("weight_mask") for key in params["policy"])
    assert any(key.startswith("sparsifier.updater_state.") for key in params["policy"])
    save_to_zip_file(tmp_path / "old.zip", data=data, params=params, pytorch_variables=variables)
    loaded = algorithm.load(tmp_path / "old.zip", env=model.get_env())
    assert equal_state(model, loaded)
    assert_invariants(loaded)
    other = make_model(algorithm, policy_kwargs=dict(sparsity=0.2))
    other.set_parameters(tmp_path / "old.zip")
    assert equal_state(model, other)


# --- Arithmetic ---


def test_the_evolution_example_of_stable_baselines3():
    """The example "Accessing and modifying model parameters" of SB3's documentation, on a sparse policy."""

    def mutate(params: dict[str, th.Tensor]) -> dict[str, th.Tensor]:
        """Mutate parameters by adding normal noise to them."""
        return {name: param + th.randn_like(param) for name, param in params.items()}

    model = A2C(
        "SparseMlpPolicy",
        "CartPole-v1",
        ent_coef=0.0,
        policy_kwargs={"net_arch": [32], "sparsity": 0.8},
        seed=0,
        learning_rate=0.05,
        device="cpu",
    )
    model.learn(total_timesteps=500)
    masks = masks_of(model)
    # Include only variables with "policy", "action" (policy) or "shared_net" (shared layers) in their name
    mean_params = {
        key: value
        for key, value in model.policy.state_dict().items()
        if ("policy" in key or "shared_net" in key or "action" in key)
    }
    pop_size, n_elite = 6, 2
    vec_env = model.get_env()
    for _ in range(2):
        population = []
        for _ in range(pop_size):
            candidate = mutate(mean_params)
            # Load new policy parameters to agent. Tell function that it should only update parameters we give it
            model.policy.load_state_dict(candidate, strict=False)
            assert_invariants(model)
            assert same_masks(model, masks)
            rewards, observation = 0.0, vec_env.reset()
            for _ in range(20):
                action, _ = model.predict(observation, deterministic=True)
                observation, reward, _, _ = vec_env.step(action)
                rewards += float(reward[0])
            population.append((candidate, rewards))
        elites = sorted(population, key=lambda pair: pair[1], reverse=True)[:n_elite]
        mean_params = {name: th.stack([elite[0][name] for elite in elites]).mean(dim=0) for name in mean_params}
    model.policy.load_state_dict(mean_params, strict=False)
    name = "mlp_extractor.policy_net.0"
    mask = masks[name]
    assert th.equal(model.policy.get_submodule(name).weight[mask], mean_params[f"{name}.weight"][mask])
    model.learn(100, reset_num_timesteps=False)
    assert_invariants(model)


@pytest.mark.parametrize("quantized", [False, True])
@pytest.mark.parametrize(("algorithm", "kind"), [(TD3, "Mlp"), (SAC, "Cnn"), (DQN, "Mlp"), (PPO, "MultiInput")])
def test_noise_averages_and_soft_updates(algorithm, kind, quantized):
    first, second = (trained(algorithm, kind, mask_seed=seed) for seed in (1, 2))
    if quantized:
        first, second = (quantize(model, data=observations(model)) for model in (first, second))
    masks, before = masks_of(first), copy.deepcopy(first.policy.state_dict())
    ranges = {name: layer.quantizer and layer.quantizer.extra_repr() for name, layer in first.policy.sparsifier.layers.items()}
    others = second.policy.state_dict()
    computed = [
        {name: value + 0.1 * th.randn_like(value) for name, value in before.items()},
        {name: (value + others[name]) / 2 for name, value in before.items()},
        {name: 0.9 * value + 0.1 * others[name] for name, value in before.items()},
        {name: th.rand_like(value) for name, value in before.items()},
    ]
    for state in computed:
        first.policy.load_state_dict(state)
        assert_invariants(first)
        assert same_masks(first, masks)
        for name, layer in first.policy.sparsifier.layers.items():
            # A shared features extractor has several paths; the last is loaded last
            path = [path for path, module in first.policy.named_modules(remove_duplicate=False) if module is layer][-1]
            assert th.equal(layer.weight, state[f"{path}.weight"] * masks[name])
            assert (layer.quantizer and layer.quantizer.extra_repr()) == ranges[name]
    # In place, in a state dict that keeps what is beside its keys
    changed = copy.deepcopy(before)
    for value in changed.values():
        value.mul_(0.5)
    first.policy.load_state_dict(changed)
    assert same_masks(first, masks)
    # A plain copy brings its zeros, and so its masks, along
    if not quantized:
        first.policy.load_state_dict(dict(others))
        assert same_masks(first, masks_of(second))
        assert_invariants(first)


def test_a_plain_copy_of_a_quantized_state_dict_is_refused_where_nothing_is_quantized():
    model = quantize(trained(TD3), data=observations(make_model(TD3)))
    other = trained(TD3)
    before = copy.deepcopy(other.policy.state_dict())
    with pytest.raises(RuntimeError, match=r"actor.mu.0.quantizer.low is the range of a quantized layer, whose settings"):
        other.policy.load_state_dict(dict(model.policy.state_dict()))
    assert all(th.equal(value, before[name]) for name, value in other.policy.state_dict().items())


# --- Parts ---

PARTS = [(TD3, "actor"), (SAC, "actor"), (DQN, "q_net"), (QRDQN, "quantile_net")]


@pytest.mark.parametrize("sparsity", [0.0, 0.7])
@pytest.mark.parametrize(("algorithm", "part"), PARTS)
def test_parts_that_are_saved_alone_load_into_stock_ones(algorithm, part, sparsity, tmp_path):
    model = trained(algorithm, sparsity=sparsity)
    network = getattr(model.policy, part)
    network.save(tmp_path / "part.pth")
    loaded = type(network).load(tmp_path / "part.pth", device="cpu")
    assert not any(hasattr(module, "weight_mask") for module in loaded.modules())
    for name, value in loaded.state_dict().items():
        assert th.equal(value, network.state_dict()[name])
    batch = observations(model)
    assert np.allclose(loaded.predict(batch, deterministic=True)[0], network.predict(batch, deterministic=True)[0], atol=1e-6)


def test_parts_load_where_this_package_is_not_installed(tmp_path):
    model = make_model(TD3, policy_kwargs=dict(sparsity=0.7))
    model.actor.save(tmp_path / "actor.pth")
    code = f"""
import sys
class Block:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "sb3_sparse":
            raise ModuleNotFoundError(name)
sys.meta_path.insert(0, Block())
from stable_baselines3.td3.policies import Actor
print(type(Actor.load(r"{tmp_path / "actor.pth"}")).__name__)
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300)
    assert result.stdout.strip() == "Actor", result.stderr


@pytest.mark.parametrize(("algorithm", "part"), PARTS)
def test_a_part_that_is_loaded_brings_its_masks(algorithm, part, tmp_path):
    model, other = trained(algorithm), trained(algorithm, sparsity=0.4)
    network = getattr(model.policy, part)
    network.save(tmp_path / "part.pth")
    state = th.load(tmp_path / "part.pth", weights_only=False)["state_dict"]
    getattr(other.policy, part).load_state_dict(state)
    assert_invariants(other)
    for name, mask in masks_of(model).items():
        if name.startswith(f"{part}."):
            assert th.equal(other.policy.sparsifier.layers[name].weight_mask, mask)
    other.learn(24, reset_num_timesteps=False)
    assert_invariants(other)


def test_a_stock_part_is_projected_onto_the_masks_there_are():
    stock, model = make_model(TD3, sparse=False, seed=3), trained(TD3)
    masks = masks_of(model)
    model.policy.actor.load_state_dict(stock.policy.actor.state_dict())
    assert same_masks(model, masks)
    assert_invariants(model)
    # As SB3 itself does it
    model.policy.critic_target.load_state_dict(model.policy.critic.state_dict())
    assert_invariants(model)


def test_a_layers_own_state_dict():
    model, other = trained(DQN), trained(DQN, sparsity=0.4)
    name, layer = next(iter(model.policy.sparsifier.layers.items()))
    state = layer.state_dict()
    assert sorted(state) == ["bias", "weight"]
    assert set(state._metadata[""][ENTRY]) == {"weight_mask", "n_active"}
    other.policy.sparsifier.layers[name].load_state_dict(state)
    assert_invariants(other)
    assert other.policy.sparsifier.n_planned[name] == layer.n_active
    # Into a destination without metadata everything goes among the keys
    plain = {}
    layer.state_dict(destination=plain)
    assert sorted(plain) == ["bias", "weight", "weight_mask"]
    other.policy.sparsifier.layers[name].load_state_dict(plain)
    assert_invariants(other)


# --- Damage ---


def damage(tmp_path, change, algorithm=TD3, quantized=False):
    """A zip in which something was changed, and a live model that it must leave as it is."""
    model = trained(algorithm)
    if quantized:
        model = quantize(model, data=observations(model))
    model.save(tmp_path / "good.zip")
    data, params, variables = load_from_zip_file(tmp_path / "good.zip", device="cpu")
    change(params)
    save_to_zip_file(tmp_path / "bad.zip", data=data, params=params, pytorch_variables=variables)
    return tmp_path / "bad.zip"


def entry(params, path):
    return params["policy"]._metadata[path][ENTRY]


def set_value(tensor, value):
    tensor.view(-1)[3] = value


def flip(mask):
    mask.view(-1)[0] = ~mask.view(-1)[0]


DAMAGES = {
    "a bit of a mask": (
        lambda params: flip(entry(params, "actor.mu.0")["weight_mask"]),
        r"actor.mu.0.weight_mask has \d+ positions, \d+ when it was saved",
    ),
    "a mask's dtype": (
        lambda params: entry(params, "critic.qf0.2").update(weight_mask=th.ones(12, 16)),
        r"critic.qf0.2.weight_mask must be bool of shape \(12, 16\), got torch.float32 of shape \(12, 16\)",
    ),
    "a mask's shape": (
        lambda params: entry(params, "actor.mu.2").update(weight_mask=th.ones(16, 12, dtype=th.bool)),
        r"actor.mu.2.weight_mask must be bool of shape \(12, 16\), got torch.bool of shape \(16, 12\)",
    ),
    "a mask that is none": (
        lambda params: entry(params, "actor.mu.2").update(weight_mask="yes"),
        r"actor.mu.2.weight_mask must be bool of shape \(12, 16\), got 'yes'",
    ),
    "NaN in a weight": (
        lambda params: set_value(params["policy"]["actor.mu.2.weight"], th.nan),
        "actor.mu.2.weight has values that are not finite",
    ),
    "Inf in a bias": (
        lambda params: set_value(params["policy"]["critic_target.qf1.0.bias"], th.inf),
        "critic_target.qf1.0.bias has values that are not finite",
    ),
    "a counter": (
        lambda params: entry(params, "sparsifier").update(n_steps_actor=th.tensor(-1)),
        "sparsifier.n_steps_actor must be a counter",
    ),
    "a weight's shape": (
        lambda params: params["policy"].update({"actor.mu.2.weight": th.zeros(12, 15)}),
        r"actor.mu.2.weight has shape \(12, 15\)",
    ),
    "a key": (lambda params: params["policy"].pop("actor.mu.2.bias"), 'Missing key.*"actor.mu.2.bias"'),
    "a moment's shape": (
        lambda params: params["critic.optimizer"]["state"][2].update(exp_avg=th.zeros(3)),
        r"critic.optimizer: exp_avg of parameter 2 has shape \(3,\), the parameter \(12, 16\)",
    ),
    "NaN in a moment": (
        lambda params: set_value(params["critic.optimizer"]["state"][0]["exp_avg_sq"], th.nan),
        "critic.optimizer: exp_avg_sq of parameter 0 has values that are not finite",
    ),
    "a parameter too few": (
        lambda params: params["critic.optimizer"]["param_groups"][0]["params"].pop(),
        "doesn't match the size of optimizer's group",
    ),
}


@pytest.mark.parametrize("what", DAMAGES)
def test_damaged_zips_are_refused_and_change_nothing(what, tmp_path):
    change, message = DAMAGES[what]
    file = damage(tmp_path, change)
    model = trained(TD3, sparsity=0.5)
    before = copy.deepcopy(model.get_parameters())
    with pytest.raises((RuntimeError, ValueError), match=message):
        model.set_parameters(file, device="cpu")
    twin = trained(TD3, sparsity=0.5)
    assert equal_state(model, twin)
    assert same_dict(before, model.get_parameters())
    assert_invariants(model)
    with pytest.raises((RuntimeError, ValueError, KeyError)):
        TD3.load(file)


def same_dict(first, second):
    if isinstance(first, th.Tensor):
        return th.equal(first, second)
    if isinstance(first, dict):
        first, second = revealed(first), revealed(second)
        return first.keys() == second.keys() and all(same_dict(value, second[key]) for key, value in first.items())
    return first == second


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda params: params["policy"]["actor.mu.0.quantizer.low"].fill_(9.0), "low <= high and finite"),
        (lambda params: params["policy"]["actor.mu.0.quantizer.high"].fill_(th.nan), "low <= high and finite"),
        (
            lambda params: entry(params, "actor.mu.0.quantizer")["settings"].fill_(-3),
            "actor.mu.0.quantizer.settings are no settings of a quantizer",
        ),
        (
            lambda params: entry(params, "actor.mu.0.quantizer").update(n_observed=th.tensor(-1)),
            "actor.mu.0.quantizer.n_observed must be a count",
        ),
    ],
)
def test_damaged_quantizers_are_refused(change, message, tmp_path):
    file = damage(tmp_path, change, quantized=True)
    model = trained(TD3)
    before = copy.deepcopy(model.get_parameters())
    with pytest.raises(RuntimeError, match=message):
        model.set_parameters(file)
    assert same_dict(before, model.get_parameters())
    assert all(layer.quantizer is None for layer in model.policy.sparsifier.layers.values())


def test_a_policy_that_fails_to_load_can_be_trained_and_loaded_again(tmp_path):
    file = damage(tmp_path, DAMAGES["NaN in a moment"][0])
    model = trained(TD3)
    with pytest.raises(RuntimeError):
        model.set_parameters(file)
    model.learn(24, reset_num_timesteps=False)
    assert_invariants(model)
    model.set_parameters(tmp_path / "good.zip")
    assert equal_state(model, TD3.load(tmp_path / "good.zip"))


def test_damaged_files_that_stock_sb3_notices_itself(tmp_path):
    model = trained(TD3)
    model.save(tmp_path / "model.zip")
    whole = (tmp_path / "model.zip").read_bytes()
    before = copy.deepcopy(model.get_parameters())
    with zipfile.ZipFile(tmp_path / "model.zip") as archive:
        offset = archive.getinfo("policy.pth").header_offset + 500
    flipped = bytearray(whole)
    flipped[offset] ^= 1
    for name, content in (("truncated", whole[: len(whole) // 2]), ("flipped", bytes(flipped)), ("empty", b"")):
        file = tmp_path / f"{name}.zip"
        file.write_bytes(content)
        with pytest.raises(Exception):  # noqa: B017, PT011
            model.set_parameters(file)
        assert same_dict(before, model.get_parameters())
