"""Tables of a study, as Markdown, CSV and JSON."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Sequence
from typing import Any

from sb3_sparse.tuning.objectives import OBJECTIVES
from sb3_sparse.tuning.results import MEASURES, Point, Tried
from sb3_sparse.tuning.study import Subject

_PARAMETER = "parameter:"


def _columns(rows: Sequence[dict[str, Any]]) -> list[str]:
    """All columns in order of appearance, sampled parameters last."""
    names = list(dict.fromkeys(name for row in rows for name in row))
    return sorted(names, key=lambda name: name.startswith(_PARAMETER))


def to_csv(rows: Sequence[dict[str, Any]]) -> str:
    """
    :param rows: By column.
    :return: CSV with a header; what a row lacks is empty.
    """
    stream = io.StringIO()
    writer = csv.DictWriter(stream, _columns(rows), lineterminator="\n", restval="")
    writer.writeheader()
    writer.writerows({name: "" if _is_nan(value) else value for name, value in row.items()} for row in rows)
    return stream.getvalue()


def _is_nan(value: Any) -> bool:
    return isinstance(value, float) and math.isnan(value)


def trial_rows(rows: Sequence[Tried]) -> list[dict[str, Any]]:
    """
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


def report_rows(report: Sequence[Tried]) -> list[dict[str, Any]]:
    """
    :param report: Jobs of a report.
    :return: A row for each training.
    """
    return [
        {
            "trial": row.attributes["of"],
            "seed": row.attributes["seed"],
            "state": row.state,
            "return": row.mean,
            **{name: row.measures.get(name, math.nan) for name in MEASURES},
            "reason": row.reason,
        }
        for row in report
    ]


def point_rows(points: Sequence[Point]) -> list[dict[str, Any]]:
    """
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
    :param subject: What the study is about.
    :param points: Its front.
    :return: Both as JSON, with each point's configuration.
    """
    rows = [
        {name: None if _is_nan(value) else value for name, value in row.items() if not name.startswith(_PARAMETER)}
        | {"returns": list(point.returns), "sampled": point.row.parameters, "configuration": point.row.configuration}
        for point, row in zip(points, point_rows(points), strict=True)
    ]
    return json.dumps({"study": subject.to_json(), "front": rows}, indent=2) + "\n"


def markdown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """
    :param header: Names of the columns.
    :param rows: Cells; the first column is left-aligned, all others right.
    :return: A Markdown table.
    """
    align = ["---" if index == 0 else "---:" for index in range(len(header))]
    return "\n".join("| " + " | ".join(row) + " |" for row in (header, align, *rows)) + "\n"


def show_parameter(value: Any) -> str:
    """
    :param value: A sampled value.
    :return: It, short.
    """
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def to_markdown(subject: Subject, points: Sequence[Point]) -> str:
    """
    :param subject: What the study is about.
    :param points: Its front.
    :return: A Markdown table, what fell off the front when it was trained again marked so, and what failed.
    """
    rows = []
    for point in points:
        low, high = point.interval()
        name = "dense" if point.row.is_dense else f"trial {point.row.number}"
        measures = point.measures
        interval = "-" if math.isnan(low) else f"{low:.1f} to {high:.1f}"
        seeds = str(len(point.returns))
        if point.n_failed:
            seeds += f" ({point.n_failed} of {len(point.returns) + point.n_failed} failed)"
        rows.append(
            [
                name,
                "yes" if point.on_front else "not reported yet" if point.is_awaited else "no",
                f"{100 * measures['sparsity']:.1f} %",
                f"{point.mean:.1f}",
                interval,
                seeds,
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
    :param found: What :func:`sb3_sparse.tuning.results.importances` gave.
    :return: A row for each parameter, the most important for the front first.
    """
    names = sorted(found.get("front", {}), key=lambda name: -found["front"][name])
    return [{"parameter": name, **{target: round(values[name], 4) for target, values in found.items()}} for name in names]
