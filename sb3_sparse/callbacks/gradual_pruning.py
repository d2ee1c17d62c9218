""":class:`GradualPruning`: dense at first, then sparser step by step by magnitude (Zhu and Gupta 2018; Ivanov et al. 2025)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch as th

from sb3_sparse.callbacks.base import TopologyCallback, check_moment
from sb3_sparse.masks.config import SparsityConfig, check_sparsity
from sb3_sparse.masks.distributions import apportion
from sb3_sparse.masks.magnitude import SCOPES, check_scope, largest_of_layer, largest_of_network, rounding_of_network
from sb3_sparse.masks.patterns import Budget, Unstructured
from sb3_sparse.masks.plan import LayerPlan, make_plan, refuse_growth, refuse_layer_growth
from sb3_sparse.masks.schedules import gradual
from sb3_sparse.policies.base import sparse_policy
from sb3_sparse.utils.checks import require_integer


class GradualPruning(TopologyCallback):
    """
    Prune the weights of least magnitude in several steps, from the sparsity a network has to a final one.

    At the k-th of ``updates`` equally spaced moments after ``begin`` the sparsity becomes
    ``s_f + (s_i - s_f) * (1 - k / updates)**3`` (Zhu and Gupta 2018), exactly: unstructured networks have
    ``round((1 - s) * weights)`` weights; N:M goes from M:M through the nearest K:M down to N:M; blocks fall in whole blocks. A
    pruned weight never returns. Before ``begin`` nothing is touched: a policy made with ``sparsity=0`` trains
    like the stock one, bit for bit. The last update is at ``end`` and gives the final plan; after it the masks are frozen.

    Every network is pruned right after a step of its own optimizer, the first at or after the moment; where several moments
    fall between two steps (on-policy algorithms, ``train_freq``) they are one update. What was due at ``end`` and met no step
    any more is done when training ends.

    Progress is kept in the policy: a training that is saved, loaded and continued with the same arguments and
    ``reset_num_timesteps=False`` goes on as if it had not been interrupted.

    :param final_sparsity: Fraction of zero weights in the end, in [0, 1): one number for every network that can be pruned, or
        a map from network to number, where networks that are not named are left alone. None: follows from the policy's N:M
        pattern or from an explicit distribution.
    :param begin: A float is a fraction of the training (``learn()``'s total), an integer environment steps.
    :param end: As ``begin``, after it.
    :param updates: Number of pruning steps, at least 1. The compression paper does not say its n; with 100 no step takes more
        than 3 % of the weights at once, and the selection costs nothing that can be noticed.
    :param scope: ``"layer"``: every layer has its share, by ``distribution``, and keeps its largest weights. ``"global"``:
        the largest of the whole network are kept, in whichever layer they are, at least one in each; unstructured or blocks.
    :param distribution: How the final sparsity is spread over the layers, as in ``policy_kwargs``: ``"uniform"``, ``"er"``,
        ``"erk"`` or an explicit map, whose unnamed layers are left alone. None: the policy's own if it is a name, otherwise
        ``"erk"``, with N:M ``"uniform"``.
    :param verbose: 1 prints every update.
    :raises ValueError: For arguments out of range; on training start, before any step, for unknown networks or layers, a
        final sparsity below the present one or out of reach, and a beginning that has passed already.
    """

    _MOMENTS = ("begin", "end")

    def __init__(
        self,
        final_sparsity: float | Mapping[str, float] | None = None,
        begin: float | int = 0.2,
        end: float | int = 0.8,
        updates: int = 100,
        *,
        scope: str = "layer",
        distribution: str | Mapping[str, Any] | None = None,
        verbose: int = 0,
    ) -> None:
        for name, value in (("begin", begin), ("end", end)):
            if value is None:
                raise ValueError(f"`{name}` must be a float in [0, 1] or an integer, got None")
            check_moment(name, value)
        if type(begin) is type(end) and end <= begin:
            raise ValueError(f"`end`={end!r} must be after `begin`={begin!r}")
        self.updates = require_integer("updates", updates, low=1)
        self.scope = check_scope(scope, distribution)
        SparsityConfig(distribution=distribution)
        if isinstance(final_sparsity, Mapping):
            if not final_sparsity:
                raise ValueError("`final_sparsity` must be a number or a map from network to number, got an empty map")
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
        named = list(final_sparsity) if isinstance(final_sparsity, Mapping) else None
        super().__init__(1, start=begin, stop=end, unit="timesteps", networks=named, verbose=verbose)
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

    def _prunable(self, network: str) -> list[str]:
        """Layers of the network that are to be pruned; those that an explicit distribution leaves out are not."""
        sparsifier = self.sparsifier
        names = [name for name in sparsifier.networks[network] if not sparsifier.plan[name].exempt]
        if isinstance(self.distribution, Mapping):
            names = [name for name in names if self._final[name].n_active < self._final[name].info.n_weights]
        return names

    def _refusal(self, network: str) -> str | None:
        if not self._prunable(network):
            explicit = isinstance(self.distribution, Mapping)
            return "`distribution` names none of its layers" if explicit else "all of its layers are in `dense_layers`"
        return None

    def _n_final(self, network: str) -> int:
        """Positions that the network's prunable layers have in the end."""
        names = self._prunable(network)
        if self.scope == "layer":
            return sum(self._final[name].n_active for name in names)
        members = self.sparsifier.networks[network]
        assert self.final_sparsity is not None
        sparsity = self.final_sparsity[network] if isinstance(self.final_sparsity, Mapping) else self.final_sparsity
        total = sum(self._final[name].info.n_weights for name in members)
        fixed = sum(self._final[name].info.n_weights for name in members if name not in names)
        return round((1 - sparsity) * total) - fixed

    def _check_goal(self, network: str) -> bool:
        """
        :return: Whether there is anything to prune.
        :raises ValueError: If the network is sparser already.
        """
        sparsifier, names = self.sparsifier, self._prunable(network)
        n_now, n_final = self._n_active(network), self._n_final(network)
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

    def _n_active(self, network: str) -> int:
        return sum(self.sparsifier.layers[name].n_active for name in self._prunable(network))

    def _budget_now(self, name: str) -> Budget:
        return self.sparsifier.plan[name].pattern.budget_of(self.sparsifier.layers[name].weight_mask)

    # --- The clock ---

    def _n_due(self) -> int:
        """How many of the updates should have been made by the present environment step."""
        elapsed = max(self.model.num_timesteps - self._start, 0)
        return min(elapsed * self.updates // (self._stop - self._start), self.updates)

    def _is_due(self, network: str, step: int) -> bool:
        return self._n_due() > int(self._state(network, "pruning_done"))

    def _prepare(self, network: str) -> None:
        super()._prepare(network)
        state = self.sparsifier.updater_state
        is_open = self._check_goal(network)
        names = self._prunable(network)
        finals = [self._n_final(network)] if self.scope == "global" else [self._final[name].n_active for name in names]
        goal = th.tensor([SCOPES.index(self.scope), *finals])
        schedule = th.tensor([self._start, self._stop, self.updates])
        old_goal, old_schedule = state.get(network, "pruning_goal"), state.get(network, "pruning_schedule")
        same_goal = old_goal is not None and th.equal(old_goal.cpu(), goal)
        in_progress = same_goal and self._n_due() > 0
        if is_open and self._n_due() > 0 and not in_progress:
            raise ValueError(
                f"`begin`={self.start!r} (environment step {self._start}) lies before the present step "
                f"{self.model.num_timesteps}, and network {network!r} is not being pruned to this goal: give an integer "
                "`begin` from the present step on, or let learn() count from 0 (reset_num_timesteps=True)"
            )
        if not in_progress:
            state.set(network, "pruning_initial", th.zeros(0, dtype=th.int64))
        if not in_progress or old_schedule is None or not th.equal(old_schedule.cpu(), schedule):
            state.set(network, "pruning_done", th.tensor(0 if is_open else self.updates))
        state.set(network, "pruning_goal", goal)
        state.set(network, "pruning_schedule", schedule)

    def _on_training_end(self) -> None:
        for network in self._bound:
            if self._n_due() == self.updates > int(self._state(network, "pruning_done")):
                self._act(network, self.sparsifier.n_steps(self.sparsifier.driver(network)))
        super()._on_training_end()

    def _on_step(self) -> bool:
        return True  # no gradients to ask for

    # --- Pruning ---

    @th.no_grad()
    def _update(self, network: str) -> float:
        names, n_before, n_due = self._prunable(network), self._n_active(network), self._n_due()
        initial = self._state(network, "pruning_initial")
        if not len(initial):
            initial = th.tensor([self.sparsifier.layers[name].n_active for name in names])
            self.sparsifier.updater_state.set(network, "pruning_initial", initial)
        choose = self._global_masks if self.scope == "global" else self._layer_masks
        masks = choose(network, dict(zip(names, initial.tolist(), strict=True)), n_due / self.updates)
        self.sparsifier.set_masks(masks, replan=True)
        self._state(network, "pruning_done").fill_(n_due)
        return (n_before - self._n_active(network)) / n_before

    def _global_masks(self, network: str, initial: Mapping[str, int], progress: float) -> dict[str, th.Tensor]:
        n_keep = round(gradual(sum(initial.values()), self._n_final(network), progress))
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
