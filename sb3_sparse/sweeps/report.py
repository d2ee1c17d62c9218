"""What a sweep or a single training looks like: tables, figures, and all of it as one page."""

from __future__ import annotations

import tempfile
from pathlib import Path

import yaml

from sb3_sparse.runs import html
from sb3_sparse.runs.result import COMPLETE, RunResult
from sb3_sparse.runs.store import RESULT, read_result
from sb3_sparse.runs.tables import to_csv
from sb3_sparse.sweeps.figures import draw
from sb3_sparse.sweeps.grid import Cell
from sb3_sparse.sweeps.summary import (
    Row,
    aggregate_markdown,
    has_few_seeds,
    rows_of,
    task_markdown,
    task_table,
)
from sb3_sparse.sweeps.sweep import SWEEP, Sweep, read_sweep
from sb3_sparse.utils.files import write_text
from sb3_sparse.utils.markdown import markdown

_FEW = (
    "Some rows have fewer than five seeds. Their intervals are honest and wide (Student's t); small differences between "
    "them mean nothing."
)
_HOW = (
    "Return: mean over seeds of the last evaluation. Kept: how much of what the reference is above a random policy, paired "
    "by seed, Fieller's limits. IQM: interquartile mean of all runs, 0 random and 1 the reference's mean; its bootstrap "
    "intervals are too narrow with few seeds."
)


def kind_of(path: Path) -> str | None:
    """
    Tell what a folder is.

    :param path: A path.
    :return: ``"sweep"``, ``"run"``, or None if it is neither.
    """
    if (path / SWEEP).is_file():
        return "sweep"
    return "run" if (path / RESULT).is_file() else None


def sweep_text(sweep: Sweep, rows: list[Row]) -> str:
    """
    The tables of a sweep.

    :param sweep: The sweep.
    :param rows: Its rows.
    :return: Markdown.
    """
    parts = [task_markdown(rows, sweep.reference)]
    if aggregate := aggregate_markdown(rows, sweep.reference):
        parts.append(aggregate)
    if has_few_seeds(rows):
        parts.append(_FEW + "\n")
    return "\n".join(parts)


def write_sweep(folder: Path) -> list[Path]:
    """
    Write what there is of a sweep: ``summary.md``, ``summary.csv``, ``figures/`` and ``report.html``.

    :param folder: Of the sweep.
    :return: The files.
    """
    sweep = read_sweep(folder)
    rows = rows_of(sweep)
    files = [
        write_text(folder / "summary.md", sweep_text(sweep, rows)),
        write_text(folder / "summary.csv", to_csv(task_table(rows, sweep.reference))),
    ]
    try:
        figures = draw(rows, sweep.reference, folder / "figures")
    except ImportError as error:
        print(f"no figures: {error}")
        return files
    files += [file for _, some in figures.values() for file in some]
    contents = [html.figure(next(file for file in some if file.suffix == ".svg"), text) for text, some in figures.values()]
    complete = sum(len(row.complete) for row in rows)
    total = len(rows) * len(sweep.seeds)
    bad = [result for row in rows for result in row.results if result.state != COMPLETE]
    intro = [
        html.paragraph(f"{len(rows)} cells with up to {len(sweep.seeds)} seeds: {complete} of {total} trainings complete."),
        *([html.paragraph(_FEW, "note")] if has_few_seeds(rows) else []),
    ]
    aggregate = aggregate_markdown(rows, sweep.reference)
    sections = [
        ("", intro),
        ("Every task", [html.table(task_markdown(rows, sweep.reference)), html.paragraph(_HOW, "quiet")]),
        ("All tasks together", [html.table(aggregate)] if aggregate else []),
        ("Figures", contents),
        ("What was not completed", [_failure(result) for result in bad]),
        ("Configurations", [_configuration(row.cell) for row in rows]),
        ("Versions", [_versions(next(iter(row.complete.values()))) for row in rows[:1] if row.complete]),
    ]
    return [*files, write_text(folder / "report.html", html.page(f"Sweep {folder.resolve().name}", sections))]


def _failure(result: RunResult) -> str:
    last = result.traceback.strip().splitlines()[-12:]
    return html.paragraph(f"{result.spec.key}: {result.reason}") + html.code("\n".join(last))


def _configuration(cell: Cell) -> str:
    text = yaml.safe_dump({cell.env: cell.section}, sort_keys=False, width=110)
    summary = html.text(f"{cell.algo} on {cell.env}, {cell.label}")
    return f"<details><summary>{summary}</summary>{html.code(text)}</details>"


def _versions(result: RunResult) -> str:
    return html.table(markdown(["package", "version"], [[name, value] for name, value in result.versions.items()]))


def write_run(folder: Path) -> list[Path]:
    """
    Write the page of one training, ``report.html``.

    :param folder: Of the training.
    :return: The file.
    """
    result = read_result(folder / RESULT)
    spec = result.spec
    cell = Cell(f"seed {spec.seed}", spec.algo, spec.env, None, dict(spec.section), spec.episodes, len(spec.checkpoints) + 1)
    rows = [Row(cell, [result], float("-inf"))]
    figures = []
    with tempfile.TemporaryDirectory() as temporary:
        if result.state == COMPLETE:
            for text, files in draw(rows, "", Path(temporary)).values():
                figures.append(html.figure(next(file for file in files if file.suffix == ".svg"), text))
    costs = markdown(["of the networks that act", ""], [[name, f"{value:,.10g}"] for name, value in result.costs.items()])
    evaluations = markdown(
        ["environment steps", "return", "lowest", "highest", "sparsity"],
        [
            [
                f"{one.step:,}",
                f"{one.mean:.1f}",
                f"{min(one.returns):.1f}",
                f"{max(one.returns):.1f}",
                f"{100 * one.costs.get('sparsity', float('nan')):.1f} %",
            ]
            for one in result.evaluations
        ],
    )
    sections = [
        ("", [html.paragraph(f"{result.state}, {result.seconds:,.0f} seconds, {spec.n_timesteps:,} environment steps")]),
        ("What went wrong", [_failure(result)] if result.state != COMPLETE else []),
        ("Costs", [html.table(costs)] if result.costs else []),
        ("Figures", figures),
        ("Evaluations", [html.table(evaluations)] if result.evaluations else []),
        ("Configuration", [_configuration(cell)]),
        ("Versions", [_versions(result)] if result.versions else []),
    ]
    title = f"{spec.algo} on {spec.env}, seed {spec.seed}"
    return [write_text(folder / "report.html", html.page(title, sections))]
