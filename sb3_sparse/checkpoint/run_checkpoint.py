""":class:`RunCheckpoint`: write down, every now and then, everything that a training needs to go on exactly."""

from __future__ import annotations

import inspect
import json
import signal
import time
import warnings
from pathlib import Path
from typing import Any

from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.callbacks import BaseCallback, CallbackList
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv
from torch.utils.hooks import RemovableHandle

from sb3_sparse.checkpoint.callback_state import environments_of, walk
from sb3_sparse.checkpoint.environments import layers_of
from sb3_sparse.checkpoint.learning import while_learning
from sb3_sparse.checkpoint.signals import SignalWatch, Stopped
from sb3_sparse.checkpoint.snapshot import Recorder, Resumption, about
from sb3_sparse.checkpoint.store import FOLDER_NAME, Store
from sb3_sparse.checkpoint.vec_env import leave_signals, wrappers_of
from sb3_sparse.utils.checks import require_integer, require_positive


class RunCheckpoint(BaseCallback):
    """
    Write checkpoints from which a training goes on as if it had never stopped, bit for bit (same machine, same engine):
    weights, masks, moments, buffers, environments, random streams, callbacks, schedules, logs::

        model.learn(1_000_000, callback=[RigL(...), RunCheckpoint(every=10_000, folder="runs/1")])
        ...
        model = sb3_sparse.resume("runs/1", env)      # in another process, after whatever happened

    A checkpoint is written between two steps, when nothing is half done; with on-policy algorithms in the middle of a rollout
    too. It is written aside and published by one rename, and costs what was collected since the last one, not what the replay
    buffer holds. SIGINT, SIGTERM and SIGHUP are answered by a checkpoint, then the process ends with exit code 75.

    One that cannot be written (the disk is full) is said, the training goes on, and the last one stays.

    :param every: Environment steps between two checkpoints, None for no such rhythm.
    :param minutes: Minutes between two checkpoints, None for no such rhythm. At least one of the two is needed.
    :param keep: How many checkpoints to keep, at least 1. The previous one is what a damaged one falls back on.
    :param folder: The run's folder; checkpoints go into its ``checkpoints``. None: where rl-zoo3 trains, or the folder in
        which the environment's ``Monitor`` writes.
    :param allow_pickle: Whether what is no data (a learning rate that is a lambda, a policy class of the main script) may be
        pickled, which is said. False: such a training is refused when it starts.
    :param signals: Whether signals are answered.
    :param verbose: 1 says what is written.
    :raises ValueError: For arguments out of range; when training starts, if the folder holds another training's checkpoints,
        is in use or cannot be written to, or if something could never be written.
    """

    def __init__(
        self,
        every: int | None = None,
        *,
        minutes: float | None = None,
        keep: int = 2,
        folder: str | Path | None = None,
        allow_pickle: bool = True,
        signals: bool = True,
        verbose: int = 0,
    ) -> None:
        super().__init__(verbose)
        if every is None and minutes is None:
            raise ValueError("RunCheckpoint needs a rhythm: give `every` (environment steps), `minutes`, or both")
        self.every = None if every is None else require_integer("every", every, low=1)
        self.minutes = None if minutes is None else require_positive("minutes", minutes)
        self.keep = require_integer("keep", keep, low=1)
        self.folder = folder
        self.allow_pickle = allow_pickle
        self.signals = signals
        #: Seconds that each checkpoint of this process took.
        self.seconds: list[float] = []
        self._resumption: Resumption | None = None
        self._run: str | None = None
        self._store: Store | None = None
        self._recorder: Recorder | None = None
        self._watch = SignalWatch("a checkpoint is written at the next step, then the training ends")
        self._hook: RemovableHandle | None = None
        #: Step and time of the last checkpoint, or of the last attempt.
        self._last_step = 0
        self._last_time = 0.0
        self._written_step: int | None = None

    # --- Beginning and end ---

    def _on_training_start(self) -> None:
        folder = Path(self.folder) if self.folder is not None else _monitor_folder(self.training_env)
        if folder is None:
            raise ValueError("RunCheckpoint does not know where to write: give it a `folder`")
        root = self.locals["callback"]
        self._stop_watching()
        store = self._resumption.store if self._resumption is not None else Store(folder / FOLDER_NAME)
        try:
            self._run = store.open(self._own(), store.run() if self._resumption is not None else self._run)
        except OSError as error:
            raise ValueError(f"RunCheckpoint cannot write to `folder` {folder}: {error}") from error
        self._store = store
        store.still_used = while_learning(self.model)
        try:
            arguments = _learn_arguments(self.model, self.locals)
            self._recorder = Recorder(self.model, root, self, store, arguments, allow_pickle=self.allow_pickle)
            for line in self._recorder.check():
                warnings.warn(f"RunCheckpoint: {line}", stacklevel=2)
        except BaseException:
            store.close()
            raise
        self._recorder = None
        if self.signals:
            environments = [self.training_env, *(env for _, one in walk(root) for env in environments_of(one).values())]
            self._watch.start(while_learning(self.model), [process for env in environments for process in leave_signals(env)])

    def _on_training_end(self) -> None:
        self._stop_watching()

    def _stop_watching(self) -> None:
        self._watch.stop()
        self._remove_hook()
        if self._store is not None:
            self._store.close()
        self._recorder = None

    def _begin(self) -> None:
        """The first moment at which everything has prepared itself."""
        assert self._store is not None
        model, resumption = self.model, self._resumption
        arguments = _learn_arguments(model, self.locals)
        root = self.locals["callback"]
        self._recorder = Recorder(model, root, self, self._store, arguments, allow_pickle=self.allow_pickle)
        self._written_step = None
        if resumption is not None:
            self._recorder.learn_arguments = resumption.learn_arguments
            resumption.bring_back(self._recorder)
            self.n_calls = resumption.n_calls
            self._written_step, self._resumption = resumption.step, None
        self._last_step, self._last_time = model.num_timesteps, time.monotonic()

    def _on_rollout_start(self) -> None:
        try:
            if self._recorder is None:
                self._begin()
            if self._is_due():
                self._write()
        except BaseException:
            self._stop_watching()
            raise

    def _on_rollout_end(self) -> None:
        if self._recorder is not None:
            self._recorder.n_rollouts += 1

    # --- When ---

    def _is_due(self) -> bool:
        if self.signals and self._watch.arrived is not None:
            return True
        steps_over = self.every is not None and self.model.num_timesteps // self.every > self._last_step // self.every
        return steps_over or (self.minutes is not None and time.monotonic() - self._last_time >= 60 * self.minutes)

    def _on_step(self) -> bool:
        if self._recorder is None:
            raise ValueError(
                "RunCheckpoint is not told when a rollout begins: give it to learn() itself, not to a callback that calls it "
                "now and then"
            )
        if self._hook is None and self._is_due() and self._may_write_in_rollout():
            # This step is not stored yet. When the policy is asked for the next action, it is
            self._hook = self.model.policy.register_forward_pre_hook(lambda *_: self._write_in_rollout())
        return True

    def _may_write_in_rollout(self) -> bool:
        model: BaseAlgorithm = self.model
        if not isinstance(model, OnPolicyAlgorithm) or (model.use_sde and model.sde_sample_freq > 0):
            return False
        assert self._recorder is not None
        # Others that care would be told of the rollout's begin once more
        return all(
            type(other)._on_rollout_start in (BaseCallback._on_rollout_start, CallbackList._on_rollout_start)
            for other in self._recorder.callbacks.callbacks.values()
        )

    def _write_in_rollout(self) -> None:
        self._remove_hook()
        buffer = self.model.rollout_buffer  # type: ignore[attr-defined]
        if self._is_due() and not buffer.full:
            try:
                self._write()
            except BaseException:
                self._stop_watching()
                raise

    def _remove_hook(self) -> None:
        if self._hook is not None:
            self._hook.remove()
            self._hook = None

    # --- Writing ---

    def _write(self) -> None:
        assert self._recorder is not None
        assert self._store is not None
        assert self._run is not None
        step, start = self.model.num_timesteps, time.perf_counter()
        error: OSError | None = None
        if self._written_step != step:
            try:
                content = self._recorder.take(self._own(), self.n_calls)
                self._store.publish(self._run, step, content, about(), self.keep)
                self._written_step = step
            except OSError as failure:
                error = failure
                last = "none" if self._written_step is None else f"that of step {self._written_step}"
                warnings.warn(
                    f"RunCheckpoint: the checkpoint of step {step} could not be written: {failure}. The last one is {last}",
                    stacklevel=2,
                )
        self._last_step, self._last_time = step, time.monotonic()
        self.seconds.append(time.perf_counter() - start)
        if self.verbose > 0 and error is None:
            print(f"Checkpoint of step {step} written in {self.seconds[-1]:.2f} s")
        if self.signals and self._watch.arrived is not None:
            name = signal.Signals(self._watch.arrived).name
            self._stop_watching()
            if error is not None:
                raise SystemExit(f"stopped by {name}, and no checkpoint could be written: {error}") from error
            folder = self._store.folder.parent
            print(f"Stopped by {name} at step {step}; it goes on with sb3_sparse.resume or sb3-sparse train --resume {folder}")
            raise Stopped(name, step)

    def _own(self) -> dict[str, Any]:
        return {"every": self.every, "minutes": self.minutes, "keep": self.keep, "allow_pickle": self.allow_pickle} | {
            "signals": self.signals,
            "verbose": self.verbose,
        }

    # --- Going on ---

    def go_on_from(self, resumption: Resumption) -> None:
        """
        Let the next training go on from a checkpoint; :func:`sb3_sparse.resume` does it.

        :param resumption: The checkpoint.
        """
        self._resumption = resumption


def _monitor_folder(env: VecEnv) -> Path | None:
    """The folder in which the environment's Monitor writes."""
    _, base = wrappers_of(env)
    if isinstance(base, DummyVecEnv):
        for layer in layers_of(base.envs[0]):
            if isinstance(layer, Monitor) and layer.results_writer is not None:
                return Path(layer.results_writer.file_handler.name).parent
    return None


def _learn_arguments(model: BaseAlgorithm, given: dict[str, Any]) -> dict[str, Any]:
    """Arguments of ``learn()`` that are data, as they are when the training starts."""
    names = inspect.signature(type(model).learn).parameters
    found = {}
    for name in names:
        if name in given and name not in ("self", "callback", "total_timesteps", "reset_num_timesteps"):
            try:
                json.dumps(given[name])
            except TypeError:
                continue
            found[name] = given[name]
    return found
