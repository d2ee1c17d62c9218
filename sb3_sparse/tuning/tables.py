"""Tables of a study, as Markdown, CSV and JSON."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from typing import Any

from sb3_sparse.runs import tables
from sb3_sparse.runs.result import COMPLETE
from sb3_sparse.runs.tables import is_nan
from sb3_sparse.tuning.objectives import OBJECTIVES
from sb3_sparse.tuning.results import MEASURES, Point, Reports, Tried, known
from sb3_sparse.tuning.study import Subject
from sb3_sparse.utils.markdown import markdown

_PARAMETER = "parameter:"


def to_csv(rows: Sequence[dict[str, Any]]) -> str:
    """
    Write a table of this module.

    :param rows: By column.
    :return: CSV with a header, sampled parameters last.
    """
    return tables.to_csv(rows, _PARAMETER)


def trial_rows(rows: Sequence[Tried]) -> list[dict[str, Any]]:
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
            "return": row.mean,
            **{name: row.measures.get(name, math.nan) for name in MEASURES},
            "reason": row.reason,
            **{f"{_PARAMETER}{name}": value for name, value in row.parameters.items()},
        }
        for row in rows
    ]


def report_rows(again: Reports) -> list[dict[str, Any]]:
    """
    Every training that was reported.

    :param again: What was reported, by trial.
    :return: A row for each.
    """
    return [
        {
            "trial": number,
            "seed": result.spec.seed,
            "state": result.state,
            "return": result.mean,
            **(known(result) if result.state == COMPLETE else dict.fromkeys(MEASURES, math.nan)),
            "reason": result.reason,
        }
        for number, results in again.items()
        for result in results
    ]


def point_rows(points: Sequence[Point]) -> list[dict[str, Any]]:
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
                "trial": point.row.number,
                "dense": point.row.is_dense,
                "on_front": point.on_front,
                "awaited": point.is_awaited,
                "return": point.mean,
                "return_low": low,
                "return_high": high,
                "seeds": len(point.returns),
                "failed_seeds": point.n_failed,
                "tuning_return": point.row.mean,
                **{name: point.measures[name] for name in MEASURES},
                **{f"{_PARAMETER}{name}": value for name, value in point.row.parameters.items()},
            }
        )
    return rows


def to_json(subject: Subject, points: Sequence[Point]) -> str:
    """
    Write a front as JSON.

    :param subject: What the study is about.
    :param points: Its front.
    :return: Both as JSON, with each point's configuration.
    """
    rows = [
        {name: None if is_nan(value) else value for name, value in row.items() if not name.startswith(_PARAMETER)}
        | {"returns": list(point.returns), "sampled": point.row.parameters, "configuration": point.row.configuration}
        for point, row in zip(points, point_rows(points), strict=True)
    ]
    return json.dumps({"study": subject.to_json(), "front": rows}, indent=2) + "\n"


def show_parameter(value: Any) -> str:
    """
    Shorten a sampled value.

    :param value: A sampled value.
    :return: It, short.
    """
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def to_markdown(subject: Subject, points: Sequence[Point]) -> str:
    """
    Write a front as Markdown.

    :param subject: What the study is about.
    :param points: Its front.
    :return: A Markdown table, what fell off the front when it was trained again marked so, and what failed.
    """
    rows = []
    for point in points:
        low, high = point.interval()
        name = "dense" if point.row.is_dense else f"trial {point.row.number}"
        measures = point.measures
        rows.append(
            [
                name,
                "yes" if point.on_front else "not reported yet" if point.is_awaited else "no",
                f"{100 * measures['sparsity']:.1f} %",
                f"{point.mean:.1f}",
                tables.interval(low, high),
                tables.seeds(len(point.returns), point.n_failed),
                f"{point.row.mean:.1f}",
                f"{measures['flops']:,.0f}",
                f"{measures['bytes']:,.0f}",
                f"{measures['parameters']:,.0f}",
                f"{measures['latency']:.0f}",
                ", ".join(f"{name} {show_parameter(value)}" for name, value in point.row.parameters.items()),
            ]
        )
    header = ["configuration", "on front", "sparsity", "return", "95 % interval", "seeds", "tuning return"]
    labels = [OBJECTIVES[name].label for name in ("flops", "bytes", "parameters", "latency")]
    return markdown([*header, *labels, "sampled"], rows)


def importance_rows(found: dict[str, dict[str, float]]) -> list[dict[str, Any]]:
    """
    Make a table of importances.

    :param found: What :func:`sb3_sparse.tuning.results.importances` gave.
    :return: A row for each parameter, the most important for the front first.
    """
    names = sorted(found.get("front", {}), key=lambda name: -found["front"][name])
    return [{"parameter": name, **{target: round(values[name], 4) for target, values in found.items()}} for name in names]
