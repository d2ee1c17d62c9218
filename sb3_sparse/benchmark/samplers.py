"""
Optuna's samplers on two problems whose Pareto fronts are known, with a search space like those of :mod:`sb3_sparse.tuning`:
floats, an integer and a choice, on which further parameters depend, and noise on the second objective as on a return.

With ``g = 1 + distance`` and the size ``s`` in [0, 1] both problems minimise ``s`` and

* convex: ``g (1 - sqrt(s / g))`` (ZDT1 of Zitzler, Deb and Thiele 2000), front ``1 - sqrt(s)``
* concave: ``g (1 - (s / g)^2)`` (ZDT2), front ``1 - s^2``

``distance`` is 0 for the best settings of everything else. The hypervolume is that of the noiseless values, divided by the
front's.
"""

from __future__ import annotations

import argparse
import math
import statistics
import sys
import time
import warnings
from collections.abc import Callable, Sequence

import numpy as np
import optuna
from optuna.samplers import BaseSampler, GPSampler, NSGAIISampler, RandomSampler, TPESampler

from sb3_sparse.benchmark.arguments import positive, show
from sb3_sparse.tuning.pareto import hypervolume

#: Of the hypervolume: a bit worse than the worst of the front in size, than almost every trial in the other objective.
REFERENCE = (1.1, 4.4)
NOISE = 0.05
#: Penalty of each choice, as if one updater suited the task and the others less.
_CHOICES = {"a": 0.3, "b": 0.0, "c": 0.6, "d": 0.9}
PROBLEMS: dict[str, Callable[[float, float], float]] = {
    "convex": lambda size, g: g * (1 - math.sqrt(size / g)),
    "concave": lambda size, g: g * (1 - (size / g) ** 2),
}
SAMPLERS: dict[str, Callable[[int], BaseSampler]] = {
    "random": lambda seed: RandomSampler(seed=seed),
    "tpe": lambda seed: TPESampler(seed=seed, multivariate=False),
    "tpe, multivariate": lambda seed: TPESampler(seed=seed, multivariate=True, group=True),
    "nsgaii, population 50": lambda seed: NSGAIISampler(seed=seed),
    "nsgaii, population 20": lambda seed: NSGAIISampler(seed=seed, population_size=20),
    "gp": lambda seed: GPSampler(seed=seed, warn_independent_sampling=False),
    "gp, tpe for the rest": lambda seed: GPSampler(
        seed=seed, warn_independent_sampling=False, independent_sampler=TPESampler(seed=seed, multivariate=False)
    ),
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """
    Declare the arguments of ``samplers``.

    :param parser: Parser of the ``samplers`` sub-command.
    """
    parser.add_argument("--trials", nargs="+", type=positive, default=[25, 50, 100], help="budgets, read off one study")
    parser.add_argument("--seeds", type=positive, default=10, metavar="N", help="seeds 0 to N - 1")
    parser.add_argument("--samplers", nargs="+", choices=list(SAMPLERS), default=list(SAMPLERS))
    parser.add_argument("--json", action="store_true")


def values(trial: optuna.trial.BaseTrial, problem: str) -> tuple[float, float]:
    """
    The two objectives of a test problem.

    :param trial: What suggests the parameters.
    :param problem: A key of :data:`PROBLEMS`.
    :return: Both objectives without noise, both minimised.
    """
    size = trial.suggest_float("size", 0.0, 1.0)
    choice = trial.suggest_categorical("choice", list(_CHOICES))
    distance = _CHOICES[choice]
    distance += abs(math.log10(trial.suggest_float("rate", 1e-5, 1e-2, log=True)) + 3.5) / 2
    distance += abs(trial.suggest_float("fraction", 0.0, 1.0) - 0.3)
    distance += abs(trial.suggest_int("steps", 1, 8) - 3) / 8
    if choice in ("b", "c"):
        distance += abs(trial.suggest_float(f"{choice}_every", 0.0, 1.0) - 0.6) / 2
    return size, PROBLEMS[problem](size, 1 + distance)


def front_hypervolume(problem: str, points: int = 20_001) -> float:
    """
    Area that the problem's true front dominates.

    :param problem: A key of :data:`PROBLEMS`.
    :param points: Points that stand for the front.
    :return: Hypervolume of the analytic front.
    """
    sizes = np.linspace(0, 1, points)
    return hypervolume([(size, PROBLEMS[problem](size, 1.0)) for size in sizes], REFERENCE)


def run_study(sampler: BaseSampler, problem: str, trials: int, seed: int) -> list[tuple[float, float]]:
    """
    Let one sampler work on one problem.

    :param sampler: The sampler.
    :param problem: A key of :data:`PROBLEMS`.
    :param trials: How many.
    :param seed: Of the noise.
    :return: Noiseless values of every trial, in order.
    """
    noise = np.random.default_rng(seed)
    found = []
    study = optuna.create_study(directions=["minimize", "minimize"], sampler=sampler)
    for _ in range(trials):
        trial = study.ask()
        exact = values(trial, problem)
        found.append(exact)
        study.tell(trial, (exact[0], exact[1] + NOISE * noise.standard_normal()))
    return found


def compare(samplers: Sequence[str], budgets: Sequence[int], seeds: int) -> list[dict[str, object]]:
    """
    Measure samplers on both problems.

    :param samplers: Keys of :data:`SAMPLERS`.
    :param budgets: Numbers of trials.
    :param seeds: Studies of each sampler and problem.
    :return: A row for each problem and sampler: median over seeds of the hypervolume, in % of the front's, with quartiles at
        the largest budget, and the seconds of a study.
    """
    rows: list[dict[str, object]] = []
    for problem in PROBLEMS:
        best = front_hypervolume(problem)
        for name in samplers:
            start = time.perf_counter()
            studies = [run_study(SAMPLERS[name](seed), problem, max(budgets), seed) for seed in range(seeds)]
            seconds = (time.perf_counter() - start) / seeds
            row: dict[str, object] = {"problem": problem, "sampler": name}
            for budget in sorted(budgets):
                shares = [100 * hypervolume(study[:budget], REFERENCE) / best for study in studies]
                low, median, high = statistics.quantiles(shares, n=4) if seeds > 1 else shares * 3
                row[f"{budget} trials"] = median
            rows.append({**row, "quartiles": f"{low:.1f} to {high:.1f}", "seconds": seconds})
            print(f"{problem}, {name}: {seconds:.1f} s a study", file=sys.stderr, flush=True)
    return rows


def run(arguments: argparse.Namespace) -> None:
    """
    Compare and print.

    :param arguments: Parsed by :func:`add_arguments`.
    """
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        rows = compare(arguments.samplers, arguments.trials, arguments.seeds)
    note = (
        f"hypervolume in % of the analytic front's, medians of {arguments.seeds} seeds (quartiles at {max(arguments.trials)} "
        f"trials), noise {NOISE} on the second objective, Optuna {optuna.__version__}"
    )
    show((note, rows), as_json=arguments.json)
