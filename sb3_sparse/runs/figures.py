"""What all figures have in common."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

#: Colours that the colour-blind can tell apart (Okabe and Ito 2008), with a marker and a dash each, for print in grey.
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#333333", "#8C6D31")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
DASHES: tuple[Any, ...] = ("-", (0, (5, 2)), (0, (1, 1)), (0, (4, 1, 1, 1)), (0, (7, 2)), (0, (2, 2)), "-", (0, (3, 1)))


def style(index: int) -> dict[str, Any]:
    """
    How a curve looks.

    :param index: Its number.
    :return: Arguments of matplotlib's ``plot``.
    """
    return {"color": COLORS[index % len(COLORS)], "linestyle": DASHES[index % len(DASHES)]}


def panels(figure: Any, n: int) -> list[Any]:
    """
    Divide a figure, two panels in a row.

    :param figure: Matplotlib's.
    :param n: How many panels.
    :return: Matplotlib's axes.
    """
    columns = min(n, 2)
    grid = list(figure.subplots(math.ceil(n / columns), columns, squeeze=False).flat)
    for axes in grid[n:]:
        axes.remove()
    return grid[:n]


def plain_axes(axes: Any) -> None:
    """
    A quiet grid, and no frame above and on the right.

    :param axes: Matplotlib's.
    """
    axes.grid(alpha=0.25, linewidth=0.6)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)


def log_ticks(low: float, high: float, most: int = 6) -> list[float]:
    """
    Numbers for a logarithmic axis that have room for their text.

    :param low: Lower end, positive.
    :param high: Upper end.
    :param most: How many there may be.
    :return: Powers of ten, or of these also 2 and 5 times as much, in [low, high]; between close ends others that are round.
    """
    exponents = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    for factors in ((1, 2, 5), (1, 3), (1,)):
        ticks = [factor * 10.0**exponent for exponent in exponents for factor in factors]
        ticks = [tick for tick in ticks if low <= tick <= high]
        if 3 <= len(ticks) <= most:
            return ticks
    if len(ticks) > most:
        return ticks[:: math.ceil(len(ticks) / most)]
    # Less than a decade: steps of 1, 2 or 5 times a power of ten
    step = 10.0 ** math.floor(math.log10(max(high - low, low * 1e-3) / 2))
    while (high - low) / step > most - 2:
        step *= 2 if str(step).strip("0.").startswith(("1", "5")) else 2.5
    return [float(tick) for tick in np.arange(math.ceil(low / step), math.floor(high / step) + 1) * step] or [low]


def logarithmic_axis(axes: Any) -> None:
    """
    Make the horizontal axis logarithmic, with few numbers that do not run into each other. Call it when everything is drawn.

    :param axes: Matplotlib's.
    """
    axes.set_xscale("log")
    low, high = axes.get_xlim()
    ticks = log_ticks(low, high)
    axes.set_xticks(ticks, [f"{tick:,.10g}" for tick in ticks])
    axes.set_xticks([], minor=True)
    axes.set_xlim(low, high)
