"""What ``sb3-sparse prune`` does: from a file to a file, with further training in between if that is wanted."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any

import gymnasium as gym
import yaml
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm
from stable_baselines3.common.vec_env import VecEnv, VecFrameStack, VecNormalize

from sb3_sparse.checks import require_integer
from sb3_sparse.environments import require_packages
from sb3_sparse.files import replacing
from sb3_sparse.loading import find_model_file, load_model
from sb3_sparse.prune import sparsify


@dataclass(frozen=True)
class ZooRun:
    """
    What rl-zoo3's folder says of a training.

    :param env_id: The environment, None if the folder does not say.
    :param env_kwargs: Arguments of the environment.
    :param config: Hyperparameters: wrappers, frame stacking.
    :param statistics: Saved ``VecNormalize``, None if nothing was normalised.
    :param replay_buffer: Saved replay buffer, None if there is none.
    """

    env_id: str | None = None
    env_kwargs: Mapping[str, Any] = field(default_factory=dict)
    config: Mapping[str, Any] = field(default_factory=dict)
    statistics: Path | None = None
    replay_buffer: Path | None = None


def find_zoo_run(file: Path) -> ZooRun:
    """
    Read what rl-zoo3 left beside a model (``<model>/../<environment>/config.yml``). Its files are unpickled, as the model is.

    :param file: The model's zip.
    :return: What is known; nothing of a model that was made otherwise.
    :raises FileNotFoundError: If observations were normalised and the statistics are missing.
    :raises ValueError: If there are several such folders.
    """
    # Both files: a config.yml alone is anybody's
    found = [*sorted(file.parent.glob("*/args.yml")), file.parent / "args.yml"]
    folders = [path.parent for path in found if path.is_file() and path.with_name("config.yml").is_file()]
    if len(folders) > 1:
        names = ", ".join(folder.name for folder in folders)
        raise ValueError(f"beside {file} are several folders of rl-zoo3 ({names}): put the model beside its own alone")
    folder = folders[0] if folders else file.parent
    statistics, buffer = folder / "vecnormalize.pkl", file.with_name("replay_buffer.pkl")
    known: dict[str, Any] = {
        "statistics": statistics if statistics.is_file() else None,
        "replay_buffer": buffer if buffer.is_file() else None,
    }
    if not folders:
        return ZooRun(**known)
    config, arguments = _read(folder / "config.yml"), _read(folder / "args.yml")
    if config.get("normalize") and known["statistics"] is None:
        raise FileNotFoundError(
            f"{folder}/config.yml says that the agent saw normalised observations, but {statistics} is missing"
        )
    env_kwargs = arguments.get("env_kwargs") or config.get("env_kwargs") or {}
    return ZooRun(arguments.get("env"), dict(env_kwargs), config, **known)


def _read(file: Path) -> dict[str, Any]:
    with file.open() as stream:
        return dict(yaml.load(stream, Loader=yaml.UnsafeLoader))


def make_training_env(run: ZooRun, env_id: str, n_envs: int, seed: int | None) -> VecEnv:
    """
    The environment an agent was trained in. Normalisation keeps the statistics it has: the agent goes on seeing what it has
    learnt to see, and the statistics' file stays right for the new one.

    :param run: What is known of the training.
    :param env_id: The environment.
    :param n_envs: How many of them.
    :param seed: Their seed.
    :return: The environment.
    :raises ValueError: For an environment that is not registered or cannot be made.
    :raises ImportError: If a package is missing that the environment needs, or rl-zoo3 whose wrappers are wanted.
    """
    require_packages(env_id)
    _register_environments()
    if env_id not in gym.registry:
        raise ValueError(f"`--env` {env_id!r} is not a registered environment; install the package that brings it")
    wrapper, vec_wrapper = (_wrapper(run.config, key) for key in ("env_wrapper", "vec_env_wrapper"))
    try:
        env = make_vec_env(env_id, n_envs, seed=seed, env_kwargs=dict(run.env_kwargs), wrapper_class=wrapper)
    except (gym.error.Error, ImportError) as error:
        raise ValueError(f"`--env` {env_id!r} cannot be made: {error}") from error
    if vec_wrapper is not None:
        env = vec_wrapper(env)
    if run.statistics is not None:
        env = VecNormalize.load(str(run.statistics), env)
        env.training = False
    if run.config.get("frame_stack"):
        env = VecFrameStack(env, int(run.config["frame_stack"]))
    return env


def _register_environments() -> None:
    for module in ("rl_zoo3.import_envs", "ale_py"):
        with suppress(ImportError):
            import_module(module)


def _wrapper(config: Mapping[str, Any], key: str) -> Any:
    if not config.get(key):
        return None
    try:
        from rl_zoo3.utils import get_wrapper_class
    except ImportError as error:
        raise ImportError(f"the agent was trained with `{key}` of rl-zoo3 ({error}): pip install 'sb3-sparse[zoo]'") from error
    return get_wrapper_class(dict(config), key)


def check_finetuning(model: BaseAlgorithm, n_steps: int, *, n_stored: int = 0) -> int:
    """
    How many of the steps only fill the replay buffer.

    :param model: The model.
    :param n_steps: Environment steps of further training.
    :param n_stored: Transitions that there are already.
    :return: Environment steps without gradient steps, 0 for on-policy algorithms.
    :raises ValueError: If none would be left to train in.
    """
    if not isinstance(model, OffPolicyAlgorithm):
        return 0
    n_fill = max(model.learning_starts - n_stored, 0)
    if n_fill >= n_steps:
        raise ValueError(
            f"`--finetune` {n_steps} is too short: the replay buffer, which is not in the model's file, holds {n_stored} "
            f"transitions, and the first {n_fill} steps (`learning_starts`) only fill it. Give more than {n_fill}"
        )
    return n_fill


def _n_stored(model: OffPolicyAlgorithm) -> int:
    assert model.replay_buffer is not None
    return model.replay_buffer.size() * model.n_envs


def finetune(model: BaseAlgorithm, n_steps: int) -> None:
    """
    Train a loaded model further. Counters and schedules go on as if the training had been that much longer
    (``reset_num_timesteps=False``), so neither exploration nor learning rate begins anew. While the replay buffer of an
    off-policy model holds less than ``learning_starts``, the agent acts as it has learnt, and no gradient step is made.

    :param model: A model with an environment.
    :param n_steps: Environment steps, with those that fill the replay buffer.
    :raises ValueError: If none would be left to train in.
    """
    n_fill = 0
    if isinstance(model, OffPolicyAlgorithm):
        n_fill = check_finetuning(model, n_steps, n_stored=_n_stored(model))
        if n_fill:
            gradient_steps, model.gradient_steps = model.gradient_steps, 0
            try:
                model.learn(n_fill, reset_num_timesteps=False)
            finally:
                model.gradient_steps = gradient_steps
    model.learn(n_steps - n_fill, reset_num_timesteps=False)


def save_atomically(model: BaseAlgorithm, file: Path) -> None:
    """
    Save a model so that the file is never half of one.

    :param model: The model.
    :param file: Where to.
    """
    with replacing(file) as partial:
        model.save(partial)


def output_file(file: Path, output: str | Path | None, *, force: bool) -> Path:
    """
    :param file: The model that is pruned.
    :param output: Where the new one shall go. None: ``<model>-pruned.zip`` beside it.
    :param force: Whether a file that is there may be replaced.
    :return: Where it goes.
    :raises ValueError: If a file is there, or the folder is not.
    """
    result = file.with_name(f"{file.stem}-pruned.zip") if output is None else Path(output)
    if result.suffix != ".zip":
        result = result.with_name(f"{result.name}.zip")
    if not result.parent.is_dir():
        raise ValueError(f"`--output` {result}: there is no folder {result.parent}")
    if result.exists() and not force:
        what = "is the model itself" if result.resolve() == file.resolve() else "exists"
        raise ValueError(f"`--output` {result} {what}: choose another name, or allow to replace it with `--force`")
    return result


def prune_file(
    path: str | Path,
    output: str | Path | None = None,
    *,
    sparsity: float | Mapping[str, float] | None = None,
    distribution: str | None = None,
    pattern: str | None = None,
    dense_layers: Sequence[str] | None = None,
    scope: str = "layer",
    algorithm: str | None = None,
    finetune_steps: int = 0,
    env: str | None = None,
    seed: int | None = None,
    force: bool = False,
) -> tuple[BaseAlgorithm, Path]:
    """
    Prune a saved model, save it, and train it further if that is wanted (and save it again).

    :param path: A model's zip, or a folder: the model saved there last.
    :param output: See :func:`output_file`.
    :param sparsity: See :func:`sb3_sparse.sparsify`, as for the following.
    :param distribution: How the sparsity is spread.
    :param pattern: Which masks are legal.
    :param dense_layers: Layers that stay dense.
    :param scope: Across what magnitudes are compared.
    :param algorithm: rl-zoo3's name of the algorithm.
    :param finetune_steps: Environment steps of further training, 0 for none.
    :param env: Environment to train in. None: what rl-zoo3's folder says.
    :param seed: Seed of the further training.
    :param force: Whether a file that is there may be replaced.
    :return: The new model and its file.
    :raises ValueError: For mistakes in the arguments, before anything is written.
    """
    file = find_model_file(path)
    target = output_file(file, output, force=force)
    require_integer("--finetune", finetune_steps, low=0)
    kwargs: dict[str, Any] = dict(
        distribution=distribution, pattern=pattern, dense_layers=dense_layers, scope=scope, algorithm=algorithm
    )
    if not finetune_steps:
        model = sparsify(file, sparsity, device="cpu", **kwargs)
        save_atomically(model, target)
        return model, target
    run = find_zoo_run(file)
    env_id = env or run.env_id
    if env_id is None:
        raise ValueError(
            "`--finetune` needs an environment: give `--env`; beside the model there is no folder of rl-zoo3 that names it"
        )
    old = load_model(file, algorithm)
    if run.replay_buffer is None:
        check_finetuning(old, finetune_steps)  # before anything is made
    model = sparsify(file, sparsity, env=make_training_env(run, env_id, old.n_envs, seed), **kwargs)
    if isinstance(model, OffPolicyAlgorithm) and run.replay_buffer is not None:
        model.load_replay_buffer(run.replay_buffer)
        check_finetuning(model, finetune_steps, n_stored=_n_stored(model))
    save_atomically(model, target)
    if seed is not None:
        model.set_random_seed(seed)
    finetune(model, finetune_steps)
    save_atomically(model, target)
    return model, target
