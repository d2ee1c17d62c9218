"""
Callbacks that change what a critic learns from: multi-step targets after a delay, and a replay buffer that forgets what the
policy has moved away from. Both are RLx2's (Tan et al., ICLR 2023, arXiv 2205.15043) and need a
:class:`~sb3_sparse.buffers.DynamicNStepReplayBuffer`.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.buffers import DictReplayBuffer
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm
from stable_baselines3.her.her_replay_buffer import HerReplayBuffer

from sb3_sparse.buffers import DynamicNStepReplayBuffer
from sb3_sparse.callbacks.clock import Clock
from sb3_sparse.callbacks.events import CapacityEvent, NStepEvent
from sb3_sparse.callbacks.training import EventT, Training, TrainingCallback
from sb3_sparse.utils.checks import require_choice, require_integer, require_positive

ENTROPIES = ("bootstrap", "every_step")
RULES = ("code", "paper")


class OffPolicyCallback(TrainingCallback[EventT]):
    """
    A callback for algorithms with a replay buffer.

    :param verbose: 1 prints every event.
    """

    @property
    def _algorithm(self) -> OffPolicyAlgorithm:
        model: BaseAlgorithm = self.model
        if not isinstance(model, OffPolicyAlgorithm):
            raise ValueError(f"{type(self).__name__} needs an algorithm with a replay buffer; {type(model).__name__} has none")
        return model


class _ReplayCallback(OffPolicyCallback[EventT]):
    """What both callbacks here ask of a model."""

    @property
    def _buffer(self) -> DynamicNStepReplayBuffer:
        """The replay buffer, looked up each time: ``load_replay_buffer`` replaces it."""
        model = self._algorithm
        buffer = model.replay_buffer
        if isinstance(buffer, DynamicNStepReplayBuffer):
            return buffer
        name = f"{type(self).__name__} needs a DynamicNStepReplayBuffer, got {type(buffer).__name__}"
        if isinstance(buffer, HerReplayBuffer):
            raise ValueError(
                f"{name}: hindsight replay picks goals from whole episodes and computes their rewards anew when it samples, "
                "so neither the stored rewards of following rows nor a part of an episode are of use to it"
            )
        if isinstance(buffer, DictReplayBuffer):
            raise ValueError(f"{name}: Dict observations are not supported, as in the stock NStepReplayBuffer; flatten them")
        raise ValueError(
            f"{name}: make or load the model with `replay_buffer_class=sb3_sparse.DynamicNStepReplayBuffer, "
            f"replay_buffer_kwargs=dict(n_steps=1, gamma={model.gamma})`"
        )


class DelayedNStep(_ReplayCallback[NStepEvent]):
    """
    1-step targets first, multi-step targets for good after a delay (RLx2, "multi-step TD target"). There is no off-policy
    correction; the delay and a buffer of recent data (:class:`DynamicReplayCapacity`) are what keeps the bias small.

    The delay counts gradient updates, not environment steps as ``start`` does elsewhere: ``model._n_updates``, SB3's count
    (updates of the critic; ``train/n_updates`` in the log), which is saved with the model and never reset by ``learn()``. It
    is read when training starts and at every environment step, so the first ``delay`` updates are 1-step, and so are those
    that are left of the call of ``train()`` in which the count reaches ``delay``. The step length is the buffer's, and stays
    with it when the training ends; the entropy bonus does not.

    Logs ``replay/n_steps``.

    :param n_steps: Number of steps after the delay, at least 1.
    :param delay: Number of gradient updates with 1-step targets, at least 0.
    :param entropy: Where a target of SAC, TQC or CrossQ holds the entropy bonus -alpha log pi. ``"bootstrap"``: at its last
        observation only, as stock n-step targets do. ``"every_step"``: at every next observation it passes, with fresh
        actions of the current policy, as RLx2's SAC does; ``n_steps`` policy forwards per update instead of one.
    :param verbose: 1 to print when the step length changes.
    :raises ValueError: If an argument is out of its range; when training starts, if the model or its buffer is unsuitable.
    """

    def __init__(self, n_steps: int = 3, delay: int = 300_000, entropy: str = "bootstrap", verbose: int = 0) -> None:
        super().__init__(verbose)
        self.n_steps = require_integer("n_steps", n_steps, low=1)
        self.delay = require_integer("delay", delay, low=0)
        self.entropy = require_choice("entropy", entropy, ENTROPIES)

    def _on_training_start(self) -> None:
        super()._on_training_start()
        buffer, model = self._buffer, self._algorithm
        if buffer.gamma != model.gamma:
            raise ValueError(
                f"the replay buffer's gamma={buffer.gamma} must be the model's gamma={model.gamma}: pass "
                f"`replay_buffer_kwargs=dict(n_steps=1, gamma={model.gamma})`"
            )
        every_step = self.entropy == "every_step"
        if every_step and not (hasattr(getattr(model, "actor", None), "action_log_prob") and hasattr(model, "log_ent_coef")):
            raise ValueError(
                f'`entropy="every_step"` needs an entropy-regularised algorithm (SAC, TQC, CrossQ); {type(model).__name__} '
                'has no entropy term: use `entropy="bootstrap"`'
            )
        # One that another callback left
        buffer.step_bonus = None
        self._set_targets()

    def _on_step(self) -> bool:
        super()._on_step()
        self._set_targets()
        return True

    def _on_training_end(self) -> None:
        super()._on_training_end()
        self._buffer.step_bonus = None

    def _set_targets(self) -> None:
        buffer, n_updates = self._buffer, self._algorithm._n_updates
        n_steps = self.n_steps if n_updates >= self.delay else 1
        if n_steps != buffer.n_steps:
            self._log(NStepEvent(self.model.num_timesteps, n_updates, n_steps))
        buffer.n_steps = n_steps
        if self.entropy == "every_step":
            buffer.step_bonus = _StepBonus(buffer, self.model, self._training)
        self.logger.record("replay/n_steps", n_steps)


class _StepBonus:
    """The entropy bonus of observations that an n-step return passes, as long as a training goes on."""

    def __init__(self, buffer: DynamicNStepReplayBuffer, model: Any, training: Training | None) -> None:
        self.buffer, self.model, self.training = buffer, model, training

    def __call__(self, observations: th.Tensor) -> th.Tensor:
        if self.training is None or self.training.is_over:
            # The training was interrupted, and the buffer is in another one
            self.buffer.step_bonus = None
            return th.zeros(len(observations), 1, device=observations.device)
        return entropy_bonus(self.model, observations)


def entropy_bonus(model: Any, observations: th.Tensor) -> th.Tensor:
    """
    Entropy bonus of a soft target.

    :param model: SAC, TQC or CrossQ.
    :param observations: ``[m, *observation]``.
    :return: -alpha log pi of a fresh action of the current policy, ``[m, 1]``, with the alpha of the update in progress.
    """
    with th.no_grad():
        if hasattr(model.actor, "set_bn_training_mode"):
            # CrossQ's targets neither use nor change batch statistics; it sets the mode again before its own forwards
            model.actor.set_bn_training_mode(False)
        _, log_prob = model.actor.action_log_prob(observations)
        alpha = model.ent_coef_tensor if model.log_ent_coef is None else model.log_ent_coef.exp()
        return -alpha * log_prob.reshape(-1, 1)


class DynamicReplayCapacity(_ReplayCallback[CapacityEvent]):
    """
    Forget the oldest transitions while the policy acts too differently from them (RLx2, "dynamic-capacity buffer"). The paper
    and its code (github.com/tyq1024/RLx2) measure and forget differently; both are here.

    The distance is a mean over the ``n_oldest`` oldest live transitions (i), with actions scaled to [-1, 1] so that a
    threshold means the same in every environment, and pi the policy without noise:

    * ``rule="paper"``: ||pi(s_i) - a_i||_2 with the action a_i that was taken (Eq. 6). Rows are popped, oldest first, until
      the distance of what is then oldest is at most ``threshold``, or one more row would leave fewer than ``min_size``. One
      row is ``n_envs`` transitions, so with one environment this is popping one by one.
    * ``rule="code"``: half the mean over the action's components of (pi(s_i) - m_i)^2, where m_i is what the policy would have
      done without noise when it took a_i, or a_i itself during warm-up. If that exceeds ``threshold`` and more than
      ``min_size`` are live, ``drop_fraction`` of the live rows (rounded down) is dropped once. What is left may be smaller
      than ``min_size`` by that fraction, as in RLx2's code.

    The buffer's arrays stay as large as they are; only what may be sampled changes, and each step adds to it again, up to
    ``max_size``. The distance is measured before the transition of that step is stored.

    Logs ``replay/capacity`` (live transitions) and, once measured, ``replay/policy_distance`` (before anything is dropped).

    :param rule: ``"code"`` or ``"paper"``.
    :param threshold: Largest distance that is tolerated, positive. RLx2's 0.2 belongs to the code's distance.
    :param every: Environment steps (of all environments together) between two measurements, at least 1. The paper measures
        at every step.
    :param n_oldest: Number of transitions to measure, at least 1; all if fewer are live. RLx2: 8 batches of 256.
    :param drop_fraction: Fraction of the live rows that rule ``"code"`` drops, in (0, 1). Rule ``"paper"`` does not use it.
    :param min_size: Number of transitions that are kept, at least 1. RLx2: 100_000 for TD3, 200_000 for SAC.
    :param max_size: Number of transitions that are live at most, None for the model's ``buffer_size``.
    :param verbose: 1 to print when something is dropped.
    :raises ValueError: If an argument is out of its range; when training starts, if the model or its buffer is unsuitable.
    """

    def __init__(
        self,
        rule: str = "code",
        threshold: float = 0.2,
        every: int = 10_000,
        n_oldest: int = 2048,
        drop_fraction: float = 0.1,
        min_size: int = 100_000,
        max_size: int | None = None,
        verbose: int = 0,
    ) -> None:
        super().__init__(verbose)
        self.rule = require_choice("rule", rule, RULES)
        self.threshold = require_positive("threshold", threshold)
        self.clock = Clock(every, unit="timesteps")
        self.n_oldest = require_integer("n_oldest", n_oldest, low=1)
        self.drop_fraction = require_positive("drop_fraction", drop_fraction, below=1)
        self.min_size = require_integer("min_size", min_size, low=1)
        self.max_size = None if max_size is None else require_integer("max_size", max_size, low=1)
        if self.max_size is not None and self.min_size > self.max_size:
            raise ValueError(f"`min_size`={self.min_size} must not be larger than `max_size`={self.max_size}")

    def _on_training_start(self) -> None:
        super()._on_training_start()
        buffer, model = self._buffer, self._algorithm
        if not isinstance(model.action_space, spaces.Box):
            raise ValueError(
                f"DynamicReplayCapacity needs continuous actions: {type(model).__name__} acts in {model.action_space}, where "
                "two actions are equal or not, but have no distance"
            )
        capacity, n_envs = buffer.buffer_size * buffer.n_envs, buffer.n_envs
        max_size = capacity if self.max_size is None else self.max_size
        # Whole rows: a buffer_size that n_envs does not divide holds a little less than was asked for
        if not 1 <= max_size // n_envs <= buffer.buffer_size:
            raise ValueError(
                f"`max_size`={max_size} must be from {n_envs} (one transition of each environment) to the {capacity} "
                "transitions that the replay buffer holds: lower it, or raise the model's `buffer_size`"
            )
        if self.min_size // n_envs > max_size // n_envs:
            raise ValueError(
                f"`min_size`={self.min_size} must not be larger than the {capacity} transitions that the replay buffer holds: "
                "lower it, or raise the model's `buffer_size`"
            )
        buffer.max_window = max_size // n_envs

    def _on_step(self) -> bool:
        super()._on_step()
        buffer = self._buffer
        steps_before = self.num_timesteps - buffer.n_envs
        # A function of the step counter alone, so that a resumed run measures when the original would have
        if buffer.window > 0 and self.clock.ticks(self.num_timesteps) > self.clock.ticks(steps_before):
            self._measure_and_drop(buffer)
        if self.rule == "code":
            mean_actions = self._mean_actions(warm_up=steps_before < self.locals["learning_starts"])
            buffer.set_next_mean_actions(mean_actions, self.locals["buffer_actions"])
        self.logger.record("replay/capacity", buffer.window * buffer.n_envs)
        return True

    def _on_training_end(self) -> None:
        super()._on_training_end()
        # A step on which some callback ended the training was announced, but is never stored
        self._buffer.set_next_mean_actions(None)

    def _mean_actions(self, *, warm_up: bool) -> np.ndarray:
        """
        What the policy would have done without noise.

        :param warm_up: Whether ``learning_starts`` had not been reached when the actions were chosen.
        :return: Actions without noise for the observations from which the environments were just stepped, scaled to [-1, 1],
            ``[n_envs, action_dim]``; what was done if it did not come from the policy.
        """
        model = self._algorithm
        if warm_up and not (model.use_sde and model.use_sde_at_warmup):
            return self.locals["buffer_actions"]
        assert model._last_obs is not None, "the algorithm has just acted on it"
        observations, _ = model.policy.obs_to_tensor(model._last_obs)
        assert isinstance(observations, th.Tensor), "the buffer refuses Dict observations"
        return self._act(observations).cpu().numpy()

    def _act(self, observations: th.Tensor) -> th.Tensor:
        """The policy's actions without noise, scaled to [-1, 1]."""
        with th.no_grad():
            return self._algorithm.policy._predict(observations, deterministic=True)

    def _distances(self, n_transitions: int, skip_rows: int = 0) -> np.ndarray:
        """The rule's distance of each of the oldest transitions, ``[n]``, float64."""
        oldest = self._buffer.oldest(n_transitions, skip_rows, env=self._algorithm._vec_normalize_env)
        policy = self._act(oldest.observations)
        if self.rule == "paper":
            distances = th.linalg.vector_norm(policy - oldest.actions, dim=1)
        else:
            # Data from before this callback, whose mean actions nobody stored, count with the actions taken
            behaviour = oldest.actions if oldest.mean_actions is None else oldest.mean_actions
            distances = (policy - behaviour).square().mean(dim=1) / 2
        return distances.double().cpu().numpy()

    def _measure_and_drop(self, buffer: DynamicNStepReplayBuffer) -> None:
        distance = float(self._distances(self.n_oldest).mean())
        self.logger.record("replay/policy_distance", distance)
        if not distance > self.threshold:  # nor if a diverged policy makes it NaN
            return
        if self.rule == "paper":
            n_rows = self._rows_to_pop(buffer)
        elif buffer.window * buffer.n_envs > self.min_size:
            n_rows = int(self.drop_fraction * buffer.window)
        else:
            n_rows = 0
        buffer.drop_oldest(n_rows)
        if n_rows > 0:
            n_dropped, capacity = n_rows * buffer.n_envs, buffer.window * buffer.n_envs
            self._log(CapacityEvent(self.num_timesteps, distance, n_dropped, capacity))

    def _rows_to_pop(self, buffer: DynamicNStepReplayBuffer) -> int:
        """
        How many of the oldest rows are to be dropped.

        :return: The fewest rows, at least one if ``min_size`` allows it, after which the mean distance of the transitions
            that are then oldest is at most the threshold; if there is no such number, as many as leave ``min_size``.
        """
        most = max(buffer.window - -(-self.min_size // buffer.n_envs), 0)
        # Means over all windows of n_oldest transitions, a stretch of windows at a time: one policy forward per stretch
        stretch = max(self.n_oldest // buffer.n_envs, 1)
        for first in range(1, most + 1, stretch):
            starts = np.arange(min(stretch, most + 1 - first)) * buffer.n_envs
            distances = self._distances(int(starts[-1]) + self.n_oldest, skip_rows=first)
            sums = np.concatenate([[0.0], np.cumsum(distances)])
            stops = np.minimum(starts + self.n_oldest, len(distances))
            near_enough = (sums[stops] - sums[starts]) / (stops - starts) <= self.threshold
            if near_enough.any():
                return first + int(near_enough.argmax())
        return most
