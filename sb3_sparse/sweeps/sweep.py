"""Training a grid: seed by seed, or as many seeds as it takes to decide."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from sb3_sparse.runs.driver import Driver
from sb3_sparse.runs.result import COMPLETE, DIVERGED, RunResult
from sb3_sparse.runs.spec import EPISODE_SEED, RunSpec
from sb3_sparse.runs.statistics import SequentialTest
from sb3_sparse.runs.store import Store
from sb3_sparse.runs.training import random_return
from sb3_sparse.sweeps.grid import Cell, Grid
from sb3_sparse.utils.files import write_text

SWEEP = "sweep.json"


@dataclass(frozen=True)
class Sweep:
    """
    A grid in its folder, as ``sweep.json`` holds it.

    :param cells: What is trained.
    :param seeds: With which seeds, as many as there may be.
    :param reference: The method that the others are compared with.
    :param random: Return of a policy that acts at random, by ``algorithm environment``.
    :param runs: Folder of the trainings.
    """

    cells: list[Cell]
    seeds: list[int]
    reference: str
    random: dict[str, float]
    runs: str

    def floor(self, cell: Cell) -> float:
        """
        Find what a policy has that has learnt nothing.

        :param cell: A cell.
        :return: Mean return at random.
        """
        return self.random[" ".join(cell.task)]

    def results(self) -> list[tuple[Cell, list[RunResult]]]:
        """
        Read what there is.

        :return: Every cell with its results, by seed.
        """
        store = Store(self.runs)
        return [(cell, [found for seed in self.seeds if (found := store.get(cell.spec(seed)))]) for cell in self.cells]

    def write(self, folder: Path) -> Path:
        """
        Write it down.

        :param folder: Where to.
        :return: The file.
        """
        return write_text(folder / SWEEP, json.dumps(asdict(self), indent=1) + "\n")


def read_sweep(folder: Path) -> Sweep:
    """
    Read a sweep.

    :param folder: Its folder.
    :return: The sweep.
    :raises ValueError: If its file cannot be read.
    """
    file = folder / SWEEP
    try:
        values = json.loads(file.read_text())
        return Sweep(**{**values, "cells": [Cell(**cell) for cell in values["cells"]]})
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{file} is no sweep: {error!r}. Start the sweep again, it writes it anew") from error


def make_sweep(grid: Grid, cells: Sequence[Cell], folder: Path, runs: Path | None = None) -> Sweep:
    """
    Put a grid into its folder.

    :param grid: The grid.
    :param cells: What :func:`~sb3_sparse.sweeps.grid.cells_of` gave.
    :param folder: Where to.
    :param runs: Folder of the trainings; None: ``runs`` in it.
    :return: The sweep.
    """
    random: dict[str, float] = {}
    seeds = range(EPISODE_SEED, EPISODE_SEED + grid.episodes)
    for cell in cells:
        name = " ".join(cell.task)
        if name not in random:
            with tempfile.TemporaryDirectory() as temporary:
                random[name] = random_return(cell.algo, cell.env, cell.section, seeds, Path(temporary))
    sweep = Sweep(list(cells), grid.seed_list, grid.reference, random, str((runs or folder / "runs").absolute()))
    sweep.write(folder)
    return sweep


def train(
    sweep: Sweep, driver: Driver, sequential: dict[str, Any] | None = None, say: Callable[[str], None] = lambda _: None
) -> None:
    """
    Train what the store has not got yet.

    :param sweep: The sweep.
    :param driver: What trains.
    :param sequential: See :class:`~sb3_sparse.sweeps.grid.Grid`.
    :param say: Told what sequential stopping decides.
    """
    if sequential is None:
        # Seed by seed: a sweep that is stopped has something of every cell
        driver.run([cell.spec(seed) for seed in sweep.seeds for cell in sweep.cells])
        return
    group, error = sequential.get("group", 5), sequential.get("error", 0.05)
    groups = [sweep.seeds[start : start + group] for start in range(0, len(sweep.seeds), group)]
    tests = {cell.task: SequentialTest(len(groups), error) for cell in sweep.cells}
    for index, seeds in enumerate(groups):
        left = [cell for cell in sweep.cells if cell.label not in tests[cell.task].decided]
        # A task of which everything is decided needs no reference any more
        needed = {cell.task for cell in left if cell.method != sweep.reference}
        left = [cell for cell in left if cell.task in needed]
        driver.run([cell.spec(seed) for seed in seeds for cell in left])
        for task in needed:
            mine = [cell for cell in left if cell.task == task]
            scores = {cell.label: _scores(sweep, cell, driver.store, groups[: index + 1]) for cell in mine}
            reference = next(scores.pop(cell.label) for cell in mine if cell.method == sweep.reference)
            known = {label: some for label, some in scores.items() if some is not None}
            if reference is not None:
                for label, verdict in tests[task].look(known, reference).items():
                    n_seeds = sum(map(len, groups[: index + 1]))
                    say(f"{' '.join(task)}: {label} is {verdict} than {sweep.reference} after {n_seeds} seeds: no more of it")


def _scores(sweep: Sweep, cell: Cell, store: Store, groups: Sequence[Sequence[int]]) -> list[list[float]] | None:
    """Final returns group by group; what diverged has learnt nothing, what failed says nothing."""
    found: list[list[float]] = []
    for seeds in groups:
        results = [store.get(cell.spec(seed)) for seed in seeds]
        if any(result is None or result.state not in (COMPLETE, DIVERGED) for result in results):
            return None
        found.append([result.mean if result.state == COMPLETE else sweep.floor(cell) for result in results if result])
    return found


def all_specs(sweep: Sweep) -> list[RunSpec]:
    """
    List the trainings.

    :param sweep: A sweep.
    :return: All that there may be.
    """
    return [cell.spec(seed) for seed in sweep.seeds for cell in sweep.cells]
