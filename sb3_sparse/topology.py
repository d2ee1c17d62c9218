"""
Callbacks that change masks while a network trains: :class:`SET` and :class:`RigL`.

They act inside ``train()``, in step with each network's own optimizer: a callback of Stable-Baselines3 is only called per
environment step, so all it does itself is to bind an updater to the policy's sparsifier and to log what happened.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch as th
from stable_baselines3.common.callbacks import BaseCallback

from sb3_sparse.checks import require_choice, require_integer, require_positive
from sb3_sparse.layers import SparseLayer
from sb3_sparse.policies import sparse_policy
from sb3_sparse.schedules import SCHEDULES
from sb3_sparse.sparsifier import TARGET_MASKS, Sparsifier
from sb3_sparse.updaters import SIGN_SPLITS, regrow, survivors

UNITS = ("steps", "timesteps")


@dataclass(frozen=True)
class TopologyEvent:
    """
    One update of one network.

    :param network: Name of the network.
    :param step: Step of the network's own optimizer at which it happened, counted from 1.
    :param timestep: Environment step.
    :param fraction: Drop fraction that was in force; of a mask refresh, the fraction of active weights that were dropped.
    :param n_dropped: Weights that existed before and do not now.
    :param n_grown: Weights that exist now and did not before.
    :param explored: Fraction of the network's prunable weights that have ever existed.
    """

    network: str
    step: int
    timestep: int
    fraction: float
    n_dropped: int
    n_grown: int
    explored: float

    @property
    def divergence(self) -> int:
        """Sparse architecture divergence (SAD; Zhou et al. 2021): positions at which the mask differs from the one before."""
        return self.n_dropped + self.n_grown


def _check_moment(name: str, value: Any) -> None:
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
        _check_moment("start", start)
        _check_moment("stop", stop)
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
                f"`stop`={self.stop!r} (environment step {self._stop}) must be after `start`={self.start!r} "
                f"(environment step {self._start}) in a training of {self._total} steps"
            )
        self._on_training_end()  # a training that was interrupted may have left its updaters
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
            self._on_training_end()
            raise

    def _on_training_end(self) -> None:
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
        dropped = grown = explored = total = 0
        for name, old in before.items():
            new = sparsifier.layers[name].weight_mask
            dropped += int((old & ~new).sum())
            grown += int((new & ~old).sum())
            ever_active = self._state(network, f"ever_active/{name}")
            ever_active |= new
            explored += int(ever_active.sum())
            total += new.numel()
        event = TopologyEvent(network, step, self.model.num_timesteps, fraction, dropped, grown, explored / total)
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
        if self.verbose > 0:
            print(event)

    def _on_step(self) -> bool:
        if self.unit == "timesteps":
            # An environment step may have made an update due
            for network in self._bound:
                self.sparsifier.request_gradients(network)
        return True


class SET(TopologyCallback):
    """
    Sparse evolutionary training (Mocanu et al. 2018; DS-TD3, Sokar et al. 2022, algorithm 1): drop a fraction of the active
    weights of least magnitude in every layer, grow as many at random.

    The number of positions of every layer stays as it is. Layers that are full or in ``dense_layers`` are left alone. The
    update comes right after the step of the network's optimizer.

    :param every: See :class:`TopologyCallback`, as for ``start``, ``stop``, ``unit``, ``networks`` and ``verbose``.
    :param drop_fraction: Fraction of a layer's active weights to drop, in (0, 1).
    :param drop_schedule: ``"constant"``, ``"cosine"`` or ``"linear"``: how the fraction falls from start to stop.
    :param start: First moment of an update.
    :param stop: Moment from which there is none.
    :param grown: Value of grown weights: ``"zero"``, or ``"init"`` for torch's default initialisation of the layer,
        uniform in +-1 / sqrt(fan_in).
    :param sign_split: See :func:`sb3_sparse.updaters.survivors`; True is ``"half"``.
    :param target: Masks of the target network: ``"online"`` or ``"own_topk"``, see
        :meth:`sb3_sparse.sparsifier.Sparsifier.set_target_masks`.
    :param last_event: What happens at the first moment of an update from ``stop`` on: ``"none"``, or ``"prune_only"``: drop
        once more and grow nothing, as DS-TD3's released code (not the paper) does.
    :param unit: Unit of ``every``.
    :param networks: Networks to update.
    :param verbose: 1 prints every event.
    :raises ValueError: For arguments out of range.
    """

    def __init__(
        self,
        every: int,
        drop_fraction: float,
        drop_schedule: str = "constant",
        *,
        start: float | int | None = None,
        stop: float | int | None = None,
        grown: str = "zero",
        sign_split: bool | str = False,
        target: str = "online",
        last_event: str = "none",
        unit: str = "steps",
        networks: str | Sequence[str] | None = None,
        verbose: int = 0,
    ) -> None:
        super().__init__(every, start=start, stop=stop, unit=unit, networks=networks, verbose=verbose)
        require_choice("drop_schedule", drop_schedule, list(SCHEDULES))
        require_choice("grown", grown, ("zero", "init"))
        require_choice("sign_split", sign_split, (True, *SIGN_SPLITS))
        require_choice("target", target, TARGET_MASKS)
        require_choice("last_event", last_event, ("none", "prune_only"))
        if last_event == "prune_only" and stop is None:
            raise ValueError("`last_event`='prune_only' needs a `stop`: without one no event is the last")
        self.target = target
        self.last_event = last_event
        self.drop_fraction = require_positive("drop_fraction", drop_fraction, below=1)
        self.drop_schedule = drop_schedule
        self.grown = grown
        self.sign_split = "half" if sign_split is True else sign_split

    def _refusal(self, network: str) -> str | None:
        patterns = {self.sparsifier.plan[name].pattern.spec for name in self._prunable(network)}
        if self.sign_split and any(spec.startswith("block") for spec in patterns):
            return f"`sign_split`={self.sign_split!r} has no meaning for whole blocks"
        return super()._refusal(network)

    def _prepare(self, network: str) -> None:
        super()._prepare(network)
        self.sparsifier.set_target_masks(network, self.target)

    def _is_due(self, network: str, step: int) -> bool:
        if self.last_event == "prune_only" and self._has_stopped() and self._on_cadence(network, step):
            return self.sparsifier.updater_state.get(network, "finished") is None
        return super()._is_due(network, step)

    def fraction(self) -> float:
        """The drop fraction in force at the present environment step."""
        return self.drop_fraction * SCHEDULES[self.drop_schedule](self.progress())

    def growth_scores(self, layer: SparseLayer) -> th.Tensor:
        """
        :param layer: A layer.
        :return: Score of every position, shape of its weight; the highest are grown.
        """
        return self._random(layer)

    def _random(self, layer: SparseLayer) -> th.Tensor:
        return th.rand(layer.weight.shape, generator=self.sparsifier.next_generator()).to(layer.weight.device)

    @th.no_grad()
    def _update(self, network: str) -> float:
        fraction, finish = self.fraction(), self._has_stopped()
        masks, values = {}, {}
        for name in self._prunable(network):
            layer, pattern = self.sparsifier.layers[name], self.sparsifier.plan[name].pattern
            kept = survivors(pattern, layer.weight, layer.weight_mask, fraction, sign_split=self.sign_split)
            masks[name] = kept if finish else regrow(pattern, kept, layer.weight_mask, self.growth_scores(layer))
            if self.grown == "init":
                bound = layer.weight[0].numel() ** -0.5
                values[name] = (self._random(layer) * 2 - 1) * bound
        self.sparsifier.set_masks(masks, values, replan=finish)
        if finish:
            self.sparsifier.updater_state.set(network, "finished", th.tensor(True))
        return fraction


class RigL(SET):
    """
    RigL (Evci et al. 2020; RLx2, Tan et al. 2023, algorithm 1): as :class:`SET`, but grow where the magnitude of the dense
    gradient is largest: the gradient of that network's own loss on the present batch, before any norm clipping.

    :param every: See :class:`SET`, as for the others.
    :param drop_fraction: Fraction of a layer's active weights to drop, in (0, 1).
    :param drop_schedule: How the fraction falls from start to stop.
    :param start: First moment of an update.
    :param stop: Moment from which there is none.
    :param grown: Value of grown weights.
    :param sign_split: How drops are divided between the signs.
    :param target: Masks of the target network.
    :param last_event: What happens from ``stop`` on.
    :param skip_step: Leave the network out of the optimizer step at which its masks change, as RLx2's code does. The
        update then comes before the step instead of after it.
    :param unit: Unit of ``every``.
    :param networks: Networks to update.
    :param verbose: 1 prints every event.
    :raises ValueError: For arguments out of range.
    """

    def __init__(
        self,
        every: int,
        drop_fraction: float,
        drop_schedule: str = "cosine",
        *,
        start: float | int | None = None,
        stop: float | int | None = None,
        grown: str = "zero",
        sign_split: bool | str = False,
        target: str = "online",
        last_event: str = "none",
        skip_step: bool = False,
        unit: str = "steps",
        networks: str | Sequence[str] | None = None,
        verbose: int = 0,
    ) -> None:
        super().__init__(
            every,
            drop_fraction,
            drop_schedule,
            start=start,
            stop=stop,
            grown=grown,
            sign_split=sign_split,
            target=target,
            last_event=last_event,
            unit=unit,
            networks=networks,
            verbose=verbose,
        )
        self.skip_step = skip_step

    def wants_dense_gradient(self, network: str, step: int) -> bool:
        """Only at steps at which an update may be due: copies of gradients cost time."""
        return step % self.every == 0 if self.unit == "steps" else self._is_due(network, step)

    def growth_scores(self, layer: SparseLayer) -> th.Tensor:
        """
        :param layer: A layer.
        :return: Magnitude of its dense gradient.
        :raises RuntimeError: If none arrived: the step was made without a backward pass through the layer.
        """
        if layer.dense_gradient is None:
            raise RuntimeError("RigL has seen no gradient of a layer it should grow: was the optimizer stepped by hand?")
        return layer.dense_gradient.abs()

    def before_step(self, network: str, step: int) -> bool:
        """Called by the sparsifier before an optimizer step."""
        if self.skip_step and self._is_due(network, step):
            self._act(network, step)
            return False
        return True

    def after_step(self, network: str, step: int) -> None:
        """Called by the sparsifier after an optimizer step."""
        if not self.skip_step:
            super().after_step(network, step)
