"""Callbacks that drop weights of the least magnitude and grow others: :class:`SET` at random, :class:`RigL` by gradient."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence

import torch as th

from sb3_sparse.callbacks.base import TopologyCallback, TopologyState
from sb3_sparse.callbacks.clock import Clock
from sb3_sparse.masks.drop_and_grow import SIGN_SPLITS, regrow, survivors
from sb3_sparse.masks.magnitude import largest_of_layer
from sb3_sparse.masks.patterns import Block
from sb3_sparse.masks.schedules import SCHEDULES
from sb3_sparse.nn.layers import SparseLayer
from sb3_sparse.nn.optimizer_state import can_fade, fade, moments_of
from sb3_sparse.nn.sparsifier import TARGET_MASKS
from sb3_sparse.nn.updater_state import PerMoment, Scalar
from sb3_sparse.utils.checks import require_choice, require_positive


class DropAndGrowState(TopologyState):
    """What SET and RigL remember of a network."""

    #: Whether the last event (``last_event``) has been.
    finished = Scalar[bool](th.bool)
    #: Step of the network's optimizer at which ``memory`` was brought up to date.
    remembered_at = Scalar[int](th.int64)
    #: Moments of pruned weights, as they were when the weight was dropped, faded since.
    memory = PerMoment()


class SET(TopologyCallback):
    """
    Sparse evolutionary training (Mocanu et al. 2018; DS-TD3, Sokar et al. 2022, algorithm 1): drop a fraction of the active
    weights of least magnitude in every layer, grow as many at random.

    The number of positions of every layer stays as it is. Layers that are full, frozen or in ``dense_layers`` are left alone.
    The update comes right after the step of the network's optimizer. Where an annealed fraction has come to 0 there is none.

    :param every: Updates happen at every ``every``-th step of the network's own optimizer (a TD3 actor makes half as many as
        its critic), or with ``unit="timesteps"`` at the network's first optimizer step after every ``every`` environment
        steps.
    :param drop_fraction: Fraction of a layer's active weights to drop, in (0, 1).
    :param drop_schedule: ``"constant"``, ``"cosine"`` or ``"linear"``: how the fraction falls from start to stop. None:
        constant, in :class:`RigL` cosine.
    :param start: No update before: a float is a fraction of the training, an integer environment steps. None: when gradient
        steps begin (``learning_starts``).
    :param stop: No update from then on, as ``start``. None: updates until the training ends.
    :param grown: Value of grown weights: ``"zero"``, or ``"init"`` for torch's default initialisation of the layer,
        uniform in +-1 / sqrt(fan_in).
    :param sign_split: See :func:`sb3_sparse.masks.drop_and_grow.survivors`; True is ``"half"``.
    :param moments: Optimizer moments of grown weights: ``"reset"``: they start afresh. ``"keep"``: a weight that existed
        before has those it had when it was dropped, faded by as many steps with a zero gradient, which is what RLx2's
        released code amounts to; with Adam, AdamW, SGD and RMSprop.
    :param target: Masks of the target network: ``"online"`` or ``"own_topk"``, see
        :meth:`sb3_sparse.nn.sparsifier.Sparsifier.set_target_masks`.
    :param last_event: What happens at the first moment of an update from ``stop`` on: ``"none"``, or ``"prune_only"``: drop
        once more and grow nothing, as DS-TD3's released code (not the paper) does.
    :param skip_step: Leave the network out of the optimizer step at which its masks change, as RLx2's code does. The
        update then comes before the step instead of after it.
    :param unit: ``"steps"`` or ``"timesteps"``, what ``every`` counts.
    :param networks: A network's name or several; None for all in which something is pruned.
    :param on_nonfinite: ``"raise"``: stop the training, with a :class:`~sb3_sparse.callbacks.finite.NonFiniteError`, at the
        step at which weights, gradients, observations or rewards are NaN or infinite. ``"ignore"``: go on; a layer that holds
        such values keeps its mask.
    :param verbose: 1 prints every event.
    :raises ValueError: For arguments out of range; on training start for unknown networks, networks that have another updater
        in this training, and a stop before the start.
    """

    #: The schedule when nothing is said.
    _DROP_SCHEDULE = "constant"

    def __init__(
        self,
        every: int,
        drop_fraction: float,
        drop_schedule: str | None = None,
        *,
        start: float | int | None = None,
        stop: float | int | None = None,
        grown: str = "zero",
        sign_split: bool | str = False,
        moments: str = "reset",
        target: str = "online",
        last_event: str = "none",
        skip_step: bool = False,
        unit: str = "steps",
        networks: str | Sequence[str] | None = None,
        on_nonfinite: str = "raise",
        verbose: int = 0,
    ) -> None:
        clock = Clock(every, unit=unit, start=start, stop=stop)
        super().__init__(clock, networks=networks, on_nonfinite=on_nonfinite, verbose=verbose)
        self.drop_fraction = require_positive("drop_fraction", drop_fraction, below=1)
        drop_schedule = self._DROP_SCHEDULE if drop_schedule is None else drop_schedule
        self.drop_schedule = require_choice("drop_schedule", drop_schedule, list(SCHEDULES))
        self.grown = require_choice("grown", grown, ("zero", "init"))
        sign_split = require_choice("sign_split", sign_split, (True, *SIGN_SPLITS))
        self.sign_split = "half" if sign_split is True else sign_split
        self.moments = require_choice("moments", moments, ("reset", "keep"))
        self.target = require_choice("target", target, TARGET_MASKS)
        self.last_event = require_choice("last_event", last_event, ("none", "prune_only"))
        self.skip_step = require_choice("skip_step", skip_step, (True, False))
        if last_event == "prune_only" and stop is None:
            raise ValueError("`last_event`='prune_only' needs a `stop`: without one no event is the last")
        if last_event == "prune_only" and SCHEDULES[self.drop_schedule](1.0) == 0:
            warnings.warn(
                f"`last_event`='prune_only' has nothing to drop: with `drop_schedule`={self.drop_schedule!r} the fraction is "
                "0 at `stop`. With 'constant' it is `drop_fraction`"
            )

    # --- What the rule is ---

    def growth_scores(self, layer: SparseLayer) -> th.Tensor:
        """
        Score the positions of a layer for growth: at random.

        :param layer: A layer.
        :return: Score of every position, shape of its weight; the highest are grown.
        """
        return self._random(layer)

    def fraction(self) -> float:
        """The drop fraction in force at the present environment step."""
        return self.drop_fraction * SCHEDULES[self.drop_schedule](self.clock.progress(self.model.num_timesteps))

    # --- Which networks, and when ---

    def _refusal(self, network: str) -> str | None:
        patterns = [self.sparsifier.plan[name].pattern for name in self._layers_of(network)]
        if self.sign_split and any(isinstance(pattern, Block) for pattern in patterns):
            return f"`sign_split`={self.sign_split!r} has no meaning for whole blocks"
        return super()._refusal(network) or self._refuse_optimizer(network)

    def _refuse_optimizer(self, network: str) -> str | None:
        optimizer = self._optimizer(network)
        if self.moments == "keep" and not can_fade(optimizer):
            return f"`moments`='keep' needs Adam, AdamW, SGD or RMSprop, its optimizer is {type(optimizer).__name__}"
        return None

    def _optimizer(self, network: str) -> th.optim.Optimizer:
        return self.sparsifier.optimizers[self.sparsifier.optimizer_of(network)]

    def state(self, network: str) -> DropAndGrowState:
        """
        What this callback remembers of a network.

        :param network: Name of a network.
        :return: What this callback remembers of it.
        """
        return self._state_as(DropAndGrowState, network)

    def _prepare(self, network: str) -> None:
        super()._prepare(network)
        self.sparsifier.set_target_masks(network, self.target)
        state = self.state(network)
        if state.finished is None or not self.clock.has_stopped(self.model.num_timesteps):
            state.finished = False

    def _is_due(self, network: str, step: int) -> bool:
        timestep = self.model.num_timesteps
        if self.last_event == "prune_only" and self.clock.has_stopped(timestep):
            state = self.state(network)
            due = not state.finished and self.clock.on_beat(timestep, step, state.ticks_done or 0)
        else:
            due = super()._is_due(network, step)
        # An update without a drop is none: at the end of an annealed schedule
        return due and self.fraction() > 0

    def before_step(self, network: str, step: int) -> bool:
        """Called by the sparsifier before an optimizer step."""
        super().before_step(network, step)
        if self.skip_step and self._is_due(network, step):
            self._act(network, step)
            return False
        return True

    def after_step(self, network: str, step: int) -> None:
        """Called by the sparsifier after an optimizer step."""
        self._watch(network, step)
        if not self.skip_step and self._is_due(network, step):
            self._act(network, step)

    # --- The update ---

    @th.no_grad()
    def _update(self, network: str, step: int) -> float:
        fraction, finish = self.fraction(), self.clock.has_stopped(self.model.num_timesteps)
        masks, values = {}, {}
        for name in self._layers_now(network, step):
            layer, pattern = self.sparsifier.layers[name], self.sparsifier.plan[name].pattern
            kept = survivors(pattern, layer.weight, layer.weight_mask, fraction, sign_split=self.sign_split)
            if finish:
                masks[name] = kept if pattern.is_legal(kept) else self._legal(name, int(kept.sum()))
            else:
                masks[name] = regrow(pattern, kept, layer.weight_mask, self.growth_scores(layer))
            if self.grown == "init":
                values[name] = self._initial_weight(layer)
        if self.moments == "keep":
            self._remember_moments(network, masks)
        before = {name: self.sparsifier.layers[name].weight_mask.clone() for name in masks}
        self.sparsifier.set_masks(masks, values, replan=finish)
        if self.moments == "keep":
            self._recall_moments(network, before)
        if finish:
            self.state(network).finished = True
        return fraction

    def _legal(self, name: str, n_kept: int) -> th.Tensor:
        """A layer on its way from dense to N:M can only lose as many in every group."""
        layer, pattern = self.sparsifier.layers[name], self.sparsifier.plan[name].pattern
        budget = min(pattern.budget(layer.weight.shape, n_kept), pattern.budget_of(layer.weight_mask))
        return largest_of_layer(pattern, layer.weight, layer.weight_mask, budget)

    def _remember_moments(self, network: str, masks: Mapping[str, th.Tensor]) -> None:
        """Let what is remembered fade by the steps since the last update, and add the moments of weights about to drop out."""
        state, optimizer = self.state(network), self._optimizer(network)
        now = self.sparsifier.n_steps(self.sparsifier.optimizer_of(network))
        # The step of the last update was skipped, so nothing faded in it
        n_steps = 0 if state.remembered_at is None else now - state.remembered_at - int(self.skip_step)
        state.remembered_at = now
        for name, mask in masks.items():
            layer = self.sparsifier.layers[name]
            for key, moment in moments_of(optimizer, layer.weight):
                memory = state.memory.get(name, key)
                if memory is None:
                    memory = th.zeros_like(moment)
                    state.memory.set(name, key, memory)
                memory.mul_(fade(optimizer, key, n_steps))
                memory.copy_(th.where(layer.weight_mask & ~mask, moment, memory))

    def _recall_moments(self, network: str, before: Mapping[str, th.Tensor]) -> None:
        """Give grown weights the moments that are remembered of them."""
        memories = self.state(network).memory
        for name, old in before.items():
            layer = self.sparsifier.layers[name]
            for key, moment in moments_of(self._optimizer(network), layer.weight):
                memory = memories.get(name, key)
                assert memory is not None, "_remember_moments came before"
                moment.copy_(th.where(layer.weight_mask & ~old, memory, moment))
                # Should another updater drop them, nothing is remembered of them
                memory.masked_fill_(layer.weight_mask, 0.0)


class RigL(SET):
    """
    RigL (Evci et al. 2020; RLx2, Tan et al. 2023, algorithm 1): as :class:`SET`, but grow where the magnitude of the dense
    gradient is largest: the gradient of that network's own loss on the present batch, before any norm clipping. The drop
    fraction falls by a cosine unless ``drop_schedule`` says otherwise. Arguments are those of :class:`SET`.
    """

    _DROP_SCHEDULE = "cosine"

    def growth_scores(self, layer: SparseLayer) -> th.Tensor:
        """
        Score the positions of a layer for growth: by the magnitude of its dense gradient.

        :param layer: A layer.
        :return: Magnitude of its dense gradient.
        :raises RuntimeError: If it has a gradient that no backward pass brought: the optimizer was stepped by hand.
        """
        if layer.dense_gradient is None:
            raise RuntimeError("RigL has seen no gradient of a layer it should grow: was the optimizer stepped by hand?")
        return layer.dense_gradient.abs()

    def wants_dense_gradient(self, network: str, step: int) -> bool:
        """Only at steps at which an update may be due: copies of gradients cost time."""
        return step % self.clock.every == 0 if self.clock.unit == "steps" else super()._is_due(network, step)

    def _is_due(self, network: str, step: int) -> bool:
        # Environment steps of which nobody told this callback may have made it due too late to ask for gradients
        is_due = super()._is_due(network, step)
        return is_due and any(layer.wants_dense_gradient for layer in self._layers(network).values())

    def _tensors(self, name: str) -> dict[str, th.Tensor | None]:
        return {**super()._tensors(name), "gradient": self.sparsifier.layers[name].dense_gradient}

    def _layers_now(self, network: str, step: int) -> list[str]:
        # A layer that has no part in this step's loss has no gradient, and keeps its mask
        layers = self.sparsifier.layers
        names = super()._layers_now(network, step)
        return [name for name in names if layers[name].dense_gradient is not None or layers[name].weight.grad is not None]

    def _on_step(self) -> bool:
        super()._on_step()
        if self.clock.unit == "timesteps":
            # An environment step may have made an update due
            for network in self._updated:
                self.sparsifier.request_gradients(network)
        return True
