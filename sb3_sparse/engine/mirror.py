"""
The survivors of a sequence of layers, one after the other, as the kernels want them: a cache of the dense Parameters.

The dense Parameters stay the truth. The mirror follows them by their version counters, and writes to both when the optimizer
or a target update goes the short way over survivors.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch as th
from torch import nn
from torch.autograd.graph import get_gradient_edge

from sb3_sparse.engine import native
from sb3_sparse.engine.target import SurvivorParameter
from sb3_sparse.layers import SparseLinear

#: Codes of the kernels
ACTIVATIONS: dict[type[nn.Module], int] = {nn.Identity: 0, nn.ReLU: 1, nn.Tanh: 2}
_CLASSES = {th.float32: "Network", th.float64: "NetworkDouble"}
SUPPORTED_DTYPES = tuple(_CLASSES)


class Mirror:
    """
    :param layers: Layers in order; their masks are read now. All weights float32 or float64, contiguous, on the CPU.
    :param activations: What follows each layer, see :data:`ACTIVATIONS`.
    """

    def __init__(self, layers: Sequence[SparseLinear], activations: Sequence[int]) -> None:
        self.layers = list(layers)
        self.activations = list(activations)
        for layer in layers:
            SurvivorParameter.adopt(layer.weight)
        self.weights: list[SurvivorParameter] = [layer.weight for layer in layers]  # type: ignore[misc]
        self.biases: list[nn.Parameter | None] = [layer.bias for layer in layers]
        #: Weights and biases in the order of ``parameters()``.
        self.parameters = [
            parameter for pair in zip(self.weights, self.biases, strict=True) for parameter in pair if parameter is not None
        ]
        self.mask_versions = [layer.mask_version for layer in layers]
        self.versioned = [(layer, layer.mask_version) for layer in layers]
        self.held = [(layer._parameters, layer.weight) for layer in layers]
        #: Autograd's own node of every parameter, kept so that it is not made anew for every pass.
        self.nodes = [get_gradient_edge(parameter).node for parameter in self.parameters if parameter.requires_grad]
        self.addressed = [(parameter, parameter.data_ptr()) for parameter in self.parameters]
        self.addresses = [weight.data_ptr() for weight in self.weights]
        masks = [layer.weight_mask.contiguous() for layer in layers]
        shapes = [
            (mask.data_ptr(), layer.out_features, layer.in_features, activation)
            for mask, layer, activation in zip(masks, layers, activations, strict=True)
        ]
        dense = [
            (weight.data_ptr(), 0 if bias is None else bias.data_ptr())
            for weight, bias in zip(self.weights, self.biases, strict=True)
        ]
        self.network = getattr(native.module, _CLASSES[self.weights[0].dtype])(shapes, dense)
        #: Adam's second moments of all values and biases, and room for their roots: the network's own memory.
        self.square, self.root = (th.from_numpy(array) for array in self.network.roots())
        #: Version of each weight that the mirror holds; -1: none.
        self.seen = [-1] * len(layers)
        #: Gradients of the parameters: zero outside the mask for good, so that only survivors are ever written.
        self.gradients: list[th.Tensor] | None = None
        self.gradient_versions = [-1] * len(self.parameters)
        for index, weight in enumerate(self.weights):
            weight.mirror, weight.place = self, index

    def fits(self) -> bool:
        """Whether masks and memory are still those the mirror was made of."""
        # Called before every pass: plain loops, the fastest there is
        for layer, version in self.versioned:
            if layer.mask_version != version:
                return False
        for held, weight in self.held:
            if held["weight"] is not weight:
                return False
        for parameter, address in self.addressed:  # noqa: SIM110
            if parameter.data_ptr() != address:
                return False
        return True

    def follow(self) -> None:
        """Read the weights that were written to since."""
        for index, weight in enumerate(self.weights):
            if weight._version != self.seen[index] or weight.exposed:
                self.network.gather_weight(index)
                self.seen[index] = weight._version

    # --- Gradients ---

    def can_publish(self) -> bool:
        """Whether gradients may go straight into ``grad``: there are none yet or the mirror's own, and no one else watches."""
        if not self.fits():
            return False
        if any(parameter._backward_hooks for parameter in self.parameters):
            return False
        for weight in self.weights:
            if len(weight._post_accumulate_grad_hooks or ()) > 1:  # one is the layer's own
                return False
        if all(parameter.grad is None for parameter in self.parameters):
            return True
        gradients = self.gradients
        if gradients is None or any(
            parameter.grad is not gradient for parameter, gradient in zip(self.parameters, gradients, strict=True)
        ):
            return False
        return self.collect_gradients()

    def dense_gradients(self) -> list[th.Tensor]:
        """Gradients of the parameters as dense tensors of their own, zero outside the masks."""
        gradients = [th.zeros_like(parameter, requires_grad=False) for parameter in self.parameters]
        self._scatter_gradients(gradients)
        return gradients

    def _scatter_gradients(self, to: list[th.Tensor]) -> None:
        addresses = iter([gradient.data_ptr() for gradient in to])
        for index, bias in enumerate(self.biases):
            weight_address = next(addresses)
            self.network.scatter_gradient(index, weight_address, 0 if bias is None else next(addresses))

    def dense_forward(self, x: th.Tensor) -> th.Tensor:
        """
        :param x: Shape [n_samples, inputs].
        :return: What torch makes of it, shape [n_samples, outputs].
        """
        functions = {0: lambda value: value, 1: th.relu, 2: th.tanh}
        for weight, bias, activation in zip(self.weights, self.biases, self.activations, strict=True):
            x = functions[activation](nn.functional.linear(x, weight, bias))
        return x

    def publish_gradients(self) -> None:
        """Let the parameters have the gradients that the network holds."""
        if self.gradients is None:
            self.gradients = [th.zeros_like(parameter, requires_grad=False) for parameter in self.parameters]
        self._scatter_gradients(self.gradients)
        for parameter, gradient in zip(self.parameters, self.gradients, strict=True):
            parameter.grad = gradient
        self.gradient_versions = [gradient._version for gradient in self.gradients]
        for layer, weight in zip(self.layers, self.weights, strict=True):
            assert weight.grad is not None
            layer.survivor_gradient = (weight.grad, weight.grad._version)

    def collect_gradients(self) -> bool:
        """
        Bring the parameters' gradients, whoever made them, into the network.

        :return: False if a parameter has none, or one the kernels cannot read.
        """
        own: Sequence[th.Tensor | None] = self.gradients or [None] * len(self.parameters)
        changed = False
        for parameter, gradient, version in zip(self.parameters, own, self.gradient_versions, strict=True):
            grad = parameter.grad
            if grad is not gradient or grad is None or grad._version != version:
                changed = True
                break
        if not changed:
            return True
        addresses = []
        for parameter in self.parameters:
            grad = parameter.grad
            if grad is None or grad.dtype != parameter.dtype or not grad.is_cpu or not grad.is_contiguous():
                return False
            addresses.append(grad.data_ptr())
        remaining = iter(addresses)
        for index, bias in enumerate(self.biases):
            weight_address = next(remaining)
            self.network.gather_gradient(index, weight_address, 0 if bias is None else next(remaining))
        return True
