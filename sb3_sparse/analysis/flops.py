"""
Exact counts: FLOPs of whatever a policy computes.

FLOPs are counted where they happen: hooks on every Linear, Conv2d and recurrent layer record each call and each backward pass
through it while the real networks run once. A multiply-add is 2 FLOPs, biases and activations count nothing, as in
``torch.utils.flop_counter``, which gives the same numbers at sparsity 0 (a test compares them). The sparse count multiplies
by the positions that exist instead of by all. Where a policy has other modules with weights, that counter says what they add.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch as th
from torch import nn
from torch.nn.utils.rnn import PackedSequence
from torch.utils.flop_counter import FlopCounterMode

from sb3_sparse.nn.layers import SPARSE_CLASSES, SparseLayer


@dataclass
class Flops:
    """
    FLOPs of a computation, sparse and dense.

    :param sparse: FLOPs counted from the positions that exist.
    :param dense: FLOPs of the same computation by the dense twin.
    """

    sparse: float = 0.0
    dense: float = 0.0

    @property
    def is_known(self) -> bool:
        """Whether they could be counted."""
        return not math.isnan(self.sparse)

    def __mul__(self, factor: float) -> Flops:
        return Flops(self.sparse * factor, self.dense * factor)

    def __add__(self, other: Flops) -> Flops:
        return Flops(self.sparse + other.sparse, self.dense + other.dense)


def n_active(layer: nn.Module) -> int:
    """
    Count the positions of a layer's weight that exist.

    :param layer: A layer with a ``weight``.
    :return: Positions of its weight that exist; all of them for a layer without a mask.
    """
    assert isinstance(layer.weight, th.Tensor)
    return layer.n_active if isinstance(layer, SparseLayer) else layer.weight.numel()


def _applications(layer: nn.Module, output: th.Tensor) -> int:
    """How often every weight of the layer was applied to make this output."""
    if isinstance(layer, nn.Conv2d):
        return output.numel() // layer.out_channels
    assert isinstance(layer, nn.Linear)
    return output.numel() // layer.out_features


def _recurrent_weights(module: nn.RNNBase) -> int:
    return sum(parameter.numel() for name, parameter in module.named_parameters() if name.startswith("weight"))


def _outputs(value: Any) -> Iterator[th.Tensor]:
    """Tensors of what a recurrent layer returns: its sequence, packed or not, and its last states."""
    if isinstance(value, PackedSequence):
        yield value.data
    elif isinstance(value, th.Tensor):
        yield value
    else:
        for item in value:
            yield from _outputs(item)


def _has_others(module: nn.Module) -> bool:
    """Whether there are weights that no hook sees at work."""
    known = (nn.Linear, nn.Conv2d, nn.RNNBase)
    return any(
        not isinstance(part, known) and any(parameter.ndim > 1 for parameter in part.parameters(recurse=False))
        for part in module.modules()
    ) or any(
        type(part) not in (*SPARSE_CLASSES, *SPARSE_CLASSES.values())
        for part in module.modules()
        if isinstance(part, known[:2])
    )


class _Recorder:
    def __init__(self, counter: FlopCounterMode | None) -> None:
        self.counter = counter
        self._hooked = Flops()
        #: What of it torch's counter sees, too.
        self._seen = 0.0
        self._before: dict[nn.Module, int] = {}

    @property
    def total(self) -> Flops:
        """Everything so far."""
        if self.counter is None:
            return self._hooked
        others = self.counter.get_total_flops() - self._seen
        return self._hooked + Flops(others, others)

    def on_layer(self, layer: nn.Module, inputs: tuple[th.Tensor, ...], output: th.Tensor) -> None:
        assert isinstance(layer.weight, th.Tensor)
        applications = _applications(layer, output)
        once = Flops(2.0 * n_active(layer) * applications, 2.0 * layer.weight.numel() * applications)
        self._record(once, [output], layer.weight.requires_grad + inputs[0].requires_grad, seen=True)

    def before_recurrent(self, module: nn.Module, inputs: Any) -> None:
        if self.counter is not None:
            self._before[module] = self.counter.get_total_flops()

    def on_recurrent(self, module: nn.RNNBase, inputs: tuple[Any, ...], output: tuple[Any, Any]) -> None:
        if self.counter is not None and self.counter.get_total_flops() != self._before[module]:
            return  # not fused here: torch's counter sees its products
        # Sequences of several lengths are packed into one: [steps of all of them, size]
        sequence = inputs[0].data if isinstance(inputs[0], PackedSequence) else inputs[0]
        steps = sequence.numel() // module.input_size
        n_flops = 2.0 * _recurrent_weights(module) * steps
        self._record(Flops(n_flops, n_flops), _outputs(output), 2, seen=False)

    def _record(self, once: Flops, outputs: Iterable[th.Tensor], backward_products: int, *, seen: bool) -> None:
        self._add(once, seen)
        is_counted = False

        def on_backward(gradient: th.Tensor) -> None:
            nonlocal is_counted
            if not is_counted:
                is_counted = True
                self._add(once * backward_products, seen)

        for output in outputs:
            if output.requires_grad:
                # Fires only if this call's output takes part in a backward pass
                output.register_hook(on_backward)

    def _add(self, flops: Flops, seen: bool) -> None:
        self._hooked += flops
        if seen:
            self._seen += flops.dense


@contextmanager
def count_flops(module: nn.Module) -> Iterator[_Recorder]:
    """
    Count what ``module`` computes, forwards and backwards, while the context is open.

    :param module: A policy or any other module.
    :return: An object whose ``total`` is a :class:`Flops`.
    """
    counter = FlopCounterMode(display=False) if _has_others(module) else None
    recorder = _Recorder(counter)
    handles = []
    for layer in module.modules():
        if isinstance(layer, (nn.Linear, nn.Conv2d)):
            handles.append(layer.register_forward_hook(recorder.on_layer))
        elif isinstance(layer, nn.RNNBase):
            handles.append(layer.register_forward_pre_hook(recorder.before_recurrent))
            handles.append(layer.register_forward_hook(recorder.on_recurrent))
    try:
        with counter or nullcontext():
            yield recorder
    finally:
        for handle in handles:
            handle.remove()
