"""Signals that ask a training to stop: it is told, and stops at the next moment at which nothing is half done."""

from __future__ import annotations

import atexit
import os
import signal
import threading
from collections.abc import Callable, Sequence
from types import FrameType
from typing import Any

#: What a batch system, a spot machine, a terminal and a dropped connection send.
SIGNALS = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name))
#: Exit code of a training that was stopped by a signal and wrote a checkpoint: EX_TEMPFAIL of sysexits.h, "try again".
EXIT_CODE = 75


class Stopped(SystemExit):
    """
    A training was stopped by a signal, and its checkpoint is written. Not caught, it ends the process with exit code 75.

    :param name: Name of the signal.
    :param step: Environment step of the checkpoint.
    """

    def __init__(self, name: str, step: int) -> None:
        super().__init__(EXIT_CODE)
        self.name = name
        self.step = step

    def __str__(self) -> str:
        return f"stopped by {self.name}, checkpoint written at step {self.step}"


class SignalWatch:
    """
    Listens for signals between :meth:`start` and :meth:`stop`; only in the main thread, where Python handles them.

    :param how: What is said when one arrives: what the training will do.
    """

    def __init__(self, how: str) -> None:
        self.how = how
        self._arrived: list[int] = []
        self._is_running: Callable[[], bool] = lambda: False
        self._before: dict[int, Any] = {}
        self._processes: list[Any] = []

    @property
    def arrived(self) -> int | None:
        """The first signal that arrived."""
        return self._arrived[0] if self._arrived else None

    def start(self, is_running: Callable[[], bool], processes: Sequence[Any] = ()) -> None:
        """
        Begin to watch for signals.

        :param is_running: Whether the training is going on; when it is not, a signal is none of its business.
        :param processes: Processes of the environments, which leave signals to this one.
        """
        if threading.current_thread() is not threading.main_thread():
            return
        self._arrived, self._is_running = [], is_running
        for number in SIGNALS:
            # Who has a signal ignored (nohup) wants no checkpoint either
            if (before := _handler(number)) is not signal.SIG_IGN:
                self._before[number] = before
                signal.signal(number, self._handle)
        if processes and not self._processes:
            atexit.register(self._end_processes)
        self._processes = list(processes)

    def stop(self) -> None:
        """Handle signals as before."""
        for number in self._before:
            if signal.getsignal(number) == self._handle:
                signal.signal(number, _handler(number, without=self))
        self._before = {}

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if not self._is_running():
            # An exception has left the training, and nobody has said so
            signal.signal(number, _handler(number, without=self))
            os.kill(os.getpid(), number)
            return
        # Two may come so close that the second interrupts this very function
        self._arrived.append(number)
        if len(self._arrived) == 1:
            # Not print(): the signal may have come in the middle of one
            message = f"\n{signal.Signals(number).name}: {self.how}; once more stops at once\n"
            os.write(2, message.encode())
            return
        self.stop()
        os.kill(os.getpid(), number)

    def _end_processes(self) -> None:
        # Python ends processes that are left at exit by a signal that these leave to others
        for process in self._processes:
            try:
                if process.is_alive():
                    process.kill()
            except ValueError:
                continue  # it was closed


def _handler(number: int, without: SignalWatch | None = None) -> Any:
    """Who handles a signal, but for watches of trainings that are over, and for one that is to be left out."""
    handler: Any = signal.getsignal(number)
    while isinstance(watch := getattr(handler, "__self__", None), SignalWatch):
        if watch is not without and watch._is_running():
            break
        default = signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL
        handler = watch._before.get(number, default)
    return handler
