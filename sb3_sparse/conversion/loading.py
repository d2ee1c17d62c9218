"""Finding and loading a saved model when all one has is a path."""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch as th
from stable_baselines3 import A2C, DDPG, PPO, TD3
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm
from stable_baselines3.common.save_util import load_from_zip_file

from sb3_sparse.policies.algorithms import SPARSE_POLICIES
from sb3_sparse.utils.files import replacing
from sb3_sparse.utils.randomness import devices_in_use, undisturbed_randomness


def find_model_file(path: str | Path) -> Path:
    """
    Find a saved model.

    :param path: A model's zip, or a folder.
    :return: The zip; of a folder the model that was saved last in it or below.
    :raises FileNotFoundError: If there is none.
    """
    if not str(path):
        raise FileNotFoundError("the path of the model is empty: give a model's zip, or a folder that holds one")
    path = Path(path)
    if path.is_dir():
        files = sorted(path.rglob("*.zip"), key=lambda file: file.stat().st_mtime)
        if not files:
            raise FileNotFoundError(f"there is no model (*.zip) in the folder {path}")
        return files[-1]
    if not path.is_file():
        raise FileNotFoundError(f"there is no model at {path}: give a model's zip, or a folder that holds one")
    return path


def _algorithm_names() -> dict[str, type[BaseAlgorithm]]:
    """Algorithms by rl-zoo3's names."""
    names = {algorithm.__name__.lower(): algorithm for algorithm in SPARSE_POLICIES}
    return {**names, "ppo_lstm": names["recurrentppo"], "ppo_mask": names["maskableppo"]}


def _algorithms_of(policy: type) -> list[type[BaseAlgorithm]]:
    """Algorithms that have this policy, sparse or stock, or the nearest class that it extends."""
    for cls in policy.__mro__:
        found = [
            algorithm
            for algorithm, policies in SPARSE_POLICIES.items()
            if any(cls in (sparse, sparse.stock_policy()) for sparse in policies)
        ]
        if found:
            return found
    return []


def find_algorithm(path: Path, name: str | None = None) -> type[BaseAlgorithm]:
    """
    The algorithm of a saved model, sparse or stock. A zip does not say which it is; its policy and its hyperparameters tell.

    :param path: A model's zip. It is unpickled, as by ``load``: it must be trusted.
    :param name: rl-zoo3's name of the algorithm, if known.
    :return: The algorithm's class.
    :raises ValueError: For an unknown name, a file that is no SB3 model, or one of an algorithm that is not supported.
    """
    named = named_algorithm(name)
    data = read_zip(path)[0]
    return named or algorithm_of(data, path)


def named_algorithm(name: str | None) -> type[BaseAlgorithm] | None:
    """
    Find the algorithm of a name.

    :param name: rl-zoo3's name of an algorithm, None if it is not known.
    :return: The algorithm's class.
    :raises ValueError: For an unknown name.
    """
    names = _algorithm_names()
    if name is not None and name.lower() not in names:
        raise ValueError(f"`algo`={name!r} is unknown; known are: {', '.join(names)}")
    return None if name is None else names[name.lower()]


def algorithm_of(data: Mapping[str, Any], path: Path) -> type[BaseAlgorithm]:
    """
    Find the algorithm of a saved model.

    :param data: Attributes of a saved model.
    :param path: Its file.
    :return: The algorithm: its policy and its hyperparameters tell.
    :raises ValueError: If it is none that is supported.
    """
    policy = data["policy_class"]
    candidates = _algorithms_of(policy)
    # Two pairs share their policies, and TRPO its policies with PPO
    if "line_search_max_iter" in data:
        candidates = []
    if candidates == [TD3, DDPG]:
        return DDPG if data["policy_kwargs"].get("n_critics") == 1 else TD3
    if candidates == [PPO, A2C]:
        return PPO if "clip_range" in data else A2C
    if not candidates:
        raise ValueError(
            f"the policy of {path} is {policy.__name__}, of no algorithm that is supported; supported are: "
            f"{', '.join(algorithm.__name__ for algorithm in SPARSE_POLICIES)}. If it is one of these with a policy of your "
            "own, name the algorithm with `--algo`"
        )
    return candidates[0]


class MissingReplayBuffer:
    """
    Stands where a model that was read without an environment has no replay buffer: looking at the model needs none, and
    ``HerReplayBuffer`` cannot be made without an environment. Whoever wants to use it is told.
    """

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        raise RuntimeError(
            "this model has no replay buffer: it was read from a file to be looked at, or its HerReplayBuffer needs an "
            "environment and there was none. Give `env` when the model is made, or call model.load_replay_buffer()"
        )


def load_without_buffer(algorithm: type[BaseAlgorithm], file: Any, **kwargs: Any) -> Any:
    """
    Load a model that gets no replay buffer.

    :param algorithm: The algorithm.
    :param file: A model's zip: a path or an open file.
    :param kwargs: Arguments of ``load``.
    :return: The model.
    """
    if issubclass(algorithm, OffPolicyAlgorithm):
        # It is only made where there is none yet
        kwargs["replay_buffer"] = MissingReplayBuffer()
    return algorithm.load(file, **kwargs)


def load_model(path: Path, name: str | None = None) -> BaseAlgorithm:
    """
    Load a model to look at, without environment and without replay buffer. Random streams are left alone.

    :param path: A model's zip.
    :param name: rl-zoo3's name of the algorithm, if known.
    :return: The model, on the CPU.
    :raises ValueError: If the file is damaged or cannot be loaded, naming the entry.
    """
    algorithm = find_algorithm(path, name)
    # A model that has a seed seeds every stream of torch's
    with undisturbed_randomness(devices_in_use()), naming_the_file(path, algorithm):
        return load_without_buffer(algorithm, path, device="cpu")


@contextmanager
def naming_the_file(path: Path, algorithm: type[BaseAlgorithm]) -> Iterator[None]:
    """
    Inside, a file that does not fit its algorithm is named.

    :param path: A model's zip.
    :param algorithm: The algorithm as which it is loaded.
    """
    try:
        yield
    except (RuntimeError, ValueError, KeyError, AssertionError, AttributeError, IndexError, TypeError) as error:
        # Stable-Baselines3 looks for another cause of some, and stumbles
        reason = error.__context__ if isinstance(error, KeyError) and error.__context__ is not None else error
        raise ValueError(f"{path} cannot be loaded as a model of {algorithm.__name__}: {reason}") from error


def read_zip(path: Path) -> tuple[dict[str, Any], dict[str, Any], Any]:
    """
    What a model's zip holds.

    :param path: The zip. It is unpickled, as by ``load``: it must be trusted.
    :return: Attributes, state dicts and other tensors, on the CPU.
    :raises ValueError: If it is no zip of Stable-Baselines3's or damaged, naming the entry.
    """
    require_zip(path)
    try:
        data, params, variables = load_from_zip_file(path, device="cpu")
    except ImportError:
        raise
    except Exception as error:
        raise ValueError(f"{path} is damaged: {_damaged_entry(path) or error}") from error
    if data is None:
        raise lacking(path, "an entry 'data'")
    if "policy" not in params:
        raise lacking(path, "an entry 'policy.pth'")
    if "policy_class" not in data:
        raise lacking(path, "a policy class")
    return data, dict(params), variables


def require_zip(path: Path) -> None:
    """
    Refuse what is no zip.

    :param path: A file.
    :raises ValueError: If it is something else, or was cut off.
    """
    if not zipfile.is_zipfile(path):
        raise ValueError(f"{path} is not a zip file, or one that was cut off: give a model saved by Stable-Baselines3")


def lacking(path: Path, what: str) -> ValueError:
    """
    Make the error of a zip that is no whole model. Of a file that was cut off, what is left may be one of the zips in it.

    :param path: The zip.
    :param what: What it lacks.
    :return: The error.
    """
    return ValueError(f"{path} is not a model saved by Stable-Baselines3, or was cut off: it lacks {what}")


def unreadable(name: str, error: Exception) -> str:
    """
    Say why an entry of a zip cannot be read.

    :param name: The entry.
    :param error: What came of reading it.
    :return: Both, one line.
    """
    return f"its entry {name!r} cannot be read ({_said(error)})"


def _damaged_entry(path: Path) -> str | None:
    """Which entry of a zip cannot be read, and why."""
    try:
        archive = zipfile.ZipFile(path)
    except Exception as error:
        return f"its list of entries cannot be read ({_said(error)})"
    with archive:
        for name in archive.namelist():
            try:
                content = archive.read(name)
                if name == "data":
                    json.loads(content.decode())
                elif name.endswith(".pth"):
                    th.load(io.BytesIO(content), map_location="cpu", weights_only=True)
            except Exception as error:
                return unreadable(name, error)
    return None


def _said(error: Exception) -> str:
    lines = str(error).splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__


def save_atomically(model: BaseAlgorithm, file: Path) -> None:
    """
    Save a model so that the file is never half of one.

    :param model: The model.
    :param file: Where to.
    """
    with replacing(file) as partial:
        model.save(partial)
