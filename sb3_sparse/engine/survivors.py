"""
The survivors of a sequence of layers, one after the other, as the kernels want them: a cache of the dense Parameters.

The dense Parameters stay the truth. The mirror follows them by their version counters, and writes to both when the optimizer
or a target update goes the short way over survivors.
"""

from __future__ import annotations

import operator
import sys
import weakref
from collections.abc import Sequence
from types import CodeType
from typing import Any

import torch as th
from torch import nn
from torch.autograd.graph import get_gradient_edge, increment_version

from sb3_sparse.engine import native
from sb3_sparse.engine.polyak import _Data
from sb3_sparse.nn.layers import SparseLayer

#: Code of the functions that are given data which knows its survivors; they use it for ``mul_`` and ``th.add`` alone.
TARGET_UPDATES: set[CodeType] = set()

# The getset descriptors
_plain_data: Any = th.Tensor.data
_plain_grad: Any = th.Tensor.grad
#: ``grad`` as torch has it: without what a mirror has not shown yet.
plain_grad: Any = _plain_grad.__get__


class SurvivorParameter(nn.Parameter):
    """
    A weight with a :class:`~sb3_sparse.engine.survivors.Mirror`. ``data`` is the one way to write to a tensor that leaves no
    trace in its version counter; here it leaves one. ``grad`` is made dense when it is asked for.
    """

    mirror: Mirror | None
    #: Index of the layer in the mirror, and the memory that the mirror reads and writes.
    place: int
    address: int
    #: Somebody may hold memory of this weight that is written to unseen.
    exposed: bool

    @classmethod
    def adopt(cls, weight: nn.Parameter) -> None:
        """
        Turn a Parameter into a :class:`SurvivorParameter`, in place.

        :param weight: A plain Parameter, or one that is adopted already.
        """
        if type(weight) is nn.Parameter:
            weight.__class__ = cls
            assert isinstance(weight, cls)
            weight.mirror, weight.exposed, weight.held_data, weight.agreed = None, False, None, None

    #: What ``data`` gave last.
    held_data: _Data | None
    held_address: int
    #: Mirror of another weight and the two masks' versions, when the masks were last found to be the same.
    agreed: tuple[Any, int, int] | None

    @property
    def data(self) -> th.Tensor:
        if self.mirror is None:
            return _plain_data.__get__(self)
        if sys._getframe(1).f_code not in TARGET_UPDATES:
            self.exposed = True
            return _plain_data.__get__(self)
        view = self.held_data
        if view is None or self.held_address != self.data_ptr():
            view = self.held_data = _plain_data.__get__(self).as_subclass(_Data)
            view.owner, self.held_address = weakref.ref(self), self.data_ptr()
        return view

    @data.setter
    def data(self, value: th.Tensor) -> None:
        self.exposed, self.held_data = True, None
        _plain_data.__set__(self, value)

    @property
    def grad(self) -> th.Tensor | None:
        if self.mirror is not None and self.mirror.unseen:
            self.mirror.show_gradients()
        return plain_grad(self)

    @grad.setter
    def grad(self, value: th.Tensor | None) -> None:
        if self.mirror is not None and self.mirror.unseen:
            self.mirror.show_gradients()  # the other weights keep theirs
        _plain_grad.__set__(self, value)

    def gradient_waits(self) -> bool:
        """Whether all of its gradient is with the mirror, at survivors alone, and shown when somebody asks for it."""
        return self.mirror is not None and self.mirror.unseen and plain_grad(self) is None

    def is_mirrored(self) -> bool:
        """Whether the mirror holds this weight as it is."""
        mirror, index = self.mirror, self.place
        return (
            mirror is not None
            and not self.exposed
            and mirror.weights[index] is self
            and mirror.seen[index] == self._version
            and mirror.made_of[index][1] == mirror.layers[index].mask_version
            and self.address == self.data_ptr()
        )

    def has_mask_of(self, other: SurvivorParameter) -> bool:
        """
        :param other: Another weight; both are mirrored.
        :return: Whether both have the same survivors.
        """
        assert self.mirror is not None
        assert other.mirror is not None
        own, others = self.mirror.layers[self.place], other.mirror.layers[other.place]
        versions = (other.mirror, own.mask_version, others.mask_version)
        if self.agreed != versions:
            if not th.equal(own.weight_mask, others.weight_mask):
                return False
            self.agreed = versions
        return True

    def __deepcopy__(self, memo: dict[int, Any]) -> nn.Parameter:
        # Whoever copies a network gives it a mirror of its own when it needs one
        if id(self) not in memo:
            copy = nn.Parameter(self.detach().clone(memory_format=th.preserve_format), self.requires_grad)
            SurvivorParameter.adopt(copy)
            memo[id(self)] = copy
        return memo[id(self)]

    def __reduce_ex__(self, protocol: Any) -> Any:
        return nn.Parameter(self.detach(), self.requires_grad).__reduce_ex__(protocol)


#: Codes of the kernels
ACTIVATIONS: dict[type[nn.Module], int] = {nn.Identity: 0, nn.ReLU: 1, nn.Tanh: 2}
_CLASSES = {th.float32: "Network", th.float64: "NetworkDouble"}
SUPPORTED_DTYPES = tuple(_CLASSES)


def make_network(layers: Sequence[SparseLayer], activations: Sequence[int]) -> Any:
    """
    :param layers: Layers in order; their masks are read now. All weights float32 or float64, contiguous, on the CPU.
    :param activations: What follows each layer, see :data:`ACTIVATIONS`.
    :return: The kernels' network of these layers, to which the dense weights are known by address. It holds none of their
        values yet.
    """
    weights = [layer.weight for layer in layers]
    # A convolution's weight is a matrix too: Adam goes over it, the kernels' passes do not
    masks = [layer.weight_mask.contiguous() for layer in layers]
    shapes = [
        (mask.data_ptr(), mask.shape[0], mask.numel() // mask.shape[0], activation)
        for mask, activation in zip(masks, activations, strict=True)
    ]
    dense = [(layer.weight.data_ptr(), 0 if layer.bias is None else layer.bias.data_ptr()) for layer in layers]
    return getattr(native.module, _CLASSES[weights[0].dtype])(shapes, dense)


def can_mirror(layers: Sequence[SparseLayer], dtype: th.dtype) -> bool:
    """
    :param layers: Layers.
    :param dtype: A dtype.
    :return: Whether the kernels can read and write all their parameters, and these have that dtype.
    """
    for layer in layers:
        for parameter in layer._parameters.values():
            if parameter is None:
                continue
            if parameter.dtype != dtype or not parameter.is_cpu or not parameter.is_contiguous():
                return False
    return dtype in SUPPORTED_DTYPES


class Mirror:
    """
    :param layers: As for :func:`make_network`.
    :param activations: As for :func:`make_network`.
    """

    def __init__(self, layers: Sequence[SparseLayer], activations: Sequence[int]) -> None:
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
        self.addresses = addresses_of(self.parameters)
        self.n_outputs = self.weights[-1].shape[0]
        #: The mask each layer had, and where it keeps its weight.
        self.made_of = [(layer, layer.mask_version, layer._parameters, layer.weight) for layer in layers]
        #: Autograd's own node of every parameter, kept so that it is not made anew for every pass.
        self.nodes = [get_gradient_edge(parameter).node for parameter in self.parameters if parameter.requires_grad]
        self.network = make_network(layers, activations)
        #: Adam's second moments of all values and biases, and room for their roots: the network's own memory.
        self.square, self.root = (th.from_numpy(array) for array in self.network.roots())
        #: Version of each weight that the mirror holds; -1: none.
        self.seen = [-1] * len(layers)
        #: Whether anybody else wrote to the weights since they were last projected: pruned weights may not be zero.
        self.foreign = True
        #: Gradients of the parameters: zero outside the mask for good, so that only survivors are ever written.
        self.gradients: list[th.Tensor] | None = None
        self.gradient_versions: list[int] = []
        #: Whether the network holds gradients that are not in the weights' ``grad`` yet: nobody has asked for them.
        self.unseen = False
        self._bias_places = [place for place, parameter in enumerate(self.parameters) if id(parameter) in map(id, self.biases)]
        self._weight_places = [place for place in range(len(self.parameters)) if place not in self._bias_places]
        # Tensors that someone put in the Parameters' place cannot be asked
        self._can_wait = all(isinstance(weight, SurvivorParameter) for weight in self.weights)
        #: Addresses of the biases' gradients, 0 for the weights'.
        self._bias_gradients: list[int] = []
        for index, weight in enumerate(self.weights):
            if isinstance(weight, SurvivorParameter) and weight.mirror is not None:
                weight.mirror.show_gradients()
            weight.mirror, weight.place, weight.address = self, index, weight.data_ptr()

    def fits(self) -> bool:
        """Whether masks and memory are still those the mirror was made of."""
        # Called before every pass: plain loops, the fastest there is
        for layer, mask_version, held, weight in self.made_of:
            if layer.mask_version != mask_version or held["weight"] is not weight:
                return False
        for parameter, address in zip(self.parameters, self.addresses):  # noqa: B905, SIM110
            if parameter.data_ptr() != address:
                return False
        return True

    def follow(self) -> None:
        """Read the weights that were written to since."""
        seen = self.seen
        for index, weight in enumerate(self.weights):
            version = weight._version
            if version != seen[index] or weight.exposed:
                self.network.gather_weight(index)
                seen[index] = version
                self.foreign = True

    def wrote_values(self) -> None:
        """Tell autograd, as torch's own optimizers do, that all parameters were written to, and that the mirror knows."""
        increment_version(self.parameters)
        self.seen = [weight._version for weight in self.weights]

    def projected(self) -> None:
        """Be told that the weights, as the mirror wrote them last, were multiplied by their masks."""
        self.seen = [weight._version for weight in self.weights]
        self.foreign = any(weight.exposed for weight in self.weights)

    # --- Gradients ---

    def has_gradients(self) -> bool:
        """Whether there are gradients that those of another pass come on top of."""
        return self.unseen or self.weights[0].grad is not None

    def _all_unseen(self) -> bool:
        """Whether all gradients are the network's own: the weights' unseen, the biases' as they were written."""
        gradients = self.gradients
        if not self.unseen or gradients is None or any(plain_grad(weight) is not None for weight in self.weights):
            return False
        return all(
            self.parameters[place].grad is gradients[place] and gradients[place]._version == self.gradient_versions[place]
            for place in self._bias_places
        )

    def can_publish(self) -> bool:
        """Whether gradients may go straight into ``grad``: there are none yet or the mirror's own, and no one else watches."""
        if not self.fits():
            return False
        for weight in self.weights:
            if len(weight._post_accumulate_grad_hooks or ()) > 1:  # one is the layer's own
                return False
        for parameter in self.parameters:
            if parameter._backward_hooks:
                return False
        if self._all_unseen():
            return True
        grads = [parameter.grad for parameter in self.parameters]
        if all(grad is None for grad in grads):
            return True
        return self.gradients is not None and all(map(operator.is_, grads, self.gradients)) and self.collect_gradients()

    def dense_gradients(self) -> list[th.Tensor]:
        """Gradients of the parameters as dense tensors of their own, zero outside the masks."""
        gradients = [th.zeros_like(parameter, requires_grad=False) for parameter in self.parameters]
        self.network.scatter_gradients(addresses_of(gradients))
        return gradients

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
        """
        Let the parameters have the gradients that the network holds: the biases at once, the weights when somebody asks. In a
        training nobody does: Adam goes over survivors.
        """
        if self.gradients is None:
            self.gradients = [th.zeros_like(parameter, requires_grad=False) for parameter in self.parameters]
            self._bias_gradients = addresses_of(self.gradients)
            for place in self._weight_places:
                self._bias_gradients[place] = 0
        self.network.scatter_gradients(self._bias_gradients)
        for place in self._bias_places:
            self.parameters[place].grad = self.gradients[place]
        seen = not self._can_wait or any(plain_grad(weight) is not None for weight in self.weights)
        self.unseen = True
        self.gradient_versions = [gradient._version for gradient in self.gradients]
        if seen:
            self._show_gradients(on_top=False)

    def show_gradients(self) -> None:
        """Let the weights have the gradients that the network holds, if they have not."""
        if self.unseen:
            self._show_gradients(on_top=True)

    def _show_gradients(self, on_top: bool) -> None:
        assert self.gradients is not None
        self.unseen = False
        addresses = addresses_of(self.gradients)
        for place in self._bias_places:
            addresses[place] = 0
        self.network.scatter_gradients(addresses)
        for layer, weight, place in zip(self.layers, self.weights, self._weight_places, strict=True):
            gradient = self.gradients[place]
            if on_top and (others := plain_grad(weight)) is not None:
                # Autograd has put there what came to the weight by other ways
                weight.grad = others + gradient
            else:
                weight.grad = gradient
                layer.survivor_gradient = (gradient, gradient._version)

    def collect_gradients(self) -> bool:
        """
        Bring the parameters' gradients, whoever made them, into the network.

        :return: False if a parameter has none, or one the kernels cannot read.
        """
        if self._all_unseen():
            return True
        grads: list[th.Tensor] = []
        for parameter in self.parameters:
            grad = parameter.grad
            if grad is None:
                return False
            grads.append(grad)
        own = self.gradients
        if own is not None and all(map(operator.is_, grads, own)) and self.gradient_versions == [g._version for g in grads]:
            return True
        dtype = self.parameters[0].dtype
        for grad in grads:
            if grad.dtype != dtype or not grad.is_cpu or not grad.is_contiguous():
                return False
        self.network.gather_gradients(addresses_of(grads))
        return True


def addresses_of(tensors: Sequence[th.Tensor]) -> list[int]:
    """
    :param tensors: Tensors on the CPU.
    :return: Where the memory of each begins.
    """
    return [tensor.data_ptr() for tensor in tensors]
