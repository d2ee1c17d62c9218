"""Any point of any search is a configuration that trains, and nothing else of the configuration is lost."""

from __future__ import annotations

import re
from pathlib import Path

import optuna
import pytest
import torch as th
import yaml
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from optuna.trial import FixedTrial
from rl_zoo3 import exp_manager
from rl_zoo3.utils import ALGOS, get_callback_list
from stable_baselines3.common.callbacks import BaseCallback
from torch import nn

from sb3_sparse import RigL, SearchFor, sparse_policy
from sb3_sparse.cli.main import main
from sb3_sparse.policies.algorithms import SPARSE_POLICIES
from sb3_sparse.policies.base import SparsePolicyMixin
from sb3_sparse.tuning.merge import evaluate, policy_of
from sb3_sparse.tuning.spaces import SEARCHES, check_configuration, check_searches, count_inputs, sample, searches_table
from sb3_sparse.zoo.presets import preset_entry
from tests.helpers import RandomEnv, assert_invariants

ALGO_NAMES = [name for name, algorithm in ALGOS.items() if algorithm in SPARSE_POLICIES]
METHODS = ["dense", "static", "ds", "rlx2", "rnm", "compress"]
NETWORKS = {"dqn": {"q_net"}, "qrdqn": {"quantile_net"}}
ON_POLICY = ("ppo", "a2c", "ppo_lstm")
#: rl-zoo3's own search has batches of 2048 and networks of 400 x 300: it is not what is to be tested here
OWN = [name for name in SEARCHES if name != "stock"]


class DrawnTrial:
    """A trial whose values hypothesis chooses."""

    def __init__(self, data: st.DataObject) -> None:
        self.data = data
        self.params: dict = {}

    def _suggest(self, name, strategy):
        self.params[name] = self.data.draw(strategy, label=name)
        return self.params[name]

    def suggest_float(self, name, low, high, *, log=False):
        return self._suggest(name, st.floats(low, high))

    def suggest_int(self, name, low, high, *, log=False):
        return self._suggest(name, st.integers(low, high))

    def suggest_categorical(self, name, choices):
        return self._suggest(name, st.sampled_from(choices))


def trials(seed=0):
    """An endless study of random trials."""
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    return optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=seed))


def small(section, algo):
    """A configuration whose training takes a moment, with no more than its numbers changed."""
    if algo in ON_POLICY:
        section |= dict(n_timesteps=70, n_steps=20)
    else:
        section |= dict(n_timesteps=70, learning_starts=20, batch_size=8, buffer_size=400, train_freq=2, gradient_steps=2)
    section["policy_kwargs"] = {**(section.get("policy_kwargs") or {}), "net_arch": [32, 24]}
    if "er_epsilon" in str(section["policy_kwargs"].get("distribution")):
        # Networks as small as this would be dense
        section["policy_kwargs"]["distribution"] = {"er_epsilon": [3, 4]}
    if algo == "ppo_lstm":
        section["policy_kwargs"]["lstm_hidden_size"] = 8
    for entry in section.get("callback", []):
        for kwargs in entry.values() if isinstance(entry, dict) else ():
            shrunk = dict(every=10, min_size=50, delay=20, stop=60)
            kwargs |= {name: value for name, value in shrunk.items() if name in kwargs}
    return section


def base_section(method, algo):
    if algo in ("td3", "sac", "dqn"):
        return small(preset_entry(method, algo, "CartPole-v1" if algo == "dqn" else "Pendulum-v1"), algo)
    return small({"policy": "MlpLstmPolicy" if algo == "ppo_lstm" else "MlpPolicy"}, algo)


def make_and_train(section, algo, n_inputs, kind="Mlp"):
    """What rl-zoo3 does with a section, on an environment that takes no time."""
    arguments = dict(section)
    callbacks = get_callback_list({"callback": arguments.pop("callback", None)})
    n_timesteps, policy = arguments.pop("n_timesteps"), policy_of(algo, arguments.pop("policy"))
    for name in ("policy_kwargs", "replay_buffer_class", "replay_buffer_kwargs"):
        if name in arguments:
            arguments[name] = evaluate(arguments[name])
    for name in ("noise_type", "noise_std", "normalize"):
        arguments.pop(name, None)
    if isinstance(arguments.get("learning_rate"), str):
        arguments["learning_rate"] = 1e-3
    env = RandomEnv(kind, discrete=algo in ("dqn", "qrdqn"), n_inputs=n_inputs)
    model = ALGOS[algo](policy, env, seed=0, device="cpu", **arguments)
    model.learn(n_timesteps, callback=callbacks)
    return model


def check_sample(trial, names, algo, base, n_inputs):
    before = yaml.safe_dump(base)
    found = sample(trial, names, algo, base, n_inputs=n_inputs)
    assert yaml.safe_dump(base) == before
    assert found.keys() >= base.keys()
    written = yaml.safe_load(yaml.safe_dump(found))
    assert written == found
    assert sample(FixedTrial(trial.params), names, algo, base, n_inputs=n_inputs) == found
    assert found["policy"].startswith("sb3_sparse.")
    return written


@pytest.mark.usefixtures("torch_engine")
@pytest.mark.parametrize("algo", ["td3", "sac", "dqn"])
def test_any_point_of_any_search_trains(algo):
    @settings(max_examples=12)
    @given(st.data())
    def check(data):
        method = data.draw(st.sampled_from(METHODS))
        wanted = data.draw(st.lists(st.sampled_from(OWN), min_size=1, max_size=5, unique=True))
        base, n_inputs = base_section(method, algo), data.draw(st.sampled_from([4, 11]))
        try:
            names = check_searches(wanted, algo)
            check_configuration(names, algo, base)
        except ValueError:
            assume(False)
        if method == "rnm" and "pattern" not in names:
            n_inputs = 11
        model = make_and_train(check_sample(DrawnTrial(data), names, algo, base, n_inputs), algo, n_inputs)
        assert_invariants(model)

    check()


@pytest.mark.usefixtures("torch_engine")
@pytest.mark.parametrize("algo", ["dqn", "ppo", "sac"])
def test_images(algo):
    base = small({"policy": "CnnPolicy"}, algo)
    base["policy_kwargs"]["features_extractor_kwargs"] = {"features_dim": 24}
    base["n_timesteps"] = 32
    study, names = trials(), ["sparsity", "pattern", "distribution", "updater", "quantization"]
    study.enqueue_trial({"pattern": "unstructured", "updater": "rigl"})
    trial = study.ask()
    section = check_sample(trial, names, algo, base, count_inputs(RandomEnv("Cnn").observation_space))
    model = make_and_train(section, algo, 7, "Cnn")
    assert_invariants(model)
    # Every network there is has its own sparsity
    networks = {name.removeprefix("density_") for name in trial.params if name.startswith("density_")}
    assert networks == set(sparse_policy(model).sparsifier.networks)
    assert trial.params["distribution_cnn"] == section["policy_kwargs"]["distribution"]


@pytest.mark.usefixtures("torch_engine")
@pytest.mark.parametrize("algo", [algo for algo in ALGO_NAMES if algo not in ("td3", "sac", "dqn")])
def test_other_algorithms(algo):
    names = ["sparsity", "pattern", "distribution", "updater", "cadence", "drop_fraction"]
    names += [] if algo in ON_POLICY else ["n_step"]
    names += [] if algo == "ppo_lstm" else ["quantization"]
    section = check_sample(trials().ask(), names, algo, base_section("", algo), 7)
    assert_invariants(make_and_train(section, algo, 7))


@pytest.mark.parametrize("algo", [algo for algo in ALGO_NAMES if algo != "crossq"])
def test_the_zoos_own_search_is_merged(algo):
    """Same names, same values as rl-zoo3's sampler; what it says nothing of stays."""
    base = base_section("static", algo) | {"gamma": 0.9}
    base["policy_kwargs"] |= {"sparsity": 0.7, "log_std_init": -2.0}
    base["callback"] = {"sb3_sparse.RigL": {"every": 7, "drop_fraction": 0.2}}
    sampler = exp_manager.HYPERPARAMS_SAMPLER[algo]
    study = trials(1)
    for _ in range(5):
        trial = study.ask()
        found = sample(trial, ["stock", "sparsity"], algo, base)
        context = {"using_her_replay_buffer": False, "her_kwargs": {}}
        stock = getattr(sampler, "stock", sampler)(FixedTrial(trial.params), 1, 1, context)
        kwargs = evaluate(found["policy_kwargs"])
        for key, value in stock.items():
            if key == "policy_kwargs":
                assert {name: kwargs[name] for name in value} == value
            elif key != "action_noise":
                assert found[key] == value
        assert kwargs["log_std_init"] == -2.0
        assert set(kwargs["sparsity"]) == NETWORKS.get(algo, {"actor", "critic"})
        assert found["callback"] == [{"sb3_sparse.RigL": {"every": 7, "drop_fraction": 0.2}}]


def test_no_noise_is_written_as_noise_of_size_zero():
    """rl-zoo3 hands a noise_type of None on to the algorithm, which does not know it."""
    params = dict(one_minus_gamma=0.01, batch_size_pow=3, learning_rate=1e-3, train_freq=1, tau=0.01, net_arch="small")
    base = base_section("static", "td3")
    for kind, expected in (
        (None, ("normal", 0.0)),
        ("normal", ("normal", 0.3)),
        ("ornstein-uhlenbeck", ("ornstein-uhlenbeck", 0.3)),
    ):
        found = sample(FixedTrial({**params, "noise_type": kind, "noise_std": 0.3}), "stock", "td3", base)
        assert (found["noise_type"], found["noise_std"]) == expected


def test_sampled_discounts_reach_the_replay_buffer():
    base = base_section("rlx2", "sac")
    found = sample(trials().ask(), ["stock"], "sac", base)
    assert found["gamma"] != base["gamma"]
    assert found["replay_buffer_kwargs"] == {"n_steps": 1, "gamma": found["gamma"]}


# --- What is merged, by hand ---

BASE = {"n_timesteps": 1100, "policy": "SparseMlpPolicy", "learning_starts": 100, "gradient_steps": 1, "train_freq": 1}
RIGL = {"every": 50, "drop_fraction": 0.2, "moments": "keep", "skip_step": True, "sign_split": "half"}
REFRESH = {"callback": {"sb3_sparse.MaskRefresh": {"every": 9}}}


def found_in(params, names, algo="td3", n_inputs=11, **entries):
    return sample(FixedTrial(params), names, algo, {**BASE, **entries}, n_inputs=n_inputs)


def test_sparsity_replaces_numbers_and_keeps_the_rest():
    params = {"density_actor": 0.1, "density_critic": 0.25}
    kwargs = {"net_arch": [64], "sparsity": 0.5, "distribution": "er", "initial_mask": "magnitude"}
    found = found_in(params, "sparsity", policy_kwargs=kwargs)
    assert found == {
        **BASE,
        "policy": "sb3_sparse.SparseTD3Policy",
        "policy_kwargs": {**kwargs, "sparsity": {"actor": 0.9, "critic": 0.75}},
    }


def test_a_map_says_which_networks_are_sparse():
    found = found_in({"density_actor": 0.1}, "sparsity", policy_kwargs={"sparsity": {"actor": 0.5, "critic": 0.0}})
    assert found["policy_kwargs"] == {"sparsity": {"actor": 0.9}}


def test_dense_policies_become_sparse():
    found = found_in({"density_q_net": 0.5}, "sparsity", "dqn", policy="CnnPolicy")
    assert (found["policy"], found["policy_kwargs"]) == ("sb3_sparse.SparseDQNCnnPolicy", {"sparsity": {"q_net": 0.5}})
    quantized = found_in(
        {f"quantization_{name}": value for name, value in dict(bits=4, activation_bits=5, input_bits=8, begin=0.5).items()},
        "quantization",
        policy="MlpPolicy",
    )
    assert quantized["policy_kwargs"] == {"sparsity": 0.0}
    assert quantized["callback"] == [
        {"sb3_sparse.QuantizationAware": {"bits": 4, "activation_bits": 5, "input_bits": 8, "start": 0.5}}
    ]


def test_strings_that_the_zoo_evaluates():
    text = "dict(net_arch=[64], activation_fn=nn.Tanh, optimizer_kwargs=dict(betas=(0.5, 0.9)))"
    found = found_in({"density_actor": 0.1, "density_critic": 0.1}, "sparsity", policy_kwargs=text)
    assert isinstance(found["policy_kwargs"], str)
    assert text in found["policy_kwargs"]
    expected = {"net_arch": [64], "activation_fn": nn.Tanh, "optimizer_kwargs": {"betas": (0.5, 0.9)}}
    assert eval(found["policy_kwargs"], dict(vars(exp_manager))) == {**expected, "sparsity": {"actor": 0.9, "critic": 0.9}}
    # Nothing in it needs Python
    plain = found_in({"density_actor": 0.1, "density_critic": 0.1}, "sparsity", policy_kwargs="dict(net_arch=[64])")
    assert plain["policy_kwargs"] == {"net_arch": [64], "sparsity": {"actor": 0.9, "critic": 0.9}}
    with pytest.raises(ValueError, match="'dict\\(' is not an expression that rl-zoo3 can evaluate"):
        found_in({}, "sparsity", policy_kwargs="dict(")


def test_classes_of_python_configurations_are_written_as_text():
    kwargs = {"activation_fn": nn.Tanh, "optimizer_class": th.optim.AdamW}
    found = found_in({"density_actor": 0.1, "density_critic": 0.1}, "sparsity", policy_kwargs=kwargs, train_freq=(1, "step"))
    assert eval(found["policy_kwargs"], dict(vars(exp_manager))) == {**kwargs, "sparsity": {"actor": 0.9, "critic": 0.9}}
    assert found["train_freq"] == [1, "step"]


@pytest.mark.parametrize(
    "written",
    [
        "sb3_sparse.SparsityLogger",
        {"sb3_sparse.SparsityLogger": {"verbose": 1}},
        {"sb3_sparse.SparsityLogger": None},
        ["sb3_sparse.SparsityLogger", "rl_zoo3.callbacks.RawStatisticsCallback"],
        None,
    ],
)
def test_callbacks_in_every_form_stay(written):
    found = found_in({"updater": "set"}, "updater", callback=written, policy_kwargs={"sparsity": 0.5})
    callbacks = get_callback_list(found)
    assert all(isinstance(callback, BaseCallback) for callback in callbacks)
    names = [type(callback).__name__ for callback in callbacks]
    others = [] if written is None else ["SparsityLogger", "RawStatisticsCallback"][: 2 if isinstance(written, list) else 1]
    assert names == ["SET", *others]
    if isinstance(written, dict):
        assert callbacks[1].verbose == (written["sb3_sparse.SparsityLogger"] or {}).get("verbose", 0)


def test_updaters_keep_what_the_new_one_understands():
    callback = ["sb3_sparse.SparsityLogger", {"sb3_sparse.callbacks.set_rigl.RigL": RIGL}]
    kept = {"drop_schedule": "cosine", "every": 50, "drop_fraction": 0.2, "moments": "keep", "skip_step": True}

    def updater(params, names="updater", **kwargs):
        found = found_in(params, names, callback=callback, policy_kwargs={"sparsity": 0.5}, **kwargs)
        assert found["callback"][0] == "sb3_sparse.SparsityLogger"
        return found["callback"][1:]

    assert updater({"updater": "rigl"}) == [{"sb3_sparse.RigL": {**kept, "sign_split": "half"}}]
    assert updater({"updater": "set"}) == [{"sb3_sparse.SET": {**kept, "sign_split": "half"}}]
    assert updater({"updater": "static"}) == []
    drop = {"drop_fraction": 0.3, "drop_schedule": "linear"}
    changed = updater({"mask_updates": 10, **drop}, "cadence,drop_fraction")
    assert changed == [{"sb3_sparse.callbacks.set_rigl.RigL": {**RIGL, "every": 100, "unit": "timesteps", **drop}}]
    blocks = {"pattern": "block:4x1", "updater": "set"}
    assert updater(blocks, "pattern,updater") == [{"sb3_sparse.SET": kept}]
    n_m = {"pattern": "2:4", "updater_n_m": "mask_refresh", "mask_refresh_rule": "ste"}
    assert updater(n_m, "pattern,updater") == [{"sb3_sparse.MaskRefresh": {"every": 50, "rule": "ste"}}]


def test_an_updater_for_two_networks_takes_the_place_of_two():
    two = [
        {"sb3_sparse.SET": {"every": 9, "drop_fraction": 0.1, "networks": "actor"}},
        {"sb3_sparse.RigL": {**RIGL, "networks": ["critic"]}},
    ]
    found = found_in({"updater": "rigl"}, "updater", callback=two, policy_kwargs={"sparsity": 0.5})
    assert found["callback"] == [
        {"sb3_sparse.RigL": {"every": 9, "drop_fraction": 0.1, "drop_schedule": "cosine", "networks": ["actor", "critic"]}}
    ]


def test_new_updaters_have_values_of_their_own():
    found = found_in({"updater": "rigl"}, "updater", policy_kwargs={"sparsity": 0.5})
    assert found["callback"] == [
        {"sb3_sparse.RigL": {"drop_fraction": 0.5, "drop_schedule": "cosine", "every": 10, "unit": "timesteps"}}
    ]


def test_patterns():
    """N:M says how sparse everything is; from there on, what it said stays."""
    kwargs = {"sparsity": 0.9, "distribution": "er", "net_arch": [64]}
    assert found_in({"pattern": "1:8"}, "pattern", policy_kwargs=kwargs)["policy_kwargs"] == {
        "net_arch": [64],
        "pattern": "1:8",
    }
    one = found_in({"pattern": "1:4"}, "pattern,sparsity", policy_kwargs={"sparsity": {"actor": 0.9}})
    assert one["policy_kwargs"] == {"sparsity": {"actor": 0.75}, "pattern": "1:4"}
    back = found_in({"pattern": "block:4x1"}, "pattern", policy_kwargs={"pattern": "1:4"})
    assert back["policy_kwargs"] == {"pattern": "block:4x1", "sparsity": 0.75}
    # A row of three inputs has no group of four
    for n_inputs in (3, None):
        narrow = found_in({"pattern": "1:4"}, "pattern", n_inputs=n_inputs, policy_kwargs={"dense_layers": "last"})
        assert narrow["policy_kwargs"] == {"pattern": "1:4", "dense_layers": ["last", "first"]}


def test_explicit_distributions_give_way_to_a_sampled_sparsity():
    params = {"density_actor": 0.1, "density_critic": 0.1}
    for explicit, expected in (({"er_epsilon": [7, 64]}, {"distribution": "er"}), ({"actor.mu.0": 0.5}, {})):
        found = found_in(params, "sparsity", policy_kwargs={"distribution": explicit})
        assert found["policy_kwargs"] == {"sparsity": {"actor": 0.9, "critic": 0.9}, **expected}


def test_pruning_goes_where_the_configuration_or_the_sparsity_says():
    schedule = {"pruning_begin": 0.1, "pruning_length": 0.5, "pruning_updates": 7}
    expected = {"start": 0.1, "stop": 0.6, "updates": 7}
    found = found_in({**schedule, "pruning_scope": "global"}, "pruning", policy_kwargs={"sparsity": 0.9, "distribution": "er"})
    assert found["policy_kwargs"] == {"sparsity": 0.0, "distribution": "er"}
    assert found["callback"] == [{"sb3_sparse.GradualPruning": {"final_sparsity": 0.9, **expected, "scope": "global"}}]
    both = found_in({**schedule, "pruning_scope": "layer", "density_actor": 0.1, "density_critic": 0.1}, "pruning,sparsity")
    assert both["policy_kwargs"] == {"sparsity": 0.0}
    final = {"actor": 0.9, "critic": 0.9}
    assert both["callback"] == [{"sb3_sparse.GradualPruning": {"final_sparsity": final, **expected, "scope": "layer"}}]
    explicit = found_in(schedule, "pruning", policy_kwargs={"distribution": {"actor.mu.0": 0.5}})
    assert explicit["policy_kwargs"] == {"sparsity": 0.0}
    assert explicit["callback"] == [{"sb3_sparse.GradualPruning": {"distribution": {"actor.mu.0": 0.5}, **expected}}]
    n_m = found_in(schedule, "pruning", policy_kwargs={"pattern": "2:4"})
    assert n_m["callback"] == [{"sb3_sparse.GradualPruning": expected}]


def test_a_preset_that_prunes_gets_its_final_sparsity():
    base = preset_entry("compress", "sac", "Hopper-v4")
    found = sample(FixedTrial({"density_actor": 0.02}), "sparsity", "sac", base)
    assert found["policy_kwargs"] == base["policy_kwargs"]
    (pruning,) = [entry for entry in found["callback"] if "sb3_sparse.GradualPruning" in entry]
    (before,) = [entry for entry in base["callback"] if "sb3_sparse.GradualPruning" in entry]
    name = "sb3_sparse.GradualPruning"
    assert pruning[name] == {**before[name], "final_sparsity": {"actor": 0.98}}
    assert [entry for entry in found["callback"] if name not in entry] == [e for e in base["callback"] if name not in e]


def test_pruning_to_a_sampled_goal_begins_dense():
    """From where it can be reached: pruned weights never return."""
    pruning = {"final_sparsity": 0.95, "distribution": "uniform", "start": 0.1, "stop": 0.9}
    old_names = {"start": "begin", "stop": "end"}
    callback = {"sb3_sparse.GradualPruning": {old_names.get(name, name): value for name, value in pruning.items()}}
    for kwargs in ({"sparsity": 0.5, "distribution": "er"}, {"distribution": {"actor.mu.0": 0.5}}):
        named = {name: value for name, value in kwargs.items() if value == "er"}
        found = found_in({"density_actor": 0.8, "density_critic": 0.8}, "sparsity", policy_kwargs=kwargs, callback=callback)
        assert found["policy_kwargs"] == {"sparsity": 0.0, **named}
        final = {"final_sparsity": {"actor": 0.2, "critic": 0.2}}
        assert found["callback"] == [{"sb3_sparse.GradualPruning": {**pruning, **final}}]
        spread = found_in({"distribution": "erk"}, "distribution", policy_kwargs=kwargs, callback=callback)
        assert spread["policy_kwargs"] == {"sparsity": 0.0, "distribution": "erk"}
        assert "distribution" not in spread["callback"][0]["sb3_sparse.GradualPruning"]
        n_m = found_in({"pattern": "1:4"}, "pattern", policy_kwargs=kwargs, callback=callback)
        assert n_m["policy_kwargs"] == {"sparsity": 0.0, "pattern": "1:4"}
        assert n_m["callback"] == [{"sb3_sparse.GradualPruning": {"start": 0.1, "stop": 0.9}}]
    # Across layers there is no distribution, so that is not sampled where there is one
    schedule = {"pruning_begin": 0.2, "pruning_length": 0.5, "pruning_updates": 9}
    found = found_in(schedule, "pruning", callback=callback)
    assert found["callback"] == [{"sb3_sparse.GradualPruning": {**pruning, "start": 0.2, "stop": 0.7, "updates": 9}}]


def test_hindsight_replay_is_searched_by_the_zoo():
    params = dict(one_minus_gamma=0.01, batch_size_pow=3, learning_rate=1e-3, train_freq=1, tau=0.01, net_arch="small")
    her = dict(replay_buffer_class="HerReplayBuffer", replay_buffer_kwargs="dict(n_sampled_goal=9, copy_info_dict=True)")
    chosen = {"n_sampled_goal": 2, "goal_selection_strategy": "final"}
    found = found_in({**params, **chosen}, "stock", "sac", policy="SparseMultiInputPolicy", **her)
    assert found["replay_buffer_class"] == "HerReplayBuffer"
    assert found["replay_buffer_kwargs"] == {**chosen, "copy_info_dict": True}


def test_multi_step_targets():
    delay = {"n_step": 3, "n_step_delay": 0.25, "n_step_entropy": "every_step"}
    base = dict(n_steps=5, gamma=0.9, replay_buffer_kwargs="dict(handle_timeout_termination=False)")
    found = found_in(delay, "n_step", "sac", **base)
    assert found["callback"] == [{"sb3_sparse.DelayedNStep": {"n_steps": 3, "delay": 250, "entropy": "every_step"}}]
    # Stable-Baselines3's own n_steps are for its own choice of a buffer
    assert found["n_steps"] == 1
    assert found["replay_buffer_kwargs"] == {"handle_timeout_termination": False, "n_steps": 1, "gamma": 0.9}
    rlx2 = preset_entry("rlx2", "td3", "Hopper-v4")
    one = sample(FixedTrial({"n_step": 1}), "n_step", "td3", rlx2)
    assert "DelayedNStep" not in str(one["callback"])
    assert one["replay_buffer_kwargs"] == rlx2["replay_buffer_kwargs"]


@pytest.mark.parametrize(
    ("frequency", "steps", "n_envs", "expected"),
    [(1, 1, 1, 500), (4, 2, 1, 250), (2, -1, 1, 500), (2, 1, 5, 50), ([3, "step"], -1, 1, 501), ([1, "episode"], -1, 1, 500)],
)
def test_delays_count_gradient_steps(frequency, steps, n_envs, expected):
    entries = dict(train_freq=frequency, gradient_steps=steps, n_envs=n_envs)
    found = found_in({"n_step": 2, "n_step_delay": 0.5}, "n_step", **entries)
    assert found["callback"][0]["sb3_sparse.DelayedNStep"]["delay"] == expected


# --- What is refused ---


def test_names():
    assert check_searches("updater, sparsity", "td3") == ["sparsity", "updater"]
    assert check_searches(["quantization", "stock"], "sac") == ["stock", "quantization"]
    known = ", ".join(SEARCHES)
    for names, message in (
        ("sparsety", f"`search` names the unknown 'sparsety'; the searches are: {known}"),
        ([], f"`search` names nothing to search; the searches are: {known}"),
        ("updater,pruning", "`search` names both 'updater' and 'pruning'"),
    ):
        with pytest.raises(ValueError, match=re.escape(message)):
            check_searches(names, "td3")
    for names, algo, message in (
        ("n_step", "ppo", "needs a replay buffer; ppo has none"),
        ("stock", "crossq", "rl-zoo3 has no sampler for crossq"),
        ("quantization", "ppo_lstm", "LSTM cannot be quantized"),
        ("sparsity", "trpo", "`algo`='trpo' is not supported; supported are: a2c, ddpg"),
    ):
        with pytest.raises(ValueError, match=message):
            check_searches(names, algo)


@pytest.mark.parametrize(
    ("names", "entries", "message"),
    [
        ("sparsity", {"policy_kwargs": {"pattern": "2:4"}}, "`pattern`='2:4' says how sparse its networks are"),
        ("distribution", {"policy_kwargs": {"pattern": "2:4"}}, "gives every layer the same sparsity"),
        ("distribution", {"policy": "MlpPolicy"}, "nothing of it is sparse: search 'sparsity' as well"),
        ("distribution", {"policy_kwargs": {"distribution": {"actor.mu.0": 0.5}}}, "search 'sparsity' as well"),
        ("pattern", {"policy_kwargs": {"distribution": {"actor.mu.0": 0.5}}}, "search 'sparsity' as well"),
        ("pattern", {"policy": "MlpPolicy"}, "do not say how sparse: search 'sparsity' as well"),
        (
            "pattern",
            {"policy_kwargs": {"pattern": "2:4"}, "callback": {"sb3_sparse.MaskRefresh": {"every": 9}}},
            "MaskRefresh",
        ),
        ("updater", {"policy": "MlpPolicy"}, "nothing of it is sparse"),
        ("updater", {"callback": {"sb3_sparse.GradualPruning": {"final_sparsity": 0.9}}}, "it prunes gradually"),
        ("pruning", {"callback": {"sb3_sparse.RigL": RIGL}}, "it has RigL, and a network has one updater"),
        ("pruning", {"policy_kwargs": {"sparsity": 0.0}}, "nothing says how sparse"),
        ("cadence", {}, "it has no updater: search 'updater' as well"),
        ("drop_fraction", REFRESH, "neither SET nor RigL"),
        ("n_step", {"policy": "MultiInputPolicy"}, "its observations are dicts"),
        ("n_step", {"replay_buffer_class": "HerReplayBuffer"}, "HerReplayBuffer"),
        ("n_step", {"optimize_memory_usage": True}, "`optimize_memory_usage`"),
        ("sparsity", {"policy": "SparsePolicy"}, "`policy`='SparsePolicy' is unknown to td3; it knows: MlpPolicy"),
        ("sparsity", {"policy": "stable_baselines3.common.policies.ContinuousCritic"}, "has no sparse counterpart"),
        ("sparsity", {"policy": "sb3_sparse.SparseTDPolicy"}, "'sb3_sparse.SparseTDPolicy', which cannot be imported"),
        ("sparsity", {"callback": "nowhere.Callback"}, "'nowhere.Callback', which cannot be imported"),
    ],
)
def test_configurations_without_a_place_for_a_search(names, entries, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        sample(FixedTrial({}), names, "td3", {**BASE, **entries})


def test_missing_entries():
    for missing in ("n_timesteps", "policy"):
        section = {key: value for key, value in BASE.items() if key != missing}
        with pytest.raises(ValueError, match=f"`{missing}` is missing"):
            sample(FixedTrial({}), "sparsity", "td3", section)


# --- In files and documents ---


def test_a_configuration_can_say_what_it_is_searched_for():
    mark = {"sb3_sparse.SearchFor": {"search": ["updater", "sparsity"]}}
    found = found_in({"density_actor": 0.5, "density_critic": 0.5}, "sparsity", callback=[mark, "sb3_sparse.SparsityLogger"])
    assert found["callback"] == ["sb3_sparse.SparsityLogger"]
    assert SearchFor("updater,sparsity").search == ["sparsity", "updater"]
    with pytest.raises(ValueError, match="unknown 'x'; the searches are: stock, pattern"):
        SearchFor(["x"])


def test_the_guide_has_the_searches_as_they_are(capsys):
    main(["searches"])
    assert capsys.readouterr().out.strip() == searches_table()
    guide = (Path(__file__).parents[2] / "docs" / "guide" / "tuning.md").read_text()
    assert searches_table() in guide
    for search in SEARCHES.values():
        assert f"| **`{search.name}`** | | | {search.description} | |" in searches_table([search.name])


def test_every_parameter_is_suggested_by_its_search_and_named_after_nothing_else():
    templates = [parameter.name for search in SEARCHES.values() for parameter in search.parameters]
    assert len(templates) == len(set(templates))
    study, met = trials(), set()
    for algo, method in (("sac", "static"), ("sac", "dense"), ("dqn", "static")):
        for names in (
            ["sparsity", "pattern", "distribution", "updater", "cadence", "drop_fraction", "n_step", "quantization"],
            ["sparsity", "pruning"],
        ):
            for _ in range(30):
                trial = study.ask()
                base = base_section(method, algo)
                if algo == "dqn":
                    base["policy"] = "CnnPolicy"
                sample(trial, names, algo, base, n_inputs=11)
                met |= {re.sub("density_(actor|critic|q_net)", "density_{network}", name) for name in trial.params}
    assert met == set(templates)


def test_count_inputs():
    assert count_inputs(RandomEnv(n_inputs=5).observation_space) == 5
    assert count_inputs(RandomEnv("MultiInput").observation_space) is None


def test_the_policy_of_a_sample_is_what_it_says():
    base = base_section("static", "td3")
    found = sample(FixedTrial({"density_actor": 0.1, "density_critic": 0.3}), "sparsity", "td3", base)
    found["callback"] = [{"sb3_sparse.RigL": {"every": 5, "drop_fraction": 0.3}}]
    model = make_and_train(found, "td3", 7)
    assert isinstance(model.policy, SparsePolicyMixin)
    sparsifier = sparse_policy(model).sparsifier
    for network, density in (("actor", 0.1), ("critic", 0.3)):
        layers = [sparsifier.layers[name] for name in sparsifier.networks[network]]
        assert sum(layer.n_active for layer in layers) == round(density * sum(layer.weight.numel() for layer in layers))
    assert RigL(5, 0.3).clock.every == 5
