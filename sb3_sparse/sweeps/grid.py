"""What a sweep trains: a grid as a YAML file says it, and everything that is wrong with it at once."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import yaml

from sb3_sparse.accelerated.accelerate import STEPS
from sb3_sparse.runs.spec import EPISODE_SEED, RunSpec, evenly
from sb3_sparse.runs.training import check_trainable
from sb3_sparse.tuning.configuration import dense, load_section, with_sparsity
from sb3_sparse.tuning.draft import Draft
from sb3_sparse.tuning.merge import algorithm_of
from sb3_sparse.utils.checks import require_integer, require_positive
from sb3_sparse.zoo.sections import accelerated

DENSE = "dense"
_METHOD_KEYS = {"method", "conf_file", "params", "accelerate"}
_ENVIRONMENT_KEYS = {"algorithms", "steps", "params"}
_SEQUENTIAL_KEYS = {"group", "error"}


@dataclass(frozen=True)
class Grid:
    """
    What a sweep is made of; each is trained with each.

    :param methods: Names of presets; or by any name a map of ``method`` or ``conf_file``, and ``params`` and ``accelerate``.
    :param algorithms: rl-zoo3's names.
    :param environments: Ids; or by id a map of ``algorithms``, ``steps`` and ``params`` of that environment.
    :param sparsities: Sparsities that every method but the dense ones is given; none: each has its own.
    :param seeds: How many, from 0 on, or a list.
    :param steps: Environment steps of a training; None: those of each configuration.
    :param params: Hyperparameters that all have.
    :param episodes: Of each evaluation.
    :param evaluations: Along a training, the one at the end included.
    :param reference: The method that the others are compared with.
    :param accelerate: Whether trainings are accelerated, see :func:`~sb3_sparse.accelerated.accelerate`.
    :param sequential: Spend seeds where they decide: a map of ``group`` (seeds between two looks) and ``error`` (probability
        of a difference that is none), see :class:`~sb3_sparse.runs.statistics.SequentialTest`; None: all seeds for all.
    """

    methods: Any
    environments: Any
    algorithms: list[str] = field(default_factory=list)
    sparsities: list[float] = field(default_factory=list)
    seeds: Any = 3
    steps: int | None = None
    params: dict[str, Any] = field(default_factory=dict)
    episodes: int = 20
    evaluations: int = 20
    reference: str = DENSE
    accelerate: bool = False
    sequential: dict[str, Any] | None = None

    @property
    def seed_list(self) -> list[int]:
        """The seeds."""
        return list(self.seeds) if isinstance(self.seeds, list) else list(range(self.seeds))


@dataclass(frozen=True)
class Cell:
    """
    What is trained with every seed.

    :param method: Name of the method in the grid.
    :param algo: rl-zoo3's name of the algorithm.
    :param env: Id of the environment.
    :param sparsity: What the method was given, None for its own.
    :param section: The configuration.
    :param episodes: Of each evaluation.
    :param evaluations: Along a training.
    """

    method: str
    algo: str
    env: str
    sparsity: float | None
    section: dict[str, Any]
    episodes: int = 20
    evaluations: int = 20

    @property
    def task(self) -> tuple[str, str]:
        """What cells must share to be compared."""
        return self.algo, self.env

    @property
    def label(self) -> str:
        """Method and sparsity."""
        return self.method if self.sparsity is None else f"{self.method} {100 * self.sparsity:g} %"

    def spec(self, seed: int) -> RunSpec:
        """
        One training of it.

        :param seed: Of the training.
        :return: The training.
        """
        checkpoints = evenly(int(self.section["n_timesteps"]), self.evaluations)
        return RunSpec(self.algo, self.env, self.section, seed, self.episodes, EPISODE_SEED, checkpoints)


def read_grid(file: str | Path) -> Grid:
    """
    Read a grid.

    :param file: YAML file. A method's ``conf_file`` is looked for beside it first, then in the working directory.
    :return: The grid, not checked yet.
    :raises FileNotFoundError: If there is no such file.
    :raises ValueError: If it is no YAML, or has keys that nobody knows.
    """
    file = Path(file)
    if not file.is_file():
        raise FileNotFoundError(f"there is no grid {file}")
    try:
        values = yaml.safe_load(file.read_text())
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"the grid {file} is not YAML: {error}") from error
    known = [column.name for column in fields(Grid)]
    if not isinstance(values, dict):
        raise ValueError(f"the grid {file} must be a map of {', '.join(known)}")
    problems = [f"`{name}` is unknown" for name in values if name not in known]
    problems += [f"`{name}` is missing" for name in ("methods", "environments") if not values.get(name)]
    if problems:
        raise ValueError(f"the grid {file}: {'; '.join(problems)}. A grid has: {', '.join(known)}")
    return Grid(**{**values, "methods": _beside(file.parent, values["methods"])})


def _beside(folder: Path, methods: Any) -> Any:
    """Configurations that lie beside the grid are found from any folder."""
    if not isinstance(methods, dict):
        return methods
    return {
        name: {**given, "conf_file": str(folder / given["conf_file"])}
        if isinstance(given, dict) and isinstance(given.get("conf_file"), str) and (folder / given["conf_file"]).is_file()
        else given
        for name, given in methods.items()
    }


def _named(values: Any, argument: str, allowed: set[str], problems: list[str]) -> dict[str, dict[str, Any]]:
    """A list of names, or a map of names to maps, as the latter."""
    if isinstance(values, list):
        values = dict.fromkeys(map(str, values))
    if not isinstance(values, Mapping) or not values:
        problems.append(f"`{argument}` must be a list of names, or a map, got {values!r}")
        return {}
    found = {}
    for name, value in values.items():
        if value is not None and (not isinstance(value, Mapping) or set(value) - allowed):
            problems.append(f"`{argument}` {name!r} must be a map of {', '.join(sorted(allowed))}, got {value!r}")
        else:
            found[str(name)] = dict(value or {})
    return found


def _checked(problems: list[str], check: Callable[..., Any], *arguments: Any, **named: Any) -> Any:
    """What a check gives; None if it fails, and then there is one problem more."""
    try:
        return check(*arguments, **named)
    except (ValueError, TypeError, FileNotFoundError, ImportError, NotImplementedError) as error:
        text = str(error).split("\n")[0]
        if text not in problems:
            problems.append(text)
        return None


def _maps(values: Any) -> list[Mapping[str, Any]]:
    """What a map holds that are maps themselves."""
    return [value for value in values.values() if isinstance(value, Mapping)] if isinstance(values, Mapping) else []


def _check_numbers(grid: Grid, problems: list[str]) -> None:
    own = [one["accelerate"] for one in _maps(grid.methods) if "accelerate" in one]
    problems += [
        f"`accelerate` must be true or false, got {value!r}" for value in (grid.accelerate, *own) if type(value) is not bool
    ]
    seeds = grid.seeds if isinstance(grid.seeds, list) else [grid.seeds]
    low = 0 if isinstance(grid.seeds, list) else 1
    for seed in seeds:
        _checked(problems, require_integer, "seeds", seed, low=low)
    if not seeds or len(set(map(str, seeds))) < len(seeds):
        problems.append(f"`seeds` must be a number, or a list without repetitions, got {grid.seeds!r}")
    for name in ("episodes", "evaluations"):
        _checked(problems, require_integer, name, getattr(grid, name), low=1)
    for sparsity in grid.sparsities:
        _checked(problems, require_positive, "sparsities", sparsity, below=1)
    if grid.sequential is not None:
        unknown = set(grid.sequential) - _SEQUENTIAL_KEYS
        if unknown:
            problems.append(f"`sequential` must be a map of {', '.join(sorted(_SEQUENTIAL_KEYS))}, got {grid.sequential!r}")
        group = _checked(problems, require_integer, "sequential.group", grid.sequential.get("group", 5), low=2)
        _checked(problems, require_positive, "sequential.error", grid.sequential.get("error", 0.05), below=1)
        if group and not problems and len(grid.seed_list) % group:
            problems.append(f"`seeds`, {len(grid.seed_list)}, must be a multiple of `sequential.group`, {group}")


def _section(
    method: str, given: dict[str, Any], algo: str, env: str, sparsity: float | None, steps: int | None, params: dict[str, Any]
) -> dict[str, Any]:
    params = {**params, **given.get("params", {})}
    named = None if "conf_file" in given else given.get("method", method)
    section = load_section(algo, env, method=named, conf_file=given.get("conf_file"), steps=steps, parameters=params)
    if named == DENSE:
        return dense(section, algo)
    if sparsity is not None:
        return with_sparsity(section, algo, sparsity)
    draft = Draft(section, algo)
    # What a stock policy costs cannot be counted; what was dense stays dense
    draft.make_sparse()
    return draft.written()


def cells_of(grid: Grid, *, trainable: bool = True) -> list[Cell]:
    """
    Resolve a grid, and see that all of it can be trained.

    :param grid: The grid.
    :param trainable: Whether every model is made to see that it can be; who only reads results need not.
    :return: Its cells: environment by environment, the reference first.
    :raises ValueError: For everything that is wrong with it, all named at once.
    """
    problems: list[str] = []
    methods = _named(grid.methods, "methods", _METHOD_KEYS, problems)
    environments = _named(grid.environments, "environments", _ENVIRONMENT_KEYS, problems)
    _check_numbers(grid, problems)
    if methods and grid.reference not in methods:
        problems.append(f"`reference` {grid.reference!r} is none of the methods: {', '.join(methods)}")
    cells: list[Cell] = []
    with tempfile.TemporaryDirectory() as folder:
        for env, own in environments.items():
            algorithms = own.get("algorithms", grid.algorithms)
            if not algorithms:
                problems.append(f"`algorithms` is missing for {env!r}")
            for algo in algorithms:
                for method in sorted(methods, key=lambda name: name != grid.reference):
                    given = methods[method]
                    is_dense = given.get("method", method) == DENSE and "conf_file" not in given
                    for sparsity in [None] if is_dense or not grid.sparsities else grid.sparsities:
                        steps, params = own.get("steps", grid.steps), {**grid.params, **own.get("params", {})}
                        section = _checked(problems, _section, method, given, algo, env, sparsity, steps, params)
                        if section is None:
                            continue
                        if given.get("accelerate", grid.accelerate) and algorithm_of(algo) in STEPS:
                            section = accelerated(section)
                        if trainable:
                            _checked(problems, check_trainable, algo, env, section, Path(folder))
                        cells.append(Cell(method, algo, env, sparsity, section, grid.episodes, grid.evaluations))
    if problems:
        raise ValueError("the grid cannot be trained:\n" + "\n".join(f"  - {problem}" for problem in problems))
    return cells
