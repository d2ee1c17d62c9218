"""Presets, command line and rl-zoo3, end to end on real MuJoCo."""

import json
import os
import subprocess
import sys
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest
import yaml
from rl_zoo3.utils import ALGOS, get_class_by_name
from sb3_contrib import RecurrentPPO
from stable_baselines3 import A2C, DDPG, DQN, PPO, SAC, TD3

from sb3_sparse import integer_forward, shrink, sparse_policy, sparsify, sparsity_report
from sb3_sparse.analysis.integer_forward import network_output
from sb3_sparse.cli.main import main
from sb3_sparse.cli.zoo import _accelerated, zoo_arguments
from sb3_sparse.conversion.loading import MissingReplayBuffer, find_algorithm, find_model_file, load_model
from sb3_sparse.policies.algorithms import SPARSE_POLICIES
from sb3_sparse.policies.base import SparsePolicyMixin
from sb3_sparse.zoo.presets import preset_file, presets_folder
from sb3_sparse.zoo.sections import accelerated
from tests.helpers import ALGORITHMS, assert_invariants, make_model

REPOSITORY = Path(__file__).parents[2]
MUJOCO = [f"{name}-{version}" for name in ("Hopper", "HalfCheetah", "Walker2d", "Ant", "Humanoid") for version in ("v4", "v5")]
ENVIRONMENTS = {
    "td3": [*MUJOCO, "Pendulum-v1", "LunarLanderContinuous-v3"],
    "sac": [*MUJOCO, "Pendulum-v1", "LunarLanderContinuous-v3"],
    "dqn": ["CartPole-v1", "LunarLander-v3", "Acrobot-v1", "PongNoFrameskip-v4"],
}
SPARSE_KEYS = {"callback", "policy", "policy_kwargs"}
# Small, so that a run is a matter of seconds
SHORT = ["-params", "learning_starts:100", "buffer_size:2000"]


def load_preset(method, algo):
    return yaml.safe_load(preset_file(method, algo).read_text())


def run(*arguments, cwd, **kwargs):
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    result = subprocess.run([sys.executable, *arguments], cwd=cwd, env=env, capture_output=True, text=True, timeout=600)
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


# --- Presets ---


@pytest.mark.parametrize("method", ["dense", "static"])
@pytest.mark.parametrize("algo", ["td3", "sac", "dqn"])
def test_presets_cover_the_environments_with_real_classes(method, algo):
    preset = load_preset(method, algo)
    assert set(ENVIRONMENTS[algo]) <= set(preset)
    for env_id, values in preset.items():
        policy = values["policy"]
        if "." in policy:
            policy_class = get_class_by_name(policy)
            assert policy_class in SPARSE_POLICIES[ALGOS[algo]], env_id
            assert policy.endswith("CnnPolicy") == (env_id in ("PongNoFrameskip-v4", "atari"))
        else:
            assert method == "dense"
            assert policy in ALGOS[algo].policy_aliases


@pytest.mark.parametrize("algo", ["td3", "sac", "dqn"])
def test_static_differs_from_dense_in_nothing_but_sparsity(algo):
    static, dense = load_preset("static", algo), load_preset("dense", algo)
    assert static.keys() == dense.keys()
    for env_id in static:
        for values in (static[env_id], dense[env_id]):
            values.setdefault("policy_kwargs", {})
        assert {key: value for key, value in static[env_id].items() if key not in SPARSE_KEYS} == {
            key: value for key, value in dense[env_id].items() if key not in SPARSE_KEYS
        }
        extra = {key for key in static[env_id]["policy_kwargs"] if key not in dense[env_id]["policy_kwargs"]}
        assert extra == {"sparsity", "distribution"}
        assert {key: static[env_id]["policy_kwargs"][key] for key in dense[env_id]["policy_kwargs"]} == dense[env_id][
            "policy_kwargs"
        ]


@pytest.mark.parametrize("algo", ["td3", "sac", "dqn"])
def test_dense_presets_are_the_zoos_own(algo):
    import rl_zoo3

    zoo = yaml.safe_load((Path(rl_zoo3.__file__).parent / "hyperparams" / f"{algo}.yml").read_text())
    for env_id, values in load_preset("dense", algo).items():
        zoo_id = {"PongNoFrameskip-v4": "atari"}.get(env_id, env_id.replace("-v5", "-v4"))
        if zoo_id not in zoo:
            continue
        expected = dict(zoo[zoo_id])
        if isinstance(expected.get("policy_kwargs"), str):
            expected["policy_kwargs"] = eval(expected["policy_kwargs"])
        assert values == expected, env_id


def test_unknown_presets_list_the_real_ones():
    with pytest.raises(ValueError, match=r"`method`='sparse' is unknown; the methods are: compress, dense, .*static"):
        preset_file("sparse", "td3")
    with pytest.raises(ValueError, match="`algo`='ppo' has no preset for method 'static'; it has presets for: dqn, sac, td3"):
        preset_file("static", "ppo")
    assert presets_folder() == REPOSITORY / "hyperparams"


# --- Command line ---


def test_zoo_arguments():
    assert zoo_arguments("train", ["--algo", "td3", "--env", "Hopper-v4", "--method", "static", "-n", "9"]) == [
        *("--algo", "td3", "--env", "Hopper-v4", "-n", "9", "-conf", str(preset_file("static", "td3")))
    ]
    assert zoo_arguments("train", ["--algo", "ppo", "-f", "elsewhere"]) == ["--algo", "ppo", "-f", "elsewhere"]
    assert zoo_arguments("enjoy", ["--algo", "td3", "--no-render"]) == ["--algo", "td3", "--no-render", "-f", "logs"]
    assert zoo_arguments("enjoy", ["--algo", "td3", "-f", "here"]) == ["--algo", "td3", "-f", "here"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["train", "--algo", "trpo"], "`--algo` 'trpo' is not supported; supported are: a2c, ddpg, dqn"),
        (["train", "--algo", "td3", "--method", "x"], "`method`='x' is unknown"),
        (["train", "--algo", "td3", "--method", "static", "-conf", "a.yml"], "give one of them"),
        (["report", "nowhere.zip"], "there is no model at nowhere.zip"),
        (["report", str(REPOSITORY / "hyperparams")], "there is no model"),
        (["report", str(REPOSITORY / "README.md")], "is not a zip file"),
        (["report", str(REPOSITORY / "README.md"), "--algo", "x"], "`algo`='x' is unknown; known are: td3"),
    ],
)
def test_bad_command_lines_say_what_to_do_without_a_traceback(arguments, message):
    with pytest.raises(SystemExit, match="sb3-sparse: .*" + message):
        main(arguments)


def test_report_command(tmp_path, capsys):
    model = make_model(SAC, policy_kwargs=dict(sparsity=0.7))
    model.save(tmp_path / "model.zip")
    main(["report", str(tmp_path / "model.zip")])
    expected = sparsity_report(model)
    assert capsys.readouterr().out.strip() == str(expected)
    main(["report", str(tmp_path), "--format", "json", "--algo", "sac"])
    assert json.loads(capsys.readouterr().out) == expected.to_dict()
    main(["report", str(tmp_path), "--format", "markdown"])
    assert capsys.readouterr().out.strip() == expected.to_markdown().strip()


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_algorithm_of_a_file(algorithm, tmp_path):
    make_model(algorithm, policy_kwargs=dict(sparsity=0.5)).save(tmp_path / "model.zip")
    assert find_algorithm(tmp_path / "model.zip") is algorithm
    model = load_model(tmp_path / "model.zip")
    assert_invariants(model)
    assert isinstance(getattr(model, "replay_buffer", MissingReplayBuffer()), MissingReplayBuffer)


def test_algorithm_names_are_the_zoos(tmp_path):
    make_model(DQN).save(tmp_path / "model.zip")
    for name, algorithm in (("ppo_lstm", RecurrentPPO), ("a2c", A2C), ("DDPG", DDPG), ("dqn", DQN)):
        assert find_algorithm(tmp_path / "model.zip", name) is algorithm


def test_dense_files_are_told_apart(tmp_path):
    make_model(PPO, sparse=False).save(tmp_path / "dense.zip")
    message = r"policy is ActorCriticPolicy, which is not sparse: .* or prune this one with sb3_sparse.sparsify"
    with pytest.raises(SystemExit, match=message):
        main(["report", str(tmp_path / "dense.zip")])


def test_the_newest_model_of_a_folder(tmp_path):
    for index, name in enumerate(["b.zip", "sub/a.zip", "c.zip"]):
        file = tmp_path / name
        file.parent.mkdir(exist_ok=True)
        file.touch()
        os.utime(file, (index, index if name != "c.zip" else 0))
    assert find_model_file(tmp_path).name == "a.zip"


# --- rl-zoo3 ---


def test_hopper_through_plain_rl_zoo3(tmp_path):
    """Train, evaluate, save, enjoy, load the best, go on: no flag but the configuration file, no import of the plugin."""
    pytest.importorskip("mujoco")
    zoo = [*("-m", "rl_zoo3.train", "--algo", "td3", "--env", "Hopper-v4", "--seed", "1", "-f", "logs")]
    conf = ["-conf", str(preset_file("static", "td3"))]
    output = run(
        *zoo, *conf, *("-n", "300", "--eval-freq", "100", "--save-freq", "150", "--eval-episodes", "1"), *SHORT, cwd=tmp_path
    )
    assert "| sparsity/" in output
    folder = tmp_path / "logs" / "td3" / "Hopper-v4_1"
    for file in ("Hopper-v4.zip", "best_model.zip", "rl_model_150_steps.zip"):
        model = TD3.load(folder / file)
        assert_invariants(model)
        report = sparsity_report(model)
        assert report.online.sparsity == pytest.approx(0.8, abs=1e-4)
    enjoy = ["-m", "rl_zoo3.enjoy", "--algo", "td3", "--env", "Hopper-v4", "-f", "logs", "--no-render", "-n", "200"]
    for which in ([], ["--load-best"], ["--load-checkpoint", "150"]):
        assert "Mean reward" in run(*enjoy, *which, cwd=tmp_path)
    run(*zoo, *conf, "-i", str(folder / "Hopper-v4.zip"), "-n", "150", *SHORT, cwd=tmp_path)
    again = TD3.load(tmp_path / "logs" / "td3" / "Hopper-v4_2" / "Hopper-v4.zip")
    before = TD3.load(folder / "Hopper-v4.zip")
    assert_invariants(again)
    assert sparse_policy(again).sparsifier.n_steps("critic") > sparse_policy(before).sparsifier.n_steps("critic") > 0
    masks = sparse_policy(before).sparsifier.masks()
    assert all((masks[name] == mask).all() for name, mask in sparse_policy(again).sparsifier.masks().items())


def test_own_command_with_progress_bar(tmp_path):
    pytest.importorskip("mujoco")
    command = ["-m", "sb3_sparse.cli"]
    arguments = ["--algo", "sac", "--env", "HalfCheetah-v4"]
    run(*command, "train", "--method", "static", *arguments, "-n", "200", "-P", *SHORT, cwd=tmp_path)
    assert "Mean reward" in run(*command, "enjoy", *arguments, "--no-render", "-n", "1000", cwd=tmp_path)
    assert "latent_pi" in run(*command, "report", "logs", cwd=tmp_path)


def test_module_entry_point_and_dense_method(tmp_path):
    run(
        *("-m", "sb3_sparse.cli", "train", "--method", "dense", "--algo", "dqn", "--env", "CartPole-v1", "-n", "200"),
        cwd=tmp_path,
    )
    model = DQN.load(tmp_path / "logs" / "dqn" / "CartPole-v1_1" / "CartPole-v1.zip")
    assert not isinstance(model.policy, SparsePolicyMixin)


def test_lunar_lander(tmp_path):
    pytest.importorskip("Box2D")
    run(
        *("-m", "sb3_sparse.cli", "train", "--method", "static", "--algo", "dqn", "--env", "LunarLander-v3", "-n", "200"),
        *SHORT,
        cwd=tmp_path,
    )
    model = DQN.load(tmp_path / "logs" / "dqn" / "LunarLander-v3_1" / "LunarLander-v3.zip")
    assert_invariants(model)


def test_pong(tmp_path):
    pytest.importorskip("ale_py")
    pytest.importorskip("cv2")
    arguments = ["--algo", "dqn", "--env", "PongNoFrameskip-v4"]
    short = ["-params", "buffer_size:500", "learning_starts:100", "target_update_interval:40"]
    run(*("-m", "sb3_sparse.cli", "train", "--method", "static"), *arguments, "-n", "200", *short, cwd=tmp_path)
    model = load_model(find_model_file(tmp_path))
    assert_invariants(model)
    sparsity = {layer.name.rsplit("extractor.", 1)[-1]: layer.sparsity for layer in sparsity_report(model).layers}
    assert sparsity.keys() == {"cnn.0", "cnn.2", "cnn.4", "linear.0", "q_net.q_net.0"}
    assert sparse_policy(model).sparsifier.n_steps("policy") == 25


def test_compressed_pong(tmp_path):
    """The preset's path end to end: convolutions and linear layers pruned, then quantized, with the memory layout it names."""
    pytest.importorskip("ale_py")
    pytest.importorskip("cv2")
    arguments = ["--algo", "dqn", "--env", "PongNoFrameskip-v4", "-n", "300", "--seed", "1", "--save-freq", "230"]
    short = ["-params", "buffer_size:400", "learning_starts:60", "target_update_interval:40"]
    memory = ["optimize_memory_usage:True", "replay_buffer_kwargs:dict(handle_timeout_termination=False)"]
    run(*("-m", "sb3_sparse.cli", "train", "--method", "compress"), *arguments, *short, *memory, cwd=tmp_path)
    folder = tmp_path / "logs" / "dqn" / "PongNoFrameskip-v4_1"
    # After 200 of 300 steps pruning is over, after 250 quantization begins
    before, model = DQN.load(folder / "rl_model_230_steps.zip", buffer_size=1), load_model(folder / "PongNoFrameskip-v4.zip")
    for other, bits in ((before, 32), (model, 8)):
        assert_invariants(other)
        report = sparsity_report(other)
        size = report.networks["q_net"]
        assert size.n_active == round(0.1 * size.n_weights)
        assert size.papers_ratio == pytest.approx(32 / bits / 0.1, rel=1e-3)
        assert size.bytes_with_indices < size.bytes_dense / 5
        assert {layer.weight_bits for layer in report.layers} == {bits}
        # ERK: convolutions keep more than the large linear layer, and every one of them is pruned
        sparsity = {layer.name.rsplit("extractor.", 1)[-1]: layer.sparsity for layer in report.layers}
        assert 0 < sparsity["cnn.0"] < sparsity["cnn.4"] < sparsity["linear.0"]
    masks = sparse_policy(before).sparsifier.masks()
    assert all((masks[name] == mask).all() for name, mask in sparse_policy(model).sparsifier.masks().items())
    observation = np.random.default_rng(0).integers(256, size=(3, 4, 84, 84), dtype=np.uint8)
    assert np.array_equal(integer_forward(model, observation), network_output(model, observation))
    # Channels and units die; what is left answers the same, to the rounding of quantized constants that went into biases
    sparser = sparsify(model, 0.995)
    small = shrink(sparser)
    assert small.policy.q_net.features_extractor.linear[0].out_features < 512
    np.testing.assert_allclose(network_output(small, observation), network_output(sparser, observation), atol=1e-3)
    assert {layer.weight_bits for layer in sparsity_report(small).layers} == {8}


def test_missing_zoo_says_how_to_install_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "rl_zoo3.train", None)
    with pytest.raises(SystemExit, match=r"train needs rl-zoo3 .*pip install 'sb3-sparse\[zoo\]'"):
        main(["train", "--algo", "td3"])


@pytest.mark.parametrize("env_id", sorted({env for envs in ENVIRONMENTS.values() for env in envs}))
def test_environments_of_the_presets_exist(env_id):
    import rl_zoo3.import_envs  # noqa: F401

    assert env_id in gym.envs.registry


@pytest.mark.parametrize("callback", [None, "callback:[{'sb3_sparse.SET':{'every':50,'drop_fraction':0.3}}]"])
def test_accelerated(callback, tmp_path):
    """The callbacks of the configuration, or those of the command line, stay."""
    arguments = ["--algo", "td3", "--env", "Pendulum-v1", "-n", "200", "--accelerate"]
    params = [*SHORT, *([] if callback is None else [callback])]
    run(*("-m", "sb3_sparse.cli", "train", "--method", "static"), *arguments, *params, "--seed", "1", cwd=tmp_path)
    folder = tmp_path / "logs" / "td3" / "Pendulum-v1_1"
    written = (folder / "Pendulum-v1" / "config.yml").read_text()
    assert written.count("sb3_sparse.Accelerate") == 1
    assert ("sb3_sparse.SparsityLogger" in written) == (callback is None)
    assert ("sb3_sparse.SET" in written) == (callback is not None)
    assert_invariants(load_model(folder / "Pendulum-v1.zip"))


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        ([], []),
        (["-params", "gamma:0.9", "tau:0.1"], ["gamma:0.9", "tau:0.1"]),
        (["--hyperparams=gamma:0.9"], ["gamma:0.9"]),
        (["-params", "gamma:0.9", "--hyperparams", "gamma:0.8"], ["gamma:0.8"]),
    ],
)
def test_accelerated_with_the_hyperparameters_that_rl_zoo3_would_take(given, kept):
    section = {"policy": "SparseMlpPolicy"}
    line = _accelerated(["--algo", "td3", *given, "-n", "5"], section)
    assert line == ["--algo", "td3", "-n", "5", "-params", *kept, "callback:['sb3_sparse.Accelerate']"]


def test_a_section_is_accelerated_once():
    for before, after in (
        (None, ["sb3_sparse.Accelerate"]),
        ("a.B", ["sb3_sparse.Accelerate", "a.B"]),
        ({"a.B": {"c": 1}}, ["sb3_sparse.Accelerate", {"a.B": {"c": 1}}]),
        (["a.B", "sb3_sparse.Accelerate"], ["a.B", "sb3_sparse.Accelerate"]),
        ([{"sb3_sparse.Accelerate": {"verbose": 1}}], [{"sb3_sparse.Accelerate": {"verbose": 1}}]),
    ):
        section = {} if before is None else {"callback": before}
        assert accelerated(section)["callback"] == after
        assert section.get("callback") == before
