"""``sb3-sparse card``: what the card says is true, it is written as a whole, and mistakes are answered in one line."""

import gymnasium as gym
import numpy as np
import pytest
import yaml
from sb3_contrib import MaskablePPO
from stable_baselines3 import DQN, SAC, TD3

from sb3_sparse import export, sparsity_report
from sb3_sparse.cli.card import command_of
from sb3_sparse.cli.main import main
from tests.cli.test_export import ENV, zoo_run  # noqa: F401
from tests.export.subjects import known
from tests.helpers import RandomEnv, assert_refused, make_model


def header_of(text):
    _, header, body = text.split("---\n", 2)
    return yaml.safe_load(header), body


def test_a_zoo_folder(zoo_run, capsys):  # noqa: F811
    folder, _, _ = zoo_run
    (folder / ENV / "command.txt").write_text(f"/usr/bin/python3 /somewhere/bin/sb3-sparse train --algo ppo --env {ENV}")
    main(["card", str(folder), "--episodes", "2", "--license", "mit"])
    target = folder / "README.md"
    assert capsys.readouterr().out == f"written to {target}\n"
    header, body = header_of(target.read_text())
    target.unlink()
    assert (header["library_name"], header["license"]) == ("stable-baselines3", "mit")
    assert {"sb3-sparse", "reinforcement-learning", ENV} <= set(header["tags"])
    (result,) = header["model-index"][0]["results"]
    (metric,) = result["metrics"]
    assert (result["dataset"]["name"], metric["type"]) == (ENV, "mean_reward")
    mean = float(metric["value"].split()[0])
    assert -2000 < mean < 0
    assert f"{metric['value']} (mean and standard deviation) in 2 episodes" in body
    assert f"sb3-sparse train --algo ppo --env {ENV}\n" in body
    assert "/somewhere" not in body
    assert "| `normalize` | `True` |" in body
    # The same statistics, the same seed: the same return
    main(["card", str(folder), "--episodes", "2", "-o", str(folder / "again.md")])
    assert metric["value"] in (folder / "again.md").read_text()
    (folder / "again.md").unlink()


def test_a_zip_alone_says_what_it_knows(tmp_path):
    model = known(TD3, "Mlp", 8)
    model.save(tmp_path / "model.zip")
    main(["card", str(tmp_path / "model.zip")])
    header, body = header_of((tmp_path / "README.md").read_text())
    assert "model-index" not in header
    assert "## Return\n\nNot measured.\n" in body
    assert "## Latency" not in body
    assert sparsity_report(model).to_markdown() in body
    assert f"| `model.zip`: everything that training goes on from | {(tmp_path / 'model.zip').stat().st_size:,} |" in body
    # The file that an export writes, but for what it says about where it comes from
    size = int(body.split("checksum included | ")[1].split(" |")[0].replace(",", ""))
    assert 0 <= export(model, tmp_path / "policy.sb3s").n_bytes - size < 400
    n_weights = sum(layer.weight.numel() for layer in model.policy.actor.mu if hasattr(layer, "weight"))
    n_zero = sum(int((layer.weight == 0).sum()) for layer in model.policy.actor.mu if hasattr(layer, "weight"))
    assert f"{n_zero / n_weights:.1%} of the {n_weights:,} weights" in body
    assert "weights are 8 bits" in body


def test_a_stock_model_and_latency(tmp_path):
    make_model(DQN, sparse=False).save(tmp_path / "model.zip")
    arguments = ["card", str(tmp_path / "model.zip"), "-o", str(tmp_path / "card.md"), "--latency", "--seed", "1"]
    main(arguments)
    text = (tmp_path / "card.md").read_text()
    assert "## Sparsity" not in text
    assert f"python -m sb3_sparse.benchmark latency {tmp_path}/model.zip --seed 1\n" in text
    assert "| SB3 predict |" in text
    assert not np.isnan(float(text.split("| SB3 predict | ")[1].split(" |")[0]))


class ForbiddingEnv(RandomEnv):
    """Allows one action, another one at each step, and rewards it."""

    def __init__(self) -> None:
        super().__init__(discrete=True)

    def step(self, action):
        allowed = bool(self.action_masks()[action])
        observation, _, *rest = super().step(action)
        return observation, float(allowed), *rest

    def action_masks(self):
        return np.arange(3) == self.n_steps % 3


def test_forbidden_actions_are_forbidden_when_episodes_are_played(tmp_path, monkeypatch):
    monkeypatch.setitem(gym.registry, "Forbidding-v0", gym.envs.registration.EnvSpec("Forbidding-v0", ForbiddingEnv))
    make_model(MaskablePPO, env=ForbiddingEnv()).save(tmp_path / "model.zip")
    main(["card", str(tmp_path / "model.zip"), "--env", "Forbidding-v0", "--episodes", "2"])
    assert "10.00 +/- 0.00 (mean and standard deviation) in 2 episodes" in (tmp_path / "README.md").read_text()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["nothing.zip"], "there is no model at nothing.zip"),
        (["model.zip", "-o", "there.md"], "`--output` there.md exists: choose another name, or replace it with `--force`"),
        (["model.zip", "-o", "nowhere/card.md"], "there is no folder nowhere"),
        (["model.zip", "-o", "."], "`--output` . is a folder: give a file"),
        (["model.zip", "--episodes", "-1"], "`--episodes` must be an integer >= 0, got -1"),
        (["model.zip", "--env", "Nowhere-v1"], "'Nowhere-v1' is not a registered environment"),
        (["model.zip", "--algo", "none"], "`algo`='none' is unknown"),
        (["recurrent.zip"], "the policy is recurrent"),
    ],
)
def test_mistakes_are_answered_in_one_line_and_nothing_is_written(arguments, said, tmp_path, monkeypatch, capsys):
    from sb3_contrib import RecurrentPPO

    monkeypatch.chdir(tmp_path)
    make_model(SAC).save("model.zip")
    make_model(RecurrentPPO).save("recurrent.zip")
    (tmp_path / "there.md").write_text("mine")
    assert_refused(main, ["card", *arguments], said, capsys)


def test_what_is_there_is_replaced_if_that_is_wanted(tmp_path, monkeypatch):
    make_model(SAC).save(tmp_path / "model.zip")
    (tmp_path / "README.md").write_text("mine")
    main(["card", str(tmp_path / "model.zip"), "--force"])
    assert (tmp_path / "README.md").read_text().startswith("---\nlibrary_name: stable-baselines3\n")


def test_commands_without_folders(tmp_path):
    file = tmp_path / "model.zip"
    assert command_of(file) is None
    (tmp_path / "env").mkdir()
    for written, expected in (
        ("/a/python /b/train.py --algo td3", "train.py --algo td3"),
        ("/a/python -m rl_zoo3.train --algo td3", "python -m rl_zoo3.train --algo td3"),
        ("sb3-sparse train --hyperparams 'a:1 2'", "sb3-sparse train --hyperparams 'a:1 2'"),
        ("", None),
    ):
        (tmp_path / "env" / "command.txt").write_text(written)
        assert command_of(file) == expected
