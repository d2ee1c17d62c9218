"""Worker processes of this machine: started, watched, and replaced when one vanishes."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import IO

import optuna
from optuna.storages import BaseStorage

from sb3_sparse.tuning.queue import PAUSE, Job, by_job, fill, interrupt, is_over, release_dead
from sb3_sparse.tuning.storage import STORAGE_VARIABLE
from sb3_sparse.tuning.study import load_study

#: Workers that end without having taken up anything: something is wrong with all of them.
_MAX_IDLE_DEATHS = 3


class Pool:
    """
    Workers stay from the first job to :meth:`stop`, for starting one takes seconds.

    :param storage: The storage, opened.
    :param address: How a worker opens it, see :func:`sb3_sparse.tuning.storage.open_storage`.
    :param studies: Names of the studies that workers take jobs from.
    :param folder: Folder of logs and trials.
    :param n_workers: Processes at a time.
    :param gym_packages: Modules that register environments, which workers import.
    """

    def __init__(
        self,
        storage: BaseStorage,
        address: str,
        studies: Sequence[str],
        folder: Path,
        n_workers: int,
        gym_packages: Sequence[str] = (),
    ) -> None:
        self.storage, self.address, self.studies = storage, address, studies
        self.folder, self.n_workers, self.gym_packages = folder, n_workers, gym_packages
        self._workers: dict[int, tuple[subprocess.Popen, IO[bytes]]] = {}
        #: What workers are told to do.
        self._order = b""

    def _start(self, index: int) -> None:
        log = (self.folder / f"worker-{index}.log").open("ab")
        # One thread each: networks this small are no faster with more
        threads = os.environ.get("OMP_NUM_THREADS", "1")
        # Not on the command line, which everybody can read: a URL may hold a password
        env = {**os.environ, STORAGE_VARIABLE: self.address, "OMP_NUM_THREADS": threads}
        command = [sys.executable, "-m", "sb3_sparse.tuning.worker", str(self.folder / "trials")]
        if self.gym_packages:
            command += ["--gym-packages", *self.gym_packages]
        # Its standard input ends with this process, however that ends
        process = subprocess.Popen(command, env=env, stdin=subprocess.PIPE, stdout=log, stderr=subprocess.STDOUT)
        self._workers[index] = (process, log)
        self._tell(process)

    def _tell(self, process: subprocess.Popen) -> None:
        assert process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # It has ended, and will be replaced
            process.stdin.write(self._order)
            process.stdin.flush()

    def _reap(self) -> list[int]:
        """Forget the workers that have ended, and give their exit codes."""
        codes = []
        for index, (process, log) in list(self._workers.items()):
            if process.poll() is not None:
                self._close(process, log)
                del self._workers[index]
                codes.append(process.returncode)
        return codes

    @staticmethod
    def _close(process: subprocess.Popen, log: IO[bytes]) -> None:
        log.close()
        assert process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            process.stdin.close()

    def run(self, study: optuna.Study, jobs: Sequence[Job], watch: Callable[[], None] = lambda: None) -> None:
        """
        Work until every job is over, whoever does it.

        :param study: One of the studies.
        :param jobs: Jobs; those that are over are not done again.
        :param watch: Called now and then.
        :raises ChildProcessError: If workers end before they take up anything; the message names their log.
        """
        self._order = json.dumps([study.study_name, [job.name for job in jobs]]).encode() + b"\n"
        for process, _ in self._workers.values():
            self._tell(process)
        idle_deaths = 0
        while True:
            codes = self._reap()
            released = release_dead(study, self.storage)
            idle_deaths = 0 if released else idle_deaths + len(codes)
            if idle_deaths >= _MAX_IDLE_DEATHS:
                raise ChildProcessError(
                    f"workers end before they do anything (exit code {codes[0]}), see {self.folder}/worker-*.log"
                )
            fill(study, jobs)
            watch()
            present = by_job(study.get_trials(deepcopy=False))
            n_open = sum(not is_over(present.get(job.name, [])) for job in jobs)
            if not n_open:
                return
            for index in range(min(self.n_workers, n_open)):
                if index not in self._workers:
                    self._start(index)
            time.sleep(PAUSE)

    def stop(self) -> None:
        """End the workers. The trials they are at wait again when the study is resumed, and this is no failed attempt."""
        studies = []
        try:
            studies = [study for name in self.studies if (study := load_study(self.storage, name)) is not None]
            for study in studies:
                interrupt(study, self.storage, [process.pid for process, _ in self._workers.values()])
        finally:
            # Whatever the storage says
            for process, _ in self._workers.values():
                process.terminate()
            for process, log in self._workers.values():
                try:
                    process.wait(timeout=10)
                except subprocess.TimeoutExpired:
                    process.kill()
                    process.wait()
                self._close(process, log)
            self._workers.clear()
        for study in studies:
            release_dead(study, self.storage)
