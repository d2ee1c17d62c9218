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
from sb3_sparse.runs.statistics import margin
from sb3_sparse.tuning.keep import ACCEPTED, FIRST_DENSE, REFUSED, UNDECIDED, Bisection, confirm
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
    bisection, accepted = search(Simulated(boundary, 0.01), precision=0.02)
    assert 0 <= math.log10((1 - accepted[0]) / (1 - boundary)) <= 0.03
    assert {decision.verdict for decision in bisection.decisions} <= {ACCEPTED, REFUSED}
    assert accepted == sorted(accepted, reverse=True)
    assert bisection.bracket[0] == accepted[0]
    assert bisection.bracket[1] == min(decision.sparsity for decision in bisection.decisions if decision.verdict == REFUSED)
    assert not bisection.is_cut_short


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
    low, high = bisection.bracket
    assert low in (0.0, *accepted)
    assert high == 0.99 or high not in accepted
    # Where it ended by itself, the bracket is narrow
    if not bisection.is_cut_short:
        assert -math.log10(1 - high) + math.log10(1 - low) <= 0.1
    # What is claimed has been seen
    for decision in bisection.decisions:
        assert (decision.sparsity in accepted) == (decision.verdict == ACCEPTED)
        assert (decision.verdict == ACCEPTED) == (decision.low >= 0)
        assert decision.verdict != UNDECIDED or decision.low < 0 <= decision.high


def test_a_budget_that_ends_the_last_test_is_told_from_one_that_suffices():
    def wild(wanted):
        return [1000.0 + seed + (sparsity and 990 * (seed % 2) - 500) for sparsity, seed in wanted]

    # Wide enough that nothing else is tested
    for max_seeds, is_cut_short in ((3, False), (4, True)):
        bisection, accepted = search(wild, budget=6, max_seeds=max_seeds, precision=3.0)
        assert [(decision.verdict, decision.seeds) for decision in bisection.decisions] == [(UNDECIDED, 3)]
        assert (accepted, bisection.bracket, bisection.is_cut_short) == ([], (0.0, 0.99), is_cut_short)


def test_what_diverges_is_refused():
    bisection, accepted = search(Simulated(0.99, 0.01, diverges_at=0.8))
    assert accepted
    assert max(accepted) < 0.8
    assert all(math.isnan(decision.margin) for decision in bisection.decisions if decision.sparsity >= 0.8)


def test_a_reference_that_has_learnt_nothing_is_an_error():
    with pytest.raises(ValueError, match=r"return, 1030.0, is not above a random policy's, 2000.0.*Give more --steps"):
        search(Simulated(0.9, 0.0), floor=2000.0)
    with pytest.raises(ValueError, match="the dense reference diverges or fails"):
        search(Simulated(0.9, 0.0, diverges_at=0.0))


# --- The answer as a whole ---


def one(mean, generator, *, keep=0.97, confidence=0.9, floor=0.0, seeds=5, max_seeds=6, budget=40):
    """Search and confirm, trainings drawn from a generator: the answer, 0 if there is none."""

    def train(wanted):
        return [mean(sparsity, generator) for sparsity, _ in wanted]

    limits = dict(keep=keep, confidence=confidence, floor=floor)
    accepted = Bisection(train, budget=budget, max_seeds=max_seeds, **limits).search()
    tested = confirm(train, accepted, seeds, **limits)
    return tested[-1].sparsity if tested and tested[-1].verdict == ACCEPTED else 0.0


def rate(mean, n, **kwargs):
    """Fraction of questions that are answered with a sparsity."""
    generator = random.Random(0)
    return sum(one(mean, generator, **kwargs) > 0 for _ in range(n)) / n


@pytest.mark.parametrize("confidence", [0.9, 0.99])
def test_returns_that_saturate_prove_nothing_that_is_not_so(confidence):
    """CartPole: sparse networks reach 500 as dense ones do, but one training in ten ends at 100: 91.6 % is kept, not 97 %."""

    def mean(sparsity, generator):
        return 500.0 if not sparsity or generator.random() < 0.9 else 100.0

    assert rate(mean, 200, confidence=confidence, floor=22.0) == 0


def test_with_seeds_enough_returns_that_saturate_are_decided():
    """Equal returns prove as much as their number says, as often as the confidence says."""
    many = dict(keep=0.9, seeds=22, max_seeds=22, budget=500)
    assert rate(lambda sparsity, generator: 500.0, 1, **many) == 1
    # Keeps 89 %
    false = rate(lambda sparsity, generator: 500.0 if not sparsity or generator.random() < 0.89 else 0.0, 50, **many)
    assert false <= 0.1


def test_what_keeps_too_little_is_rarely_confirmed_and_what_keeps_enough_often():
    """Gaussian returns, every sparsity alike: each question tests several, and none of them may pass in more than a tenth."""
    assert rate(lambda sparsity, generator: generator.gauss(965 if sparsity else 1000, 40), 150) <= 0.1
    assert rate(lambda sparsity, generator: generator.gauss(1000, 10), 50) >= 0.9


def table(returns):
    """Trainings by sparsity, as written down."""
    calls = []

    def train(wanted):
        calls.extend(wanted)
        return [returns[sparsity][index] for sparsity, index in wanted]

    return train, calls


NOISE = [-2.0, -1.0, 0.0, 1.0, 2.0]


def test_confirmation_goes_on_to_the_next_and_is_as_strict_as_there_are_candidates():
    limits = dict(keep=0.97, floor=0.0, confidence=0.9)
    good, bad = [1000 + noise for noise in NOISE], [900 + noise for noise in NOISE]
    train, calls = table({0.0: good, 0.95: bad, 0.9: good, 0.5: good})
    tested = confirm(train, [0.95, 0.9, 0.5], 5, **limits)
    assert [(decision.sparsity, decision.verdict) for decision in tested] == [(0.95, REFUSED), (0.9, ACCEPTED)]
    # Dense once, seed by seed, and nothing after the answer
    assert calls[:4] == [(0.0, 0), (0.95, 0), (0.0, 1), (0.95, 1)]
    assert len(calls) == len(set(calls)) == 15
    # Three candidates: each at 1 - 0.1 / 3
    assert tested[1].low == margin(good, good, keep=0.97, floor=0.0, confidence=1 - 0.1 / 3)[1]
    assert confirm(train, [0.9], 5, **limits)[0].low == margin(good, good, **limits)[1] > tested[1].low
    train, calls = table({0.0: good})
    assert confirm(train, [], 5, **limits) == []
    assert len(calls) == 5


def test_what_diverges_with_a_reporting_seed_is_not_forgotten():
    limits = dict(keep=0.97, floor=0.0, confidence=0.9)
    good = [1000 + noise for noise in NOISE]
    once, twice = [math.nan, *good[1:]], [math.nan, *good[1:4], math.nan]
    train, _ = table({0.0: good, 0.9: once, 0.5: twice})
    first, second = confirm(train, [0.9, 0.5], 5, **limits)
    # Counts as having learnt nothing
    assert (first.verdict, first.margin) == (UNDECIDED, pytest.approx(fmean([0.0, *good[1:]]) - 970))
    assert second.verdict == REFUSED
    assert math.isnan(second.margin)
    # The reference has no easier test by diverging, and none at all if there is nothing left of it
    train, _ = table({0.0: once, 0.9: good})
    (decision,) = confirm(train, [0.9], 5, **limits)
    assert (decision.verdict, decision.margin) == (ACCEPTED, pytest.approx(fmean(good) - 0.97 * fmean(good[1:])))
    train, _ = table({0.0: [1000.0, *[math.nan] * 4], 0.9: good, 0.5: good})
    assert [decision.verdict for decision in confirm(train, [0.9, 0.5], 5, **limits)] == [UNDECIDED]


def test_seeds_are_not_spent_on_equal_returns_that_would_never_be_enough():
    bisection, accepted = search(lambda wanted: [500.0] * len(wanted))
    assert accepted == []
    assert {(decision.verdict, decision.seeds, decision.is_tied) for decision in bisection.decisions} == {(UNDECIDED, 2, True)}
