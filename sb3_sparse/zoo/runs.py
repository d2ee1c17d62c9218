"""What rl-zoo3 leaves beside a model, and the environment that it trained in."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any

import gymnasium as gym
import yaml
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import VecEnv, VecFrameStack, VecNormalize

from sb3_sparse.zoo.environments import require_packages


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


def require_fitting_env(model: BaseAlgorithm, env: VecEnv, env_id: str) -> None:
    """
    Refuse an environment whose observations or actions are not the model's.

    :param model: A model.
    :param env: An environment, normalised or not.
    :param env_id: Its id.
    :raises ValueError: If an agent of that environment could not be this one.
    """
    # Images are turned around as learn() does
    wrapped = model._wrap_env(env, verbose=0, monitor_wrapper=False)
    for kind in ("observation", "action"):
        own, other = getattr(model, f"{kind}_space"), getattr(wrapped, f"{kind}_space")
        # Bounds are left out: statistics change them
        if type(own) is not type(other) or _layout(own) != _layout(other):
            raise ValueError(f"`--env` {env_id!r} does not fit the model: its {kind} space is {other}, the model's {own}")


def _layout(space: gym.Space[Any]) -> Any:
    """What of a space a network's shape follows from."""
    if isinstance(space, gym.spaces.Dict):
        return {name: _layout(part) for name, part in space.spaces.items()}
    return space.shape, getattr(space, "n", None) if isinstance(space, gym.spaces.Discrete) else None


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
