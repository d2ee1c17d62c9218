"""Callbacks that drop weights of the least magnitude and grow others: :class:`SET` at random, :class:`RigL` by gradient."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch as th

from sb3_sparse.callbacks.base import TopologyCallback
from sb3_sparse.masks.drop_and_grow import SIGN_SPLITS, regrow, survivors
from sb3_sparse.masks.schedules import SCHEDULES
from sb3_sparse.nn.layers import SparseLayer
from sb3_sparse.nn.optimizer_state import can_fade, fade, moments_of
from sb3_sparse.nn.sparsifier import TARGET_MASKS
from sb3_sparse.utils.checks import require_choice, require_positive


class SET(TopologyCallback):
    """
    Sparse evolutionary training (Mocanu et al. 2018; DS-TD3, Sokar et al. 2022, algorithm 1): drop a fraction of the active
    weights of least magnitude in every layer, grow as many at random.

    The number of positions of every layer stays as it is. Layers that are full or in ``dense_layers`` are left alone. The
    update comes right after the step of the network's optimizer.

    :param every: See :class:`~sb3_sparse.callbacks.base.TopologyCallback`, as for ``start``, ``stop``, ``unit``, ``networks``
        and ``verbose``.
    :param drop_fraction: Fraction of a layer's active weights to drop, in (0, 1).
    :param drop_schedule: ``"constant"``, ``"cosine"`` or ``"linear"``: how the fraction falls from start to stop.
    :param start: First moment of an update.
    :param stop: Moment from which there is none.
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
        moments: str = "reset",
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
        self.moments = require_choice("moments", moments, ("reset", "keep"))
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
        return super()._refusal(network) or self._refuse_optimizer(network)

    def _refuse_optimizer(self, network: str) -> str | None:
        optimizer = self._optimizer(network)
        if self.moments == "keep" and not can_fade(optimizer):
            return f"`moments`='keep' needs Adam, AdamW, SGD or RMSprop, its optimizer is {type(optimizer).__name__}"
        return None

    def _optimizer(self, network: str) -> th.optim.Optimizer:
        return self.sparsifier.optimizers[self.sparsifier.driver(network)]

    def _prepare(self, network: str) -> None:
        super()._prepare(network)
        self.sparsifier.set_target_masks(network, self.target)
        state = self.sparsifier.updater_state
        if state.get(network, "finished") is None or not self._has_stopped():
            state.set(network, "finished", th.tensor(False))

    def _is_due(self, network: str, step: int) -> bool:
        if self.last_event == "prune_only" and self._has_stopped() and self._on_cadence(network, step):
            return not bool(self._state(network, "finished"))
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
        if self.moments == "keep":
            self._remember_moments(network, masks)
        before = {name: self.sparsifier.layers[name].weight_mask.clone() for name in masks}
        self.sparsifier.set_masks(masks, values, replan=finish)
        if self.moments == "keep":
            self._recall_moments(network, before)
        if finish:
            self._state(network, "finished").fill_(True)
        return fraction

    #: Steps of its optimizer at which a network is left out, per update.
    _n_skipped = 0

    def _remember_moments(self, network: str, masks: Mapping[str, th.Tensor]) -> None:
        """Let what is remembered fade by the steps since the last update, and add the moments of weights about to drop out."""
        state, optimizer = self.sparsifier.updater_state, self._optimizer(network)
        now = self.sparsifier.n_steps(self.sparsifier.driver(network))
        last = state.get(network, "remembered_at")
        n_steps = 0 if last is None else now - int(last) - self._n_skipped
        state.set(network, "remembered_at", th.tensor(now))
        for name, mask in masks.items():
            layer = self.sparsifier.layers[name]
            for key, moment in moments_of(optimizer, layer.weight):
                memory = state.get(network, f"memory/{name}/{key}")
                if memory is None:
                    memory = th.zeros_like(moment)
                    state.set(network, f"memory/{name}/{key}", memory)
                memory.mul_(fade(optimizer, key, n_steps))
                memory.copy_(th.where(layer.weight_mask & ~mask, moment, memory))

    def _recall_moments(self, network: str, before: Mapping[str, th.Tensor]) -> None:
        """Give grown weights the moments that are remembered of them."""
        for name, old in before.items():
            layer = self.sparsifier.layers[name]
            for key, moment in moments_of(self._optimizer(network), layer.weight):
                memory = self._state(network, f"memory/{name}/{key}")
                moment.copy_(th.where(layer.weight_mask & ~old, memory, moment))


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
    :param moments: Optimizer moments of grown weights.
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
        moments: str = "reset",
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
            moments=moments,
            target=target,
            last_event=last_event,
            unit=unit,
            networks=networks,
            verbose=verbose,
        )
        self.skip_step = skip_step
        self._n_skipped = int(skip_step)

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
