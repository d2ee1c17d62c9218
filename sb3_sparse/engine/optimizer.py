"""
Adam over survivors: torch's Adam, value by value the same on the weights that exist, and not a thought for the others, whose
gradient and moments are zero.
"""

from __future__ import annotations

import math
from itertools import chain
from typing import Any

import torch as th
from torch.optim import Adam, Optimizer
from torch.optim.optimizer import _global_optimizer_post_hooks, _global_optimizer_pre_hooks

from sb3_sparse.engine.mirror import Mirror
from sb3_sparse.engine.sequence import SparseSequential


def _unhooked(step: Any) -> Any:
    """Torch wraps ``step`` of every optimizer class so that it calls the hooks; what it wraps."""
    return step.__wrapped__ if getattr(step, "hooked", False) else step


class SurvivorAdam(Adam):
    """
    Made from a stock Adam in place by :meth:`adopt`. Its state dict is Adam's: ``step``, ``exp_avg`` and ``exp_avg_sq``, dense
    and zero where pruned. Between steps moments are kept for survivors alone; looking at ``state`` (saving, loading, copying,
    changing masks) brings the dense tensors up to date.
    """

    sequences: list[SparseSequential]
    #: Mirrors that hold moments now, with the number of steps they have made.
    _held: dict[Mirror, int]

    @staticmethod
    def adopt(optimizer: Optimizer, sequences: list[SparseSequential]) -> None:
        """
        :param optimizer: A plain Adam, or one that is adopted already; anything else is left as it is.
        :param sequences: Sequences all of whose parameters are the optimizer's.
        """
        if type(optimizer) is Adam:
            optimizer.__class__ = SurvivorAdam
        if isinstance(optimizer, SurvivorAdam):
            optimizer.release()
            optimizer.sequences = list(sequences)

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

    def release(self, *, outdated: bool = False) -> None:
        """
        Put the moments that mirrors hold into the dense state.

        :param outdated: Of mirrors of former masks alone.
        """
        held: dict[Mirror, int] = self.__dict__.setdefault("_held", {})
        state = self.__dict__["state"]
        for mirror in [mirror for mirror in held if not outdated or not mirror.fits()]:
            n_steps = held.pop(mirror)
            for second, key in enumerate(("exp_avg", "exp_avg_sq")):
                addresses = iter([state[parameter][key].data_ptr() for parameter in mirror.parameters])
                for index, bias in enumerate(mirror.biases):
                    weight_address = next(addresses)
                    mirror.network.get_moment(bool(second), index, weight_address, 0 if bias is None else next(addresses))
            for parameter in mirror.parameters:
                state[parameter]["step"].fill_(n_steps)

    def _hold(self, mirror: Mirror) -> int | None:
        """
        Let a mirror hold the moments of its parameters.

        :return: Steps made so far, None if the parameters differ in that.
        """
        held: dict[Mirror, int] = self.__dict__["_held"]
        if mirror in held:
            return held[mirror]
        state = self.__dict__["state"]
        for parameter in mirror.parameters:
            if not state[parameter]:
                state[parameter]["step"] = th.tensor(0.0)
                state[parameter]["exp_avg"] = th.zeros_like(parameter, memory_format=th.preserve_format)
                state[parameter]["exp_avg_sq"] = th.zeros_like(parameter, memory_format=th.preserve_format)
        counts = {float(state[parameter]["step"]) for parameter in mirror.parameters}
        moments = [state[parameter][key] for parameter in mirror.parameters for key in ("exp_avg", "exp_avg_sq")]
        if len(counts) > 1 or not all(moment.is_contiguous() and moment.device.type == "cpu" for moment in moments):
            return None
        for second, key in enumerate(("exp_avg", "exp_avg_sq")):
            addresses = iter([state[parameter][key].data_ptr() for parameter in mirror.parameters])
            for index, bias in enumerate(mirror.biases):
                weight_address = next(addresses)
                mirror.network.set_moment(bool(second), index, weight_address, 0 if bias is None else next(addresses))
        held[mirror] = int(counts.pop())
        return held[mirror]

    # --- Steps ---

    def zero_grad(self, set_to_none: bool = True) -> None:
        """
        :param set_to_none: As in ``torch.optim.Optimizer.zero_grad``.
        """
        if not set_to_none:
            return super().zero_grad(set_to_none)
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
        if closure is None and options is not None:
            for sequence in self.__dict__.get("sequences") or []:
                mirror = sequence.present_mirror()
                if mirror is not None and self._step_mirror(mirror, options):
                    done.append(mirror)
        if not done:
            self.release()
            return _unhooked(Adam.step)(self, closure)
        handled = {parameter for mirror in done for parameter in mirror.parameters}
        rest = [parameter for parameter in self.param_groups[0]["params"] if parameter not in handled]
        if any(parameter.grad is not None for parameter in rest):
            self._step_rest(rest)
        return None

    def _step_mirror(self, mirror: Mirror, options: dict[str, Any]) -> bool:
        mirror.follow()
        if not mirror.collect_gradients():
            return False
        if mirror not in self.__dict__.setdefault("_held", {}):
            self.release(outdated=True)
        n_steps = self._hold(mirror)
        if n_steps is None:
            return False
        n_steps += 1
        beta1, beta2 = options["betas"]
        bias_correction1, bias_correction2 = 1 - beta1**n_steps, 1 - beta2**n_steps
        mirror.network.adam_moments(beta1, beta2, options["weight_decay"])
        th.sqrt(mirror.square, out=mirror.root)
        mirror.network.adam_values(options["lr"] / bias_correction1, math.sqrt(bias_correction2), options["eps"])
        self.__dict__["_held"][mirror] = n_steps
        return True

    def _step_rest(self, rest: list[th.Tensor]) -> None:
        """Torch's own step for parameters that are in no sequence."""
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
