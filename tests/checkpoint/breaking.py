"""Ways to break a training off in this process."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from stable_baselines3.common.callbacks import BaseCallback

from sb3_sparse import RunCheckpoint
from tests.checkpoint.subjects import Subject, everything


class Crash(RuntimeError):
    """Whatever ends a training."""


class CrashAt(BaseCallback):
    """Raise at the first step from one on; None: never."""

    def __init__(self, step: int | None) -> None:
        super().__init__()
        # A function: no data, so that nothing of it goes on
        self._is_due = lambda timesteps: step is not None and timesteps >= step

    def _on_step(self) -> bool:
        if self._is_due(self.num_timesteps):
            raise Crash
        return True


def let_go(callbacks: list[BaseCallback]) -> None:
    """A process that ends gives up its lock, and handles signals as before."""
    for callback in callbacks:
        if isinstance(callback, RunCheckpoint):
            callback._stop_watching()


class Broken(Subject):
    """A subject that crashes."""


def run_with_crashes(subject: Subject, folder: Path, crashes: list[int]) -> dict[str, str]:
    """
    :param subject: A training.
    :param folder: Its folder.
    :param crashes: Steps at which it crashes, one after the other.
    :return: The hash of everything that it ends with.
    """
    folder.mkdir(parents=True, exist_ok=True)
    kept: list[Any] = []
    for step in crashes:
        extra = CrashAt(step)
        made: list[BaseCallback] = []
        original = subject.callbacks
        try:
            object.__setattr__(subject, "callbacks", lambda *a, o=original, m=made: m.extend(o(*a)) or list(m))
            subject.train(folder, [extra])
        except Crash:
            let_go(made)
        else:
            raise AssertionError("it was to crash")
        finally:
            object.__delattr__(subject, "callbacks")
        kept.append(made)
    model, callbacks = subject.train(folder, [CrashAt(None)])
    result = everything(model, callbacks, folder)
    model.env.close()
    return result
