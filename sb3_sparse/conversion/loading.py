"""Finding and loading a saved model when all one has is a path."""

from __future__ import annotations

import inspect
import zipfile
from pathlib import Path
from typing import Any

from stable_baselines3 import A2C, DDPG, PPO, TD3
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.save_util import load_from_zip_file

from sb3_sparse.policies.algorithms import SPARSE_POLICIES
from sb3_sparse.utils.files import replacing


def find_model_file(path: str | Path) -> Path:
    """
    :param path: A model's zip, or a folder.
    :return: The zip; of a folder the model that was saved last in it or below.
    :raises FileNotFoundError: If there is none.
    """
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
    names = _algorithm_names()
    if name is not None:
        if name.lower() not in names:
            raise ValueError(f"`algo`={name!r} is unknown; known are: {', '.join(names)}")
        return names[name.lower()]
    if not zipfile.is_zipfile(path):
        raise ValueError(f"{path} is not a zip file: give a model saved by Stable-Baselines3")
    data = load_from_zip_file(path, device="cpu")[0]
    if data is None or "policy_class" not in data:
        raise ValueError(f"{path} is not a model saved by Stable-Baselines3: it has no policy class")
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


def load_model(path: Path, name: str | None = None) -> BaseAlgorithm:
    """
    Load a model to look at, without environment and without room for a replay buffer.

    :param path: A model's zip.
    :param name: rl-zoo3's name of the algorithm, if known.
    :return: The model, on the CPU.
    """
    algorithm = find_algorithm(path, name)
    # The buffer would be allocated in its full size
    extra: dict[str, Any] = {"buffer_size": 1} if "buffer_size" in inspect.signature(algorithm).parameters else {}
    return algorithm.load(path, device="cpu", **extra)


def save_atomically(model: BaseAlgorithm, file: Path) -> None:
    """
    Save a model so that the file is never half of one.

    :param model: The model.
    :param file: Where to.
    """
    with replacing(file) as partial:
        model.save(partial)
