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
    networks[0].adam(0.9, 0.999, 1e-4, 1e-3, 0.5, 1e-8)
    assert networks[0].gradient_norm() >= 0
    networks[0].scale_gradient(0.5)
    networks[1].average_all(0.995, 0.005, networks[0])
    for layer in range(n_layers):
        networks[1].average(layer, 0.995, 0.005, networks[0], layer)
        networks[1].scatter_weight(layer)
    assert all(np.isfinite(weight).all() and not weight[~mask].any() for weight, mask in zip(weights, masks, strict=True))
    others = [None if array is None else array * 2 for pair in zip(weights, biases, strict=True) for array in pair]
    target = getattr(native, kind)(shapes, [(address(w), address(b)) for w, b in zip(others[::2], others[1::2], strict=True)])
    target.average_dense(0.75, 0.25, networks[0])
    for weight, other in zip(weights, others[::2], strict=True):
        assert other is not None
        assert np.allclose(other, weight * 1.75, rtol=1e-6, atol=0)


def settle(native: Any, rng: np.random.Generator, name: str, dtype: type) -> None:
    """A weight settles on its largest values, as a sort finds them."""
    size = int(rng.integers(2, 700))
    n_kept = int(rng.integers(1, size))
    mask = rng.permutation(size) < n_kept
    # Some of them equally large
    weight = np.where(rng.random(size) < rng.choice([0.0, 0.3, 1.0]), rng.integers(-3, 4, size), rng.normal(size=size)).astype(
        dtype
    )
    numbers = mask.astype(dtype)
    scores = np.where(mask, np.maximum(np.abs(weight), dtype(1e-37)), np.abs(weight))
    kept = np.zeros(size, bool)
    kept[np.argsort(-scores, kind="stable")[:n_kept]] = True
    expected = np.where(kept, weight, dtype(0))
    changes = bool((weight[~mask] != 0).any())
    assert getattr(native, name)(size, n_kept, address(weight), address(mask), address(numbers)) == int(changes)
    if changes:
        assert np.array_equal(weight, expected)
        assert np.array_equal(mask, kept)
        assert np.array_equal(numbers, kept.astype(dtype))
    weight[~mask] = 1
    weight[0] = np.nan
    assert getattr(native, name)(size, n_kept, address(weight), address(mask), address(numbers)) == 2


class Chain:
    """A network of random masks, with the dense arrays that it belongs to."""

    def __init__(
        self, native: Any, rng: np.random.Generator, widths: list[int], last: int, *, side_by_side: bool = False
    ) -> None:
        pairs = [(widths[0], width) for width in widths[1:]] if side_by_side else list(pairwise(widths))
        self.masks = [rng.random((n_outputs, n_inputs)) < rng.choice([0.0, 0.3, 1.0]) for n_inputs, n_outputs in pairs]
        self.weights = [(rng.normal(size=mask.shape) * mask).astype(np.float32) for mask in self.masks]
        self.biases = [rng.normal(size=len(mask)).astype(np.float32) for mask in self.masks]
        activations = [0] * len(pairs) if side_by_side else [1] * (len(pairs) - 1) + [last]
        shapes = [(address(mask), *mask.shape, code) for mask, code in zip(self.masks, activations, strict=True)]
        dense = [(address(weight), address(bias)) for weight, bias in zip(self.weights, self.biases, strict=True)]
        self.network = native.Network(shapes, dense)
        for layer in range(len(pairs)):
            assert self.network.gather_weight(layer)


def steps(native: Any, rng: np.random.Generator) -> None:
    """The gradient steps of every algorithm on a random batch."""
    n_samples, n_observations, n_actions = int(rng.integers(1, 150)), int(rng.integers(1, 20)), int(rng.integers(1, 7))
    n_threads, n_critics, n_rows = int(rng.integers(1, 5)), int(rng.integers(1, 4)), 50

    def put(batch: Any, *, choices: bool) -> Any:
        dtype = rng.choice([np.float32, np.float64])
        rows = rng.integers(n_rows, size=n_samples)
        arrays = [rng.normal(size=(n_rows, n_observations)).astype(dtype) for _ in range(2)]
        chosen = rng.uniform(-1, 1, (n_rows, n_actions)).astype(np.float32)
        rewards, dones, timeouts = rng.random((3, n_rows), dtype=np.float32)
        indices = rows if rng.random() < 0.7 else None
        if indices is None:
            n = n_samples
            arrays = [np.resize(array, (n, n_observations)) for array in arrays]
            chosen, rewards, dones = np.resize(chosen, (n, n_actions)), np.resize(rewards, n), np.resize(dones, n)
        discounts = rng.random(n_samples, dtype=np.float32) if rng.random() < 0.5 else None
        is_double = dtype == np.float64
        assert batch.put_observations(address(arrays[0]), is_double, n_observations, address(indices))
        assert batch.put_next_observations(address(arrays[1]), is_double, n_observations, address(indices))
        late = timeouts if indices is not None else None
        assert batch.put_rewards(address(rewards), address(dones), address(late), address(indices), address(discounts), 0.99)
        if not choices:
            assert batch.put_actions(address(chosen), False, n_actions, address(indices))
        return batch

    def widths(n_inputs: int, n_outputs: int) -> list[int]:
        return [n_inputs, *rng.integers(1, 40, int(rng.integers(1, 3))).tolist(), n_outputs]

    batch = put(native.Batch(n_samples, n_observations, n_actions), choices=False)
    critics = [Chain(native, rng, widths(n_observations + n_actions, 1), 0) for _ in range(n_critics)]
    targets = [Chain(native, rng, widths(n_observations + n_actions, 1), 0) for _ in range(n_critics)]
    online, also = [chain.network for chain in critics], [chain.network for chain in targets]
    actor = Chain(native, rng, widths(n_observations, n_actions), 2)
    noise = rng.normal(size=(n_samples, n_actions)).astype(np.float32)
    loss, found = native.td3_critics(batch, actor.network, also, online, address(noise), 0.5, n_threads)
    assert np.isfinite(loss)
    for deltas in found:
        deltas.weight_gradient(False, n_threads)
    loss, found = native.td3_actor(batch, actor.network, online[0], n_threads)
    assert np.isfinite(loss)
    for deltas in found:
        deltas.weight_gradient(True, n_threads)

    body = Chain(native, rng, widths(n_observations, int(rng.integers(1, 30))), 1)
    heads = Chain(native, rng, [len(body.masks[-1]), n_actions, n_actions], 0, side_by_side=True)
    log_prob, drawn = native.sac_draw(batch, body.network, heads.network, address(noise), n_threads)
    loss, found = native.sac_critics(batch, body.network, heads.network, also, online, address(noise), 0.2, n_threads)
    more, others = native.sac_actor(batch, drawn, online, 0.2, n_threads)
    del batch, drawn
    assert np.isfinite([log_prob, loss, more]).all()
    for deltas in (*found, *others):
        deltas.weight_gradient(False, n_threads)

    batch = put(native.Batch(n_samples, n_observations, 0), choices=True)
    q_net, target = (Chain(native, rng, widths(n_observations, n_actions), 0) for _ in range(2))
    actions = rng.integers(n_actions, size=n_samples)
    loss, found = native.dqn(batch, q_net.network, target.network, address(actions), n_threads)
    assert np.isfinite(loss)
    found[0].weight_gradient(False, n_threads)
    for wrong in (n_actions, -1):
        actions[-1] = wrong
        try:
            native.dqn(batch, q_net.network, target.network, address(actions), n_threads)
        except IndexError:
            continue
        raise AssertionError("an action that there is not was taken")


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
            steps(native, rng)
            settle(native, rng, "settle", np.float32)
            settle(native, rng, "settleDouble", np.float64)
    assert not native.choose_set("of the future")
    print("clean")


if __name__ == "__main__":
    main()
