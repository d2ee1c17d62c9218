"""A training through rl-zoo3: its result, its files, and that evaluations in between change nothing."""

import json
import math
import warnings
from dataclasses import replace

import numpy as np
import pytest
import torch as th
from stable_baselines3 import SAC
from stable_baselines3.common.vec_env import DummyVecEnv

from sb3_sparse.analysis.report import sparsity_report
from sb3_sparse.runs import costs, training
from sb3_sparse.runs.playing import RandomPolicy, play
from sb3_sparse.runs.worker import LOG, PROGRESS, execute, steps_done
from tests.helpers import RandomEnv, equal_state, make_model
from tests.runs.subjects import SECTION, make_spec


@pytest.fixture(autouse=True)
def engine(torch_engine):
    """Bit for bit."""


def load(folder, spec):
    return SAC.load(training.model_file(folder, spec))


def test_evaluations_in_between_do_not_disturb_the_training(tmp_path):
    """Neither does what an earlier attempt has left."""
    plain, often = make_spec(1), make_spec(1, checkpoints=(30, 90))
    (tmp_path / "often/sac/Pendulum-v1_1").mkdir(parents=True)
    seen = []
    first = training.train(plain, tmp_path / "plain")
    second = training.train(
        often, tmp_path / "often", at_checkpoint=lambda model, step: seen.append((step, model.num_timesteps))
    )
    assert equal_state(load(tmp_path / "plain", plain), load(tmp_path / "often", often))
    assert first.evaluations == second.evaluations[-1:]
    assert [evaluation.step for evaluation in second.evaluations] == [30, 90, 120]
    assert seen == [(30, 30), (90, 90), (120, 120)]
    assert (second.at(30).step, second.mean) == (30, second.evaluations[-1].mean)
    assert second.evaluations[0].returns != second.evaluations[1].returns
    assert [len(evaluation.returns) for evaluation in second.evaluations] == [2, 2, 2]


def test_a_result_says_what_the_report_says_and_files_lie_beside_it(tmp_path):
    spec = make_spec(2)
    result = execute(spec, tmp_path)
    assert result.state == "complete", result.traceback
    model = load(tmp_path, spec)
    report = sparsity_report(model)
    size = report.networks["actor"]
    assert (result.costs["bytes"], result.costs["parameters"]) == (size.bytes_with_indices, size.n_parameters)
    assert (result.costs["flops"], result.costs["dense_bytes"]) == (report.inference.sparse, size.bytes_dense)
    assert result.costs["sparsity"] == pytest.approx(size.sparsity, abs=1e-6)
    assert result.costs["papers_ratio"] == pytest.approx(size.papers_ratio, rel=1e-4)
    assert result.costs["latency"] > 0
    assert result.seconds > 0
    mask = model.policy.sparsifier.layers["actor.latent_pi.0"].weight_mask
    assert result.inputs == {"actor": mask.sum(dim=0).tolist()}
    assert {"python", "torch", "stable-baselines3", "sb3-sparse", "processor", "engine"} <= result.versions.keys()
    assert json.loads((tmp_path / "report.json").read_text())["algorithm"] == "SAC"
    assert {"sac.yml", "report.md", LOG} <= {file.name for file in tmp_path.iterdir()}
    assert "Saving to" in (tmp_path / LOG).read_text()
    assert not (tmp_path / PROGRESS).exists()


def test_inputs_of_images_have_no_names():
    model = make_model(SAC, "Cnn", env=RandomEnv("Cnn"))
    assert costs.input_use(model, sparsity_report(model)) == {}


@pytest.mark.parametrize(
    ("changes", "state", "reason"),
    [
        ({"learning_rate": 1e20}, "diverged", "is not finite after"),
        ({"gamma": "no number"}, "failed", "TypeError: "),
        ({"policy": "sb3_sparse.NoPolicy"}, "failed", "AttributeError: "),
    ],
)
def test_what_goes_wrong_is_a_result_with_its_traceback(changes, state, reason, tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        result = execute(make_spec(**changes), tmp_path)
    assert (result.state, math.isnan(result.mean)) == (state, True)
    assert reason in result.reason
    assert "Traceback" in result.traceback
    assert "Traceback" in (tmp_path / LOG).read_text()


def test_progress_is_written_now_and_then(tmp_path, monkeypatch):
    monkeypatch.setattr(training, "_PROGRESS_EVERY", 0.0)
    seen = []
    training.train(make_spec(), tmp_path, progress=seen.append)
    assert seen == list(range(1, 121))
    (tmp_path / PROGRESS).write_text('{"step": 7, "of": 120}')
    assert steps_done(tmp_path) == 7
    for text in ("", "{", "[]", "{}"):
        (tmp_path / PROGRESS).write_text(text)
        assert steps_done(tmp_path) == 0


def test_several_environments_may_pass_two_checkpoints_in_one_step(tmp_path):
    spec = make_spec(checkpoints=(61, 62, 100), n_envs=4)
    result = training.train(spec, tmp_path)
    assert [evaluation.step for evaluation in result.evaluations] == [64, 64, 100, 120]
    assert result.at(62) == result.at(61)


def test_episodes_do_not_depend_on_what_was_played_before_and_leave_generators_alone():
    env = DummyVecEnv([RandomEnv])
    policy = RandomPolicy(env)
    before = th.get_rng_state(), np.random.get_state()[1].copy()
    first, lengths = play(policy, env, [5, 6, 7])
    assert play(policy, env, [7])[0] == first[2:]
    assert play(policy, env, [6, 5])[0] == [first[1], first[0]]
    assert len(set(first)) == 3
    assert lengths == [10, 10, 10]
    assert th.equal(before[0], th.get_rng_state())
    assert (before[1] == np.random.get_state()[1]).all()


def test_random_policies_play_in_the_configurations_environment(tmp_path):
    mean = training.random_return("sac", "Pendulum-v1", SECTION, range(5, 8), tmp_path)
    assert -2000 < mean < -500
    assert mean == training.random_return("sac", "Pendulum-v1", {**SECTION, "gamma": 0.5}, range(5, 8), tmp_path)


def test_what_cannot_be_trained_is_said_before(tmp_path):
    with pytest.raises(ValueError, match=r"rl-zoo3 cannot train sac on 'Pendulum-v1' by this configuration: .*nonsense"):
        training.check_trainable("sac", "Pendulum-v1", {**SECTION, "nonsense": 1}, tmp_path)
    with pytest.raises(ValueError, match="`--steps` 50 is too short: gradient steps begin at `learning_starts`=60"):
        training.check_trainable("sac", "Pendulum-v1", {**SECTION, "n_timesteps": 50}, tmp_path)
    assert training.check_trainable("sac", "Pendulum-v1", SECTION, tmp_path).shape == (3,)


def test_plain_rl_zoo3_trains_the_same_agent(tmp_path, monkeypatch):
    import sys

    from rl_zoo3.train import train as zoo_train

    spec = replace(make_spec(7), section={**SECTION, "callback": [{"sb3_sparse.RigL": {"every": 5, "drop_fraction": 0.3}}]})
    assert execute(spec, tmp_path / "run").state == "complete"
    monkeypatch.chdir(tmp_path)
    arguments = [
        "--algo",
        "sac",
        "--env",
        "Pendulum-v1",
        "-conf",
        "run/sac.yml",
        "--seed",
        "7",
        "-f",
        "logs",
        "--eval-freq",
        "-1",
    ]
    monkeypatch.setattr(sys, "argv", ["train", *arguments])
    zoo_train()
    again = SAC.load(tmp_path / "logs/sac/Pendulum-v1_1/Pendulum-v1.zip")
    assert equal_state(again, load(tmp_path / "run", spec))
