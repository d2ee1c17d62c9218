"""
The surviving weights of a sequence of layers, one after the other, as the kernels want them: a cache of the dense Parameters.

The dense Parameters stay the truth. The cache follows whoever writes to them, and writes to both when the optimizer or a
target update goes the short way over survivors.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch as th
from torch import nn
from torch.autograd.graph import increment_version

from sb3_sparse.engine import native
from sb3_sparse.engine.gradients import Gradients, addresses_of
from sb3_sparse.engine.locks import make_lock
from sb3_sparse.engine.parameter import LazyGradParameter, SurvivorParameter, adopt
from sb3_sparse.nn.layers import SparseLayer

#: Codes of the kernels
ACTIVATIONS: dict[type[nn.Module], int] = {nn.Identity: 0, nn.ReLU: 1, nn.Tanh: 2}
_CLASSES = {th.float32: "Network", th.float64: "NetworkDouble"}
SUPPORTED_DTYPES = tuple(_CLASSES)
#: How many hold a piece of memory; without this function weights are read anew for every pass.
_use_count: Callable[[int], int] = getattr(th._C, "_storage_Use_Count", lambda storage: -1)
_data_ptr = th.Tensor.data_ptr


def is_alone(storage: int) -> bool:
    """
    Find out whether nobody else holds a tensor's memory now, by another tensor or an array.

    :param storage: Its storage, as C++ knows it; the tensor and the caller's storage object hold it.
    :return: False if somebody else may write to it unseen.
    """
    return _use_count(storage) == 2


def _is_private(storage: int, resizable: Callable[[], bool]) -> bool:
    """
    Whether nobody else had access to a weight's memory, not even for a moment: an array that was made of it leaves it fixed
    in size for good, and may have been written to and thrown away since.
    """
    # As is_alone(), without its call: this comes before every pass, for every weight
    return _use_count(storage) == 2 and resizable()


def _is_untouched(weight: SurvivorParameter, version: int, storage: int, resizable: Callable[[], bool]) -> bool:
    """Whether a weight has certainly not been written to since it had a version."""
    return weight._version == version and not weight.aliased and _is_private(storage, resizable)


def n_surviving(layer: SparseLayer) -> int:
    """
    Count the weights that the kernels multiply by.

    :param layer: A layer.
    :return: Those of the mask; all where it is the layer's own, which may change with every pass.
    """
    return layer.n_active if layer.own_pattern is None else layer.weight.numel()


def make_network(layers: Sequence[SparseLayer], activations: Sequence[int]) -> Any:
    """
    Make the kernels' network of layers.

    :param layers: Layers in order; their masks are read now, and count as in :func:`n_surviving`. All weights float32 or
        float64, contiguous, on the CPU.
    :param activations: What follows each layer, see :data:`ACTIVATIONS`.
    :return: The network, to which the dense weights are known by address. It holds none of their values yet.
    """
    # A convolution's weight is a matrix too: Adam goes over it, the kernels' passes do not
    masks = [
        layer.weight_mask.contiguous() if layer.own_pattern is None else th.ones_like(layer.weight_mask) for layer in layers
    ]
    shapes = [
        (mask.data_ptr(), mask.shape[0], mask.numel() // mask.shape[0], activation)
        for mask, activation in zip(masks, activations, strict=True)
    ]
    dense = [(_data_ptr(layer.weight), 0 if layer.bias is None else _data_ptr(layer.bias)) for layer in layers]
    return getattr(native.module, _CLASSES[layers[0].weight.dtype])(shapes, dense)


def can_read(layers: Sequence[SparseLayer], dtype: th.dtype) -> bool:
    """
    Find out whether the kernels can take layers.

    :param layers: Layers.
    :param dtype: A dtype.
    :return: Whether the kernels can read and write all their parameters, and these have that dtype.
    """
    for layer in layers:
        for parameter in layer._parameters.values():
            if parameter is None:
                continue
            if type(parameter) not in (nn.Parameter, LazyGradParameter, SurvivorParameter) or parameter.is_inference():
                return False
            if parameter.dtype != dtype or not parameter.is_cpu or not parameter.is_contiguous():
                return False
    return dtype in SUPPORTED_DTYPES


class Survivors:
    """
    The surviving weights of layers whose masks and memory stay what they are.

    :param layers: As for :func:`make_network`; all of :func:`can_read`.
    :param activations: As for :func:`make_network`.
    """

    def __init__(self, layers: Sequence[SparseLayer], activations: Sequence[int]) -> None:
        self.layers = list(layers)
        self.activations = list(activations)
        #: Held while the network is read or written.
        self.lock = make_lock()
        for layer in layers:
            adopt(layer.weight, SurvivorParameter)
            if layer.bias is not None:
                adopt(layer.bias, LazyGradParameter)
        self.weights: list[SurvivorParameter] = [layer.weight for layer in layers]  # type: ignore[misc]
        #: Weights and biases in the order of ``parameters()``.
        self.parameters: list[LazyGradParameter] = [
            parameter  # type: ignore[misc]
            for layer in layers
            for parameter in (layer.weight, layer.bias)
            if parameter is not None
        ]
        self.biases = [layer.bias for layer in layers if layer.bias is not None]
        self.addresses = addresses_of(self.parameters)
        self.n_outputs = self.weights[-1].shape[0]
        #: The mask each layer had, and its parameters.
        self.made_of = [(layer, layer.mask_version, layer._parameters, layer.weight, layer.bias) for layer in layers]
        self.network = make_network(layers, activations)
        self.gradients = Gradients(self.network, self.layers, self.parameters, self.lock)
        with th.inference_mode(False):
            #: Adam's second moments of all values and biases, and room for their roots: the network's own memory.
            self.square, self.root = (th.from_numpy(array) for array in self.network.roots())
        #: Version of each weight that the network holds; -1: none.
        self.seen = [-1] * len(layers)
        #: Whether all pruned weights of each layer were zero when it was read last, and of all.
        self.clean = [False] * len(layers)
        self.all_clean = False
        #: What was decided on this size of batch and number of threads: whether the kernels run it.
        self.decided: dict[tuple[int, int], bool] = {}
        self._storages = [th.Tensor.untyped_storage(weight) for weight in self.weights]
        self._offsets = [weight.storage_offset() for weight in self.weights]
        self._watched = [
            (index, weight, storage._cdata, storage.resizable)
            for index, (weight, storage) in enumerate(zip(self.weights, self._storages, strict=True))
        ]
        for index, weight in enumerate(self.weights):
            weight.survivors, weight.place, weight.address = self, index, _data_ptr(weight)
            # Written to by other processes, or an array whose owner may still have it
            weight.always_aliased |= th.Tensor.is_shared(weight)
            weight.aliased = True
        for parameter in self.parameters:
            parameter.show_gradient()
            parameter.gradients = self.gradients

    def fits(self) -> bool:
        """Whether masks and memory are still those the survivors were made of."""
        # Called before every pass: plain loops, the fastest there is
        for layer, mask_version, held, weight, bias in self.made_of:
            if layer.mask_version != mask_version or held.get("weight") is not weight or held.get("bias") is not bias:
                return False
        for parameter, address in zip(self.parameters, self.addresses):  # noqa: B905, SIM110
            if _data_ptr(parameter) != address:
                return False
        return True

    # --- Values ---

    def _is_aliased(self, index: int) -> bool:
        """Whether somebody else has access to a weight's memory, now or for good."""
        _, weight, storage, resizable = self._watched[index]
        return weight.always_aliased or not _is_private(storage, resizable)

    def knows(self, index: int) -> bool:
        """
        Find out whether a weight was written to since it was read.

        :param index: Of the layer.
        :return: Whether its survivors are certainly those of the weight as it is, and all else in it is zero.
        """
        _, weight, storage, resizable = self._watched[index]
        return self.clean[index] and _is_untouched(weight, self.seen[index], storage, resizable)

    def follow(self) -> bool:
        """
        Read the weights that may have been written to since.

        :return: Whether all pruned weights are zero, so that the survivors are all there is.
        """
        # Comes before every pass
        seen = self.seen
        for index, weight, storage, resizable in self._watched:
            if not _is_untouched(weight, seen[index], storage, resizable):
                seen[index] = weight._version
                weight.aliased = self._is_aliased(index)
                self.clean[index] = self.network.gather_weight(index)
                self.all_clean = all(self.clean)
        return self.all_clean

    def average(self, online: Survivors, tau: float) -> bool:
        """
        Average all weights and biases into these, as Stable-Baselines3's ``polyak_update`` does, bit for bit.

        :param online: What is averaged in.
        :param tau: Its share.
        :return: False, and nothing is done, if the masks are not the same or pruned weights are not zero. Own masks need not
            be the same: they settle before they are read next.
        """
        with self.lock, online.lock:
            if self.gradients.own_masks:
                if [weight.shape for weight in self.parameters] != [weight.shape for weight in online.parameters]:
                    return False
                self.network.average_dense(1 - tau, tau, online.network)
                self.seen = [-1] * len(self.weights)
                return True
            if not self.follow() or not online.follow() or len(self.parameters) != len(online.parameters):
                return False
            for weight, other in zip(self.weights, online.weights, strict=True):
                if not weight.has_mask_of(other):
                    return False
            # By ``data``, as there: autograd is not told
            self.network.average_all(1 - tau, tau, online.network)
        return True

    def matrix(self, index: int) -> th.Tensor:
        """
        Give a weight in the memory it had when the survivors were made.

        :param index: Of the layer.
        :return: The same as ``weight.detach()``, as long as nobody gives the weight other memory.
        """
        weight = self.weights[index]
        return weight.new_empty(0).set_(self._storages[index], self._offsets[index], weight.shape, weight.stride())

    def wrote_values(self) -> None:
        """Tell autograd, as torch's own optimizers do, that all parameters were written to, and remember that it is known."""
        increment_version(self.parameters)
        self.seen = [weight._version for weight in self.weights]

    def projected(self) -> None:
        """Be told that the weights, as they were written here last, were multiplied by their masks."""
        self.seen = [weight._version for weight in self.weights]
        self.clean, self.all_clean = [True] * len(self.weights), True
