"""``sb3-sparse tune front``: a study of return against costs, from its question to its files."""

from __future__ import annotations

import sys
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import optuna

from sb3_sparse.runs.tables import to_csv
from sb3_sparse.tuning.export import export
from sb3_sparse.tuning.figure import plot_front
from sb3_sparse.tuning.objectives import LATENCY, OBJECTIVES, check_objectives
from sb3_sparse.tuning.questions import FrontQuestion, Place
from sb3_sparse.tuning.results import Reports, Row, importances, points, reported_rows, reports, tried, tuning_front
from sb3_sparse.tuning.sampling import check_sampler
from sb3_sparse.tuning.session import Session, make_subject, opened
from sb3_sparse.tuning.spaces import check_configuration, check_searches
from sb3_sparse.tuning.tables import importance_rows, point_rows, report_rows, to_json, to_markdown, trial_rows
from sb3_sparse.tuning.timing import quiet_latencies
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
    rows: list[Row]
    points: list[Row]
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
    check_sampler(question.sampler)
    question.check(question.seeds)
    check = partial(check_configuration, searches, question.algo)
    subject = make_subject(question, check, objectives=names, search=searches)
    if question.export_best is not None:
        make_folder("--export-best", question.export_best)
    n_seeds = question.report_seeds
    with opened(subject, question, place or Place()) as session:
        session.search(question.trials, lambda: _best(session))
        found = _write(session, n_seeds)
        if all(row.is_dense or row.state != "complete" for row in found.rows):
            reasons = "; ".join(sorted({row.reason for row in found.rows if row.reason}))
            raise ValueError(f"none of the {question.trials} sampled configurations was trained to its end: {reasons[:500]}")
        if n_seeds:
            dense = [row for row in found.rows if row.is_dense and row.state == "complete"]
            chosen = {
                row.number: subject.reports(row.section, n_seeds) for row in [*dense, *tuning_front(subject, found.rows)]
            }
            # Seed by seed: a report that is stopped has something of every configuration
            session.run([specs[index] for index in range(n_seeds) for specs in chosen.values()], "report")
            found = _write(session, n_seeds)
    if question.export_best is not None:
        random = session.random_return(report=True)
        found.files.extend(export(subject, found.points, Path(question.export_best), session.name, random))
    return found


def _best(session: Session) -> str:
    """The front so far, in a line."""
    subject = session.subject
    cost = subject.objectives[1]
    front = tuning_front(subject, tried(session.study))
    shown = [f"{row.mean:.1f} at {row.measures[cost]:,.0f}{' (dense)' * row.is_dense}" for row in front]
    if len(shown) > _SHOWN:
        # Both ends and something in between
        shown = [shown[round(i * (len(shown) - 1) / (_SHOWN - 1))] for i in range(_SHOWN)]
    return f"front of {len(front)}, return at {OBJECTIVES[cost]}: {'; '.join(shown)}" if shown else ""


def _latencies(session: Session, rows: list[Row], again: Reports) -> dict[int, float]:
    """Of a quiet machine: of what was reported of a trial, else of what chose it."""
    subject = session.subject
    specs = {
        row.number: [
            *(result.spec for result in again.get(row.number, [])),
            *(subject.run(row.section, seed) for seed in subject.training_seeds),
        ]
        for row in rows
    }
    return quiet_latencies(session.driver.store, session.folder / "latency.json", specs)


def _write(session: Session, n_seeds: int) -> Found:
    """
    Write what there is: ``front.md``, ``front.csv``, ``front.json``, ``front.png``, ``front.svg``, ``trials.csv``,
    ``report.csv``, ``importances.csv``. The figure is left out where matplotlib is missing. Latencies are measured here, so no
    worker may be training.
    """
    subject, folder = session.subject, session.folder
    rows = tried(session.study)
    if LATENCY in subject.objectives:
        # Where it decides, every trial is measured anew
        quiet = _latencies(session, [row for row in rows if row.state == "complete"], {})
        rows = [
            replace(row, measures={**row.measures, LATENCY: quiet[row.number]}) if row.number in quiet else row for row in rows
        ]
    again = reports(subject, rows, session.driver.store, n_seeds)
    shown = points(subject, rows, again, _latencies(session, reported_rows(subject, rows, again), again))
    table = to_markdown(shown)
    texts = {
        "front.md": table,
        "front.csv": to_csv(point_rows(shown)),
        "front.json": to_json(subject, shown),
        "trials.csv": to_csv(trial_rows(rows)),
        "importances.csv": to_csv(importance_rows(importances(session.study, subject))),
    }
    if again:
        texts["report.csv"] = to_csv(report_rows(again))
    files = [write_text(folder / name, text) for name, text in texts.items()]
    try:
        files += plot_front(subject, rows, shown, folder / "front")
    except ImportError as error:
        print(f"no figure: {error}", file=sys.stderr)
    return Found(session.study, rows, shown, table, files)


def tune(algo: str, env: str, *, place: Place | None = None, **options: Any) -> Found:
    """
    Find a Pareto front: :func:`find_front`, called with separate arguments.

    :param algo: rl-zoo3's name of the algorithm.
    :param env: Id of the environment.
    :param place: Folder, storage and processes.
    :param options: See :class:`~sb3_sparse.tuning.questions.FrontQuestion`.
    :return: What came out.
    """
    return find_front(FrontQuestion(algo=algo, env=env, **options), place)
