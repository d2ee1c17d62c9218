"""
The driver: the one process that hands out trainings and writes what comes of them. Workers return results and write nothing
but files of their own training.
"""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from sb3_sparse.runs.result import FAILED, RunResult
from sb3_sparse.runs.spec import RunSpec
from sb3_sparse.runs.store import Store

#: How often a training may take its process with it: what runs out of memory shall not do so for ever.
MAX_ATTEMPTS = 3
#: Seconds between two looks at what happens elsewhere.
PAUSE = 0.5
#: Seconds between two attempts at writing a result, the last one repeated, and how long in all.
_PAUSES, _PATIENCE = (1, 5, 20, 60), 600


class Engine(Protocol):
    """What trains: processes of this machine, or a cluster."""

    @property
    def size(self) -> int:
        """How many trainings there may be at a time, as far as is known."""

    @property
    def has_room(self) -> bool:
        """Whether another training can be begun now."""

    def submit(self, spec: RunSpec, folder: Path) -> Future[RunResult]:
        """Begin a training."""

    def vanished(self, error: BaseException) -> bool:
        """Whether an exception says that a process is gone, and nothing about its training."""

    def stop(self) -> None:
        """End everything."""


class Plan(Protocol):
    """Which trainings there are to do; it may depend on what came of others."""

    def next(self) -> RunSpec | None:
        """The next one; None if there is none at the moment."""

    def done(self, spec: RunSpec, result: RunResult) -> None:
        """Told what came of one that :meth:`next` gave."""

    @property
    def is_over(self) -> bool:
        """Whether nothing more will come, once everything that it gave is done."""


class Listed:
    """
    A plan that is known from the beginning.

    :param specs: The trainings.
    """

    def __init__(self, specs: Iterable[RunSpec]) -> None:
        self.waiting = list(dict((spec.key, spec) for spec in specs).values())
        self.results: dict[str, RunResult] = {}

    def next(self) -> RunSpec | None:
        """
        Give the next training.

        :return: The next one.
        """
        return self.waiting.pop(0) if self.waiting else None

    def done(self, spec: RunSpec, result: RunResult) -> None:
        """
        Note what came of a training.

        :param spec: One of them.
        :param result: What came of it.
        """
        self.results[spec.key] = result

    @property
    def is_over(self) -> bool:
        """Whether all have been given."""
        return not self.waiting


@dataclass(frozen=True)
class Running:
    """
    A training that is being done.

    :param spec: The training.
    :param folder: Of its files.
    :param since: When it began, by :func:`time.monotonic`.
    """

    spec: RunSpec
    folder: Path
    since: float


def patiently(write: Callable[[], object], errors: tuple[type[BaseException], ...], what: str) -> None:
    """
    Write what took long to find out: a disk that is full or a server that is away for a while does not make it undone.

    :param write: Writes it; harmless if done twice.
    :param errors: What may pass.
    :param what: What cannot be written, for the message.
    :raises Exception: One of the errors, after ten minutes of them.
    """
    waited = 0
    for attempt in range(10**9):
        try:
            write()
            return
        except errors as error:
            pause = _PAUSES[min(attempt, len(_PAUSES) - 1)]
            if waited + pause > _PATIENCE:
                raise
            print(f"{what} cannot be written, next attempt in {pause} s: {error}", flush=True)
        time.sleep(pause)
        waited += pause


class Driver:
    """
    Trains what a store has not got yet. Use it in a ``with`` block, with whose end all workers end; there is one driver for a
    store at a time.

    :param store: Where results lie.
    :param engine: What trains.
    :param watch: Called about twice a second with this driver.
    :param retry: Whether trainings that have failed are done again.
    """

    def __init__(
        self, store: Store, engine: Engine, *, watch: Callable[[Driver], None] = lambda _: None, retry: bool = False
    ) -> None:
        self.store, self.engine, self.watch, self.retry = store, engine, watch, retry
        self._running: dict[Future[RunResult], Running] = {}
        self._attempts: dict[str, int] = {}
        #: Keys of what failed since this driver is there: it is not tried again, whatever ``retry`` says.
        self._failed: set[str] = set()
        #: Trainings that this driver has finished.
        self.trained: list[RunResult] = []

    def __enter__(self) -> Driver:
        self._lock = self.store.locked()
        self._lock.__enter__()
        return self

    def __exit__(self, *_: object) -> None:
        try:
            self.engine.stop()
        finally:
            self._running.clear()
            self._lock.__exit__(None, None, None)

    @property
    def running(self) -> list[Running]:
        """What is being trained."""
        return list(self._running.values())

    def _known(self, spec: RunSpec) -> RunResult | None:
        result = self.store.get(spec)
        if result is not None and result.state == FAILED and self.retry and spec.key not in self._failed:
            self.store.discard(result)
            return None
        return result

    def run(self, specs: Sequence[RunSpec]) -> list[RunResult]:
        """
        Train what is missing of a list.

        :param specs: Trainings.
        :return: Their results, in this order; what the store has is not trained again.
        :raises ChildProcessError: See :meth:`work`.
        """
        plan = Listed(specs)
        self.work(plan)
        return [plan.results[spec.key] for spec in specs]

    def work(self, plan: Plan) -> None:
        """
        Do everything that a plan gives.

        :param plan: The plan.
        :raises ChildProcessError: If workers end before they do anything.
        :raises OSError: If results cannot be written, for ten minutes.
        """
        again: list[RunSpec] = []
        # The same training may be wanted twice at a time
        followers: dict[str, list[RunSpec]] = {}

        def finish(spec: RunSpec, result: RunResult) -> None:
            for each in followers.pop(spec.key, [spec]):
                plan.done(each, result)

        while True:
            while self.engine.has_room:
                if again:
                    self._begin(again.pop(0))
                    continue
                spec = plan.next()
                if spec is None:
                    break
                if spec.key in followers:
                    followers[spec.key].append(spec)
                elif (result := self._known(spec)) is not None:
                    finish(spec, result)
                else:
                    followers[spec.key] = [spec]
                    self._begin(spec)
            self.watch(self)
            if not self._running and not again and plan.is_over:
                return
            if self._running:
                done, _ = wait(self._running, timeout=PAUSE, return_when=FIRST_COMPLETED)
            else:
                time.sleep(PAUSE)
                done = set()
            for future in done:
                spec = self._running.pop(future).spec
                finished = self._end(spec, future)
                if finished is None:
                    again.append(spec)
                else:
                    finish(spec, finished)

    def _begin(self, spec: RunSpec) -> None:
        folder = self.store.path(spec)
        self._running[self.engine.submit(spec, folder)] = Running(spec, folder, time.monotonic())

    def _end(self, spec: RunSpec, future: Future[RunResult]) -> RunResult | None:
        """The result, which is in the store; None if the training must be begun again."""
        error = future.exception()
        if error is None:
            result = future.result()
        elif self.engine.vanished(error):
            self._attempts[spec.key] = self._attempts.get(spec.key, 0) + 1
            if self._attempts[spec.key] < MAX_ATTEMPTS:
                return None
            result = RunResult(spec, FAILED, reason=f"its process vanished {MAX_ATTEMPTS} times", traceback=repr(error))
        else:
            raise error
        if result.state == FAILED:
            self._failed.add(spec.key)
        patiently(lambda: self.store.put(result), (OSError,), str(self.store.path(spec)))
        self.trained.append(result)
        return result


def _interrupt(*_: object) -> None:
    raise KeyboardInterrupt


@contextmanager
def interruptible() -> Iterator[None]:
    """Inside, SIGTERM and SIGHUP (a terminal that is closed) are as Ctrl-C. What ``nohup`` ignores stays ignored."""
    before = {}
    if threading.current_thread() is threading.main_thread():
        for name in ("SIGTERM", "SIGHUP"):
            number = getattr(signal, name, None)
            if number is not None and signal.getsignal(number) is not signal.SIG_IGN:
                before[number] = signal.signal(number, _interrupt)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
