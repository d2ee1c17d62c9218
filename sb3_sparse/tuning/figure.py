"""The figure of a study: return against each of the other objectives."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from sb3_sparse.runs.figures import COLORS, logarithmic_axis, plain_axes
from sb3_sparse.tuning.objectives import OBJECTIVES
from sb3_sparse.tuning.results import Row
from sb3_sparse.tuning.study import Subject
from sb3_sparse.utils.figures import write_figure

_FRONT, _DENSE, _TRIAL = COLORS[0], COLORS[1], "#999999"


def _draw(axes: Any, rows: Sequence[Row], points: Sequence[Row], cost: str) -> None:
    complete = [row for row in rows if row.state == "complete" and not row.is_dense]
    places, returns = [row.measures[cost] for row in complete], [row.tuned for row in complete]
    axes.scatter(places, returns, s=14, color=_TRIAL, alpha=0.6, linewidth=0, label="trial (tuning seed)")
    # What can be had for at most this much
    steps = sorted((point.measures[cost], point.mean) for point in points if point.on_front)
    if steps:
        axes.step(
            [x for x, _ in steps],
            np.maximum.accumulate([y for _, y in steps]),
            where="post",
            color=_FRONT,
            linewidth=1.2,
            zorder=3,
        )
    for is_dense, color, marker, label in ((False, _FRONT, "o", "front"), (True, _DENSE, "s", "dense reference")):
        for on_front in (True, False):
            # What is not reported yet is shown as a trial alone
            members = [
                point for point in points if (point.is_dense, point.on_front, point.is_awaited) == (is_dense, on_front, False)
            ]
            if not members:
                continue
            means = [point.mean for point in members]
            ends = np.array([point.interval() for point in members]).T
            suffix = "" if on_front or is_dense else ", fell off it when trained again"
            axes.errorbar(
                [point.measures[cost] for point in members],
                means,
                # No interval where there is one seed
                yerr=np.nan_to_num(np.abs(ends - means)),
                color=color,
                marker=marker,
                markersize=5.5,
                markerfacecolor=color if on_front or is_dense else "white",
                linestyle="none",
                elinewidth=1.1,
                capsize=2.5,
                zorder=4,
                label=f"{label}{suffix}",
            )
    logarithmic_axis(axes)
    axes.set_xlabel(OBJECTIVES[cost])
    axes.set_ylabel("return")
    plain_axes(axes)


def plot_front(subject: Subject, rows: Sequence[Row], points: Sequence[Row], output: str | Path) -> list[Path]:
    """
    Return against each of the other objectives, one panel each: all trials, the front and the dense reference with the
    intervals of their reporting seeds.

    :param subject: What the study is about.
    :param rows: Its trials.
    :param points: Its front.
    :param output: Name of the figure; ``.png`` and ``.svg`` are appended.
    :return: Both files.
    :raises ImportError: Without matplotlib, saying how to install it.
    """
    costs = subject.objectives[1:]
    n_seeds = max((len(point.returns) for point in points), default=0)
    title = f"{subject.algo.upper()}, {subject.env}, {subject.section['n_timesteps']:,} steps, {len(rows)} trials"
    if n_seeds:
        seeds = f"{n_seeds} reporting seed{'s' if n_seeds > 1 else ''}"
        title += f"\nfront: {seeds} x {subject.episodes} episodes{', 95 % intervals' if n_seeds > 1 else ''}"

    def fill(figure: Any) -> None:
        for axes, cost in zip(figure.subplots(1, len(costs), squeeze=False)[0], costs, strict=True):
            _draw(axes, rows, points, cost)
        figure.suptitle(title, fontsize=9)

    return write_figure(output, (5.2 * len(costs), 4.3), fill, legend_columns=2)
