"""A deployed policy: what Stable-Baselines3's ``predict`` answers, without Stable-Baselines3."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sb3_sparse_runtime import compiled
from sb3_sparse_runtime.file import PolicyFile, read
from sb3_sparse_runtime.spaces import Space, batch_of

Observation = NDArray | Mapping[str, NDArray] | int | float


class Policy:
    """
    Made by :func:`load_policy`. One policy serves one thread at a time.

    :param file: What a policy file holds.
    """

    def __init__(self, file: PolicyFile) -> None:
        self.graph = file.graph
        #: What of the policy is sparse, as :meth:`sb3_sparse.analysis.report.SparsityReport.to_dict` says it.
        self.report = file.report
        #: Where it comes from.
        self.provenance = file.provenance
        #: Observation space, or one for each key.
        self.observation_space = self.graph.observation
        #: Action space.
        self.action_space = self.graph.action
        self._runner = compiled.CompiledRunner(self.graph) if compiled.available() else None
        #: What computes: ``"compiled"`` or ``"numpy"``.
        self.runner = "numpy" if self._runner is None else "compiled"
        # What the quickest way through predict() compares with
        space = self.observation_space
        is_simple = isinstance(space, Space) and space.kind == "box" and self._runner is not None
        self._quick_shape = space.shape if is_simple and isinstance(space, Space) else None
        dtype = np.dtype(self.action_space.dtype)
        if self.action_space.kind != "box":
            # As SB3: integers for choices, what torch rounds for bits
            dtype = np.dtype(np.int64 if self.graph.chooses else np.float32)
        self._dtype, self._action_shape = dtype, self.action_space.shape
        if dtype != (np.int64 if self._runner is not None and self._runner.is_discrete else np.float32):
            self._quick_shape = None

    def predict(
        self,
        observation: Observation,
        state: Any = None,
        episode_start: Any = None,
        deterministic: bool = True,
        action_masks: NDArray | None = None,
    ) -> tuple[NDArray, Any]:
        """
        The deterministic action, as ``predict`` of the model that was exported. Observations are those of the environment: if
        the policy was trained with ``VecNormalize``, its statistics are in the file.

        :param observation: One observation, or a batch of them.
        :param state: Handed back as it is: these policies have none.
        :param episode_start: Not used.
        :param deterministic: True; a policy file has no randomness.
        :param action_masks: For MaskablePPO: bool, False where a choice is forbidden; one row, or one for each observation.
        :return: The action or actions, and ``state``.
        :raises ValueError: For an observation of another shape, or values it cannot have (NaN among them).
        """
        if (
            type(observation) is np.ndarray
            and observation.shape == self._quick_shape
            and observation.dtype in _QUICK
            and action_masks is None
            and deterministic
            and observation.flags.c_contiguous
        ):
            action = np.empty(self._action_shape, self._dtype)
            self._runner.run(observation, action, None)  # type: ignore[union-attr]
            return action, state
        if not deterministic:
            raise ValueError("`deterministic`=False is not possible: a policy file answers the deterministic action alone")
        observations, vectorized = batch_of(self.observation_space, observation)
        n_rows = len(next(iter(observations.values())))
        masks = None if action_masks is None else self._masks(action_masks, n_rows)
        if self._runner is not None:
            actions = self._runner(observations, masks)
        else:
            actions = self.graph.evaluate(observations, masks)[self.graph.outputs["action"]]
        actions = actions.astype(self._dtype, copy=False).reshape(n_rows, *self._action_shape)
        return (actions if vectorized else actions.squeeze(axis=0)), state

    def _masks(self, action_masks: NDArray, n_rows: int) -> NDArray[np.bool_]:
        chooser = self.graph.chooser
        if chooser is None:
            raise ValueError("`action_masks` are for policies that MaskablePPO trained")
        masks = np.asarray(action_masks)
        n_choices = sum(chooser.sizes)
        if masks.size != n_rows * n_choices:
            raise ValueError(f"`action_masks` must have {n_rows} x {n_choices} entries, got the shape {masks.shape}")
        return masks.reshape(n_rows, n_choices).astype(bool)

    def distribution(self, observation: Observation) -> tuple[NDArray, NDArray]:
        """
        Mean and standard deviation of the Gaussian that a stochastic policy draws from, before squashing or clipping.

        :param observation: As of :meth:`predict`.
        :return: Mean and standard deviation, float32.
        :raises ValueError: If the policy was exported without.
        """
        if "mean" not in self.graph.outputs:
            raise ValueError("the policy was exported without its distribution: export it with `distribution`=True")
        observations, vectorized = batch_of(self.observation_space, observation)
        values = self.graph.evaluate(observations)
        mean, std = (values[self.graph.outputs[name]].reshape(-1, *self._action_shape) for name in ("mean", "std"))
        return (mean, std) if vectorized else (mean.squeeze(axis=0), std.squeeze(axis=0))


_QUICK = (np.dtype(np.float32), np.dtype(np.float64))


def load_policy(path: str | os.PathLike[str]) -> Policy:
    """
    Load a policy file. Nothing in it is executed; a file that is truncated, damaged, tampered with or newer than this package
    is refused with the reason.

    :param path: A file that ``sb3_sparse.export(model, path)`` or ``sb3-sparse export`` wrote.
    :return: The policy.
    :raises FileNotFoundError: If there is none.
    :raises InvalidPolicyError: A ``ValueError``, if it is no policy file.
    """
    return Policy(read(path))
