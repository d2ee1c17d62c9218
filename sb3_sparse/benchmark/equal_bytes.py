"""
``python -m sb3_sparse.benchmark equal-bytes``: is a wide sparse actor better than a narrow dense one of as many bytes? A table
and a figure of return against bytes, from whatever of the grids has been trained, beside points that others published.

Ours are bytes of everything that acts: weights in their smallest encoding with indices and scales, biases, and the head for
the standard deviation. Published ones are bytes of weights alone, at other budgets; the table and the figure say so.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sb3_sparse.benchmark.csv_files import read_rows
from sb3_sparse.runs.figures import COLORS, MARKERS, logarithmic_axis, plain_axes
from sb3_sparse.runs.statistics import ratio_interval
from sb3_sparse.runs.tables import interval, seeds, to_csv
from sb3_sparse.sweeps.claims import rows_of_grids
from sb3_sparse.sweeps.summary import Row
from sb3_sparse.utils.figures import write_figure
from sb3_sparse.utils.files import make_folder, write_text
from sb3_sparse.utils.markdown import markdown

#: Sparsities up to this are of networks that nobody pruned.
_DENSE = 1e-6


@dataclass(frozen=True)
class Published:
    """
    A point that others measured.

    :param environment: Id of the environment.
    :param weight_bytes: Bytes of the weights alone.
    :param ratio: Return as a fraction of their full agent's.
    :param what: Which agent.
    :param budget: Steps and seeds.
    :param source: Who.
    """

    environment: str
    weight_bytes: float
    ratio: float
    what: str
    budget: str
    source: str


def read_published(file: str | Path) -> list[Published]:
    """
    Read points that others measured.

    :param file: CSV file with the columns of :class:`Published`.
    :return: The points.
    :raises FileNotFoundError: If there is no such file.
    :raises ValueError: For other columns, or values that are no positive numbers.
    """
    if not Path(file).is_file():
        raise FileNotFoundError(f"`--published`: there is no file {file}")
    rows = read_rows(file, Published, "published points")
    for where, point in rows:
        if not (0 < point.weight_bytes < math.inf and math.isfinite(point.ratio)):
            raise ValueError(
                f"{where}: weight_bytes and ratio must be numbers, the first above 0, got {point.weight_bytes}, {point.ratio}"
            )
    return [point for _, point in rows]


def points_of(rows: Mapping[tuple[str, str, str], Row], reference: str) -> list[dict[str, Any]]:
    """
    Put every agent that has been trained beside the full one.

    :param rows: What :func:`sb3_sparse.sweeps.claims.rows_of_grids` gave.
    :param reference: Label of the full agent.
    :return: A row for each trained agent, the full one included, by bytes: ``ratio`` is its return by the full agent's, paired
        by seed, with Fieller's limits, a training that diverged counting as 0; NaN without the full agent.
    :raises ValueError: If the grids have no such agent.
    """
    if not any(label == reference for _, _, label in rows):
        raise ValueError(f"`--reference` {reference!r} is none of the agents of the grids")
    found = []
    for (algorithm, environment, label), row in rows.items():
        if not row.complete:
            continue
        full = rows.get((algorithm, environment, reference))
        common = sorted(row.returns.keys() & full.returns.keys()) if full is not None else []
        ratio = low = high = math.nan
        if full is not None and common:
            mine, theirs = ([one.returns[seed] for seed in common] for one in (row, full))
            ratio, low, high = ratio_interval(mine, theirs, floor=0.0, paired=True)
        found.append(
            {
                "algorithm": algorithm,
                "environment": environment,
                "agent": label,
                "bits": int(row.cost("bits")),
                "sparsity": row.cost("sparsity"),
                "bytes": row.cost("bytes"),
                "steps": int(row.cell.section["n_timesteps"]),
                "seeds": len(row.complete),
                "return": row.final()[0],
                "ratio": ratio,
                "ratio_low": low,
                "ratio_high": high,
            }
        )
    return sorted(found, key=lambda point: (point["algorithm"], point["environment"], point["bytes"]))


def points_markdown(points: Sequence[Mapping[str, Any]], published: Sequence[Published]) -> str:
    """
    The same to read.

    :param points: What :func:`points_of` gave.
    :param published: Points of others.
    :return: A Markdown table.
    """
    header = ["environment", "agent", "bytes", "return", "of the full agent", "95 % interval", "seeds"]
    lines = [
        [
            f"{one['algorithm']}, {one['environment']}",
            one["agent"],
            f"{one['bytes']:,.0f}",
            f"{one['return']:,.0f}",
            "-" if math.isnan(one["ratio"]) else f"{100 * one['ratio']:.1f} %",
            interval(100 * one["ratio_low"], 100 * one["ratio_high"]),
            seeds(one["seeds"]),
        ]
        for one in points
    ]
    lines += [
        [
            one.environment,
            f"{one.what} ({one.source})",
            f"{one.weight_bytes:,.0f}, weights alone",
            "-",
            f"{100 * one.ratio:.0f} %",
            "-",
            one.budget,
        ]
        for one in published
    ]
    return markdown(header, lines)


def _draw(axes: Any, points: Sequence[Mapping[str, Any]], published: Sequence[Published], title: str, reference: str) -> None:
    full, points = ([one for one in points if (one["agent"] == reference) == is_full] for is_full in (True, False))
    for agent in full:
        label = f"full agent, {agent['bits']} bits"
        axes.plot(agent["bytes"], agent["ratio"], "D", color="#333333", markersize=5, label=label)
    bits = sorted({one["bits"] for one in points}, reverse=True)
    for index, n_bits in enumerate(bits):
        for is_sparse in (True, False):
            mine = [
                one
                for one in points
                if one["bits"] == n_bits and (one["sparsity"] > _DENSE) == is_sparse and not math.isnan(one["ratio"])
            ]
            if not mine:
                continue
            errors = [
                [0.0 if math.isnan(one[f"ratio_{end}"]) else abs(one[f"ratio_{end}"] - one["ratio"]) for one in mine]
                for end in ("low", "high")
            ]
            axes.errorbar(
                [one["bytes"] for one in mine],
                [one["ratio"] for one in mine],
                yerr=errors,
                label=f"{'wide and sparse' if is_sparse else 'narrow and dense'}, {n_bits} bits",
                color=COLORS[index],
                marker=MARKERS[0 if is_sparse else 1],
                linestyle="-" if is_sparse else (0, (4, 2)),
                markersize=5,
                linewidth=1.2,
                capsize=2,
            )
    for source in dict.fromkeys(one.source for one in published):
        mine_too = [one for one in published if one.source == source]
        axes.scatter(
            [one.weight_bytes for one in mine_too],
            [one.ratio for one in mine_too],
            label=f"{source}: weights alone, {mine_too[0].budget}",
            facecolors="none",
            edgecolors="#333333",
            marker="o",
            s=40,
        )
        for one in mine_too:
            axes.annotate(one.what, (one.weight_bytes, one.ratio), xytext=(4, 4), textcoords="offset points", fontsize=7)
    axes.axhline(1.0, color="#999999", linewidth=0.8, zorder=0)
    axes.set_xlabel("bytes")
    axes.set_ylabel("return / full agent's")
    axes.set_title(title, fontsize=9)
    plain_axes(axes)
    logarithmic_axis(axes)


def draw(
    points: Sequence[Mapping[str, Any]], published: Sequence[Published], output: Path, reference: str = "dense"
) -> list[Path]:
    """
    Draw return against bytes, a panel for each algorithm and environment that has agents.

    :param points: What :func:`points_of` gave.
    :param published: Points of others; those of environments that are drawn are drawn too.
    :param output: Name of the figure; ``.png`` and ``.svg`` are appended.
    :param reference: Label of the full agent.
    :return: Both files; none without a point that has a full agent beside it.
    """
    tasks = list(dict.fromkeys((one["algorithm"], one["environment"]) for one in points if not math.isnan(one["ratio"])))
    if not tasks:
        return []

    def fill(figure: Any) -> None:
        for axes, (algorithm, environment) in zip(figure.subplots(1, len(tasks), squeeze=False)[0], tasks, strict=True):
            mine = [one for one in points if (one["algorithm"], one["environment"]) == (algorithm, environment)]
            n_seeds = sorted({one["seeds"] for one in mine})
            counts = f"{'-'.join(map(str, n_seeds))} seed{'' if n_seeds == [1] else 's'}"
            title = f"{algorithm.upper()}, {environment}, {mine[0]['steps']:,} steps, {counts}"
            _draw(axes, mine, [one for one in published if one.environment == environment], title, reference)

    # One column of the legend is about as wide as a panel
    return write_figure(output, (5.4 * len(tasks), 5.4), fill, legend_columns=len(tasks))


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """
    Declare the arguments.

    :param parser: Parser of the sub-command.
    """
    parser.add_argument("grids", nargs="+", metavar="GRID.yml", help="grids of sweeps; nothing is trained")
    parser.add_argument("--runs", required=True, metavar="FOLDER", help="of the trainings")
    parser.add_argument("--reference", default="dense", metavar="AGENT", help="the full agent (default: dense)")
    parser.add_argument("--published", metavar="FILE.csv", help="points that others measured")
    parser.add_argument("-o", "--output", required=True, metavar="FOLDER", help="for equal_bytes.md, .csv, .png and .svg")


def run(arguments: argparse.Namespace) -> None:
    """
    Write the table and the figure, and print the table.

    :param arguments: Parsed arguments.
    :raises ValueError: For grids or points that will not do, and if nothing has been trained.
    """
    published = read_published(arguments.published) if arguments.published else []
    rows = rows_of_grids(arguments.grids, arguments.runs, lambda cell: 0.0)
    points = points_of(rows, arguments.reference)
    if not points:
        raise ValueError(f"`--runs`: nothing of {', '.join(arguments.grids)} is complete in {arguments.runs}")
    make_folder("--output", arguments.output)
    folder = Path(arguments.output)
    text = points_markdown(points, published)
    files = [write_text(folder / "equal_bytes.md", text), write_text(folder / "equal_bytes.csv", to_csv(points))]
    files += draw(points, published, folder / "equal_bytes", arguments.reference)
    print(text)
    for file in files:
        print(f"written to {file}")
