"""The results of compression experiments: a CSV file with one row per trained and evaluated agent."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sb3_sparse.benchmark.csv_files import read_rows, write_rows

DENSE, PRUNED, QUANTIZED, PRUNED_AND_QUANTIZED = VARIANTS = ("dense", "pruned", "quantized", "pruned + quantized")

#: Algorithm, environment, steps, parameters, episodes.
Experiment = tuple[str, str, int, str, int]


@dataclass(frozen=True)
class Result:
    """
    One agent. Sizes are of the networks that choose actions.

    :param algorithm: rl-zoo3's name of the algorithm.
    :param environment: Id of the environment.
    :param variant: One of :data:`VARIANTS`.
    :param sparsity: Fraction of zero weights that was asked for.
    :param bits: Bits of a weight.
    :param seed: Seed of the training.
    :param steps: The paper's N: environment steps of training; a quantized variant has had 20 % more.
    :param parameters: Hyperparameters that were not the preset's, ``name=value`` separated by spaces.
    :param mean_return: Mean return of the evaluation's episodes.
    :param std_return: Their standard deviation.
    :param episodes: Number of episodes, all with deterministic actions.
    :param papers_ratio: (32 / bits) / density of the weights; indices, scales and biases not counted.
    :param packed_bytes: Bytes of all parameters, each layer in its smallest encoding, with indices and scales.
    :param dense_bytes: Bytes of the dense network in fp32.
    """

    algorithm: str
    environment: str
    variant: str
    sparsity: float
    bits: int
    seed: int
    steps: int
    parameters: str
    mean_return: float
    std_return: float
    episodes: int
    papers_ratio: float
    packed_bytes: int
    dense_bytes: int

    @property
    def experiment(self) -> Experiment:
        """What all agents that are compared have in common."""
        return self.algorithm, self.environment, self.steps, self.parameters, self.episodes

    @property
    def key(self) -> tuple[Any, ...]:
        """What no two rows of a file share."""
        return (*self.experiment, self.variant, self.sparsity, self.bits, self.seed)

    @property
    def real_ratio(self) -> float:
        """How many times smaller it is, everything counted."""
        return self.dense_bytes / self.packed_bytes


def read_results(file: str | Path) -> list[Result]:
    """
    Read a file of results.

    :param file: CSV file with the columns of :class:`Result`.
    :return: Its rows, in their order.
    :raises FileNotFoundError: If there is no such file.
    :raises ValueError: For other columns, values that cannot be read, unknown variants, or two rows of one agent; the message
        names the file and the line.
    """
    results: dict[tuple[Any, ...], Result] = {}
    for where, result in read_rows(file, Result, "compression results"):
        if result.variant not in VARIANTS:
            raise ValueError(f"{where}: `variant` must be one of {', '.join(VARIANTS)}, got {result.variant!r}")
        if not 0 <= result.sparsity < 1:
            raise ValueError(f"{where}: `sparsity` must be in [0, 1), got {result.sparsity!r}")
        if result.key in results:
            raise ValueError(f"{where}: there is another row of the same agent, {result.key}")
        results[result.key] = result
    return list(results.values())


def add_results(file: str | Path, new: Iterable[Result]) -> None:
    """
    Add rows to a file, which is made if there is none. The file is replaced as a whole, so it is never half-written; one that
    somebody else has added to in the meantime keeps those rows.

    :param file: CSV file.
    :param new: The rows. One of an agent that is there already is left out.
    """
    file = Path(file)
    results = {result.key: result for result in (read_results(file) if file.exists() else [])}
    for result in new:
        results.setdefault(result.key, result)
    write_rows(file, Result, results.values())


def experiments(results: Sequence[Result]) -> dict[Experiment, list[Result]]:
    """
    Sort results by what they can be compared in.

    :param results: Rows of any experiments.
    :return: Rows by what they can be compared in, in their order.
    """
    found: dict[Experiment, list[Result]] = {}
    for result in results:
        found.setdefault(result.experiment, []).append(result)
    return found
