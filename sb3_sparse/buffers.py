"""A replay buffer whose step length and live window may change while it is used: what stock ``NStepReplayBuffer`` lacks."""

from __future__ import annotations

from collections.abc import Callable
from numbers import Real
from typing import Any, NamedTuple

import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.buffers import NStepReplayBuffer, ReplayBuffer
from stable_baselines3.common.type_aliases import ReplayBufferSamples
from stable_baselines3.common.vec_env import VecNormalize

from sb3_sparse.utils.checks import require_integer


class OldestTransitions(NamedTuple):
    """
    Transitions from the oldest on, on the buffer's device.

    :param observations: As the buffer samples them, ``[n, *observation]``.
    :param actions: Actions taken, ``[n, action_dim]``; those of a Box are scaled to [-1, 1], as SB3 stores them.
    :param mean_actions: Actions without exploration noise, same shape and scale, or None if they were never stored.
    """

    observations: th.Tensor
    actions: th.Tensor
    mean_actions: th.Tensor | None


class DynamicNStepReplayBuffer(NStepReplayBuffer):
    """
    Stock ``NStepReplayBuffer`` with a step length and a live window that may change at any time, as the delayed multi-step
    targets and the dynamic-capacity buffer of RLx2 (Tan et al., ICLR 2023) need them. Arrays are never resized or moved.

    A *row* is one call of :meth:`add`, that is ``n_envs`` transitions. The newest ``window`` rows are live: only they are
    sampled. Each :meth:`add` makes the window one row longer, up to ``max_window``; :meth:`drop_oldest` makes it shorter.

    An n-step return looks forward from the sampled row. It ends, and bootstraps, at a termination (no bootstrap), at a
    truncation, at the newest row, and where an episode was cut, that is where the next row of the same environment does not
    start from the observation in which this one ended, because the environment was reset in between (a second ``learn()``,
    a loaded buffer). Its discount is gamma to the number of rewards it holds.

    With ``n_steps=1`` samples are those of the plain ``ReplayBuffer``, from the same random numbers.

    :param buffer_size: Number of transitions it can hold, of all environments together.
    :param observation_space: Observation space; Dict is refused.
    :param action_space: Action space.
    :param device: PyTorch device of the samples.
    :param n_envs: Number of parallel environments.
    :param optimize_memory_usage: Refused.
    :param handle_timeout_termination: Tell truncations by a time limit from terminations, see ``ReplayBuffer``.
    :param n_steps: Number of steps of the returns, at least 1. An attribute that may be set at any time; it applies to
        everything that is stored.
    :param gamma: Discount factor in [0, 1]; must be the model's.
    :raises ValueError: If an argument is out of its range.
    :raises NotImplementedError: For Dict observations and ``optimize_memory_usage=True``.
    """

    _n_steps: int
    _window: int
    _max_window: int
    #: The row that ``set_next_mean_actions`` announced; buffers that were saved before know nothing of it.
    _next_actions: np.ndarray | None = None

    def __init__(
        self,
        buffer_size: int,
        observation_space: spaces.Space,
        action_space: spaces.Space,
        device: th.device | str = "auto",
        n_envs: int = 1,
        optimize_memory_usage: bool = False,
        handle_timeout_termination: bool = True,
        n_steps: int = 1,
        gamma: float = 0.99,
    ) -> None:
        if isinstance(observation_space, spaces.Dict):
            raise NotImplementedError(
                "DynamicNStepReplayBuffer does not support Dict observations: it stores one array of observations, as the "
                "stock NStepReplayBuffer does; flatten them, or use the stock DictReplayBuffer"
            )
        if optimize_memory_usage:
            raise NotImplementedError(
                "DynamicNStepReplayBuffer does not support `optimize_memory_usage=True`: that layout overwrites the last "
                "observation of each episode, from which a return that ends at a truncation bootstraps"
            )
        if isinstance(gamma, bool) or not isinstance(gamma, Real) or not 0 <= gamma <= 1:
            raise ValueError(f"`gamma` must be a number in [0, 1], got {gamma!r}")
        super().__init__(
            buffer_size,
            observation_space,
            action_space,
            device,
            n_envs=n_envs,
            handle_timeout_termination=handle_timeout_termination,
            n_steps=n_steps,
            gamma=float(gamma),
        )
        #: Actions without exploration noise, ``[rows, n_envs, action_dim]``; allocated when the first ones are announced
        self.mean_actions: np.ndarray | None = None
        #: What a next observation inside an n-step return adds to its reward: observations ``[m, *observation]`` to
        #: ``[m, 1]``. Not pickled: it knows the model.
        self.step_bonus: Callable[[th.Tensor], th.Tensor] | None = None
        self._next_mean_actions: np.ndarray | None = None
        self._window = 0
        self._max_window = self.buffer_size

    @property
    def n_steps(self) -> int:
        """Number of steps of the returns sampled from now on."""
        return self._n_steps

    @n_steps.setter
    def n_steps(self, value: int) -> None:
        self._n_steps = require_integer("n_steps", value, low=1)

    @property
    def window(self) -> int:
        """Number of live rows."""
        return self._window

    @property
    def max_window(self) -> int:
        """Largest number of live rows, at most the number of rows there are; lowering it drops the oldest."""
        return self._max_window

    @max_window.setter
    def max_window(self, value: int) -> None:
        self._max_window = require_integer("max_window", value, low=1, high=self.buffer_size)
        self._window = min(self._window, self._max_window)

    def size(self) -> int:
        """
        Number of rows that are sampled from.

        :return: Number of live rows.
        """
        return self._window

    def reset(self) -> None:
        """Forget everything."""
        super().reset()
        self._window = 0

    def drop_oldest(self, n_rows: int) -> None:
        """
        Never sample the oldest rows again. Takes the same time for any number.

        :param n_rows: Number of rows, from 0 to ``window``.
        :raises ValueError: If there are not that many.
        """
        self._window -= require_integer("n_rows", n_rows, low=0, high=self._window)

    def set_next_mean_actions(self, mean_actions: np.ndarray | None, actions: np.ndarray | None = None) -> None:
        """
        Announce the actions without exploration noise of the row that is added next. A row that nobody announced gets the
        actions taken.

        :param mean_actions: ``[n_envs, action_dim]``, scaled as the actions; None takes an announcement back.
        :param actions: The actions of that row, ``[n_envs, action_dim]``: should a row with others come instead (the training
            was interrupted, and the announced row was never added), the announcement is forgotten. None: any row.
        """
        self._next_mean_actions, self._next_actions = mean_actions, actions

    def add(
        self,
        obs: np.ndarray,
        next_obs: np.ndarray,
        action: np.ndarray,
        reward: np.ndarray,
        done: np.ndarray,
        infos: list[dict[str, Any]],
    ) -> None:
        """
        Store one transition of each environment, see ``ReplayBuffer.add``.

        :param obs: Observations, ``[n_envs, *observation]``.
        :param next_obs: Next observations, same shape; the last one of an episode, not the first of the next.
        :param action: Actions, ``[n_envs, action_dim]``.
        :param reward: Rewards, ``[n_envs]``.
        :param done: Whether an episode ended, terminated or truncated, ``[n_envs]``.
        :param infos: Infos, one per environment.
        """
        row, previous = self.pos, (self.pos - 1) % self.buffer_size
        has_previous = self.full or self.pos > 0
        super().add(obs, next_obs, action, reward, done, infos)
        self._window = min(self._window + 1, self._max_window)
        if has_previous:
            # SB3 resets the environments at each learn() and tells the buffer nothing: the two rows are then neighbours
            # without being consecutive, which stock n-step returns overlook
            moved = (self.observations[row] != self.next_observations[previous]).reshape(self.n_envs, -1).any(axis=1)
            self.timeouts[previous, moved & (self.dones[previous] == 0)] = 1
        announced = self._next_actions
        if announced is not None and announced is not action and not np.array_equal(announced, action):
            self._next_mean_actions = None
        if self._next_mean_actions is not None and self.mean_actions is None:
            self.mean_actions = self.actions.astype(np.float32)
        if self.mean_actions is not None:
            mean_actions = self.actions[row] if self._next_mean_actions is None else self._next_mean_actions
            self.mean_actions[row] = np.reshape(mean_actions, (self.n_envs, self.action_dim))
        self.set_next_mean_actions(None)

    def sample(self, batch_size: int, env: VecNormalize | None = None) -> ReplayBufferSamples:
        """
        Draw live transitions, uniformly and with replacement.

        :param batch_size: Number of transitions.
        :param env: Normalises observations and rewards if given.
        :return: The samples; ``discounts`` is None with ``n_steps=1``, where it is gamma for all.
        :raises ValueError: If no transition is live.
        """
        return self._get_samples(self.draw_rows(batch_size), env=env)

    def draw_rows(self, batch_size: int) -> np.ndarray:
        """
        Draw live rows, uniformly and with replacement.

        :param batch_size: Number of rows.
        :return: Indices of rows, int64, ``[batch_size]``.
        :raises ValueError: If no transition is live.
        """
        if self._window == 0:
            raise ValueError("the replay buffer has no live transition to sample")
        rows = np.random.randint(0, self._window, size=batch_size)
        # Where all is live the draws are the stock buffer's rows; otherwise they count from the oldest live row
        if self._window < super().size():
            rows = (rows + self.pos - self._window) % self.buffer_size
        return rows

    def _get_samples(self, batch_inds: np.ndarray, env: VecNormalize | None = None) -> ReplayBufferSamples:
        """
        Make samples of the present step length from rows.

        :param batch_inds: Rows to start from, ``[batch]``; of each, one environment is drawn.
        :param env: Normalises observations and rewards if given.
        :return: The samples.
        """
        if self.n_steps == 1:
            return ReplayBuffer._get_samples(self, batch_inds, env)
        env_inds = np.random.randint(0, self.n_envs, size=batch_inds.shape)
        columns = env_inds[:, None]
        rows = (batch_inds[:, None] + np.arange(self.n_steps)) % self.buffer_size  # [batch, n_steps]
        # What follows the newest row is the ring's oldest or empty
        newest = (self.pos - 1) % self.buffer_size
        ends = (self.dones[rows, columns] > 0) | (self.timeouts[rows, columns] > 0) | (rows == newest)
        used = np.ones_like(ends)
        used[:, 1:] = ~np.logical_or.accumulate(ends[:, :-1], axis=1)
        lengths = used.sum(axis=1)

        discounts = self.gamma ** np.arange(self.n_steps, dtype=np.float32)
        rewards = self._normalize_reward(self.rewards[rows, columns], env) * discounts * used
        returns = self.to_torch(rewards.sum(axis=1, keepdims=True))
        if self.step_bonus is not None:
            # Step k is followed inside the return where step k + 1 is used; the last step's bonus is the algorithm's
            samples, steps = np.nonzero(used[:, 1:])
            if len(samples) > 0:
                inside = self.next_observations[rows[samples, steps], env_inds[samples]]
                bonus = self.step_bonus(self.to_torch(self._normalize_obs(inside, env)))  # type: ignore[arg-type]
                returns.index_add_(0, self.to_torch(samples), self.to_torch(discounts[steps + 1])[:, None] * bonus)

        last = rows[np.arange(len(rows)), lengths - 1]
        # dones of episodes that were only truncated do not stop the bootstrap
        dones = self.dones[last, env_inds] * (1 - self.timeouts[last, env_inds])
        return ReplayBufferSamples(
            observations=self.to_torch(self._normalize_obs(self.observations[batch_inds, env_inds], env)),  # type: ignore[arg-type]
            actions=self.to_torch(self.actions[batch_inds, env_inds]),
            next_observations=self.to_torch(self._normalize_obs(self.next_observations[last, env_inds], env)),  # type: ignore[arg-type]
            dones=self.to_torch(dones[:, None]),
            rewards=returns,
            discounts=self.to_torch((self.gamma ** lengths.astype(np.float32))[:, None]),
        )

    def oldest(self, n_transitions: int, skip_rows: int = 0, env: VecNormalize | None = None) -> OldestTransitions:
        """
        The oldest live transitions, oldest row first, within a row by environment.

        :param n_transitions: How many at most, at least 1; fewer are returned if fewer are live.
        :param skip_rows: How many of the oldest live rows to pass over, from 0 to ``window``.
        :param env: Normalises observations if given.
        :return: The transitions.
        :raises ValueError: If an argument is out of its range.
        """
        n_transitions = require_integer("n_transitions", n_transitions, low=1)
        skip_rows = require_integer("skip_rows", skip_rows, low=0, high=self._window)
        n_rows = min(-(-n_transitions // self.n_envs), self._window - skip_rows)
        rows = (self.pos - self._window + skip_rows + np.arange(n_rows)) % self.buffer_size

        def flat(array: np.ndarray) -> np.ndarray:
            return array[rows].reshape(n_rows * self.n_envs, *array.shape[2:])[:n_transitions]

        return OldestTransitions(
            observations=self.to_torch(self._normalize_obs(flat(self.observations), env)),  # type: ignore[arg-type]
            actions=self.to_torch(flat(self.actions)),
            mean_actions=None if self.mean_actions is None else self.to_torch(flat(self.mean_actions)),
        )

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"step_bonus": None, "_next_mean_actions": None, "_next_actions": None}
