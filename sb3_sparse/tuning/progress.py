"""How far a study is, as lines on a terminal or in a log."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from datetime import timedelta
from typing import TextIO

import optuna
from optuna.trial import TrialState

from sb3_sparse.tuning.objectives import OBJECTIVES
from sb3_sparse.tuning.queue import Job, by_job, is_over, outcome
from sb3_sparse.tuning.results import tried, tuning_front
from sb3_sparse.tuning.study import Subject

#: Points of the front that a line shows.
_SHOWN = 4


class Progress:
    """
    Call it now and then: it prints a line whenever a trial has ended.

    :param study: The study.
    :param subject: What it is about.
    :param jobs: What is to be done.
    :param title: Begins every line.
    :param n_workers: Processes that work on it here.
    :param stream: Where to print; None: standard error.
    """

    def __init__(
        self,
        study: optuna.Study,
        subject: Subject,
        jobs: Sequence[Job],
        title: str,
        n_workers: int,
        stream: TextIO | None = None,
    ) -> None:
        self.study, self.subject, self.title, self.n_workers = study, subject, title, n_workers
        self.names = {job.name for job in jobs}
        self.stream = sys.stderr if stream is None else stream
        self._shown: int | None = None

    def __call__(self) -> None:
        """Print, if there is news."""
        jobs = {name: trials for name, trials in by_job(self.study.get_trials(deepcopy=False)).items() if name in self.names}
        over = sum(is_over(trials) for trials in jobs.values())
        if over != self._shown:
            self._shown = over
            print(self.line(), file=self.stream, flush=True)

    def line(self) -> str:
        """
        :return: Trials done, failed and running, the best front, the time left.
        """
        trials = {name: found for name, found in by_job(self.study.get_trials(deepcopy=False)).items() if name in self.names}
        counted = [outcome(found) for found in trials.values()]
        over = sum(is_over(found) for found in trials.values())
        failed = sum(
            is_over(found) and trial.state == TrialState.FAIL for found, trial in zip(trials.values(), counted, strict=True)
        )
        running = [trial for trial in counted if trial.state == TrialState.RUNNING]
        parts = [f"{time.strftime('%H:%M:%S')} {self.title}: {over} of {len(self.names)} done"]
        if failed:
            parts.append(f"{failed} failed")
        parts.append(f"{len(running)} running")
        durations = [trial.duration for trial in counted if trial.state == TrialState.COMPLETE and trial.duration]
        left = len(self.names) - over
        if durations and left:
            mean = sum(durations, timedelta()) / len(durations)
            minutes = mean.total_seconds() * left / max(len(running), self.n_workers) / 60
            parts.append(f"about {minutes:.0f} min left" if minutes >= 1 else "less than a minute left")
        best = self._best()
        return ", ".join(parts) + (f" | {best}" if best else "")

    def _best(self) -> str:
        if self.subject.kind != "search":
            return ""
        cost = self.subject.objectives[1]
        front = tuning_front(self.subject, tried(self.study))
        shown = [f"{row.mean:.1f} at {row.measures[cost]:,.0f}{' (dense)' * row.is_dense}" for row in front]
        if len(shown) > _SHOWN:
            # Both ends and something in between
            shown = [shown[round(i * (len(shown) - 1) / (_SHOWN - 1))] for i in range(_SHOWN)]
        return f"front of {len(front)}, return at {OBJECTIVES[cost].label}: {'; '.join(shown)}" if shown else ""
