"""Missing packages are named before any work."""

import subprocess
import sys

import pytest
from stable_baselines3 import DQN

from sb3_sparse import preset
from sb3_sparse.benchmark.__main__ import main as benchmark
from sb3_sparse.cli.main import main
from sb3_sparse.zoo.environments import require_packages
from tests.helpers import make_model

MISSING = [
    ("ale_py", "PongNoFrameskip-v4", r"'PongNoFrameskip-v4' needs ale-py, which is not .*pip install 'sb3-sparse\[atari\]'"),
    ("cv2", "ALE/Breakout-v5", r"needs OpenCV, which is not .*pip install 'sb3-sparse\[atari\]'"),
    ("Box2D", "LunarLander-v3", r"needs Box2D, which is not .*pip install 'sb3-sparse\[box2d\]'"),
    ("mujoco", "HalfCheetah-v4", r"needs MuJoCo, which is not .*pip install 'sb3-sparse\[mujoco\]'"),
]


@pytest.mark.parametrize(("module", "env", "message"), MISSING)
def test_what_is_missing_is_named(module, env, message, monkeypatch):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ImportError, match=message):
        require_packages(env)


def test_everything_that_misses_is_named_at_once(monkeypatch):
    monkeypatch.setitem(sys.modules, "ale_py", None)
    monkeypatch.setitem(sys.modules, "cv2", None)
    with pytest.raises(ImportError, match="needs ale-py and OpenCV, which is not installed"):
        require_packages("PongNoFrameskip-v4")


@pytest.mark.parametrize("env", ["CartPole-v1", "Pendulum-v1", "Hopefully-v4", "MyPong-v0", ""])
def test_of_other_environments_nothing_is_asked(env, monkeypatch):
    for module in ("ale_py", "cv2", "Box2D", "mujoco"):
        monkeypatch.setitem(sys.modules, module, None)
    require_packages(env)


def test_atari_without_its_packages_wherever_it_can_be_asked_for(monkeypatch, tmp_path):
    """Presets, rl-zoo3's train and enjoy, the experiment, finetuning: an error with the cure, nothing is left behind."""
    monkeypatch.setitem(sys.modules, "ale_py", None)
    monkeypatch.chdir(tmp_path)
    cure = r"pip install 'sb3-sparse\[atari\]'"
    arguments = ["--algo", "dqn", "--env", "PongNoFrameskip-v4"]
    with pytest.raises(ImportError, match=cure):
        preset("compress", "dqn", "PongNoFrameskip-v4")
    for command in (["train", "--method", "compress"], ["train", "-conf", "mine.yml"], ["enjoy"]):
        with pytest.raises(SystemExit, match="sb3-sparse: .*" + cure):
            main([*command, *arguments])
    with pytest.raises(SystemExit, match="benchmark: .*" + cure):
        benchmark(["compression", *arguments, "-o", "results.csv"])
    assert list(tmp_path.iterdir()) == []
    make_model(DQN, "Cnn", sparse=False).save(tmp_path / "agent.zip")
    with pytest.raises(SystemExit, match="sb3-sparse: .*" + cure):
        main(["prune", "agent.zip", "--sparsity", "0.9", "--finetune", "1000", "--env", "PongNoFrameskip-v4"])
    assert [path.name for path in tmp_path.iterdir()] == ["agent.zip"]


def test_atari_games_are_registered_on_demand():
    pytest.importorskip("ale_py")
    pytest.importorskip("cv2")
    code = """
import gymnasium, sb3_sparse
assert "PongNoFrameskip-v4" not in gymnasium.registry
print(sb3_sparse.preset("compress", "dqn", "PongNoFrameskip-v4")["policy"].__name__)
"""
    output = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert output.strip() == "SparseDQNCnnPolicy"
