"""
Trainings on a Ray cluster, where one machine is not enough. Each is a task of one core; Ray begins it again elsewhere when its
node dies. Where a node sees the driver's folder the task works there; otherwise it works in a folder of its own, and its files
come back with the result.
"""

from __future__ import annotations

import contextlib
import logging
import socket
import tempfile
import uuid
from collections.abc import Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import Any

from sb3_sparse.runs.result import RunResult
from sb3_sparse.runs.spec import RunSpec
from sb3_sparse.runs.worker import execute, prepare
from sb3_sparse.utils.files import write_text

#: How often Ray begins a task again whose node or process has gone.
_RETRIES = 3
#: Seconds within which a cluster must answer.
_PATIENCE = 10.0
#: Files of a task by their path below its folder.
Files = dict[str, bytes]


def _pack(folder: Path) -> Files:
    return {str(file.relative_to(folder)): file.read_bytes() for file in sorted(folder.rglob("*")) if file.is_file()}


def train_remotely(spec: RunSpec, folder: str, token: str, gym_packages: Sequence[str]) -> tuple[RunResult, Files | None]:
    """
    What a task does.

    :param spec: The training.
    :param folder: Of its files, as the driver sees it.
    :param token: A file of the driver's in the same place: whoever sees it may work there.
    :param gym_packages: Modules that register environments.
    :return: The result, and the files of a training that worked elsewhere.
    """
    prepare(gym_packages)
    if Path(token).is_file():
        return execute(spec, Path(folder)), None
    with tempfile.TemporaryDirectory() as own:
        return execute(spec, Path(own)), _pack(Path(own))


def _knock(address: str) -> None:
    """Ray itself tries for minutes to reach a cluster that is not there."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if host and port.isdigit():
        with socket.create_connection((host.strip("[]"), int(port)), timeout=_PATIENCE):
            pass


class RayEngine:
    """
    Trains on a Ray cluster.

    :param address: Of the cluster: ``HOST:PORT``, ``ray://HOST:PORT``, ``auto`` for one that runs on this machine, or
        ``local`` to start one here.
    :param folder: Of all trainings.
    :param gym_packages: Modules that register environments, which tasks import.
    :raises ImportError: Without Ray, saying how to install it.
    :raises ValueError: If there is no cluster at the address.
    """

    def __init__(self, address: str, folder: Path, gym_packages: Sequence[str] = ()) -> None:
        try:
            import ray
        except ImportError as error:
            raise ImportError(f"`--ray` needs Ray ({error}): pip install 'sb3-sparse[ray]'") from error
        self.ray, self.gym_packages = ray, tuple(gym_packages)
        try:
            _knock(address)
            ray.init(address=None if address == "local" else address, log_to_driver=False, logging_level=logging.ERROR)
        except (OSError, OverflowError, ValueError, RuntimeError) as error:
            reason = " ".join(str(error).split())[:300]
            raise ValueError(f"`--ray` {address!r} cannot be reached: {reason}") from error
        self.token = write_text(folder / f".driver-{uuid.uuid4().hex}", "")
        self._task = ray.remote(num_cpus=1, max_retries=_RETRIES)(train_remotely)
        self._tasks: dict[Future[RunResult], Any] = {}

    @property
    def size(self) -> int:
        """Cores of the cluster, as it is now."""
        return max(int(self.ray.cluster_resources().get("CPU", 0)), 1)

    @property
    def has_room(self) -> bool:
        """Whether a core is free."""
        self._tasks = {future: task for future, task in self._tasks.items() if not future.done()}
        return len(self._tasks) < self.size

    def submit(self, spec: RunSpec, folder: Path) -> Future[RunResult]:
        """
        Begin a training.

        :param spec: The training.
        :param folder: Of its files.
        :return: Its result, later; :meth:`vanished` tells what its exception means.
        """
        task = self._task.remote(spec, str(folder), str(self.token), self.gym_packages)
        result: Future[RunResult] = Future()

        def finish(done: Future[tuple[RunResult, Files | None]]) -> None:
            try:
                found, files = done.result()
                for name, content in (files or {}).items():
                    (folder / name).parent.mkdir(parents=True, exist_ok=True)
                    (folder / name).write_bytes(content)
                result.set_result(found)
            except BaseException as error:
                result.set_exception(error)

        task.future().add_done_callback(finish)
        self._tasks[result] = task
        return result

    def vanished(self, error: BaseException) -> bool:
        """
        Tell what an exception means.

        :param error: What a future raises.
        :return: Whether node or process of the training are gone, more often than Ray begins it again.
        """
        gone = self.ray.exceptions
        return isinstance(error, (gone.WorkerCrashedError, gone.NodeDiedError, gone.OutOfMemoryError, gone.ObjectLostError))

    def stop(self) -> None:
        """End all tasks, and leave the cluster."""
        for future, task in self._tasks.items():
            if not future.done():
                with contextlib.suppress(Exception):
                    self.ray.cancel(task, force=True)
        self._tasks.clear()
        self.token.unlink(missing_ok=True)
        self.ray.shutdown()
