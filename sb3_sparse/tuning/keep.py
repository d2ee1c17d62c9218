"""
How sparse can it be? The sparsest network that keeps a given part of what the dense one has learnt.

One number is searched, the sparsity of a given method, by bisection on the logarithm of the density. Every decision is a test:
Welch's one-sided limits of the margin over the seeds. A sparsity is accepted when the lower limit is above zero, refused when
the upper one is below, and gets more seeds as long as neither is so; one that is still undecided with all its seeds is not
accepted, for what is claimed must have been seen. So seeds are spent near the boundary.

What was accepted is then trained with new seeds, the reporting ones, and tested once more, the sparsest first; if it fails
there, the next less sparse one has its turn. How many there are is known before the first of these trainings, so each is
tested at so much more confidence that the stated one holds for all of them together (Bonferroni).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import fmean

from sb3_sparse.runs.statistics import are_tied, margin
from sb3_sparse.utils.figures import position

ACCEPTED, REFUSED, UNDECIDED = "accepted", "refused", "undecided"
#: Trainings by sparsity and seed; what diverged has NaN for its return.
Train = Callable[[Sequence[tuple[float, int]]], Sequence[float]]
#: Seeds of the dense reference and of a sparsity before anything is tested.
FIRST_DENSE, FIRST = 3, 2
#: The largest sparsity that is tried.
MOST = 0.99


@dataclass(frozen=True)
class Decision:
    """
    The result of one test.

    :param sparsity: What was tested.
    :param verdict: ``"accepted"``, ``"refused"`` or ``"undecided"``.
    :param margin: How far its mean return lies above what is to be kept, NaN if its trainings diverged.
    :param low: One-sided lower limit of the margin.
    :param high: One-sided upper limit.
    :param seeds: Trainings of it.
    :param is_tied: Whether some of their returns are equal, see :func:`sb3_sparse.runs.statistics.are_tied`.
    """

    sparsity: float
    verdict: str
    margin: float
    low: float
    high: float
    seeds: int
    is_tied: bool = False


def _finite(results: Sequence[float]) -> list[float]:
    return [result for result in results if math.isfinite(result)]


def with_floor(results: Sequence[float], floor: float) -> list[float]:
    """
    Count diverged trainings as having learnt nothing.

    :param results: Returns, NaN where a training diverged.
    :param floor: Return of a policy that has learnt nothing.
    :return: The same; a training that diverged has learnt nothing.
    """
    return [result if math.isfinite(result) else floor for result in results]


def judge(
    sparsity: float, results: Sequence[float], dense: Sequence[float], *, keep: float, floor: float, confidence: float
) -> Decision:
    """
    Test a sparsity. A training that diverged counts as having learnt nothing; two such refuse it, for a configuration that
    diverges now and then is none to recommend.

    :param sparsity: The sparsity.
    :param results: Its returns, NaN where a training diverged; at least two.
    :param dense: Returns of the dense reference, at least two.
    :param keep: Fraction to keep.
    :param floor: Return of a policy that has learnt nothing.
    :param confidence: Of each limit.
    :return: What the test says.
    """
    if len(results) - len(_finite(results)) > 1:
        return Decision(sparsity, REFUSED, math.nan, math.nan, math.nan, len(results))
    returns = with_floor(results, floor)
    mean, low, high = margin(returns, dense, keep=keep, floor=floor, confidence=confidence)
    verdict = ACCEPTED if low >= 0 else REFUSED if high < 0 else UNDECIDED
    return Decision(sparsity, verdict, mean, low, high, len(results), are_tied(returns, floor))


def confirm(
    train: Train, accepted: Sequence[float], n_seeds: int, *, keep: float, floor: float, confidence: float
) -> list[Decision]:
    """
    Train what was accepted again, with new seeds, until one of them passes with these too. The dense reference is trained with
    them in any case, as the answer shows it.

    :param train: Trains with the new seeds.
    :param accepted: Sparsities, in the order in which they have their turn.
    :param n_seeds: New seeds, at least two.
    :param keep: Fraction to keep.
    :param floor: Return of a policy that has learnt nothing, in the episodes of these trainings.
    :param confidence: That nothing is accepted that does not keep so much, for all of these tests together.
    :return: A decision on each that was tested; the last one is the answer if it is accepted.
    """
    found: list[Decision] = []
    each = 1 - (1 - confidence) / max(len(accepted), 1)
    dense: list[float] = []
    for sparsity in accepted or [0.0]:
        levels = ([] if dense else [0.0]) + ([sparsity] if sparsity else [])
        wanted = [(level, index) for index in range(n_seeds) for level in levels]
        results = dict(zip(wanted, train(wanted), strict=True))
        dense = dense or [results[0.0, index] for index in range(n_seeds)]
        if not sparsity:
            break
        if len(_finite(dense)) < 2:
            # Nothing to compare with, whatever is tested
            found.append(Decision(sparsity, UNDECIDED, math.nan, math.nan, math.nan, n_seeds))
            break
        mine = [results[sparsity, index] for index in range(n_seeds)]
        found.append(judge(sparsity, mine, _finite(dense), keep=keep, floor=floor, confidence=each))
        if found[-1].verdict == ACCEPTED:
            break
    return found


class Bisection:
    """
    Searches the sparsest network that keeps enough.

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
        most: float = MOST,
        precision: float = 0.1,
        batch: int = 1,
    ) -> None:
        self.train, self.keep, self.floor, self.confidence = train, keep, floor, confidence
        self.budget, self.max_seeds, self.most, self.precision, self.batch = budget, max_seeds, most, precision, batch
        #: Returns by sparsity, NaN for a training that diverged; 0 is the dense reference.
        self.results: dict[float, list[float]] = {0.0: []}
        self.decisions: list[Decision] = []
        #: The largest sparsity below the boundary and the smallest above it, as far as the search came.
        self.bracket = (0.0, most)
        #: Whether the budget ended the search, or the test of a sparsity, before it was done.
        self.is_cut_short = False

    @property
    def n_trained(self) -> int:
        """Trainings so far, diverged ones included."""
        return sum(map(len, self.results.values()))

    def _add(self, wanted: Sequence[tuple[float, int]]) -> None:
        """Train every sparsity until it has so many trainings."""
        jobs = [(sparsity, seed) for sparsity, n in wanted for seed in range(len(self.results[sparsity]), n)]
        for (sparsity, _), result in zip(jobs, self.train(jobs), strict=True):
            self.results[sparsity].append(result)

    def _test(self, sparsity: float, results: Sequence[float]) -> Decision:
        limits = {"keep": self.keep, "floor": self.floor, "confidence": self.confidence}
        return judge(sparsity, results, _finite(self.results[0.0]), **limits)

    def _is_hopeless(self, decision: Decision) -> bool:
        """Whether more returns that are equal to those that are there would never be enough."""
        if not decision.is_tied:
            return False
        returns = [max(_finite(self.results[decision.sparsity]))] * self.max_seeds
        return self._test(decision.sparsity, returns).verdict == UNDECIDED

    def _decide(self, sparsity: float) -> str | None:
        """Test a sparsity with as many seeds as it takes; None if the budget does not suffice to begin."""
        if self.n_trained + FIRST > self.budget:
            self.is_cut_short = True
            return None
        mine, dense = self.results.setdefault(sparsity, []), self.results[0.0]
        self._add([(sparsity, FIRST)])
        decision = self._test(sparsity, mine)
        while decision.verdict == UNDECIDED and len(mine) < self.max_seeds and not self._is_hopeless(decision):
            if self.n_trained >= self.budget:
                self.is_cut_short = True
                break
            room = min(self.batch, self.budget - self.n_trained)
            more = min(len(mine) + room, self.max_seeds)
            wanted = [(sparsity, more)]
            if len(dense) < more and self.n_trained + 2 * room <= self.budget:
                # The reference's own noise decides as much
                wanted.append((0.0, more))
            self._add(wanted)
            decision = self._test(sparsity, mine)
        self.decisions.append(decision)
        return decision.verdict

    def _reference(self) -> None:
        """Train the dense reference, which must learn something that can be kept."""
        self._add([(0.0, FIRST_DENSE)])
        dense = _finite(self.results[0.0])
        if len(dense) < FIRST_DENSE:
            raise ValueError("the dense reference diverges or fails: there is nothing to compare with")
        mean = fmean(dense)
        if mean <= self.floor:
            raise ValueError(
                f"the dense reference's return, {mean:.1f}, is not above a random policy's, {self.floor:.1f}: "
                "nothing has been learnt that could be kept. Give more --steps"
            )

    def likeliest(self) -> float | None:
        """
        Choose what is worth an estimate where nothing was accepted.

        :return: The sparsest whose mean return keeps enough; else the one whose mean return comes nearest to it; None if all
            that was tried diverged.
        """
        tried = [decision for decision in self.decisions if not math.isnan(decision.margin)]
        # What keeps enough by how sparse it is, the rest by how near it comes
        best = max(tried, key=lambda one: (one.margin >= 0, one.sparsity if one.margin >= 0 else one.margin), default=None)
        return None if best is None else best.sparsity

    def search(self) -> list[float]:
        """
        Bisect.

        :return: The sparsities that were accepted, the sparsest first.
        :raises ValueError: If the dense reference diverges, or has learnt nothing that could be kept.
        """
        self._reference()
        if self._decide(self.most) == ACCEPTED:
            self.bracket = (self.most, self.most)
        while position(self.bracket[1]) - position(self.bracket[0]) > self.precision:
            low, high = self.bracket
            middle = _between(low, high)
            verdict = self._decide(middle)
            if verdict is None:
                break
            self.bracket = (middle, high) if verdict == ACCEPTED else (low, middle)
        accepted = {decision.sparsity for decision in self.decisions if decision.verdict == ACCEPTED}
        return sorted(accepted, reverse=True)


def _between(low: float, high: float) -> float:
    """The sparsity in the middle, on the logarithm of the density."""
    return round(1 - 10 ** (-(position(low) + position(high)) / 2), 4)


def samples(most: float) -> tuple[float, float]:
    """
    Say where the search begins.

    :param most: The largest sparsity to try.
    :return: Where the search begins: there, and in the middle.
    """
    return most, _between(0.0, most)
