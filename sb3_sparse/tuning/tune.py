"""``sb3-sparse tune``: a study of return against costs, from its arguments to its files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import optuna

from sb3_sparse.tuning.export import export
from sb3_sparse.tuning.figure import plot_front
from sb3_sparse.tuning.objectives import check_objectives
from sb3_sparse.tuning.results import Point, Tried, importances, points, tried, tuning_front
from sb3_sparse.tuning.session import Place, Session, make_subject
from sb3_sparse.tuning.spaces import check_searches
from sb3_sparse.tuning.study import REPORT_EPISODES, REPORT_SEED, report_jobs, search_jobs
from sb3_sparse.tuning.tables import importance_rows, point_rows, report_rows, to_csv, to_json, to_markdown, trial_rows
from sb3_sparse.utils.checks import require_integer
from sb3_sparse.utils.files import make_folder, write_text


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


def check_reporting(seed: int, seeds: int, report_seeds: int) -> None:
    """
    :param seed: First seed of trainings that choose.
    :param seeds: How many.
    :param report_seeds: Seeds that are reported, from :data:`sb3_sparse.tuning.study.REPORT_SEED` on.
    :raises ValueError: If a seed would be both.
    """
    require_integer("--report-seeds", report_seeds, low=0, high=1000)
    if seed + seeds > REPORT_SEED and seed < REPORT_SEED + report_seeds:
        raise ValueError(
            f"`--seed` {seed} to {seed + seeds - 1} must not be among the reporting seeds, "
            f"{REPORT_SEED} to {REPORT_SEED + report_seeds - 1}: what chooses must not be what is reported"
        )


def tune(
    algo: str,
    env: str,
    *,
    objectives: Sequence[str] = ("return", "flops"),
    search: str | Sequence[str] = ("sparsity",),
    trials: int = 30,
    method: str | None = None,
    conf_file: str | Path | None = None,
    steps: int | None = None,
    parameters: Mapping[str, Any] | None = None,
    episodes: int = 20,
    seed: int = 0,
    seeds: int = 1,
    report_seeds: int = 3,
    sampler: str = "gp",
    place: Place | None = None,
    export_best: str | Path | None = None,
) -> Found:
    """
    Search for configurations of which none is both better and cheaper, with a dense reference among them; train the front
    and the reference again with other seeds; write tables, a figure and importances.

    :param algo: rl-zoo3's name of the algorithm.
    :param env: Id of the environment.
    :param objectives: ``"return"`` and one or more of the other :data:`sb3_sparse.tuning.objectives.OBJECTIVES`.
    :param search: What is searched, see :data:`sb3_sparse.tuning.spaces.SEARCHES`.
    :param trials: Configurations to try in all, the reference not counted.
    :param method: Preset that everything begins with; ``"static"`` if neither it nor ``conf_file`` is given.
    :param conf_file: A YAML file of rl-zoo3's instead.
    :param steps: Environment steps of a training; None: the configuration's.
    :param parameters: Other hyperparameters than the configuration's.
    :param episodes: Of each evaluation; the same for all configurations.
    :param seed: First seed of the trainings that choose.
    :param seeds: Such trainings of each trial; their mean return counts.
    :param report_seeds: Trainings of the front and the reference afterwards, with other seeds and other episodes; 0 for none.
    :param sampler: One of :data:`sb3_sparse.tuning.sampling.SAMPLERS`.
    :param place: Folder, storage and processes.
    :param export_best: Folder for configurations that rl-zoo3 trains, see :func:`sb3_sparse.tuning.export.export`.
    :return: What came out.
    :raises ValueError: For everything that is wrong with the arguments, the storage or the study, before anything is trained;
        and if not one sampled configuration was trained to its end.
    :raises FileNotFoundError: If there is no such ``conf_file``.
    :raises ImportError: If a package that the environment, the sampler or the storage needs is not installed.
    :raises ChildProcessError: If worker processes end before they do anything.
    """
    names = check_objectives(objectives)
    searches = check_searches(search, algo)
    require_integer("--trials", trials, low=1)
    check_reporting(seed, seeds, report_seeds)
    subject = make_subject(
        "search",
        algo,
        env,
        objectives=names,
        search=searches,
        method=method,
        conf_file=conf_file,
        steps=steps,
        parameters=parameters,
        episodes=episodes,
        seed=seed,
        seeds=seeds,
        sampler=sampler,
    )
    if export_best is not None:
        make_folder("--export-best", export_best)
    with Session(subject, place or Place()) as session:
        rows = session.work(session.study, search_jobs(trials), "search")
        best = tuning_front(subject, rows)
        files = write(session)
        if all(row.is_dense or row.state != "complete" for row in rows):
            reasons = "; ".join(sorted({row.reason for row in rows if row.reason}))
            raise ValueError(f"none of the {trials} sampled configurations was trained to its end: {reasons[:500]}")
        if report_seeds:
            study = session.report(create=True)
            assert study is not None
            chosen = {row.number: row for row in [*(row for row in rows if row.is_dense and row.state == "complete"), *best]}
            jobs = report_jobs([(row.number, row.configuration) for row in chosen.values()], report_seeds)
            session.work(study, jobs, "report")
            files = write(session)
    rows, found = collect(session)
    if export_best is not None:
        random = session.random_return(range(REPORT_EPISODES, REPORT_EPISODES + episodes))
        files += export(subject, found, Path(export_best), session.name, random)
    return Found(session.study, rows, found, to_markdown(subject, found), files)


def collect(session: Session) -> tuple[list[Tried], list[Point]]:
    """
    :param session: A session.
    :return: Its trials and its front, with what has been reported so far.
    """
    report = session.report(create=False)
    rows = tried(session.study)
    return rows, points(session.subject, rows, tried(report) if report is not None else [])


def write(session: Session) -> list[Path]:
    """
    Write what there is: ``front.md``, ``front.csv``, ``front.json``, ``front.png``, ``front.svg``, ``trials.csv``,
    ``report.csv``, ``importances.csv``.

    :param session: A session.
    :return: The files; the figure is left out where matplotlib is missing.
    """
    rows, found = collect(session)
    subject, folder = session.subject, session.folder
    report = session.report(create=False)
    texts = {
        "front.md": to_markdown(subject, found),
        "front.csv": to_csv(point_rows(found)),
        "front.json": to_json(subject, found),
        "trials.csv": to_csv(trial_rows(rows)),
        "importances.csv": to_csv(importance_rows(importances(session.study, subject))),
    }
    if report is not None:
        texts["report.csv"] = to_csv(report_rows(tried(report)))
    files = [write_text(folder / name, text) for name, text in texts.items()]
    try:
        files += plot_front(subject, rows, found, folder / "front")
    except ImportError as error:
        print(f"no figure: {error}")
    return files
