"""Fronts, intervals and the bisection of ``--keep``, against brute force, tables and simulated trainings."""

import itertools
import math
import random
from statistics import fmean

import numpy as np
import optuna
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sb3_sparse.benchmark import samplers
from sb3_sparse.benchmark.__main__ import main as benchmark
from sb3_sparse.tuning.intervals import margin, mean_interval
from sb3_sparse.tuning.keep import ACCEPTED, FIRST_DENSE, REFUSED, UNDECIDED, Bisection
from sb3_sparse.tuning.pareto import dominates, front, hypervolume

small = st.integers(0, 6)
points_2d = st.lists(st.tuples(small, small), max_size=12)
returns = st.lists(st.floats(-100, 100), min_size=2, max_size=6)


# --- Fronts ---


@given(st.lists(st.tuples(small, small, small), max_size=12))
def test_front_is_what_nothing_dominates(points):
    chosen = front(points)
    for index, point in enumerate(points):
        assert (index in chosen) == (not any(dominates(other, point) for other in points))
    study = optuna.create_study(directions=["minimize"] * 3)
    study.add_trials([optuna.create_trial(values=list(map(float, point))) for point in points])
    assert {trial.number for trial in study.best_trials} == set(chosen)


@given(points_2d)
def test_hypervolume_is_the_number_of_dominated_cells(points):
    cells = [(x + 0.5, y + 0.5) for x, y in itertools.product(range(5), range(4))]
    covered = sum(any(x <= cell[0] and y <= cell[1] for x, y in points) for cell in cells)
    assert hypervolume(points, (5, 4)) == covered


def test_the_problems_fronts_are_what_they_say():
    best = dict(choice="b", rate=10**-3.5, fraction=0.3, steps=3, b_every=0.6)
    for size in (0.0, 0.25, 1.0):
        trial = optuna.trial.FixedTrial({"size": size, **best})
        assert samplers.values(trial, "convex") == pytest.approx((size, 1 - math.sqrt(size)))
        trial = optuna.trial.FixedTrial({"size": size, **best})
        assert samplers.values(trial, "concave") == pytest.approx((size, 1 - size**2))
    # The reference's rectangle without the area below the curve
    assert samplers.front_hypervolume("convex") == pytest.approx(1.1 * 4.4 - (1 / 3 + 0.1 * 0), abs=1e-3)


def test_samplers_command(capsys):
    names = ["random", "tpe", "nsgaii, population 20", "gp"]
    # Gaussian processes begin after ten trials
    benchmark(["samplers", "--trials", "5", "12", "--seeds", "1", "--samplers", *names])
    rows = [line.split("|")[1:-1] for line in capsys.readouterr().out.splitlines() if line.startswith("| con")]
    assert [row[1].strip() for row in rows] == names * 2
    for row in rows:
        few, many = float(row[2]), float(row[3])
        assert 0 < few <= many < 100


# --- Intervals ---


@pytest.mark.parametrize(
    # Fisher and Yates's table
    ("probability", "df", "expected"),
    [(0.975, 1, 12.706), (0.975, 2, 4.303), (0.95, 3, 2.353), (0.9, 4, 1.533), (0.995, 9, 3.250), (0.975, 30, 2.042)],
)
def test_intervals_have_the_width_of_students_table(probability, df, expected):
    values = [float(value) for value in np.random.default_rng(df).normal(size=df + 1)]
    mean, low, high = mean_interval(values, 2 * probability - 1)
    unit = np.std(values, ddof=1) / math.sqrt(len(values))
    assert [(mean - low) / unit, (high - mean) / unit] == pytest.approx([expected] * 2, abs=6e-4)


def test_intervals_cover_as_often_as_they_say():
    generator = random.Random(0)
    hits = 0
    for _ in range(2000):
        _, low, high = mean_interval([generator.gauss(5, 3) for _ in range(3)], 0.9)
        hits += low <= 5 <= high
    assert hits / 2000 == pytest.approx(0.9, abs=0.02)
    assert math.isnan(mean_interval([1.0])[1])


@given(returns, returns, st.floats(-1e3, 1e3), st.floats(0.1, 10))
def test_margin_does_not_depend_on_the_rewards_offset_and_scale(values, dense, shift, scale):
    kwargs = dict(keep=0.9, confidence=0.9)
    first = margin(values, dense, floor=-50, **kwargs)
    assert first[1] <= first[0] <= first[2]
    moved = [[scale * value + shift for value in some] for some in (values, dense)]
    # Constant returns have no variance, but for rounding
    assert margin(*moved, floor=-50 * scale + shift, **kwargs) == pytest.approx(
        [scale * value for value in first], rel=1e-4, abs=1e-4 * scale
    )


def test_margin_of_negative_returns():
    """Pendulum: 3 % of what has been learnt, not of -150."""
    assert margin([-170, -170], [-150, -150], keep=0.97, floor=-1250, confidence=0.9) == pytest.approx([13, 13, 13])
    assert margin([-190, -190], [-150, -150], keep=0.97, floor=-1250, confidence=0.9)[0] == pytest.approx(-7)


# --- The bisection ---


class Simulated:
    """Trainings whose mean return falls beyond a sparsity, with noise."""

    def __init__(self, boundary, noise, seed=0, diverges_at=2.0):
        self.boundary, self.noise, self.diverges_at = boundary, noise, diverges_at
        self.generator = np.random.default_rng(seed)
        self.calls = []

    def mean(self, sparsity):
        # Down to the threshold of 97 % at the boundary, in orders of magnitude of the density
        beyond = -math.log10(1 - sparsity) + math.log10(1 - self.boundary)
        return 1000 / (1 + 0.03 * math.exp(5 * beyond)) * (1 + 0.03) if sparsity else 1030.0

    def __call__(self, wanted):
        self.calls += wanted
        return [
            math.nan if sparsity >= self.diverges_at else self.mean(sparsity) + self.noise * self.generator.standard_normal()
            for sparsity, _ in wanted
        ]


def search(simulated, **kwargs):
    kwargs = {"keep": 0.97, "floor": 0.0, "confidence": 0.9, "budget": 60, **kwargs}
    bisection = Bisection(simulated, **kwargs)
    return bisection, bisection.search()


@pytest.mark.parametrize("boundary", [0.5, 0.9, 0.97])
def test_without_noise_the_boundary_is_found(boundary):
    bisection, accepted = search(Simulated(boundary, 0.0), precision=0.02)
    assert 0 <= math.log10((1 - accepted[0]) / (1 - boundary)) <= 0.03
    assert {decision.verdict for decision in bisection.decisions} <= {ACCEPTED, REFUSED}
    assert accepted == sorted(accepted, reverse=True)


def test_with_noise_it_is_rarely_too_sparse_and_seeds_are_spent_near_the_boundary():
    too_sparse, spent, found = 0, {True: [], False: []}, []
    for seed in range(200):
        simulated = Simulated(0.9, 12.0, seed)
        bisection, accepted = search(simulated)
        found += accepted[:1]
        too_sparse += bool(accepted) and simulated.mean(accepted[0]) < 0.97 * 1030
        for decision in bisection.decisions:
            near = abs(math.log10((1 - decision.sparsity) / 0.1)) < 0.3
            spent[near].append(decision.seeds)
        assert bisection.n_trained == len(simulated.calls) == len(set(simulated.calls)) <= 60
    # Each of some five decisions errs in up to 10 % of the cases, most of them far from the boundary
    assert too_sparse / 200 < 0.2
    assert fmean(spent[True]) > 1.3 * fmean(spent[False])
    assert np.median(found) > 0.7


@given(st.integers(5, 30), st.integers(2, 7), st.integers(1, 4), st.floats(0, 300), st.integers(0, 1000))
def test_budget_and_seeds_are_limits(budget, max_seeds, batch, noise, seed):
    simulated = Simulated(0.9, noise, seed)
    bisection, accepted = search(simulated, budget=budget, max_seeds=max_seeds, batch=batch, floor=-1e9)
    assert len(simulated.calls) == bisection.n_trained <= budget
    per_sparsity = {}
    for sparsity, _ in simulated.calls:
        per_sparsity[sparsity] = per_sparsity.get(sparsity, 0) + 1
    assert max(per_sparsity.values()) <= max(max_seeds, FIRST_DENSE)
    # What is claimed has been seen
    for decision in bisection.decisions:
        assert (decision.sparsity in accepted) == (decision.verdict == ACCEPTED)
        assert (decision.verdict == ACCEPTED) == (decision.low >= 0)
        assert decision.verdict != UNDECIDED or decision.low < 0 <= decision.high


def test_what_diverges_is_refused():
    bisection, accepted = search(Simulated(0.99, 0.0, diverges_at=0.8))
    assert accepted
    assert max(accepted) < 0.8
    assert all(math.isnan(decision.margin) for decision in bisection.decisions if decision.sparsity >= 0.8)


def test_a_reference_that_has_learnt_nothing_is_an_error():
    with pytest.raises(ValueError, match=r"return, 1030.0, is not above a random policy's, 2000.0.*Give more --steps"):
        search(Simulated(0.9, 0.0), floor=2000.0)
    with pytest.raises(ValueError, match="the dense reference diverges or fails"):
        search(Simulated(0.9, 0.0, diverges_at=0.0))
