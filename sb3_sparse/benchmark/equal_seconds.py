"""
``python -m sb3_sparse.benchmark equal-seconds``: what an agent has learnt after so many seconds of one core. Stock dense
agents, SBX's and sparse ones, narrow and wide, train for the same time and not for the same number of steps.

The clock stands still while an agent is evaluated, and runs for everything else, compilation included. Agents that are in the
CSV file are not trained again; one that is interrupted begins again. Nothing else should run on the machine.
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
import torch as th
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.noise import NormalActionNoise

from sb3_sparse.accelerated import accelerate
from sb3_sparse.benchmark.arguments import SBX, continuous_env, positive, seed_number
from sb3_sparse.benchmark.csv_files import read_rows, write_rows
from sb3_sparse.benchmark.models import ALGORITHMS
from sb3_sparse.benchmark.sbx import require_sbx, sbx_class
from sb3_sparse.callbacks.set_rigl import SET, RigL
from sb3_sparse.engine import native
from sb3_sparse.engine.native import processor
from sb3_sparse.runs.figures import panels, plain_axes, style
from sb3_sparse.runs.playing import play
from sb3_sparse.runs.spec import EPISODE_SEED
from sb3_sparse.utils.commit import source_commit
from sb3_sparse.utils.figures import write_figure
from sb3_sparse.utils.files import require_writable
from sb3_sparse.utils.markdown import markdown

DENSE, SPARSE, ACCELERATED = ("dense", "sparse", "accelerated")
KINDS = (DENSE, SBX, SPARSE, ACCELERATED)
#: What changes the masks of sparse agents. A budget of seconds has no number of steps over which a drop fraction could fall.
UPDATERS: dict[str, type[SET] | None] = {"rigl": RigL, "set": SET, "static": None}
_EVERY, _DROP = 1000, 0.3
#: Of all agents alike: RLx2's, which are SAC's own in Stable-Baselines3 and SBX.
_COMMON: dict[str, Any] = dict(
    learning_rate=3e-4, batch_size=256, gamma=0.99, tau=0.005, learning_starts=10_000, train_freq=1, gradient_steps=1
)
_NOISE = 0.1
#: More steps than any budget has.
_ENDLESS = 10**9


@dataclass(frozen=True)
class Agent:
    """
    One of those that are compared.

    :param kind: One of :data:`KINDS`.
    :param width: Of its two hidden layers.
    :param sparsity: Of actor and critic; 0 for the dense ones, among which an accelerated one may be.
    """

    kind: str
    width: int
    sparsity: float = 0.0

    @property
    def has_sparse_policy(self) -> bool:
        """Whether its policy is this package's."""
        return self.kind in (SPARSE, ACCELERATED)

    def __str__(self) -> str:
        return f"{self.kind}:{self.width}" + (f":{self.sparsity:g}" if self.has_sparse_policy else "")

    @property
    def title(self) -> str:
        """The same for people."""
        weights = f"{100 * self.sparsity:g} %" if self.sparsity else "dense"
        kind = {DENSE: "stock", SBX: "SBX (JAX)"}.get(self.kind, weights)
        return f"{kind}, {self.width} wide" + (", accelerated" if self.kind == ACCELERATED else "")


def agent(text: str) -> Agent:
    """
    Read an agent from a command line.

    :param text: ``dense:256``, ``sbx:256``, ``sparse:256:0.9`` or ``accelerated:256:0.9``.
    :return: The agent.
    :raises argparse.ArgumentTypeError: If it is anything else.
    """
    kind, *numbers = text.split(":")
    try:
        width, *rest = numbers
        found = Agent(kind, int(width), *map(float, rest))
        if kind not in KINDS or len(rest) != found.has_sparse_policy or found.width < 1 or not 0 <= found.sparsity < 1:
            raise ValueError
        if kind == SPARSE and found.sparsity == 0:
            raise ValueError
    except (TypeError, ValueError):
        raise argparse.ArgumentTypeError(
            "an agent is dense:WIDTH, sbx:WIDTH, sparse:WIDTH:SPARSITY with a sparsity in (0, 1), or "
            f"accelerated:WIDTH:SPARSITY with one in [0, 1), not {text!r}"
        ) from None
    return found


#: Those that are compared if nobody says which.
_AGENTS = [
    agent(text)
    for text in ["dense:256", "sbx:256", "accelerated:256:0", "sparse:256:0.9", "accelerated:256:0.9", "accelerated:1024:0.95"]
]


@dataclass(frozen=True)
class Point:
    """
    One evaluation of one agent.

    :param algorithm: ``"td3"`` or ``"sac"``.
    :param environment: Id of the environment.
    :param agent: As on the command line.
    :param updater: What changes its masks; empty for a dense one.
    :param seed: Of the training.
    :param budget: Seconds that the agent has in all.
    :param seconds: Seconds of training before this evaluation.
    :param steps: Environment steps by then.
    :param mean_return: Mean return of the episodes.
    :param episodes: How many, deterministic.
    :param commit: Of this package's source, empty if unknown.
    :param processor: What it ran on.
    """

    algorithm: str
    environment: str
    agent: str
    updater: str
    seed: int
    budget: float
    seconds: float
    steps: int
    mean_return: float
    episodes: int
    commit: str
    processor: str

    @property
    def key(self) -> tuple[Any, ...]:
        """What the evaluations of one training share."""
        return self.algorithm, self.environment, self.agent, self.updater, self.seed, self.budget, self.episodes


def read_points(file: str | Path) -> list[Point]:
    """
    Read a file of evaluations.

    :param file: CSV file with the columns of :class:`Point`.
    :return: Its rows.
    :raises FileNotFoundError: If there is no such file.
    :raises ValueError: For other columns, or values that cannot be read.
    """
    rows = read_rows(file, Point, "evaluations")
    for where, point in rows:
        try:
            agent(point.agent)
        except argparse.ArgumentTypeError as error:
            raise ValueError(f"{where}: {error}") from None
    return [point for _, point in rows]


class Stopwatch(BaseCallback):
    """
    Evaluates when so many seconds of training have passed, and ends the training with its budget.

    :param marks: Seconds of training before each evaluation, rising; the last one is the budget.
    :param evaluate: Evaluates a model.
    """

    def __init__(self, marks: Sequence[float], evaluate: Callable[[BaseAlgorithm], float]) -> None:
        super().__init__()
        self.marks, self.evaluate = list(marks), evaluate
        #: Seconds, steps and mean return of each evaluation.
        self.found: list[tuple[float, int, float]] = []
        self._paused = 0.0
        self._start = time.perf_counter()

    def begin(self) -> None:
        """Let the clock run, right before the training."""
        self._start = time.perf_counter()

    def _on_step(self) -> bool:
        now = time.perf_counter()
        elapsed = now - self._start - self._paused
        if elapsed < self.marks[len(self.found)]:
            return True
        value = self.evaluate(self.model)
        self._paused += time.perf_counter() - now
        # One step may have taken longer than to the next mark, as one that compiles does
        while len(self.found) < len(self.marks) and elapsed >= self.marks[len(self.found)]:
            self.found.append((elapsed, self.num_timesteps, value))
        return len(self.found) < len(self.marks)


def train(
    algo: str, env_id: str, which: Agent, updater: str, seed: int, marks: Sequence[float], episodes: int
) -> list[tuple[float, int, float]]:
    """
    Train one agent.

    :param algo: ``"td3"`` or ``"sac"``.
    :param env_id: Id of the environment.
    :param which: The agent.
    :param updater: A key of :data:`UPDATERS`, for a sparse one.
    :param seed: Of everything.
    :param marks: Seconds of training before each evaluation.
    :param episodes: Of an evaluation.
    :return: Seconds, environment steps and mean return of each evaluation.
    """
    algorithm: Any = sbx_class(algo) if which.kind == SBX else ALGORITHMS[algo]
    env = make_vec_env(env_id, seed=seed)
    evaluation = make_vec_env(env_id, seed=EPISODE_SEED)
    policy_kwargs: dict[str, Any] = {"net_arch": [which.width] * 2}
    if which.has_sparse_policy:
        engine = "native" if native.available() else "torch"
        policy_kwargs |= dict(sparsity=which.sparsity, distribution="er", initial_mask="magnitude", engine=engine)
    arguments = dict(_COMMON)
    if algo == "td3":
        n_actions = int(np.prod(env.action_space.shape))  # type: ignore[arg-type]
        arguments["action_noise"] = NormalActionNoise(np.zeros(n_actions), np.full(n_actions, _NOISE))
    policy = "SparseMlpPolicy" if which.has_sparse_policy else "MlpPolicy"
    model = algorithm(policy, env, policy_kwargs=policy_kwargs, seed=seed, device="cpu", **arguments)
    if which.kind == ACCELERATED:
        accelerate(model)
    seeds = range(EPISODE_SEED, EPISODE_SEED + episodes)
    stopwatch = Stopwatch(marks, lambda model: fmean(play(model, evaluation, seeds)[0]))
    callbacks: list[BaseCallback] = [stopwatch]
    if which.sparsity and (kind := UPDATERS[updater]) is not None:
        callbacks.insert(0, kind(_EVERY, _DROP, "constant"))
    try:
        stopwatch.begin()
        model.learn(_ENDLESS, callback=callbacks)
    finally:
        env.close()
        evaluation.close()
    return stopwatch.found


def seconds_table(points: Sequence[Point]) -> str:
    """
    What every agent has at the end of its budget.

    :param points: Evaluations.
    :return: A Markdown table.
    """
    last: dict[tuple[Any, ...], Point] = {}
    for point in points:
        last[point.key] = point
    rows: dict[tuple[Any, ...], list[Point]] = {}
    for point in last.values():
        rows.setdefault((point.algorithm, point.environment, point.agent, point.updater, point.budget), []).append(point)
    header = ["algorithm, environment", "agent", "masks", "seconds", "return", "seeds", "steps", "steps per second"]
    lines = [
        [
            f"{algo}, {env}",
            agent(name).title,
            updater or "-",
            f"{budget:,.0f}",
            f"{fmean(point.mean_return for point in mine):,.0f}",
            str(len(mine)),
            f"{fmean(point.steps for point in mine):,.0f}",
            f"{fmean(point.steps / point.seconds for point in mine):,.0f}",
        ]
        for (algo, env, name, updater, budget), mine in rows.items()
    ]
    return markdown(header, lines)


def draw(points: Sequence[Point], output: str | Path) -> list[Path]:
    """
    Draw return against seconds, a panel for each algorithm and environment; means over seeds, each seed a faint line.

    :param points: Evaluations, at least one.
    :param output: Name of the figure; ``.png`` and ``.svg`` are appended.
    :return: Both files.
    """
    tasks: dict[tuple[str, str], list[Point]] = {}
    for point in points:
        tasks.setdefault((point.algorithm, point.environment), []).append(point)
    names = list(dict.fromkeys(point.agent for point in points))

    def fill(figure: Any) -> None:
        for axes, ((algo, env), mine) in zip(panels(figure, len(tasks)), tasks.items(), strict=True):
            for name in dict.fromkeys(point.agent for point in mine):
                curves: dict[tuple[Any, ...], list[Point]] = {}
                for point in mine:
                    if point.agent == name:
                        curves.setdefault(point.key, []).append(point)
                look = style(names.index(name))
                for curve in curves.values():
                    axes.plot(
                        [point.seconds for point in curve],
                        [point.mean_return for point in curve],
                        color=look["color"],
                        alpha=0.25,
                        linewidth=0.8,
                    )
                shortest = min(map(len, curves.values()))
                together = list(zip(*(curve[:shortest] for curve in curves.values()), strict=True))
                axes.plot(
                    [fmean(point.seconds for point in some) for some in together],
                    [fmean(point.mean_return for point in some) for some in together],
                    label=agent(name).title,
                    linewidth=1.6,
                    **look,
                )
            axes.set_xlabel("seconds of one core")
            axes.set_ylabel("return")
            axes.set_title(f"{algo.upper()}, {env}, {len({point.seed for point in mine})} seeds", fontsize=9)
            plain_axes(axes)

    columns = min(len(tasks), 2)
    size = (5.4 * columns, 3.6 * math.ceil(len(tasks) / columns) + 0.7)
    return write_figure(output, size, fill, legend_columns=2 * columns)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """
    Declare the arguments.

    :param parser: Parser of the sub-command.
    """
    parser.add_argument("--algo", nargs="+", choices=["td3", "sac"], default=["td3", "sac"])
    parser.add_argument("--env", nargs="+", type=continuous_env, default=["HalfCheetah-v4"])
    parser.add_argument(
        "--agents",
        nargs="+",
        type=agent,
        default=_AGENTS,
        metavar="AGENT",
        help="dense:WIDTH, sbx:WIDTH, sparse:WIDTH:SPARSITY, accelerated:WIDTH:SPARSITY "
        f"(default: {' '.join(map(str, _AGENTS))})",
    )
    parser.add_argument("--updater", choices=list(UPDATERS), default="rigl", help="what changes masks (default: rigl)")
    parser.add_argument("--seconds", type=positive, default=1800, help="of training, for each agent (default: 1800)")
    parser.add_argument("--evaluations", type=positive, default=20, help="at equal distances of time (default: 20)")
    parser.add_argument("--episodes", type=positive, default=10, help="of each evaluation (default: 10)")
    parser.add_argument("--seeds", nargs="+", type=seed_number, default=[1], help="of the trainings (default: 1)")
    parser.add_argument("-o", "--output", required=True, metavar="FILE.csv", help="goes on where the file ends")
    parser.add_argument("--figure", metavar="NAME", help="also draw what is in the file, as NAME.png and NAME.svg")
    parser.add_argument("--only-draw", action="store_true", help="train nothing")


def run(arguments: argparse.Namespace) -> None:
    """
    Train what is missing, and print what there is.

    :param arguments: Parsed arguments.
    :raises ValueError: For a file that will not do.
    :raises ImportError: Without SBX, if it is among the agents.
    """
    file = Path(arguments.output)
    points = read_points(file) if file.exists() else []
    if not arguments.only_draw:
        require_writable("--output", file)
        if any(one.kind == SBX for one in arguments.agents):
            require_sbx([1])
        th.set_num_threads(1)
        budget = float(arguments.seconds)
        marks = [budget * (index + 1) / arguments.evaluations for index in range(arguments.evaluations)]
        for seed in arguments.seeds:
            for algo in arguments.algo:
                for env in arguments.env:
                    for one in arguments.agents:
                        updater = arguments.updater if one.sparsity else ""
                        common = (algo, env, str(one), updater, seed, budget)
                        if any(point.key == (*common, arguments.episodes) for point in points):
                            continue
                        print(f"{algo} on {env}, {one}, seed {seed}: {budget:,.0f} seconds", flush=True)
                        found = train(algo, env, one, arguments.updater, seed, marks, arguments.episodes)
                        about = (arguments.episodes, source_commit() or "", processor())
                        points += [Point(*common, round(seconds, 3), steps, value, *about) for seconds, steps, value in found]
                        write_rows(file, Point, points)
    if not points:
        raise ValueError(f"`--only-draw`: {file} has nothing yet")
    print(seconds_table(points))
    if arguments.figure:
        for written in draw(points, arguments.figure):
            print(f"written to {written}")
