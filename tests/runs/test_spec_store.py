"""Keys, results as files, and who may write them."""

import json
import math
import subprocess
import sys
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sb3_sparse.runs.result import RunResult
from sb3_sparse.runs.spec import RunSpec, evenly, slug
from sb3_sparse.runs.store import RESULT, Locked, Store, locked
from tests.runs.subjects import make_result, make_spec


def test_keys_tell_trainings_apart_and_nothing_else():
    spec = make_spec(3)
    same = RunSpec(**{**spec.to_json(), "section": dict(reversed(spec.section.items())), "checkpoints": ()})
    assert same.key == spec.key
    assert spec.key.startswith("sac-Pendulum-v1-seed3-")
    others = [make_spec(4), make_spec(3, gamma=0.9), replace(spec, env="Pendulum-v0"), replace(spec, algo="td3")]
    assert len({spec.training_key, *(other.training_key for other in others)}) == 5
    # Evaluations do not change the agent
    evaluated = [make_spec(3, episodes=3), make_spec(3, checkpoints=(60,)), replace(spec, episode_seed=5)]
    assert {other.training_key for other in evaluated} == {spec.training_key}
    assert len({spec.key, *(other.key for other in evaluated)}) == 4
    assert RunSpec.from_json(json.loads(json.dumps(evaluated[1].to_json()))) == evaluated[1]
    assert slug("ALE/Pong-v5") == "ALE-Pong-v5"


@given(st.integers(1, 10**7), st.integers(1, 60))
def test_checkpoints_rise_and_leave_the_end_out(n_timesteps, evaluations):
    steps = evenly(n_timesteps, evaluations)
    assert len(steps) == min(evaluations, n_timesteps) - 1 or n_timesteps < 2 * evaluations
    assert make_spec(checkpoints=steps, n_timesteps=n_timesteps).checkpoints == steps


@pytest.mark.parametrize("steps", [(60, 60), (80, 60), (0, 60), (120,)])
def test_impossible_checkpoints_are_refused(steps):
    with pytest.raises(ValueError, match=r"`checkpoints` must rise from 1 to less than 120 steps, got \["):
        make_spec(checkpoints=steps)


def test_a_result_is_stored_once_and_as_it_was(tmp_path):
    store = Store(tmp_path / "runs")
    result = make_result(make_spec(1, checkpoints=(40, 80)), -3.5)
    assert store.get(result.spec) is None
    file = store.put(result)
    assert file == tmp_path / "runs" / result.spec.key / RESULT
    assert store.get(result.spec) == result
    assert store.results() == [result]
    assert result.at(80).step == 80
    assert "NaN" not in store.put(make_result(make_spec(2), state="diverged")).read_text()
    failed = store.get(make_spec(2))
    assert math.isnan(failed.mean)
    assert math.isnan(failed.seconds)
    store.discard(failed)
    assert store.get(make_spec(2)) is None
    assert not list(store.folder.rglob("*partial*"))


def test_the_same_training_with_more_checkpoints_answers_too(tmp_path):
    store = Store(tmp_path)
    result = make_result(make_spec(checkpoints=(40, 80)))
    store.put(result)
    assert store.get(make_spec()) == store.get(make_spec(checkpoints=(80,))) == result
    for other in (make_spec(checkpoints=(50,)), make_spec(episodes=3), make_spec(1)):
        assert store.get(other) is None


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"format": 2}', "null"])
def test_half_written_and_other_files_are_named(text, tmp_path):
    store = Store(tmp_path)
    file = store.put(make_result(make_spec()))
    file.write_text(text)
    for read in (lambda: store.get(make_spec()), store.results):
        with pytest.raises(ValueError, match=rf"{RESULT}: this is no result of a training: .*Remove it to train this again"):
            read()


def test_unknown_states_are_no_results():
    text = make_result(make_spec()).to_json().replace('"complete"', '"splendid"')
    with pytest.raises(ValueError, match="splendid"):
        RunResult.from_json(text)


def test_a_result_of_another_training_is_named(tmp_path):
    store = Store(tmp_path)
    store.put(make_result(make_spec(1)))
    store.path(make_spec(1)).rename(store.path(make_spec(2)))
    with pytest.raises(ValueError, match=r"result.json is the result of another training: remove it"):
        store.get(make_spec(2))


def test_folders_that_cannot_be_written_are_refused(tmp_path):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(ValueError, match=r"`--output` .*file is a file, or lies in one"):
        Store(tmp_path / "file")


def test_one_driver_at_a_time_and_its_lock_ends_with_it(tmp_path):
    program = (
        "import sys, fcntl\nstream = open(sys.argv[1], 'a')\nfcntl.flock(stream, fcntl.LOCK_EX)\nprint(1, flush=True)\ninput()"
    )
    file = tmp_path / "lock"
    other = subprocess.Popen(
        [sys.executable, "-c", program, str(file)], stdout=subprocess.PIPE, stdin=subprocess.PIPE, text=True
    )
    other.stdout.readline()
    with pytest.raises(Locked, match="another process of sb3-sparse works on here: wait for its end"), locked(file, "here"):
        pass
    other.kill()
    other.wait()
    with locked(file, "here"):
        pass
