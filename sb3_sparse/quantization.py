"""What a user may ask of quantization, and a quantized layer as the integers that it computes with."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch as th
from torch import nn

from sb3_sparse.checks import require_integer, require_positive
from sb3_sparse.integer import (
    INT32_LIMIT,
    Convolution,
    IntegerLayer,
    accumulator_limit,
    activation_limit,
    activation_parameters,
    quantize_weights,
    weight_limit,
    weight_scales,
)
from sb3_sparse.layers import SparseLayer
from sb3_sparse.quantizer import Quantizer

#: Inputs that are not quantized.
FLOAT = "float"
#: When quantization begins in a run of 1.2 N steps so that it has the last 0.2 N (Ivanov et al. 2025, figure 3).
AFTER_TRAINING = 1 / 1.2


def _check_names(argument: str, names: Any) -> None:
    if not isinstance(names, str) and not (isinstance(names, Sequence) and all(isinstance(name, str) for name in names)):
        raise ValueError(f"`{argument}` must be a name or a list of names, got {names!r}")


@dataclass(frozen=True)
class QuantizationConfig:
    """
    What to quantize and how finely, checked here as far as possible without a network.

    :param bits: Bits of a weight, 2 to 8.
    :param activation_bits: Bits of the inputs of all layers but those that see the observation, 2 to 8.
    :param input_bits: Bits of the inputs of layers that see the observation: 2 to 8, 16, or ``"float"``.
    :param networks: A network's name or several; None for those that choose actions.
    :param exempt_layers: ``"first"``, ``"last"``, a layer name, or a list of these: they stay in float. Names may be shell
        patterns such as ``"q_net.*.0"``.
    :param averaging: Weight of the newest batch in the moving average of ranges, in (0, 1).
    :param freeze_after: Batches after which ranges stay as they are, at least 1; None for never.
    :raises ValueError: If an argument is outside of what is described here, naming it, its value and what is allowed.
    """

    bits: int = 8
    activation_bits: int = 8
    input_bits: int | str = 8
    networks: str | Sequence[str] | None = None
    exempt_layers: str | Sequence[str] = ()
    averaging: float = 0.01
    freeze_after: int | None = None

    def __post_init__(self) -> None:
        require_integer("bits", self.bits, low=2, high=8)
        require_integer("activation_bits", self.activation_bits, low=2, high=8)
        is_integer = isinstance(self.input_bits, int) and not isinstance(self.input_bits, bool)
        if self.input_bits != FLOAT and not (is_integer and (self.input_bits == 16 or 2 <= int(self.input_bits) <= 8)):
            raise ValueError(f"`input_bits` must be an integer in [2, 8], 16 or 'float', got {self.input_bits!r}")
        if self.networks is not None:
            _check_names("networks", self.networks)
        _check_names("exempt_layers", self.exempt_layers)
        require_positive("averaging", self.averaging, below=1)
        if self.freeze_after is not None:
            require_integer("freeze_after", self.freeze_after, low=1)

    def make_quantizer(self, layer: SparseLayer, name: str, *, sees_observation: bool) -> Quantizer:
        """
        :param layer: A layer.
        :param name: Its name, for messages.
        :param sees_observation: Whether its inputs are the observation.
        :return: A quantizer for it, on its device; the layer is not changed.
        :raises ValueError: If the layer's sums could overflow an int32, or it pads with something else than zeros.
        """
        argument = "input_bits" if sees_observation else "activation_bits"
        asked = getattr(self, argument)
        input_bits = None if asked == FLOAT else asked
        if getattr(layer, "padding_mode", "zeros") != "zeros":
            raise ValueError(
                f"layer {name!r} cannot be quantized: it has padding_mode={layer.padding_mode!r}, supported is 'zeros'; "
                "name it in `exempt_layers` to leave it in float"
            )
        fan_in = layer.weight[0].numel()
        if input_bits is not None and accumulator_limit(fan_in, self.bits, input_bits) > INT32_LIMIT:
            possible = INT32_LIMIT // (weight_limit(self.bits) * activation_limit(input_bits))
            raise ValueError(
                f"layer {name!r} could overflow its int32 sums: with `bits`={self.bits} and `{argument}`={input_bits} at most "
                f"{possible} products may be added up, it adds {fan_in}. Use fewer bits, `input_bits`='float' (if it sees the "
                "observation), or name the layer in `exempt_layers`"
            )
        return Quantizer(self.bits, input_bits, self.averaging, self.freeze_after).to(layer.weight.device)


def _convolution(layer: nn.Conv2d) -> Convolution:
    (down, right), (dilation_y, dilation_x) = layer.stride, layer.dilation
    if layer.padding == "same":
        # As torch does it: what cannot be halved comes after
        totals = [dilation * (size - 1) for dilation, size in zip(layer.dilation, layer.kernel_size, strict=True)]
        top, left = ((total // 2, total - total // 2) for total in totals)
    elif layer.padding == "valid":
        top = left = (0, 0)
    else:
        top, left = ((int(size), int(size)) for size in layer.padding)
    return Convolution((down, right), (top, left), (dilation_y, dilation_x), layer.groups)


def integer_layer(layer: SparseLayer, name: str = "the layer") -> IntegerLayer:
    """
    The integers of a quantized layer: all that an export needs.

    :param layer: A layer.
    :param name: Its name, for messages.
    :return: Its weights, scales, zero point and bias, copied.
    :raises ValueError: If it is not quantized, has not seen a batch yet, or has weights that are not finite.
    """
    quantizer = layer.quantizer
    if quantizer is None:
        raise ValueError(f"{name} is not quantized")
    if not quantizer.is_ready:
        raise ValueError(f"{name} has no range for its inputs yet: it has been in no training step since it was quantized")
    weight = layer.weight.detach().float().cpu().numpy().copy()
    if not np.isfinite(weight).all():
        raise ValueError(f"{name} has weights that are not finite: its training has diverged")
    scales = weight_scales(weight, quantizer.weight_bits)
    scale, zero_point = np.float32(1), 0
    if quantizer.input_bits is not None:
        scale, zero_point = activation_parameters(float(quantizer.low), float(quantizer.high), quantizer.input_bits)
    bias = layer.bias
    assert bias is None or isinstance(bias, th.Tensor)
    return IntegerLayer(
        weight=quantize_weights(weight, scales, quantizer.weight_bits),
        weight_scales=scales,
        bias=None if bias is None else bias.detach().float().cpu().numpy().copy(),
        weight_bits=quantizer.weight_bits,
        input_bits=quantizer.input_bits,
        input_scale=scale,
        input_zero_point=zero_point,
        convolution=_convolution(layer) if isinstance(layer, nn.Conv2d) else None,
    )


def _replace_output(name: str) -> Callable[..., th.Tensor]:
    made: list[IntegerLayer] = []

    def hook(layer: nn.Module, inputs: tuple[th.Tensor, ...], output: th.Tensor) -> th.Tensor:
        assert isinstance(layer, SparseLayer)
        if not made:
            made.append(integer_layer(layer, f"layer {name!r}"))
        values = inputs[0].detach().float().cpu().numpy()
        flat = values if isinstance(layer, nn.Conv2d) else values.reshape(-1, values.shape[-1])
        return th.from_numpy(made[0](flat)).reshape(output.shape).to(output)

    return hook


@contextmanager
def integer_arithmetic(module: nn.Module) -> Iterator[None]:
    """
    While the context is open, every quantized layer computes with integers in numpy, as :mod:`sb3_sparse.integer` defines
    it. Everything between the layers (activation functions, normalisation, exempt layers) stays torch's float32. There are no
    gradients, and weights that change meanwhile are not noticed.

    :param module: A policy, or a part of one.
    :raises ValueError: If no layer of it is quantized; at the first use of a layer that has no range yet.
    """
    layers = {name: layer for name, layer in module.named_modules() if isinstance(layer, SparseLayer) and layer.quantizer}
    if not layers:
        raise ValueError("no layer is quantized: train with `QuantizationAware`, or call `sb3_sparse.quantize(model)` first")
    handles = [layer.register_forward_hook(_replace_output(name)) for name, layer in layers.items()]
    try:
        with th.no_grad():
            yield
    finally:
        for handle in handles:
            handle.remove()
