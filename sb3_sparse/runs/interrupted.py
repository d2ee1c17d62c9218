"""
Trainings that were interrupted (a machine went down, a worker was killed) go on from their last run checkpoint, bit for bit
where :class:`~sb3_sparse.RunCheckpoint` can. Checkpoints are there while a training goes on, and gone when it is over.
"""

from __future__ import annotations

import shutil
from pathlib import Path

from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.vec_env import VecEnv

from sb3_sparse.checkpoint.resuming import NoCheckpoint, find_store, open_checkpoint
from sb3_sparse.checkpoint.run_checkpoint import RunCheckpoint
from sb3_sparse.checkpoint.snapshot import Resumption

#: Minutes between two checkpoints. Shorter trainings have none.
MINUTES = 5.0
#: Where they are, in the folder of a training.
FOLDER = "unfinished"


class Interruptible(RunCheckpoint):
    """
    Writes checkpoints if the training can be written down; if not, it is trained all the same.

    :param folder: Of the training.
    """

    def __init__(self, folder: Path) -> None:
        super().__init__(minutes=MINUTES, folder=folder / FOLDER, signals=False)
        self._is_off = False

    def _on_training_start(self) -> None:
        try:
            super()._on_training_start()
        except ValueError as error:
            self._is_off = True
            print(f"If this training is interrupted, it begins again: {error}")

    def _on_rollout_start(self) -> None:
        if not self._is_off:
            super()._on_rollout_start()

    def _on_rollout_end(self) -> None:
        if not self._is_off:
            super()._on_rollout_end()

    def _on_step(self) -> bool:
        return self._is_off or super()._on_step()


def forget(folder: Path) -> None:
    """
    Remove the checkpoints of a training.

    :param folder: Of the training.
    """
    shutil.rmtree(folder / FOLDER, ignore_errors=True)


def interrupted(folder: Path, env: VecEnv) -> tuple[BaseAlgorithm, Resumption] | None:
    """
    Look for a training that was interrupted.

    :param folder: Of the training.
    :param env: Its environment, made as it was.
    :return: The model and what brings back the rest; None if it begins, or has to begin again, which is said.
    """
    try:
        store = find_store(folder / FOLDER)
    except NoCheckpoint:
        return None
    try:
        store.lock()
        model, resumption = open_checkpoint(store, env, device=None, allow_pickle=True)
    except (ValueError, OSError) as error:
        store.close()
        print(f"It begins again: {error}")
        return None
    print(f"It was interrupted, and goes on from step {resumption.step:,}")
    return model, resumption
