"""What a user may ask of quantization, and a quantized layer as the integers that it computes with."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np
import torch as th
from torch import nn

from sb3_sparse.nn.layers import SparseLayer
from sb3_sparse.quantization.integer import (
    Convolution,
    IntegerLayer,
    activation_parameters,
    quantize_weights,
    weight_scales,
)
from sb3_sparse.utils.arrays import array_of


def convolution_of(layer: nn.Conv2d) -> Convolution:
    """
    Say how a convolution moves over its input.

    :param layer: A convolution that pads with zeros.
    :return: Its geometry.
    """
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
    weight = array_of(layer.weight.float())
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
        bias=None if bias is None else array_of(bias.float()),
        weight_bits=quantizer.weight_bits,
        input_bits=quantizer.input_bits,
        input_scale=scale,
        input_zero_point=zero_point,
        convolution=convolution_of(layer) if isinstance(layer, nn.Conv2d) else None,
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
    While the context is open, every quantized layer computes with integers in numpy, as
    :mod:`sb3_sparse.quantization.integer` defines it. Everything between the layers (activation functions, normalisation,
    exempt layers) stays torch's float32. There are no gradients, and weights that change meanwhile are not noticed.

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
