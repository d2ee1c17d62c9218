"""
What papers claim, beside what our runs say: a verdict for each claim, from the results of grids that may be far from finished.

Each claim is about one method beside the dense (or static) agent of its own settings. How much of that agent's return a method
keeps is what sweeps measure, with the same interval; the verdict is nothing but a comparison of that interval with a number.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import yaml

from sb3_sparse.runs.statistics import FEW_SEEDS
from sb3_sparse.runs.store import Store
from sb3_sparse.runs.tables import interval
from sb3_sparse.sweeps.grid import Cell, cells_of, read_grid
from sb3_sparse.sweeps.summary import Interval, Row
from sb3_sparse.utils.checks import require_positive
from sb3_sparse.utils.markdown import markdown

PENDING, CONFIRMED, OPEN, CONTRADICTED = "pending", "confirmed", "not confirmed", "contradicted"


@dataclass(frozen=True)
class Claim:
    """
    A sentence of a paper that runs can speak for or against.

    :param claim: The sentence, in a few words.
    :param source: Where it stands.
    :param algorithm: rl-zoo3's name of the algorithm.
    :param environment: Id of the environment.
    :param method: Label of the method in the grids: its name, and its sparsity where the grid gives it one (``"ds 90 %"``).
    :param reference: Label of what it is compared with.
    :param published: What the paper measured, as it says it.
    :param at_least: What the claim comes to: how much of what the reference has learnt above a random policy the method keeps,
        1 for all.
    """

    claim: str
    source: str
    algorithm: str
    environment: str
    method: str
    reference: str
    published: str
    at_least: float


@dataclass(frozen=True)
class Public:
    """
    What others published for a dense agent of ours.

    :param source: Who.
    :param algorithm: rl-zoo3's name of the algorithm.
    :param environment: Id of the environment.
    :param method: Label of our agent in the grids.
    :param published: Their return.
    :param steps: Their environment steps.
    """

    source: str
    algorithm: str
    environment: str
    method: str
    published: str
    steps: int


def _entries(file: Path, values: Any, name: str, kind: type) -> list[Any]:
    known = [column.name for column in fields(kind)]
    found = []
    for number, entry in enumerate(values.get(name) or [], 1):
        if not isinstance(entry, Mapping) or set(entry) != set(known):
            raise ValueError(f"{file}: number {number} of `{name}` must be a map of {', '.join(known)}, got {entry!r}")
        found.append(kind(**entry))
    return found


def read_claims(file: str | Path) -> tuple[list[Claim], list[Public]]:
    """
    Read claims and public results.

    :param file: YAML file: a map of ``claims``, a list of :class:`Claim`, and ``public``, a list of :class:`Public`.
    :return: Both.
    :raises FileNotFoundError: If there is no such file.
    :raises ValueError: If it holds something else, naming it.
    """
    file = Path(file)
    if not file.is_file():
        raise FileNotFoundError(f"there is no file of claims {file}")
    try:
        values = yaml.safe_load(file.read_text())
    except yaml.YAMLError as error:
        raise ValueError(f"{file} is not YAML: {error}") from error
    if not isinstance(values, dict) or set(values) - {"claims", "public"} or not values.get("claims"):
        raise ValueError(f"{file} must be a map of `claims` and `public`, got {values!r}")
    claims = _entries(file, values, "claims", Claim)
    for claim in claims:
        require_positive(f"at_least of {claim.claim!r}", claim.at_least)
    return claims, _entries(file, values, "public", Public)


def verdict(n_seeds: int, kept: Interval, at_least: float) -> str:
    """
    Say what runs say about a claim.

    :param n_seeds: Seeds that both agents have.
    :param kept: How much is kept, with its 95 % interval.
    :param at_least: What the claim comes to.
    :return: ``"pending"`` without runs; with fewer than five seeds, how few there are; else ``"confirmed"`` if the whole
        interval lies at ``at_least`` or above, ``"contradicted"`` if it lies below, ``"not confirmed"`` if it holds it. All of
        it at the budget of the runs.
    """
    value, low, high = kept
    if n_seeds == 0 or math.isnan(value):
        return PENDING
    if n_seeds < FEW_SEEDS:
        return f"{n_seeds} seed{'s' if n_seeds > 1 else ''}: none"
    if low >= at_least:
        return CONFIRMED
    return CONTRADICTED if high < at_least else OPEN


def rows_of_grids(
    files: Sequence[str | Path], runs: str | Path, floor: Callable[[Cell], float]
) -> dict[tuple[str, str, str], Row]:
    """
    Read what there is of several grids.

    :param files: Grids.
    :param runs: Folder of their trainings.
    :param floor: Gives the return of a policy that has learnt nothing, of a cell.
    :return: Rows by algorithm, environment and label, in the order of the grids; those without a run are there too, without
        results.
    :raises FileNotFoundError: If there is no folder of trainings.
    :raises ValueError: If two grids mean different trainings by one name.
    """
    if not Path(runs).is_dir():
        raise FileNotFoundError(f"`--runs`: there is no folder {runs}")
    store = Store(runs, "--runs")
    rows: dict[tuple[str, str, str], Row] = {}
    cells: dict[tuple[str, str, str], Cell] = {}
    floors: dict[tuple[str, str], float] = {}
    for file in files:
        grid = read_grid(file)
        for cell in cells_of(grid, trainable=False):
            key = (*cell.task, cell.label)
            if key in cells:
                if cells[key].spec(0) != cell.spec(0):
                    raise ValueError(f"`grids`: {file} and a grid before it mean different trainings by {cell.label!r}")
                continue
            results = [found for seed in grid.seed_list if (found := store.get(cell.spec(seed))) is not None]
            if results and cell.task not in floors:
                floors[cell.task] = floor(cell)
            cells[key] = cell
            rows[key] = Row(cell, results, floors.get(cell.task, math.nan))
    return rows


def _row(rows: Mapping[tuple[str, str, str], Row], algorithm: str, environment: str, label: str) -> Row:
    key = (algorithm, environment, label)
    if key not in rows:
        known = ", ".join(name for algo, env, name in rows if (algo, env) == key[:2]) or "nothing"
        raise ValueError(f"the claims name {label!r} of {algorithm} on {environment}; the grids have there: {known}")
    return rows[key]


def claims_table(claims: Sequence[Claim], rows: Mapping[tuple[str, str, str], Row]) -> list[dict[str, Any]]:
    """
    Judge every claim.

    :param claims: The claims.
    :param rows: What :func:`rows_of_grids` gave.
    :return: A row for each, by column.
    :raises ValueError: If a claim names what no grid trains.
    """
    found = []
    for claim in claims:
        row, reference = (_row(rows, claim.algorithm, claim.environment, one) for one in (claim.method, claim.reference))
        kept, _ = row.against(reference)
        n_seeds = len(row.returns.keys() & reference.returns.keys())
        found.append(
            {
                "claim": claim.claim,
                "source": claim.source,
                "algorithm": claim.algorithm,
                "environment": claim.environment,
                "method": claim.method,
                "reference": claim.reference,
                "published": claim.published,
                "at_least": claim.at_least,
                "seeds": n_seeds,
                "return": row.final()[0],
                "reference_return": reference.final()[0],
                "kept": kept[0],
                "kept_low": kept[1],
                "kept_high": kept[2],
                "verdict": verdict(n_seeds, kept, claim.at_least),
            }
        )
    return found


def public_table(public: Sequence[Public], rows: Mapping[tuple[str, str, str], Row]) -> list[dict[str, Any]]:
    """
    Put our dense agents beside public ones.

    :param public: Public results.
    :param rows: What :func:`rows_of_grids` gave.
    :return: A row for each, by column.
    """
    found = []
    for one in public:
        row = _row(rows, one.algorithm, one.environment, one.method)
        found.append(
            {
                "algorithm": one.algorithm,
                "environment": one.environment,
                "agent": one.method,
                "seeds": len(row.complete),
                "steps": int(row.cell.section["n_timesteps"]),
                "return": row.final()[0],
                "source": one.source,
                "published_steps": one.steps,
                "published": one.published,
            }
        )
    return found


def runs_table(rows: Mapping[tuple[str, str, str], Row]) -> list[dict[str, Any]]:
    """
    List every run.

    :param rows: What :func:`rows_of_grids` gave.
    :return: A row for each run: what was trained, what came of it, what it took, and from which commit and versions.
    """
    found = []
    for row in rows.values():
        for result in row.results:
            one = Row(row.cell, [result], row.floor)
            versions = result.versions
            found.append(
                {
                    "run": result.spec.key,
                    "algorithm": row.cell.algo,
                    "environment": row.cell.env,
                    "method": row.cell.label,
                    "seed": result.spec.seed,
                    "steps": result.spec.n_timesteps,
                    "state": result.state,
                    "return": one.final()[0],
                    "last_10": one.last()[0],
                    "area": one.area()[0],
                    **{name: one.cost(name) for name in ("sparsity", "parameters", "bytes", "flops")},
                    "seconds": result.seconds,
                    "commit": versions.get("commit", ""),
                    **{name: versions.get(name, "") for name in ("stable-baselines3", "torch", "gymnasium", "processor")},
                }
            )
    return found


def _number(value: float, digits: int = 0) -> str:
    return "-" if math.isnan(value) else f"{value:,.{digits}f}"


def _name(one: Mapping[str, Any]) -> str:
    return f"{one['claim']} ({one['algorithm']}, {one['environment']}; {one['source']})"


def claims_markdown(table: Sequence[Mapping[str, Any]]) -> str:
    """
    The claims to read: a table of those that something can be said about, and a list of the pending ones.

    :param table: What :func:`claims_table` gave.
    :return: Markdown.
    """
    header = ["claim", "published", "ours, kept", "95 % interval", "seeds", "return", "of the reference", "verdict"]
    lines = [
        [
            _name(one),
            one["published"],
            "-" if math.isnan(one["kept"]) else f"{100 * one['kept']:.1f} %",
            interval(100 * one["kept_low"], 100 * one["kept_high"]),
            str(one["seeds"]),
            _number(one["return"]),
            _number(one["reference_return"]),
            one["verdict"],
        ]
        for one in table
        if one["verdict"] != PENDING
    ]
    pending = [f"* {_name(one)}; published: {one['published']}" for one in table if one["verdict"] == PENDING]
    parts = [markdown(header, lines)] if lines else []
    return "\n".join([*parts, *(["Pending:", "", *pending, ""] if pending else [])])


def public_markdown(table: Sequence[Mapping[str, Any]]) -> str:
    """
    The public results to read.

    :param table: What :func:`public_table` gave.
    :return: A Markdown table.
    """
    header = ["agent", "ours", "steps", "seeds", "public", "steps of it", "who"]
    lines = [
        [
            f"{one['algorithm']}, {one['environment']}, {one['agent']}",
            _number(one["return"]),
            f"{one['steps']:,}",
            str(one["seeds"]),
            one["published"],
            f"{one['published_steps']:,}",
            one["source"],
        ]
        for one in table
    ]
    return markdown(header, lines)
