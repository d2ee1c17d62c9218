"""
Every kernel over random shapes, without torch: ``python sanitized.py FOLDER`` with the compiled module in the folder. Run by
test_build.py under sanitizers, which end the process at the first error.
"""

from __future__ import annotations

import sys
from itertools import pairwise
from typing import Any

import numpy as np


def address(array: np.ndarray | None) -> int:
    """Where its memory begins, 0 for none."""
    return 0 if array is None else array.ctypes.data


def one(native: Any, rng: np.random.Generator, kind: str, dtype: type) -> None:
    """A random network through everything it can do."""
    n_layers = int(rng.integers(1, 4))
    widths = rng.integers(1, 45, n_layers + 1).tolist()
    n_samples = int(rng.integers(1, 150))
    masks, weights, biases, shapes = [], [], [], []
    for n_inputs, n_outputs in pairwise(widths):
        mask = rng.random((n_outputs, n_inputs)) < rng.choice([0.0, 0.1, 0.5, 1.0])
        if rng.random() < 0.3:
            mask = np.repeat(mask[::4], 4, 0)[:n_outputs].copy()
        masks.append(mask)
        weights.append((rng.normal(size=mask.shape) * mask).astype(dtype))
        biases.append(rng.normal(size=n_outputs).astype(dtype) if rng.random() < 0.8 else None)
        shapes.append((address(mask), n_outputs, n_inputs, int(rng.integers(3))))
    dense = [(address(weight), address(bias)) for weight, bias in zip(weights, biases, strict=True)]
    networks = [getattr(native, kind)(shapes, dense) for _ in range(2)]
    for network in networks:
        for layer in range(n_layers):
            assert network.gather_weight(layer)
    n_threads = int(rng.integers(1, 5))
    x = rng.normal(size=(n_samples, widths[0])).astype(dtype)
    y, again = np.empty((2, n_samples, widths[-1]), dtype)
    strides = [stride // x.itemsize for stride in x.strides]
    tape, finite = native.forward(networks[0], address(x), n_samples, *strides, address(y), n_threads, True)
    assert finite
    assert native.forward(networks[1], address(x), n_samples, *strides, address(again), 1, False) == (None, True)
    assert np.array_equal(again, y)
    for layer, width in enumerate(widths[1:]):
        output = np.empty((n_samples, width), dtype)
        tape.output(layer, address(output))
    assert np.array_equal(output, y)
    dy, dx = rng.normal(size=y.shape).astype(dtype), np.empty_like(x)
    for accumulate in (False, True):
        deltas = native.backward(tape, address(dy), widths[-1], 1, address(dx), n_threads)
        deltas.weight_gradient(accumulate, n_threads)
    del tape, deltas
    parameters = [array for pair in zip(weights, biases, strict=True) for array in pair if array is not None]
    arrays = [np.zeros_like(parameter) for parameter in parameters]
    networks[0].scatter_gradients([address(array) for array in arrays])
    networks[0].gather_gradients([address(array) for array in arrays])
    for second in (False, True):
        networks[0].scatter_moments(second, [address(array) for array in arrays])
        networks[0].gather_moments(second, [address(array) for array in arrays])
    networks[0].adam_moments(0.9, 0.999, 1e-4)
    square, root = networks[0].roots()
    np.sqrt(square, out=root)
    networks[0].adam_values(1e-3, 0.5, 1e-8)
    networks[0].scatter_values()
    for layer in range(n_layers):
        networks[1].average(layer, 0.995, 0.005, networks[0], layer)
        networks[1].scatter_weight(layer)
    assert all(np.isfinite(weight).all() and not weight[~mask].any() for weight, mask in zip(weights, masks, strict=True))


def main() -> None:
    """Random networks under every instruction set of this machine."""
    sys.path.insert(0, sys.argv[1])
    import _native as native

    rng = np.random.default_rng(0)
    n_networks = int(sys.argv[2])
    for name in native.available_sets():
        assert native.choose_set(name)
        assert native.peak(10) > 0
        for _ in range(n_networks):
            one(native, rng, "Network", np.float32)
            one(native, rng, "NetworkDouble", np.float64)
    assert not native.choose_set("of the future")
    print("clean")


if __name__ == "__main__":
    main()
