"""Weights, arranged for the kernels: every one is there, once."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from sb3_sparse_runtime.layouts import Groups, Panels, cheapest, tiles

SHAPES = st.tuples(st.integers(1, 70), st.integers(1, 100))


def matrix(shape, density, seed):
    rng = np.random.default_rng(seed)
    return (rng.normal(size=shape) * (rng.random(shape) < density)).astype(np.float32)


@given(SHAPES, st.sampled_from([0.0, 0.02, 0.1, 0.5, 1.0]), st.integers(0, 1000))
def test_groups_hold_every_weight(shape, density, seed):
    weight = matrix(shape, density, seed)
    groups = Groups.of(weight)
    found = np.zeros((shape[0] + 1, shape[1]), np.float32)
    place = 0
    for index, length in enumerate(groups.lengths):
        for _ in range(length):
            rows = groups.rows[4 * index : 4 * index + 4]
            np.add.at(found, (rows, groups.columns[place : place + 4]), groups.weights[place : place + 4])
            place += 4
    assert place == len(groups.weights)
    assert np.array_equal(found[:-1], weight)
    assert sorted(groups.rows[groups.rows < shape[0]]) == list(range(shape[0]))
    assert (np.diff(groups.lengths.astype(int)) <= 0).all()


@given(SHAPES, st.sampled_from([0.0, 0.02, 0.1, 0.5, 1.0]), st.integers(0, 1000))
def test_panels_hold_every_weight(shape, density, seed):
    weight = matrix(shape, density, seed)
    panels = Panels.of(weight)
    found = np.zeros((len(panels.steps) * 16, panels.n_windows * 32), np.float32)
    place = 0
    for panel, row in enumerate(panels.steps):
        for window, n_steps in enumerate(row):
            for _ in range(n_steps):
                columns = 32 * window + panels.places[place : place + 16]
                np.add.at(found, (16 * panel + np.arange(16), columns), panels.weights[place : place + 16])
                place += 16
    assert place == len(panels.weights)
    assert np.array_equal(found[: shape[0], : shape[1]], weight)
    assert not found[shape[0] :].any()


def test_tiles_by_hand():
    weight = np.arange(34, dtype=np.float32).reshape(17, 2)
    arranged = tiles(weight)
    assert arranged.shape == (2, 2, 16)
    assert arranged[0, 1].tolist() == weight[:16, 1].tolist()
    assert arranged[1, :, 0].tolist() == [32, 33]
    assert not arranged[1, :, 1:].any()


def test_sparse_layers_are_left_sparse_and_dense_ones_dense():
    for avx512, sparse in ((True, "panels"), (False, "groups")):
        assert cheapest(matrix((256, 256), 0.05, 0), avx512=avx512) == sparse
        assert cheapest(matrix((256, 256), 1, 0), avx512=avx512) == "tiles"
        assert cheapest(matrix((1, 256), 1, 0), avx512=avx512) == "dots"
