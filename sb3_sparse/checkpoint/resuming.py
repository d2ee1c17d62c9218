""":func:`resume`: go on with a training from its last checkpoint, as if it had never stopped."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import gymnasium as gym
import torch as th
from stable_baselines3.common.base_class import BaseAlgorithm, maybe_make_env
from stable_baselines3.common.callbacks import BaseCallback, CallbackList
from stable_baselines3.common.logger import Logger
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from stable_baselines3.common.vec_env import VecEnv

from sb3_sparse.checkpoint.callback_state import walk
from sb3_sparse.checkpoint.run_checkpoint import RunCheckpoint
from sb3_sparse.checkpoint.snapshot import Resumption, about
from sb3_sparse.checkpoint.store import FOLDER_NAME, Refused, Store


class NoCheckpoint(FileNotFoundError):
    """A folder without a checkpoint: nothing was written yet, or it is no run's."""


def find_store(folder: str | Path) -> Store:
    """
    Find the checkpoints of a run.

    :param folder: A run's folder, or its ``checkpoints``.
    :return: Its checkpoints.
    :raises NoCheckpoint: If there are none.
    """
    folder = Path(folder)
    for candidate in (folder / FOLDER_NAME, folder):
        store = Store(candidate)
        if store.steps():
            return store
    raise NoCheckpoint(f"there is no checkpoint in {folder}: give the folder of a run that was trained with RunCheckpoint")


def open_checkpoint(
    store: Store, env: VecEnv, *, device: th.device | str | None, allow_pickle: bool
) -> tuple[BaseAlgorithm, Resumption]:
    """
    Read the newest checkpoint that is as it was written; those that are not are named.

    :param store: The checkpoints.
    :param env: The environment.
    :param device: Where networks shall be; None: where they were.
    :param allow_pickle: See :func:`resume`.
    :return: The algorithm, and what brings back the rest when it trains.
    :raises ValueError: If every checkpoint is refused, or the environment is another.
    """
    refusals = []
    for _, found in store.candidates():
        if not isinstance(found, Refused):
            resumption = Resumption(store, found, allow_pickle=allow_pickle)
            try:
                model = resumption.make_model(env, device)
            except Refused as refusal:
                found = refusal
            else:
                _compare_with_here(store.manifest(resumption.step))
                return model, resumption
        refusals.append(str(found))
        warnings.warn(f"refused: {found}", stacklevel=3)
    raise ValueError("no checkpoint can be used: " + "; ".join(refusals))


def _compare_with_here(manifest: Mapping[str, Any]) -> None:
    """Say what is not as it was, where the checkpoint was written."""
    here = about()
    for part in ("versions", "machine"):
        for name, was in manifest.get(part, {}).items():
            now = here[part].get(name)
            if now != was:
                warnings.warn(
                    f"this run was trained with {name} {was}, here it is {now}: it goes on, but perhaps not to the last bit",
                    stacklevel=4,
                )


class _LogInterval(int):
    """A log interval that began to count in an earlier process: ``iteration % interval`` is what it would be there."""

    n_before = 0

    def __rmod__(self, iteration: int) -> int:
        return (iteration + self.n_before) % int(self)


def go_on(model: BaseAlgorithm, resumption: Resumption, callback: BaseCallback | list[BaseCallback], **arguments: Any) -> None:
    """
    Let an algorithm go on learning.

    :param model: The algorithm that :func:`open_checkpoint` made.
    :param resumption: What brings back the rest.
    :param callback: The callbacks of the run, a :class:`RunCheckpoint` among them.
    :param arguments: Arguments of ``learn()`` that shall be other than they were.
    """
    arguments = {**resumption.learn_arguments, **arguments}
    if isinstance(model, OnPolicyAlgorithm) and arguments.get("log_interval") is not None:
        interval = _LogInterval(arguments["log_interval"])
        interval.n_before = resumption.n_rollouts
        arguments["log_interval"] = interval
    root = CallbackList(callback) if isinstance(callback, list) else callback
    (checkpoint,) = [one for _, one in walk(root) if isinstance(one, RunCheckpoint)]
    checkpoint.go_on_from(resumption)
    n_left = resumption.total_timesteps - model.num_timesteps
    model.learn(n_left, callback=callback, reset_num_timesteps=False, **arguments)


def resume(
    folder: str | Path,
    env: gym.Env | VecEnv | str,
    callback: BaseCallback | Sequence[BaseCallback] | None = None,
    *,
    device: th.device | str | None = None,
    logger: Logger | None = None,
    allow_pickle: bool = True,
) -> BaseAlgorithm:
    """
    Go on with a training that wrote checkpoints (:class:`~sb3_sparse.RunCheckpoint`), to its end::

        model = sb3_sparse.resume("runs/1", env)

    N steps are the same as k steps, a kill, and ``resume`` for the other N - k: every weight, mask, moment, transition,
    reward, evaluation and random number, to the bit, on the same machine with the same versions and engine; what differs is
    said.

    A checkpoint that is damaged is refused by name, and the one before is taken.

    :param folder: The run's folder.
    :param env: The environment, made as it was for the run: same kind, number and wrappers; or its id, if it was given by its
        id. Its state is brought back.
    :param callback: The callbacks of the run, made as they were; :class:`~sb3_sparse.RunCheckpoint` may be left out. None:
        they are made from what the checkpoint says of them, which works for all of this package's and for those of
        Stable-Baselines3 that have no environment of their own.
    :param device: Where networks shall be; None: where they were.
    :param logger: The logger, if the run had one that was not made by ``learn()``. Text files go on after what they held.
    :param allow_pickle: Whether the folder is trusted. False: nothing is unpickled, and only classes of known packages and of
        the environment's are looked up; a checkpoint that needs more is refused.
    :return: The algorithm at the end of the training.
    :raises FileNotFoundError: If the folder has no checkpoint.
    :raises ValueError: If no checkpoint can be used, the folder is in use, or environment or callbacks are not those of the
        run.
    """
    store = find_store(folder)
    store.lock()
    try:
        env = BaseAlgorithm._wrap_env(maybe_make_env(env, 0))
        model, resumption = open_checkpoint(store, env, device=device, allow_pickle=allow_pickle)
        if logger is not None:
            model.set_logger(logger)
        go_on(model, resumption, _callbacks(resumption, callback, store.folder.parent))
        return model
    finally:
        store.close()


def _callbacks(
    resumption: Resumption, given: BaseCallback | Sequence[BaseCallback] | None, folder: Path
) -> BaseCallback | list[BaseCallback]:
    """The callbacks of the run in their order, :class:`RunCheckpoint` where it was."""
    callback = given if isinstance(given, BaseCallback) or given is None else list(given)
    if callback is None:
        callback = resumption.make_callbacks()
    root = CallbackList(callback) if isinstance(callback, list) else callback
    if root is not None and any(isinstance(one, RunCheckpoint) for _, one in walk(root)):
        assert callback is not None
        return callback
    checkpoint = RunCheckpoint(folder=folder, **resumption.own)
    place = resumption.place
    if place is None:
        return checkpoint
    if not isinstance(callback, list):
        raise ValueError("`callback` must be the list of callbacks that the run had, RunCheckpoint in its place")
    return [*callback[:place], checkpoint, *callback[place:]]
