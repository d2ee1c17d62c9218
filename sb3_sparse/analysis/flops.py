"""
Exact counts: FLOPs of whatever a policy computes.

FLOPs are counted where they happen: hooks on every Linear, Conv2d and LSTM record each call and each backward pass through
it while the real networks run once on dummy data. A multiply-add is 2 FLOPs, biases and activations count nothing, as in
``torch.utils.flop_counter``, which gives the same numbers at sparsity 0 (a test compares them). The sparse count multiplies
by the positions that exist instead of by all.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch as th
from torch import nn

from sb3_sparse.nn.layers import SparseLayer


@dataclass
class Flops:
    """
    :param sparse: FLOPs counted from the positions that exist.
    :param dense: FLOPs of the same computation by the dense twin.
    """

    sparse: float = 0.0
    dense: float = 0.0

    def __mul__(self, factor: float) -> Flops:
        return Flops(self.sparse * factor, self.dense * factor)

    def __add__(self, other: Flops) -> Flops:
        return Flops(self.sparse + other.sparse, self.dense + other.dense)


def n_active(layer: nn.Module) -> int:
    """
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


def _lstm_weights(lstm: nn.LSTM) -> int:
    return sum(parameter.numel() for name, parameter in lstm.named_parameters() if name.startswith("weight"))


class _Recorder:
    def __init__(self) -> None:
        self.total = Flops()

    def on_layer(self, layer: nn.Module, inputs: tuple[th.Tensor, ...], output: th.Tensor) -> None:
        assert isinstance(layer.weight, th.Tensor)
        applications = _applications(layer, output)
        once = Flops(2.0 * n_active(layer) * applications, 2.0 * layer.weight.numel() * applications)
        self._record(once, output, layer.weight.requires_grad + inputs[0].requires_grad)

    def on_lstm(self, lstm: nn.LSTM, inputs: tuple[Any, ...], output: tuple[Any, Any]) -> None:
        steps = inputs[0].numel() // lstm.input_size
        once = Flops(2.0 * _lstm_weights(lstm) * steps, 2.0 * _lstm_weights(lstm) * steps)
        self._record(once, output[0], 2)

    def _record(self, once: Flops, output: th.Tensor, backward_products: int) -> None:
        self.total += once
        if output.requires_grad:
            # Fires only if this call's output takes part in a backward pass
            output.register_hook(lambda grad: self._add(once * backward_products))

    def _add(self, flops: Flops) -> None:
        self.total += flops


@contextmanager
def count_flops(module: nn.Module) -> Iterator[_Recorder]:
    """
    Count what ``module`` computes, forwards and backwards, while the context is open.

    :param module: A policy or any other module.
    :return: An object whose ``total`` is a :class:`Flops`.
    """
    recorder = _Recorder()
    handles = []
    for layer in module.modules():
        if isinstance(layer, (nn.Linear, nn.Conv2d)):
            handles.append(layer.register_forward_hook(recorder.on_layer))
        elif isinstance(layer, nn.LSTM):
            handles.append(layer.register_forward_hook(recorder.on_lstm))
    try:
        yield recorder
    finally:
        for handle in handles:
            handle.remove()
