"""
What callbacks did, and when: every callback keeps its events in a list ``events``, sends them to Stable-Baselines3's logger
and, if it is verbose, prints them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol


class Event(Protocol):
    """Something that a callback did."""

    @property
    def timestep(self) -> int:
        """Environment step."""

    def logged(self) -> dict[str, float]:
        """What the logger is told, by its key."""


@dataclass(frozen=True)
class TopologyEvent:
    """
    One update of one network.

    :param network: Name of the network.
    :param step: Step of the network's own optimizer at which it happened, counted from 1.
    :param timestep: Environment step.
    :param fraction: Drop fraction that was in force; of a mask refresh or of gradual pruning, the fraction of active weights
        that were dropped.
    :param n_dropped: Weights that existed before and do not now.
    :param n_grown: Weights that exist now and did not before.
    :param explored: Fraction of the network's prunable weights that have ever existed.
    :param sparsity: Fraction of the network's prunable weights that do not exist now.
    """

    network: str
    step: int
    timestep: int
    fraction: float
    n_dropped: int
    n_grown: int
    explored: float
    sparsity: float

    @property
    def divergence(self) -> int:
        """Sparse architecture divergence (SAD; Zhou et al. 2021): positions at which the mask differs from the one before."""
        return self.n_dropped + self.n_grown

    def logged(self) -> dict[str, float]:
        """What the logger is told, by its key."""
        values = {
            "dropped": self.n_dropped,
            "grown": self.n_grown,
            "divergence": self.divergence,
            "explored": self.explored,
            "fraction": self.fraction,
            "sparsity": self.sparsity,
        }
        return {f"topology/{self.network}_{name}": value for name, value in values.items()}

    def __str__(self) -> str:
        return (
            f"{self.network}, step {self.step} (environment step {self.timestep}): {self.n_dropped} weights dropped, "
            f"{self.n_grown} grown, sparsity {self.sparsity:.4f}, drop fraction {self.fraction:.4g}, "
            f"{self.explored:.1%} explored"
        )


@dataclass(frozen=True)
class QuantizationEvent:
    """
    Layers became quantized.

    :param timestep: Environment step.
    :param layers: Their names.
    :param weight_bits: Bits of a weight.
    """

    timestep: int
    layers: tuple[str, ...]
    weight_bits: int

    def logged(self) -> dict[str, float]:
        """What the logger is told, by its key."""
        return {"quantization/weight_bits": self.weight_bits}

    def __str__(self) -> str:
        return f"quantized to {self.weight_bits} bits from environment step {self.timestep} on: {', '.join(self.layers)}"


@dataclass(frozen=True)
class NStepEvent:
    """
    The step length of targets changed.

    :param timestep: Environment step.
    :param n_updates: Gradient updates made before.
    :param n_steps: Step length from the next update on.
    """

    timestep: int
    n_updates: int
    n_steps: int

    def logged(self) -> dict[str, float]:
        """What the logger is told, by its key."""
        return {"replay/n_steps": self.n_steps}

    def __str__(self) -> str:
        return f"{self.n_steps}-step targets from gradient update {self.n_updates + 1} on"


@dataclass(frozen=True)
class CapacityEvent:
    """
    The oldest data was dropped from a replay buffer.

    :param timestep: Environment step.
    :param distance: Distance between the policy and the oldest data, before anything was dropped.
    :param n_dropped: Transitions that were dropped.
    :param capacity: Transitions that are live now.
    """

    timestep: int
    distance: float
    n_dropped: int
    capacity: int

    def logged(self) -> dict[str, float]:
        """What the logger is told, by its key."""
        return {"replay/policy_distance": self.distance, "replay/capacity": self.capacity}

    def __str__(self) -> str:
        return f"dropped the {self.n_dropped} oldest transitions, whose policy distance was {self.distance:.3g}"


@dataclass(frozen=True)
class ResetEvent:
    """
    A replay buffer was emptied.

    :param timestep: Environment step.
    :param n_dropped: Transitions that it held.
    """

    timestep: int
    n_dropped: int

    def logged(self) -> dict[str, float]:
        """What the logger is told, by its key."""
        return {"replay/n_dropped": self.n_dropped}

    def __str__(self) -> str:
        return f"emptied the replay buffer of {self.n_dropped} transitions at environment step {self.timestep}"
