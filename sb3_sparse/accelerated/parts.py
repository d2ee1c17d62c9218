"""The networks of a model as the kernels run them together, and what tells that they are still what a stock pass would run."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch as th
from torch.optim.optimizer import _global_optimizer_post_hooks, _global_optimizer_pre_hooks

from sb3_sparse.engine.adam import SeparateLayers, SurvivorAdam
from sb3_sparse.engine.sequence import SparseSequential, watched
from sb3_sparse.engine.survivors import Survivors
from sb3_sparse.nn.sparsifier import is_own_step_hook


class Part:
    """
    A sequence of layers, or layers side by side, with an optimizer or a target network behind them.

    :param part: The sequence, or the layers.
    """

    def __init__(self, part: SparseSequential | SeparateLayers) -> None:
        self.part = part
        self.survivors: Survivors | None = None

    def why_not(self) -> str | None:
        """What keeps the kernels from running it, if anything; if nothing, ``survivors`` are up to date."""
        self.survivors = None
        if not self.part.is_plain():
            return (
                "a network has hooks or a method of its own, is quantized, or has N:M or block masks that it settles on itself"
            )
        survivors = self.part.survivors()
        if survivors is None or survivors.weights[0].dtype != th.float32:
            return "the kernels cannot read a network's parameters (float32 on the CPU, in memory of their own)"
        self.survivors = survivors
        return None

    @property
    def network(self) -> Any:
        """The kernels' network."""
        assert self.survivors is not None
        return self.survivors.network

    def waits_for(self, deltas: Any) -> None:
        """
        Take the gradients of a pass. The optimizer computes them, or whoever asks for them.

        :param deltas: The kernels' deltas.
        """
        assert self.survivors is not None
        with self.survivors.lock:
            self.survivors.gradients.wait(deltas)


def watched_by_torch() -> str | None:
    """What torch does besides computing, and would not see of a native step, if anything."""
    if not th.is_grad_enabled():
        return "gradients are off"
    if th.is_anomaly_enabled():
        return "anomalies are looked for"
    if watched():
        return "torch's own operations are wanted (autocast, a trace, a transformation or a mode that overrides them)"
    return None


def why_no_gradients(parts: Sequence[Part]) -> str | None:
    """
    Find out whether stock gradients would go where nobody but the optimizer sees them.

    :param parts: Online networks whose survivors are up to date.
    :return: What else would happen to them, if anything.
    """
    for part in parts:
        assert part.survivors is not None
        for parameter in part.survivors.parameters:
            if not parameter.requires_grad:
                return "a parameter is frozen"
            # One hook is the layer's own
            if parameter._backward_hooks or len(parameter._post_accumulate_grad_hooks or ()) > 1:
                return "a parameter has hooks"
    return None


class Trained:
    """
    An optimizer and the networks whose parameters are all that it has.

    :param optimizer: The optimizer.
    :param parts: The networks.
    """

    def __init__(self, optimizer: SurvivorAdam, parts: Sequence[Part]) -> None:
        self.optimizer, self.parts = optimizer, list(parts)
        #: Survivors, and identities of the optimizer's parameters, that were found to agree.
        self._known: tuple[list[Any], list[int]] = ([], [])

    def why_not(self) -> str | None:
        """What an optimizer step would do that is not known here, if anything. The parts' survivors are up to date."""
        optimizer = self.optimizer
        if _global_optimizer_pre_hooks or _global_optimizer_post_hooks:
            return "all optimizers have hooks"
        for hooks in (optimizer._optimizer_step_pre_hooks, optimizer._optimizer_step_post_hooks):
            if not all(map(is_own_step_hook, hooks.values())):
                return "an optimizer has hooks"
        if "step" in optimizer.__dict__ or "zero_grad" in optimizer.__dict__:
            return "an optimizer has a method of its own"
        groups = optimizer.param_groups
        survivors = [part.survivors for part in self.parts]
        identities = [id(parameter) for group in groups for parameter in group["params"]]
        if self._known != (survivors, identities):
            known = {id(parameter) for one in survivors if one is not None for parameter in one.parameters}
            if known != {*identities}:
                return "an optimizer has other parameters than those of the networks"
            self._known = survivors, identities
        return None

    def backward(self, deltas: Sequence[Any]) -> None:
        """
        Replace the gradients.

        :param deltas: The kernels' deltas of each part.
        """
        self.optimizer.zero_grad()
        for part, of_part in zip(self.parts, deltas, strict=True):
            part.waits_for(of_part)

    def step(self) -> None:
        """Let the optimizer step. Its roots need not be torch's to the last bit, as everything else here."""
        self.optimizer.own_roots = True
        try:
            self.optimizer.step()
        finally:
            self.optimizer.own_roots = False


@contextmanager
def reading(parts: Sequence[Part]) -> Iterator[bool]:
    """
    Hold networks for a native call.

    :param parts: Networks whose survivors are up to date.
    :return: Whether all of them are sparse as their masks say; only then may the kernels run them.
    """
    locks = [part.survivors.lock for part in parts if part.survivors is not None]
    for lock in locks:
        lock.acquire()
    try:
        clean = True
        for part in parts:
            assert part.survivors is not None
            clean = part.survivors.follow() and clean
        yield clean
    finally:
        for lock in reversed(locks):
            lock.release()
