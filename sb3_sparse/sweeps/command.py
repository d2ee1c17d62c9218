"""What ``sb3-sparse sweep``, ``compare`` and ``report --html`` do with their arguments."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from sb3_sparse.utils.checks import require_integer
from sb3_sparse.utils.command_line import import_modules
from sb3_sparse.utils.files import make_folder

DENSE = "dense"


def run_sweep(arguments: argparse.Namespace) -> None:
    """
    Train a grid, and write its report.

    :param arguments: Parsed by :func:`sb3_sparse.sweeps.arguments.add_sweep_arguments`.
    """
    _require_zoo("sweep")
    from sb3_sparse.sweeps.grid import read_grid

    grid = read_grid(arguments.grid)
    folder = Path(arguments.output or Path("sweeps") / Path(arguments.grid).stem)
    _run(grid, folder, arguments, dry_run=arguments.dry_run)


def run_compare(arguments: argparse.Namespace) -> None:
    """
    Train methods beside dense, test and draw: a sweep in one line.

    :param arguments: Parsed by :func:`sb3_sparse.sweeps.arguments.add_compare_arguments`.
    """
    _require_zoo("compare")
    import_modules("--gym-packages", arguments.gym_packages)
    from sb3_sparse.runs.spec import slug
    from sb3_sparse.sweeps.grid import Grid

    methods = list(dict.fromkeys([DENSE, *arguments.methods]))
    environments: Any = arguments.env
    if arguments.algo is None:
        environments = {env: {"algorithms": [_default_algorithm(env)]} for env in arguments.env}
    grid = Grid(
        methods=methods,
        environments=environments,
        algorithms=arguments.algo or [],
        sparsities=arguments.sparsity,
        seeds=arguments.seeds,
        steps=arguments.steps,
        params=dict(arguments.params),
        episodes=arguments.episodes,
        evaluations=arguments.evaluations,
    )
    name = "-".join([*methods, *(slug(env) for env in arguments.env)])
    _run(grid, Path(arguments.output or Path("sweeps") / name), arguments)


def _require_zoo(command: str) -> None:
    try:
        import rl_zoo3  # noqa: F401
        import scipy  # noqa: F401
    except ModuleNotFoundError as error:
        raise ImportError(f"{command} needs rl-zoo3 and SciPy ({error}): pip install 'sb3-sparse[tuning]'") from error


def _default_algorithm(env: str) -> str:
    import gymnasium as gym
    import rl_zoo3.import_envs  # noqa: F401

    from sb3_sparse.zoo.environments import require_packages

    require_packages(env)
    try:
        made = gym.make(env)
    except gym.error.Error as error:
        raise ValueError(f"`--env` {env!r} cannot be made: {error}") from error
    discrete = isinstance(made.action_space, gym.spaces.Discrete)
    made.close()
    return "dqn" if discrete else "sac"


def _run(grid: Any, folder: Path, arguments: argparse.Namespace, *, dry_run: bool = False) -> None:
    from sb3_sparse.runs.driver import Driver, interruptible
    from sb3_sparse.runs.local import LocalEngine
    from sb3_sparse.runs.store import Store
    from sb3_sparse.sweeps.grid import cells_of
    from sb3_sparse.sweeps.live import states, watched
    from sb3_sparse.sweeps.report import sweep_text, write_sweep
    from sb3_sparse.sweeps.summary import rows_of
    from sb3_sparse.sweeps.sweep import all_specs, make_sweep, train

    require_integer("--workers", arguments.workers, low=1)
    import_modules("--gym-packages", arguments.gym_packages)
    cells = cells_of(grid)
    if dry_run:
        for cell in cells:
            print(
                f"{cell.algo} on {cell.env}: {cell.label}, {cell.section['n_timesteps']:,} steps, {len(grid.seed_list)} seeds"
            )
        return
    make_folder("--output", folder)
    store = Store(arguments.runs or folder / "runs", "--runs")
    if arguments.ray is not None:
        from sb3_sparse.runs.ray_engine import RayEngine

        engine: Any = RayEngine(arguments.ray, store.folder, arguments.gym_packages)
    else:
        engine = LocalEngine(arguments.workers, folder / "workers.log", arguments.gym_packages)
    sweep = make_sweep(grid, cells, folder, store.folder)
    specs = all_specs(sweep)
    try:
        with interruptible(), Driver(store, engine, retry=arguments.retry) as driver, watched(driver, specs):
            train(sweep, driver, grid.sequential, lambda line: print(line, file=sys.stderr, flush=True))
    except KeyboardInterrupt:
        sys.exit(
            f"sb3-sparse: interrupted with {len(states(specs, store))} of {len(specs)} trainings; the same command goes on"
        )
    except ChildProcessError as error:
        sys.exit(f"sb3-sparse: {error}")
    files = write_sweep(folder)
    rows = rows_of(sweep)
    print(sweep_text(sweep, rows))
    bad = [result for row in rows for result in row.results if result.state != "complete"]
    for result in bad:
        print(f"{result.spec.key} {result.reason}", file=sys.stderr)
    if bad:
        print(
            f"{len(bad)} not completed: tracebacks in {store.folder}/*/error.txt; --retry tries failed ones again",
            file=sys.stderr,
        )
    for file in files:
        print(f"written to {file}")


def write_html(path: Path) -> list[Path]:
    """
    Write the page of a sweep or a training.

    :param path: Its folder.
    :return: The files.
    :raises ValueError: If it is neither.
    """
    from sb3_sparse.sweeps.report import kind_of, write_run, write_sweep

    kind = kind_of(path)
    if kind is None:
        raise ValueError(f"`--html`: {path} is neither the folder of a sweep (sweep.json) nor of a training (result.json)")
    return write_sweep(path) if kind == "sweep" else write_run(path)
