"""Trainings for tests: real ones that take a second, and made up ones that take none."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from concurrent.futures import Future
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

from sb3_sparse.runs.result import COMPLETE, Evaluation, RunResult
from sb3_sparse.runs.spec import RunSpec

SECTION: dict[str, Any] = {
    "policy": "sb3_sparse.SparseSACPolicy",
    "n_timesteps": 120,
    "learning_starts": 60,
    "batch_size": 16,
    "policy_kwargs": {"sparsity": 0.8, "net_arch": [16, 16]},
}
COSTS = {
    **{"flops": 10.0, "bytes": 20.0, "parameters": 30, "sparsity": 0.5, "bits": 32, "papers_ratio": 2.0},
    **{"dense_flops": 20.0, "dense_bytes": 40.0, "dense_parameters": 60},
}


def make_spec(seed: int = 0, *, checkpoints: tuple[int, ...] = (), episodes: int = 2, **changes: Any) -> RunSpec:
    """SAC on Pendulum-v1, trained within a second."""
    return RunSpec("sac", "Pendulum-v1", {**SECTION, **changes}, seed, episodes=episodes, checkpoints=checkpoints)


def make_result(spec: RunSpec, value: float = 1.0, state: str = COMPLETE) -> RunResult:
    """A result without a training: every episode has the same return."""
    if state != COMPLETE:
        return RunResult(spec, state, reason=f"{state}: made up", traceback="Traceback: made up")
    steps = (*spec.checkpoints, spec.n_timesteps)
    evaluations = tuple(Evaluation(step, (value,) * spec.episodes, (10,) * spec.episodes, dict(COSTS)) for step in steps)
    return RunResult(spec, state, evaluations, {**COSTS, "latency": 50.0}, seconds=1.0)


class MadeUp:
    """An engine whose trainings take no time; ``make`` may raise, which is a process that vanishes."""

    def __init__(self, make: Callable[[RunSpec], RunResult], size: int = 2) -> None:
        self.make, self.size = make, size
        self.submitted: list[RunSpec] = []
        self.stopped = 0
        self._taken = 0

    @property
    def has_room(self) -> bool:
        """Everything that was submitted is done at the next look."""
        if self._taken < self.size:
            return True
        self._taken = 0
        return False

    def submit(self, spec: RunSpec, folder: Path) -> Future[RunResult]:
        self.submitted.append(spec)
        self._taken += 1
        future: Future[RunResult] = Future()
        try:
            future.set_result(self.make(spec))
        except Exception as error:
            future.set_exception(error)
        return future

    def vanished(self, error: BaseException) -> bool:
        return isinstance(error, BrokenProcessPool)

    def stop(self) -> None:
        self.stopped += 1


def nap(spec: RunSpec, folder: Path) -> RunResult:
    """In a worker: a training that is a nap of ``gamma`` seconds; with ``tau`` it kills its process the first time."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "begun").open("a") as stream:
        stream.write(f"{os.getpid()}\n")
    if spec.section.get("tau") and len((folder / "begun").read_text().split()) <= spec.section["tau"]:
        os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(spec.section.get("gamma", 0.0))
    return make_result(spec, float(spec.seed))
