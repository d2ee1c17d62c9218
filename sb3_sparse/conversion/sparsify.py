""":func:`sparsify`: agents that exist, in memory or as a zip, become sparse ones by magnitude or by given masks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch as th
from stable_baselines3 import HerReplayBuffer
from stable_baselines3.common.base_class import BaseAlgorithm, maybe_make_env
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.type_aliases import GymEnv

from sb3_sparse.conversion.loading import find_model_file, load_model
from sb3_sparse.conversion.saved import MASK_SUFFIX, UPDATER_PREFIX, Saved
from sb3_sparse.conversion.untrusted import load_untrusted
from sb3_sparse.masks.config import SparsityConfig
from sb3_sparse.masks.magnitude import check_scope, largest_of_layer, largest_of_network, rounding_of_network
from sb3_sparse.masks.patterns import parse_pattern
from sb3_sparse.masks.plan import LayerPlan, make_plan, refuse_growth, refuse_layer_growth
from sb3_sparse.nn.layers import SparseLayer
from sb3_sparse.policies.algorithms import sparse_counterpart
from sb3_sparse.policies.base import SparsePolicyMixin, policy_of
from sb3_sparse.policies.structure import find_structure
from sb3_sparse.utils.checks import require_choice

#: What becomes of a live model's replay buffer.
REPLAY_BUFFERS = ("share", "copy", "new")


class _Choice:
    """Chooses the masks for one policy, without changing it."""

    def __init__(self, policy: BasePolicy, config: SparsityConfig) -> None:
        self.config = config
        self.plan = make_plan(config, find_structure(policy).layers)
        self.layers = {name: policy.get_submodule(name) for name in self.plan}
        #: Bool, shape of the weight: the positions that exist now.
        self.present: dict[str, th.Tensor] = {}
        for name, layer in self.layers.items():
            assert isinstance(layer.weight, th.Tensor)
            if not bool(th.isfinite(layer.weight).all()):
                raise ValueError(
                    f"layer {name!r} has weights that are not finite: its training had diverged, or its file is damaged"
                )
            full = th.ones_like(layer.weight, dtype=th.bool)
            self.present[name] = layer.weight_mask if isinstance(layer, SparseLayer) else full
        for name, plan in self.plan.items():
            if plan.exempt and not bool(self.present[name].all()):
                raise ValueError(f"layer {name!r} is in `dense_layers`, but it is pruned already: leave it out")

    def given(self, masks: Mapping[str, Any]) -> dict[str, th.Tensor]:
        """
        Check masks that were given.

        :param masks: Masks by layer name; layers that are not named stay as they are.
        :return: Checked, as tensors on the policy's device.
        :raises ValueError: For unknown layers, wrong types or shapes, and masks that cannot be.
        """
        chosen = dict(self.present)
        for name, value in masks.items():
            if name not in self.layers:
                raise ValueError(f"`masks` names the unknown layer {name!r}; the layers are: {', '.join(self.layers)}")
            present, plan = self.present[name], self.plan[name]
            mask = th.as_tensor(value) if isinstance(value, (th.Tensor, np.ndarray)) else None
            if mask is None or mask.dtype != th.bool or mask.shape != present.shape:
                got = type(value).__name__ if mask is None else f"{mask.dtype} of shape {tuple(mask.shape)}"
                raise ValueError(f"`masks` of layer {name!r} must be bool of shape {tuple(present.shape)}, got {got}")
            mask = mask.to(present.device)
            if plan.exempt and not bool(mask.all()):
                raise ValueError(f"layer {name!r} is in `dense_layers`: its mask in `masks` must be all True")
            if not plan.pattern.is_legal(mask):
                raise ValueError(f"the mask of layer {name!r} in `masks` breaks the pattern {plan.pattern.spec!r}")
            if bool((mask & ~present).any()):
                raise ValueError(
                    f"the mask of layer {name!r} in `masks` keeps weights that are pruned already: they have no value"
                )
            if not bool(mask.any()):
                raise ValueError(f"the mask of layer {name!r} in `masks` keeps no weight: at least one must stay")
            chosen[name] = mask
        return chosen

    def by_magnitude(self, scope: str) -> dict[str, th.Tensor]:
        """
        Choose masks by magnitude.

        :param scope: ``"layer"`` or ``"global"``.
        :return: Masks of all layers.
        :raises ValueError: If something would have to grow, or with the global scope for N:M.
        """
        chosen = dict(self.present)
        networks: dict[str, dict[str, LayerPlan]] = {}
        for name, plan in self.plan.items():
            networks.setdefault(plan.info.network, {})[name] = plan
        for network, members in networks.items():
            pool = [name for name in members if self._is_pruned(name, network)]
            if pool:
                choose = self._global if scope == "global" else self._layerwise
                chosen |= choose(members, pool)
        for name, mask in chosen.items():
            if not self.plan[name].pattern.is_legal(mask):
                raise ValueError(
                    f"layer {name!r} is pruned already, in another pattern than {self.plan[name].pattern.spec!r}, and is not "
                    "pruned now: give its network a sparsity, or choose the pattern it has"
                )
        return chosen

    def _is_pruned(self, name: str, network: str) -> bool:
        """Whether the layer is to be pruned: it is not exempt, and what was asked for names it."""
        if self.plan[name].exempt:
            return False
        if isinstance(self.config.distribution, Mapping):
            return self.plan[name].n_active < self.plan[name].info.n_weights
        return not isinstance(self.config.sparsity, Mapping) or network in self.config.sparsity

    def _layerwise(self, members: Mapping[str, LayerPlan], pool: Sequence[str]) -> dict[str, th.Tensor]:
        n_active = {name: int(self.present[name].sum()) for name in members}
        n_final = sum(members[name].n_active if name in pool else n_active[name] for name in members)
        # Where the old masks are of another pattern, its budgets are no measure: magnitudes decide among what exists
        refuse_growth(members, n_active, n_final, argument="sparsity")
        masks = {}
        for name in pool:
            plan, present = members[name], self.present[name]
            if plan.pattern.is_legal(present):
                refuse_layer_growth(plan, plan.pattern.budget_of(present), n_active[name])
            weight = self.layers[name].weight
            assert isinstance(weight, th.Tensor)
            masks[name] = largest_of_layer(plan.pattern, weight, present, plan.budget)
            if bool((masks[name] & ~present).any()):
                raise ValueError(
                    f"layer {name!r} is pruned already so that pattern {plan.pattern.spec!r} at this sparsity would need "
                    "weights that are gone: choose a higher sparsity or the pattern it has"
                )
        return masks

    def _global(self, members: Mapping[str, LayerPlan], pool: Sequence[str]) -> dict[str, th.Tensor]:
        n_active = {name: int(self.present[name].sum()) for name in members}
        total = sum(plan.info.n_weights for plan in members.values())
        network = members[pool[0]].info.network
        sparsity = self.config.sparsity[network] if isinstance(self.config.sparsity, Mapping) else self.config.sparsity
        assert sparsity is not None
        n_final = round((1 - sparsity) * total)
        patterns = {name: members[name].pattern for name in pool}
        weights: dict[str, Any] = {name: self.layers[name].weight for name in pool}
        refuse_growth(members, n_active, n_final, argument="sparsity", slack=rounding_of_network(patterns, weights))
        return largest_of_network(
            patterns,
            weights,
            {name: self.present[name] for name in pool},
            n_final - sum(n_active[name] for name in members if name not in pool),
        )

    def describe(self, masks: Mapping[str, th.Tensor]) -> SparsityConfig:
        """
        Say in ``policy_kwargs`` what masks are.

        :param masks: Masks of all layers.
        :return: What ``policy_kwargs`` shall say: what was asked for, or, if the counts are not those it means, the sparsity
            of every layer. Of N:M masks what was asked for in any case, for there a map cannot say more.
        """
        config = self.config
        if parse_pattern(config.pattern).fixed_sparsity is not None:
            return config
        counts = {name: int(mask.sum()) for name, mask in masks.items()}
        if all(plan.n_active == counts[name] for name, plan in self.plan.items()):
            return config
        distribution = {
            name: 1 - count / self.plan[name].info.n_weights
            for name, count in counts.items()
            if count < self.plan[name].info.n_weights
        }
        if not distribution:
            return replace(config, sparsity=0.0, distribution=None)
        return replace(config, sparsity=None, distribution=distribution)


def _make_config(
    policy: BasePolicy,
    sparsity: float | Mapping[str, float] | None,
    distribution: str | Mapping[str, Any] | None,
    pattern: str | None,
    dense_layers: str | Sequence[str] | None,
    masks: Mapping[str, Any] | None,
) -> SparsityConfig:
    own = policy.sparsity_config if isinstance(policy, SparsePolicyMixin) else SparsityConfig()
    pattern = own.pattern if pattern is None else pattern
    if masks is not None:
        # Counts follow from the masks; a plan is needed for patterns and exempt layers alone
        sparsity = 0.0 if parse_pattern(pattern).fixed_sparsity is None else None
    elif distribution is None and isinstance(own.distribution, str) and parse_pattern(pattern).fixed_sparsity is None:
        distribution = own.distribution
    is_free = masks is None and sparsity is None and not isinstance(distribution, Mapping)
    if is_free and parse_pattern(pattern).fixed_sparsity is None:
        raise ValueError(
            "`sparsity` is left out, and nothing it could follow from is there: give a number in [0, 1), an explicit "
            '`distribution`, `pattern`="N:M", or `masks`'
        )
    dense_layers = own.dense_layers if dense_layers is None else dense_layers
    return replace(own, sparsity=sparsity, distribution=distribution, pattern=pattern, dense_layers=dense_layers)


def sparsify(
    model: BaseAlgorithm | str | Path,
    sparsity: float | Mapping[str, float] | None = None,
    *,
    distribution: str | Mapping[str, Any] | None = None,
    pattern: str | None = None,
    dense_layers: str | Sequence[str] | None = None,
    scope: str = "layer",
    masks: Mapping[str, Any] | None = None,
    policy_class: type[SparsePolicyMixin] | None = None,
    replay_buffer: str = "share",
    env: GymEnv | str | None = None,
    algorithm: str | None = None,
    device: th.device | str = "auto",
    allow_pickle: bool = True,
) -> Any:
    """
    Prune an agent that exists: a model of the same algorithm with the sparse policy, ready for ``learn()``. Weights that stay
    keep value and optimizer moments, targets are pruned alike; counters, schedules and hyperparameters are the old ones.

    :param model: A stock or sparse model, not changed, or the path of its zip, or of a folder: the model saved there last.
    :param sparsity: Fraction of zero weights, in [0, 1): one number for every network, or a map from network to number, where
        networks that are not named stay as they are. Follows from ``masks``, N:M or an explicit distribution.
    :param distribution: As in ``policy_kwargs``. None: the model's own if it is sparse and that is a name, otherwise ERK.
    :param pattern: As in ``policy_kwargs``. None: the model's own if it is sparse, otherwise unstructured.
    :param dense_layers: As in ``policy_kwargs``. None: the model's own if it is sparse, otherwise none.
    :param scope: ``"layer"``: the largest weights of each layer stay, as many as the distribution says. ``"global"``: the
        largest of each network.
    :param masks: Instead of all that: bool arrays or tensors of the weights' shapes by layer name; layers that are not named
        stay as they are.
    :param policy_class: The sparse policy class for a policy class of your own.
    :param replay_buffer: What the new model gets of a live off-policy model: ``"share"``, the same object (it may be too large
        for two), ``"copy"``, or ``"new"``, an empty one. A zip holds no replay buffer: it is empty, use
        ``load_replay_buffer``.
    :param env: Environment of the new model, or its name. None: that of a live model; a zip has none.
    :param algorithm: rl-zoo3's name of a zip's algorithm; found out from the file if left out.
    :param device: Device of a zip's model; a live model keeps its own.
    :param allow_pickle: Whether a zip is unpickled, as by ``load``: then it must be trusted. False: it is read as by
        :func:`~sb3_sparse.load_untrusted`, and refused if that would leave something out.
    :return: The new model.
    :raises ValueError: For arguments out of range, unknown networks or layers, a sparsity below the present one or out of
        reach, masks that do not fit, a file that is no model, an unsupported algorithm.
    :raises TypeError: For a policy class of the user's own that is not named as ``policy_class``.
    :raises FileNotFoundError: If there is no file.
    """
    check_scope(scope, distribution)
    require_choice("replay_buffer", replay_buffer, REPLAY_BUFFERS)
    if masks is not None and (sparsity is not None or distribution is not None or scope != "layer"):
        raise ValueError("`masks` say everything: leave `sparsity`, `distribution` and `scope` out")
    if isinstance(model, BaseAlgorithm):
        old, file = model, None
    else:
        file = find_model_file(model)
        old = load_model(file, algorithm) if allow_pickle else load_untrusted(file, algorithm=algorithm)
    policy = policy_of(old)
    target_class = _check_policy_class(policy_class, policy) if policy_class is not None else sparse_counterpart(old)
    config = _make_config(policy, sparsity, distribution, pattern, dense_layers, masks)
    if scope == "global" and parse_pattern(config.pattern).fixed_sparsity is not None:
        raise ValueError(
            f"`scope`='global' cannot be used with `pattern`={config.pattern!r}, which gives every layer the same sparsity: "
            "use 'layer'"
        )
    choice = _Choice(policy, config)
    chosen = choice.given(masks) if masks is not None else choice.by_magnitude(scope)
    env = maybe_make_env(env, verbose=0) if env is not None else None
    saved = Saved.of(old) if file is None else Saved.read(file, allow_pickle=allow_pickle)
    described = choice.describe(chosen)
    kwargs = {name: value for name, value in described.as_kwargs().items() if value != getattr(SparsityConfig(), name)}
    saved.use_policy(target_class, kwargs)
    saved.drop(masks=True, prefix=UPDATER_PREFIX)
    saved.params["policy"] |= {f"{name}{MASK_SUFFIX}": mask.cpu() for name, mask in chosen.items()}
    result: Any = saved.load_beside(old, env=env) if file is None else saved.load(type(old), env=env, device=device)
    if file is None and isinstance(old, OffPolicyAlgorithm) and replay_buffer != "new":
        if result.n_envs != old.n_envs:
            raise ValueError(
                f"`env` has {result.n_envs} environments, and the model's replay buffer is of {old.n_envs}: give as many, or "
                "`replay_buffer`='new'"
            )
        result.replay_buffer = old.replay_buffer if replay_buffer == "share" else deepcopy(old.replay_buffer)
        if replay_buffer == "copy" and isinstance(result.replay_buffer, HerReplayBuffer) and result.get_env() is not None:
            # Its copy has no environment to compute rewards with
            result.replay_buffer.set_env(result.get_env())
    return result


def _is_same_class(one: type, other: type) -> bool:
    """
    Whether two classes are one that was defined in a script. Such a class is saved by value and comes back from a file as
    another object, in the module ``__main__``; what it extends comes back as it is.
    """
    if one is other:
        return True
    by_value = "__main__" in (one.__module__, other.__module__) or one.__module__ == other.__module__
    bases = [next((base for base in cls.__mro__ if base.__module__ != cls.__module__), object) for cls in (one, other)]
    return by_value and one.__qualname__ == other.__qualname__ and bases[0] is bases[1]


def _check_policy_class(policy_class: Any, policy: BasePolicy) -> type[SparsePolicyMixin]:
    dense = policy.stock_policy() if isinstance(policy, SparsePolicyMixin) else type(policy)
    fits = isinstance(policy_class, type) and issubclass(policy_class, SparsePolicyMixin)
    if not fits or not _is_same_class(policy_class.stock_policy(), dense):
        raise TypeError(
            f"`policy_class` must be a class that extends SparsePolicyMixin and {dense.__name__}, in this order, "
            f"got {policy_class!r}"
        )
    return policy_class
