"""``sb3-sparse tune front``: a study of return against costs, from its question to its files."""

from __future__ import annotations

import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import optuna

from sb3_sparse.runs.result import COMPLETE
from sb3_sparse.runs.spec import RunSpec
from sb3_sparse.tuning.export import export
from sb3_sparse.tuning.figure import plot_front
from sb3_sparse.tuning.objectives import LATENCY, OBJECTIVES, check_objectives
from sb3_sparse.tuning.questions import FrontQuestion, Place
from sb3_sparse.tuning.results import (
    Point,
    Tried,
    importances,
    points,
    reported_rows,
    reports,
    section_of,
    tried,
    tuning_front,
)
from sb3_sparse.tuning.session import Session, make_subject
from sb3_sparse.tuning.spaces import check_searches
from sb3_sparse.tuning.study import REPORT_EPISODES
from sb3_sparse.tuning.tables import importance_rows, point_rows, report_rows, to_csv, to_json, to_markdown, trial_rows
from sb3_sparse.tuning.timing import Latencies
from sb3_sparse.utils.checks import require_integer
from sb3_sparse.utils.files import make_folder, write_text

#: Points of the front that a line of progress shows.
_SHOWN = 4


@dataclass(frozen=True)
class Found:
    """
    What came out of a study.

    :param study: Optuna's study.
    :param rows: All its trials.
    :param points: Its front and the dense reference, cheapest first.
    :param table: These as a Markdown table.
    :param files: What was written.
    """

    study: optuna.Study
    rows: list[Tried]
    points: list[Point]
    table: str
    files: list[Path]


def find_front(question: FrontQuestion, place: Place | None = None) -> Found:
    """
    Search for configurations of which none is both better and cheaper, with a dense reference among them; train the front
    and the reference again with other seeds; write tables, a figure and importances.

    :param question: What is asked.
    :param place: Folder, storage and processes.
    :return: What came out.
    :raises ValueError: For everything that is wrong with the question, the storage or the study, before anything is trained;
        and if not one sampled configuration was trained to its end.
    :raises FileNotFoundError: If there is no such ``conf_file``.
    :raises ImportError: If a package that the environment, the sampler or the storage needs is not installed.
    :raises ChildProcessError: If worker processes end before they do anything.
    """
    names = check_objectives(question.objectives)
    searches = check_searches(question.search, question.algo)
    require_integer("--trials", question.trials, low=1)
    require_integer("--seeds", question.seeds, low=1, high=100)
    question.check(question.seeds)
    subject = make_subject(question, objectives=names, search=searches, seeds=question.seeds, sampler=question.sampler)
    if question.export_best is not None:
        make_folder("--export-best", question.export_best)
    with Session(subject, question, place or Place()) as session:
        _Work(session, question).do()
        files = _Files(session, question.report_seeds)
        written = files.write()
    if question.export_best is not None:
        random = session.random_return(range(REPORT_EPISODES, REPORT_EPISODES + question.episodes))
        written += export(subject, files.points, Path(question.export_best), session.name, random)
    return Found(session.study, files.rows, files.points, to_markdown(subject, files.points), written)


class _Work:
    """Searches, and trains what was found again."""

    def __init__(self, session: Session, question: FrontQuestion) -> None:
        self.session, self.question, self.subject = session, question, session.subject

    def do(self) -> None:
        session, subject, n_seeds = self.session, self.subject, self.question.report_seeds
        session.search(self.question.trials, lambda: _best(session))
        files = _Files(session, n_seeds)
        files.write()
        rows = files.rows
        if all(row.is_dense or row.state != "complete" for row in rows):
            reasons = "; ".join(sorted({row.reason for row in rows if row.reason}))
            raise ValueError(
                f"none of the {self.question.trials} sampled configurations was trained to its end: {reasons[:500]}"
            )
        if n_seeds:
            best = [*(row for row in rows if row.is_dense and row.state == "complete"), *tuning_front(subject, rows)]
            chosen = {row.number: subject.reports(section_of(subject, row), n_seeds) for row in best}
            # Seed by seed: a report that is stopped has something of every configuration
            session.run([specs[index] for index in range(n_seeds) for specs in chosen.values()], "report")


def _best(session: Session) -> str:
    """The front so far, in a line."""
    subject = session.subject
    cost = subject.objectives[1]
    front = tuning_front(subject, tried(session.study))
    shown = [f"{row.mean:.1f} at {row.measures[cost]:,.0f}{' (dense)' * row.is_dense}" for row in front]
    if len(shown) > _SHOWN:
        # Both ends and something in between
        shown = [shown[round(i * (len(shown) - 1) / (_SHOWN - 1))] for i in range(_SHOWN)]
    return f"front of {len(front)}, return at {OBJECTIVES[cost].label}: {'; '.join(shown)}" if shown else ""


class _Files:
    """What there is of a study, and its files. Latencies are measured here, so no worker may be training."""

    def __init__(self, session: Session, n_seeds: int) -> None:
        self.session, self.subject = session, session.subject
        self.latencies = Latencies(session.store, session.folder / "latency.json")
        self.rows = self._timed(tried(session.study))
        self.again = reports(self.subject, self.rows, session.store, n_seeds)
        self.points = points(self.subject, self.rows, self.again, self._timed_again())

    def _chosen_by(self, row: Tried) -> RunSpec:
        """The first training of a trial."""
        return self.subject.run(section_of(self.subject, row), self.subject.seed)

    def _timed(self, rows: list[Tried]) -> list[Tried]:
        """Where latency decides, every trial is measured anew."""
        if LATENCY not in self.subject.objectives:
            return rows
        specs = {row.number: self._chosen_by(row) for row in rows if row.state == "complete"}
        self.latencies.measure(specs.values())
        timed = []
        for row in rows:
            if row.number in specs:
                quiet = self.latencies.of(specs[row.number], row.measures[LATENCY])
                row = replace(row, measures={**row.measures, LATENCY: quiet})
            timed.append(row)
        return timed

    def _timed_again(self) -> dict[int, float]:
        """Latencies of what is shown."""
        specs: dict[int, RunSpec] = {}
        for row in reported_rows(self.subject, self.rows, self.again):
            complete = [result.spec for result in self.again.get(row.number, []) if result.state == COMPLETE]
            specs[row.number] = complete[0] if complete else self._chosen_by(row)
        self.latencies.measure(specs.values())
        return {number: self.latencies.known[spec.key] for number, spec in specs.items() if spec.key in self.latencies.known}

    def write(self) -> list[Path]:
        """
        Write what there is: ``front.md``, ``front.csv``, ``front.json``, ``front.png``, ``front.svg``, ``trials.csv``,
        ``report.csv``, ``importances.csv``. The figure is left out where matplotlib is missing.
        """
        subject, folder = self.subject, self.session.folder
        texts = {
            "front.md": to_markdown(subject, self.points),
            "front.csv": to_csv(point_rows(self.points)),
            "front.json": to_json(subject, self.points),
            "trials.csv": to_csv(trial_rows(self.rows)),
            "importances.csv": to_csv(importance_rows(importances(self.session.study, subject))),
        }
        if self.again:
            texts["report.csv"] = to_csv(report_rows(self.again))
        files = [write_text(folder / name, text) for name, text in texts.items()]
        try:
            files += plot_front(subject, self.rows, self.points, folder / "front")
        except ImportError as error:
            print(f"no figure: {error}", file=sys.stderr)
        return files


def tune(algo: str, env: str, *, place: Place | None = None, **options: Any) -> Found:
    """
    Find a Pareto front, called with separate arguments.

    :func:`find_front`, as it is called with separate arguments.

    :param algo: rl-zoo3's name of the algorithm.
    :param env: Id of the environment.
    :param place: Folder, storage and processes.
    :param options: See :class:`~sb3_sparse.tuning.questions.FrontQuestion`.
    :return: What came out.
    """
    return find_front(FrontQuestion(algo=algo, env=env, **options), place)
