"""Figures, as PNG and SVG, which need matplotlib (the extra ``plots``)."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

from sb3_sparse.utils.files import replacing

FORMATS = ("png", "svg")


def figure_files(output: str | Path) -> dict[str, Path]:
    """
    The files that a figure is written to.

    :param output: Name of the figure, with or without one of :data:`FORMATS`.
    :return: File by format.
    :raises ValueError: If its folder does not exist.
    """
    path = Path(output)
    if path.suffix.lstrip(".") in FORMATS:
        path = path.with_suffix("")
    if not path.parent.is_dir():
        raise ValueError(f"`--output` {output}: there is no folder {path.parent}")
    return {kind: path.with_name(f"{path.name}.{kind}") for kind in FORMATS}


def write_figure(
    output: str | Path, size: tuple[float, float], fill: Callable[[Any], None], *, legend_columns: int | None = None
) -> list[Path]:
    """
    Draw a figure with one legend below all panels. It needs no screen, and the same contents give the same bytes.

    :param output: As for :func:`figure_files`.
    :param size: Width and height in inches.
    :param fill: Puts the panels into matplotlib's figure.
    :param legend_columns: Columns of the legend; None: all in one row.
    :return: The files, each whole or as it was.
    :raises ValueError: If the folder does not exist.
    :raises ImportError: Without matplotlib, saying how to install it.
    """
    targets = figure_files(output)
    try:
        from matplotlib import rc_context
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
        from matplotlib.layout_engine import ConstrainedLayoutEngine
    except ImportError as error:
        raise ImportError(f"figures need matplotlib ({error}): pip install 'sb3-sparse[plots]'") from error
    # Text stays text in the SVG
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": "sb3-sparse", "font.size": 9}):
        figure = Figure(figsize=size, layout=ConstrainedLayoutEngine(h_pad=0.1, w_pad=0.1))
        FigureCanvasAgg(figure)
        fill(figure)
        handles: dict[str, Any] = {}
        for axes in figure.axes:
            handles |= {label: handle for handle, label in zip(*axes.get_legend_handles_labels(), strict=True)}
        columns = legend_columns or len(handles)
        figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=columns, frameon=False)
        for kind, file in targets.items():
            with replacing(file) as partial:
                figure.savefig(partial, format=kind, dpi=180, metadata={"Date": None} if kind == "svg" else None)
    return list(targets.values())


def position(sparsity: float) -> float:
    """
    Place of a sparsity on a logarithmic axis.

    :param sparsity: In [0, 1).
    :return: Place on the axis, -log10(density): 0, 90 % and 99 % lie one unit apart.
    """
    return -math.log10(1 - sparsity)
