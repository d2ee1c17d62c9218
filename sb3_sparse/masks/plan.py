"""
From what the user asks for (:class:`~sb3_sparse.masks.config.SparsityConfig`) to the exact number of weights of every
layer. What cannot be had is refused before any weight is touched.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

from sb3_sparse.masks.config import DEFAULT_DISTRIBUTION, DEFAULT_SPARSITY, SparsityConfig
from sb3_sparse.masks.distributions import apportion, epsilon_density, er_densities, uniform_densities
from sb3_sparse.masks.patterns import Budget, Pattern, Unstructured, parse_pattern


@dataclass(frozen=True)
class LayerInfo:
    """
    A prunable layer, as far as planning needs to know it.

    :param name: Dotted path in the policy, e.g. ``"actor.mu.0"``.
    :param network: The network it belongs to, e.g. ``"actor"``.
    :param shape: Shape of its weight.
    :param depth: Position in its network, 0 nearest the observation; parallel layers (twin critics, the two heads of a
        SAC actor) share a depth.
    """

    name: str
    network: str
    shape: tuple[int, ...]
    depth: int

    @property
    def n_weights(self) -> int:
        return math.prod(self.shape)


@dataclass(frozen=True)
class LayerPlan:
    """
    What a layer's mask must be.

    :param info: The layer.
    :param pattern: Which masks are legal for it; ``unstructured`` for an exempt layer.
    :param budget: The pattern's budget.
    :param exempt: Whether ``dense_layers`` keeps it dense for good, so that no updater prunes it.
    """

    info: LayerInfo
    pattern: Pattern
    budget: Budget
    exempt: bool

    @property
    def n_active(self) -> int:
        """How many positions the layer's mask has, exactly."""
        return self.pattern.n_active(self.info.shape, self.budget)


def match_names(known: Sequence[str], name: str, argument: str) -> list[str]:
    """
    Resolve a layer's name or shell pattern.

    :param known: Names of layers.
    :param name: A layer name or a shell pattern of names.
    :param argument: The argument the name came in, for the message.
    :return: The layers it names, at least one.
    :raises ValueError: If it names none; the message lists the real names.
    """
    matched = [layer for layer in known if fnmatchcase(layer, name)]
    if not matched:
        raise ValueError(f"`{argument}` names the unknown layer {name!r}; the layers of this policy are: {', '.join(known)}")
    return matched


def select_layers(
    layers: Sequence[LayerInfo], names: str | Sequence[str], argument: str, *, others: Sequence[str] = ()
) -> set[str]:
    """
    Resolve a choice of layers: ``"first"``, ``"last"``, names and shell patterns.

    :param layers: All prunable layers.
    :param names: ``"first"``, ``"last"``, a layer name or shell pattern, or a list of these.
    :param argument: The argument they came in, for messages.
    :param others: Names of further layers, which have no depth.
    :return: Names of the layers they mean.
    :raises ValueError: If one of them names no layer.
    """
    deepest: dict[str, int] = {}
    for layer in layers:
        deepest[layer.network] = max(deepest.get(layer.network, 0), layer.depth)
    selected: set[str] = set()
    for name in [names] if isinstance(names, str) else names:
        if name == "first":
            selected |= {layer.name for layer in layers if layer.depth == 0}
        elif name == "last":
            selected |= {layer.name for layer in layers if layer.depth == deepest[layer.network]}
        else:
            selected |= set(match_names([*(layer.name for layer in layers), *others], name, argument))
    return selected


def _explicit_densities(layers: Sequence[LayerInfo], distribution: Mapping[str, Any]) -> dict[str, float]:
    """Densities of an explicit distribution; layers that it leaves out are dense."""
    densities = {layer.name: 1.0 for layer in layers}
    shapes = {layer.name: layer.shape for layer in layers}
    epsilons = distribution.get("er_epsilon")
    if epsilons is None:
        for name, sparsity in distribution.items():
            densities |= dict.fromkeys(match_names(list(shapes), name, "distribution"), 1.0 - sparsity)
    elif isinstance(epsilons, Mapping):
        for name, epsilon in epsilons.items():
            for matched in match_names(list(shapes), name, "distribution"):
                densities[matched] = epsilon_density(shapes[matched], epsilon)
    else:
        for layer in layers:
            if layer.depth < len(epsilons) and epsilons[layer.depth] is not None:
                densities[layer.name] = epsilon_density(layer.shape, epsilons[layer.depth])
    return densities


def _network_sparsities(config: SparsityConfig, networks: Sequence[str], pattern: Pattern, argument: str) -> dict[str, float]:
    fixed = pattern.fixed_sparsity
    if isinstance(config.sparsity, Mapping):
        for network in config.sparsity:
            if network not in networks:
                raise ValueError(
                    f"`{argument}` names the unknown network {network!r}; the networks of this policy are: "
                    f"{', '.join(networks)}"
                )
        sparsities = {network: float(config.sparsity.get(network, 0.0)) for network in networks}
    else:
        value = config.sparsity
        if value is None:
            value = fixed if fixed is not None else DEFAULT_SPARSITY
        sparsities = dict.fromkeys(networks, float(value))
    if fixed is not None:
        for network, sparsity in sparsities.items():
            if not sparsity:
                continue
            if not pattern.agrees_with(sparsity):
                raise ValueError(
                    f"`{argument}`={sparsity} of network {network!r} and `pattern`={config.pattern!r} disagree: the pattern "
                    f"means a sparsity of {fixed:g}. Give {fixed:g}, 0 for a dense network, or leave `{argument}` out"
                )
            sparsities[network] = fixed
    return sparsities


def _network_counts(
    network: str, pool: Sequence[LayerInfo], dense: Sequence[LayerInfo], sparsity: float, distribution: str, argument: str
) -> dict[str, float]:
    """Real-valued number of weights to keep in every layer of a network's pool, so that the whole network hits its total."""
    total = sum(layer.n_weights for layer in (*pool, *dense))
    n_keep = round((1 - sparsity) * total)
    n_dense = sum(layer.n_weights for layer in dense)
    if n_keep - n_dense < len(pool):
        possible = math.floor((1 - (n_dense + len(pool)) / total) * 1e4) / 1e4
        raise ValueError(
            f"`{argument}`={sparsity} of network {network!r} cannot be reached: of its {total} weights {n_dense} are in "
            f"`dense_layers` ({', '.join(layer.name for layer in dense) or 'none'}) and each of the other {len(pool)} layers "
            f"keeps at least one, so at most {max(possible, 0.0):.4f} is possible"
        )
    shapes = {layer.name: layer.shape for layer in pool}
    if distribution == "uniform":
        densities = uniform_densities(shapes, n_keep - n_dense)
    else:
        densities = er_densities(shapes, n_keep - n_dense, kernel=distribution == "erk")
    return {layer.name: densities[layer.name] * layer.n_weights for layer in pool}


def make_plan(config: SparsityConfig, layers: Sequence[LayerInfo], *, argument: str = "sparsity") -> dict[str, LayerPlan]:
    """
    The exact plan of every layer.

    Unstructured networks keep ``round((1 - sparsity) * weights)`` weights to the unit (largest-remainder rounding over their
    layers); N:M follows from the pattern; with blocks every layer keeps the number of whole blocks nearest to its share.

    :param config: What was asked for.
    :param layers: All prunable layers of the policy, in order of depth.
    :param argument: How errors name ``sparsity``.
    :return: Plan by layer name, in the order of ``layers``.
    :raises ValueError: For unknown networks or layers, patterns that a layer cannot hold, and totals out of reach.
    """
    pattern = parse_pattern(config.pattern)
    networks = list(dict.fromkeys(layer.network for layer in layers))
    exempt = select_layers(layers, config.dense_layers, "dense_layers")
    wanted: dict[str, float] = {}
    if isinstance(config.distribution, Mapping):
        densities = _explicit_densities(layers, config.distribution)
        for layer in layers:
            density = 1.0 if layer.name in exempt else densities[layer.name]
            if density < 1 and not pattern.agrees_with(1 - density):
                raise ValueError(
                    f"`distribution` gives layer {layer.name!r} a sparsity of {1 - density:g}, but "
                    f"`pattern`={config.pattern!r} means {pattern.fixed_sparsity:g}; a layer can have that sparsity or 0"
                )
            wanted[layer.name] = float(round(density * layer.n_weights))
    else:
        distribution = config.distribution or ("uniform" if pattern.fixed_sparsity is not None else DEFAULT_DISTRIBUTION)
        for network, sparsity in _network_sparsities(config, networks, pattern, argument).items():
            members = [layer for layer in layers if layer.network == network]
            pool = [layer for layer in members if layer.name not in exempt] if sparsity else []
            dense = [layer for layer in members if layer not in pool]
            wanted |= {layer.name: float(layer.n_weights) for layer in dense}
            if pool and pattern.fixed_sparsity is not None:
                wanted |= {layer.name: (1 - sparsity) * layer.n_weights for layer in pool}
            elif pool:
                counts = _network_counts(network, pool, dense, sparsity, distribution, argument)
                if isinstance(pattern, Unstructured):
                    limits = {layer.name: layer.n_weights for layer in pool}
                    counts = {**apportion(counts, limits, round(sum(counts.values())))}
                wanted |= counts
    return {layer.name: _layer_plan(layer, pattern, wanted[layer.name], layer.name in exempt) for layer in layers}


def refuse_growth(
    plan: Mapping[str, LayerPlan], n_active: Mapping[str, int], n_final: int, *, argument: str, slack: int = 0
) -> None:
    """
    Refuse to prune a network to fewer zeros than it has.

    :param plan: What its layers shall become.
    :param n_active: Positions that every one of its layers has.
    :param n_final: Positions that all of them shall have together.
    :param argument: How the error names the sparsity.
    :param slack: By how many positions the present number may be too low.
    :raises ValueError: Naming both sparsities.
    """
    n_now, total = sum(n_active.values()), sum(plan[name].info.n_weights for name in n_active)
    if n_final > n_now + slack:
        network = next(iter(plan.values())).info.network
        raise ValueError(
            f"`{argument}` of network {network!r} is {1 - n_final / total:.4f}, below its present sparsity "
            f"{1 - n_now / total:.4f}: pruned weights never return. Give the present one or more"
        )


def refuse_layer_growth(plan: LayerPlan, present: Budget, n_active: int) -> None:
    """
    Refuse to give a layer more positions than it has.

    :param plan: What a layer shall become.
    :param present: Budget of the mask it has.
    :param n_active: Positions of that mask.
    :raises ValueError: If the plan asks for more than there is.
    """
    # A budget of N:M is longer where groups are not full
    if plan.n_active > n_active or any(now < then for now, then in zip(present, plan.budget, strict=False)):
        raise ValueError(
            f"the final plan gives layer {plan.info.name!r} {plan.n_active} weights, more than the {n_active} it has: pruned "
            "weights never return. Choose another `distribution` or `scope`='global'"
        )


def _layer_plan(layer: LayerInfo, pattern: Pattern, n_active: float, exempt: bool) -> LayerPlan:
    if exempt:
        return LayerPlan(layer, Unstructured(), (layer.n_weights,), exempt=True)
    reason = pattern.impossible(layer.shape)
    if reason is not None:
        if n_active >= layer.n_weights:
            # Dense as it is, and no mask but the full one is possible: nothing that could be pruned later
            return LayerPlan(layer, Unstructured(), (layer.n_weights,), exempt=True)
        raise ValueError(
            f"`pattern`={pattern.spec!r} is impossible for layer {layer.name!r}: {reason}. "
            "Choose another pattern or name the layer in `dense_layers`"
        )
    return LayerPlan(layer, pattern, pattern.budget(layer.shape, n_active), exempt=False)
