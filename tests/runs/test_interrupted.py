"""Trainings of sweeps and studies that are interrupted go on exactly."""

import json
import signal
import subprocess
import sys
import time
from dataclasses import asdict

import pytest
from stable_baselines3 import SAC

from sb3_sparse.runs import interrupted, training
from sb3_sparse.runs.worker import LOG, execute
from tests.helpers import equal_state
from tests.runs.subjects import make_spec


@pytest.fixture(autouse=True)
def engine(torch_engine):
    """Bit for bit."""


SCRIPT = """
import json, sys
from pathlib import Path
import torch as th
from sb3_sparse.runs import interrupted
from sb3_sparse.runs.spec import RunSpec
from sb3_sparse.runs.worker import execute

th.set_num_threads(1)
interrupted.MINUTES = 1e-6
given = json.loads(sys.argv[1])
execute(RunSpec(**{**given, "checkpoints": tuple(given["checkpoints"])}), Path(sys.argv[2]))
"""


def interrupt(spec, folder, step):
    """A worker is killed when it has written the checkpoint of some step."""
    process = subprocess.Popen([sys.executable, "-c", SCRIPT, json.dumps(asdict(spec)), str(folder)])
    deadline = time.monotonic() + 300
    checkpoints = folder / interrupted.FOLDER / "checkpoints"
    while not any(int(path.name.removeprefix("step-")) >= step for path in checkpoints.glob("step-*")):
        assert process.poll() is None, (folder / LOG).read_text()
        assert time.monotonic() < deadline
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL


def same(result):
    """All of a result but times."""
    found = result.to_dict() if hasattr(result, "to_dict") else asdict(result)
    found.pop("seconds")
    found["costs"].pop("latency")
    return json.loads(json.dumps(found))


def test_a_worker_that_was_killed_goes_on_exactly(tmp_path, monkeypatch):
    spec = make_spec(1, checkpoints=(30, 90), n_timesteps=150)
    monkeypatch.setattr(interrupted, "MINUTES", 1e-6)
    whole = execute(spec, tmp_path / "whole")
    assert whole.state == "complete", whole.traceback
    interrupt(spec, tmp_path / "broken", 70)
    broken = execute(spec, tmp_path / "broken")
    log = (tmp_path / "broken" / LOG).read_text()
    assert "It was interrupted, and goes on from step " in log
    assert same(whole) == same(broken)
    first, second = (SAC.load(training.model_file(tmp_path / name, spec)) for name in ("whole", "broken"))
    assert equal_state(first, second)
    # Nothing is left of it
    for name in ("whole", "broken"):
        assert not (tmp_path / name / interrupted.FOLDER).exists()


def test_checkpoints_that_cannot_be_used(tmp_path, monkeypatch):
    spec = make_spec(1)
    monkeypatch.setattr(interrupted, "MINUTES", 1e-6)
    interrupt(spec, tmp_path / "broken", 70)
    for file in (tmp_path / "broken" / interrupted.FOLDER).rglob("manifest.json"):
        file.write_text("torn")
    broken = execute(spec, tmp_path / "broken")
    assert "It begins again: no checkpoint can be used" in (tmp_path / "broken" / LOG).read_text()
    assert same(broken) == same(execute(spec, tmp_path / "whole"))


def test_what_cannot_be_written_down_is_trained_all_the_same(tmp_path, monkeypatch, capsys):
    def refuse(self):
        raise ValueError("this training cannot be written to a checkpoint: made up")

    monkeypatch.setattr(interrupted, "MINUTES", 1e-6)
    monkeypatch.setattr(interrupted.RunCheckpoint, "_on_training_start", refuse)
    spec = make_spec(1)
    result = execute(spec, tmp_path)
    assert result.state == "complete", result.traceback
    assert "If this training is interrupted, it begins again: this training cannot" in (tmp_path / LOG).read_text()


def test_a_training_that_fails_does_not_go_on(tmp_path, monkeypatch):
    def fail(model):
        if model.num_timesteps > 100:
            raise training.Diverged("made up")

    monkeypatch.setattr(interrupted, "MINUTES", 1e-6)
    monkeypatch.setattr(training, "_CHECK_EVERY", 10)
    monkeypatch.setattr(training, "require_finite", fail)
    assert execute(make_spec(1), tmp_path).state == "diverged"
    assert not (tmp_path / interrupted.FOLDER).exists()
