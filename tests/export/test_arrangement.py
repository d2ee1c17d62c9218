"""The order of hidden units: the same decision in fewer steps."""

import numpy as np
import pytest
from stable_baselines3 import DQN, PPO, SAC, TD3

from sb3_sparse import quantize
from sb3_sparse.export.arrangement import _Layer, arranged
from sb3_sparse.export.decision import decision_of
from sb3_sparse.export.exporter import make_artefact
from sb3_sparse_runtime.layouts import Panels
from tests.export.subjects import bits_of, graph_actions
from tests.helpers import make_model, observations


def steps(graph):
    return sum(int(Panels.of(layer.matrix).steps.sum()) for layer in graph.layers)


def wide(algorithm, bits=0, **kwargs):
    model = make_model(algorithm, policy_kwargs=dict(net_arch=[96, 80, 40], sparsity=0.85, **kwargs))
    return quantize(model, data=observations(model, 64), bits=bits) if bits else model


@pytest.mark.parametrize("bits", [0, 8, 3])
@pytest.mark.parametrize("algorithm", [TD3, SAC, DQN, PPO])
def test_the_same_decision_in_fewer_steps(algorithm, bits):
    model = wide(algorithm, bits)
    graph, given = decision_of(model), observations(model)
    found = arranged(graph, 500)
    assert steps(found) < 0.9 * steps(graph)
    expected, actions = graph_actions(graph, given), graph_actions(found, given)
    if bits:
        assert np.array_equal(bits_of(actions), bits_of(expected))
    else:
        assert np.allclose(actions, expected, atol=2e-6)
    for one, other in zip(graph.layers, found.layers, strict=True):
        assert sorted(one.weight.ravel()) == sorted(other.weight.ravel())
        assert (other.weight != 0)[~other.mask].sum() == 0
        assert one.mask.sum() == other.mask.sum()
    again = arranged(graph, 500)
    assert all(np.array_equal(one.weight, other.weight) for one, other in zip(found.layers, again.layers, strict=True))


def test_what_others_read_too_stays_where_it_is():
    # Mean and standard deviation read the last hidden layer
    graph = decision_of(wide(SAC), distribution=True)
    found = arranged(graph, 50)
    changed = [not np.array_equal(one.weight, other.weight) for one, other in zip(graph.layers, found.layers, strict=True)]
    assert changed == [True, True, True, False, False]
    assert np.array_equal(found.layers[2].weight.any(axis=1), graph.layers[2].weight.any(axis=1))


@pytest.mark.parametrize("kwargs", [dict(pattern="block:4x1"), dict(net_arch=[16, 16]), dict(sparsity=0.0)])
def test_where_there_is_nothing_to_gain_the_graph_stays(kwargs):
    graph = decision_of(make_model(TD3, policy_kwargs={"net_arch": [48, 48], "sparsity": 0.8, **kwargs}))
    assert arranged(graph) is graph


def test_steps_are_counted_while_units_are_swapped():
    rng = np.random.default_rng(0)
    weight = (rng.random((40, 70)) < 0.1) * rng.normal(size=(40, 70))
    layer = _Layer(weight)
    total = layer.n_steps
    assert total == Panels.of(weight).steps.sum()
    for _ in range(200):
        a, b = rng.integers(40, size=2)
        total += layer.swap_rows(a, b)
        weight[[a, b]] = weight[[b, a]]
        c, d = rng.integers(70, size=2)
        total += layer.swap_columns(c, d)
        weight[:, [c, d]] = weight[:, [d, c]]
        assert total == layer.n_steps == Panels.of(weight).steps.sum()


def test_formats_for_a_pc_have_it_and_others_do_not():
    model = wide(TD3)
    first = decision_of(model).operations[1].weight
    changed = {
        (to, layout): not np.array_equal(make_artefact(model, to, layout=layout).graph.operations[1].weight, first)
        for to, layout in (("packed", None), ("c", None), ("c", "small"), ("cortex-m", None))
    }
    assert changed == {("packed", None): True, ("c", None): True, ("c", "small"): False, ("cortex-m", None): False}
