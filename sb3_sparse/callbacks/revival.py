""":class:`Revival`: a static mask, and once a few connections that pruning took are brought back (TAR, Jin et al. 2026)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch as th

from sb3_sparse.callbacks.base import TopologyCallback, TopologyState
from sb3_sparse.callbacks.clock import Clock, check_moment
from sb3_sparse.masks.distributions import apportion
from sb3_sparse.masks.drop_and_grow import survivors
from sb3_sparse.masks.patterns import Unstructured
from sb3_sparse.nn.updater_state import Scalar
from sb3_sparse.utils.checks import require_choice, require_positive


def connected_edges(shape: Sequence[int]) -> float:
    """
    Say how many connections a layer needs so that a random choice of them leaves nobody out: a random graph of N nodes is
    connected, in the limit, from N ln N / 2 edges on (Erdos and Renyi 1960; TAR's measure of what a layer needs).

    :param shape: Shape of a weight, ``(out, in, ...)``; N is out + in.
    :return: N ln N / 2.
    """
    n_nodes = shape[0] + shape[1]
    return n_nodes * math.log(n_nodes) / 2


def revival_counts(n_revived: int, shapes: Mapping[str, Sequence[int]], n_free: Mapping[str, int]) -> dict[str, int]:
    """
    Spread the connections that are revived over the layers of a network, in proportion to :func:`connected_edges`.

    :param n_revived: How many there are, at least one for each layer.
    :param shapes: Shape of every layer's weight.
    :param n_free: Positions that every layer has free, at least 1; their sum is at least ``n_revived``.
    :return: Connections of every layer, at least 1, whose sum is ``n_revived``.
    """
    needs = {name: connected_edges(shape) for name, shape in shapes.items()}
    total = sum(needs.values())
    return apportion({name: n_revived * need / total for name, need in needs.items()}, n_free, n_revived)


class RevivalState(TopologyState):
    """What the revival remembers of a network."""

    #: Whether it has been.
    revived = Scalar[bool](th.bool)


class Revival(TopologyCallback):
    """
    Keep a static mask but for one moment, at which a part of it is spent on connections that the criterion of the mask did not
    want (TAR, Jin et al. 2026, arXiv 2602.04166: "a small reserve budget", "randomly uniformly", "kept fixed for the remainder
    of training").

    In every layer the fraction ``reserve`` of its weights, those of least magnitude, is pruned. As many as that are revived in
    the network, drawn uniformly from what does not exist then; how they are spread over the layers follows N ln N / 2 of each,
    see :func:`revival_counts`. So a network has as many positions afterwards as before, its layers other numbers. With
    ``initial_mask="magnitude"`` and the revival before training, this is the magnitude mask of a sparser network, and the
    reserve on top of it. It happens once in the life of a policy, whatever is loaded or trained on.

    Layers that are full, frozen or in ``dense_layers`` are left alone. Unstructured masks only.

    :param reserve: Fraction of the existing weights, in (0, 1).
    :param start: When: a float is a fraction of the training, an integer environment steps. At 0, before the first step.
    :param grown: Value of revived weights: ``"zero"``, or ``"init"`` for torch's default initialisation of the layer, uniform
        in +-1 / sqrt(fan_in), as if the weight had never been pruned.
    :param networks: A network's name or several; None for all in which something is pruned.
    :param on_nonfinite: ``"raise"``: stop the training, with a :class:`~sb3_sparse.callbacks.finite.NonFiniteError`, at the
        step at which weights, gradients, observations or rewards are NaN or infinite. ``"ignore"``: go on; a layer that holds
        such values keeps its mask.
    :param verbose: 1 prints the event.
    :raises ValueError: For arguments out of range; on training start for unknown networks, networks that have another updater
        in this training, N:M and block patterns, and a reserve of fewer connections than the network has layers.
    """

    def __init__(
        self,
        reserve: float = 0.1,
        start: float | int = 0,
        *,
        grown: str = "init",
        networks: str | Sequence[str] | None = None,
        on_nonfinite: str = "raise",
        verbose: int = 0,
    ) -> None:
        check_moment("start", start, optional=False)
        super().__init__(Clock(unit="timesteps", start=start), networks=networks, on_nonfinite=on_nonfinite, verbose=verbose)
        self.reserve = require_positive("reserve", reserve, below=1)
        self.grown = require_choice("grown", grown, ("zero", "init"))
        #: Networks whose revival is still to come.
        self._waiting: list[str] = []

    # --- Which networks, and when ---

    def _refusal(self, network: str) -> str | None:
        names = self._layers_of(network)
        for name in names:
            pattern = self.sparsifier.plan[name].pattern
            if not isinstance(pattern, Unstructured):
                return f"single connections are revived, and layer {name!r} has `pattern`={pattern.spec!r}"
        if names and (n_revived := sum(self._n_reserve(name) for name in names)) < len(names):
            return (
                f"`reserve`={self.reserve!r} is {n_revived} of its connections, fewer than the {len(names)} layers "
                "among which they are spread: raise it"
            )
        return super()._refusal(network)

    def _n_reserve(self, name: str) -> int:
        return int(self.reserve * self.sparsifier.layers[name].n_active)

    def state(self, network: str) -> RevivalState:
        """
        What this callback remembers of a network.

        :param network: Name of a network.
        :return: What this callback remembers of it.
        """
        return self._state_as(RevivalState, network)

    def _prepare(self, network: str) -> None:
        super()._prepare(network)
        self._waiting = [name for name in self._waiting if name != network]
        if not self.state(network).revived:
            self._waiting.append(network)

    def _on_training_start(self) -> None:
        super()._on_training_start()
        for network in self._updated:
            if self._is_due(network, 0):
                self._act(network, self.sparsifier.n_steps(self.sparsifier.optimizer_of(network)))

    def _is_due(self, network: str, step: int) -> bool:
        return network in self._waiting and self.clock.has_started(self.model.num_timesteps)

    # --- The revival ---

    @th.no_grad()
    def _update(self, network: str, step: int) -> float:
        self._waiting.remove(network)
        self.state(network).revived = True
        sparsifier = self.sparsifier
        names = self._layers_now(network, step)
        kept = {}
        for name in names:
            layer = sparsifier.layers[name]
            kept[name] = survivors(sparsifier.plan[name].pattern, layer.weight, layer.weight_mask, self.reserve)
        n_revived = sum(sparsifier.layers[name].n_active - int(mask.sum()) for name, mask in kept.items())
        if n_revived < len(names):
            # Others are frozen, and what is left has too little to give
            return 0.0
        free = {name: mask.numel() - int(mask.sum()) for name, mask in kept.items()}
        counts = revival_counts(n_revived, {name: mask.shape for name, mask in kept.items()}, free)
        masks, values = {}, {}
        for name, mask in kept.items():
            layer, pattern = sparsifier.layers[name], sparsifier.plan[name].pattern
            masks[name] = pattern.select(th.where(mask, th.inf, self._random(layer)), (int(mask.sum()) + counts[name],))
            if self.grown == "init":
                values[name] = self._initial_weight(layer)
        sparsifier.set_masks(masks, values, replan=True)
        return self.reserve
