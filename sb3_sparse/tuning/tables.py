"""Tables of a study, as Markdown, CSV and JSON."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from typing import Any

from sb3_sparse.runs import tables
from sb3_sparse.runs.result import RunResult
from sb3_sparse.tuning.objectives import OBJECTIVES
from sb3_sparse.tuning.results import MEASURES, Reports, Row, known
from sb3_sparse.tuning.study import Subject
from sb3_sparse.utils.markdown import markdown

_PARAMETER = "parameter:"


def _sampled(row: Row) -> dict[str, Any]:
    """Columns that come and go, so they stand behind all others."""
    return {f"{_PARAMETER}{name}": value for name, value in row.parameters.items()}


def trial_rows(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """
    Make a table of trials.

    :param rows: Jobs of a study.
    :return: A row for each, failed ones with their reason.
    """
    return [
        {
            "trial": row.number,
            "dense": row.is_dense,
            "state": row.state,
            "return": row.tuned,
            **{name: row.measures.get(name, math.nan) for name in MEASURES},
            "reason": row.reason,
            **_sampled(row),
        }
        for row in rows
    ]


def training_row(result: RunResult) -> dict[str, Any]:
    """
    Make a row of a training.

    :param result: What came of it.
    :return: By column.
    """
    columns = {"seed": result.spec.seed, "state": result.state, "return": result.mean}
    return {**columns, **known(result), "reason": result.reason}


def report_rows(again: Reports) -> list[dict[str, Any]]:
    """
    Every training that was reported.

    :param again: What was reported, by trial.
    :return: A row for each.
    """
    return [{"trial": number, **training_row(result)} for number, results in again.items() for result in results]


def point_rows(points: Sequence[Row]) -> list[dict[str, Any]]:
    """
    Make a table of a front.

    :param points: What :func:`sb3_sparse.tuning.results.points` gave.
    :return: A row for each.
    """
    rows = []
    for point in points:
        low, high = point.interval()
        rows.append(
            {
                "trial": point.number,
                "dense": point.is_dense,
                "on_front": point.on_front,
                "awaited": point.is_awaited,
                "return": point.mean,
                "return_low": low,
                "return_high": high,
                "seeds": len(point.returns),
                "failed_seeds": point.n_failed,
                "tuning_return": point.tuned,
                **point.measures,
                **_sampled(point),
            }
        )
    return rows


def to_json(subject: Subject, points: Sequence[Row]) -> str:
    """
    Write a front as JSON.

    :param subject: What the study is about.
    :param points: Its front.
    :return: Both as JSON, with each point's configuration.
    """
    rows = [
        {name: None if tables.is_nan(value) else value for name, value in row.items() if not name.startswith(_PARAMETER)}
        | {"returns": list(point.returns), "sampled": point.parameters, "configuration": point.configuration}
        for point, row in zip(points, point_rows(points), strict=True)
    ]
    return json.dumps({"study": subject.to_json(), "front": rows}, indent=2) + "\n"


def to_markdown(points: Sequence[Row]) -> str:
    """
    Write a front as Markdown.

    :param points: What :func:`sb3_sparse.tuning.results.points` gave.
    :return: A Markdown table, what fell off the front when it was trained again marked so, and what failed.
    """
    costs = ("flops", "bytes", "parameters", "latency")
    header = ["configuration", "on front", "sparsity", "return", "95 % interval", "seeds", "tuning return"]
    rows = []
    for point in points:
        sampled = (
            f"{name} {f'{value:.3g}' if isinstance(value, float) else value}" for name, value in point.parameters.items()
        )
        rows.append(
            [
                "dense" if point.is_dense else f"trial {point.number}",
                "yes" if point.on_front else "not reported yet" if point.is_awaited else "no",
                f"{100 * point.measures['sparsity']:.1f} %",
                f"{point.mean:.1f}",
                tables.interval(*point.interval()),
                tables.seeds(len(point.returns), point.n_failed),
                f"{point.tuned:.1f}",
                *(f"{point.measures[name]:,.0f}" for name in costs),
                ", ".join(sampled),
            ]
        )
    return markdown([*header, *(OBJECTIVES[name] for name in costs), "sampled"], rows)


def importance_rows(found: dict[str, dict[str, float]]) -> list[dict[str, Any]]:
    """
    Make a table of importances.

    :param found: What :func:`sb3_sparse.tuning.results.importances` gave.
    :return: A row for each parameter, the most important for the front first.
    """
    names = sorted(found.get("front", {}), key=lambda name: -found["front"][name])
    return [{"parameter": name, **{target: round(values[name], 4) for target, values in found.items()}} for name in names]
