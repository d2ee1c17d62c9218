"""Batches from a replay buffer: the same draws as stock ``sample``, put where the kernels read them."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch as th
from stable_baselines3.common.buffers import ReplayBuffer
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm
from stable_baselines3.common.type_aliases import ReplayBufferSamples

from sb3_sparse.buffers import DynamicNStepReplayBuffer
from sb3_sparse.engine import native

_METHODS = frozenset({"sample", "_get_samples", "to_torch", "_normalize_obs", "_normalize_reward", "size"})


class Sampler:
    """
    Draws batches.

    :param model: A model whose observations are vectors.
    :param n_actions: Dimension of its actions that networks read; 0 where they choose among some.
    """

    def __init__(self, model: OffPolicyAlgorithm, n_actions: int) -> None:
        self._model, self.n_actions, self.n_samples = model, n_actions, 0
        self._n_observations = int(np.prod(model.observation_space.shape or ()))
        #: The present batch, its samples if the buffer made them, and its rows and environments if not.
        self.batch: Any = None
        self._samples: ReplayBufferSamples | None = None
        self._rows: tuple[np.ndarray, np.ndarray] | None = None
        #: What networks choose among: the action of each sample, int64.
        self.choices: th.Tensor | np.ndarray | None = None
        #: Arrays of the buffer as they were seen last, with their addresses.
        self._arrays: list[tuple[np.ndarray, int]] = []
        self._readable = False

    def draw(self, batch_size: int) -> bool:
        """
        Draw a batch, by the random numbers that stock ``sample`` would use.

        :param batch_size: Number of samples.
        :return: Whether it is one that the kernels can take; if not, :meth:`samples` gives it to others.
        """
        self.n_samples = batch_size
        self.batch = native.module.Batch(batch_size, self._n_observations, self.n_actions)
        self._samples = self._rows = None
        buffer: Any = self._model.replay_buffer
        rows = self._draw_rows(buffer, batch_size) if self._is_plain(buffer) else None
        if rows is None:
            self._samples = buffer.sample(batch_size, env=self._model._vec_normalize_env)
            return self._put_samples(self._samples)
        self._rows = rows, np.random.randint(0, high=buffer.n_envs, size=(len(rows),))
        return self._put_rows(buffer, *self._rows)

    def noise(self) -> th.Tensor:
        """
        Room for a random number for each action of the batch, whatever torch's defaults are.

        :return: Not filled.
        """
        return th.empty(self.n_samples, self.n_actions, dtype=th.float32, device="cpu")

    def _is_plain(self, buffer: Any) -> bool:
        """Whether rows of the buffer's arrays are all there is to a sample."""
        if self._model._vec_normalize_env is not None or not vars(buffer).keys().isdisjoint(_METHODS):
            return False
        if type(buffer) is DynamicNStepReplayBuffer:
            if buffer.n_steps != 1 or buffer.window == 0:
                return False
        elif type(buffer) is not ReplayBuffer or buffer.optimize_memory_usage or not (buffer.full or buffer.pos):
            return False
        arrays = (buffer.observations, buffer.next_observations, buffer.actions, buffer.rewards, buffer.dones, buffer.timeouts)
        if len(self._arrays) != len(arrays) or any(
            known is not array for (known, _), array in zip(self._arrays, arrays, strict=True)
        ):
            self._arrays = [(array, array.__array_interface__["data"][0]) for array in arrays]
            shape = buffer.buffer_size, buffer.n_envs
            self._readable = (
                all(type(array) is np.ndarray and array.flags.c_contiguous and array.shape[:2] == shape for array in arrays)
                and all(array[0, 0].size == self._n_observations for array in arrays[:2])
                and arrays[2][0, 0].size == max(self.n_actions, 1)
                and arrays[0].dtype == arrays[1].dtype
                and arrays[0].dtype in (np.float32, np.float64)
                and all(array.dtype == np.float32 for array in arrays[3:])
            )
        return self._readable

    @staticmethod
    def _draw_rows(buffer: Any, batch_size: int) -> np.ndarray:
        if type(buffer) is DynamicNStepReplayBuffer:
            return buffer.draw_rows(batch_size)
        return np.random.randint(0, buffer.buffer_size if buffer.full else buffer.pos, size=batch_size)

    def _put_rows(self, buffer: Any, rows: np.ndarray, envs: np.ndarray) -> bool:
        flat = (rows if buffer.n_envs == 1 else rows * buffer.n_envs + envs).astype(np.int64, copy=False)
        indices = flat.__array_interface__["data"][0]
        (observations, at), (_, next_at), (actions, actions_at), (_, reward), (_, done), (_, timeout) = self._arrays
        is_double, batch = observations.dtype == np.float64, self.batch
        finite = batch.put_observations(at, is_double, self._n_observations, indices)
        finite &= batch.put_next_observations(next_at, is_double, self._n_observations, indices)
        finite &= batch.put_rewards(reward, done, timeout, indices, 0, self._model.gamma)
        if self.n_actions == 0:
            self.choices = actions.reshape(-1)[flat].astype(np.int64, copy=False)
            return finite
        if actions.dtype != np.float32:
            return False
        return batch.put_actions(actions_at, False, self.n_actions, indices) and finite

    def _put_samples(self, samples: ReplayBufferSamples) -> bool:
        one_each = [samples.rewards, samples.dones, *([] if samples.discounts is None else [samples.discounts])]
        tensors: list[Any] = [samples.observations, samples.next_observations, samples.actions, *one_each]
        # Buffers of others may give what they like, more or fewer samples than they were asked for too
        batch_size = self.n_samples
        if any(type(tensor) is not th.Tensor or not tensor.is_cpu or len(tensor) != batch_size for tensor in tensors):
            return False
        if any(tensor.dtype != th.float32 or tensor.shape != (batch_size, 1) for tensor in one_each):
            return False
        observations, next_observations = (
            (tensor if tensor.is_floating_point() else tensor.float()).reshape(batch_size, -1).contiguous()
            for tensor in tensors[:2]
        )
        for tensor in (observations, next_observations):
            if tensor.shape[1] != self._n_observations or tensor.dtype not in (th.float32, th.float64):
                return False
        rewards, dones, *discounts = (tensor.contiguous() for tensor in one_each)
        batch, is_double = self.batch, observations.dtype == th.float64
        finite = batch.put_observations(observations.data_ptr(), is_double, self._n_observations, 0)
        finite &= batch.put_next_observations(
            next_observations.data_ptr(), next_observations.dtype == th.float64, self._n_observations, 0
        )
        finite &= batch.put_rewards(
            rewards.data_ptr(), dones.data_ptr(), 0, 0, discounts[0].data_ptr() if discounts else 0, self._model.gamma
        )
        if self.n_actions == 0:
            self.choices = samples.actions.reshape(-1).long().contiguous()
            return finite and len(self.choices) == batch_size
        actions = samples.actions.contiguous()
        if actions.dtype != th.float32 or actions.shape != (batch_size, self.n_actions):
            return False
        return batch.put_actions(actions.data_ptr(), False, self.n_actions, 0) and finite

    def samples(self) -> ReplayBufferSamples:
        """
        Give the present batch as the buffer gives it.

        :return: The samples.
        """
        if self._samples is None:
            assert self._rows is not None, "a batch was drawn before"
            buffer: Any = self._model.replay_buffer
            rows, envs = self._rows
            dones = buffer.dones[rows, envs] * (1 - buffer.timeouts[rows, envs])
            data = (
                buffer.observations[rows, envs, :],
                buffer.actions[rows, envs, :],
                buffer.next_observations[rows, envs, :],
                dones.reshape(-1, 1),
                buffer.rewards[rows, envs].reshape(-1, 1),
            )
            self._samples = ReplayBufferSamples(*map(buffer.to_torch, data))
        return self._samples


class Handed:
    """
    Stands in for a replay buffer whose next batch is drawn already.

    :param buffer: The buffer.
    :param samples: The batch.
    """

    def __init__(self, buffer: Any, samples: ReplayBufferSamples) -> None:
        self._buffer, self._handed = buffer, samples

    def sample(self, batch_size: int, env: Any = None) -> ReplayBufferSamples:
        return self._handed

    def __getattr__(self, name: str) -> Any:
        return getattr(self._buffer, name)
