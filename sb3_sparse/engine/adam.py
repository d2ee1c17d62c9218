"""
Adam over survivors: torch's Adam, value by value the same on the weights that exist, and not a thought for the others, whose
gradient and moments are zero.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import chain
from typing import Any

import torch as th
from torch.optim import Adam, Optimizer
from torch.optim.optimizer import _global_optimizer_post_hooks, _global_optimizer_pre_hooks

from sb3_sparse.engine.sequence import SparseSequential
from sb3_sparse.engine.survivors import Mirror, addresses_of, can_mirror
from sb3_sparse.nn.layers import SparseLayer


def _unhooked(step: Any) -> Any:
    """Torch wraps ``step`` of every optimizer class so that it calls the hooks; what it wraps."""
    return step.__wrapped__ if getattr(step, "hooked", False) else step


class Loose:
    """Layers that are in no sequence: Adam goes over their survivors too, though torch multiplies."""

    def __init__(self, layers: list[SparseLayer]) -> None:
        self.layers = layers
        self.mirror: Mirror | None = None

    def present_mirror(self) -> Mirror | None:
        """The mirror of the present masks and memory, None where the kernels cannot read it."""
        if self.mirror is None or not self.mirror.fits():
            readable = can_mirror(self.layers, self.layers[0].weight.dtype)
            self.mirror = Mirror(self.layers, [0] * len(self.layers)) if readable else None
        return self.mirror


class SurvivorAdam(Adam):
    """
    Made from a stock Adam in place by :meth:`adopt`. Its state dict is Adam's: ``step``, ``exp_avg`` and ``exp_avg_sq``, dense
    and zero where pruned. Between steps moments are kept for survivors alone; looking at ``state`` (saving, loading, copying,
    changing masks) brings the dense tensors up to date.
    """

    #: The stock class whose values it computes.
    stands_for = Adam
    #: What it goes over: sequences that run natively, and the other sparse layers.
    parts: Sequence[SparseSequential | Loose] = ()
    #: Whether the last step left everything zero that is pruned: it went over survivors alone, and so did all before.
    over_survivors: bool = False
    #: Mirrors that hold moments now, with the number of steps they have made.
    _held: dict[Mirror, int]
    #: Mirrors, number of parameters, and those of them that are in no mirror: as they were at the last step.
    _rest: tuple[list[Mirror], int, list[th.Tensor]] = ([], -1, [])

    @staticmethod
    def adopt(optimizer: Optimizer, sequences: Sequence[SparseSequential], layers: Sequence[SparseLayer] = ()) -> None:
        """
        :param optimizer: A plain Adam, or one that is adopted already; anything else is left as it is.
        :param sequences: Sequences all of whose parameters are the optimizer's.
        :param layers: Further sparse layers of which that is true; those of the sequences may be among them.
        """
        if type(optimizer) is Adam:
            optimizer.__class__ = SurvivorAdam
        if isinstance(optimizer, SurvivorAdam):
            optimizer.release()
            in_sequences = {layer for sequence in sequences for layer in sequence.layers}
            loose = [layer for layer in layers if layer not in in_sequences]
            optimizer.parts = [*sequences, *([Loose(loose)] if loose else [])]
            optimizer.over_survivors, optimizer._rest = False, SurvivorAdam._rest

    # --- State ---

    @property
    def state(self) -> Any:
        self.release()
        return self.__dict__["state"]

    @state.setter
    def state(self, value: Any) -> None:
        self.__dict__["state"] = value

    def __setstate__(self, state: dict[str, Any]) -> None:
        # What is loaded takes the place of what mirrors hold
        self.__dict__["_held"] = {}
        super().__setstate__(state)

    def release(self) -> None:
        """Put the moments that mirrors hold into the dense state."""
        self._release(list(self.__dict__.setdefault("_held", {})))

    def _release(self, mirrors: list[Mirror]) -> None:
        held, state = self.__dict__["_held"], self.__dict__["state"]
        for mirror in mirrors:
            n_steps = held.pop(mirror)
            for second, key in enumerate(("exp_avg", "exp_avg_sq")):
                moments = [state[parameter][key] for parameter in mirror.parameters]
                mirror.network.scatter_moments(bool(second), addresses_of(moments))
            for parameter in mirror.parameters:
                state[parameter]["step"].fill_(n_steps)

    def _hold(self, mirror: Mirror) -> int | None:
        """
        Let a mirror hold the moments of its parameters.

        :return: Steps made so far, None if the parameters differ in that or the mirror cannot read their moments.
        """
        state = self.__dict__["state"]
        for parameter in mirror.parameters:
            if not state[parameter]:
                state[parameter]["step"] = th.tensor(0.0)
                state[parameter]["exp_avg"] = th.zeros_like(parameter, memory_format=th.preserve_format)
                state[parameter]["exp_avg_sq"] = th.zeros_like(parameter, memory_format=th.preserve_format)
        counts = {float(state[parameter]["step"]) for parameter in mirror.parameters}
        moments = {key: [state[parameter][key] for parameter in mirror.parameters] for key in ("exp_avg", "exp_avg_sq")}
        if len(counts) > 1 or not all(moment.is_contiguous() and moment.is_cpu for moment in chain(*moments.values())):
            return None
        for second, own in enumerate(moments.values()):
            mirror.network.gather_moments(bool(second), addresses_of(own))
        return int(counts.pop())

    # --- Steps ---

    def zero_grad(self, set_to_none: bool = True) -> None:
        """
        :param set_to_none: As in ``torch.optim.Optimizer.zero_grad``.
        """
        if not set_to_none:
            return super().zero_grad(set_to_none)
        for part in self.parts:
            if isinstance(part, SparseSequential):
                part.forget_gradients()
        for group in self.param_groups:
            for parameter in group["params"]:
                parameter.grad = None

    def _options(self) -> dict[str, Any] | None:
        """Options that all parameters share, None if this class does not know them."""
        if len(self.param_groups) != 1:
            return None
        group = self.param_groups[0]
        unknown = ("amsgrad", "maximize", "capturable", "differentiable", "fused", "decoupled_weight_decay")
        if any(group.get(name) for name in unknown) or isinstance(group["lr"], th.Tensor):
            return None
        return group

    def _step(self, closure: Any = None) -> Any:
        options = self._options()
        done: list[Mirror] = []
        self.over_survivors = False
        if closure is None and options is not None:
            for part in self.parts:
                mirror = part.present_mirror()
                if mirror is not None and self._step_mirror(mirror, options):
                    done.append(mirror)
        if not done:
            self.release()
            self._rest = SurvivorAdam._rest
            return _unhooked(Adam.step)(self, closure)
        self.over_survivors = len(done) == len(self.parts) and not any(mirror.foreign for mirror in done)
        parameters = self.param_groups[0]["params"]
        mirrors, n_parameters, rest = self._rest
        if mirrors != done or n_parameters != len(parameters):
            handled = {parameter for mirror in done for parameter in mirror.parameters}
            rest = [parameter for parameter in parameters if parameter not in handled]
            self._rest = done, len(parameters), rest
        if any(parameter.grad is not None for parameter in rest):
            self._release([mirror for mirror in self.__dict__["_held"] if mirror not in done])
            self._step_rest(rest)
        return None

    def projected(self) -> None:
        """Be told that all weights were multiplied by their masks after the last step."""
        for mirror in self._rest[0]:
            mirror.projected()

    def _step_mirror(self, mirror: Mirror, options: dict[str, Any]) -> bool:
        if not mirror.collect_gradients():
            return False
        mirror.follow()
        n_steps = self.__dict__["_held"].get(mirror)
        if n_steps is None:
            self._release([other for other in self.__dict__["_held"] if not other.fits()])
            n_steps = self._hold(mirror)
        if n_steps is None:
            return False
        n_steps += 1
        beta1, beta2 = options["betas"]
        bias_correction1, bias_correction2 = 1 - beta1**n_steps, 1 - beta2**n_steps
        mirror.network.adam_moments(beta1, beta2, options["weight_decay"])
        th.sqrt(mirror.square, out=mirror.root)
        mirror.network.adam_values(options["lr"] / bias_correction1, math.sqrt(bias_correction2), options["eps"])
        mirror.network.scatter_values()
        mirror.wrote_values()
        self.__dict__["_held"][mirror] = n_steps
        return True

    def _step_rest(self, rest: list[th.Tensor]) -> None:
        """Torch's own step for parameters that are in no mirror, or have no gradient in one of a mirror's."""
        groups, state = self.param_groups, self.__dict__["state"]
        plain = object.__new__(Adam)
        plain.__dict__.update({**self.__dict__, "state": state, "param_groups": [{**groups[0], "params": rest}]})
        _unhooked(Adam.step)(plain)

    def step(self, closure: Any = None) -> Any:
        """
        :param closure: As in ``torch.optim.Adam.step``; with one, the step is torch's own.
        :return: Loss of the closure.
        """
        # What torch wraps around every optimizer's step, but for the profiler's record: it costs as much as the step
        for hook in chain(_global_optimizer_pre_hooks.values(), self._optimizer_step_pre_hooks.values()):
            hook(self, (), {})
        loss = self._step(closure)
        for hook in chain(self._optimizer_step_post_hooks.values(), _global_optimizer_post_hooks.values()):
            hook(self, (), {})
        return loss

    step.hooked = True  # type: ignore[attr-defined]  # torch would wrap it


class SurvivorSteps:
    """
    Lets the optimizers of a policy go over survivors alone, see :class:`sb3_sparse.nn.sparsifier.OptimizerEngine`.

    :param sequences: Sequences of layers that can run natively.
    """

    def __init__(self, sequences: Sequence[SparseSequential]) -> None:
        self.sequences = list(sequences)

    def adopt(self, optimizer: Optimizer, layers: Sequence[SparseLayer]) -> None:
        """
        :param optimizer: An optimizer; anything but stock Adam is left as it is.
        :param layers: The sparse layers whose weights are its own.
        """
        owned = {id(weight) for group in optimizer.param_groups for weight in group["params"]}
        sequences = [sequence for sequence in self.sequences if all(id(weight) in owned for weight in sequence.parameters())]
        SurvivorAdam.adopt(optimizer, sequences, layers)

    def projects_itself(self, optimizer: Optimizer) -> bool:
        """
        :param optimizer: An optimizer.
        :return: Whether its last step left every pruned weight at zero.
        """
        return isinstance(optimizer, SurvivorAdam) and optimizer.over_survivors

    def projected(self, optimizer: Optimizer) -> None:
        """
        Be told that all weights of an optimizer were multiplied by their masks after its last step.

        :param optimizer: The optimizer.
        """
        if isinstance(optimizer, SurvivorAdam):
            optimizer.projected()
