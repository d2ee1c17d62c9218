"""
One training of one configuration, by rl-zoo3 itself: the configuration becomes a YAML file, and rl-zoo3's
``ExperimentManager`` trains what it says. ``python -m rl_zoo3.train -conf FILE --seed SEED`` gives the same agent.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import platform
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
import torch as th
from gymnasium import spaces
from rl_zoo3.exp_manager import ExperimentManager
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm
from stable_baselines3.common.utils import set_random_seed
from stable_baselines3.common.vec_env import VecEnv, sync_envs_normalization

from sb3_sparse.analysis.report import sparsity_report
from sb3_sparse.checkpoint.snapshot import Resumption
from sb3_sparse.checkpoint.zoo_manager import Learning
from sb3_sparse.engine.native import processor
from sb3_sparse.runs.costs import costs, input_use, latency
from sb3_sparse.runs.interrupted import FOLDER, Interruptible, forget, interrupted
from sb3_sparse.runs.playing import RandomPolicy, play, same_randomness
from sb3_sparse.runs.result import COMPLETE, Evaluation, RunResult
from sb3_sparse.runs.spec import RunSpec
from sb3_sparse.utils.commit import source_commit
from sb3_sparse.zoo.sections import as_yaml

#: Gradient-free looks at the parameters while training, in environment steps.
_CHECK_EVERY = 1000
#: Seconds between two signs of progress.
_PROGRESS_EVERY = 1.0
_PACKAGES = ("sb3-sparse", "stable-baselines3", "sb3-contrib", "rl-zoo3", "gymnasium", "torch", "numpy")
#: Told how many environment steps are done.
Progress = Callable[[int], None]


class Diverged(RuntimeError):
    """Parameters or returns are no finite numbers any more."""


class _Evaluations(BaseCallback):
    """Evaluates at checkpoints, before any other callback sees the step. The training does not notice."""

    def __init__(self, spec: RunSpec, evaluate: Callable[[BaseAlgorithm, int], Evaluation]) -> None:
        super().__init__()
        self.steps = list(spec.checkpoints)
        self.evaluate = evaluate
        self.found: list[Evaluation] = []
        #: Seconds that evaluations took.
        self.seconds = 0.0

    def _on_step(self) -> bool:
        if self.steps and self.num_timesteps >= self.steps[0]:
            start = time.perf_counter()
            evaluation = self.evaluate(self.model, self.num_timesteps)
            while self.steps and self.num_timesteps >= self.steps[0]:
                # Several environments may pass two checkpoints in one step
                self.found.append(evaluation)
                self.steps.pop(0)
            self.seconds += time.perf_counter() - start
        return True


class _Watch(BaseCallback):
    """Says how far it is, and ends a training that cannot recover, instead of spending its time."""

    #: Of another process's clock.
    not_in_checkpoints = ("_last",)

    def __init__(self, progress: Progress | None) -> None:
        super().__init__()
        self.progress = progress
        self._last = time.monotonic()

    def _on_step(self) -> bool:
        if self.n_calls % _CHECK_EVERY == 0:
            require_finite(self.model)
        if self.progress is not None and time.monotonic() - self._last > _PROGRESS_EVERY:
            self._last = time.monotonic()
            self.progress(self.num_timesteps)
        return True


def require_finite(model: BaseAlgorithm) -> None:
    """
    Refuse a model that has diverged.

    :param model: A model.
    :raises Diverged: If one of its parameters holds a NaN or an infinity.
    """
    for name, parameter in model.policy.named_parameters():
        if not th.isfinite(parameter).all():
            raise Diverged(f"{name} is not finite after {model.num_timesteps:,} steps")


def make_manager(
    algo: str, env: str, file: Path, seed: int, folder: Path, hyperparams: dict | None = None
) -> ExperimentManager:
    """
    Make rl-zoo3's manager of a training.

    :param algo: rl-zoo3's name of the algorithm.
    :param env: Id of the environment.
    :param file: The configuration.
    :param seed: Of the training.
    :param folder: rl-zoo3's log folder.
    :param hyperparams: Other than the file's, as of rl-zoo3's ``-params``.
    :return: rl-zoo3's manager, without evaluations of its own while training.
    """
    arguments = argparse.Namespace(algo=algo, env=env, conf_file=str(file), seed=seed, log_folder=str(folder))
    return ExperimentManager(
        arguments,
        algo,
        env,
        str(folder),
        eval_freq=-1,
        hyperparams=hyperparams,
        seed=seed,
        verbose=0,
        log_interval=-2,
        device="cpu",
        config=str(file),
    )


def _manager_of(algo: str, env: str, section: Mapping[str, Any], folder: Path, seed: int, **kwargs: Any) -> ExperimentManager:
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / f"{algo}.yml"
    file.write_text(as_yaml(env, section))
    return make_manager(algo, env, file, seed, folder, **kwargs)


def _make_model(manager: ExperimentManager) -> BaseAlgorithm:
    """rl-zoo3 gives no model only when it tunes by itself."""
    made = manager.setup_experiment()
    assert made is not None
    return made[0]


def _training_env(model: BaseAlgorithm) -> VecEnv:
    env = model.get_env()
    assert env is not None
    return env


def check_trainable(algo: str, env: str, section: Mapping[str, Any], folder: Path) -> spaces.Space:
    """
    Make the model that a configuration describes, begin its training, and throw it away: what is wrong is said before anything
    is trained.

    :param algo: rl-zoo3's name of the algorithm.
    :param env: Id of the environment.
    :param section: The configuration.
    :param folder: Where files may be written.
    :return: The observations that its policy gets.
    :raises ValueError: If the model cannot be made, or would never be trained.
    """
    with contextlib.redirect_stdout(io.StringIO()):
        manager = _manager_of(algo, env, section, folder, 0)
        try:
            # Room for the replay buffer is asked for, and given when it is written to
            model = _make_model(manager)
            _, callback = model._setup_learn(manager.n_timesteps, manager.callbacks)
            callback.on_training_start({}, {})
        except (AssertionError, TypeError, ValueError, KeyError, ImportError, NotImplementedError, MemoryError) as error:
            raise ValueError(
                f"rl-zoo3 cannot train {algo} on {env!r} by this configuration: {error}\n{dict(section)}"
            ) from error
    _training_env(model).close()
    if isinstance(model, OffPolicyAlgorithm) and model.learning_starts >= manager.n_timesteps:
        raise ValueError(
            f"`--steps` {manager.n_timesteps} is too short: gradient steps begin at "
            f"`learning_starts`={model.learning_starts}; give more steps, or --params learning_starts:N"
        )
    return model.observation_space


def random_return(algo: str, env: str, section: Mapping[str, Any], seeds: Sequence[int], folder: Path) -> float:
    """
    Play without having learnt anything.

    :param algo: rl-zoo3's name of the algorithm.
    :param env: Id of the environment.
    :param section: The configuration, for its wrappers.
    :param seeds: Of the episodes.
    :param folder: Where files may be written.
    :return: Mean return of a policy that acts at random.
    """
    from rl_zoo3.utils import ALGOS

    small = {"buffer_size": 1} if issubclass(ALGOS[algo], OffPolicyAlgorithm) else None
    with contextlib.redirect_stdout(io.StringIO()):
        manager = _manager_of(algo, env, section, folder, 0, hyperparams=small)
        _training_env(_make_model(manager)).close()
        made = manager.create_envs(1, eval_env=True)
    try:
        return float(np.mean(play(RandomPolicy(made), made, seeds)[0]))
    finally:
        made.close()


def versions() -> dict[str, str]:
    """
    Say what a result was computed with.

    :return: Of the packages that decide a result, the commit of this one where it runs from a checkout, and what it was
        computed on.
    """
    found = {"python": platform.python_version(), "processor": processor()}
    for name in _PACKAGES:
        with contextlib.suppress(PackageNotFoundError):
            found[name] = version(name)
    if (commit := source_commit()) is not None:
        found["commit"] = commit
    return found


def model_file(folder: Path, spec: RunSpec) -> Path:
    """
    Find the model of a training.

    :param folder: Of a training.
    :param spec: The training.
    :return: Where rl-zoo3 saves its model, with what ``sb3-sparse enjoy`` and ``prune`` need beside it.
    """
    name = spec.env.replace("/", "-")
    return folder / spec.algo / f"{name}_1" / f"{name}.zip"


def _begin(spec: RunSpec, folder: Path) -> tuple[ExperimentManager, BaseAlgorithm, Resumption | None]:
    """A training from its beginning, or from where it was interrupted."""
    # What an earlier attempt left; rl-zoo3 would number its folders on
    shutil.rmtree(folder / spec.algo, ignore_errors=True)
    # In rl-zoo3's order
    set_random_seed(spec.seed)
    manager = _manager_of(spec.algo, spec.env, spec.section, folder, spec.seed)
    model = _make_model(manager)
    found = interrupted(folder, _training_env(model))
    if found is not None:
        return (manager, *found)
    if (folder / FOLDER).exists():
        # Something of it may have been brought back already
        forget(folder)
        _training_env(model).close()
        return _begin(spec, folder)
    return manager, model, None


def train(
    spec: RunSpec,
    folder: Path,
    *,
    progress: Progress | None = None,
    at_checkpoint: Callable[[BaseAlgorithm, int], None] | None = None,
) -> RunResult:
    """
    Train, evaluate at the checkpoints and at the end, and count what it costs.

    :param spec: The training.
    :param folder: For its files: the configuration, the model as rl-zoo3 saves it, ``report.md`` and ``report.json``. It is
        empty, or has what an earlier attempt left: one that was interrupted goes on from its last checkpoint.
    :param progress: Told of the environment steps, about once a second.
    :param at_checkpoint: Given the model and the environment steps right after each evaluation.
    :return: What came of it.
    :raises Diverged: If parameters or returns are not finite.
    """
    manager, model, resumption = _begin(spec, folder)
    env: VecEnv | None = None

    def evaluate(model: BaseAlgorithm, step: int) -> Evaluation:
        nonlocal env
        with same_randomness():
            if env is None:
                env = manager.create_envs(1, eval_env=True)
            sync_envs_normalization(_training_env(model), env)
            returns, lengths = play(model, env, spec.episode_seeds, deterministic=manager.deterministic_eval)
            if not np.isfinite(returns).all():
                raise Diverged(f"the evaluation's returns are not finite: {returns}")
            found = Evaluation(step, tuple(returns), tuple(lengths), costs(model))
            if at_checkpoint is not None:
                at_checkpoint(model, step)
        return found

    evaluations = _Evaluations(spec, evaluate)
    checkpoint = Interruptible(folder)
    manager.callbacks[:] = [evaluations, *manager.callbacks, _Watch(progress), checkpoint]
    start = time.perf_counter() - (0.0 if resumption is None else resumption.seconds)
    try:
        stand_in: Any = Learning(model, resumption)
        manager.learn(stand_in)
        require_finite(model)
        seconds = time.perf_counter() - start - evaluations.seconds - sum(checkpoint.seconds)
        manager.save_trained_model(model)
        last = evaluate(model, model.num_timesteps)
        forget(folder)
    except Exception:
        # That is no interruption
        forget(folder)
        # What raises may be no more than what a NaN came upon first
        require_finite(model)
        raise
    finally:
        if env is not None:
            env.close()
    report = sparsity_report(model)
    (folder / "report.md").write_text(report.to_markdown() + "\n")
    (folder / "report.json").write_text(report.to_json() + "\n")
    return RunResult(
        spec,
        COMPLETE,
        evaluations=(*evaluations.found, last),
        costs={**costs(model, report), "latency": round(latency(model), 2)},
        inputs=input_use(model, report),
        seconds=round(seconds, 3),
        versions={**versions(), "engine": report.engine},
    )
