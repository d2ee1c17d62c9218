"""Proof that an export decides as its model: on recorded and random observations, and in whole episodes."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.vec_env import VecEnv, VecNormalize

from sb3_sparse.export import cortex_m
from sb3_sparse.export.artefact import Artefact, Decide, flat_observations
from sb3_sparse.export.episodes import Watch, episode_returns, unwatched
from sb3_sparse.export.parity import (
    DISAGREEMENT,
    Difference,
    Observations,
    action_range,
    difference,
    model_actions,
    random_observations,
)
from sb3_sparse_runtime.spaces import batch_of

#: Board whose instructions `--check` prints.
BOARD = "m4f"
#: Random and recorded observations that are compared at most.
N_OBSERVATIONS = 2000
N_EPISODES = 10
#: Largest difference of actions in fractions of their range: float32 sums in another order; integers, of which the last
#: function alone is another library's; and where an integer may be one off, because the sums are a runtime's own or there are
#: float32 sums before it.
FLOAT_BOUND, INTEGER_BOUND, STEP_BOUND = 1e-4, 2e-6, 0.1
#: The largest median of float16 weights' differences, and in what fraction of observations their discrete actions may differ.
HALF_BOUND, STEP_DISAGREEMENT = 1e-2, 0.05
#: Returns may be this fraction lower, or three standard errors.
RETURN_BOUND = 0.05


@dataclass(frozen=True)
class Comparison:
    """
    Actions on one set of observations.

    :param what: What was compared.
    :param found: How far they are apart.
    :param bound: The largest difference allowed; 0 means the same bits.
    :param typical: The largest median of differences allowed.
    :param disagreement: Fraction of discrete actions that may differ.
    """

    what: str
    found: Difference
    bound: float
    typical: float
    disagreement: float

    @property
    def passed(self) -> bool:
        """Whether it is within its bound."""
        if self.bound == 0:
            return self.found.bits == 1
        near = self.found.largest <= self.bound and self.found.typical <= self.typical
        return near and self.found.agreement >= 1 - self.disagreement - 1e-9

    def row(self) -> list[str]:
        """Cells of the table."""
        return [
            self.what,
            f"{self.found.n:,}",
            f"{self.found.typical:.1e}",
            f"{self.found.largest:.1e}",
            "same bits" if self.bound == 0 else f"{self.bound:.0e}",
            f"{self.found.agreement:.2%}",
            "ok" if self.passed else "FAILED",
        ]


@dataclass(frozen=True)
class Check:
    """
    What a check has found. ``print`` it.

    :param comparisons: Actions on observations.
    :param before: Returns of the model's episodes, empty without an environment.
    :param after: Returns of the export's episodes from the same seeds.
    :param notes: What else there is to say.
    """

    comparisons: tuple[Comparison, ...]
    before: tuple[float, ...]
    after: tuple[float, ...]
    notes: tuple[str, ...]

    @property
    def returns_passed(self) -> bool:
        """Whether the mean return is not lower than what chance makes of so many episodes."""
        if not self.before:
            return True
        n = len(self.before)
        error = float(np.sqrt((np.var(self.before) + np.var(self.after)) / n))
        allowed = max(RETURN_BOUND * abs(np.mean(self.before)), 3 * error)
        return bool(np.mean(self.after) >= np.mean(self.before) - allowed)

    @property
    def passed(self) -> bool:
        """Whether everything is within its bound."""
        return self.returns_passed and all(comparison.passed for comparison in self.comparisons)

    def __str__(self) -> str:
        header = ["compared", "n", "median error", "largest error", "bound", "identical", ""]
        rows = [header, *(comparison.row() for comparison in self.comparisons)]
        widths = [max(len(row[column]) for row in rows) for column in range(len(header))]
        lines = [
            "  ".join([row[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(row[1:], widths[1:], strict=True))])
            for row in rows
        ]
        lines.insert(1, "  ".join("-" * width for width in widths))
        if self.before:
            said = [f"{np.mean(returns):.1f} +- {np.std(returns):.1f}" for returns in (self.before, self.after)]
            verdict = "ok" if self.returns_passed else "FAILED"
            lines.append(f"return of {len(self.before)} episodes: {said[0]} before, {said[1]} after  {verdict}")
        return "\n".join([*(line.rstrip() for line in lines), *self.notes])


class _Predictor:
    """
    What ``evaluate_policy`` asks for actions, on observations as the environment gives them.

    :param artefact: What was exported.
    :param decide: What decides.
    """

    def __init__(self, artefact: Artefact, decide: Decide) -> None:
        self.graph, self.decide = artefact.graph, decide
        self.seen: list[Observations] = []
        self.masks: list[NDArray] = []

    def predict(
        self,
        observation: Any,
        state: Any = None,
        episode_start: Any = None,
        deterministic: bool = True,
        action_masks: NDArray | None = None,
    ) -> tuple[NDArray, Any]:
        """As SB3's."""
        observations, _ = batch_of(self.graph.observation, observation)
        # The formats take float32
        observations = {name: _as_float32(array) for name, array in observations.items()}
        self.seen.append({name: array.copy() for name, array in observations.items()})
        if action_masks is not None:
            action_masks = np.asarray(action_masks).reshape(len(next(iter(observations.values()))), -1)
            self.masks.append(action_masks)
        actions = self.decide(observations, action_masks)
        space = self.graph.action
        dtype = np.int64 if self.graph.chooses else actions.dtype
        return actions.astype(dtype).reshape(len(actions), *space.shape), state


def _as_float32(array: NDArray) -> NDArray:
    return array.astype(np.float32).astype(array.dtype) if array.dtype == np.float64 else array


def _model_decides(model: BaseAlgorithm, normalize: VecNormalize | None) -> Decide:
    def decide(observations: Mapping[str, NDArray], masks: NDArray | None = None) -> NDArray:
        return model_actions(model, observations, normalize, masks)

    return decide


def play(
    predictor: _Predictor, env: VecEnv, n_episodes: int, seed: int, watch: Watch = unwatched, what: str = "episodes"
) -> tuple[float, ...]:
    """
    Play episodes.

    :param predictor: What acts.
    :param env: The environment, without normalisation of observations.
    :param n_episodes: How many.
    :param seed: Seed of the environment.
    :param watch: Told of the episodes that are over.
    :param what: What it is told that these are.
    :return: Their returns.
    """
    env.seed(seed)
    maskable = predictor.graph.chooser is not None
    return episode_returns(predictor, env, n_episodes, maskable=maskable, watch=watch, what=what)


def _stacked(batches: list[Observations], n: int) -> Observations:
    found = {name: np.concatenate([batch[name] for batch in batches]) for name in batches[0]}
    n_rows = len(next(iter(found.values())))
    rows = np.linspace(0, n_rows - 1, min(n, n_rows)).astype(int)
    return {name: array[rows] for name, array in found.items()}


def _bounds(artefact: Artefact, scale: float, half: bool) -> tuple[float, float, float]:
    """The largest difference from the model, the largest median, and the fraction of discrete actions that may differ."""
    quantized = any(layer.is_quantized for layer in artefact.graph.layers)
    if half:
        return STEP_BOUND * scale, HALF_BOUND * scale, STEP_DISAGREEMENT
    if artefact.graph.is_exact and artefact.to != "onnx":
        return INTEGER_BOUND * scale, INTEGER_BOUND * scale, DISAGREEMENT
    return (STEP_BOUND if quantized else FLOAT_BOUND) * scale, FLOAT_BOUND * scale, DISAGREEMENT


def check(
    artefact: Artefact,
    model: BaseAlgorithm,
    normalize: VecNormalize | None,
    env: VecEnv | None,
    *,
    n_observations: int = N_OBSERVATIONS,
    n_episodes: int = N_EPISODES,
    seed: int = 0,
    watch: Watch = unwatched,
) -> Check:
    """
    Compare an export with the model that it was made of, and where all sums are integers with their definition, bit by bit.

    :param artefact: What is to be written.
    :param model: The model.
    :param normalize: Statistics that its observations are normalised with, None for none.
    :param env: Its environment, without that normalisation, for recorded observations and episodes; None: neither.
    :param n_observations: Observations of each kind.
    :param n_episodes: Episodes of the model, and of the export.
    :param seed: Seed of observations and episodes.
    :param watch: Told how far it is: in the model's episodes, in the export's, in the sets of observations.
    :return: What was found.
    :raises ImportError: If something is missing that runs the format, saying what.
    """
    graph = artefact.graph
    notes: list[str] = []
    sets: dict[str, tuple[Observations, NDArray | None]] = {
        "random observations": (random_observations(graph, n_observations, seed), None)
    }
    before: tuple[float, ...] = ()
    after: tuple[float, ...] = ()
    # Before episodes are played: what is missing should be said soon
    if artefact.to == "cortex-m" and (missing := cortex_m.missing_tools()) is not None:
        raise ImportError(f"checking a Cortex-M export needs tools: {missing}")
    with ExitStack() as stack:
        decide = stack.enter_context(artefact.deciding())
        if env is not None:
            predictor = _Predictor(artefact, _model_decides(model, normalize))
            before = play(predictor, env, n_episodes, seed, watch, "episodes of the model")
            masks = {"masks": np.concatenate(predictor.masks)} if predictor.masks else {}
            chosen = _stacked([*predictor.seen], n_observations)
            n_rows = sum(len(next(iter(batch.values()))) for batch in predictor.seen)
            rows = np.linspace(0, n_rows - 1, min(n_observations, n_rows)).astype(int)
            sets = {"recorded observations": (chosen, masks["masks"][rows] if masks else None), **sets}
            after = play(_Predictor(artefact, decide), env, n_episodes, seed, watch, "episodes of the export")
        else:
            notes.append("no environment is known: only random observations were compared, and no episodes played")
        comparisons = []
        half = any(layer.bits == 16 for layer in graph.layers)
        for n_compared, (name, (observations, allowed)) in enumerate(sets.items()):
            watch("sets of observations", n_compared, len(sets))
            expected = model_actions(model, observations, normalize, allowed)
            bound, typical, disagreement = _bounds(artefact, action_range(graph, expected), half)
            disagreement = disagreement if graph.action.kind != "box" else 1.0
            got = decide(observations, allowed)
            comparisons.append(
                Comparison(f"{name}: the model", difference(graph.action, expected, got), bound, typical, disagreement)
            )
            if artefact.to == "onnx":
                continue
            defined = graph.evaluate(observations, allowed)[graph.outputs["action"]]
            exact = 0.0 if artefact.graph.is_exact else bound
            comparisons.append(
                Comparison(f"{name}: the definition", difference(graph.action, defined, got), exact, typical, disagreement)
            )
            if artefact.to == "cortex-m" and allowed is None:
                found, note = _on_board(artefact, observations)
                what = f"{name}: Cortex-M, the definition"
                comparisons.append(Comparison(what, difference(graph.action, defined, found), exact, typical, disagreement))
                notes.append(f"{name}: {note}")
        watch("sets of observations", len(sets), len(sets))
        if artefact.to == "cortex-m" and env is not None:
            notes.append("episodes: the same C, compiled for this machine")
    return Check(tuple(comparisons), before, after, tuple(dict.fromkeys(notes)))


def _on_board(artefact: Artefact, observations: Mapping[str, NDArray]) -> tuple[NDArray, str]:
    """Actions under QEMU, and what they took."""
    assert artefact.source is not None
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for path, text in cortex_m.test_bench(artefact.source).items():
            (folder / path).write_text(text)
        memory = cortex_m.build(folder, artefact.source.name, BOARD)
        rows = flat_observations(artefact.graph, observations)
        found = cortex_m.run(folder, artefact.graph.action.size, BOARD, rows, memory)
    note = (
        f"{found.instructions:,.0f} instructions on average on a Cortex-M4F (-O2, QEMU), {found.most_instructions:,} at most; "
        f"{memory.tables:,} bytes of tables, {memory.code:,} of code, {found.stack:,} of stack"
    )
    return found.actions, note


def without_normalization(env: VecEnv | None) -> VecEnv | None:
    """
    Find the environment behind ``VecNormalize``.

    :param env: A model's environment.
    :return: The same without; None if there is none, or it cannot be taken off.
    """
    if env is None:
        return None
    if isinstance(env, VecNormalize):
        return env.venv
    inner: Any = env
    while (inner := getattr(inner, "venv", None)) is not None:
        if isinstance(inner, VecNormalize):
            return None
    return env
