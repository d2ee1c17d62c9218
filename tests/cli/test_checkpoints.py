"""``sb3-sparse train`` with checkpoints, and how it goes on."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import yaml
from stable_baselines3 import PPO, TD3

from sb3_sparse.checkpoint.zoo import ZooFolder
from sb3_sparse.cli.checkpoints import checkpoint_plan
from sb3_sparse.cli.main import main
from tests.helpers import equal_state

SHORT = [*("--eval-freq", "150", "--eval-episodes", "1", "--seed", "3"), "-params", "learning_starts:60", "buffer_size:2000"]
TD3_RUN = ["train", "--algo", "td3", "--env", "Pendulum-v1", "--method", "static", "-n", "400", *SHORT, "batch_size:16"]


def start(arguments, cwd):
    env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[2])}
    command = [sys.executable, "-m", "sb3_sparse.cli", *arguments]
    return subprocess.Popen(command, cwd=cwd, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def run(arguments, cwd, code=0):
    process = start(arguments, cwd)
    output, _ = process.communicate(timeout=600)
    assert process.returncode == code, output
    return output


def kill_after(arguments, cwd, pattern, number=signal.SIGKILL):
    """Kill the process when it has written something."""
    process = start(arguments, cwd)
    deadline = time.monotonic() + 300
    while not list(cwd.glob(pattern)):
        assert process.poll() is None, process.stdout.read()
        assert time.monotonic() < deadline
        time.sleep(0.005)
    process.send_signal(number)
    output, _ = process.communicate(timeout=120)
    return process.returncode, output


def rewards(folder):
    return [line.split(",")[:2] for line in (folder / "0.monitor.csv").read_text().splitlines()[1:]]


def assert_same(first, second, algorithm, env):
    for name in (f"{env}.zip", "best_model.zip"):
        one, other = (
            algorithm.load(folder / name, **({"buffer_size": 1} if algorithm is TD3 else {})) for folder in (first, second)
        )
        assert equal_state(one, other), name
    assert rewards(first) == rewards(second) != []
    with np.load(first / "evaluations.npz") as one, np.load(second / "evaluations.npz") as other:
        assert all(np.array_equal(one[name], other[name]) for name in ("timesteps", "results", "ep_lengths"))
    for name in ("args.yml", "config.yml"):
        texts = [(folder / env / name).read_text() for folder in (first, second)]
        assert texts[0].replace("whole", "broken") == texts[1]


def test_a_killed_run_goes_on_from_its_folder_alone(tmp_path):
    every = ["--checkpoint-every", "60"]
    run([*TD3_RUN, *every, "-f", "whole"], tmp_path)
    code, _ = kill_after([*TD3_RUN, *every, "-f", "broken"], tmp_path, "broken/td3/*/checkpoints/step-000000000120")
    assert code == -signal.SIGKILL
    folder = "broken/td3/Pendulum-v1_1"
    assert not (tmp_path / folder / "Pendulum-v1.zip").exists()
    output = run(["train", "--resume", folder], tmp_path)
    assert "Going on from step " in output
    assert "Checkpoint of step 360 written in" in output
    assert_same(tmp_path / "whole/td3/Pendulum-v1_1", tmp_path / folder, TD3, "Pendulum-v1")
    assert os.listdir(tmp_path / "broken/td3") == ["Pendulum-v1_1"]


@pytest.mark.expensive
def test_environments_in_processes_and_all_that_a_configuration_says(tmp_path):
    """Normalization, several environments, wrappers, callbacks with RunCheckpoint among them, a signal, and a second kill."""
    section = {
        "n_timesteps": 4000,
        "policy": "SparseMlpPolicy",
        "policy_kwargs": "dict(sparsity=0.5, net_arch=[16], activation_fn=nn.ReLU)",
        "n_envs": 2,
        "n_steps": 64,
        "batch_size": 32,
        "n_epochs": 2,
        "learning_rate": "lin_0.001",
        "normalize": True,
        "env_wrapper": [{"gymnasium.wrappers.RescaleAction": {"min_action": -1.0, "max_action": 1.0}}],
        "callback": [
            {"sb3_sparse.RigL": {"every": 5, "drop_fraction": 0.3}},
            {"sb3_sparse.RunCheckpoint": {"every": 500, "keep": 3}},
            "sb3_sparse.SparsityLogger",
        ],
    }
    (tmp_path / "conf.yml").write_text(yaml.dump({"Pendulum-v1": section}))
    arguments = ["train", "--algo", "ppo", "--env", "Pendulum-v1", "-conf", "conf.yml", "--vec-env", "subproc", "--seed", "2"]
    arguments += ["--eval-freq", "900", "--eval-episodes", "2", "--gym-packages", "sb3_sparse", "-P", "-tb", "board"]
    run([*arguments, "-f", "whole"], tmp_path)
    folder = "broken/ppo/Pendulum-v1_1"
    steps = f"{folder}/checkpoints/step-*"
    code, output = kill_after([*arguments, "-f", "broken"], tmp_path, steps, signal.SIGTERM)
    assert code == 75, output
    (tmp_path / "conf.yml").unlink()
    code, output = kill_after(["train", "--resume", folder], tmp_path, f"{folder}/checkpoints/step-000000001500")
    assert code == -signal.SIGKILL, output
    output = run(["train", "--resume", folder], tmp_path)
    assert_same(tmp_path / "whole/ppo/Pendulum-v1_1", tmp_path / folder, PPO, "Pendulum-v1")
    assert (tmp_path / folder / "Pendulum-v1" / "vecnormalize.pkl").is_file()
    assert len(list(tmp_path.glob(steps))) == 3
    assert len(list((tmp_path / "board" / "Pendulum-v1").iterdir())) == 2


def test_a_run_that_was_killed_before_its_first_checkpoint_begins_again(tmp_path):
    every = ["--checkpoint-every", "300"]
    pattern = "logs/td3/*/checkpoints/run.json"
    code, _ = kill_after([*TD3_RUN, *every], tmp_path, pattern)
    assert code == -signal.SIGKILL
    folder = tmp_path / "logs/td3/Pendulum-v1_1"
    assert list(folder.glob("checkpoints/step-*")) == []
    output = run(["train", "--resume", str(folder)], tmp_path)
    assert "Checkpoint of step 300 written" in output
    assert (folder / "Pendulum-v1.zip").is_file()


# --- What it is told ---


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["--resume", "nowhere"],
            "`--resume` nowhere is no folder in which rl-zoo3 trained with checkpoints: give",
        ),
        (["--resume", "x", "--algo", "td3"], "`--resume` goes on with what the run's folder says, and takes no --algo td3"),
        (["--resume", "x", "--checkpoint-every", "5"], "takes no --checkpoint-every"),
        (["--algo", "td3", "--checkpoint-every", "0"], "`every` must be an integer >= 1, got 0"),
        (["--algo", "td3", "--checkpoint-minutes", "-1"], "`minutes` must be a positive number, got -1.0"),
        (["--algo", "td3", "--checkpoint-keep", "2"], "RunCheckpoint needs a rhythm"),
        (["--algo", "td3", "--no-pickle"], "`--no-pickle` is about checkpoints"),
    ],
)
def test_mistakes_are_said_before_anything_is_done(arguments, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as error:
        main(["train", *arguments])
    assert message in f"{error.value.code} {capsys.readouterr().err}"
    assert list(tmp_path.iterdir()) == []


def test_what_is_not_about_checkpoints_is_handed_on():
    plan, rest = checkpoint_plan(["--algo", "td3", "--checkpoint-every", "100", "-n", "9", "--checkpoint-minutes", "2.5"])
    assert plan.options == {"every": 100, "minutes": 2.5, "allow_pickle": True, "verbose": 1}
    assert rest == ["--algo", "td3", "-n", "9"]
    plan, rest = checkpoint_plan(["--algo", "td3", "-n", "9"])
    assert plan.options is plan.run is None


class Thing:
    pass


def zoo_folder(tmp_path, arguments, config):
    folder = tmp_path / "Pendulum-v1_1"
    (folder / "Pendulum-v1").mkdir(parents=True)
    (folder / "checkpoints").mkdir()
    for name, content in (("args.yml", arguments), ("config.yml", config)):
        (folder / "Pendulum-v1" / name).write_text(yaml.dump(content))
    return folder


def read(folder, *, allow_pickle):
    run = ZooFolder.read(folder, allow_pickle=allow_pickle)
    run.store.close()
    return run


def test_a_command_line_says_what_the_run_said(tmp_path):
    from collections import OrderedDict

    arguments = OrderedDict(
        algo="td3",
        env="Pendulum-v1",
        conf_file="gone.yml",
        device="auto",
        env_kwargs={"g": 9.0, "name": "a b"},
        eval_freq=-1,
        gym_packages=["one", "two"],
        hyperparams={"batch_size": 3},
        log_folder="my logs",
        n_timesteps=-1,
        optimization_log_path=None,
        progress=True,
        save_replay_buffer=False,
        tensorboard_log="",
        trained_agent="old.zip",
        truncate_last_trajectory=True,
        uuid=True,
        wandb_tags=[],
    )
    folder = zoo_folder(tmp_path, arguments, OrderedDict(train_freq=(1, "episode"), normalize=True))
    run = read(folder, allow_pickle=False)
    assert run.hyperparameters == {"train_freq": (1, "episode"), "normalize": True}
    assert run.command_line() == [
        *("--algo=td3", "--env=Pendulum-v1", "--device=auto", "--env-kwargs", "g:9.0", "name:'a b'", "--eval-freq=-1"),
        *("--gym-packages", "one", "two", "--log-folder=my logs", "--n-timesteps=-1", "--progress", "--tensorboard-log="),
    ]


def test_python_objects_in_a_configuration_need_trust(tmp_path):
    folder = zoo_folder(tmp_path, {"algo": "td3"}, {"thing": Thing()})
    with pytest.raises(ValueError, match=r"config\.yml holds Python objects, which was not allowed"):
        ZooFolder.read(folder, allow_pickle=False)
    assert isinstance(read(folder, allow_pickle=True).hyperparameters["thing"], Thing)
    (folder / "Pendulum-v1" / "args.yml").write_text("{")
    with pytest.raises(ValueError, match=r"args\.yml cannot be read"):
        ZooFolder.read(folder, allow_pickle=True)


def test_a_run_in_use_is_left_alone(tmp_path):
    process = start([*TD3_RUN, "--checkpoint-every", "20", "-n", "100000"], tmp_path)
    folder = tmp_path / "logs/td3/Pendulum-v1_1"
    deadline = time.monotonic() + 300
    while not list(folder.glob("checkpoints/step-*")):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    try:
        output = run(["train", "--resume", str(folder)], tmp_path, code=2)
        assert f"is in use by process {process.pid} on" in output
    finally:
        process.kill()
        process.communicate()
    assert json.loads((folder / "checkpoints" / "run.json").read_text())["options"]["every"] == 20
