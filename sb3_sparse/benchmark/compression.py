"""
Return against sparsity (Ivanov et al. 2025, figures 4 and 5): agents of the preset ``compress``, pruned to several sparsities,
each evaluated twice, when it is pruned and, after 20 % more steps, when it is quantized too.

Trained agents are rows of a CSV file. Those that are in it are not trained again, and a run that is stopped loses the agents
in training alone. One file belongs to one run at a time. Every agent meets the same episodes, whatever its seed.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import pstdev
from typing import Any

from sb3_sparse.benchmark.arguments import positive, sparsity
from sb3_sparse.benchmark.results import DENSE, PRUNED, PRUNED_AND_QUANTIZED, QUANTIZED, Result, add_results, read_results
from sb3_sparse.runs.driver import Driver, Listed, interruptible
from sb3_sparse.runs.local import LocalEngine
from sb3_sparse.runs.result import COMPLETE, Evaluation, RunResult
from sb3_sparse.runs.spec import RunSpec, slug
from sb3_sparse.runs.store import Store
from sb3_sparse.runs.training import check_trainable
from sb3_sparse.runs.worker import checkpoint_file
from sb3_sparse.utils.command_line import hyperparameter
from sb3_sparse.utils.files import replacing
from sb3_sparse.zoo.presets import callback_entries, preset_entry
from sb3_sparse.zoo.sections import plain

METHOD = "compress"
ALGORITHMS = ("sac", "dqn", "td3")
#: Steps of the whole training by the paper's N.
EXTRA = 1.2


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """
    Add the arguments of ``compression``.

    :param parser: Parser of the ``compression`` sub-command.
    """
    parser.add_argument("--algo", choices=ALGORITHMS, required=True)
    parser.add_argument("--env", required=True)
    parser.add_argument(
        "--sparsity",
        nargs="+",
        type=sparsity,
        default=[0.5, 0.8, 0.9, 0.95, 0.98, 0.99],
        help="of the pruned networks; the dense one comes without being asked for",
    )
    parser.add_argument("--seeds", type=positive, default=3, metavar="N", help="seeds 0 to N - 1")
    parser.add_argument(
        "-n",
        "--steps",
        type=positive,
        help="environment steps before quantization, 20 %% more follow; the preset's if left out",
    )
    parser.add_argument("--episodes", type=positive, default=20, help="of each evaluation")
    parser.add_argument(
        "--params", nargs="+", type=hyperparameter, default=[], metavar="NAME:VALUE", help="other than the preset's"
    )
    parser.add_argument("-o", "--output", required=True, metavar="FILE.csv", help="goes on where the file ends")
    parser.add_argument("--save", metavar="FOLDER", help="also save the agents there")
    parser.add_argument("--workers", type=positive, default=1, help="processes (default: 1)")
    parser.add_argument(
        "--runs",
        metavar="FOLDER",
        help="of the trainings; share it, and none is done twice (default: OUTPUT without .csv, -runs)",
    )


class Experiment:
    """
    What the agents of one experiment have in common; the constructor finds what can be wrong, before anything is trained.

    :param algo: A key of :data:`ALGORITHMS`.
    :param env: Id of the environment.
    :param steps: The paper's N: environment steps before quantization. None: the preset's.
    :param episodes: Episodes of an evaluation.
    :param parameters: Hyperparameters other than the preset's.
    :raises ValueError: For an environment that is unknown, a hyperparameter that cannot be changed here, and a training
        without gradient steps.
    :raises ImportError: If a package that the environment needs is not installed.
    """

    def __init__(
        self,
        algo: str,
        env: str,
        *,
        steps: int | None = None,
        episodes: int = 20,
        parameters: Mapping[str, Any] | None = None,
    ) -> None:
        self.algo, self.env, self.episodes = algo, env, episodes
        parameters = dict(parameters or {})
        for name in ("callback", "policy", "n_timesteps", "n_envs", "env_wrapper", "frame_stack"):
            if name in parameters:
                raise ValueError(f"`--params` {name!r} cannot be changed here")
        entry = preset_entry(METHOD, algo, env)
        self.entry = {**entry, **parameters, "policy_kwargs": self._policy_kwargs(entry["policy_kwargs"], parameters)}
        self.parameters = " ".join(f"{name}={value}" for name, value in sorted(parameters.items()))
        self.steps = round(float(self.entry["n_timesteps"]) / EXTRA) if steps is None else steps
        self.total = round(EXTRA * self.steps)
        if self.total == self.steps:
            raise ValueError(f"`--steps` {self.steps} is too short: 20 % more is no step more")
        with tempfile.TemporaryDirectory() as folder:
            check_trainable(algo, env, self.section(0.0), Path(folder))
        starts = self.entry.get("learning_starts", 100)
        if starts >= self.steps:
            raise ValueError(
                f"`--steps` {self.steps} is too short: gradient steps begin at `learning_starts`={starts}; "
                "give more steps, or --params learning_starts:N"
            )

    @staticmethod
    def _policy_kwargs(preset: Mapping[str, Any], parameters: Mapping[str, Any]) -> dict[str, Any]:
        """The preset's, with those that were given: the networks are dense until they are pruned in any case."""
        given = parameters.get("policy_kwargs", {})
        if not isinstance(given, Mapping) or "sparsity" in given:
            raise ValueError(
                f"`--params` 'policy_kwargs' must be a map without 'sparsity', which `--sparsity` says, got {given!r}"
            )
        return {**preset, **given}

    def _callbacks(self, sparsity: float) -> list[dict[str, Any]]:
        """The preset's callbacks at a sparsity, quantization beginning at step N to the step."""
        callbacks = []
        for name, kwargs in callback_entries(self.entry["callback"]):
            if name.endswith(".GradualPruning"):
                if sparsity > 0:
                    final = dict.fromkeys(kwargs["final_sparsity"], sparsity)
                    callbacks.append({name: {**kwargs, "final_sparsity": final}})
            elif name.endswith(".QuantizationAware"):
                callbacks.append({name: {**kwargs, "start": self.steps}})
        return callbacks

    def section(self, sparsity: float) -> dict[str, Any]:
        """
        What is trained.

        :param sparsity: Of the pruned networks, 0 for a dense agent.
        :return: The configuration.
        """
        return plain({**self.entry, "n_timesteps": self.total, "callback": self._callbacks(sparsity)})

    def spec(self, sparsity: float, seed: int) -> RunSpec:
        """
        One agent, which is evaluated after N steps, before it is quantized, and at the end.

        :param sparsity: Of the pruned networks, 0 for a dense agent.
        :param seed: Seed of the training.
        :return: Its training.
        """
        return RunSpec(self.algo, self.env, self.section(sparsity), seed, self.episodes, checkpoints=(self.steps,))

    def variants(self, sparsity: float) -> tuple[str, str]:
        """
        Name an agent.

        :param sparsity: Of the pruned networks.
        :return: What the agent is called after N steps, and after 20 % more.
        """
        return (PRUNED, PRUNED_AND_QUANTIZED) if sparsity > 0 else (DENSE, QUANTIZED)

    def is_done(self, results: Sequence[Result], sparsity: float, seed: int) -> bool:
        """
        Tell whether an agent is in a file.

        :param results: Rows that there are.
        :param sparsity: Of the pruned networks.
        :param seed: Seed of the training.
        :return: Whether they hold both of this agent's.
        """
        common = (self.algo, self.env, self.steps, self.parameters, self.episodes)
        found = {
            result.variant
            for result in results
            if (result.experiment, result.sparsity, result.seed) == (common, sparsity, seed)
        }
        return set(self.variants(sparsity)) <= found

    def _row(self, evaluation: Evaluation, variant: str, sparsity: float, seed: int) -> Result:
        costs = evaluation.costs
        return Result(
            algorithm=self.algo,
            environment=self.env,
            variant=variant,
            sparsity=sparsity,
            bits=int(costs["bits"]),
            seed=seed,
            steps=self.steps,
            parameters=self.parameters,
            mean_return=round(evaluation.mean, 4),
            std_return=round(pstdev(evaluation.returns), 4),
            episodes=self.episodes,
            papers_ratio=costs["papers_ratio"],
            packed_bytes=int(costs["bytes"]),
            dense_bytes=int(costs["dense_bytes"]),
        )

    def rows(self, result: RunResult, sparsity: float) -> list[Result]:
        """
        Read a training.

        :param result: What came of :meth:`spec`.
        :param sparsity: Of the pruned networks.
        :return: The agent after N steps, and after 20 % more.
        """
        both = result.at(self.steps), result.evaluations[-1]
        named = zip(both, self.variants(sparsity), strict=True)
        return [self._row(evaluation, variant, sparsity, result.spec.seed) for evaluation, variant in named]

    def file_name(self, variant: str, sparsity: float, seed: int) -> str:
        """
        Name the zip of an agent.

        :param variant: What it is called.
        :param sparsity: Of the pruned networks.
        :param seed: Seed of its training.
        :return: The name.
        """
        return f"{self.algo}-{slug(self.env)}-{variant.replace(' + ', '-')}-{sparsity:g}-seed{seed}.zip"


class _Plan(Listed):
    """Trainings whose results become rows as soon as they are there."""

    def __init__(self, experiment: Experiment, agents: Sequence[tuple[float, int]], file: Path, done: Callable[..., None]):
        self.of = {experiment.spec(*agent).key: agent for agent in agents}
        super().__init__(experiment.spec(*agent) for agent in agents)
        self.experiment, self.file, self.told = experiment, file, done
        self.failed: list[RunResult] = []

    def done(self, spec: RunSpec, result: RunResult) -> None:
        """
        Write the rows.

        :param spec: A training.
        :param result: What came of it.
        """
        if result.state != COMPLETE:
            self.failed.append(result)
            return
        sparsity, _ = self.of[spec.key]
        rows = self.experiment.rows(result, sparsity)
        add_results(self.file, rows)
        self.told(rows, result)


def run(arguments: argparse.Namespace) -> None:
    """
    Train what is not in the file yet.

    :param arguments: Parsed by :func:`add_arguments`.
    :raises ChildProcessError: If trainings fail.
    """
    file = Path(arguments.output)
    folder = Path(arguments.save) if arguments.save else None
    for name, needed in (("--output", file.parent), ("--save", folder)):
        if needed is not None and not needed.is_dir():
            raise ValueError(f"`{name}`: there is no folder {needed}")
    experiment = Experiment(
        arguments.algo,
        arguments.env,
        steps=arguments.steps,
        episodes=arguments.episodes,
        parameters=dict(arguments.params),
    )
    known = read_results(file) if file.exists() else []
    # Seed by seed: a file that is looked at in between has every sparsity
    agents = [(value, seed) for seed in range(arguments.seeds) for value in sorted({0.0, *arguments.sparsity})]
    missing = [agent for agent in agents if not experiment.is_done(known, *agent)]
    if not missing:
        return
    store = Store(arguments.runs or file.with_name(f"{file.stem}-runs"), "--runs")

    def told(rows: list[Result], result: RunResult) -> None:
        where = store.path(result.spec)
        for row, step in zip(rows, (experiment.steps, result.evaluations[-1].step), strict=True):
            size = f"papers' ratio {row.papers_ratio:.1f}x, {row.packed_bytes:,} of {row.dense_bytes:,} bytes"
            text = f"sparsity {row.sparsity:g}, seed {row.seed}, {row.variant}: {row.mean_return:.1f} +- {row.std_return:.1f}"
            print(f"{text}, {size}", file=sys.stderr, flush=True)
            if folder is not None:
                name = experiment.file_name(row.variant, row.sparsity, row.seed)
                with replacing(folder / name) as partial:
                    shutil.copyfile(checkpoint_file(where, step), partial)

    plan = _Plan(experiment, missing, file, told)
    engine = LocalEngine(arguments.workers, store.folder / "workers.log", save_checkpoints=True)
    with interruptible(), Driver(store, engine, retry=True) as driver:
        driver.work(plan)
    if plan.failed:
        first = plan.failed[0]
        raise ValueError(f"{len(plan.failed)} trainings were not completed: {first.reason}; see {store.path(first.spec)}")
