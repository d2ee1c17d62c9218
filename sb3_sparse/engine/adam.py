"""
Adam over surviving weights: bit for bit torch's Adam on the weights that exist. All others are left out: their gradients and
moments are zero.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from itertools import chain
from typing import Any

import torch as th
from torch.optim import Adam, Optimizer
from torch.optim.optimizer import _global_optimizer_post_hooks, _global_optimizer_pre_hooks

from sb3_sparse.engine.gradients import addresses_of
from sb3_sparse.engine.parameter import plain_grad
from sb3_sparse.engine.sequence import SparseSequential
from sb3_sparse.engine.survivors import Survivors, can_read, is_alone
from sb3_sparse.nn.layers import SparseLayer


def _unhooked(step: Any) -> Any:
    """Torch wraps ``step`` of every optimizer class so that it calls the hooks; what it wraps."""
    return step.__wrapped__ if getattr(step, "hooked", False) else step


def _is_alone(state: dict[str, Any], parameter: th.Tensor) -> bool:
    """Whether nobody but an optimizer holds the moments of a parameter, and the kernels can read them."""
    if sys.getrefcount(state) > 4:  # the optimizer's dict, the caller, this function, and the call
        return False
    for key in ("exp_avg", "exp_avg_sq"):
        moment = state[key]
        storage = moment.untyped_storage()
        # An array of it that is gone does not matter: who takes one goes by `state`, and no moments are held then. What was
        # loaded looks as if there had been one.
        if sys.getrefcount(moment) > 3 or not is_alone(storage._cdata):
            return False
        if moment.dtype != parameter.dtype or not moment.is_cpu or not moment.is_contiguous() or moment.is_inference():
            return False
    return True


class SeparateLayers:
    """
    Layers that are in no sequence: Adam goes over their survivors too, though torch multiplies.

    :param layers: The layers.
    """

    def __init__(self, layers: list[SparseLayer]) -> None:
        self.layers = layers
        self._kinds = [type(layer) for layer in layers]
        self._survivors: Survivors | None = None

    def survivors(self) -> Survivors | None:
        """The survivors of the present masks and memory, None where the kernels cannot read it."""
        if self._survivors is None or not self._survivors.fits():
            if not can_read(self.layers, self.layers[0].weight.dtype):
                return None  # those that were keep the gradients that wait
            self._survivors = Survivors(self.layers, [0] * len(self.layers))
        return self._survivors

    #: No pass makes them, so whoever asks does.
    present_survivors = survivors

    def wants_dense_gradients(self) -> bool:
        """As of :class:`~sb3_sparse.engine.sequence.SparseSequential`."""
        return any(layer.wants_dense_gradient for layer in self.layers)

    def is_plain(self) -> bool:
        """As of :class:`~sb3_sparse.engine.sequence.SparseSequential`."""
        for layer, kind in zip(self.layers, self._kinds, strict=True):
            if type(layer) is not kind or "forward" in layer.__dict__:
                return False
            if layer._forward_hooks or layer._forward_pre_hooks or layer._backward_hooks or layer._backward_pre_hooks:
                return False
            if layer.own_pattern is not None or layer.quantizer is not None:
                return False
        return True

    def forget_gradients(self) -> None:
        """Clear the gradients of all parameters."""
        if self._survivors is not None:
            self._survivors.gradients.forget()

    def show_gradients(self) -> None:
        """Let all parameters have the gradients that wait."""
        if self._survivors is not None:
            self._survivors.gradients.show()


class SurvivorAdam(Adam):
    """
    Made from a stock Adam in place by :meth:`adopt`. Its state dict is Adam's: ``step``, ``exp_avg`` and ``exp_avg_sq``, dense
    and zero where pruned. Between steps moments are kept for survivors alone; looking at ``state`` (saving, loading, copying,
    changing masks) brings the dense tensors up to date.
    """

    #: The stock class whose values it computes.
    stands_for = Adam
    #: What it goes over: sequences that run natively, and the other sparse layers.
    parts: Sequence[SparseSequential | SeparateLayers] = ()
    #: Whether the last step left everything zero that is pruned: it went over survivors alone, and so did all before.
    over_survivors: bool = False
    #: Whether a step may take roots of its own, which are rounded as IEEE 754 says: torch's differ in the last bit.
    own_roots: bool = False
    #: Survivors whose moments are held now, with the number of steps they have made.
    _held: dict[Survivors, int]
    #: Survivors, identities of all parameters, and those of them that are no survivors': as they were at the last step.
    _rest: tuple[list[Survivors], list[int], list[th.Tensor]] = ([], [], [])

    @staticmethod
    def adopt(optimizer: Optimizer, sequences: Sequence[SparseSequential], layers: Sequence[SparseLayer] = ()) -> None:
        """
        Turn a plain Adam into one that steps over survivors, in place.

        :param optimizer: A plain Adam, or one that is adopted already; anything else is left as it is.
        :param sequences: Sequences all of whose parameters are the optimizer's.
        :param layers: Further sparse layers of which that is true; those of the sequences may be among them.
        """
        if type(optimizer) is Adam:
            optimizer.__class__ = SurvivorAdam
        if isinstance(optimizer, SurvivorAdam):
            optimizer.release()
            in_sequences = {layer for sequence in sequences for layer in sequence.layers}
            separate = [layer for layer in layers if layer not in in_sequences]
            same = [part for part in optimizer.parts if isinstance(part, SeparateLayers) and part.layers == separate]
            parts: list[SparseSequential | SeparateLayers] = [
                *sequences,
                *(same or ([SeparateLayers(separate)] if separate else [])),
            ]
            for part in optimizer.parts:
                if part not in parts:
                    part.show_gradients()  # nobody else would clear those that wait
            optimizer.parts = parts
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
        # What is loaded takes the place of what the survivors hold
        self.__dict__["_held"] = {}
        super().__setstate__(state)

    def release(self) -> None:
        """Put the moments that the survivors hold into the dense state."""
        self._release(list(self.__dict__.setdefault("_held", {})))

    def _release(self, parts: list[Survivors]) -> None:
        held, state = self.__dict__["_held"], self.__dict__["state"]
        for survivors in parts:
            n_steps = held.pop(survivors)
            with survivors.lock, th.inference_mode(False), th.no_grad():
                for second, key in enumerate(("exp_avg", "exp_avg_sq")):
                    moments = [state[parameter][key] for parameter in survivors.parameters]
                    survivors.network.scatter_moments(bool(second), addresses_of(moments))
                for parameter in survivors.parameters:
                    state[parameter]["step"].fill_(n_steps)

    def _hold(self, survivors: Survivors) -> int | None:
        """
        Let survivors hold the moments of their parameters.

        :return: Steps made so far, None if the parameters differ in that, the kernels cannot read their moments, somebody
            else would not see what becomes of them, or pruned weights have moments.
        """
        state = self.__dict__["state"]
        if sys.getrefcount(state) > 3:  # here, in this object, and in the call
            return None
        for parameter in survivors.parameters:
            own = state[parameter]
            if not own:
                own["step"] = th.tensor(0.0)
                own["exp_avg"] = th.zeros_like(parameter, memory_format=th.preserve_format, requires_grad=False)
                own["exp_avg_sq"] = th.zeros_like(parameter, memory_format=th.preserve_format, requires_grad=False)
            elif not _is_alone(own, parameter):
                return None
        for layer in survivors.layers:
            # A mask that was changed past the sparsifier, or somebody who wrote to moments: torch lets these fade, too
            if layer.mask_values is not None and any(
                bool(state[layer.weight][key].masked_fill(layer.weight_mask, 0.0).any()) for key in ("exp_avg", "exp_avg_sq")
            ):
                return None
        counts = {float(state[parameter]["step"]) for parameter in survivors.parameters}
        if len(counts) > 1:
            return None
        for second, key in enumerate(("exp_avg", "exp_avg_sq")):
            moments = [state[parameter][key] for parameter in survivors.parameters]
            survivors.network.gather_moments(bool(second), addresses_of(moments))
        return int(counts.pop())

    # --- Steps ---

    def zero_grad(self, set_to_none: bool = True) -> None:
        """
        Clear the gradients of all parameters.

        :param set_to_none: As in ``torch.optim.Optimizer.zero_grad``.
        """
        if not set_to_none:
            return super().zero_grad(set_to_none)
        for part in self.parts:
            part.forget_gradients()
        for group in self.param_groups:
            for parameter in group["params"]:
                if plain_grad(parameter) is not None:
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
        done: list[Survivors] = []
        self.over_survivors = False
        known, identities, rest = self._rest
        if closure is None and options is not None:
            owned = [*map(id, options["params"])]
            if owned != identities:
                known, identities = [], owned
            for part in self.parts:
                survivors = part.present_survivors()
                if survivors is None:
                    continue
                # Who takes a parameter out of the optimizer wants it to stay what it is
                if survivors not in known and not {*owned}.issuperset(map(id, survivors.parameters)):
                    continue
                if self._step_survivors(survivors, options):
                    done.append(survivors)
        if not done:
            self.release()
            self._rest = SurvivorAdam._rest
            return _unhooked(Adam.step)(self, closure)
        self.over_survivors = len(done) == len(self.parts) and all(survivors.all_clean for survivors in done)
        if known != done:
            handled = {parameter for survivors in done for parameter in survivors.parameters}
            rest = [parameter for parameter in self.param_groups[0]["params"] if parameter not in handled]
            self._rest = done, identities, rest
        if any(parameter.grad is not None for parameter in rest):
            self._release([survivors for survivors in self.__dict__["_held"] if survivors not in done])
            self._step_rest(rest)
        return None

    def projected(self) -> None:
        """Be told that all weights were multiplied by their masks after the last step."""
        for survivors in self._rest[0]:
            survivors.projected()

    def _step_survivors(self, survivors: Survivors, options: dict[str, Any]) -> bool:
        with survivors.lock:
            if not survivors.gradients.collect():
                return False
            if not survivors.follow() and options["weight_decay"]:
                return False  # it gives moments to pruned weights that are not zero
            n_steps = self.__dict__["_held"].get(survivors)
            if n_steps is None:
                self._release([other for other in self.__dict__["_held"] if not other.fits()])
                n_steps = self._hold(survivors)
            if n_steps is None:
                return False
            n_steps += 1
            beta1, beta2 = options["betas"]
            bias_correction1, bias_correction2 = 1 - beta1**n_steps, 1 - beta2**n_steps
            network = survivors.network
            step_size, correction, epsilon = options["lr"] / bias_correction1, math.sqrt(bias_correction2), options["eps"]
            if self.own_roots:
                network.adam(beta1, beta2, options["weight_decay"], step_size, correction, epsilon)
            else:
                network.adam_moments(beta1, beta2, options["weight_decay"])
                th.sqrt(survivors.square, out=survivors.root)
                network.adam_values(step_size, correction, epsilon)
                network.scatter_values()
            survivors.wrote_values()
            self.__dict__["_held"][survivors] = n_steps
        return True

    def _step_rest(self, rest: list[th.Tensor]) -> None:
        """Torch's own step for all other parameters."""
        groups, state = self.param_groups, self.__dict__["state"]
        plain = object.__new__(Adam)
        plain.__dict__.update({**self.__dict__, "state": state, "param_groups": [{**groups[0], "params": rest}]})
        _unhooked(Adam.step)(plain)

    def _put_in_order(self, n_states: int) -> None:
        """Let the states that this step made, all but the first ``n_states``, have the order that torch gives them."""
        state = self.__dict__["state"]
        made = set([*state][n_states:])
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter in made:
                    state[parameter] = state.pop(parameter)

    def step(self, closure: Any = None) -> Any:
        """
        Step, as torch's Adam does; over survivors where only they have gradients.

        :param closure: As in ``torch.optim.Adam.step``; with one, the step is torch's own.
        :return: Loss of the closure.
        """
        # What torch wraps around every optimizer's step, but for the profiler's record: it costs as much as the step
        for hook in chain(_global_optimizer_pre_hooks.values(), self._optimizer_step_pre_hooks.values()):
            hook(self, (), {})
        n_states = len(self.__dict__["state"])
        loss = self._step(closure)
        if len(self.__dict__["state"]) != n_states:
            self._put_in_order(n_states)
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
        Let an optimizer step over the survivors of these layers, if it is stock Adam.

        :param optimizer: An optimizer; anything but stock Adam is left as it is.
        :param layers: The sparse layers whose weights are its own.
        """
        owned = {id(weight) for group in optimizer.param_groups for weight in group["params"]}
        sequences = [sequence for sequence in self.sequences if all(id(weight) in owned for weight in sequence.parameters())]
        SurvivorAdam.adopt(optimizer, sequences, layers)

    def projects_itself(self, optimizer: Optimizer) -> bool:
        """
        Say whether the step kept pruned weights at zero without a projection.

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
