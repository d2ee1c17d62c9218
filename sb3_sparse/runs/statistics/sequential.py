"""
Spend seeds where they decide: compare methods with a reference after every few seeds, and stop where the answer is known.

After AdaStop (Mathieu et al. 2023, "AdaStop: adaptive statistical testing for sound comparisons of Deep RL agents",
arXiv 2306.10882): a group sequential permutation test. Seeds come in groups. After each group the statistic of a comparison is
the absolute difference of both sums of all scores so far; its distribution under "both are the same" comes from exchanging
scores within each group. Of the error a fraction of ``k / looks`` may be spent at the ``k``-th look: a permutation counts that
is as extreme now, or would have been so at an earlier look. Of several comparisons the largest statistic is tested against the
largest of their permutations, then the next, so that the error holds for all of them together.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

#: What a comparison may come to.
BETTER, WORSE = "better", "worse"
_PERMUTATIONS = 5000
#: Sums of the same numbers in another order differ by rounding.
_CLOSE = 1e-9


class SequentialTest:
    """
    A group sequential permutation test of several methods against a reference.

    :param looks: How many groups there may be.
    :param error: Probability of at least one difference that is none, in (0, 1).
    :param permutations: How many are drawn at random.
    :param seed: Of these.
    """

    def __init__(self, looks: int, error: float = 0.05, permutations: int = _PERMUTATIONS, seed: int = 0) -> None:
        self.looks, self.error, self.permutations, self.seed = looks, error, permutations, seed
        #: By method, how it compares with the reference, once that is known.
        self.decided: dict[str, str] = {}
        self._boundaries: list[float] = []

    def look(self, scores: Mapping[str, Sequence[Sequence[float]]], reference: Sequence[Sequence[float]]) -> dict[str, str]:
        """
        Test after a group.

        :param scores: For each method, decided or not, its scores group by group.
        :param reference: Those of the reference.
        :return: What is decided now, by method; it is in :attr:`decided` too.
        :raises ValueError: For more looks than were planned, one that was left out, or groups that differ in size.
        """
        k = len(reference)
        if k != len(self._boundaries) + 1 or k > self.looks:
            raise ValueError(f"this is look {len(self._boundaries) + 1} of {self.looks}, got {k} groups")
        left = [name for name in scores if name not in self.decided]
        for name in left:
            if [len(group) for group in scores[name]] != [len(group) for group in reference]:
                raise ValueError(f"the groups of {name!r} differ in size from the reference's")
        observed = {name: sum(map(sum, scores[name])) - sum(map(sum, reference)) for name in left}
        permuted = {name: self._permuted(scores[name], reference, index) for index, name in enumerate(left)}
        found: dict[str, str] = {}
        allowed, boundary = self.error * k / self.looks, np.inf
        while left:
            largest = max(left, key=lambda name: abs(observed[name]))
            extremes = np.max([permuted[name] for name in left], axis=0)
            earlier = np.zeros(self.permutations, dtype=bool)
            for look, bound in enumerate(self._boundaries):
                earlier |= extremes[look] >= bound
            boundary = self._boundary(extremes[k - 1], earlier, allowed)
            if abs(observed[largest]) < boundary:
                break
            found[largest] = BETTER if observed[largest] > 0 else WORSE
            left.remove(largest)
        self._boundaries.append(boundary)
        self.decided |= found
        return found

    def _boundary(self, extremes: np.ndarray, earlier: np.ndarray, allowed: float) -> float:
        """The smallest statistic that no more permutations reach than may, the observed order counted among them."""
        room = int(allowed * (1 + self.permutations)) - 1 - int(earlier.sum())
        if room < 0:
            return np.inf
        values = np.sort(extremes[~earlier])[::-1]
        if room >= len(values):
            return -np.inf
        # The first that is one too many, and whatever equals it, must stay below
        return float(values[room] * (1 + _CLOSE) + np.finfo(float).tiny)

    def _permuted(self, mine: Sequence[Sequence[float]], reference: Sequence[Sequence[float]], index: int) -> np.ndarray:
        """Absolute differences after each look, of every permutation: looks x permutations."""
        generator = np.random.default_rng([self.seed, index])
        differences = []
        for group, other in zip(mine, reference, strict=True):
            both = np.asarray([*group, *other], dtype=float)
            orders = generator.permuted(np.tile(both, (self.permutations, 1)), axis=1)
            differences.append(orders[:, : len(group)].sum(axis=1) - orders[:, len(group) :].sum(axis=1))
        return np.abs(np.cumsum(differences, axis=0))
