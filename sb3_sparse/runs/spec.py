"""What a training is: everything that decides its result, and a key that no other training has."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from sb3_sparse.utils.checks import require_integer

#: First seed of the episodes that are played unless somebody asks for others, far from those of any training.
EPISODE_SEED = 1_000_003


@dataclass(frozen=True)
class RunSpec:
    """
    One training, from its configuration to its evaluations. Two of them that are equal give the same agent.

    :param algo: rl-zoo3's name of the algorithm.
    :param env: Id of the environment.
    :param section: The configuration, resolved: what rl-zoo3 is told of the environment, everything in it as YAML holds it.
    :param seed: Of the training.
    :param episodes: Number of episodes of an evaluation.
    :param episode_seed: Seed of the first of them; the next ones have the next seeds.
    :param checkpoints: Environment steps at which it is evaluated besides the end, in order.
    :raises ValueError: For numbers that cannot be.
    """

    algo: str
    env: str
    section: Mapping[str, Any]
    seed: int
    episodes: int = 20
    episode_seed: int = EPISODE_SEED
    checkpoints: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        require_integer("seed", self.seed, low=0)
        require_integer("episodes", self.episodes, low=1)
        steps = list(self.checkpoints)
        if steps != sorted(set(steps)) or not all(0 < step < self.n_timesteps for step in steps):
            raise ValueError(f"`checkpoints` must rise from 1 to less than {self.n_timesteps:,} steps, got {steps}")

    @property
    def n_timesteps(self) -> int:
        """Environment steps of the training."""
        return int(self.section["n_timesteps"])

    @property
    def episode_seeds(self) -> range:
        """A seed for each episode of an evaluation."""
        return range(self.episode_seed, self.episode_seed + self.episodes)

    @property
    def training_key(self) -> str:
        """Of what decides the agent: not of its evaluations."""
        return _hash({"algo": self.algo, "env": self.env, "section": self.section, "seed": self.seed})[:16]

    @property
    def key(self) -> str:
        """Name of the training: readable, and no other one's. Also the name of its folder."""
        evaluation = {"episodes": self.episodes, "episode_seed": self.episode_seed, "checkpoints": list(self.checkpoints)}
        return f"{self.algo}-{slug(self.env)}-seed{self.seed}-{self.training_key}-{_hash(evaluation)[:8]}"

    def includes(self, other: RunSpec) -> bool:
        """
        Tell whether this training says all that another one would.

        :param other: Another training.
        :return: Whether this one's result says all that the other's would: the same agent, played in the same episodes, at
            these checkpoints and perhaps at more.
        """
        return (
            self.training_key == other.training_key
            and (self.episodes, self.episode_seed) == (other.episodes, other.episode_seed)
            and set(self.checkpoints) >= set(other.checkpoints)
        )

    def to_json(self) -> dict[str, Any]:
        """
        Write it down.

        :return: As JSON values.
        """
        return json.loads(json.dumps(asdict(self)))

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> RunSpec:
        """
        Read it again.

        :param values: What :meth:`to_json` gave.
        :return: The training.
        """
        return cls(**{**values, "checkpoints": tuple(values["checkpoints"])})


def _hash(values: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()


def slug(text: str) -> str:
    """
    Make a name that files can have.

    :param text: Id of an environment.
    :return: The same as part of a file's name.
    """
    return re.sub(r"[^A-Za-z0-9_.]+", "-", text)


def evenly(n_timesteps: int, evaluations: int) -> tuple[int, ...]:
    """
    Spread evaluations over a training.

    :param n_timesteps: Environment steps of a training.
    :param evaluations: How many there shall be, the one at the end included.
    :return: The checkpoints before the end, at equal distances.
    """
    steps = {round(n_timesteps * index / evaluations) for index in range(1, evaluations)}
    return tuple(sorted(step for step in steps if 0 < step < n_timesteps))


def check_names(names: Sequence[str], argument: str) -> list[str]:
    """
    Check a list of names.

    :param names: Names that the user gave.
    :param argument: How an error names them.
    :return: The same.
    :raises ValueError: If there are none, or one twice.
    """
    if not names or len(set(names)) < len(names):
        raise ValueError(f"`{argument}` must name one or more, each once, got {list(names)!r}")
    return list(names)
