"""
The presets: ``hyperparams/<method>/<algo>.yml``, in the repository and in the installed package. rl-zoo3 reads the files
themselves; :func:`preset` gives the same values to whoever makes the model in Python.
"""

from __future__ import annotations

import importlib
import re
from collections.abc import Mapping
from copy import deepcopy
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import yaml
from gymnasium import spaces
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.noise import NormalActionNoise
from stable_baselines3.common.utils import LinearSchedule

from sb3_sparse.zoo.environments import require_packages

#: Entries that rl-zoo3 turns into environments, not into arguments of the algorithm.
_ENVIRONMENT_KEYS = ("env_wrapper", "frame_stack", "n_envs", "normalize", "vec_env_wrapper")


def presets_folder() -> Path:
    """
    The folder of all presets.

    :return: The folder of all presets: inside the package when installed, beside it in a checkout.
    """
    package = Path(__file__).parents[1]
    installed = package / "hyperparams"
    return installed if installed.is_dir() else package.parent / "hyperparams"


def preset_file(method: str, algo: str) -> Path:
    """
    The rl-zoo3 configuration of a method for an algorithm.

    :param method: Name of the method, e.g. ``"rlx2"``, or of one of its ablations and baselines, e.g. ``"rlx2/set"``. Names
        that these had before (``"rlx2_set"``) are understood.
    :param algo: rl-zoo3's name of the algorithm, e.g. ``"td3"``.
    :return: Path of the YAML file.
    :raises ValueError: For an unknown method, or an algorithm it has no preset for; the message lists what there is.
    """
    folder = presets_folder()
    available: dict[str, list[str]] = {}
    for file in sorted(folder.rglob("*.yml")):
        available.setdefault(file.parent.relative_to(folder).as_posix(), []).append(file.stem)
    if method not in available and (now := method.replace("_", "/", 1)) in available:
        method = now
    if method not in available:
        raise ValueError(f"`method`={method!r} is unknown; the methods are: {', '.join(available)}")
    if algo not in available[method]:
        known = ", ".join(available[method])
        raise ValueError(f"`algo`={algo!r} has no preset for method {method!r}; it has presets for: {known}")
    return folder / method / f"{algo}.yml"


def find_class(name: str) -> Any:
    """
    Import a class by its dotted path.

    :param name: Dotted path of a class, e.g. ``"sb3_sparse.RigL"``.
    :return: The class.
    :raises ValueError: If there is none.
    """
    module, _, attribute = name.rpartition(".")
    try:
        return getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError, ValueError) as error:
        raise ValueError(f"the configuration names {name!r}, which cannot be imported: {error}") from error


def callback_entries(written: Any) -> list[tuple[Any, dict[str, Any]]]:
    """
    Read rl-zoo3's ``callback`` entry.

    :param written: The ``callback`` of an rl-zoo3 configuration: None, a dotted name, a map from a dotted name to keyword
        arguments, or a list of these.
    :return: Name and keyword arguments of each. Names are returned as they are, whatever they are.
    :raises ValueError: For a map that names none or several callbacks, as rl-zoo3 raises.
    """
    found = []
    for entry in [] if written is None else written if isinstance(written, list) else [written]:
        if isinstance(entry, Mapping):
            if len(entry) != 1:
                raise ValueError(
                    f"each entry of `callback` must name one callback, got {list(entry)}: put a dash in front of each, and "
                    "indent its keyword arguments"
                )
            name, kwargs = next(iter(entry.items()))
        else:
            name, kwargs = entry, None
        found.append((name, dict(kwargs or {})))
    return found


def _make_callbacks(written: Any) -> list[BaseCallback]:
    return [find_class(name)(**kwargs) for name, kwargs in callback_entries(written)]


def _make_action_noise(env: str, noise_type: str, std: float) -> NormalActionNoise:
    if noise_type != "normal":
        raise ValueError(f"`noise_type`={noise_type!r} is not supported by presets; supported is 'normal'")
    made = gym.make(env)
    action_space = made.action_space
    made.close()
    assert isinstance(action_space, spaces.Box)
    return NormalActionNoise(np.zeros(action_space.shape), std * np.ones(action_space.shape))


def section_key(sections: Mapping[str, Any], env: str) -> str | None:
    """
    Find the section that rl-zoo3 takes for an environment.

    :param sections: What a configuration file of rl-zoo3's holds, by environment.
    :param env: Id of an environment.
    :return: The section that rl-zoo3 takes: its own, else ``atari`` for Atari games and ``default`` for all others; None if
        there is none.
    """
    is_atari = env in gym.registry and "AtariEnv" in str(gym.spec(env).entry_point)
    for key in (env, "atari" if is_atari else "default"):
        if key in sections:
            return key
    return None


def preset_entry(method: str, algo: str, env: str) -> dict[str, Any]:
    """
    What a preset's file says of an environment, as rl-zoo3 reads it.

    :param method: Name of the method, e.g. ``"rlx2"``.
    :param algo: rl-zoo3's name of the algorithm, e.g. ``"td3"``.
    :param env: Id of the environment. One that the method does not list gets its ``default``; Atari games get ``atari``.
    :return: A new map, wrappers and frame stack of the environment included.
    :raises ValueError: For an unknown method, algorithm or environment.
    :raises ImportError: If a package that the environment needs is not installed.
    """
    presets = yaml.safe_load(preset_file(method, algo).read_text())
    require_packages(env)
    if env not in gym.envs.registry:
        raise ValueError(f"`env`={env!r} is unknown to gymnasium; is the package that registers it imported?")
    key = section_key(presets, env)
    if key is None:
        raise ValueError(f"`env`={env!r} has no preset of {method!r} for {algo!r}; there are: {', '.join(presets)}")
    # Entries of one anchor are one object
    return deepcopy(presets[key])


def preset_arguments(entry: Mapping[str, Any], env: str) -> dict[str, Any]:
    """
    Turn a preset's entry into arguments of the algorithm.

    :param entry: What :func:`preset_entry` gave.
    :param env: Id of the environment.
    :return: As of :func:`preset`.
    """
    values = {name: value for name, value in entry.items() if name not in _ENVIRONMENT_KEYS}
    values["n_timesteps"] = int(values["n_timesteps"])
    values["callback"] = _make_callbacks(values.get("callback", []))
    if "." in values["policy"]:
        values["policy"] = find_class(values["policy"])
    if isinstance(rate := values.get("learning_rate"), str):
        values["learning_rate"] = LinearSchedule(float(rate.removeprefix("lin_")), 0.0, 1.0)
    if isinstance(buffer := values.get("replay_buffer_class"), str):
        # rl-zoo3 evaluates this entry in a namespace where this package is not imported
        match = re.fullmatch(r"__import__\('([\w.]+)'\)\.(\w+)", buffer)
        values["replay_buffer_class"] = find_class(f"{match[1]}.{match[2]}" if match else buffer)
    if "noise_type" in values:
        values["action_noise"] = _make_action_noise(env, values.pop("noise_type"), values.pop("noise_std"))
    return values


def preset(method: str, algo: str, env: str) -> dict[str, Any]:
    """
    A method's values for an algorithm and an environment, ready for Python::

        values = sb3_sparse.preset("rlx2", "td3", "Hopper-v4")
        callback, n_timesteps = values.pop("callback"), values.pop("n_timesteps")
        model = TD3(env="Hopper-v4", **values)
        model.learn(n_timesteps, callback=callback)

    :param method: Name of the method, e.g. ``"rlx2"``.
    :param algo: rl-zoo3's name of the algorithm, e.g. ``"td3"``.
    :param env: Id of the environment. One that the method does not list gets its ``default``; Atari games get ``atari``, whose
        wrappers and frame stack are the environment's and not in the result.
    :return: The algorithm's keyword arguments (``policy`` and replay settings included, ``env`` not), and besides
        ``callback``, a list of new callbacks, and ``n_timesteps``.
    :raises ValueError: For an unknown method, algorithm or environment.
    :raises ImportError: If a package that the environment needs is not installed.
    """
    return preset_arguments(preset_entry(method, algo, env), env)
