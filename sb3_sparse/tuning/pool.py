"""Worker processes of this machine: started, watched, and replaced when one vanishes."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import IO

import optuna
from optuna.storages import BaseStorage
from optuna.trial import TrialState

from sb3_sparse.tuning.queue import Job, by_job, fill, is_over, release_dead

#: Seconds between two looks at the storage.
_PAUSE = 0.5
#: Workers that end without having taken up anything: something is wrong with all of them.
_MAX_IDLE_DEATHS = 3


class Pool:
    """
    :param storage: The storage, opened.
    :param address: How a worker opens it, see :func:`sb3_sparse.tuning.storage.open_storage`.
    :param folder: Folder of logs and trials.
    :param n_workers: Processes at a time.
    """

    def __init__(self, storage: BaseStorage, address: str, folder: Path, n_workers: int) -> None:
        self.storage, self.address, self.folder, self.n_workers = storage, address, folder, n_workers
        self._workers: dict[int, tuple[subprocess.Popen, IO[bytes]]] = {}

    def _start(self, index: int, study: optuna.Study) -> None:
        log = (self.folder / f"worker-{index}.log").open("ab")
        # One thread each: networks this small are no faster with more
        threads = os.environ.get("OMP_NUM_THREADS", "1")
        env = {**os.environ, "SB3_SPARSE_STORAGE": self.address, "OMP_NUM_THREADS": threads}
        command = [sys.executable, "-m", "sb3_sparse.tuning.worker", study.study_name, str(self.folder / "trials")]
        process = subprocess.Popen(command, env=env, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT)
        self._workers[index] = (process, log)

    def _reap(self) -> list[int]:
        """Forget the workers that have ended; exit codes of those that did not end by themselves."""
        codes = []
        for index, (process, log) in list(self._workers.items()):
            if process.poll() is not None:
                log.close()
                del self._workers[index]
                if process.returncode:
                    codes.append(process.returncode)
        return codes

    def run(self, study: optuna.Study, jobs: Sequence[Job], watch: Callable[[], None] = lambda: None) -> None:
        """
        Work until every job is over, whoever does it.

        :param study: The study.
        :param jobs: Jobs; those that are over are not done again.
        :param watch: Called now and then.
        :raises ChildProcessError: If workers die before they take up anything; the message names their log.
        """
        names = {job.name for job in jobs}
        idle_deaths = 0
        try:
            while True:
                codes = self._reap()
                released = release_dead(study, self.storage)
                idle_deaths = 0 if released else idle_deaths + len(codes)
                if idle_deaths >= _MAX_IDLE_DEATHS:
                    raise ChildProcessError(f"workers end before they do anything (exit code {codes[0]}), see {self.folder}/worker-*.log")
                fill(study, jobs)
                watch()
                present = by_job(study.get_trials(deepcopy=False))
                if all(is_over(present.get(name, [])) for name in names):
                    return
                n_waiting = len(study.get_trials(deepcopy=False, states=(TrialState.WAITING,)))
                for index in range(self.n_workers):
                    if index not in self._workers and n_waiting > len(self._workers) - self._n_running(study):
                        self._start(index, study)
                time.sleep(_PAUSE)
        finally:
            self.stop()
            release_dead(study, self.storage)

    def _n_running(self, study: optuna.Study) -> int:
        """Workers of this pool that have taken up a trial."""
        pids = {process.pid for process, _ in self._workers.values()}
        running = study.get_trials(deepcopy=False, states=(TrialState.RUNNING,))
        return sum(trial.user_attrs.get("worker", {}).get("pid") in pids for trial in running)

    def stop(self) -> None:
        """End the workers; the trials they were at wait again when the study is resumed."""
        for process, _ in self._workers.values():
            process.terminate()
        for process, log in self._workers.values():
            try:
                process.wait(timeout=10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
            log.close()
        self._workers.clear()
