"""What can be said of trainings with a few seeds each: every interval and test of this package is one of these."""

from sb3_sparse.runs.statistics.aggregates import iqm, performance_profile, probability_of_improvement, stratified_interval
from sb3_sparse.runs.statistics.curves import area_under_curve, last_mean, steps_to
from sb3_sparse.runs.statistics.means import (
    are_tied,
    margin,
    mean_interval,
    paired_interval,
    ratio_interval,
    seeds_without_spread,
    unseen,
)
from sb3_sparse.runs.statistics.sequential import SequentialTest

#: With fewer seeds a table says so.
FEW_SEEDS = 5

__all__ = [
    "FEW_SEEDS",
    "SequentialTest",
    "are_tied",
    "area_under_curve",
    "iqm",
    "last_mean",
    "margin",
    "mean_interval",
    "paired_interval",
    "performance_profile",
    "probability_of_improvement",
    "ratio_interval",
    "seeds_without_spread",
    "steps_to",
    "stratified_interval",
    "unseen",
]
