"""Agents that train for seconds: the clock by hand, what goes on and what is not done twice, and what is refused."""

import argparse
import re
from dataclasses import replace

import pytest
from stable_baselines3 import SAC

from sb3_sparse import accelerate
from sb3_sparse.benchmark import equal_seconds
from sb3_sparse.benchmark.__main__ import main
from sb3_sparse.benchmark.csv_files import write_rows
from sb3_sparse.benchmark.equal_seconds import Agent, Point, Stopwatch, agent, draw, read_points, seconds_table
from tests.helpers import make_model

POINT = Point("sac", "Pendulum-v1", "dense:8", "", 1, 10.0, 5.0, 100, -3.0, 2, "abc", "cpu")


class Time:
    """A clock that goes on by a second at every look, and by ten at every evaluation."""

    def __init__(self):
        self.now = 0.0

    def perf_counter(self):
        self.now += 1
        return self.now


def test_the_clock_by_hand(monkeypatch):
    clock = Time()
    monkeypatch.setattr(equal_seconds, "time", clock)

    def evaluate(model):
        clock.now += 10
        return float(model.num_timesteps)

    model = make_model(SAC)
    stopwatch = Stopwatch([3.0, 5.0, 20.0], evaluate)
    stopwatch.begin()
    step = model.env.step_async

    def slow(actions):
        if model.num_timesteps == 30:
            clock.now += 100
        step(actions)

    model.env.step_async = slow
    model.learn(1000, callback=stopwatch)
    # A second for every step, none for evaluations; the step that takes 100 brings the end
    assert stopwatch.found == [(3.0, 3, 3.0), (5.0, 5, 5.0), (20.0, 20, 20.0)]
    assert model.num_timesteps == 20


def test_a_step_that_is_longer_than_to_the_next_mark(monkeypatch):
    clock = Time()
    monkeypatch.setattr(equal_seconds, "time", clock)
    stopwatch = Stopwatch([3.0, 5.0, 20.0, 500.0], lambda model: 7.0)
    model = make_model(SAC)
    stopwatch.begin()
    clock.now += 100
    model.learn(3, callback=stopwatch)
    assert [(steps, value) for _, steps, value in stopwatch.found] == [(1, 7.0)] * 3


@pytest.mark.parametrize("algo", ["td3", "sac"])
def test_trains_draws_and_does_nothing_twice(algo, tmp_path, capsys, monkeypatch):
    pytest.importorskip("matplotlib")
    monkeypatch.setitem(equal_seconds._COMMON, "learning_starts", 100)
    # A machine that does something else would be late
    monkeypatch.setattr(equal_seconds, "time", Time())
    accelerated = []
    monkeypatch.setattr(equal_seconds, "accelerate", lambda model: accelerated.append(accelerate(model)))
    file, figure = tmp_path / "seconds.csv", tmp_path / "figure"
    arguments = ["equal-seconds", "--algo", algo, "--env", "Pendulum-v1"]
    arguments += ["--seconds", "200", "--evaluations", "2", "--episodes", "1", "-o", str(file)]
    arguments += ["--agents", "dense:8", "sparse:16:0.5", "accelerated:16:0.5"]
    main([*arguments, "--figure", str(figure)])
    points = read_points(file)
    assert [point.agent for point in points] == ["dense:8"] * 2 + ["sparse:16:0.5"] * 2 + ["accelerated:16:0.5"] * 2
    assert [point.updater for point in points] == [""] * 2 + ["rigl"] * 4
    assert [(point.seconds, point.steps) for point in points] == [(100.0, 100), (200.0, 200)] * 3
    assert len(accelerated) == 1
    assert "stock, 8 wide" in (tmp_path / "figure.svg").read_text()
    before = file.read_bytes()
    capsys.readouterr()
    main(arguments)
    assert file.read_bytes() == before
    assert "seconds\n" not in capsys.readouterr().out.split("|")[0]


def test_the_table_by_hand():
    points = [POINT, replace(POINT, seconds=10.0, steps=300, mean_return=-1.0)]
    points += [replace(point, seed=2, steps=point.steps + 100) for point in points]
    assert "| sac, Pendulum-v1 | stock, 8 wide | - | 10 | -1 | 2 | 350 | 35 |" in seconds_table(points)


def test_seeds_of_different_length_are_drawn(tmp_path):
    pytest.importorskip("matplotlib")
    points = [POINT, replace(POINT, seconds=10.0), replace(POINT, seed=2), replace(POINT, algorithm="td3")]
    assert len(draw(points, tmp_path / "figure")) == 2
    assert "TD3, Pendulum-v1, 1 seeds" in (tmp_path / "figure.svg").read_text()


@pytest.mark.parametrize(
    "text",
    [
        "dense",
        "dense:0",
        "dense:256:0.5",
        "sparse:256",
        "sparse:256:1",
        "sparse:x:0.5",
        "wide:256",
        "sparse:256:0",
        "accelerated:256",
        "a",
    ],
)
def test_agents_that_are_none(text):
    with pytest.raises(argparse.ArgumentTypeError, match=re.escape(f"not {text!r}")):
        agent(text)


def test_agents():
    assert [agent(text) for text in ("dense:256", "sbx:64", "sparse:1024:0.95", "accelerated:64:0")] == [
        Agent("dense", 256),
        Agent("sbx", 64),
        Agent("sparse", 1024, 0.95),
        Agent("accelerated", 64, 0.0),
    ]
    assert str(agent("sparse:1024:0.950")) == "sparse:1024:0.95"
    texts = ("dense:256", "sbx:256", "sparse:1024:0.95", "accelerated:256:0.9", "accelerated:256:0")
    assert [agent(text).title for text in texts] == [
        "stock, 256 wide",
        "SBX (JAX), 256 wide",
        "95 %, 1024 wide",
        "90 %, 256 wide, accelerated",
        "dense, 256 wide, accelerated",
    ]


def test_refusals(tmp_path, capsys):
    (tmp_path / "other.csv").write_text("a,b\n1,2\n")
    write_rows(tmp_path / "agent.csv", Point, [POINT, replace(POINT, agent="dense:wide")])
    for arguments, said in (
        (["-o", str(tmp_path / "none" / "x.csv")], "there is no folder"),
        (["-o", str(tmp_path / "other.csv")], "has the columns a, b; a file of evaluations has algorithm, environment"),
        (["-o", str(tmp_path / "new.csv"), "--only-draw"], "has nothing yet"),
        (["-o", str(tmp_path / "agent.csv"), "--only-draw"], "agent.csv, line 3: an agent is dense:WIDTH, sbx:WIDTH"),
    ):
        with pytest.raises(SystemExit):
            main(["equal-seconds", *arguments])
        assert said in capsys.readouterr().err
    assert not (tmp_path / "new.csv").exists()
