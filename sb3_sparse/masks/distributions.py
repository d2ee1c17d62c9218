"""
How a network's sparsity is spread over its layers.

Pure arithmetic on shapes. A *pool* is all prunable layers of one network (twin critics form one pool). The number of
weights to keep is a promise about the whole network, so layers that are dense by request count against it.

Sources: Erdos-Renyi (ER) from SET (Mocanu et al., 2018), with its kernel form (ERK) from RigL (Evci et al., ICML 2020,
section 3.1); solving for a network total with over-full layers made dense as in RLx2 (Tan et al., ICLR 2023, section 4.1);
an explicit epsilon per layer as in DS-TD3 (Sokar et al., IJCAI 2022, section 4.1).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import floor, prod

Shape = Sequence[int]

DISTRIBUTION_HELP = (
    '"uniform", "er", "erk", a map from layer name to sparsity, '
    'or {"er_epsilon": ...} with a list by depth or a map from layer name to epsilon'
)


def er_factor(shape: Shape, *, kernel: bool = False) -> float:
    """
    The density of a layer per unit of epsilon.

    :param shape: Weight shape ``(out, in)`` or ``(out, in, kh, kw)``.
    :param kernel: Add the kernel's dimensions, as ERK does; a Linear layer has none, so both are the same there.
    :return: ``(out + in) / (out * in)``, or ``(out + in + kh + kw) / (out * in * kh * kw)`` with ``kernel``.
    """
    dimensions = shape if kernel else shape[:2]
    return sum(dimensions) / prod(dimensions)


def er_densities(shapes: Mapping[str, Shape], n_keep: float, *, kernel: bool = False) -> dict[str, float]:
    """
    Solve ``density_l = epsilon * er_factor_l`` so that the pool keeps ``n_keep`` weights. Layers that would need a density
    above 1 become dense and epsilon is solved again for the others.

    :param shapes: Weight shape of every layer of the pool.
    :param n_keep: Weights to keep in the pool, at most its total.
    :param kernel: ERK instead of ER.
    :return: Density in [0, 1] of every layer.
    """
    dense: set[str] = set()
    while True:
        open_layers = [name for name in shapes if name not in dense]
        remaining = n_keep - sum(prod(shapes[name]) for name in dense)
        if not open_layers:
            return dict.fromkeys(shapes, 1.0)
        epsilon = remaining / sum(er_factor(shapes[name], kernel=kernel) * prod(shapes[name]) for name in open_layers)
        densities = {name: epsilon * er_factor(shapes[name], kernel=kernel) for name in open_layers}
        over_full = {name for name, density in densities.items() if density > 1}
        if not over_full:
            return {name: 1.0 if name in dense else densities[name] for name in shapes}
        dense |= over_full


def uniform_densities(shapes: Mapping[str, Shape], n_keep: float) -> dict[str, float]:
    """
    The same density for every layer of the pool.

    :param shapes: Weight shape of every layer of the pool.
    :param n_keep: Weights to keep in the pool, at most its total.
    :return: Density in [0, 1] of every layer.
    """
    return dict.fromkeys(shapes, n_keep / sum(prod(shape) for shape in shapes.values()))


def epsilon_density(shape: Shape, epsilon: float) -> float:
    """
    The density an explicit ER epsilon gives a layer (DS-TD3's lambda), never above 1.

    :param shape: Weight shape.
    :param epsilon: Connections per unit, positive.
    :return: ``min(1, epsilon * er_factor(shape))``.
    """
    return min(1.0, epsilon * er_factor(shape))


def apportion(wanted: Mapping[str, float], limits: Mapping[str, int], total: int) -> dict[str, int]:
    """
    Round real-valued counts to integers whose sum is exactly ``total`` (largest remainder), each at least 1 and at most
    its limit.

    :param wanted: Real-valued number of weights of every layer.
    :param limits: Number of weights that exist at most in every layer.
    :param total: What the integers must add up to, between ``len(wanted)`` and the sum of the limits.
    :return: Integer number of weights of every layer.
    """
    counts = {name: min(max(floor(value), 1), limits[name]) for name, value in wanted.items()}
    missing = total - sum(counts.values())
    # Largest fractional part first when adding, smallest first when taking back; the layers' order breaks ties
    by_remainder = sorted(wanted, key=lambda name: floor(wanted[name]) - wanted[name])
    step = 1 if missing > 0 else -1
    order = by_remainder if missing > 0 else by_remainder[::-1]
    while missing:
        changed = False
        for name in order:
            if missing and 1 <= counts[name] + step <= limits[name]:
                counts[name] += step
                missing -= step
                changed = True
        if not changed:
            raise ValueError(f"{total} weights cannot be spread over layers of {dict(limits)} weights, one at least in each")
    return counts
