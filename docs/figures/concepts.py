"""
The drawings of the page on concepts, made with the package itself: ``python docs/figures/concepts.py`` writes them again.
"""

from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import numpy as np
import torch as th
from matplotlib import pyplot as plt
from matplotlib.patches import FancyBboxPatch

from sb3_sparse.masks.patterns import parse_pattern
from sb3_sparse.masks.schedules import SCHEDULES
from sb3_sparse.runs.figures import COLORS, plain_axes

HERE = Path(__file__).parent
SHAPE = (16, 16)
BLUE, ORANGE, GREEN = COLORS[:3]


def write(figure, name):
    figure.savefig(HERE / f"{name}.svg", metadata={"Date": None})
    plt.close(figure)


def patterns():
    """The same weights under three patterns, half and a quarter of them left."""
    scores = th.rand(SHAPE, generator=th.Generator().manual_seed(5))
    figure, grid = plt.subplots(1, 4, figsize=(9.2, 2.7), layout="constrained")
    for axes, (spec, kept, title) in zip(
        grid,
        [
            ("unstructured", 64, 'pattern="unstructured"\nsparsity=0.75'),
            ("2:4", 128, 'pattern="2:4"\nsparsity=0.5'),
            ("1:4", 64, 'pattern="1:4"\nsparsity=0.75'),
            ("block:4x2", 64, 'pattern="block:4x2"\nsparsity=0.75'),
        ],
        strict=True,
    ):
        pattern = parse_pattern(spec)
        mask = pattern.select(scores, pattern.budget(SHAPE, kept))
        assert int(mask.sum()) == kept
        axes.imshow(mask, cmap=matplotlib.colors.ListedColormap(["#f2f2f2", BLUE]), vmin=0, vmax=1)
        axes.set_xticks(np.arange(-0.5, 16), [])
        axes.set_yticks(np.arange(-0.5, 16), [])
        axes.grid(color="white", linewidth=0.8)
        if ":" in spec and "block" not in spec:
            for x in (3.5, 7.5, 11.5):
                axes.axvline(x, color=ORANGE, linewidth=1.2)
        axes.tick_params(length=0)
        axes.set_title(title, fontsize=9, family="monospace")
        axes.set_xlabel("inputs", fontsize=8)
    grid[0].set_ylabel("outputs", fontsize=8)
    write(figure, "patterns")


def schedules():
    """What changes when, over one training."""
    progress = np.linspace(0, 1, 400)
    figure, (left, right) = plt.subplots(1, 2, figsize=(9.2, 2.8), layout="constrained")
    pruned = np.clip((progress - 0.2) / 0.6, 0, 1)
    left.plot(progress, 100 * 0.95 * (1 - (1 - pruned) ** 3), color=BLUE, label="GradualPruning(0.95)")
    left.axhline(80, color=GREEN, linestyle=(0, (5, 2)), label="sparsity=0.8, SET or RigL")
    left.axvspan(1 / 1.2, 1, color=ORANGE, alpha=0.2, linewidth=0, label="QuantizationAware(bits=8)")
    left.set_ylabel("zeros (%)")
    for name, style in zip(("constant", "linear", "cosine"), ("-", (0, (5, 2)), (0, (1, 1))), strict=True):
        right.plot(
            progress, [100 * 0.5 * SCHEDULES[name](at) for at in progress], label=f'"{name}"', linestyle=style, color=BLUE
        )
    right.set_ylabel("active weights moved\nby an update (%)")
    for axes in (left, right):
        axes.set_xlabel("part of the training")
        axes.set_ylim(bottom=0)
        axes.set_xlim(0, 1)
        plain_axes(axes)
    left.legend(fontsize=8, loc="lower right")
    right.legend(fontsize=8, title="drop_schedule", title_fontsize=8)
    write(figure, "schedules")


def step():
    """What happens in one gradient step."""
    boxes = [
        ("forward", "masked weights\nmultiply: pruned\nones are 0"),
        ("backward", "gradients of\nactive weights\n(RigL: of all, at\nan update)"),
        ("optimizer step", "active weights and\ntheir moments;\npruned ones\nstay 0"),
        ("update of the mask", "only when the\nclock says so:\ndrop, grow,\nprune"),
        ("target network", "Polyak average;\nzero wherever\nits mask is"),
    ]
    figure, axes = plt.subplots(figsize=(9.2, 1.7), layout="constrained")
    for index, (title, text) in enumerate(boxes):
        changes = title == "update of the mask"
        color = ORANGE if changes else BLUE
        box = FancyBboxPatch((index * 2, 0), 1.62, 1.6, boxstyle="round,pad=0.04", facecolor=color + "18", edgecolor=color)
        box.set_linestyle("--" if changes else "-")
        axes.add_patch(box)
        axes.text(index * 2 + 0.81, 1.38, title, ha="center", va="center", fontsize=9, weight="bold")
        axes.text(index * 2 + 0.81, 0.62, text, ha="center", va="center", fontsize=8.5)
        if index:
            axes.annotate("", (index * 2 - 0.06, 0.8), (index * 2 - 0.32, 0.8), arrowprops={"arrowstyle": "->", "lw": 1.2})
    axes.set_xlim(-0.1, 9.75)
    axes.set_ylim(-0.1, 1.75)
    axes.axis("off")
    write(figure, "step")


if __name__ == "__main__":
    matplotlib.rcParams.update({"svg.hashsalt": "sb3_sparse", "svg.fonttype": "path", "font.size": 9})
    patterns()
    schedules()
    step()
