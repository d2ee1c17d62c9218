"""
Trainings in processes of this machine. Each worker is a pool of its own with one process in it: one that vanishes (SIGKILL,
out of memory) takes no other's training with it.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from multiprocessing import connection
from multiprocessing.process import BaseProcess
from pathlib import Path

from sb3_sparse.runs.result import RunResult
from sb3_sparse.runs.spec import RunSpec

#: Workers in a row that vanish before they have begun anything: something is wrong with all of them. Fewer than attempts at a
#: training, whose fault it is not.
_MAX_IDLE_DEATHS = 2


def _end_with(sentinel: int) -> None:
    """However the process ends that started this one, this one ends too."""
    connection.wait([sentinel])
    os._exit(1)


def _initialize(gym_packages: Sequence[str], log: Path) -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    assert isinstance(parent.sentinel, int)
    threading.Thread(target=_end_with, args=(parent.sentinel,), daemon=True).start()
    # Whoever started this process ends it: a terminal sends these to both
    for name in ("SIGINT", "SIGHUP"):
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.SIG_IGN)
    with log.open("ab") as stream:
        os.dup2(stream.fileno(), 1)
        os.dup2(stream.fileno(), 2)
    from sb3_sparse.runs.worker import prepare

    prepare(gym_packages)


def _execute(spec: RunSpec, folder: Path, *options: bool) -> RunResult:
    from sb3_sparse.runs.worker import execute

    return execute(spec, folder, *options)


class _Worker:
    """One process, started when there is something to do, and again when it has vanished."""

    def __init__(self, gym_packages: Sequence[str], log: Path) -> None:
        self.arguments = (gym_packages, log)
        self.pool: ProcessPoolExecutor | None = None
        self.process: BaseProcess | None = None
        #: Done when the process has begun.
        self.begun: Future[int] = Future()
        self.current: Future[RunResult] | None = None

    @property
    def is_free(self) -> bool:
        return self.current is None or self.current.done()

    def start(self) -> None:
        before = set(multiprocessing.active_children())
        context = multiprocessing.get_context("spawn")
        self.pool = ProcessPoolExecutor(1, context, initializer=_initialize, initargs=self.arguments)
        with _one_thread():
            self.begun = self.pool.submit(os.getpid)
        (self.process,) = set(multiprocessing.active_children()) - before

    def submit(self, spec: RunSpec, folder: Path, *options: bool) -> Future[RunResult]:
        """
        Begin a training.

        :raises BrokenProcessPool: If its process has vanished.
        """
        if self.pool is None:
            self.start()
        assert self.pool is not None
        self.current = self.pool.submit(_execute, spec, folder, *options)
        return self.current

    @property
    def has_vanished(self) -> bool:
        return self.process is not None and not self.process.is_alive()

    def stop(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.join()
        if self.pool is not None:
            self.pool.shutdown(wait=True, cancel_futures=True)
        self.pool, self.process, self.current = None, None, None


class LocalEngine:
    """
    Trains in processes of this machine.

    :param workers: Processes at a time, each of one thread unless ``OMP_NUM_THREADS`` says otherwise. They stay from the first
        training to :meth:`stop`, for starting one takes seconds.
    :param log: File for what workers print besides their trainings.
    :param gym_packages: Modules that register environments, which workers import.
    :param save_checkpoints: Whether the model of every evaluation is saved.
    """

    def __init__(self, workers: int, log: Path, gym_packages: Sequence[str] = (), *, save_checkpoints: bool = False) -> None:
        self.log = log
        self._options = (True,) if save_checkpoints else ()
        self._workers = [_Worker(gym_packages, log) for _ in range(workers)]
        self._idle_deaths = 0

    @property
    def size(self) -> int:
        """How many trainings there may be at a time."""
        return len(self._workers)

    @property
    def has_room(self) -> bool:
        """Whether there is a worker without a training."""
        return any(worker.is_free for worker in self._workers)

    def submit(self, spec: RunSpec, folder: Path) -> Future[RunResult]:
        """
        Begin a training; there must be room.

        :param spec: The training.
        :param folder: Of its files.
        :return: Its result, later; :meth:`vanished` tells what its exception means.
        :raises ChildProcessError: If processes end before they do anything; the message names their log.
        """
        worker = next(worker for worker in self._workers if worker.is_free)
        while True:
            if worker.has_vanished:
                has_begun = worker.begun.done() and worker.begun.exception() is None
                self._idle_deaths = 0 if has_begun else self._idle_deaths + 1
                worker.stop()
            if self._idle_deaths >= _MAX_IDLE_DEATHS:
                raise ChildProcessError(f"workers end before they do anything, see {self.log}")
            try:
                return worker.submit(spec, folder, *self._options)
            except BrokenProcessPool:
                # While it had nothing to do
                assert worker.process is not None
                worker.process.join()

    @staticmethod
    def vanished(error: BaseException) -> bool:
        """
        Tell what an exception means.

        :param error: What a future raises.
        :return: Whether the process of the training is gone, which says nothing about the training.
        """
        return isinstance(error, BrokenProcessPool)

    def pids(self) -> list[int]:
        """
        List the processes.

        :return: Numbers of the processes that are there.
        """
        there = [worker.process for worker in self._workers if worker.process is not None and worker.process.is_alive()]
        return [process.pid for process in there if process.pid is not None]

    def stop(self) -> None:
        """End all workers, in whatever they are doing. They are started again when there is something to do."""
        for worker in self._workers:
            worker.stop()


@contextmanager
def _one_thread() -> Iterator[None]:
    """A process that is started inside has one thread for its arithmetic, whatever it loads first."""
    before = os.environ.get("OMP_NUM_THREADS")
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    try:
        yield
    finally:
        if before is None:
            del os.environ["OMP_NUM_THREADS"]
