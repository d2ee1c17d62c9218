"""Trainings that are killed, again and again, end with the bits of those that nobody killed."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.checkpoint import kills

pytestmark = pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="the driver reads processor time from /proc")


def run_driver(*arguments):
    command = [sys.executable, "-m", "tests.checkpoint.kills", *arguments]
    return subprocess.run(command, check=False, capture_output=True, text=True, timeout=7200)


def cells(output):
    """The table that the driver prints, by training and column."""
    lines = [[cell.strip() for cell in line.strip("|").split("|")] for line in output.splitlines() if line.startswith("|")]
    assert tuple(lines[0]) == kills.HEADER
    return {line[0]: dict(zip(lines[0][1:], map(int, line[1:]), strict=True)) for line in lines[2:]}


def check_table(done, n_trainings, n_kills):
    assert done.returncode == 0, done.stdout + done.stderr
    table = cells(done.stdout)
    whole = table.pop("all")
    assert len(table) == n_trainings
    for line in table.values():
        assert line["kills"] >= n_kills
        assert line["kills"] == sum(line[way] for way in kills.WAYS)
        assert line["compared"] > 90
        assert line["went on from a checkpoint"] > 0
    assert whole["different"] == 0
    return whole


def test_a_handful_of_kills():
    done = run_driver("--kills", "4", "--only", "TD3, rlx2, Pendulum-v1, n_envs=1", "PPO, RigL, CartPole-v1, n_envs=4")
    assert check_table(done, 2, 4)["half-written files left"] > 0


@pytest.mark.expensive
def test_two_hundred_kills():
    """TD3, SAC, DQN and PPO, four environments, one and four of each."""
    whole = check_table(run_driver("--kills", "10"), len(kills.SUBJECTS), 10)
    assert whole["kills"] >= 200
    assert all(whole[way] >= 40 for way in kills.WAYS)
    assert whole["half-written files left"] >= 40


def test_a_result_that_is_another_is_named(tmp_path, monkeypatch):
    outcome = kills.Outcome(kills.Counter({kills.ANY_MOMENT: 1}), processes=2)

    def write_result(folder, **items):
        folder.mkdir(parents=True)
        (folder / "result.json").write_text(json.dumps(items))

    def run_unbroken(subject, folder):
        return {"weights": "1", "masks": "2", "draws": "3"}, 1.0

    def run_killed(subject, folder, *_):
        write_result(folder, weights="1", masks="4")
        return outcome

    monkeypatch.setattr(kills, "run_unbroken", run_unbroken)
    monkeypatch.setattr(kills, "run_killed", run_killed)
    subject = kills.SUBJECTS["TD3, rlx2, Pendulum-v1, n_envs=1"]
    assert kills.check(subject, tmp_path / "killed", 1, 0).differing == ["draws", "masks"]
    # And so is one that nobody came to kill
    outcome.kills.clear()
    with pytest.raises(AssertionError, match="it is through before it can be killed"):
        kills.check(subject, tmp_path / "through", 1, 0)
