"""
What all callbacks that change masks while a network trains share.

They act inside ``train()``, in step with each network's own optimizer: a callback of Stable-Baselines3 is only called per
environment step, so all it does itself is to start an updater in the policy's sparsifier and to log what happened.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any, TypeVar

import torch as th

from sb3_sparse.callbacks.clock import Clock
from sb3_sparse.callbacks.events import TopologyEvent
from sb3_sparse.callbacks.finite import ON_NONFINITE, check_environment, looks_finite, refuse_nonfinite
from sb3_sparse.callbacks.training import TrainingCallback
from sb3_sparse.nn.layers import SparseLayer
from sb3_sparse.nn.sparsifier import Sparsifier
from sb3_sparse.nn.updater_state import NetworkState, PerLayer, Scalar
from sb3_sparse.policies.base import sparse_policy
from sb3_sparse.utils.checks import require_choice

StateT = TypeVar("StateT", bound=NetworkState)


class TopologyState(NetworkState):
    """What every callback that changes masks remembers of a network."""

    #: Ticks of the clock by the last update.
    ticks_done = Scalar[int](th.int64, key="period")
    #: Positions that have ever existed.
    ever_active = PerLayer(th.bool)


class TopologyCallback(TrainingCallback[TopologyEvent]):
    """
    An updater of masks. Subclasses say which layers they can change (:meth:`_can_change`), and how (:meth:`_update`).

    A layer that is frozen (``requires_grad_(False)``) keeps its mask as long as it is.

    :param clock: When updates happen.
    :param networks: A network's name or several; None for all that the callback can update.
    :param on_nonfinite: ``"raise"``: stop the training at the step at which a network that is updated, an observation or a
        reward is NaN or infinite. ``"ignore"``: go on; a layer with such weights or gradients keeps its mask.
    :param verbose: 1 prints every event.
    :raises ValueError: For arguments out of range here; on training start for unknown networks, networks that have another
        updater in this training, and a stop before the start.
    :raises TypeError: On training start, if the policy is not sparse.
    """

    #: Attributes that are about this process and not about the training: a run's checkpoint leaves them alone.
    not_in_checkpoints = ("_n_loads",)

    def __init__(
        self,
        clock: Clock,
        *,
        networks: str | Sequence[str] | None = None,
        on_nonfinite: str = "raise",
        verbose: int = 0,
    ) -> None:
        super().__init__(verbose)
        self.clock = clock
        self.networks = [networks] if isinstance(networks, str) else networks
        is_list = isinstance(self.networks, Sequence) and all(isinstance(name, str) for name in self.networks)
        if self.networks is not None and not (is_list and self.networks):
            raise ValueError(f"`networks` must be None, a name or a list of names, got {networks!r}")
        self.on_nonfinite = require_choice("on_nonfinite", on_nonfinite, ON_NONFINITE)
        #: Networks that are updated in the present training, and the sparsifier they belong to.
        self._updated: list[str] = []
        self._updated_in: Sparsifier | None = None
        #: How many states had been loaded when this callback last set up what it remembers.
        self._n_loads = 0

    def __getstate__(self) -> dict[str, Any]:
        # A copy of the callback updates nothing until it is told of a training
        return {**super().__getstate__(), "_updated": [], "_updated_in": None}

    @property
    def sparsifier(self) -> Sparsifier:
        """The sparsifier of the policy in training."""
        return sparse_policy(self.model).sparsifier

    # --- What a subclass says ---

    def _can_change(self, name: str) -> bool:
        """Whether this callback can change the mask of a layer that is not in ``dense_layers``. Default: of a pruned one."""
        return self.sparsifier.layers[name].mask_values is not None

    def _refusal(self, network: str) -> str | None:
        """Why the callback cannot update a network, or None if it can."""
        return None if self._layers_of(network) else "none of its layers is pruned"

    def _tensors(self, name: str) -> dict[str, th.Tensor | None]:
        """What an update of a layer's mask is decided by, by what it is called."""
        return {"weight": self.sparsifier.layers[name].weight}

    @abstractmethod
    def _update(self, network: str, step: int) -> float:
        """Change the network's masks at a step of its optimizer; the drop fraction in force, for the log."""

    # --- Life ---

    def _on_training_start(self) -> None:
        self._let_go()  # of a training that was interrupted, perhaps another model's
        self.clock.set(self.model._total_timesteps, getattr(self.model, "learning_starts", 0))
        super()._on_training_start()
        self._start(self._choose_networks())

    def _choose_networks(self) -> Sequence[str]:
        sparsifier = self.sparsifier
        if self.networks is None:
            networks = [name for name in sparsifier.networks if self._refusal(name) is None]
            if not networks:
                refusals = "; ".join(f"{name}: {self._refusal(name)}" for name in sparsifier.networks)
                raise ValueError(f"{type(self).__name__} has no network to update ({refusals})")
            return networks
        for network in self.networks:
            if network not in sparsifier.networks:
                known = ", ".join(sparsifier.networks)
                raise ValueError(f"`networks` names the unknown network {network!r}; the networks of this policy are: {known}")
            sparsifier.optimizer_of(network)
            if (refusal := self._refusal(network)) is not None:
                raise ValueError(f"{type(self).__name__} cannot update network {network!r}: {refusal}")
        return self.networks

    def _start(self, networks: Sequence[str]) -> None:
        self._updated_in, self._n_loads = self.sparsifier, self.sparsifier.updater_state.n_loads
        try:
            for network in networks:
                self._prepare(network)
                self._updated_in.start_updater(network, self)
                self._updated.append(network)
        except ValueError:
            self._let_go()
            raise

    def _let_go(self) -> None:
        """Stop updating, wherever this callback does."""
        for network in self._updated:
            assert self._updated_in is not None
            self._updated_in.stop_updater(network, self)
        self._updated, self._updated_in = [], None

    def _on_return(self) -> None:
        networks = self._updated
        self._let_go()
        for network in networks:
            # Whoever was at work in a training inside this one is done
            self.sparsifier.stop_updater(network)
        self._start(networks)

    def _on_step(self) -> bool:
        super()._on_step()
        if self.on_nonfinite == "raise":
            check_environment(self.locals, self.num_timesteps)
        return True

    def _on_training_end(self) -> None:
        self._let_go()
        super()._on_training_end()

    # --- State ---

    def state(self, network: str) -> TopologyState:
        """
        What this callback remembers of a network.

        :param network: Name of a network.
        :return: What this callback remembers of it.
        """
        return self._state_as(TopologyState, network)

    def _state_as(self, state: type[StateT], network: str) -> StateT:
        return state(self.sparsifier.updater_state, network, self._layers(network))

    def _layers(self, network: str) -> dict[str, SparseLayer]:
        """All layers of a network by name."""
        sparsifier = self.sparsifier
        return {name: sparsifier.layers[name] for name in sparsifier.networks[network]}

    def _prepare(self, network: str) -> None:
        """Set up what is remembered of a network, as far as it is not there yet."""
        state = self.state(network)
        state.check()
        for name, layer in state.layers.items():
            if name not in state.ever_active:
                state.ever_active[name] = layer.weight_mask.clone()
        self._set_ticks(network)

    def _set_ticks(self, network: str) -> None:
        """Say how many ticks are done when a training starts."""
        state, ticks = self.state(network), self.clock.ticks(self.model.num_timesteps)
        if state.ticks_done is None or state.ticks_done > ticks:  # a fresh start, or timesteps were reset
            state.ticks_done = ticks

    def _after_load(self) -> None:
        """A policy that was loaded in mid-training has brought what was remembered in its file, or nothing."""
        n_loads = self.sparsifier.updater_state.n_loads
        if n_loads != self._n_loads:
            self._n_loads = n_loads
            for network in self._updated:
                self._prepare(network)

    # --- Random numbers ---

    def _random(self, layer: SparseLayer) -> th.Tensor:
        """Uniform numbers in [0, 1), one for every position of a layer."""
        return th.rand(layer.weight.shape, generator=self.sparsifier.next_generator()).to(layer.weight.device)

    def _initial_weight(self, layer: SparseLayer) -> th.Tensor:
        """Weights as torch's default initialisation of a layer draws them, uniform in +-1 / sqrt(fan_in)."""
        return (self._random(layer).to(layer.weight.dtype) * 2 - 1) * layer.weight[0].numel() ** -0.5

    # --- Acting, as the sparsifier's updater ---

    def wants_dense_gradient(self, network: str, step: int) -> bool:
        """Whether the gradients of pruned weights are needed at this step of the network's optimizer."""
        return False

    def before_step(self, network: str, step: int) -> bool:
        """Called by the sparsifier before an optimizer step."""
        self._after_load()
        return True

    def after_step(self, network: str, step: int) -> None:
        """Called by the sparsifier after an optimizer step."""
        self._watch(network, step)
        if self._is_due(network, step):
            self._act(network, step)

    def _watch(self, network: str, step: int) -> None:
        """Stop the training if the network has just become NaN or infinite."""
        if self.on_nonfinite == "raise" and not looks_finite(self._layers(network)):
            self._refuse_nonfinite(network, step)

    def _refuse_nonfinite(self, network: str, step: int) -> None:
        tensors: dict[tuple[str, str], th.Tensor | None] = {}
        for name, layer in self._layers(network).items():
            tensors |= {(name, "gradient"): layer.weight.grad, (name, "weight"): layer.weight, (name, "bias"): layer.bias}
        refuse_nonfinite(network, step, tensors)

    def _is_due(self, network: str, step: int) -> bool:
        # Asked at every step: what is remembered is looked up only where it matters
        ticks_done = 0 if self.clock.unit == "steps" else self.state(network).ticks_done or 0
        return self.clock.is_due(self.model.num_timesteps, step, ticks_done)

    def _layers_of(self, network: str) -> list[str]:
        """Layers of the network that this callback can change: never those in ``dense_layers``."""
        sparsifier = self.sparsifier
        return [name for name in sparsifier.networks[network] if not sparsifier.plan[name].exempt and self._can_change(name)]

    def _layers_now(self, network: str, step: int) -> list[str]:
        """Those of them that are changed at this update: not frozen ones, nor those decided by values that are not finite."""
        names = [name for name in self._layers_of(network) if self.sparsifier.layers[name].weight.requires_grad]
        if self.on_nonfinite == "raise":
            for name in names:
                tensors = {(name, what): values for what, values in self._tensors(name).items()}
                refuse_nonfinite(network, step, tensors)
            return names
        return [
            name
            for name in names
            if all(values is None or bool(values.isfinite().all()) for values in self._tensors(name).values())
        ]

    def _act(self, network: str, step: int) -> None:
        state, sparsifier, timestep = self.state(network), self.sparsifier, self.model.num_timesteps
        state.ticks_done = self.clock.ticks(timestep)
        before = {name: layer.weight_mask.clone() for name, layer in state.layers.items()}
        fraction = self._update(network, step)
        dropped = grown = explored = active = total = 0
        for name, old in before.items():
            new = sparsifier.layers[name].weight_mask
            dropped += int((old & ~new).sum())
            grown += int((new & ~old).sum())
            ever_active = state.ever_active[name]
            ever_active |= new
            explored += int(ever_active.sum())
            active += sparsifier.layers[name].n_active
            total += new.numel()
        sparsity = 1 - active / total
        self._log(TopologyEvent(network, step, timestep, fraction, dropped, grown, explored / total, sparsity))
