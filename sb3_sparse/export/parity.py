"""Whether two ways to decide are one: observations to compare on, and how far actions are apart."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.vec_env import VecNormalize

from sb3_sparse.export.normalization import normalized
from sb3_sparse.policies.base import policy_of
from sb3_sparse_runtime.graph import Graph
from sb3_sparse_runtime.operations import Normalize
from sb3_sparse_runtime.spaces import Space

#: Observations by name of the graph's inputs.
Observations = dict[str, NDArray]

#: How far the graph's actions may be from the model's, in fractions of the range of actions.
TOLERANCE = 1e-4
#: In what fraction of observations discrete actions may differ: where two choices are equally good to the last bits.
DISAGREEMENT = 0.01


def random_observations(graph: Graph, n: int, seed: int = 0) -> Observations:
    """
    Draw observations.

    :param graph: A decision.
    :param n: How many.
    :param seed: Seed.
    :return: Observations of its spaces, as the environment gives them: normal around the statistics where there are any,
        standard normal elsewhere; float32 numbers.
    """
    rng = np.random.default_rng(seed)
    statistics = {operation.inputs[0]: operation for operation in graph.operations if isinstance(operation, Normalize)}
    found: Observations = {}
    for name, space in graph.inputs.items():
        shape = (n, *space.shape)
        if space.sizes:
            found[name] = rng.integers(0, np.broadcast_to(np.reshape(space.sizes, space.shape), shape))
        elif space.kind == "multi_binary":
            found[name] = rng.integers(0, 2, shape).astype(space.dtype)
        elif space.dtype == "uint8":
            found[name] = rng.integers(0, 256, shape).astype(np.uint8)
        elif np.issubdtype(np.dtype(space.dtype), np.floating):
            values = rng.standard_normal(shape)
            if name in statistics:
                values = statistics[name].mean + statistics[name].deviation * values
            found[name] = values.astype(np.float32).astype(space.dtype)
        else:
            found[name] = rng.integers(0, 10, shape).astype(space.dtype)
    return found


def model_actions(
    model: BaseAlgorithm,
    observations: Mapping[str, NDArray],
    normalize: VecNormalize | None,
    action_masks: NDArray | None = None,
) -> NDArray:
    """
    What a model answers to observations of the environment.

    :param model: A model.
    :param observations: Observations by name.
    :param normalize: Statistics, None for none.
    :param action_masks: For MaskablePPO, False where a choice is forbidden.
    :return: Actions ``[n, numbers]``.
    """
    given: Any = dict(observations)
    if list(given) == ["observation"] and not hasattr(policy_of(model).observation_space, "spaces"):
        given = given["observation"]
    if normalize is not None:
        given = normalized(normalize, given)
    extra: dict[str, Any] = {} if action_masks is None else {"action_masks": action_masks}
    actions, _ = policy_of(model).predict(given, deterministic=True, **extra)
    return actions.reshape(len(actions), -1)


@dataclass(frozen=True)
class Difference:
    """
    How far two sets of actions are apart.

    :param n: Observations.
    :param largest: Largest difference of a number, 0 for discrete actions.
    :param typical: Median over observations of the largest difference of theirs, 0 for discrete actions.
    :param agreement: Fraction of observations with exactly the same action.
    :param bits: Fraction of numbers whose bits are the same.
    """

    n: int
    largest: float
    typical: float
    agreement: float
    bits: float


def difference(space: Space, first: NDArray, second: NDArray) -> Difference:
    """
    Compare actions.

    :param space: Action space.
    :param first: Actions ``[n, numbers]``.
    :param second: The same.
    :return: How far they are apart.
    """
    first, second = (np.asarray(actions, np.float64).reshape(len(actions), -1) for actions in (first, second))
    far = np.abs(first - second).max(axis=1) if space.kind == "box" else np.zeros(len(first))
    same = first == second
    return Difference(len(first), float(far.max()), float(np.median(far)), float(same.all(axis=1).mean()), float(same.mean()))


def action_range(graph: Graph, actions: NDArray) -> float:
    """
    Say what differences of actions are measured by.

    :param graph: A decision.
    :param actions: Some actions.
    :return: What differences of actions are measured by: how far actions reach, at least 1.
    """
    return max(1.0, float(np.abs(actions).max(initial=0))) if graph.action.kind == "box" else 1.0


def disagreement(graph: Graph, expected: NDArray, got: NDArray) -> str | None:
    """
    Say how far actions are from what they should be.

    :param graph: A decision.
    :param expected: Actions ``[n, numbers]``.
    :param got: The same.
    :return: What is wrong with them; None if they are the same but for rounding: :data:`TOLERANCE`, :data:`DISAGREEMENT`, and
        one choice in any case, which may be between equals.
    """
    found = difference(graph.action, expected, got)
    if graph.action.kind == "box":
        # NaN is no agreement
        is_right = found.largest <= TOLERANCE * action_range(graph, expected)
        return None if is_right else f"actions differ by {found.largest:g}"
    is_right = found.agreement >= 1 - max(DISAGREEMENT, 1 / found.n)
    return None if is_right else f"{1 - found.agreement:.0%} of the actions differ"


def require_same_decision(model: BaseAlgorithm, graph: Graph, normalize: VecNormalize | None, n: int = 32) -> None:
    """
    Compare a graph with the model that it was made of: what a policy does by hooks or in methods of its own is noticed.

    :param model: The model.
    :param graph: The graph.
    :param normalize: Statistics of observations.
    :param n: Number of observations.
    :raises ValueError: If they decide differently.
    """
    observations = random_observations(graph, n)
    expected = model_actions(model, observations, normalize)
    values = graph.evaluate(observations)
    said = disagreement(graph, expected, values[graph.outputs["action"]].reshape(n, -1))
    if said is not None:
        raise ValueError(
            f"the policy {type(policy_of(model)).__name__} decides otherwise than its layers say ({said}): what hooks or "
            "methods of your own do cannot be exported"
        )
