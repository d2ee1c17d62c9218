"""Intervals cover as often as they say: simulated. Definitions are hand-worked, or rliable's."""

import itertools
import math
from statistics import fmean

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sb3_sparse.runs.statistics import (
    SequentialTest,
    are_tied,
    area_under_curve,
    iqm,
    last_mean,
    margin,
    mean_interval,
    paired_interval,
    performance_profile,
    probability_of_improvement,
    ratio_interval,
    seeds_without_spread,
    steps_to,
    stratified_interval,
    unseen,
)
from sb3_sparse.runs.statistics.sequential import BETTER, WORSE

returns = st.lists(st.floats(-100, 100), min_size=2, max_size=6)


# --- Means ---


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
    assert math.isnan(mean_interval([1.0])[1])


@pytest.mark.parametrize("n", [2, 3, 5, 10])
@pytest.mark.parametrize("confidence", [0.9, 0.95])
def test_means_and_pairs_cover_as_often_as_they_say(n, confidence):
    """The percentile bootstrap, which stood here before, covers 52 % of two seeds and 71 % of three where it says 95 %."""
    generator, hits, paired = np.random.default_rng(n), 0, 0
    for _ in range(3000):
        values = generator.normal(5, 3, n)
        _, low, high = mean_interval(values, confidence)
        hits += low <= 5 <= high
        # Seeds have something in common
        common = generator.normal(0, 10, n)
        _, low, high = paired_interval(values + common, generator.normal(3, 1, n) + common, confidence)
        paired += low <= 2 <= high
    assert hits / 3000 == pytest.approx(confidence, abs=0.02)
    assert paired / 3000 == pytest.approx(confidence, abs=0.02)


def test_what_pairs_do_for_an_interval():
    values, others = [110.0, 210.0, 311.0], [100.0, 200.0, 300.0]
    _, low, high = paired_interval(values, others)
    assert low == pytest.approx(10 + 1 / 3 - 4.303 / 3, abs=1e-3)
    assert high - low < 3 < 100 < mean_interval(values)[2] - mean_interval(values)[1]


@pytest.mark.parametrize(("paired", "n"), [(True, 3), (True, 5), (False, 3), (False, 5)])
def test_ratios_cover_at_least_as_often_as_they_say(paired, n):
    generator, hits, known = np.random.default_rng(n), 0, 0
    for _ in range(2000):
        common = generator.normal(0, 1, n) if paired else 0
        others = -20 + 10 + common + generator.normal(0, 1, n)
        values = -20 + 8 + common + generator.normal(0, 1, n)
        ratio, low, high = ratio_interval(values, others, floor=-20.0, paired=paired)
        assert ratio == pytest.approx((fmean(values) + 20) / (fmean(others) + 20))
        known += not math.isnan(low)
        hits += math.isnan(low) or low <= 0.8 <= high
    assert known / 2000 > 0.98
    assert 0.94 <= hits / 2000 <= (0.96 if paired else 1.0)


def test_ratios_of_what_has_learnt_nothing_are_unknown():
    assert all(map(math.isnan, ratio_interval([1.0, 2.0], [-3.0, -1.0])))
    ratio, low, high = ratio_interval([1.0, 2.0], [-10.0, 12.0])
    assert (ratio, math.isnan(low), math.isnan(high)) == (1.5, True, True)
    assert math.isnan(ratio_interval([1.0], [2.0])[1])


# --- Margins ---


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
    kwargs = dict(keep=0.97, floor=-1250, confidence=0.9)
    assert margin([-170 - 1e-5, -170 + 1e-5], [-150, -150], **kwargs) == pytest.approx([13, 13, 13], abs=1e-3)
    assert margin([-190, -190], [-150, -150], **kwargs)[0] == pytest.approx(-7)


def test_equal_returns_are_no_proof():
    """Of two trainings that reach 500, a fraction of 1 - sqrt(0.1) may fail unseen; 22 show that it is less than 10 %."""
    kwargs = dict(keep=0.9, floor=20, confidence=0.9)
    assert unseen(2, 0.9) == pytest.approx(1 - 0.1**0.5)
    assert unseen(60, 0.95) == pytest.approx(3 / 60, rel=0.03)
    mean, low, high = margin([500, 500], [500] * 3, **kwargs)
    assert (mean, high) == pytest.approx((48, 48))
    assert low == pytest.approx(48 - (1 - 0.1**0.5) * 480)
    needed = seeds_without_spread(0.9, 0.9)
    assert needed == 22
    assert margin([500] * needed, [500] * 3, **kwargs)[1] >= 0 > margin([500] * (needed - 1), [500] * 3, **kwargs)[1]
    # Two equal ones among others are enough to see that returns saturate, and a spread that is larger counts
    assert are_tied([500, 499, 500], 20)
    assert margin([500, 499, 500], [500] * 3, **kwargs)[1] < 0 < margin([500, 499, 498], [500] * 3, **kwargs)[1]
    wide = margin([500, 500, 20], [500] * 3, **kwargs)
    assert wide[0] - wide[1] == pytest.approx(wide[2] - wide[0])
    assert wide[0] - wide[1] > unseen(3, 0.9) * (1020 / 3 - 20)


# --- Several tasks ---


def test_aggregates_are_rliables():
    """Numbers of rliable 1.2.0 (3 runs of 4 tasks), whose intervals come from other random numbers."""
    generator = np.random.default_rng(0)
    a, b = generator.normal(size=(3, 4)).T, generator.normal(size=(3, 4)).T + 1
    assert stratified_interval(iqm, a) == pytest.approx((-0.00570381, -0.37252929, 0.37591598), abs=0.03)
    assert stratified_interval(iqm, b) == pytest.approx((0.74640499, 0.35941737, 1.21540083), abs=0.03)
    assert iqm(a) == pytest.approx(-0.00570381, abs=1e-8)
    assert stratified_interval(probability_of_improvement, b, a) == pytest.approx((7 / 9, 0.5556, 0.9722), abs=0.03)
    assert probability_of_improvement(a, b) == pytest.approx(2 / 9)
    profile = performance_profile(a, np.linspace(-1, 2, 5))
    assert profile == pytest.approx([11 / 12, 2 / 3, 1 / 4, 1 / 12, 0])


def test_aggregates_by_hand():
    assert iqm([[0.0, 1.0, 2.0], [3.0, 100.0]]) == pytest.approx((1 + 2 + 3) / 3)
    assert probability_of_improvement([[1.0, 2.0], [5.0]], [[1.0, 0.0], [7.0, 9.0]]) == pytest.approx((3.5 / 4 + 0) / 2)
    assert list(performance_profile([[1.0, 2.0], [5.0]], [0.0, 1.5, 5.0])) == [1.0, 0.75, 0.0]
    assert math.isnan(stratified_interval(iqm, [[1.0], [2.0, 3.0]])[1])


def test_stratified_intervals_cover_less_than_they_say_with_few_seeds():
    """What the docstring and the guide say of them."""
    generator, hits = np.random.default_rng(0), 0
    for _ in range(1000):
        _, low, high = stratified_interval(iqm, list(generator.normal(size=(5, 3))), resamples=300)
        hits += low <= 0 <= high
    assert hits / 1000 == pytest.approx(0.87, abs=0.03)


# --- One number of a curve ---


def test_numbers_of_a_curve():
    steps, curve = [10, 20, 40], [0.0, 10.0, 30.0]
    assert last_mean(curve, 2) == 20.0
    assert last_mean(curve) == fmean(curve)
    # (5 * 10 + 20 * 20) / 30
    assert area_under_curve(steps, curve) == pytest.approx(15.0)
    assert area_under_curve([10], [3.0]) == 3.0
    assert [steps_to(steps, curve, goal) for goal in (-1, 5, 30, 31)] == [10, 20, 40, math.inf]


# --- Sequential stopping ---


def simulate(n, effects, *, looks=3, group=4):
    """Fraction of experiments with an error, decided effects in all, and seeds used of a method on average."""
    generator = np.random.default_rng(0)
    errors = decided = used = 0
    for _ in range(n):
        test, reference = SequentialTest(looks, permutations=300), []
        scores = {index: [] for index in range(len(effects))}
        for _ in range(looks):
            reference.append(generator.normal(size=group))
            left = [index for index in scores if index not in test.decided]
            for index in left:
                scores[index].append(generator.normal(effects[index], 1, size=group))
                used += group
            test.look({index: scores[index] for index in left}, reference)
        errors += any(
            not effects[index] or (verdict == BETTER) != (effects[index] > 0) for index, verdict in test.decided.items()
        )
        decided += sum(effects[index] != 0 for index in test.decided)
    return errors / n, decided / n, used / n / len(effects)


@pytest.mark.parametrize("n_methods", [1, 3])
def test_differences_that_are_none_are_rarely_found(n_methods):
    errors, _, used = simulate(500, [0.0] * n_methods)
    assert errors <= 0.075
    assert used > 11.5


def test_differences_are_found_and_spare_seeds():
    errors, decided, used = simulate(150, [3.0, -3.0, 0.0])
    assert errors <= 0.08
    assert decided > 1.9
    assert used < 9.5


def test_a_permutation_test_by_hand():
    """Of 70 ways to choose 4 of 8 scores two are as extreme, 0.029: less than half of 0.07, which the first look may spend."""
    low, high = [1.0, 2.0, 3.0, 4.0], [5.0, 6.0, 7.0, 8.0]
    for error, found in ((0.07, {"method": BETTER}), (0.05, {})):
        assert SequentialTest(2, error, permutations=20_000).look({"method": [high]}, [low]) == found
    test = SequentialTest(2, 0.07, permutations=20_000)
    assert test.look({"method": [low]}, [high]) == test.decided == {"method": WORSE}
    assert test.look({}, [high, high]) == {}


def test_equal_scores_decide_nothing():
    test = SequentialTest(3)
    for k in range(1, 4):
        assert test.look({"method": [[500.0] * 3] * k}, [[500.0] * 3] * k) == {}


def test_looks_that_were_not_planned_are_refused():
    test = SequentialTest(1)
    for reference in ([], [[1.0], [2.0]]):
        with pytest.raises(ValueError, match="this is look 1 of 1, got"):
            test.look({}, reference)
    with pytest.raises(ValueError, match="the groups of 'method' differ in size"):
        test.look({"method": [[1.0]]}, [[1.0, 2.0]])
    test.look({"method": [[1.0]]}, [[1.0]])
    with pytest.raises(ValueError, match="this is look 2 of 1"):
        test.look({}, [[1.0], [2.0]])


@given(st.permutations(range(6)))
def test_the_order_within_groups_does_not_matter(order):
    values = list(itertools.chain(np.random.default_rng(0).normal(size=6)))
    reference = [[0.1, -0.3, 0.5, 0.2, 0.0, 0.9]]
    first = SequentialTest(1, 0.3).look({"a": [values]}, reference)
    assert SequentialTest(1, 0.3).look({"a": [[values[index] for index in order]]}, reference).keys() == first.keys()
