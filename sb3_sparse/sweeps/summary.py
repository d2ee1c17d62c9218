"""What a sweep says: a row for each cell, and each method over all tasks."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from statistics import fmean, median
from typing import Any

from sb3_sparse.runs.result import COMPLETE, DIVERGED, RunResult
from sb3_sparse.runs.statistics import (
    FEW_SEEDS,
    area_under_curve,
    iqm,
    last_mean,
    mean_interval,
    paired_interval,
    probability_of_improvement,
    ratio_interval,
    stratified_interval,
)
from sb3_sparse.runs.tables import interval, seeds
from sb3_sparse.sweeps.grid import Cell
from sb3_sparse.sweeps.sweep import Sweep
from sb3_sparse.utils.markdown import markdown

Interval = tuple[float, float, float]
_NOTHING: Interval = (math.nan, math.nan, math.nan)
#: Evaluations that the mean of the last ones is of.
LAST = 10


@dataclass(frozen=True)
class Row:
    """
    A cell and what came of it.

    :param cell: The cell.
    :param results: One for each seed that was trained.
    :param floor: Return of a policy that has learnt nothing.
    """

    cell: Cell
    results: Sequence[RunResult]
    floor: float

    @cached_property
    def complete(self) -> dict[int, RunResult]:
        """Complete results by seed."""
        return {result.spec.seed: result for result in self.results if result.state == COMPLETE}

    @cached_property
    def returns(self) -> dict[int, float]:
        """Return at the end by seed; a training that diverged has learnt nothing."""
        finite = {seed: result.mean for seed, result in self.complete.items()}
        return finite | {result.spec.seed: self.floor for result in self.results if result.state == DIVERGED}

    @property
    def n_bad(self) -> int:
        """Trainings that diverged or failed."""
        return len(self.results) - len(self.complete)

    def curves(self) -> list[tuple[list[int], list[float]]]:
        """
        Collect learning curves.

        :return: Environment steps and mean returns of each complete training.
        """
        return [
            ([one.step for one in result.evaluations], [one.mean for one in result.evaluations])
            for result in self.complete.values()
        ]

    def cost(self, name: str) -> float:
        """
        Look up a cost.

        :param name: See :func:`sb3_sparse.runs.costs.costs`.
        :return: Median over seeds, NaN if nothing is complete.
        """
        values = [result.costs[name] for result in self.complete.values() if name in result.costs]
        return median(values) if values else math.nan

    def final(self) -> Interval:
        """
        Average the last evaluation.

        :return: Mean return at the end, with its interval.
        """
        return mean_interval(list(self.returns.values())) if self.returns else _NOTHING

    def last(self) -> Interval:
        """
        Average the last evaluations.

        :return: Mean of the last evaluations, with its interval.
        """
        values = [last_mean(curve, LAST) for _, curve in self.curves()]
        return mean_interval(values) if values else _NOTHING

    def area(self) -> Interval:
        """
        Average over the training.

        :return: Mean return along the training, with its interval.
        """
        values = [area_under_curve(steps, curve) for steps, curve in self.curves()]
        return mean_interval(values) if values else _NOTHING

    def against(self, reference: Row) -> tuple[Interval, Interval]:
        """
        Compare with the reference, paired by seed where both have the same.

        :param reference: Its row.
        :return: How much of what it has learnt is kept, and the difference of returns, each with its interval.
        """
        common = sorted(self.returns.keys() & reference.returns.keys())
        if len(common) == len(self.returns) == len(reference.returns) and common:
            mine, theirs = ([row.returns[seed] for seed in common] for row in (self, reference))
            return ratio_interval(mine, theirs, floor=self.floor, paired=True), paired_interval(mine, theirs)
        mine, theirs = list(self.returns.values()), list(reference.returns.values())
        if not mine or not theirs:
            return _NOTHING, _NOTHING
        if len(common) < 2:
            return ratio_interval(mine, theirs, floor=self.floor), (fmean(mine) - fmean(theirs), math.nan, math.nan)
        mine, theirs = ([row.returns[seed] for seed in common] for row in (self, reference))
        return ratio_interval(mine, theirs, floor=self.floor, paired=True), paired_interval(mine, theirs)


def rows_of(sweep: Sweep) -> list[Row]:
    """
    Read what there is of a sweep.

    :param sweep: The sweep.
    :return: A row for each cell.
    """
    return [Row(cell, results, sweep.floor(cell)) for cell, results in sweep.results()]


def reference_of(row: Row, rows: Sequence[Row], reference: str) -> Row | None:
    """
    Find what a row is compared with.

    :param row: A row.
    :param rows: All of them.
    :param reference: Name of the method.
    :return: The row of the reference for the same task; None if it is that itself, or there is none.
    """
    others = [other for other in rows if other.cell.task == row.cell.task and other.cell.method == reference]
    return others[0] if others and others[0] is not row else None


def task_table(rows: Sequence[Row], reference: str) -> list[dict[str, Any]]:
    """
    Everything about every cell.

    :param rows: The rows.
    :param reference: Name of the method that others are compared with.
    :return: By column, for CSV.
    """
    found = []
    for row in rows:
        other = reference_of(row, rows, reference)
        kept, difference = (_NOTHING, _NOTHING) if other is None else row.against(other)
        entry: dict[str, Any] = {
            "algorithm": row.cell.algo,
            "environment": row.cell.env,
            "method": row.cell.method,
            "asked_sparsity": "" if row.cell.sparsity is None else row.cell.sparsity,
            "seeds": len(row.complete),
            "failed": row.n_bad,
        }
        columns = {
            "return": row.final(),
            f"last_{LAST}": row.last(),
            "area": row.area(),
            "kept": kept,
            "difference": difference,
        }
        for name, (value, low, high) in columns.items():
            entry |= {name: value, f"{name}_low": low, f"{name}_high": high}
        entry |= {name: row.cost(name) for name in ("sparsity", "flops", "bytes", "parameters", "latency")}
        complete = row.complete.values()
        entry["seconds"] = fmean(result.seconds for result in complete) if complete else math.nan
        found.append(entry)
    return found


def _number(value: float, digits: int = 1) -> str:
    return "-" if math.isnan(value) else f"{value:,.{digits}f}"


def task_markdown(rows: Sequence[Row], reference: str) -> str:
    """
    The same to read.

    :param rows: The rows.
    :param reference: Name of the method that others are compared with.
    :return: A Markdown table.
    """
    header = ["algorithm, environment", "method", "return", "95 % interval", "seeds", f"last {LAST}", "area", "kept of dense"]
    header = [*header[:-1], f"kept of {reference}", "95 % interval", "sparsity", "FLOPs", "bytes", "seconds"]
    lines = []
    for row, entry in zip(rows, task_table(rows, reference), strict=True):
        kept = f"{100 * entry['kept']:.1f} %" if not math.isnan(entry["kept"]) else "-"
        lines.append(
            [
                f"{row.cell.algo}, {row.cell.env}",
                row.cell.label,
                _number(entry["return"]),
                interval(entry["return_low"], entry["return_high"]),
                seeds(len(row.complete), row.n_bad),
                _number(entry[f"last_{LAST}"]),
                _number(entry["area"]),
                kept,
                interval(100 * entry["kept_low"], 100 * entry["kept_high"]),
                "-" if math.isnan(entry["sparsity"]) else f"{100 * entry['sparsity']:.1f} %",
                _number(entry["flops"], 0),
                _number(entry["bytes"], 0),
                _number(entry["seconds"]),
            ]
        )
    return markdown(header, lines)


def scores_of(rows: Sequence[Row], reference: str) -> dict[str, list[list[float]]]:
    """
    Make tasks comparable: 0 is what a random policy has, 1 the mean of the reference.

    :param rows: The rows.
    :param reference: Name of the method.
    :return: By label, scores over seeds for each task; labels that lack one of the tasks are left out, and tasks in which the
        reference has learnt nothing.
    """
    tasks = [
        (row.cell.task, row.floor, fmean(row.returns.values()))
        for row in rows
        if row.cell.method == reference and row.returns and fmean(row.returns.values()) > row.floor
    ]
    found: dict[str, list[list[float]]] = {}
    for label in dict.fromkeys(row.cell.label for row in rows):
        mine = {row.cell.task: row for row in rows if row.cell.label == label and row.returns}
        if tasks and all(task in mine for task, _, _ in tasks):
            found[label] = [
                [(value - floor) / (mean - floor) for value in mine[task].returns.values()] for task, floor, mean in tasks
            ]
    return found


def aggregate_markdown(rows: Sequence[Row], reference: str) -> str:
    """
    Every method over all tasks.

    :param rows: The rows.
    :param reference: Name of the method.
    :return: A Markdown table; empty with fewer than two labels.
    """
    scores = scores_of(rows, reference)
    if len(scores) < 2:
        return ""
    lines = []
    for label, mine in scores.items():
        value, low, high = stratified_interval(iqm, mine)
        better = "-", "-"
        if label != reference and reference in scores:
            found = stratified_interval(probability_of_improvement, mine, scores[reference])
            better = f"{100 * found[0]:.0f} %", interval(100 * found[1], 100 * found[2], 0)
        n_seeds = min(map(len, mine))
        lines.append([label, f"{value:.3f}", interval(low, high, 3), *better, str(len(mine)), seeds(n_seeds)])
    header = ["method", "IQM", "95 % interval", f"better than {reference}", "95 % interval", "tasks", "seeds of a task"]
    return markdown(header, lines)


def has_few_seeds(rows: Sequence[Row]) -> bool:
    """
    Tell whether a warning is in place.

    :param rows: The rows.
    :return: Whether some row has fewer than five seeds.
    """
    return any(len(row.complete) < FEW_SEEDS for row in rows)
