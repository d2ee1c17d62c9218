"""
What all callbacks that change masks while a network trains share: the clock, the binding to networks, the log.

They act inside ``train()``, in step with each network's own optimizer: a callback of Stable-Baselines3 is only called per
environment step, so all it does itself is to bind an updater to the policy's sparsifier and to log what happened.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch as th
from stable_baselines3.common.callbacks import BaseCallback

from sb3_sparse.nn.sparsifier import Sparsifier
from sb3_sparse.policies.base import sparse_policy
from sb3_sparse.utils.checks import require_choice, require_integer

UNITS = ("steps", "timesteps")


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


def check_moment(name: str, value: Any) -> None:
    """
    A moment of the training: None, a fraction of it, or environment steps.

    :param name: Name of the argument.
    :param value: Its value.
    :raises ValueError: If it is neither None, nor a float in [0, 1], nor a non-negative integer.
    """
    is_fraction = isinstance(value, float) and 0 <= value <= 1
    is_step = isinstance(value, int) and not isinstance(value, bool) and value >= 0
    if value is not None and not is_fraction and not is_step:
        raise ValueError(
            f"`{name}` must be None, a float in [0, 1] (fraction of the training) or an integer (environment steps), "
            f"got {value!r}"
        )


class TopologyCallback(BaseCallback):
    """
    What all callbacks that change masks share: which networks, when, and the log.

    :param every: Updates happen at every ``every``-th step of the network's own optimizer (a TD3 actor's steps are half as
        many as its critic's), or with ``unit="timesteps"`` at the network's first optimizer step after every ``every``
        environment steps.
    :param start: No update before: a float is a fraction of the training, an integer environment steps. None: when
        gradient steps begin (``learning_starts``).
    :param stop: No update from then on, as ``start``. None: updates until the training ends; schedules run over it.
    :param unit: ``"steps"`` or ``"timesteps"``.
    :param networks: A network's name or several; None for all that the callback can update.
    :param verbose: 1 prints every event.
    :raises ValueError: For arguments out of range here; on training start for unknown networks, networks that have an
        updater already, and a stop before the start.
    :raises TypeError: On training start, if the policy is not sparse.
    """

    #: How its arguments `start` and `stop` are called in a callback, for errors.
    _MOMENTS = ("start", "stop")

    def __init__(
        self,
        every: int,
        *,
        start: float | int | None = None,
        stop: float | int | None = None,
        unit: str = "steps",
        networks: str | Sequence[str] | None = None,
        verbose: int = 0,
    ) -> None:
        super().__init__(verbose)
        require_integer("every", every, low=1)
        check_moment("start", start)
        check_moment("stop", stop)
        require_choice("unit", unit, UNITS)
        if type(start) is type(stop) and start is not None and stop is not None and stop <= start:
            raise ValueError(f"`stop`={stop!r} must be after `start`={start!r}")
        self.every = every
        self.start = start
        self.stop = stop
        self.unit = unit
        self.networks = [networks] if isinstance(networks, str) else networks
        #: Every update of the present training, oldest first.
        self.events: list[TopologyEvent] = []
        self._bound: list[str] = []

    @property
    def sparsifier(self) -> Sparsifier:
        """The sparsifier of the policy in training."""
        return sparse_policy(self.model).sparsifier

    # --- The clock ---

    def _timestep_of(self, moment: float | int | None, default: int) -> int:
        if moment is None:
            return default
        return round(moment * self._total) if isinstance(moment, float) else moment

    def progress(self) -> float:
        """Progress from start to stop at the present environment step, in [0, 1]; drop schedules run over it."""
        return min(max((self.model.num_timesteps - self._start) / (self._stop - self._start), 0.0), 1.0)

    def _has_stopped(self) -> bool:
        return self.stop is not None and self.model.num_timesteps >= self._stop

    def _is_due(self, network: str, step: int) -> bool:
        return self.model.num_timesteps >= self._start and not self._has_stopped() and self._on_cadence(network, step)

    def _on_cadence(self, network: str, step: int) -> bool:
        if self.unit == "steps":
            return step % self.every == 0
        return self._period > int(self._state(network, "period"))

    @property
    def _period(self) -> int:
        return self.model.num_timesteps // self.every

    def _state(self, network: str, key: str) -> th.Tensor:
        value = self.sparsifier.updater_state.get(network, key)
        assert value is not None
        return value

    # --- Binding ---

    def _on_training_start(self) -> None:
        sparsifier = self.sparsifier
        self._total = self.model._total_timesteps
        self._start = self._timestep_of(self.start, getattr(self.model, "learning_starts", 0))
        self._stop = self._timestep_of(self.stop, self._total)
        if self.start is None and self.stop is None:
            # A training that ends before gradient steps begin is no mistake of the callback's
            self._stop = max(self._stop, self._start + 1)
        if self._stop <= self._start:
            raise ValueError(
                f"`{self._MOMENTS[1]}`={self.stop!r} (environment step {self._stop}) must be after "
                f"`{self._MOMENTS[0]}`={self.start!r} (environment step {self._start}) in a training of {self._total} steps"
            )
        self._unbind()  # a training that was interrupted may have left its updaters
        self.events.clear()
        updatable = [name for name in sparsifier.networks if self._refusal(name) is None]
        wanted = updatable if self.networks is None else self.networks
        for network in wanted:
            sparsifier.driver(network)
            if (refusal := self._refusal(network)) is not None:
                raise ValueError(f"{type(self).__name__} cannot update network {network!r}: {refusal}")
        if not wanted:
            refusals = "; ".join(f"{name}: {self._refusal(name)}" for name in sparsifier.networks)
            raise ValueError(f"{type(self).__name__} has no network to update ({refusals})")
        try:
            for network in wanted:
                self._prepare(network)
                sparsifier.bind(network, self)
                self._bound.append(network)
        except ValueError:
            self._unbind()
            raise

    def _on_training_end(self) -> None:
        self._unbind()

    def _unbind(self) -> None:
        for network in self._bound:
            self.sparsifier.unbind(network)
        self._bound.clear()

    def _prunable(self, network: str) -> list[str]:
        """Layers of the network that have something to update: neither exempt nor full."""
        sparsifier = self.sparsifier
        return [
            name
            for name in sparsifier.networks[network]
            if not sparsifier.plan[name].exempt and sparsifier.layers[name].mask_values is not None
        ]

    def _refusal(self, network: str) -> str | None:
        """Why the callback cannot update a network, or None if it can."""
        return None if self._prunable(network) else "none of its layers is pruned"

    def _prepare(self, network: str) -> None:
        """Set up the state of a network that does not have it yet."""
        state = self.sparsifier.updater_state
        for name in self.sparsifier.networks[network]:
            if state.get(network, f"ever_active/{name}") is None:
                state.set(network, f"ever_active/{name}", self.sparsifier.layers[name].weight_mask.clone())
        period = state.get(network, "period")
        if period is None or int(period) > self._period:  # a fresh start, or timesteps were reset
            state.set(network, "period", th.tensor(self._period))

    # --- Acting ---

    def wants_dense_gradient(self, network: str, step: int) -> bool:
        """Whether the gradients of pruned weights are needed at this step of the network's optimizer."""
        return False

    def before_step(self, network: str, step: int) -> bool:
        """Called by the sparsifier before an optimizer step."""
        return True

    def after_step(self, network: str, step: int) -> None:
        """Called by the sparsifier after an optimizer step."""
        if self._is_due(network, step):
            self._act(network, step)

    def _act(self, network: str, step: int) -> None:
        self._state(network, "period").fill_(self._period)
        sparsifier = self.sparsifier
        before = {name: sparsifier.layers[name].weight_mask.clone() for name in sparsifier.networks[network]}
        fraction = self._update(network)
        dropped = grown = explored = active = total = 0
        for name, old in before.items():
            new = sparsifier.layers[name].weight_mask
            dropped += int((old & ~new).sum())
            grown += int((new & ~old).sum())
            ever_active = self._state(network, f"ever_active/{name}")
            ever_active |= new
            explored += int(ever_active.sum())
            active += sparsifier.layers[name].n_active
            total += new.numel()
        timestep, sparsity = self.model.num_timesteps, 1 - active / total
        event = TopologyEvent(network, step, timestep, fraction, dropped, grown, explored / total, sparsity)
        self.events.append(event)
        self._log(event)

    def _update(self, network: str) -> float:
        """Change the network's masks; the drop fraction in force, for the log."""
        raise NotImplementedError

    def _log(self, event: TopologyEvent) -> None:
        prefix = f"topology/{event.network}"
        self.logger.record(f"{prefix}_dropped", event.n_dropped)
        self.logger.record(f"{prefix}_grown", event.n_grown)
        self.logger.record(f"{prefix}_divergence", event.divergence)
        self.logger.record(f"{prefix}_explored", event.explored)
        self.logger.record(f"{prefix}_fraction", event.fraction)
        self.logger.record(f"{prefix}_sparsity", event.sparsity)
        if self.verbose > 0:
            print(event)

    def _on_step(self) -> bool:
        if self.unit == "timesteps":
            # An environment step may have made an update due
            for network in self._bound:
                self.sparsifier.request_gradients(network)
        return True
