"""
The mixin in front of each stock policy class.

It works after the stock constructor, so networks, optimizers, initial weights and torch's random stream are the stock
policy's; only then are the prunable layers made sparse in place.
"""

from __future__ import annotations

import hashlib
import warnings
import weakref
from collections.abc import Mapping, Sequence
from copy import deepcopy
from functools import partial
from typing import TYPE_CHECKING, Any

import torch as th
from gymnasium import spaces
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.type_aliases import Schedule
from torch import nn

from sb3_sparse.engine.adam import SurvivorSteps
from sb3_sparse.engine.choice import Choice
from sb3_sparse.masks.config import SparsityConfig
from sb3_sparse.masks.plan import make_plan
from sb3_sparse.nn.layers import SPARSE_CLASSES, SparseLayer
from sb3_sparse.nn.sparsifier import Sparsifier
from sb3_sparse.nn.state_dict import check_loadable, complete, revealed
from sb3_sparse.nn.undo import Undo
from sb3_sparse.policies.acceleration import adopt_sequences
from sb3_sparse.policies.arguments import check_arguments, check_optimizer
from sb3_sparse.policies.modes import Modes
from sb3_sparse.policies.normalization import keep_gradients_finite
from sb3_sparse.policies.passes import detached_distributions
from sb3_sparse.policies.structure import ONLINE_OF_TARGET, Structure, find_optimizers, find_structure, find_submodule
from sb3_sparse.policies.threads import keep_passes_apart


def policy_of(model: BaseAlgorithm) -> BasePolicy:
    """
    Find the policy of a model, sparse or not.

    :param model: A model.
    :return: Its policy, also behind ``torch.compile``.
    """
    return getattr(model.policy, "_orig_mod", model.policy)


if TYPE_CHECKING:
    _PolicyBase = BasePolicy
else:
    _PolicyBase = object


def _say_what_is_left_out(structure: Structure) -> None:
    """One warning that names the weights which stay dense, and their share."""
    left_out = sorted(structure.left_out, key=lambda one: -one.n_weights)
    if not left_out:
        return
    n_left_out = sum(one.n_weights for one in left_out)
    total = n_left_out + sum(layer.n_weights for layer in structure.layers)
    named = [f"{one.name} ({one.kind}, {one.n_weights / total:.1%}: {one.reason})" for one in left_out[:8]]
    if len(left_out) > 8:
        named.append(f"and {len(left_out) - 8} more, which sparsity_report(model) lists")
    warnings.warn(
        f"{n_left_out / total:.1%} of the policy's weights stay dense, `sparsity` is that of the others: {'; '.join(named)}",
        UserWarning,
        stacklevel=4,
    )


def _default_seed() -> int:
    """A seed that follows torch's global generator without drawing from it."""
    return int.from_bytes(hashlib.sha256(th.get_rng_state().numpy().tobytes()).digest()[:8], "little") >> 1


def _reload(policy: weakref.ref[SparsePolicyMixin], state_dict: Mapping[str, Any]) -> None:
    loaded = policy()
    if loaded is not None:
        loaded._load(state_dict, strict=True, assign=False)


class SparsePolicyMixin(_PolicyBase):
    """
    Put in front of a stock policy class: ``class MySparsePolicy(SparsePolicyMixin, MyPolicy): ...``.

    Takes the arguments of the stock policy and those of :class:`~sb3_sparse.masks.config.SparsityConfig`.

    :param observation_space: Observation space
    :param action_space: Action space
    :param lr_schedule: Learning rate schedule
    :param sparsity: See :class:`~sb3_sparse.masks.config.SparsityConfig`, as for the following.
    :param distribution: How the sparsity is spread over a network's layers.
    :param pattern: Which masks are legal.
    :param dense_layers: Layers that stay dense.
    :param initial_mask: How the first masks are chosen.
    :param mask_seed: Seed of the masks' own generator.
    :param engine: What multiplies.
    :param kwargs: Arguments of the stock policy, by keyword.
    :raises TypeError: For a keyword that neither knows.
    :raises ValueError: For arguments out of range, see :class:`~sb3_sparse.masks.config.SparsityConfig`, observation spaces
        that the policy cannot take, and optimizers that cannot train it.
    """

    sparsifier: Sparsifier
    sparsity_config: SparsityConfig
    structure: Structure

    def __init__(
        self,
        observation_space: spaces.Space,
        action_space: spaces.Space,
        lr_schedule: Schedule,
        *,
        sparsity: float | Mapping[str, float] | None = None,
        distribution: str | Mapping[str, Any] | None = None,
        pattern: str = "unstructured",
        dense_layers: str | Sequence[str] = (),
        initial_mask: str = "random",
        mask_seed: int | None = None,
        engine: str = "auto",
        **kwargs: Any,
    ) -> None:
        config = SparsityConfig(sparsity, distribution, pattern, dense_layers, initial_mask, mask_seed, engine)
        choice = Choice(engine)
        check_arguments(type(self), self.stock_policy(), observation_space, kwargs)
        super().__init__(observation_space, action_space, lr_schedule, **kwargs)
        self.sparsity_config = config
        # Who names an optimizer means that one
        self._sparsify(config, choice, survivor_steps=choice.possible and not self._names_optimizer(kwargs))

    @classmethod
    def _names_optimizer(cls, kwargs: Mapping[str, Any]) -> bool:
        """Whether somebody wants one optimizer and no other."""
        return "optimizer_class" in kwargs

    @classmethod
    def stock_policy(cls) -> type[BasePolicy]:
        """The dense policy class behind this one."""
        return cls.__mro__[cls.__mro__.index(SparsePolicyMixin) + 1]

    def _sparsify(self, config: SparsityConfig, choice: Choice, survivor_steps: bool) -> None:
        optimizers = find_optimizers(self)
        for name, optimizer in optimizers.items():
            check_optimizer(name, optimizer)
        self.structure = find_structure(self)
        infos = self.structure.layers
        if not infos:
            reasons = "; ".join(f"{one.name} ({one.kind}): {one.reason}" for one in self.structure.left_out)
            raise ValueError(f"{type(self).__name__} has no nn.Linear or nn.Conv2d layer that could be made sparse. {reasons}")
        plan = make_plan(config, infos)
        if any(layer_plan.n_active < layer_plan.info.n_weights for layer_plan in plan.values()):
            _say_what_is_left_out(self.structure)
        layers = {info.name: self._sparse_layer(self.get_submodule(info.name)) for info in infos}
        seed = _default_seed() if config.mask_seed is None else config.mask_seed
        targets = self._make_targets_sparse(layers)
        keep_gradients_finite(self)
        keep_passes_apart(self)
        sequences = adopt_sequences(self, choice)
        engine = SurvivorSteps(sequences) if survivor_steps else None
        self.sparsifier = Sparsifier(layers, plan, targets, optimizers, seed, engine, self.structure.bypassed)
        self.sparsifier.initialize(config.initial_mask)

    @staticmethod
    def _sparse_layer(layer: nn.Module) -> SparseLayer:
        return layer if isinstance(layer, SparseLayer) else SPARSE_CLASSES[type(layer)].from_dense(layer)

    def _make_targets_sparse(self, layers: Mapping[str, SparseLayer]) -> dict[str, list[SparseLayer]]:
        name_of = {layer: name for name, layer in layers.items()}
        targets: dict[str, list[SparseLayer]] = {}
        for target_prefix, prefix in ONLINE_OF_TARGET.items():
            root, target_root = find_submodule(self, prefix), find_submodule(self, target_prefix)
            if root is None or target_root is None:
                continue
            for path, layer in root.named_modules(remove_duplicate=False):
                if isinstance(layer, SparseLayer):
                    twin = find_submodule(target_root, path)
                    if twin is None or type(twin) not in (type(layer), *type(layer).__mro__):
                        raise ValueError(
                            f"{target_prefix} has no layer {path!r} like that of {prefix}: a target network must be built as "
                            "the online network is, so that it can have its masks"
                        )
                    target = self._sparse_layer(twin)
                    # A features extractor that actor and critic share is met twice
                    if not any(target is known for known in targets.setdefault(name_of[layer], [])):
                        targets[name_of[layer]].append(target)
        return targets

    def _layer_paths(self) -> dict[str, str]:
        """Online layer name by every path of a sparse layer in the state dict, online paths before those of targets."""
        name_of: dict[nn.Module, str] = {layer: name for name, layer in self.sparsifier.layers.items()}
        online = {path: name_of[module] for path, module in self.named_modules(remove_duplicate=False) if module in name_of}
        target_of = {target: name for name, targets in self.sparsifier.targets.items() for target in targets}
        return online | {
            path: target_of[module] for path, module in self.named_modules(remove_duplicate=False) if module in target_of
        }

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any:
        """
        Load a sparse or dense policy's state dict without ever breaking an invariant. Masks in the file win over
        ``policy_kwargs``; a dense file gets the largest weights that the plan allows as masks.

        :param state_dict: State dict of a policy of the same architecture.
        :param strict: As in ``torch.nn.Module.load_state_dict``.
        :param assign: As in ``torch.nn.Module.load_state_dict``.
        :return: Missing and unexpected keys.
        :raises RuntimeError: For another architecture or masks that this policy's plan forbids; nothing is overwritten then.
        """
        paths = self._layer_paths()
        completed = revealed(state_dict)
        check_loadable(self.sparsifier, completed, paths, [name for name, _ in self.named_parameters(remove_duplicate=False)])
        complete(self.sparsifier, completed, paths)
        undo = Undo(self.sparsifier, revealed(self.state_dict()), partial(_reload, weakref.ref(self)))
        if undo.will_change_masks(completed):
            undo.keep_moments(self.sparsifier.optimizers)
        try:
            result = self._load(completed, strict=strict, assign=assign)
        except Exception:
            # Torch loads what fits before it says what does not
            undo.restore()
            raise
        self.sparsifier.undo = undo
        return result

    def _load(self, state_dict: Mapping[str, Any], *, strict: bool, assign: bool) -> Any:
        with self.sparsifier.loading():
            result = super().load_state_dict(state_dict, strict=strict, assign=assign)
        self.sparsifier.after_load()
        return result

    def set_training_mode(self, mode: bool) -> None:
        """
        Put the policy in training or evaluation mode, as the stock policy does.

        :param mode: Whether to train.
        """
        modes = self.__dict__.get("_modes")
        if modes is None:
            modes = self.__dict__["_modes"] = Modes()
        if type(mode) is not bool or not modes.set(mode):
            modes.find(self, super().set_training_mode, mode)

    def _get_constructor_parameters(self) -> dict[str, Any]:
        return {**super()._get_constructor_parameters(), **self.sparsity_config.as_kwargs()}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        if "sparsifier" in self._modules:
            self.sparsifier.attach()

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        memo.update(detached_distributions(self))
        copy = type(self).__new__(type(self))
        memo[id(self)] = copy
        copy.__setstate__(deepcopy(self.__dict__, memo))
        return copy


def sparse_policy(model: BaseAlgorithm) -> SparsePolicyMixin:
    """
    The sparse policy of a model, also behind ``torch.compile``.

    :param model: A model.
    :return: Its policy.
    :raises TypeError: If the policy is not sparse.
    """
    policy = policy_of(model)
    if not isinstance(policy, SparsePolicyMixin):
        raise TypeError(
            f"the model's policy is {type(policy).__name__}, which is not sparse: create the model with a sparse policy, "
            f'e.g. {type(model).__name__}("SparseMlpPolicy", env, policy_kwargs=dict(sparsity=0.9)), or prune this one with '
            "sb3_sparse.sparsify(model, sparsity=0.9)"
        )
    return policy
