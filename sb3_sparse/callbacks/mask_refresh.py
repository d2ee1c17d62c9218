"""
:class:`MaskRefresh`: row-wise N:M masks that are chosen anew by magnitude while the network trains (RNM-TD3, Vrce et al.
2026; SR-STE, Zhou et al. 2021).

A pruned weight must be remembered somewhere, or no mask would ever change again: zero never outranks a weight. It is
remembered in a *shadow* of its own, so that the network's weights, gradients and moments stay exactly zero where pruned.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence

import torch as th
from torch import nn

from sb3_sparse.callbacks.base import TopologyCallback, TopologyState
from sb3_sparse.callbacks.clock import Clock
from sb3_sparse.masks.patterns import NofM
from sb3_sparse.nn.layers import SparseLayer
from sb3_sparse.nn.updater_state import PerLayer, PerMoment
from sb3_sparse.utils.checks import require_choice, require_positive

RULES = ("masked_grad", "ste", "sr_ste")


def _make_optimizer(optimizer: th.optim.Optimizer, parameters: list[nn.Parameter]) -> th.optim.Optimizer:
    """An optimizer of the same class and options for other parameters."""
    accepted = inspect.signature(type(optimizer)).parameters
    options = {name: value for name, value in optimizer.param_groups[0].items() if name in accepted and name != "params"}
    return type(optimizer)(parameters, **options)


class RefreshState(TopologyState):
    """What a mask refresh remembers of a network."""

    #: All weights, those of pruned positions as the rule keeps them.
    shadow = PerLayer()
    #: State of the optimizer that works on the shadow.
    moment = PerMoment()


class MaskRefresh(TopologyCallback):
    """
    Choose every N:M mask anew, by the magnitude of the shadow weights: the N largest of each group.

    Rules say what becomes of the shadow of a pruned weight:

    * ``"masked_grad"`` (RNM-TD3): gradients reach active weights only, a pruned weight keeps the value it had when it was
      pruned (at first its initial value) and comes back with it.
    * ``"ste"``: straight-through. The optimizer works on the dense shadow with the dense gradient, taken at the masked
      weights; the network's weights are the shadow, masked.
    * ``"sr_ste"``: as ``"ste"`` with ``decay * shadow`` added to the gradient of pruned weights (Zhou et al. 2021,
      equation 9).

    With the last two, the network's own optimizer leaves the weights (not the biases) to an optimizer of the same class and
    options that works on the shadow; gradient clipping applies to both alike. Shadows and their moments are saved with the
    policy. Target networks get the new mask at once, so N:M holds in them after every Polyak update too.

    :param every: Refresh at every ``every``-th step of the network's own optimizer, or with ``unit="timesteps"`` at the
        network's first optimizer step after every ``every`` environment steps.
    :param rule: ``"masked_grad"``, ``"ste"`` or ``"sr_ste"``.
    :param decay: Decay of pruned weights (lambda of SR-STE), positive; used by ``"sr_ste"`` alone.
    :param start: No refresh before: a float is a fraction of the training, an integer environment steps. None: when gradient
        steps begin (``learning_starts``). The shadow is kept from the beginning of the training.
    :param stop: No refresh from then on, as ``start``. None: refreshes until the training ends.
    :param unit: ``"steps"`` or ``"timesteps"``, what ``every`` counts.
    :param networks: A network's name or several; None for all with N:M masks.
    :param on_nonfinite: ``"raise"``: stop the training, with a :class:`~sb3_sparse.callbacks.finite.NonFiniteError`, at the
        step at which weights, gradients, observations or rewards are NaN or infinite. ``"ignore"``: go on; a layer that holds
        such values keeps its mask.
    :param verbose: 1 prints every event.
    :raises ValueError: For arguments out of range; on training start for networks without N:M masks, unknown networks,
        networks that have another updater in this training, and a stop before the start.
    """

    def __init__(
        self,
        every: int,
        rule: str = "masked_grad",
        *,
        decay: float = 2e-4,
        start: float | int | None = None,
        stop: float | int | None = None,
        unit: str = "steps",
        networks: str | Sequence[str] | None = None,
        on_nonfinite: str = "raise",
        verbose: int = 0,
    ) -> None:
        clock = Clock(every, unit=unit, start=start, stop=stop)
        super().__init__(clock, networks=networks, on_nonfinite=on_nonfinite, verbose=verbose)
        self.rule = require_choice("rule", rule, RULES)
        self.decay = require_positive("decay", decay)
        self._shadow_optimizers: dict[str, th.optim.Optimizer] = {}

    def _refusal(self, network: str) -> str | None:
        plans = self.sparsifier.plan
        other = {plans[name].pattern.spec for name in self._layers_of(network) if not isinstance(plans[name].pattern, NofM)}
        if other:
            return f'its pattern is {", ".join(sorted(other))}; masks of pattern "N:M" can be refreshed'
        return super()._refusal(network)

    def state(self, network: str) -> RefreshState:
        """
        What this callback remembers of a network.

        :param network: Name of a network.
        :return: What this callback remembers of it.
        """
        return self._state_as(RefreshState, network)

    # --- The shadow ---

    def _prepare(self, network: str) -> None:
        super()._prepare(network)
        shadows = self.state(network).shadow
        for name in self._layers_of(network):
            layer = self.sparsifier.layers[name]
            if name in shadows:
                self._update_shadow(layer, shadows[name])
            else:
                shadows[name] = self._first_shadow(name, layer)
        if self.rule != "masked_grad":
            self._shadow_optimizers[network] = self._restore_optimizer(network)

    def _first_shadow(self, name: str, layer: SparseLayer) -> th.Tensor:
        initial = self.sparsifier.pruned_values.get(name)
        if initial is None:
            # Trained without a shadow so far: pruned weights start where torch would have initialised them
            initial = self._initial_weight(layer)
        return th.where(layer.weight_mask, layer.weight.detach(), initial)

    @staticmethod
    @th.no_grad()
    def _update_shadow(layer: SparseLayer, shadow: th.Tensor) -> None:
        """Active weights may have been trained without their shadow since it was last looked at."""
        shadow.copy_(th.where(layer.weight_mask, layer.weight, shadow))

    def _restore_optimizer(self, network: str) -> th.optim.Optimizer:
        """An optimizer on the shadows (as Parameters that share their memory), with the moments that were saved."""
        names, state = self._layers_of(network), self.state(network)
        parameters = [nn.Parameter(state.shadow[name]) for name in names]
        optimizer = _make_optimizer(self._own_optimizer(network), parameters)
        for name, parameter in zip(names, parameters, strict=True):
            optimizer.state[parameter].update(state.moment.of(name))
        return optimizer

    def _own_optimizer(self, network: str) -> th.optim.Optimizer:
        return self.sparsifier.optimizers[self.sparsifier.optimizer_of(network)]

    def wants_dense_gradient(self, network: str, step: int) -> bool:
        """At every step if the shadow learns."""
        return self.rule != "masked_grad"

    def before_step(self, network: str, step: int) -> bool:
        """Called by the sparsifier before an optimizer step: hand the gradients over to the shadow's optimizer."""
        super().before_step(network, step)
        if self.rule != "masked_grad":
            parameters = self._shadow_optimizers[network].param_groups[0]["params"]
            for name, shadow in zip(self._layers_of(network), parameters, strict=True):
                self._take_gradient(self.sparsifier.layers[name], shadow)
        return True

    @th.no_grad()
    def _take_gradient(self, layer: SparseLayer, shadow: nn.Parameter) -> None:
        dense, masked = layer.dense_gradient, layer.weight.grad
        if dense is None or masked is None:
            shadow.grad = None
            return
        # Clipping came after the dense gradient was taken; it scaled the masked one by a factor that shows here
        norm = (dense * layer.weight_mask).norm()
        shadow.grad = dense * (masked.norm() / norm) if norm > 0 else dense.clone()
        if self.rule == "sr_ste":
            shadow.grad += self.decay * shadow * ~layer.weight_mask
        layer.weight.grad = None

    @th.no_grad()
    def after_step(self, network: str, step: int) -> None:
        """Called by the sparsifier after an optimizer step."""
        if self.rule != "masked_grad":
            self._step_shadow(network)
        super().after_step(network, step)

    def _step_shadow(self, network: str) -> None:
        optimizer = self._shadow_optimizers[network]
        # Stable-Baselines3 changes the learning rate as it goes
        optimizer.param_groups[0]["lr"] = self._own_optimizer(network).param_groups[0]["lr"]
        optimizer.step()
        moments = self.state(network).moment
        for name, shadow in zip(self._layers_of(network), optimizer.param_groups[0]["params"], strict=True):
            layer = self.sparsifier.layers[name]
            if shadow.grad is not None:
                layer.weight.copy_(shadow).masked_fill_(~layer.weight_mask, 0.0)
            for key, value in optimizer.state[shadow].items():
                if moments.get(name, key) is not value:
                    moments.set(name, key, value)

    # --- The refresh ---

    def _tensors(self, name: str) -> dict[str, th.Tensor | None]:
        network = self.sparsifier.plan[name].info.network
        return {**super()._tensors(name), "shadow": self.state(network).shadow[name]}

    @th.no_grad()
    def _update(self, network: str, step: int) -> float:
        masks, shadows = {}, {}
        n_active = n_dropped = 0
        for name in self._layers_now(network, step):
            layer, pattern = self.sparsifier.layers[name], self.sparsifier.plan[name].pattern
            shadow = self.state(network).shadow[name]
            self._update_shadow(layer, shadow)
            masks[name] = pattern.select(shadow.abs(), pattern.budget_of(layer.weight_mask))
            shadows[name] = shadow
            n_active += layer.n_active
            n_dropped += int((layer.weight_mask & ~masks[name]).sum())
        self.sparsifier.set_masks(masks, shadows)
        return n_dropped / max(n_active, 1)
