"""
Gradients of a sequence's parameters: kept at survivors alone, and not even computed before somebody asks for them.

A training never asks. Adam takes the survivors' gradients, and what the actor's loss would add to the critic's gradients is
cleared before the critic's next step: it is never computed.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch as th
from torch.autograd.graph import get_gradient_edge

from sb3_sparse.engine.parameter import plain_grad, set_plain_grad
from sb3_sparse.nn.layers import SparseLayer

_will_run = getattr(th._C, "_will_engine_execute_node", None)


def addresses_of(tensors: Sequence[th.Tensor]) -> list[int]:
    """
    Where the memory of tensors begins.

    :param tensors: Tensors on the CPU.
    :return: The address of each.
    """
    return [*map(th.Tensor.data_ptr, tensors)]


def may_run(node: Any) -> bool:
    """
    Find out whether the backward pass that runs now goes through a node of the graph.

    :param node: A node, None: where no gradient goes.
    :return: False if it certainly does not.
    """
    if node is None:
        return False
    if _will_run is None:
        return True
    try:
        return bool(_will_run(node))
    except RuntimeError:  # autograd.grad() of a leaf
        return True


class Gradients:
    """
    The gradients of the parameters of a sequence.

    :param network: The kernels' network.
    :param layers: Its layers.
    :param parameters: Weights and biases in the order of ``parameters()``.
    :param lock: Held while the network is read or written.
    """

    def __init__(self, network: Any, layers: Sequence[SparseLayer], parameters: Sequence[th.nn.Parameter], lock: Any) -> None:
        self.network = network
        self.layers = layers
        self.parameters = parameters
        self.lock = lock
        #: Whether the network holds more weights than the masks have.
        self.own_masks = any(layer.own_pattern is not None for layer in layers)
        #: Whether there are gradients that are not in the parameters' ``grad``: nobody has asked for them.
        self.waiting = False
        #: Whether the network holds such gradients, and what is to be added to them.
        self._computed = False
        self._deltas: Any = None
        #: Autograd's own node of every parameter, kept so that it is not made anew for every pass.
        self._nodes: list[Any] = []

    # --- Backward passes ---

    def way(self, wanted: Sequence[bool]) -> str:
        """
        Find out what becomes of the gradients of the backward pass that runs now.

        :param wanted: Whether autograd wants the gradient of each parameter.
        :return: ``"wait"``: they are put into ``grad``, which is empty, and nobody watches. ``"survivors"``: they are added to
            ``grad`` at survivors alone. ``"dense"``: somebody may see them before they are masked.
        """
        if _will_run is None or not all(wanted) or th._C._functorch.maybe_current_level() is not None:
            return "dense"
        for layer in self.layers:
            if layer.wants_dense_gradient:
                return "dense"
        if not all(parameter.requires_grad for parameter in self.parameters):
            return "dense"  # frozen since the forward pass
        if not self._nodes:
            self._nodes = [get_gradient_edge(parameter).node for parameter in self.parameters]
        try:
            for node in self._nodes:
                if not _will_run(node):
                    return "dense"
        except RuntimeError:  # autograd.grad() of a leaf
            return "dense"
        way = "wait"
        for parameter in self.parameters:
            if parameter._backward_hooks:
                return "dense"
            if len(parameter._post_accumulate_grad_hooks or ()) > 1 or plain_grad(parameter) is not None:
                way = "survivors"  # one hook is the layer's own
        return way

    def wait(self, deltas: Any) -> None:
        """
        Add the gradients of a backward pass to those that wait.

        :param deltas: The kernels' deltas of that pass.
        """
        self._compute()
        self._deltas, self.waiting = deltas, True

    def at_survivors(self, deltas: Any) -> list[th.Tensor]:
        """
        Compute the gradients of a backward pass.

        :param deltas: The kernels' deltas of that pass.
        :return: Dense tensors, zero outside the masks.
        """
        if self.waiting:
            self.show()  # the network's room for them is needed
        deltas.weight_gradient(False, th.get_num_threads())
        return self._dense()

    # --- Those that wait ---

    def _compute(self) -> None:
        if self._deltas is not None:
            self._deltas.weight_gradient(self._computed, th.get_num_threads())
            self._computed, self._deltas = True, None

    def _dense(self) -> list[th.Tensor]:
        dense = [th.zeros_like(parameter, requires_grad=False) for parameter in self.parameters]
        self.network.scatter_gradients(addresses_of(dense))
        if self.own_masks:
            masks = {id(layer.weight): layer.mask_values for layer in self.layers if layer.mask_values is not None}
            for parameter, gradient in zip(self.parameters, dense, strict=True):
                if id(parameter) in masks:
                    gradient.mul_(masks[id(parameter)])
        return dense

    def show(self) -> None:
        """Let the parameters have the gradients that wait."""
        with self.lock, th.inference_mode(False), th.no_grad():
            if not self.waiting:
                return
            self._compute()
            dense = self._dense()
            self.waiting = self._computed = False
            for parameter, gradient in zip(self.parameters, dense, strict=True):
                others = plain_grad(parameter)
                if others is None:
                    set_plain_grad(parameter, gradient)
                else:
                    # Autograd has put there what came to the parameter by other ways
                    others.add_(gradient)

    def clip(self, max_norm: float) -> bool:
        """
        Scale the gradients, as ``torch.nn.utils.clip_grad_norm_`` does if the parameters here are all there are.

        :param max_norm: Largest norm.
        :return: False, and nothing is done, if not all of them wait.
        """
        if self.own_masks or not self.waiting or any(plain_grad(parameter) is not None for parameter in self.parameters):
            return False
        self._compute()
        factor = max_norm / (self.network.gradient_norm() + 1e-6)
        if not factor >= 1:  # not a number, too
            self.network.scale_gradient(factor)
        return True

    def forget(self) -> None:
        """Clear all gradients, as ``zero_grad`` does."""
        self.waiting = self._computed = False
        self._deltas = None
        for parameter in self.parameters:
            if plain_grad(parameter) is not None:
                set_plain_grad(parameter, None)

    # --- Optimizer steps ---

    def collect(self) -> bool:
        """
        Bring the parameters' gradients, whoever made them, into the network.

        :return: False if a parameter has none, or one the kernels cannot read.
        """
        if self.waiting:
            if not self.own_masks and all(plain_grad(parameter) is None for parameter in self.parameters):
                self._compute()
                return True
            self.show()
        grads: list[th.Tensor] = []
        for parameter in self.parameters:
            grad = plain_grad(parameter)
            if grad is None:
                return False
            grads.append(grad)
        dtype = self.parameters[0].dtype
        for grad in grads:
            if type(grad) is not th.Tensor or grad.dtype != dtype or grad.layout is not th.strided or not grad.is_cpu:
                return False
            if not grad.is_contiguous():
                return False
        self.network.gather_gradients(addresses_of(grads))
        return True
