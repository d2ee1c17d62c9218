"""``python -m sb3_sparse.benchmark claims``: what papers claim beside what our runs say, from results that are there."""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

from sb3_sparse.utils.files import make_folder, write_text


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """
    Declare the arguments.

    :param parser: Parser of the sub-command.
    """
    parser.add_argument("grids", nargs="+", metavar="GRID.yml", help="grids of sweeps; nothing is trained")
    parser.add_argument("--claims", required=True, metavar="CLAIMS.yml", help="the claims, and public results of dense agents")
    parser.add_argument("--runs", required=True, metavar="FOLDER", help="of the trainings")
    parser.add_argument(
        "-o", "--output", required=True, metavar="FOLDER", help="for claims.md, claims.csv, public.csv, runs.csv"
    )


def run(arguments: argparse.Namespace) -> None:
    """
    Write the tables, and print them.

    :param arguments: Parsed arguments.
    :raises ValueError: For grids, claims or results that will not do.
    """
    from sb3_sparse.runs.spec import EPISODE_SEED
    from sb3_sparse.runs.tables import to_csv
    from sb3_sparse.runs.training import random_return
    from sb3_sparse.sweeps import claims as tables
    from sb3_sparse.sweeps.grid import Cell

    def floor(cell: Cell) -> float:
        seeds = range(EPISODE_SEED, EPISODE_SEED + cell.episodes)
        with tempfile.TemporaryDirectory() as folder:
            return random_return(cell.algo, cell.env, cell.section, seeds, Path(folder))

    claims, public = tables.read_claims(arguments.claims)
    rows = tables.rows_of_grids(arguments.grids, arguments.runs, floor)
    judged, beside = tables.claims_table(claims, rows), tables.public_table(public, rows)
    text = tables.claims_markdown(judged)
    if beside:
        text += "\n" + tables.public_markdown(beside)
    make_folder("--output", arguments.output)
    folder = Path(arguments.output)
    write_text(folder / "claims.md", text)
    write_text(folder / "claims.csv", to_csv(judged))
    if beside:
        write_text(folder / "public.csv", to_csv(beside))
    if runs := tables.runs_table(rows):
        write_text(folder / "runs.csv", to_csv(runs))
    print(text)
    n_done = sum(len(row.results) for row in rows.values())
    print(f"{n_done} runs of {len(rows)} cells; written to {folder}")
