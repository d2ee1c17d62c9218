"""The statistics of ``VecNormalize`` that belong to a policy."""

from __future__ import annotations

import pickle
from typing import Any

import numpy as np
from stable_baselines3.common.running_mean_std import RunningMeanStd
from stable_baselines3.common.vec_env import VecNormalize

from sb3_sparse.zoo.runs import ZooRun
from sb3_sparse_runtime.spaces import Space


def _fit(values: np.ndarray, shape: tuple[int, ...]) -> np.ndarray | None:
    """Statistics of one frame for several: frames are stacked behind normalisation, in the last dimension or the first."""
    if values.shape == shape:
        return values
    for axis in (-1, 0):
        if values.ndim == len(shape) > 0 and shape[axis] % values.shape[axis] == 0:
            repeats = [1] * len(shape)
            repeats[axis] = shape[axis] // values.shape[axis]
            stacked = np.tile(values, repeats)
            if stacked.shape == shape:
                return stacked
    return None


def statistics(normalize: VecNormalize, key: str | None, space: Space) -> dict[str, Any] | None:
    """
    Read the statistics of one observation.

    :param normalize: What normalises observations.
    :param key: Key of a dictionary, or None.
    :param space: The space there.
    :return: Arguments of :class:`~sb3_sparse_runtime.operations.Normalize`, or None if nothing is done to these observations.
    :raises ValueError: If the statistics are of another shape.
    """
    if not normalize.norm_obs:
        return None
    found: Any = normalize.obs_rms
    if key is not None:
        if not isinstance(found, dict):
            raise ValueError("the statistics are those of one observation, the policy sees a dictionary of them")
        if key not in (normalize.norm_obs_keys or ()):
            return None
        found = found[key]
    if not isinstance(found, RunningMeanStd):
        raise ValueError("the statistics are those of a dictionary of observations, the policy sees one")
    mean, variance = (_fit(np.asarray(values, np.float64), space.shape) for values in (found.mean, found.var))
    if mean is None or variance is None:
        raise ValueError(f"the statistics are of observations of shape {found.mean.shape}, the policy sees {space.shape}")
    return dict(mean=mean.copy(), deviation=np.sqrt(variance + normalize.epsilon), limit=float(normalize.clip_obs))


def normalized(normalize: VecNormalize, observations: Any) -> Any:
    """
    Normalise observations, stacked frames included.

    :param normalize: What normalises observations.
    :param observations: Observations of the environment, frames stacked or not.
    :return: What the policy sees: as ``normalize_obs``, which knows single frames alone.
    """
    if not normalize.norm_obs:
        return observations
    if isinstance(observations, dict):
        keys = normalize.norm_obs_keys or ()
        return {
            key: _one(normalize, normalize.obs_rms[key], part) if key in keys else part for key, part in observations.items()
        }
    return _one(normalize, normalize.obs_rms, observations)


def _one(normalize: VecNormalize, found: Any, observations: np.ndarray) -> np.ndarray:
    mean, variance = (_fit(np.asarray(values, np.float64), observations.shape[1:]) for values in (found.mean, found.var))
    assert mean is not None
    assert variance is not None
    scaled = (observations - mean) / np.sqrt(variance + normalize.epsilon)
    return np.clip(scaled, -normalize.clip_obs, normalize.clip_obs).astype(np.float32)


def statistics_of(run: ZooRun) -> VecNormalize | None:
    """
    Load the statistics of a run's observations.

    :param run: What rl-zoo3's folder says. Its file is unpickled, as the model is.
    :return: The statistics, None if there are none.
    :raises ValueError: If the file holds something else.
    """
    if run.statistics is None:
        return None
    with run.statistics.open("rb") as file:
        found = pickle.load(file)
    if not isinstance(found, VecNormalize):
        raise ValueError(f"{run.statistics} holds a {type(found).__name__}, not a VecNormalize")
    return found
