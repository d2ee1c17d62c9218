"""
Holds masks, optimizers and target networks together, and owns the invariants:

1. Online and target weights are exactly 0.0 outside the mask after every optimizer step and every target update; so are
   gradients at clipping time and the optimizer's moments.
2. Every layer has exactly as many positions as planned, in a legal pattern.

How: layers mask their gradients inside ``backward()``; a step post-hook on each optimizer projects the online weights; a
target network is projected whenever its mask changes, and Polyak averaging of zeros with zeros keeps zeros.
"""

from __future__ import annotations

import warnings
import weakref
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Protocol
from weakref import WeakSet

import torch as th
from torch import nn
from torch.autograd.graph import increment_version

from sb3_sparse.masks.plan import LayerPlan
from sb3_sparse.nn.invariants import violations
from sb3_sparse.nn.layers import SparseLayer
from sb3_sparse.nn.optimizer_state import check_loadable, clear_moments, keeps_zeros, restart_moments
from sb3_sparse.nn.undo import Undo
from sb3_sparse.nn.updater import ActiveUpdater, Updater
from sb3_sparse.nn.updater_state import TargetState, UpdaterState
from sb3_sparse.quantization.fake_quantizer import Quantizer
from sb3_sparse.utils.checks import require_choice
from sb3_sparse.utils.metadata import hide, reveal

#: Which masks a target network can have.
TARGET_MASKS = ("online", "own_topk")


class _AroundStep:
    """Step hook of one optimizer. It knows the sparsifier weakly: a hook must not keep a network alive."""

    def __init__(self, sparsifier: Sparsifier, name: str, method: str) -> None:
        self.sparsifier = weakref.ref(sparsifier)
        self.name = name
        self.method = method

    def __call__(self, optimizer: th.optim.Optimizer, args: Any, kwargs: Any) -> None:
        sparsifier = self.sparsifier()
        if sparsifier is not None:
            getattr(sparsifier, self.method)(self.name)


def is_own_step_hook(hook: Any) -> bool:
    """
    Tell a sparsifier's step hooks from those of others.

    :param hook: A step hook of an optimizer.
    :return: Whether a sparsifier put it there.
    """
    return type(hook) is _AroundStep


class _BeforeLoad:
    """``load_state_dict`` pre-hook of one optimizer: what cannot be loaded is refused while nothing is overwritten."""

    def __init__(self, sparsifier: Sparsifier, name: str) -> None:
        self.sparsifier = weakref.ref(sparsifier)
        self.name = name

    def __call__(self, optimizer: th.optim.Optimizer, state_dict: dict[str, Any]) -> None:
        sparsifier = self.sparsifier()
        if sparsifier is None:
            return
        if sparsifier.undo is None:
            check_loadable(optimizer, self.name, state_dict)
        else:
            sparsifier.undo.before_optimizer(self.name, state_dict)


class _AfterLoad:
    """``load_state_dict`` post-hook of one optimizer: what was loaded may be the moments of a dense network."""

    def __init__(self, sparsifier: Sparsifier) -> None:
        self.sparsifier = weakref.ref(sparsifier)

    def __call__(self, optimizer: th.optim.Optimizer) -> None:
        sparsifier = self.sparsifier()
        if sparsifier is not None:
            sparsifier._project_moments(optimizer)
            if sparsifier.undo is not None and sparsifier.undo.loaded == sparsifier.optimizers.keys():
                sparsifier.undo = None


class OptimizerEngine(Protocol):
    """What may let optimizers go over survivors alone. The same values come out; only who computes them differs."""

    def adopt(self, optimizer: th.optim.Optimizer, layers: Sequence[SparseLayer]) -> None:
        """Take over an optimizer, in place, if it can; ``layers`` are the sparse layers whose weights are its own."""

    def projects_itself(self, optimizer: th.optim.Optimizer) -> bool:
        """Whether the optimizer's last step left every pruned weight at zero."""

    def projected(self, optimizer: th.optim.Optimizer) -> None:
        """Be told that the weights were multiplied by their masks after the optimizer's last step."""


class Sparsifier(nn.Module):
    """
    A module without parameters that lives in a sparse policy as ``policy.sparsifier``; its buffers (the masks' generator, one
    step counter per optimizer, and what updaters remember) travel with the policy's state dict, beside its keys.

    :param layers: Sparse layers by name, masks all True.
    :param plan: Plan by name, same keys.
    :param targets: Layers of the target networks that follow each online layer, by the online layer's name.
    :param optimizers: Optimizers by the name of the network that owns them.
    :param seed: Seed of the masks' generator, in [0, 2**63).
    :param engine: What may let the optimizers go over survivors alone; None: they stay as they are.
    :param bypassed: Layers whose weight is used outside of their forward, too, by name.
    """

    mask_seed: th.Tensor
    mask_draws: th.Tensor

    def __init__(
        self,
        layers: Mapping[str, SparseLayer],
        plan: Mapping[str, LayerPlan],
        targets: Mapping[str, list[SparseLayer]],
        optimizers: Mapping[str, th.optim.Optimizer],
        seed: int,
        engine: OptimizerEngine | None = None,
        bypassed: Collection[str] = (),
    ) -> None:
        super().__init__()
        # Plain dicts: the layers stay modules of the policy, they are not registered here a second time
        self.layers = dict(layers)
        self.targets = {name: list(targets.get(name, [])) for name in layers}
        self.optimizers = dict(optimizers)
        self.plan = dict(plan)
        #: Planned number of positions of every layer; an updater that changes it says so to :meth:`set_masks`.
        self.n_planned = {name: layer_plan.n_active for name, layer_plan in plan.items()}
        self.register_buffer("mask_seed", th.tensor(seed, dtype=th.int64))
        self.register_buffer("mask_draws", th.tensor(0, dtype=th.int64))
        for name in optimizers:
            self.register_buffer(f"n_steps_{name}", th.tensor(0, dtype=th.int64))
        self.engine = engine
        self.bypassed = frozenset(bypassed)
        self.updater_state = UpdaterState()
        self.updaters: dict[str, ActiveUpdater] = {}
        #: Initial values of the weights that the first N:M masks prune, until the first optimizer step: rules that keep a
        #: shadow of pruned weights begin with them. By layer name, shape of the weight; not saved, not copied.
        self.pruned_values: dict[str, th.Tensor] = {}
        self._hooked: WeakSet[th.optim.Optimizer] | None = None
        self._owned_layers: dict[str, list[SparseLayer]] = {}
        #: Optimizers that do not leave zeros alone.
        self._untidy: set[str] = set()
        self._is_loading = False
        #: What the policy was before it was loaded, as long as a part of the load may fail.
        self.undo: Undo | None = None
        self.attach()

    # --- What is there ---

    @property
    def networks(self) -> dict[str, list[str]]:
        """Layer names by network, both in order of first appearance."""
        networks: dict[str, list[str]] = {}
        for name, layer_plan in self.plan.items():
            networks.setdefault(layer_plan.info.network, []).append(name)
        return networks

    def masks(self) -> dict[str, th.Tensor]:
        """Copies of the online masks, bool, by layer name."""
        return {name: layer.weight_mask.clone() for name, layer in self.layers.items()}

    def n_steps(self, optimizer: str) -> int:
        """
        Count the steps of an optimizer.

        :param optimizer: Name of an optimizer, see ``optimizers``.
        :return: How many steps it has made, counted over saves and loads.
        """
        return int(self.get_buffer(f"n_steps_{optimizer}"))

    def next_generator(self) -> th.Generator:
        """
        A CPU generator for one random decision about masks. It depends on nothing but ``mask_seed`` and how many were
        handed out before, so it never touches torch's global stream and continues exactly after a load.

        :return: A generator that no one else uses.
        """
        seed = (int(self.mask_seed) * 0x9E3779B97F4A7C15 + int(self.mask_draws) * 0xBF58476D1CE4E5B9) % 2**64
        self.mask_draws += 1
        return th.Generator().manual_seed(seed ^ (seed >> 31))

    # --- Changing masks ---

    def initialize(self, initial_mask: str) -> None:
        """
        Give every layer its first mask.

        :param initial_mask: ``"random"``, or ``"magnitude"`` for the largest initial weights.
        """
        masks = {}
        for name, layer in self.layers.items():
            if self.n_planned[name] < layer.weight.numel():
                if initial_mask == "magnitude":
                    scores = layer.weight.detach().abs()
                else:
                    scores = th.rand(layer.weight.shape, generator=self.next_generator()).to(layer.weight.device)
                masks[name] = self.plan[name].pattern.select(scores, self.plan[name].budget)
                if self.plan[name].pattern.fixed_sparsity is not None:
                    self.pruned_values[name] = layer.weight.detach().clone()
        self.set_masks(masks)

    @th.no_grad()
    def set_masks(
        self,
        masks: Mapping[str, th.Tensor],
        grown_values: Mapping[str, th.Tensor] | None = None,
        *,
        replan: bool = False,
    ) -> None:
        """
        The one entry through which masks change. Either everything is done or, after an error, nothing.

        Weights that drop out become 0.0, online and in the target (unless it has a mask of its own, see
        :meth:`set_target_masks`), with their gradient and moments. Weights that are grown
        get their value online; their target stays at 0.0 and follows by Polyak averaging; their moments start afresh in
        every optimizer that owns them. Weights that stay keep value and moments.

        :param masks: New masks by layer name: bool, shape of the layer's weight, any device.
        :param grown_values: Values for grown positions by layer name: shape of the weight, read only where grown. Without
            it they are 0.0.
        :param replan: Allow the number of positions to change (gradual pruning); it becomes the layer's plan.
        :raises ValueError: For unknown layers, wrong dtype or shape, layers in ``dense_layers``, masks that break the
            layer's pattern, or another number of positions than planned without ``replan``.
        """
        grown_values = grown_values or {}
        self._check_masks(masks, grown_values, replan)
        for name, mask in masks.items():
            layer = self.layers[name]
            mask = mask.to(layer.weight.device)
            grown = mask & ~layer.weight_mask
            layer.replace_mask(mask)
            if name in grown_values:
                layer.weight.copy_(th.where(grown, grown_values[name].to(layer.weight), layer.weight))
            for optimizer in self.optimizers.values():
                restart_moments(optimizer, layer.weight, grown | ~mask)
            for target in self.targets[name]:
                self._follow(target, layer)
            self.n_planned[name] = layer.n_active
        self._adopt_optimizers()

    def set_target_masks(self, network: str, mode: str) -> None:
        """
        Say which masks the target of a network has, from now on and after loading.

        :param network: Name of the network; it need not have a target.
        :param mode: ``"online"``: those of the online network, at once. ``"own_topk"``: its own largest weights, as many as
            online (MaintainSparsity of DS-TD3, Sokar et al. 2022, algorithm 1). Polyak averaging of two topologies is denser
            than either and calls no hook; the target is brought back to its number whenever it is read, that is before a
            forward pass and before saving.
        :raises ValueError: For another mode, and for ``"own_topk"`` where a layer's weight is read past its forward.
        """
        require_choice("target", mode, TARGET_MASKS)
        if mode == "own_topk":
            for name in self.networks.get(network, []):
                if name in self.bypassed and self.targets[name]:
                    raise ValueError(
                        f"`target`='own_topk' cannot be had for layer {name!r}: its weight is used outside of its forward, "
                        "where nobody sees to the target's own mask. Use 'online', or let the network call the layer"
                    )
        TargetState(self.updater_state, network, self.layers).own_target = mode == "own_topk"
        self._apply_target_masks()

    def _apply_target_masks(self) -> None:
        for network, names in self.networks.items():
            has_own = TargetState(self.updater_state, network, self.layers).own_target
            for name in names:
                for target in self.targets[name]:
                    target.keep_own_mask(self.plan[name].pattern if has_own else None)
                    self._follow(target, self.layers[name])

    def _check_masks(self, masks: Mapping[str, th.Tensor], grown_values: Mapping[str, th.Tensor], replan: bool) -> None:
        for name, mask in masks.items():
            if name not in self.layers:
                raise ValueError(f"`masks` names the unknown layer {name!r}; the layers are: {', '.join(self.layers)}")
            weight, layer_plan = self.layers[name].weight, self.plan[name]
            if mask.dtype != th.bool or mask.shape != weight.shape:
                raise ValueError(
                    f"the mask of layer {name!r} must be bool of shape {tuple(weight.shape)}, "
                    f"got {mask.dtype} of shape {tuple(mask.shape)}"
                )
            if layer_plan.exempt and not bool(mask.all()):
                raise ValueError(f"layer {name!r} is in `dense_layers`: its mask must stay all True")
            if not layer_plan.pattern.is_legal(mask):
                raise ValueError(f"the mask of layer {name!r} breaks its pattern {layer_plan.pattern.spec!r}")
            n_active = int(mask.sum())
            if n_active != self.n_planned[name] and not replan:
                raise ValueError(
                    f"the mask of layer {name!r} has {n_active} positions, planned are {self.n_planned[name]}; "
                    "pass replan=True to change the plan"
                )
        for name, values in grown_values.items():
            if name not in masks or values.shape != masks[name].shape:
                raise ValueError(f"`grown_values` of layer {name!r} needs a mask of the same shape in `masks`")

    def set_quantizer(self, name: str, quantizer: Quantizer | None) -> None:
        """
        Quantize a layer, and the layers of target networks that follow it: with the same ranges of inputs, each with the
        scales of its own weights.

        :param name: Name of the online layer.
        :param quantizer: How; None: not at all.
        """
        for layer in (self.layers[name], *self.targets[name]):
            layer.set_quantizer(quantizer)

    # --- Updaters ---

    def optimizer_of(self, network: str) -> str:
        """
        Find the optimizer that trains a network.

        :param network: Name of a network.
        :return: Name of the optimizer whose steps are the network's. A features extractor that actor and critic share is
            trained, in stock algorithms, by the actor's.
        :raises ValueError: For an unknown network, or one that no optimizer trains.
        """
        if network not in self.networks:
            raise ValueError(f"unknown network {network!r}; the networks of this policy are: {', '.join(self.networks)}")
        for name in self.optimizers:
            if any(layer is self.layers[member] for member in self.networks[network] for layer in self._owned_layers[name]):
                return name
        raise ValueError(f"no optimizer trains network {network!r}, so its gradients cannot be seen")

    def start_updater(self, network: str, updater: Updater) -> None:
        """
        Let an updater change a network's masks, in step with the network's optimizer, until :meth:`stop_updater` or until it
        says that its training is over.

        :param network: Name of the network.
        :param updater: The updater.
        :raises ValueError: If another one is at work there, the network is unknown, or no optimizer trains it.
        """
        present = self.updaters.get(network)
        if present is not None and present.updater is not updater and not present.updater.has_ended():
            raise ValueError(
                f"network {network!r} already has the updater {type(present.updater).__name__}; {type(updater).__name__} "
                "cannot be a second one in the same training. Give each its own `networks`. (A loop of your own ends a "
                "training by calling on_training_end() of its callbacks.)"
            )
        layers = [self.layers[name] for name in self.networks.get(network, [])]
        self.updaters[network] = ActiveUpdater(updater, self.optimizer_of(network), layers)
        self.request_gradients(network)

    def stop_updater(self, network: str, updater: Updater | None = None) -> None:
        """
        Let the updater of a network go.

        :param network: Name of a network whose updater is done. What it remembers stays.
        :param updater: Stop this one only; None: whichever is at work.
        """
        active = self.updaters.get(network)
        if active is None or (updater is not None and active.updater is not updater):
            return
        del self.updaters[network]
        for layer in active.layers:
            layer.wants_dense_gradient, layer.dense_gradient = False, None

    def unbind(self, network: str) -> None:
        """
        Old name of :meth:`stop_updater`, which is needed no more after an interrupted training.

        :param network: Name of a network.
        """
        warnings.warn("`unbind` is now called `stop_updater`; the old name will go", DeprecationWarning, stacklevel=2)
        self.stop_updater(network)

    def request_gradients(self, network: str) -> None:
        """
        Ask the layers for dense gradients if the updater wants them at the coming step.

        :param network: Name of a network that has an updater.
        """
        active = self.updaters[network]
        wanted = active.updater.wants_dense_gradient(network, self.n_steps(active.optimizer) + 1)
        for layer in active.layers:
            # A gradient is of one step: what is there is of one that has passed
            layer.wants_dense_gradient, layer.dense_gradient = wanted, None

    def _updaters_of(self, optimizer: str) -> list[tuple[str, ActiveUpdater]]:
        """Updaters at work on the networks of an optimizer; those whose training was interrupted are let go."""
        found = []
        for network, active in list(self.updaters.items()):
            if active.optimizer == optimizer:
                if active.updater.has_ended():
                    self.stop_updater(network)
                else:
                    found.append((network, active))
        return found

    def _before_step(self, optimizer: str) -> None:
        for network, active in self._updaters_of(optimizer):
            if not active.updater.before_step(network, self.n_steps(optimizer) + 1):
                for layer in active.layers:
                    self._skip_step(layer)

    @staticmethod
    def _skip_step(layer: SparseLayer) -> None:
        # Optimizers leave out parameters without a gradient
        for parameter in layer.parameters():
            parameter.grad = None

    # --- Invariants ---

    def attach(self, optimizers: Mapping[str, th.optim.Optimizer] | None = None) -> None:
        """
        Hook the optimizers. Needed again after a copy, which loses hooks; harmless at any other time.

        :param optimizers: Use these from now on, under the names they had; for whoever replaces a policy's optimizer.
        """
        if optimizers is not None:
            if optimizers.keys() != self.optimizers.keys():
                raise ValueError(f"`optimizers` must be named {sorted(self.optimizers)}, got {sorted(optimizers)}")
            self.optimizers = dict(optimizers)
        if self._hooked is None:
            self._hooked = WeakSet()
        for name, layer in self.layers.items():
            for one in (layer, *self.targets[name]):
                one.keeper = weakref.ref(self)
        for name, optimizer in self.optimizers.items():
            if optimizer not in self._hooked:
                optimizer.register_step_pre_hook(_AroundStep(self, name, "_before_step"))
                optimizer.register_step_post_hook(_AroundStep(self, name, "_after_step"))
                optimizer.register_load_state_dict_pre_hook(_BeforeLoad(self, name))
                optimizer.register_load_state_dict_post_hook(_AfterLoad(self))
                self._hooked.add(optimizer)
            owned = {id(weight) for group in optimizer.param_groups for weight in group["params"]}
            self._owned_layers[name] = [layer for layer in self.layers.values() if id(layer.weight) in owned]
        self._untidy = {name for name, optimizer in self.optimizers.items() if not keeps_zeros(optimizer)}
        self._adopt_optimizers()

    def _adopt_optimizers(self) -> None:
        """Let the optimizers of networks in which something is pruned go over survivors alone."""
        if self.engine is None:
            return
        for name, optimizer in self.optimizers.items():
            if any(layer.mask_values is not None for layer in self._owned_layers[name]):
                self.engine.adopt(optimizer, self._owned_layers[name])

    def adopt_optimizer(self, name: str) -> None:
        """
        Let an optimizer go over survivors though nothing of its networks is pruned.

        :param name: Name of the optimizer.
        """
        if self.engine is not None:
            self.engine.adopt(self.optimizers[name], self._owned_layers[name])

    def _after_step(self, optimizer: str) -> None:
        getattr(self, f"n_steps_{optimizer}").add_(1)
        if self.pruned_values:
            self.pruned_values = {}
        self.undo = None
        stepped = self.optimizers[optimizer]
        if optimizer in self._untidy or any(group.get("fused") for group in stepped.param_groups):
            # Torch's fused optimizers write to weights and leave no trace of it in their version counters
            increment_version([layer.weight for layer in self._owned_layers[optimizer]])
        if self.engine is None:
            self._project_weights(optimizer)
        elif not self.engine.projects_itself(stepped):
            self._project_weights(optimizer)
            self.engine.projected(stepped)
        if optimizer in self._untidy:
            self._project_moments(stepped)
        for network, active in self._updaters_of(optimizer):
            active.updater.after_step(network, self.n_steps(optimizer))
            if network in self.updaters:
                self.request_gradients(network)

    @th.no_grad()
    def _project_weights(self, optimizer: str) -> None:
        sparse = [
            (layer.weight, layer.mask_values) for layer in self._owned_layers[optimizer] if layer.mask_values is not None
        ]
        if optimizer in self._untidy:
            for layer in self._owned_layers[optimizer]:
                layer.project()  # whatever is there: 0 / 0 is NaN, and NaN times zero
        elif sparse:
            th._foreach_mul_([weight for weight, _ in sparse], [values for _, values in sparse])

    def project(self) -> None:
        """Project online weights, target weights and moments onto the masks, after something wrote to them from outside."""
        for name, layer in self.layers.items():
            layer.project()
            for target in self.targets[name]:
                target.project()
        for optimizer in self.optimizers.values():
            self._project_moments(optimizer)

    def _project_moments(self, optimizer: th.optim.Optimizer) -> None:
        for layer in self.layers.values():
            if layer.mask_values is not None:
                clear_moments(optimizer, layer.weight, ~layer.weight_mask)

    def violations(self) -> list[str]:
        """
        Check the invariants, for tests and for anybody who wants to be sure.

        :return: One line for each breach; empty when all hold.
        """
        return violations(self)

    # --- Loading and copying ---

    def state_dict(self, *args: Any, **kwargs: Any) -> Any:
        """Nothing among the keys: counters and memories are no numbers that one could add up. All of it is beside them."""
        prefix = kwargs.get("prefix", args[1] if len(args) > 1 else "")
        result = super().state_dict(*args, **kwargs)
        if getattr(result, "_metadata", None) is not None:
            own = [key for key in result if key.startswith(prefix)]
            hide(result, prefix, {key[len(prefix) :]: result.pop(key) for key in own})
        return result

    def _load_from_state_dict(
        self, state_dict: dict[str, Any], prefix: str, local_metadata: Mapping[str, Any], *args: Any
    ) -> None:
        reveal(state_dict, prefix, local_metadata)
        super()._load_from_state_dict(state_dict, prefix, local_metadata, *args)

    def layer_loaded(self, layer: SparseLayer) -> None:
        """
        Be told that a state dict was loaded into a layer, perhaps by a part of the policy alone: its mask is the plan, and
        the layers of target networks follow.

        :param layer: One of the online or target layers.
        """
        if self._is_loading:
            return
        name = next(name for name, online in self.layers.items() if online is layer or layer in self.targets[name])
        online = self.layers[name]
        self.pruned_values.pop(name, None)
        self.n_planned[name] = online.n_active
        self.set_quantizer(name, online.quantizer)
        for target in self.targets[name]:
            self._follow(target, online)
        for optimizer in self.optimizers.values():
            restart_moments(optimizer, online.weight, ~online.weight_mask)
        self._adopt_optimizers()

    def _follow(self, target: SparseLayer, online: SparseLayer) -> None:
        """Let a target layer have the online mask, or, if it has a mask of its own, the online number."""
        pattern = target.own_pattern
        if pattern is None:
            if not th.equal(target.weight_mask, online.weight_mask):
                target.replace_mask(online.weight_mask)
        elif target.n_active != online.n_active:
            target.replace_mask(pattern.select(target.weight.abs(), pattern.budget_of(online.weight_mask)))

    @contextmanager
    def loading(self) -> Iterator[None]:
        """While the whole policy is loaded, its layers need not be looked at one by one; :meth:`after_load` does it."""
        self._is_loading = True
        try:
            yield
        finally:
            self._is_loading = False

    def after_load(self) -> None:
        """Let the loaded masks be the plan, and project whatever else was loaded onto them."""
        self.n_planned = {name: layer.n_active for name, layer in self.layers.items()}
        self.pruned_values = {}
        self._apply_target_masks()
        for name, layer in self.layers.items():
            # They were one object in the model that was saved, and loaded as two
            self.set_quantizer(name, layer.quantizer)
        self.attach()
        self.project()

    def __getstate__(self) -> dict[str, Any]:
        # Copies and pickles of optimizers have no hooks; updaters belong to a run (and lead to its model and environment)
        return {**self.__dict__, "_hooked": None, "updaters": {}, "pruned_values": {}, "undo": None}
