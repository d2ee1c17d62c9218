"""The benchmark measures what it says; nothing here asserts a time."""

import argparse
import json
import sys

import pytest

from sb3_sparse.benchmark import sbx, step, train
from sb3_sparse.benchmark.__main__ import main
from sb3_sparse.benchmark.models import ALGORITHMS, make_model
from sb3_sparse.benchmark.timing import Timing, interleave
from tests.engine.networks import needs_kernels
from tests.helpers import assert_invariants


def test_interleave_calls_every_variant_equally_often():
    calls = {"a": 0, "b": 0}

    def call(name):
        calls[name] += 1

    timings = interleave({name: (lambda name=name: call(name)) for name in calls}, "a", rounds=5, calls=3, warmup=1)
    assert calls == {"a": 18, "b": 18}
    assert timings["a"].ratio == timings["a"].low == timings["a"].high == 1.0
    assert timings["b"].low <= timings["b"].ratio <= timings["b"].high


@pytest.mark.parametrize("algo", ALGORITHMS)
def test_models_train_on_synthetic_data(algo):
    model = make_model(algo, [16, 16], dict(sparsity=0.5, distribution="uniform"), batch_size=8)
    model.train(4, 8)
    assert_invariants(model)
    assert all(layer.mask_values is not None for layer in model.policy.sparsifier.layers.values())
    assert sum(model.policy.sparsifier.n_steps(name) for name in model.policy.sparsifier.optimizers) >= 4


def test_ratios_are_of_the_same_rounds():
    """Whatever else the machine does hits all alike: the median of ratios, not the ratio of medians."""
    slow, fast = Timing(2.0, 1.0, 1.0, 1.0, (1.0, 2.0, 30.0)), Timing(1.5, 1.0, 1.0, 1.0, (0.5, 2.0, 10.0))
    assert fast.times_faster_than(slow) == 2.0
    assert fast.per(10).rounds == (0.05, 0.2, 1.0)
    assert (fast.per(10).seconds, fast.per(10).ratio) == (0.15, 1.0)
    row = step.row_of("td3", [8], 1, "sparse", {"stock": slow, "best dense": slow, "sparse": fast})
    assert row["x best dense"] == 2.0


def tables(capsys, *arguments):
    main([*arguments, "--json"])
    document = json.loads(capsys.readouterr().out)
    assert "1 thread(s), torch" in document["environment"]
    return [table["rows"] for table in document["tables"]]


def test_overhead_command(capsys):
    options = ["--net", "16,16", "--batch", "8", "--rounds", "2", "--steps", "2"]
    (rows,) = tables(capsys, "overhead", "--algo", "td3", *options)
    assert [row["variant"] for row in rows] == ["stock", "sparsity 0", "sparsity 0.9"]
    assert rows[0]["x stock"] == 1
    assert "x best dense" not in rows[0]


def test_step_command(capsys, monkeypatch):
    monkeypatch.setattr(step, "_SECONDS_PER_ROUND", 0.01)
    options = ["--net", "16,16", "8", "--batch", "8", "--rounds", "2", "--sparsity", "0.5", "--masked", "--breakdown"]
    steps, parts = tables(capsys, "step", "--algo", "td3", "dqn", *options)
    variants = ["stock", "best dense", "0.5", "0.5 masked dense"]
    assert [(row["algorithm"], row["net"], row["variant"]) for row in steps] == [
        (algo, net, variant) for algo in ("td3", "dqn") for net in ("16,16", "8") for variant in variants
    ]
    assert all(row["x stock"] == 1 for row in steps if row["variant"] == "stock")
    assert len(parts) == len(steps)
    for row in parts:
        assert row["Adam (us)"] > 0
        assert row["sampling (us)"] > 0


@needs_kernels
def test_kernels_command(capsys):
    (rows,) = tables(capsys, "kernels", "--width", "16", "--density", "0.5", "--batch", "8")
    assert [row["pattern"] for row in rows] == ["unstructured", "block:4x1"]
    assert all(row["forward GFLOP/s"] > 0 for row in rows)


def test_train_commands(capsys):
    options = ["train", "--env", "Pendulum-v1", "--net", "8", "--batch", "8", "--rounds", "2", "--steps", "20"]
    (rows,) = tables(capsys, *options)
    assert [row["variant"] for row in rows] == ["stock", "0.95 static"]
    assert all(row["steps per second"] > 0 for row in rows)
    # Any return is reached at once, or none
    until = [*options, "--episodes", "1", "--seeds", "1", "2", "--sparsity", "0.5", "--updater", "set", "rigl", "--until"]
    (rows,) = tables(capsys, *until, "-100000")
    assert [(row["seed"], row["variant"], row["steps"]) for row in rows] == [
        (seed, variant, 20) for seed in (1, 2) for variant in ("stock", "0.5 set", "0.5 rigl")
    ]
    (rows,) = tables(capsys, *until, "0")
    assert all(row["steps"] == row["seconds"] == row["x stock"] == "-" and row["best return"] < 0 for row in rows)


def test_masks_change_through_all_turns_of_a_training():
    parser = argparse.ArgumentParser()
    train.add_arguments(parser)
    arguments = parser.parse_args(["--env", "Pendulum-v1", "--net", "16", "--batch", "8"])
    model, callback = train.Variant(dict(sparsity=0.5), "rigl").make(arguments, 0, 60)
    fractions = []
    for _ in range(3):
        model.learn(20, callback, reset_num_timesteps=False)
        assert sum(event.n_grown for event in callback.events) > 0
        fractions += [event.fraction for event in callback.events if event.network == "actor"]
    # At every step of the actor (every other one from the 8th on) but the last, half of the weights at first
    assert len(fractions) == (60 - 8) // 2 - 1
    assert fractions == sorted(fractions, reverse=True)
    assert fractions[0] > 0.49
    assert fractions[-1] < 0.01
    assert_invariants(model)


def test_masks_change_as_often_as_asked_for_and_targets_may_have_their_own():
    parser = argparse.ArgumentParser()
    train.add_arguments(parser)
    options = ["--env", "Pendulum-v1", "--net", "16", "--batch", "8", "--updates", "3", "--drop-fraction", "0.25"]
    model, callback = train.Variant(dict(sparsity=0.5), "set-own").make(parser.parse_args(options), 0, 60)
    model.learn(60, callback)
    assert [event.timestep for event in callback.events if event.network == "critic"] == [20, 40]
    assert max(event.fraction for event in callback.events) < 0.25
    assert all(target.own_pattern is not None for targets in model.policy.sparsifier.targets.values() for target in targets)
    for wrong in ("0", "1", "half"):
        with pytest.raises(SystemExit):
            parser.parse_args(["--drop-fraction", wrong])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["train", "--env", "Nope-v1"],
            "argument --env: environment 'Nope-v1' cannot be made: Environment `Nope` doesn't exist",
        ),
        (["train", "--env", "CartPole-v1"], "the actions of CartPole-v1 are Discrete(2); a Box is needed"),
        (["train", "--rounds", "0"], "argument --rounds: an integer from 1 is needed, not '0'"),
        (["train", "--seeds", "-1"], "a seed is an integer in [0, 2**32), not '-1'"),
        (["train", "--seeds", "4294967296"], "a seed is an integer in [0, 2**32), not '4294967296'"),
        (["train", "--sparsity", "1"], "a sparsity is a number in [0, 1), not '1'"),
        (["kernels", "--density", "0"], "a density is a number in (0, 1], not '0'"),
        (["kernels", "--density", "dense"], "a density is a number in (0, 1], not 'dense'"),
        (["kernels", "--pattern", "2to4"], "'2to4'"),
        (["kernels", "--pattern", "2:4", "--width", "3"], "impossible for a layer of width 3: it has 3 inputs per row"),
        (["samplers", "--trials", "0"], "an integer from 1 is needed, not '0'"),
        (["step", "--net", "256,0"], "hidden widths look like 256,256, not '256,0'"),
        (["nothing"], "invalid choice: 'nothing'"),
        (
            ["step", "--against", "sbx", "--threads", "1", "2"],
            "`--against sbx` measures one number of threads per process, got [1, 2]",
        ),
    ],
)
@needs_kernels
def test_mistakes_are_answered_before_anything_is_measured(arguments, message, capsys):
    """In one line, with exit code 2."""
    with pytest.raises(SystemExit) as error:
        main(arguments)
    assert error.value.code == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert message in printed.err
    assert "Traceback" not in printed.err


@pytest.mark.parametrize("command", ["step", "learn"])
def test_another_library_that_is_not_there(command, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "sbx", None)
    monkeypatch.setenv("XLA_FLAGS", "")
    with pytest.raises(SystemExit, match=r"needs SBX .*pip install 'sb3-sparse\[sbx\]'") as error:
        main([command, "--against", "sbx"])
    assert error.value.code == 2


def test_against_sbx(capsys, monkeypatch):
    monkeypatch.setenv("XLA_FLAGS", sbx._ONE_THREAD)  # read when JAX is imported
    pytest.importorskip("sbx")
    monkeypatch.setattr(step, "_SECONDS_PER_ROUND", 0.01)
    options = ["--net", "16,16", "--batch", "8", "--rounds", "2", "--sparsity", "0.5", "--against", "sbx"]
    (rows,) = tables(capsys, "step", "--algo", "td3", "sac", "dqn", *options)
    assert [row["variant"] for row in rows] == ["stock", "best dense", "0.5", "sbx", "sbx, one by one"] * 3
    (rows,) = tables(capsys, "learn", "--env", "Pendulum-v1", "--net", "16", "--steps", "20", "--batch", "8", *options[4:])
    assert [row["variant"] for row in rows] == ["stock", "sbx", "0.5 static"]
