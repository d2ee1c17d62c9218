"""
Return against sparsity (Ivanov et al. 2025, figures 4 and 5): agents of the preset ``compress``, pruned to several sparsities,
each evaluated twice, when it is pruned and, after 20 % more steps, when it is quantized too.

Trained agents are rows of a CSV file. Those that are in it are not trained again, and a run that is stopped loses the agent in
training alone. One file belongs to one run at a time.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from stable_baselines3 import DQN, SAC, TD3
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.evaluation import evaluate_policy

from sb3_sparse.analysis.report import sparsity_report
from sb3_sparse.benchmark.arguments import positive, sparsity
from sb3_sparse.benchmark.results import DENSE, PRUNED, PRUNED_AND_QUANTIZED, QUANTIZED, Result, add_results, read_results
from sb3_sparse.conversion.loading import save_atomically
from sb3_sparse.policies.quantized_layers import DEPLOYED_NETWORKS
from sb3_sparse.utils.command_line import hyperparameter
from sb3_sparse.zoo.presets import callback_entries, preset_arguments, preset_entry
from sb3_sparse.zoo.runs import ZooRun, make_training_env

METHOD = "compress"
ALGORITHMS: dict[str, type[BaseAlgorithm]] = {"sac": SAC, "dqn": DQN, "td3": TD3}
#: Steps of the whole training by the paper's N.
EXTRA = 1.2
#: Of the evaluation's environments, far from those of any training.
_EVALUATION_SEED = 1_000_003


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """
    :param parser: Parser of the ``compression`` sub-command.
    """
    parser.add_argument("--algo", choices=list(ALGORITHMS), required=True)
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


class _At(BaseCallback):
    """Calls a function once, at an environment step."""

    def __init__(self, step: int, function: Callable[[], None]) -> None:
        super().__init__()
        self.step = step
        self.function: Callable[[], None] | None = function

    def _on_step(self) -> bool:
        if self.function is not None and self.num_timesteps >= self.step:
            function, self.function = self.function, None
            function()
        return True


class Experiment:
    """
    What the agents of one experiment have in common; the constructor finds what can be wrong, before anything is trained.

    :param algo: A key of :data:`ALGORITHMS`.
    :param env: Id of the environment.
    :param steps: The paper's N: environment steps before quantization. None: the preset's.
    :param episodes: Episodes of an evaluation.
    :param parameters: Hyperparameters other than the preset's.
    :param folder: Where agents are saved, None for nowhere.
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
        folder: Path | None = None,
    ) -> None:
        self.algo, self.env, self.episodes, self.folder = algo, env, episodes, folder
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
        model = self._make_model(0, [], check=True)
        model.get_env().close()
        if model.learning_starts >= self.steps:
            raise ValueError(
                f"`--steps` {self.steps} is too short: gradient steps begin at `learning_starts`={model.learning_starts}; "
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

    def _make_env(self, seed: int) -> Any:
        return make_training_env(ZooRun(config=self.entry), self.env, 1, seed)

    def _make_model(self, seed: int, callbacks: list[dict[str, Any]], *, check: bool = False) -> Any:
        """A model and its callbacks; for a check one whose replay buffer has no room."""
        values = preset_arguments({**self.entry, "callback": callbacks}, self.env)
        callback = values.pop("callback")
        del values["n_timesteps"]
        if check:
            values["buffer_size"] = 1
        try:
            model = ALGORITHMS[self.algo](env=self._make_env(seed), seed=seed, device="cpu", **values)
        except TypeError as error:
            raise ValueError(f"`--params` {self.parameters!r}: {error}") from error
        except AssertionError as error:
            raise ValueError(f"`--algo` {self.algo!r} does not fit `--env` {self.env!r}: {error}") from error
        return model if check else (model, callback)

    def variants(self, sparsity: float) -> tuple[str, str]:
        """
        :param sparsity: Of the pruned networks.
        :return: What the agent is called after N steps, and after 20 % more.
        """
        return (PRUNED, PRUNED_AND_QUANTIZED) if sparsity > 0 else (DENSE, QUANTIZED)

    def is_done(self, results: Sequence[Result], sparsity: float, seed: int) -> bool:
        """
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

    def _evaluate(self, model: BaseAlgorithm, variant: str, sparsity: float, seed: int) -> Result:
        env = self._make_env(_EVALUATION_SEED + seed)
        try:
            mean, std = evaluate_policy(model, env, self.episodes, deterministic=True)
            assert isinstance(mean, float)
            assert isinstance(std, float)
        finally:
            env.close()
        report = sparsity_report(model)
        sizes = [size for name, size in report.networks.items() if name in DEPLOYED_NETWORKS]
        bits = {layer.weight_bits for layer in report.layers if layer.network in DEPLOYED_NETWORKS}
        if self.folder is not None:
            name = f"{self.algo}-{self.env.replace('/', '-')}-{variant.replace(' + ', '-')}-{sparsity:g}-seed{seed}.zip"
            save_atomically(model, self.folder / name)
        return Result(
            algorithm=self.algo,
            environment=self.env,
            variant=variant,
            sparsity=sparsity,
            bits=max(bits),
            seed=seed,
            steps=self.steps,
            parameters=self.parameters,
            mean_return=round(float(mean), 4),
            std_return=round(float(std), 4),
            episodes=self.episodes,
            papers_ratio=round(32 * sum(size.n_weights for size in sizes) / (8 * sum(size.weight_bytes for size in sizes)), 4),
            packed_bytes=sum(size.bytes_with_indices for size in sizes),
            dense_bytes=sum(size.bytes_dense for size in sizes),
        )

    def train(self, sparsity: float, seed: int) -> list[Result]:
        """
        Train one agent and evaluate it after N steps and after 20 % more.

        :param sparsity: Of the pruned networks, 0 for a dense agent.
        :param seed: Seed of the training.
        :return: Both results.
        """
        results: list[Result] = []
        before, after = self.variants(sparsity)
        model, callbacks = self._make_model(seed, self._callbacks(sparsity))
        # Before quantization, which begins at the same step
        snapshot = _At(self.steps, lambda: results.append(self._evaluate(model, before, sparsity, seed)))
        model.learn(self.total, callback=[snapshot, *callbacks])
        results.append(self._evaluate(model, after, sparsity, seed))
        model.get_env().close()
        return results


def run(arguments: argparse.Namespace) -> None:
    """
    Train what is not in the file yet.

    :param arguments: Parsed by :func:`add_arguments`.
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
        folder=folder,
    )
    # Seed by seed: a file that is looked at in between has every sparsity
    agents = [(value, seed) for seed in range(arguments.seeds) for value in sorted({0.0, *arguments.sparsity})]
    for index, (value, seed) in enumerate(agents, 1):
        if experiment.is_done(read_results(file) if file.exists() else [], value, seed):
            continue
        print(f"{index} of {len(agents)}: {experiment.env}, sparsity {value:g}, seed {seed}", file=sys.stderr, flush=True)
        results = experiment.train(value, seed)
        add_results(file, results)
        for result in results:
            size = f"papers' ratio {result.papers_ratio:.1f}x, {result.packed_bytes:,} of {result.dense_bytes:,} bytes"
            returns = f"{result.mean_return:.1f} +- {result.std_return:.1f}"
            print(f"  {result.variant}: {returns}, {size}", file=sys.stderr, flush=True)
