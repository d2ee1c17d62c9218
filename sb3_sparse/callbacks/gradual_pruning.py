""":class:`GradualPruning`: dense at first, then sparser step by step by magnitude (Zhu and Gupta 2018; Ivanov et al. 2025)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch as th

from sb3_sparse.callbacks.base import TopologyCallback, TopologyState
from sb3_sparse.callbacks.clock import DividedClock
from sb3_sparse.masks.config import SparsityConfig, check_sparsity
from sb3_sparse.masks.distributions import apportion
from sb3_sparse.masks.magnitude import SCOPES, check_scope, largest_of_layer, largest_of_network, rounding_of_network
from sb3_sparse.masks.patterns import Budget, Unstructured
from sb3_sparse.masks.plan import LayerPlan, make_plan, refuse_growth, refuse_layer_growth
from sb3_sparse.masks.rescaling import RESCALES, standardized
from sb3_sparse.masks.schedules import gradual
from sb3_sparse.nn.updater_state import Numbers, Scalar
from sb3_sparse.policies.base import sparse_policy
from sb3_sparse.utils.checks import require_choice
from sb3_sparse.utils.renamed import renamed_arguments


class PruningState(TopologyState):
    """What gradual pruning remembers of a network."""

    #: Pruning steps that were made.
    ticks_done = Scalar[int](th.int64, key="pruning_done")
    #: Positions of every layer when the pruning began; empty until then.
    initial = Numbers(key="pruning_initial")
    #: Scope (its place in ``SCOPES``) and final numbers of positions: of the network, or of every layer.
    goal = Numbers(key="pruning_goal")
    #: Start, stop and number of updates.
    schedule = Numbers(key="pruning_schedule")


class GradualPruning(TopologyCallback):
    """
    Prune the weights of least magnitude in several steps, from the sparsity a network has to a final one.

    At the k-th of ``updates`` equally spaced moments after ``start`` the sparsity becomes
    ``s_f + (s_i - s_f) * (1 - k / updates)**3`` (Zhu and Gupta 2018), exactly: unstructured networks have
    ``round((1 - s) * weights)`` weights; N:M goes from M:M through the nearest K:M down to N:M; blocks fall in whole blocks. A
    pruned weight never returns. Before ``start`` nothing is touched: a policy made with ``sparsity=0`` trains
    like the stock one, bit for bit. The last update is at ``stop`` and gives the final plan; after it the masks are frozen.

    Every network is pruned right after a step of its own optimizer, the first at or after the moment; where several moments
    fall between two steps (on-policy algorithms, ``train_freq``) they are one update. What was due at ``stop`` and met no step
    any more is done when training ends. A layer that is frozen (``requires_grad_(False)``) keeps its mask, and makes up for
    what it missed at the first update after that; the others go on to what the plan gives them, with the global scope to the
    same sparsity among themselves.

    Progress is kept in the policy: a training that is saved, loaded and continued with the same arguments and
    ``reset_num_timesteps=False`` goes on as if it had not been interrupted.

    :param final_sparsity: Fraction of zero weights in the end, in [0, 1): one number for every network that can be pruned, or
        a map from network to number, where networks that are not named are left alone. None: follows from the policy's N:M
        pattern or from an explicit distribution.
    :param start: A float is a fraction of the training (``learn()``'s total), an integer environment steps.
    :param stop: As ``start``, after it.
    :param updates: Number of pruning steps, at least 1. The compression paper does not say its n; with 100 no step takes more
        than 3 % of the weights at once, and the selection costs nothing that can be noticed.
    :param scope: ``"layer"``: every layer has its share, by ``distribution``, and keeps its largest weights. ``"global"``:
        the largest of the whole network are kept, in whichever layer they are, at least one in each; unstructured or blocks.
    :param distribution: How the final sparsity is spread over the layers, as in ``policy_kwargs``: ``"uniform"``, ``"er"``,
        ``"erk"`` or an explicit map, whose unnamed layers are left alone. None: the policy's own if it is a name, otherwise
        ``"erk"``, with N:M ``"uniform"``.
    :param rescale: What happens to the weights that a layer keeps, at every update that prunes it. None: nothing. ``"unit"``
        or ``"fan_in"``: they are standardized, see :func:`sb3_sparse.masks.rescaling.standardized`; targets and moments stay,
        so the target network follows by Polyak averaging.
    :param on_nonfinite: ``"raise"``: stop the training, with a :class:`~sb3_sparse.callbacks.finite.NonFiniteError`, at the
        step at which weights, gradients, observations or rewards are NaN or infinite. ``"ignore"``: go on; NaN counts as
        magnitude 0.
    :param verbose: 1 prints every update.
    :raises ValueError: For arguments out of range; on training start, before any step, for unknown networks or layers, a
        final sparsity below the present one or out of reach, and a start that has passed already.
    """

    clock: DividedClock

    @renamed_arguments(begin="start", end="stop")
    def __init__(
        self,
        final_sparsity: float | Mapping[str, float] | None = None,
        start: float | int = 0.2,
        stop: float | int = 0.8,
        updates: int = 100,
        *,
        scope: str = "layer",
        distribution: str | Mapping[str, Any] | None = None,
        rescale: str | None = None,
        on_nonfinite: str = "raise",
        verbose: int = 0,
    ) -> None:
        if isinstance(final_sparsity, Mapping) and not final_sparsity:
            raise ValueError("`final_sparsity` must be a number or a map from network to number, got an empty map")
        clock = DividedClock(updates, start=start, stop=stop)
        named = list(final_sparsity) if isinstance(final_sparsity, Mapping) else None
        super().__init__(clock, networks=named, on_nonfinite=on_nonfinite, verbose=verbose)
        self.scope = check_scope(scope, distribution)
        self.rescale = None if rescale is None else require_choice("rescale", rescale, RESCALES)
        SparsityConfig(distribution=distribution)
        if isinstance(final_sparsity, Mapping):
            for network, value in final_sparsity.items():
                check_sparsity(value, f"`final_sparsity` of network {network!r}")
        elif final_sparsity is not None:
            check_sparsity(final_sparsity, "`final_sparsity`")
        if final_sparsity is not None and isinstance(distribution, Mapping):
            raise ValueError(
                f"`final_sparsity`={final_sparsity!r} and an explicit `distribution` are both given: "
                "the sparsity follows from the distribution, leave it out"
            )
        self.final_sparsity = final_sparsity
        self.distribution = distribution
        self._final: dict[str, LayerPlan] = {}

    # --- The goal ---

    def _on_training_start(self) -> None:
        policy = sparse_policy(self.model)
        config, final = policy.sparsity_config, self.final_sparsity
        fixed = any(plan.pattern.fixed_sparsity is not None for plan in policy.sparsifier.plan.values())
        if final is None and not fixed and not isinstance(self.distribution, Mapping):
            raise ValueError(
                "`final_sparsity` is left out, and nothing it could follow from is there: give a number in [0, 1), an "
                'explicit `distribution`, or a policy with `pattern`="N:M"'
            )
        if self.scope == "global" and fixed:
            raise ValueError(
                f"`scope`='global' cannot be used with `pattern`={config.pattern!r}, which gives every layer the same "
                "sparsity: use 'layer'"
            )
        distribution = self.distribution
        if distribution is None and isinstance(config.distribution, str):
            distribution = config.distribution
        goal = SparsityConfig(final, distribution, config.pattern, config.dense_layers)
        infos = [plan.info for plan in policy.sparsifier.plan.values()]
        self._final = make_plan(goal, infos, argument="final_sparsity")
        super()._on_training_start()

    def _can_change(self, name: str) -> bool:
        """Every layer is pruned; with an explicit distribution, those that it names."""
        return not isinstance(self.distribution, Mapping) or self._final[name].n_active < self._final[name].info.n_weights

    def _refusal(self, network: str) -> str | None:
        if not self._layers_of(network):
            explicit = isinstance(self.distribution, Mapping)
            return "`distribution` names none of its layers" if explicit else "all of its layers are in `dense_layers`"
        return None

    def state(self, network: str) -> PruningState:
        """
        What this callback remembers of a network.

        :param network: Name of a network.
        :return: What this callback remembers of it.
        """
        return self._state_as(PruningState, network)

    def _n_final(self, network: str, names: Sequence[str]) -> int:
        """
        Say how many positions are left of a network in the end.

        :param network: Name of the network.
        :param names: Those of its layers that are pruned; others that could be are not counted at all.
        :return: Positions that these layers have in the end.
        """
        if self.scope == "layer":
            return sum(self._final[name].n_active for name in names)
        assert self.final_sparsity is not None
        sparsity = self.final_sparsity[network] if isinstance(self.final_sparsity, Mapping) else self.final_sparsity
        could_be = self._layers_of(network)
        n_dense = sum(self._final[name].info.n_weights for name in self.sparsifier.networks[network] if name not in could_be)
        total = n_dense + sum(self._final[name].info.n_weights for name in names)
        return round((1 - sparsity) * total) - n_dense

    def _check_goal(self, network: str) -> bool:
        """
        Compare what is there with what is to be left.

        :return: Whether there is anything to prune.
        :raises ValueError: If the network is sparser already.
        """
        sparsifier, names = self.sparsifier, self._layers_of(network)
        n_now, n_final = self._n_active(names), self._n_final(network, names)
        # Whole blocks chosen across layers may end up to one block below the number asked for
        slack = 0
        if self.scope == "global":
            weights = {name: sparsifier.layers[name].weight for name in names}
            slack = rounding_of_network({name: sparsifier.plan[name].pattern for name in names}, weights)
        members = sparsifier.networks[network]
        n_active = {name: sparsifier.layers[name].n_active for name in members}
        refuse_growth(
            {name: self._final[name] for name in members},
            n_active,
            n_final + sum(n_active.values()) - n_now,
            argument="final_sparsity",
            slack=slack,
        )
        if self.scope == "layer":
            for name in names:
                refuse_layer_growth(self._final[name], self._budget_now(name), n_active[name])
        return n_now > n_final

    def _n_active(self, names: Sequence[str]) -> int:
        return sum(self.sparsifier.layers[name].n_active for name in names)

    def _budget_now(self, name: str) -> Budget:
        return self.sparsifier.plan[name].pattern.budget_of(self.sparsifier.layers[name].weight_mask)

    # --- Progress ---

    def _set_ticks(self, network: str) -> None:
        state, timestep = self.state(network), self.model.num_timesteps
        is_open, has_begun = self._check_goal(network), self.clock.ticks(timestep) > 0
        names = self._layers_of(network)
        finals = [self._n_final(network, names)] if self.scope == "global" else [self._final[name].n_active for name in names]
        goal = [SCOPES.index(self.scope), *finals]
        schedule = [self.clock.first, self.clock.last, self.clock.updates]
        in_progress = state.goal == goal and has_begun
        if is_open and has_begun and not in_progress:
            raise ValueError(
                f"`start`={self.clock.start!r} (environment step {self.clock.first}) lies before the present step {timestep}, "
                f"and network {network!r} is not being pruned to this goal: give an integer `start` from the present step on, "
                "or let learn() count from 0 (reset_num_timesteps=True)"
            )
        if not in_progress:
            state.initial = []
        if not in_progress or state.schedule != schedule or state.ticks_done is None:
            state.ticks_done = 0 if is_open else self.clock.updates
        elif is_open:
            # A layer that was frozen at the last update
            state.ticks_done = min(state.ticks_done, self.clock.updates - 1)
        state.goal, state.schedule = goal, schedule

    def _on_training_end(self) -> None:
        for network in self._updated:
            ticks = self.clock.ticks(self.model.num_timesteps)
            if ticks == self.clock.updates > (self.state(network).ticks_done or 0):
                self._act(network, self.sparsifier.n_steps(self.sparsifier.optimizer_of(network)))
        super()._on_training_end()

    # --- Pruning ---

    @th.no_grad()
    def _update(self, network: str, step: int) -> float:
        names, state = self._layers_of(network), self.state(network)
        n_before = self._n_active(names)
        counts = state.initial or [self.sparsifier.layers[name].n_active for name in names]
        state.initial = counts
        now = self._layers_now(network, step)
        initial = {name: count for name, count in zip(names, counts, strict=True) if name in now}
        choose = self._global_masks if self.scope == "global" else self._layer_masks
        masks = choose(network, initial, self.clock.ticks(self.model.num_timesteps) / self.clock.updates) if initial else {}
        self.sparsifier.set_masks(masks, replan=True)
        if self.rescale is not None:
            for name in masks:
                layer = self.sparsifier.layers[name]
                layer.weight.copy_(standardized(layer.weight, layer.weight_mask, self.rescale))
        return (n_before - self._n_active(names)) / n_before

    def _layers_now(self, network: str, step: int) -> list[str]:
        if self.on_nonfinite == "raise":
            return super()._layers_now(network, step)
        # The schedule goes on whatever the weights are
        return [name for name in self._layers_of(network) if self.sparsifier.layers[name].weight.requires_grad]

    def _global_masks(self, network: str, initial: Mapping[str, int], progress: float) -> dict[str, th.Tensor]:
        n_keep = round(gradual(sum(initial.values()), self._n_final(network, list(initial)), progress))
        layers = {name: self.sparsifier.layers[name] for name in initial}
        return largest_of_network(
            {name: self.sparsifier.plan[name].pattern for name in initial},
            {name: layer.weight for name, layer in layers.items()},
            {name: layer.weight_mask for name, layer in layers.items()},
            n_keep,
        )

    def _layer_masks(self, network: str, initial: Mapping[str, int], progress: float) -> dict[str, th.Tensor]:
        if progress == 1:
            # Of several budgets with about as many positions (blocks at ragged edges) the final plan's own
            budgets = {name: self._final[name].budget for name in initial}
        else:
            budgets = self._budgets(
                {name: gradual(count, self._final[name].n_active, progress) for name, count in initial.items()}
            )
        masks = {}
        for name, budget in budgets.items():
            layer, pattern = self.sparsifier.layers[name], self.sparsifier.plan[name].pattern
            masks[name] = largest_of_layer(pattern, layer.weight, layer.weight_mask, budget)
        return masks

    def _budgets(self, wanted: Mapping[str, float]) -> dict[str, Budget]:
        """Legal budgets nearest to what is wanted, never above the present ones nor below the final ones."""
        plan = self.sparsifier.plan
        single = [name for name in wanted if isinstance(plan[name].pattern, Unstructured)]
        budgets: dict[str, Budget] = {}
        if single:
            # Rounded together, so that the network's total is exact at every step
            limits = {name: self.sparsifier.layers[name].n_active for name in single}
            total = min(round(sum(wanted[name] for name in single)), sum(limits.values()))
            counts = apportion({name: wanted[name] for name in single}, limits, total)
            budgets |= {name: (count,) for name, count in counts.items()}
        for name in wanted:
            if name not in budgets:
                near = plan[name].pattern.budget(plan[name].info.shape, wanted[name])
                bounds: Sequence[tuple[int, int, int]] = list(
                    zip(near, self._budget_now(name), self._final[name].budget, strict=True)
                )
                budgets[name] = tuple(max(min(value, now), then) for value, now, then in bounds)
        return budgets
