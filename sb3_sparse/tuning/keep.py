"""
How sparse can it be? The sparsest network that keeps a given part of what the dense one has learnt.

One number is searched, the sparsity of a given method, by bisection on the logarithm of the density. Every decision is a test:
Welch's one-sided limits of the margin over the seeds. A sparsity is accepted when the lower limit is above zero, refused when
the upper one is below, and gets more seeds as long as neither is so; one that is still undecided with all its seeds is not
accepted, for what is claimed must have been seen. So seeds are spent near the boundary. What the bisection found is then
trained with new seeds, the reporting ones, and tested once more; if it fails there, the next less sparse one that was accepted
has its turn.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from sb3_sparse.benchmark.plots import position
from sb3_sparse.tuning.intervals import margin

ACCEPTED, REFUSED, UNDECIDED = "accepted", "refused", "undecided"
#: Trainings by sparsity and seed; what failed has NaN for its return.
Train = Callable[[Sequence[tuple[float, int]]], Sequence[float]]
#: Seeds of the dense reference and of a sparsity before anything is tested.
FIRST_DENSE, FIRST = 3, 2


@dataclass
class Level:
    """
    A sparsity and what is known of it.

    :param sparsity: 0 for the dense reference.
    :param returns: One for each training that did not fail.
    :param n_trained: Trainings, failed ones included.
    """

    sparsity: float
    returns: list[float] = field(default_factory=list)
    n_trained: int = 0


@dataclass(frozen=True)
class Decision:
    """
    :param sparsity: What was tested.
    :param verdict: ``"accepted"``, ``"refused"`` or ``"undecided"``.
    :param margin: How far its mean return lies above what is to be kept, NaN if its trainings failed.
    :param low: One-sided lower limit of the margin.
    :param high: One-sided upper limit.
    :param seeds: Trainings of it.
    """

    sparsity: float
    verdict: str
    margin: float
    low: float
    high: float
    seeds: int


class Bisection:
    """
    :param train: Trains several sparsities and seeds, perhaps at the same time.
    :param keep: Fraction to keep, in (0, 1].
    :param floor: Return of a policy that has learnt nothing.
    :param confidence: Of each decision, in [0.5, 1).
    :param budget: Trainings in all, those of the dense reference included.
    :param max_seeds: Trainings of a sparsity.
    :param most: The largest sparsity to try, in (0, 1).
    :param precision: Width of the bracket at which the search ends, in orders of magnitude of the density.
    :param batch: Further trainings of an undecided sparsity at a time.
    """

    def __init__(
        self,
        train: Train,
        *,
        keep: float,
        floor: float,
        confidence: float = 0.9,
        budget: int = 40,
        max_seeds: int = 6,
        most: float = 0.99,
        precision: float = 0.1,
        batch: int = 1,
    ) -> None:
        self.train, self.keep, self.floor, self.confidence = train, keep, floor, confidence
        self.budget, self.max_seeds, self.most, self.precision, self.batch = budget, max_seeds, most, precision, batch
        self.dense = Level(0.0)
        self.levels: dict[float, Level] = {}
        self.decisions: list[Decision] = []

    @property
    def n_trained(self) -> int:
        """Trainings so far."""
        return sum(level.n_trained for level in (self.dense, *self.levels.values()))

    def _add(self, wanted: Sequence[tuple[Level, int]]) -> None:
        """Train every level until it has so many trainings."""
        jobs = [(level, seed) for level, n in wanted for seed in range(level.n_trained, n)]
        for (level, _), result in zip(jobs, self.train([(level.sparsity, seed) for level, seed in jobs]), strict=True):
            level.n_trained += 1
            if math.isfinite(result):
                level.returns.append(result)

    def _test(self, level: Level) -> Decision:
        if level.n_trained > len(level.returns) + 1 or len(level.returns) < 2:
            # A configuration that diverges now and then is none to recommend
            return Decision(level.sparsity, REFUSED, math.nan, math.nan, math.nan, level.n_trained)
        mean, low, high = margin(
            level.returns, self.dense.returns, keep=self.keep, floor=self.floor, confidence=self.confidence
        )
        verdict = ACCEPTED if low >= 0 else REFUSED if high < 0 else UNDECIDED
        return Decision(level.sparsity, verdict, mean, low, high, level.n_trained)

    def _decide(self, sparsity: float) -> str | None:
        """Test a sparsity with as many seeds as it takes; None if the budget does not suffice to begin."""
        level = self.levels.setdefault(sparsity, Level(sparsity))
        first = FIRST - level.n_trained
        if self.n_trained + first > self.budget:
            del self.levels[sparsity]
            return None
        self._add([(level, FIRST)])
        decision = self._test(level)
        while decision.verdict == UNDECIDED and level.n_trained < self.max_seeds and self.n_trained < self.budget:
            room = min(self.batch, self.budget - self.n_trained)
            more = min(level.n_trained + room, self.max_seeds)
            wanted = [(level, more)]
            if self.dense.n_trained < more and self.n_trained + 2 * room <= self.budget:
                # The reference's own noise decides as much
                wanted.append((self.dense, more))
            self._add(wanted)
            decision = self._test(level)
        self.decisions.append(decision)
        return decision.verdict

    def reference(self) -> Level:
        """
        Train the dense reference.

        :return: It.
        :raises ValueError: If it diverges, or has learnt nothing that could be kept.
        """
        self._add([(self.dense, FIRST_DENSE)])
        if len(self.dense.returns) < FIRST_DENSE:
            raise ValueError("the dense reference diverges or fails: there is nothing to compare with")
        mean = sum(self.dense.returns) / len(self.dense.returns)
        if mean <= self.floor:
            raise ValueError(
                f"the dense reference's return, {mean:.1f}, is not above a random policy's, {self.floor:.1f}: "
                "nothing has been learnt that could be kept. Give more --steps"
            )
        return self.dense

    def search(self) -> list[float]:
        """
        Bisect.

        :return: The sparsities that were accepted, the sparsest first.
        """
        self.reference()
        low, high = 0.0, position(self.most)
        if self._decide(self.most) != ACCEPTED:
            while high - low > self.precision:
                middle = (low + high) / 2
                verdict = self._decide(round(1 - 10**-middle, 4))
                if verdict is None:
                    break
                low, high = (middle, high) if verdict == ACCEPTED else (low, middle)
        accepted = {decision.sparsity for decision in self.decisions if decision.verdict == ACCEPTED}
        return sorted(accepted, reverse=True)
