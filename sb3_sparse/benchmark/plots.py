"""Figures of results, as PNG and SVG, which need matplotlib (the extra ``plots``), and their numbers as a table."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from sb3_sparse.benchmark.results import (
    DENSE,
    PRUNED,
    PRUNED_AND_QUANTIZED,
    QUANTIZED,
    VARIANTS,
    Result,
    experiments,
    read_results,
)
from sb3_sparse.runs.figures import COLORS, DASHES, panels, plain_axes
from sb3_sparse.runs.statistics import mean_interval
from sb3_sparse.runs.tables import interval, seeds
from sb3_sparse.utils.figures import position, write_figure
from sb3_sparse.utils.markdown import markdown

_CURVES: dict[str, dict[str, Any]] = {
    PRUNED: dict(color=COLORS[0], marker="o", shift=-0.018),
    PRUNED_AND_QUANTIZED: dict(color=COLORS[1], marker="s", shift=0.018),
}
_LINES: dict[str, dict[str, Any]] = {
    DENSE: dict(color=COLORS[6], linestyle=DASHES[0]),
    QUANTIZED: dict(color=COLORS[2], linestyle=DASHES[1]),
}
_LABELS = {variant: variant for variant in VARIANTS} | {DENSE: "dense, fp32"}


def _by_sparsity(results: Sequence[Result], variant: str) -> dict[float, list[float]]:
    found: dict[float, list[float]] = {}
    for result in results:
        if result.variant == variant:
            found.setdefault(result.sparsity, []).append(result.mean_return)
    return dict(sorted(found.items()))


def _title(results: Sequence[Result]) -> str:
    first = results[0]
    seeds = {len(values) for variant in VARIANTS for values in _by_sparsity(results, variant).values()}
    # Of an experiment that is still under way some agents have fewer
    n_seeds = f"{min(seeds)} seed" if len(seeds) == 1 else f"{min(seeds)}-{max(seeds)} seed"
    title = f"{first.algorithm.upper()}, {first.environment}"
    if first.parameters:
        title += f", {first.parameters.replace('=', ' ')}"
    title += f"\n{first.steps:,} steps"
    if any(result.variant in (QUANTIZED, PRUNED_AND_QUANTIZED) for result in results):
        title += " + 20 % quantized"
    return f"{title}, {n_seeds}{'s' if max(seeds) > 1 else ''} x {first.episodes} episode{'s' if first.episodes > 1 else ''}"


def _ticks(sparsities: Sequence[float]) -> list[float]:
    """Those that have room for their number, from the sparsest on."""
    ticks: list[float] = []
    for sparsity in sorted(set(sparsities), reverse=True):
        if not ticks or position(ticks[-1]) - position(sparsity) > 0.09:
            ticks.append(sparsity)
    return ticks[::-1] or [0.0]


def _draw(axes: Any, results: Sequence[Result]) -> None:
    """One experiment into one pair of axes."""
    drawn = [sparsity for variant in _CURVES for sparsity in _by_sparsity(results, variant)]
    right = max(map(position, drawn), default=1.0) + 0.12
    for variant, style in _LINES.items():
        for values in _by_sparsity(results, variant).values():
            mean, low, high = mean_interval(values)
            if not math.isnan(low):
                axes.axhspan(low, high, color=style["color"], alpha=0.10, linewidth=0)
            axes.axhline(mean, label=_LABELS[variant], linewidth=1.4, zorder=2, **style)
    for variant, curve in _CURVES.items():
        points = _by_sparsity(results, variant)
        if not points:
            continue
        x = [position(sparsity) + curve["shift"] for sparsity in points]
        means, lows, highs = np.array([mean_interval(values) for values in points.values()]).T
        color, marker = curve["color"], curve["marker"]
        axes.errorbar(
            x,
            means,
            # No interval where there is one seed
            yerr=np.nan_to_num([means - lows, highs - means]),
            label=_LABELS[variant],
            color=color,
            marker=marker,
            markersize=5,
            linewidth=1.4,
            elinewidth=1.2,
            capsize=2.5,
            zorder=4,
        )
        for place, values in zip(x, points.values(), strict=True):
            axes.scatter([place] * len(values), values, color=color, marker=marker, s=9, alpha=0.35, linewidth=0, zorder=3)
    ticks = _ticks(drawn)
    axes.set_xlim(min(map(position, drawn), default=0.0) - 0.12, right)
    axes.set_xticks([position(sparsity) for sparsity in ticks], [f"{100 * sparsity:g}" for sparsity in ticks])
    # Intervals of two seeds may be wider than everything that there is to see
    returns = [result.mean_return for result in results]
    room = 0.3 * (max(returns) - min(returns)) or 1.0
    axes.set_ylim(min(returns) - room, max(returns) + room)
    axes.set_xlabel("sparsity (%)")
    axes.set_ylabel("return")
    axes.set_title(_title(results), fontsize=9)
    plain_axes(axes)
    bits = {result.bits for result in results if result.variant == PRUNED_AND_QUANTIZED}
    if len(bits) == 1:
        # The same ticks, read as how much smaller the quantized agents are
        twin = axes.secondary_xaxis(-0.2)
        twin.set_xticks(
            [position(sparsity) for sparsity in ticks],
            [f"{32 / min(bits) / (1 - sparsity):.0f}x" for sparsity in ticks],
            fontsize=8,
        )
        twin.tick_params(length=0)
        twin.spines["bottom"].set_visible(False)
        twin.set_xlabel(f"smaller, with {min(bits)} bits (papers' arithmetic)", fontsize=8)


def _read_all(files: Sequence[str | Path]) -> list[Result]:
    results = [result for file in files for result in read_results(file)]
    if len({result.key for result in results}) < len(results):
        raise ValueError(f"an agent is in more than one of the files {', '.join(map(str, files))}: give each file once")
    if not results:
        raise ValueError(f"there is nothing to show: {', '.join(map(str, files))} have no rows")
    return results


def compression_table(files: Sequence[str | Path]) -> str:
    """
    The numbers of :func:`plot_compression`: a line for every variant and sparsity, with the papers' ratio, the real one and
    packed bytes (both of the mean over seeds, whose masks pack differently), and the mean return with its interval.

    :param files: CSV files.
    :return: A Markdown table for each experiment, under its name.
    :raises FileNotFoundError: If a CSV file is missing.
    :raises ValueError: If one holds something else, or nothing.
    """
    header = ["agent", "sparsity", "papers' ratio", "really smaller", "bytes", "return", "95 % interval", "seeds"]
    blocks = []
    for results in experiments(_read_all(files)).values():
        members: dict[tuple[float, str], list[Result]] = {}
        for result in sorted(results, key=lambda result: (result.sparsity, VARIANTS.index(result.variant))):
            members.setdefault((result.sparsity, result.variant), []).append(result)
        rows = []
        for (sparsity, variant), mine in members.items():
            n_bytes = float(np.mean([result.packed_bytes for result in mine]))
            mean, low, high = mean_interval([result.mean_return for result in mine])
            sizes = [f"{mine[0].papers_ratio:.1f}x", f"{mine[0].dense_bytes / n_bytes:.1f}x", f"{n_bytes:,.0f}"]
            rows.append([variant, f"{100 * sparsity:g} %", *sizes, f"{mean:.1f}", interval(low, high), seeds(len(mine))])
        blocks.append(_title(results).replace("\n", ", ") + "\n\n" + markdown(header, rows))
    return "\n".join(blocks).rstrip("\n")


def plot_compression(files: Sequence[str | Path], output: str | Path) -> list[Path]:
    """
    Return against sparsity (Ivanov et al. 2025, figures 4 and 5): pruned, pruned and quantized, and as lines the dense and the
    quantized network. One panel for each algorithm, environment and number of steps; means over seeds with 95 %
    intervals (Student's t), every seed a faint point. The axis is that of the density's logarithm.

    :param files: CSV files as ``python -m sb3_sparse.benchmark compression`` writes them.
    :param output: Name of the figure; ``.png`` and ``.svg`` are appended. Files that are there are replaced.
    :return: Both files.
    :raises FileNotFoundError: If a CSV file is missing.
    :raises ValueError: If one holds something else, or nothing, and if there is no folder for the figure.
    :raises ImportError: Without matplotlib, saying how to install it.
    """
    found = list(experiments(_read_all(files)).values())

    def fill(figure: Any) -> None:
        for axes, results in zip(panels(figure, len(found)), found, strict=True):
            _draw(axes, results)

    return write_figure(output, (4.9 * min(len(found), 2), 3.9 * math.ceil(len(found) / 2) + 0.4), fill)
