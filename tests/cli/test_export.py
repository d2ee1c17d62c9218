"""``sb3-sparse export``: from a zip and from rl-zoo3's folder, checked, quantized, or refused in one line."""

import hashlib

import gymnasium as gym
import numpy as np
import pytest
import yaml
from stable_baselines3 import PPO, SAC
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import VecNormalize

from sb3_sparse import load_policy, quantize
from sb3_sparse.cli.export import export_file, output_path
from sb3_sparse.cli.main import main
from sb3_sparse.export.exporter import make_artefact
from tests.helpers import assert_refused, make_model

ENV = "Pendulum-v1"


@pytest.fixture(scope="module")
def zoo_run(tmp_path_factory):
    """A stock PPO that saw normalised observations, in the files that rl-zoo3 leaves."""
    folder = tmp_path_factory.mktemp("logs") / "ppo" / f"{ENV}_1"
    (folder / ENV).mkdir(parents=True)
    env = VecNormalize(make_vec_env(ENV, 1, seed=0), clip_obs=5.0)
    model = PPO(
        "MlpPolicy", env, n_steps=64, batch_size=32, n_epochs=1, seed=0, device="cpu", policy_kwargs=dict(net_arch=[16])
    )
    model.learn(256)
    model.save(folder / f"{ENV}.zip")
    env.save(str(folder / ENV / "vecnormalize.pkl"))
    (folder / ENV / "config.yml").write_text(yaml.dump({"normalize": True, "policy": "MlpPolicy"}))
    (folder / ENV / "args.yml").write_text(yaml.dump({"env": ENV, "algo": "ppo"}))
    return folder, model, env


def test_a_zoo_folder_with_its_statistics(zoo_run, tmp_path, capsys):
    folder, model, env = zoo_run
    output = tmp_path / "policy.sb3s"
    main(["export", str(folder), "-o", str(output), "--check", "--episodes", "2", "--observations", "50"])
    said = capsys.readouterr().out
    assert "recorded observations: the model" in said
    assert "return of 2 episodes" in said
    assert f"written to {output}" in said
    policy = load_policy(output)
    observation = gym.make(ENV).reset(seed=0)[0]
    expected, _ = model.predict(env.normalize_obs(observation), deterministic=True)
    assert np.allclose(policy.predict(observation)[0], expected, atol=1e-6)
    sha256 = hashlib.sha256((folder / f"{ENV}.zip").read_bytes()).hexdigest()
    origin = policy.provenance
    assert (origin["file"], origin["sha256"], origin["environment"]) == (f"{ENV}.zip", sha256, ENV)


def test_bits_quantize_a_stock_model_in_its_environment(zoo_run, tmp_path, capsys):
    folder, _, _ = zoo_run
    for bits, to in ((8, "packed"), (4, "c")):
        output = tmp_path / f"policy{bits}"
        exported = export_file(folder, output, to=to, bits=bits, check=True, n_episodes=1, n_observations=50, name="pendulum")
        assert {layer.bits for layer in exported.graph.operations if hasattr(layer, "bits") and layer.name == "linear"} == {
            bits
        }
        exact = [comparison for comparison in exported.check.comparisons if comparison.bound == 0]
        assert len(exact) == 2
        assert all(comparison.found.bits == 1 for comparison in exact)
    assert capsys.readouterr().out == ""


def test_a_zip_alone(tmp_path, capsys):
    model = make_model(SAC, policy_kwargs=dict(sparsity=0.5))
    model.save(tmp_path / "model.zip")
    main(["export", str(tmp_path / "model.zip"), "--to", "packed", "--check"])
    said = capsys.readouterr().out
    assert "no environment is known" in said
    assert load_policy(tmp_path / "model.sb3s").provenance["environment"] is None
    main(["export", str(tmp_path / "model.zip"), "--to", "cortex-m", "--name", "robot"])
    assert (tmp_path / "model-cortex-m" / "robot.c").is_file()
    quantize(model, data=np.zeros((9, 7), np.float32) + np.eye(9, 7), bits=8).save(tmp_path / "small.zip")
    main(["export", str(tmp_path / "small.zip"), "--to", "packed", "--bits", "8"])


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["nothing.zip", "--to", "packed"], "there is no model at nothing.zip"),
        (["model.zip"], "`--to` is left out: give one of packed, onnx, c, cortex-m, or `--output` with its ending"),
        (["model.zip", "-o", "there.sb3s"], "there.sb3s exists: choose another name, or allow to replace it"),
        (
            ["model.zip", "-o", "new.sb3s", "--bits", "8"],
            "`--bits` quantizes the model, which needs observations: give `--env`",
        ),
        (["model.zip", "-o", "new.sb3s", "--bits", "9"], "`bits` must be one of"),
        (
            ["model.zip", "-o", "new.sb3s", "--bits", "8", "--env", "Nowhere-v1"],
            "'Nowhere-v1' is not a registered environment",
        ),
        (["model.zip", "-o", "new.sb3s", "--check", "--episodes", "0"], "`--episodes` must be an integer >= 1, got 0"),
        (["model.zip", "-o", "new.sb3s", "--name", "A"], "`name` must be lower-case letters"),
        (["model.zip", "-o", "new.sb3s", "--arduino"], "`arduino` is for `to`='c'"),
        (["statistics/model.zip", "-o", "new.sb3s"], "holds a list, not a VecNormalize"),
    ],
)
def test_mistakes_are_answered_in_one_line_and_nothing_is_written(arguments, said, tmp_path, monkeypatch, capsys):
    import pickle

    monkeypatch.chdir(tmp_path)
    make_model(SAC).save("model.zip")
    (tmp_path / "statistics").mkdir()
    make_model(SAC).save("statistics/model.zip")
    (tmp_path / "statistics" / "vecnormalize.pkl").write_bytes(pickle.dumps([1]))
    (tmp_path / "there.sb3s").write_text("mine")
    assert_refused(main, ["export", *arguments], said, capsys)


def test_a_check_that_fails_shows_its_table(zoo_run, tmp_path, monkeypatch, capsys):
    folder, _, _ = zoo_run
    # As if the agent had been trained without the statistics
    monkeypatch.setattr("sb3_sparse.cli.export.make_artefact", lambda model, to, **kwargs: make_artefact(model, to))
    output = tmp_path / "policy.sb3s"
    with pytest.raises(SystemExit, match="does not decide as its model"):
        main(["export", str(folder), "-o", str(output), "--check", "--episodes", "1", "--observations", "50"])
    assert "FAILED" in capsys.readouterr().out
    assert not output.exists()


def test_where_it_goes_if_nobody_says(tmp_path):
    file = tmp_path / "Hopper-v4.zip"
    assert output_path(file, None, "packed") == (tmp_path / "Hopper-v4.sb3s", "packed")
    assert output_path(file, None, "onnx") == (tmp_path / "Hopper-v4.onnx", "onnx")
    assert output_path(file, None, "c") == (tmp_path / "Hopper-v4-c", "c")
    assert output_path(file, "a.onnx", None)[1] == "onnx"
