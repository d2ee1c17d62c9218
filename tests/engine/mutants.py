"""Deliberate breakages of the engine, one line each: what the property test has to find."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any
from unittest.mock import PropertyMock, patch

import torch as th

from sb3_sparse.engine import autograd
from sb3_sparse.engine.adam import SurvivorAdam
from sb3_sparse.engine.gradients import Gradients
from sb3_sparse.engine.parameter import LazyGradParameter, SurvivorParameter, plain_grad
from sb3_sparse.engine.sequence import SparseSequential
from sb3_sparse.engine.survivors import Survivors


def _instead(owner: Any, name: str, function: Callable[..., Any]) -> AbstractContextManager[Any]:
    return patch.object(owner, name, function)


def _after(owner: Any, name: str, change: Callable[..., Any]) -> AbstractContextManager[Any]:
    """The stock method, and something behind it."""
    stock = getattr(owner, name)

    def method(self: Any, *args: Any, **kwargs: Any) -> Any:
        return change(self, stock(self, *args, **kwargs), *args, **kwargs)

    return patch.object(owner, name, method)


def _cached_forward() -> AbstractContextManager[Any]:
    stock, answers = autograd.run_native, {}

    def run(sequence: Any, survivors: Any, x: th.Tensor) -> th.Tensor:
        key = (id(survivors), id(x), th.is_grad_enabled())
        if key not in answers:
            answers[key] = (x, stock(sequence, survivors, x))
        return answers[key][1]

    return patch("sb3_sparse.engine.sequence.run_native", run)


def _follow_versions_alone(self: Survivors) -> bool:
    for index, weight in enumerate(self.weights):
        if weight._version != self.seen[index]:
            self.seen[index] = weight._version
            self.network.gather_weight(index)
    return True


def _follow_once(self: Survivors) -> bool:
    for index in range(len(self.weights)):
        if self.seen[index] == -1:
            self.seen[index] = 0
            self.network.gather_weight(index)
    return True


def _overwrite(self: Gradients, deltas: Any) -> None:
    self._computed, self._deltas, self.waiting = False, deltas, True


def _show_without_others(self: Gradients) -> None:
    if self.waiting:
        self._compute()
        self.waiting = self._computed = False
        for parameter, gradient in zip(self.parameters, self._dense(), strict=True):
            LazyGradParameter.grad.fset(parameter, gradient)  # type: ignore[attr-defined]


def _collect_stale(self: Gradients) -> bool:
    if self.waiting:
        self._compute()
    return all(self.waiting or plain_grad(parameter) is not None for parameter in self.parameters)


#: What is broken, and how.
MUTANTS: dict[str, Callable[[], AbstractContextManager[Any]]] = {
    "answers are kept and served again": _cached_forward,
    "weights are read once": lambda: _instead(Survivors, "follow", _follow_once),
    "weights are followed by their versions alone": lambda: _instead(Survivors, "follow", _follow_versions_alone),
    "pruned weights that are not zero are ignored": lambda: _after(Survivors, "follow", lambda self, found: True),
    "held memory is not noticed": lambda: patch("sb3_sparse.engine.survivors._use_count", lambda storage: 2),
    "another mask is not noticed": lambda: _instead(
        Survivors,
        "fits",
        lambda self: (
            all(held.get("weight") is weight for _, _, held, weight, _ in self.made_of)
            and self.addresses == [parameter.data_ptr() for parameter in self.parameters]
        ),
    ),
    "weights written to between the passes are not refused": lambda: _instead(
        autograd._Pass, "check_weights", lambda self, first, node: None
    ),
    "every weight is taken to be needed again": lambda: _instead(
        autograd._Pass, "check_weights", lambda self, first, node, stock=autograd._Pass.check_weights: stock(self, 0, node)
    ),
    "an earlier gradient is overwritten": lambda: _instead(Gradients, "wait", _overwrite),
    "the critic's gradients are thrown away": lambda: _instead(Gradients, "wait", lambda self, deltas: None),
    "gradients of other passes are overwritten when shown": lambda: _instead(Gradients, "show", _show_without_others),
    "gradients never wait for a look": lambda: _instead(
        LazyGradParameter,
        "grad",
        property(lambda self: plain_grad(self), LazyGradParameter.grad.fset),  # type: ignore[attr-defined]
    ),
    "hooks of parameters are passed by": lambda: _instead(Gradients, "way", lambda self, wanted: "wait"),
    "gradients are masked before autograd sees them": lambda: _after(
        Gradients, "way", lambda self, found, wanted: "survivors" if found == "dense" else found
    ),
    "clearing forgets what waits only": lambda: _instead(Gradients, "forget", lambda self: setattr(self, "waiting", False)),
    "clearing forgets nothing": lambda: _instead(Gradients, "forget", lambda self: None),
    "the step takes the gradients it had": lambda: _instead(Gradients, "collect", _collect_stale),
    "double backward has no graph": lambda: _after(
        autograd,
        "_differentiable",
        lambda record, found, *args: [None if value is None else value.detach() for value in found],
    ),
    "the input's gradient is forgotten in a double backward": lambda: _after(
        autograd, "_differentiable", lambda record, found, *args: [None, *found[1:]]
    ),
    "the last activation is differentiated as if there were none": lambda: _after(
        Survivors, "__init__", lambda self, found, *args: self.activations.__setitem__(-1, 0)
    ),
    "hooks of modules are passed by": lambda: _after(
        SparseSequential, "_prepare", lambda self, found: self.__dict__.update(_hooks=[])
    ),
    "dense gradients are not computed": lambda: _after(
        Gradients,
        "way",
        lambda self, found, wanted: "wait" if any(layer.wants_dense_gradient for layer in self.layers) else found,
    ),
    "moments that others hold are taken": lambda: patch("sb3_sparse.engine.adam._is_alone", lambda state, parameter: True),
    "moments stay with the survivors": lambda: _instead(SurvivorAdam, "release", lambda self: None),
    "steps are not counted": lambda: _after(
        SurvivorAdam, "_step_survivors", lambda self, found, survivors, options: _count_back(self, survivors, found)
    ),
    "targets are averaged whatever was written to them": lambda: _instead(
        SurvivorParameter, "is_current", lambda self: self.survivors is not None
    ),
    "data of a weight leaves no trace": lambda: patch.object(
        SurvivorParameter, "aliased", PropertyMock(return_value=False), create=True
    ),
}


def _count_back(optimizer: Any, survivors: Any, found: bool) -> bool:
    held = optimizer.__dict__["_held"]
    if survivors in held:
        held[survivors] = 0
    return found
