"""
One training of one configuration, by rl-zoo3 itself: the configuration becomes a YAML file, and rl-zoo3's
``ExperimentManager`` trains what it says. ``python -m rl_zoo3.train -conf FILE --seed SEED`` gives the same agent.
"""

from __future__ import annotations

import argparse
import contextlib
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch as th
from gymnasium import spaces
from rl_zoo3.exp_manager import ExperimentManager
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm
from stable_baselines3.common.utils import set_random_seed
from stable_baselines3.common.vec_env import VecEnv, sync_envs_normalization

from sb3_sparse.tuning.files import as_yaml
from sb3_sparse.tuning.objectives import RETURN, costs

#: Gradient-free looks at the parameters while training, in environment steps.
_CHECK_EVERY = 1000


class Diverged(RuntimeError):
    """Parameters or returns are no finite numbers any more."""


@dataclass(frozen=True)
class Task:
    """
    What all trainings of a study have in common.

    :param algo: rl-zoo3's name of the algorithm.
    :param env: Id of the environment.
    :param episodes: Of an evaluation.
    """

    algo: str
    env: str
    episodes: int


class _StopDiverged(BaseCallback):
    """Ends a training that cannot recover, instead of spending its time."""

    def _on_step(self) -> bool:
        if self.n_calls % _CHECK_EVERY == 0:
            require_finite(self.model)
        return True


def require_finite(model: BaseAlgorithm) -> None:
    """
    :param model: A model.
    :raises Diverged: If one of its parameters holds a NaN or an infinity.
    """
    for name, parameter in model.policy.named_parameters():
        if not th.isfinite(parameter).all():
            raise Diverged(f"{name} is not finite after {model.num_timesteps:,} steps")


def make_manager(task: Task, file: Path, seed: int, folder: Path, hyperparams: dict | None = None) -> ExperimentManager:
    """
    :param task: Algorithm and environment.
    :param file: The configuration.
    :param seed: Of the training.
    :param folder: rl-zoo3's log folder.
    :param hyperparams: Other than the file's, as of rl-zoo3's ``-params``.
    :return: rl-zoo3's manager, without evaluations while training: they would be in nobody's use.
    """
    arguments = argparse.Namespace(algo=task.algo, env=task.env, conf_file=str(file), seed=seed, log_folder=str(folder))
    return ExperimentManager(
        arguments,
        task.algo,
        task.env,
        str(folder),
        eval_freq=-1,
        hyperparams=hyperparams,
        seed=seed,
        verbose=0,
        log_interval=-2,
        device="cpu",
        config=str(file),
    )


def _make_model(manager: ExperimentManager) -> BaseAlgorithm:
    """rl-zoo3 gives no model only when it tunes by itself."""
    made = manager.setup_experiment()
    assert made is not None
    return made[0]


def _training_env(model: BaseAlgorithm) -> VecEnv:
    env = model.get_env()
    assert env is not None
    return env


def check_trainable(task: Task, section: Mapping[str, Any], folder: Path) -> spaces.Space:
    """
    Make the model that a configuration describes, begin its training, and throw it away: what is wrong is said before anything
    is trained.

    :param task: Algorithm and environment.
    :param section: The configuration.
    :param folder: Where files may be written.
    :return: The observations that its policy gets.
    :raises ValueError: If the model cannot be made, or would never be trained.
    """
    file = folder / f"{task.algo}.yml"
    file.write_text(as_yaml(task.env, section))
    with contextlib.redirect_stdout(io.StringIO()):
        manager = make_manager(task, file, 0, folder)
        try:
            # Room for the replay buffer is asked for, and given when it is written to
            model = _make_model(manager)
            _, callback = model._setup_learn(manager.n_timesteps, manager.callbacks)
            callback.on_training_start({}, {})
        except (AssertionError, TypeError, ValueError, KeyError, ImportError, NotImplementedError, MemoryError) as error:
            raise ValueError(
                f"rl-zoo3 cannot train {task.algo} on {task.env!r} by this configuration: {error}\n{dict(section)}"
            ) from error
    _training_env(model).close()
    if isinstance(model, OffPolicyAlgorithm) and model.learning_starts >= manager.n_timesteps:
        raise ValueError(
            f"`--steps` {manager.n_timesteps} is too short: gradient steps begin at "
            f"`learning_starts`={model.learning_starts}; give more steps, or --params learning_starts:N"
        )
    return model.observation_space


def _is_off_policy(algo: str) -> bool:
    from rl_zoo3.utils import ALGOS

    return issubclass(ALGOS[algo], OffPolicyAlgorithm)


def episode_returns(model: Any, env: VecEnv, seeds: Sequence[int], *, deterministic: bool = True) -> list[float]:
    """
    Play fixed episodes: each begins from a reset with its own seed, so every agent meets the same ones.

    :param model: Anything with SB3's ``predict``.
    :param env: One environment.
    :param seeds: A seed for each episode.
    :param deterministic: Whether the policy acts deterministically.
    :return: Return of each episode.
    """
    returns = []
    for seed in seeds:
        # Policies that act at random, too, do so from here
        th.manual_seed(seed)
        env.seed(seed)
        env.action_space.seed(seed)
        episode, _ = evaluate_policy(model, env, 1, deterministic=deterministic, return_episode_rewards=True)
        assert isinstance(episode, list)
        returns += episode
    return returns


class RandomPolicy:
    """
    Acts at random.

    :param env: Whose actions they are.
    """

    def __init__(self, env: VecEnv) -> None:
        self.env = env

    def predict(self, observation: Any, state: Any = None, episode_start: Any = None, deterministic: bool = False) -> Any:
        """:return: As SB3's ``predict``."""
        return np.stack([self.env.action_space.sample() for _ in range(self.env.num_envs)]), state


def random_return(task: Task, section: Mapping[str, Any], seeds: Sequence[int], folder: Path) -> float:
    """
    :param task: Algorithm and environment.
    :param section: The configuration, for its wrappers.
    :param seeds: Of the episodes.
    :param folder: Where files may be written.
    :return: Mean return of a policy that acts at random.
    """
    file = folder / f"{task.algo}.yml"
    file.write_text(as_yaml(task.env, section))
    with contextlib.redirect_stdout(io.StringIO()):
        manager = make_manager(task, file, 0, folder, {"buffer_size": 1} if _is_off_policy(task.algo) else None)
        _training_env(_make_model(manager)).close()
        env = manager.create_envs(1, eval_env=True)
    try:
        return float(np.mean(episode_returns(RandomPolicy(env), env, seeds)))
    finally:
        env.close()


def train(
    task: Task,
    section: Mapping[str, Any],
    folder: Path,
    *,
    seed: int,
    episode_seeds: Sequence[int],
    save: bool = False,
) -> dict[str, float]:
    """
    Train a configuration, evaluate what came out and count what it costs.

    :param task: Algorithm and environment.
    :param section: The configuration.
    :param folder: New folder for its YAML file and rl-zoo3's logs.
    :param seed: Of the training.
    :param episode_seeds: A seed for each episode of the evaluation.
    :param save: Whether to save the model there, as rl-zoo3 does.
    :return: ``return``, ``return_std`` and what :func:`sb3_sparse.tuning.objectives.costs` gives.
    :raises Diverged: If parameters or returns are not finite.
    """
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / f"{task.algo}.yml"
    file.write_text(as_yaml(task.env, section))
    # In rl-zoo3's order
    set_random_seed(seed)
    manager = make_manager(task, file, seed, folder)
    model = _make_model(manager)
    manager.callbacks.append(_StopDiverged())
    try:
        manager.learn(model)
    except Exception:
        # What raises may be no more than what a NaN came upon first
        require_finite(model)
        raise
    require_finite(model)
    if save:
        manager.save_trained_model(model)
    env = manager.create_envs(1, eval_env=True)
    try:
        sync_envs_normalization(_training_env(model), env)
        returns = episode_returns(model, env, episode_seeds, deterministic=manager.deterministic_eval)
    finally:
        env.close()
    if not np.isfinite(returns).all():
        raise Diverged(f"the evaluation's returns are not finite: {returns}")
    return {RETURN: float(np.mean(returns)), "return_std": float(np.std(returns)), **costs(model)}
