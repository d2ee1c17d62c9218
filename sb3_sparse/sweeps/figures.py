"""The figures of a sweep."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np

from sb3_sparse.runs.figures import MARKERS, logarithmic_axis, panels, plain_axes, style
from sb3_sparse.runs.statistics import iqm, mean_interval, performance_profile, stratified_interval
from sb3_sparse.sweeps.summary import Row, scores_of
from sb3_sparse.utils.figures import write_figure

_WIDTH, _HEIGHT = 4.6, 3.3
_COSTS = {"flops": "FLOPs of an action", "bytes": "bytes"}
#: Points of a curve over fractions of a training.
_POINTS = 20


def _tasks(rows: Sequence[Row]) -> list[tuple[str, str]]:
    return list(dict.fromkeys(row.cell.task for row in rows))


def _styles(rows: Sequence[Row]) -> dict[str, int]:
    return {label: index for index, label in enumerate(dict.fromkeys(row.cell.label for row in rows))}


def _size(n: int) -> tuple[float, float]:
    return _WIDTH * min(n, 2), _HEIGHT * math.ceil(n / min(n, 2)) + 0.5


def _over_steps(row: Row, value: Callable[[Any], float]) -> tuple[list[int], list[list[float]]]:
    """At each evaluation that all seeds have, one number for each."""
    complete = [result.evaluations for result in row.complete.values()]
    if not complete:
        return [], []
    return [one.step for one in complete[0]], [[value(one) for one in column] for column in zip(*complete, strict=True)]


def _band(axes: Any, steps: Sequence[float], columns: Sequence[Sequence[float]], label: str, index: int) -> None:
    means, lows, highs = np.array([mean_interval(column) for column in columns]).T
    axes.plot(steps, means, label=label, linewidth=1.4, **style(index))
    if not np.isnan(lows).all():
        axes.fill_between(steps, lows, highs, color=style(index)["color"], alpha=0.13, linewidth=0)


def _by_task(rows: Sequence[Row], output: Path, value: Callable[[Any], float], ylabel: str, *, clip: bool) -> list[Path]:
    tasks, styles = _tasks(rows), _styles(rows)

    def fill(figure: Any) -> None:
        for axes, task in zip(panels(figure, len(tasks)), tasks, strict=True):
            drawn: list[float] = []
            for row in rows:
                steps, columns = _over_steps(row, value)
                if row.cell.task == task and steps:
                    _band(axes, steps, columns, row.cell.label, styles[row.cell.label])
                    drawn += [one for column in columns for one in column]
            if clip and drawn:
                # Intervals of two seeds may be wider than everything that there is to see
                low, high = min(drawn), max(drawn)
                room = 0.25 * (high - low) or 1.0
                axes.set_ylim(low - room, high + room)
            axes.set_title(", ".join(task), fontsize=9)
            axes.set_xlabel("environment steps")
            axes.set_ylabel(ylabel)
            plain_axes(axes)

    return write_figure(output, _size(len(tasks)), fill, legend_columns=4)


def learning_curves(rows: Sequence[Row], output: Path) -> list[Path]:
    """
    Return against environment steps, with 95 % intervals over seeds.

    :param rows: The rows.
    :param output: Name of the figure.
    :return: Its files.
    """
    return _by_task(rows, output, lambda one: one.mean, "return", clip=True)


def sparsity_over_time(rows: Sequence[Row], output: Path) -> list[Path]:
    """
    Sparsity of the networks that act against environment steps.

    :param rows: The rows.
    :param output: Name of the figure.
    :return: Its files.
    """
    return _by_task(rows, output, lambda one: 100 * one.costs.get("sparsity", math.nan), "sparsity (%)", clip=True)


def return_against_cost(rows: Sequence[Row], output: Path) -> list[Path]:
    """
    Return at the end against FLOPs and bytes.

    :param rows: The rows.
    :param output: Name of the figure.
    :return: Its files.
    """
    tasks, styles = _tasks(rows), _styles(rows)
    pairs = [(task, cost) for task in tasks for cost in _COSTS]

    def fill(figure: Any) -> None:
        for axes, (task, cost) in zip(panels(figure, len(pairs)), pairs, strict=True):
            for row in rows:
                if row.cell.task != task or not row.complete:
                    continue
                index = styles[row.cell.label]
                mean, low, high = row.final()
                error = None if math.isnan(low) else [[mean - low], [high - mean]]
                values = list(row.returns.values())
                color, marker = style(index)["color"], MARKERS[index % len(MARKERS)]
                place = row.cost(cost)
                axes.errorbar(
                    [place],
                    [mean],
                    yerr=error,
                    color=color,
                    marker=marker,
                    markersize=6,
                    capsize=2.5,
                    label=row.cell.label,
                    linestyle="none",
                    elinewidth=1.1,
                )
                axes.scatter([place] * len(values), values, color=color, s=9, alpha=0.4, linewidth=0)
            axes.set_title(", ".join(task), fontsize=9)
            logarithmic_axis(axes)
            axes.set_xlabel(_COSTS[cost])
            axes.set_ylabel("return")
            plain_axes(axes)

    return write_figure(output, _size(len(pairs)), fill, legend_columns=4)


def inputs(rows: Sequence[Row], output: Path) -> list[Path]:
    """
    Which inputs the first layer looks at: of all its weights, the fraction at each entry of the observation, means over seeds.

    :param rows: The rows.
    :param output: Name of the figure.
    :return: Its files; none where observations are images or dicts.
    """
    found: dict[tuple[str, str], dict[str, np.ndarray]] = {}
    for row in rows:
        shares = []
        for result in row.complete.values():
            counts = np.sum([np.asarray(some, dtype=float) for some in result.inputs.values()], axis=0)
            if np.size(counts) and np.sum(counts):
                shares.append(counts / np.sum(counts))
        if shares:
            found.setdefault(row.cell.task, {})[row.cell.label] = np.mean(shares, axis=0)
    if not found:
        return []

    def fill(figure: Any) -> None:
        for axes, (task, shares) in zip(panels(figure, len(found)), found.items(), strict=True):
            matrix = np.array(list(shares.values()))
            image = axes.imshow(100 * matrix, aspect="auto", cmap="cividis", vmin=0)
            axes.set_yticks(range(len(shares)), list(shares), fontsize=7)
            axes.xaxis.get_major_locator().set_params(integer=True)
            axes.set_xlabel("entry of the observation")
            axes.set_title(", ".join(task), fontsize=9)
            figure.colorbar(image, ax=axes, label="% of the first layer's weights")

    return write_figure(output, _size(len(found)), fill, legend_columns=4)


def _at(row: Row, fraction: float) -> dict[int, float]:
    """Return of each seed at a fraction of its training, between its evaluations."""
    found = {}
    for seed, result in row.complete.items():
        steps = [one.step for one in result.evaluations]
        found[seed] = float(np.interp(fraction * steps[-1], steps, [one.mean for one in result.evaluations]))
    return found


def sample_efficiency(rows: Sequence[Row], reference: str, output: Path) -> list[Path]:
    """
    Interquartile mean over all tasks against the part of the training that is over, 0 what a random policy has and 1 what the
    reference has at the end.

    :param rows: The rows.
    :param reference: Name of the method.
    :param output: Name of the figure.
    :return: Its files; none where nothing compares.
    """
    final = scores_of(rows, reference)
    if not final:
        return []
    ends = {row.cell.task: fmean(row.returns.values()) for row in rows if row.cell.method == reference and row.returns}
    fractions = np.linspace(1 / _POINTS, 1, _POINTS)

    def fill(figure: Any) -> None:
        axes = figure.subplots()
        for index, label in enumerate(final):
            mine = [row for row in rows if row.cell.label == label and row.complete and ends[row.cell.task] > row.floor]
            points = []
            for fraction in fractions:
                scores = [
                    [(value - row.floor) / (ends[row.cell.task] - row.floor) for value in _at(row, fraction).values()]
                    for row in mine
                ]
                points.append(stratified_interval(iqm, scores, resamples=500))
            means, lows, highs = np.array(points).T
            axes.plot(100 * fractions, means, label=label, linewidth=1.4, **style(index))
            axes.fill_between(100 * fractions, lows, highs, color=style(index)["color"], alpha=0.13, linewidth=0)
        axes.set_xlabel("% of the training")
        axes.set_ylabel(f"IQM (0 random, 1 {reference} at the end)")
        plain_axes(axes)

    return write_figure(output, (_WIDTH * 1.4, _HEIGHT + 0.6), fill, legend_columns=4)


def profiles(rows: Sequence[Row], reference: str, output: Path) -> list[Path]:
    """
    Performance profiles: the fraction of runs, over all tasks, that are better than a score.

    :param rows: The rows.
    :param reference: Name of the method.
    :param output: Name of the figure.
    :return: Its files; none where nothing compares.
    """
    scores = scores_of(rows, reference)
    if not scores:
        return []
    values = [value for mine in scores.values() for task in mine for value in task]
    low, high = min(0.0, *values), max(1.0, *values)
    thresholds = np.linspace(low - 0.02 * (high - low), high + 0.02 * (high - low), 200)

    def fill(figure: Any) -> None:
        axes = figure.subplots()
        for index, (label, mine) in enumerate(scores.items()):
            axes.step(
                thresholds,
                performance_profile(mine, list(thresholds)),
                where="post",
                label=label,
                linewidth=1.4,
                **style(index),
            )
        axes.set_xlabel(f"score (0 random, 1 {reference})")
        axes.set_ylabel("fraction of runs above it")
        plain_axes(axes)

    return write_figure(output, (_WIDTH * 1.4, _HEIGHT + 0.6), fill, legend_columns=4)


def draw(rows: Sequence[Row], reference: str, folder: Path) -> dict[str, tuple[str, list[Path]]]:
    """
    Draw everything that there is something to draw of.

    :param rows: The rows.
    :param reference: Name of the method that others are compared with.
    :param folder: For the files; made if need be.
    :return: By name a caption and the files.
    :raises ImportError: Without matplotlib, saying how to install it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if not any(row.complete for row in rows):
        return {}
    some = [row for row in rows if row.complete]
    found = {
        "curves": (
            "Learning curves: mean return over seeds with 95 % intervals (Student's t)",
            learning_curves(some, folder / "curves"),
        ),
        "efficiency": (
            "Sample efficiency: interquartile mean over all tasks, stratified bootstrap intervals",
            sample_efficiency(some, reference, folder / "efficiency"),
        ),
        "profiles": ("Performance profiles over all tasks", profiles(some, reference, folder / "profiles")),
        "costs": (
            "Return at the end against FLOPs and bytes; faint points are seeds",
            return_against_cost(some, folder / "costs"),
        ),
        "sparsity": ("Sparsity of the networks that act, over the training", sparsity_over_time(some, folder / "sparsity")),
        "inputs": ("Which inputs the first layer looks at", inputs(some, folder / "inputs")),
    }
    return {name: (caption, files) for name, (caption, files) in found.items() if files}
