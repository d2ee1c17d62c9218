"""The benchmark measures what it says; nothing here asserts a time."""

import pytest

from sb3_sparse.benchmark.__main__ import main
from sb3_sparse.benchmark.models import ALGORITHMS, make_model
from sb3_sparse.benchmark.timing import interleave
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


def test_overhead_command(capsys):
    main(["overhead", "--algo", "td3", "--net", "16,16", "--batch", "8", "--rounds", "2", "--steps", "2"])
    output = capsys.readouterr().out
    assert "1 thread(s), torch" in output
    rows = [line.split("|") for line in output.splitlines() if line.startswith("| td3")]
    assert [row[3].strip() for row in rows] == ["stock", "sparsity 0", "sparsity 0.9"]
    assert rows[0][5].strip().startswith("1.000")
