"""Latency: every variant answers as its model before it is timed; nothing here asserts a time."""

import json

import numpy as np
import pytest
from sb3_contrib import MaskablePPO
from stable_baselines3 import DQN, PPO, TD3

from sb3_sparse.benchmark import latency
from sb3_sparse.benchmark.__main__ import main
from sb3_sparse.benchmark.calls import Latency, PythonCalls, take_turns
from sb3_sparse.export.normalization import normalized
from sb3_sparse.export.parity import model_actions, random_observations
from tests.export.subjects import known, needs_compiler
from tests.export.test_decision import normalizing
from tests.helpers import RandomEnv, make_model

C = ["C dense fp32", "C dense int8", "C sparse fp32", "C sparse int8"]
PYTHON = ["SB3 predict", "torch module", "ONNX Runtime fp32", "ONNX Runtime int8 (QDQ)"]
RUNNERS = ["our Python runner fp32", "our Python runner int8"]
QUICK = ["--rounds", "2", "--calls", "4"]


def rows_of(capsys, *arguments):
    main(["latency", *arguments, *QUICK, "--json"])
    (table,) = json.loads(capsys.readouterr().out)["tables"]
    return table["rows"], table["note"]


@needs_compiler
@pytest.mark.parametrize(
    ("algorithm", "kind", "bits"), [(TD3, "Mlp", 0), (PPO, "MultiInput", 4), (DQN, "Mlp", 8), (MaskablePPO, "Mlp", 0)]
)
def test_a_file_in_every_variant(algorithm, kind, bits, tmp_path, capsys):
    pytest.importorskip("onnxruntime")
    known(algorithm, kind, bits).save(tmp_path / "model.zip")
    rows, note = rows_of(capsys, str(tmp_path / "model.zip"))
    assert [row["variant"] for row in rows] == [*PYTHON, *RUNNERS, *C]
    assert rows[0]["x faster than predict"] == rows[2]["x faster than ONNX Runtime"] == 1
    assert all(0 <= row["median us"] <= row["p99 us"] for row in rows)
    assert note.startswith("model.zip: ")
    assert ("quantized to 4 bits" in note) == (bits == 4)
    # float32 takes longer than nothing: every variant was really called
    assert all(row["p99 us"] > 0 for row in rows)


@needs_compiler
def test_without_a_model_an_actor_is_made(capsys):
    rows, note = rows_of(capsys, "--net", "16,12", "--sparsity", "0.5")
    assert "an untrained TD3: 17-16-12-6, 5" in note
    assert len(rows) >= 8


def test_statistics_are_part_of_every_decision():
    env = normalizing(RandomEnv())
    model = make_model(TD3, env=env)
    subject = latency.subject_of(model, env, "model")
    graph = latency.decision_of(subject.stock, normalize=env)
    given = random_observations(graph, 4, 1)
    predict, torch_module = latency._predict(subject, given), latency._torch_module(subject, given)
    expected = model_actions(model, given, env)
    for row, said in zip(predict.rows, expected, strict=True):
        assert np.allclose(predict.function(row)[0], said, atol=1e-6)
    # What torch gets is normalised already; its actions are not scaled to the bounds, which are -1 and 1 here
    assert np.allclose(torch_module.rows[0].numpy()[0], normalized(env, given["observation"])[0], atol=1e-6)
    assert np.allclose(torch_module.function(torch_module.rows[0]).numpy()[0], expected[0], atol=1e-6)


def test_what_is_missing_is_said_and_left_out(monkeypatch, capsys):
    monkeypatch.setattr("shutil.which", lambda name: None)
    monkeypatch.setitem(__import__("sys").modules, "onnxruntime", None)
    monkeypatch.setenv("SB3_SPARSE_RUNNER", "numpy")
    rows, note = rows_of(capsys, "--net", "8", "--sparsity", "0.5")
    assert [row["variant"] for row in rows] == [*PYTHON[:2], *RUNNERS]
    assert "x faster than ONNX Runtime" not in rows[0]
    for said in ("ONNX Runtime is left out: ", "generated C is left out: ", "our Python runner is numpy here"):
        assert said in note


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["nothing.zip"], "there is no model at nothing.zip"),
        (["--cc", "no-such-compiler"], "there is no C compiler 'no-such-compiler'"),
        (["--rounds", "0"], "an integer from 1 is needed, not '0'"),
        (["--sparsity", "1"], r"a sparsity is a number in [0, 1), not '1'"),
        (["damaged.zip"], "damaged.zip is not a zip file"),
        (["recurrent.zip"], "the policy is recurrent"),
    ],
)
def test_mistakes_are_answered_in_one_line(arguments, said, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "damaged.zip").write_text("no")
    if arguments == ["recurrent.zip"]:
        from sb3_contrib import RecurrentPPO

        make_model(RecurrentPPO).save("recurrent.zip")
    with pytest.raises(SystemExit) as caught:
        main(["latency", *arguments])
    error = capsys.readouterr().err
    assert caught.value.code == 2
    assert said in error
    assert "Traceback" not in error


@needs_compiler
def test_a_variant_that_decides_otherwise_is_not_timed(monkeypatch):
    subject = latency.subject_of(known(TD3), None, "model")
    monkeypatch.setattr(latency, "model_actions", lambda *args: model_actions(*args) + 0.5)
    with pytest.raises(ValueError, match=r"C dense fp32 does not decide as its model: actions differ by 0\.5"):
        latency.measure(subject, rounds=1, calls=1)


def test_every_variant_has_its_turn_and_percentiles_are_right():
    calls = {"a": 0, "b": 0}

    class Counting(PythonCalls):
        def __init__(self, name):
            super().__init__(lambda row: calls.__setitem__(name, calls[name] + 1), [0])

    found = take_turns({name: Counting(name) for name in calls}, rounds=3, calls=10)
    assert calls == {"a": 4 * 15, "b": 4 * 15}  # a round more, and five calls more in each, that do not count
    assert len(found["a"].rounds) == 3
    slow, fast = Latency(4.0, 8.0, (4.0, 8.0, 40.0)), Latency(1.0, 1.0, (1.0, 1.0, 20.0))
    assert fast.times_faster_than(slow)[1] == 4.0
    assert Latency(1.0, 1.0, (1.0,)).times_faster_than(Latency(2.0, 2.0, (2.0,))) == (2.0, 2.0, 2.0)
