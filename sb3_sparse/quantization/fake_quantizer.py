"""
Quantization while a network trains: the functions of :mod:`sb3_sparse.quantization.integer` in torch, with straight-through
gradients, and the module that holds a layer's precision and the range of its inputs.

A quantized layer multiplies *integers*, held in float32: sums of products below 2**24 are exact there whatever their order,
and where they could be larger, passes without gradients add up in float64. So what ``predict()`` answers on a CPU is what
the integer reference answers, to the last bit.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch as th
from torch import nn
from torch.nn import functional as F

from sb3_sparse.quantization.integer import SMALLEST_SCALE, accumulator_limit, activation_limit, weight_limit
from sb3_sparse.utils.metadata import hide, reveal

#: Integers up to this magnitude, and so sums that stay within it, are exact in float32.
FLOAT32_EXACT = 2**24
#: Sums that are too large for it are made of at most so many parts in float32; beyond that float64 is faster.
MOST_PARTS = 16


def _quotient(values: th.Tensor, divisor: float) -> th.Tensor:
    # CUDA multiplies by the reciprocal of a divisor that is a Python number
    return values / th.full_like(values, divisor)


def _at_least_smallest(scale: th.Tensor) -> th.Tensor:
    return th.where(scale >= float(SMALLEST_SCALE), scale, th.ones_like(scale))


def weight_scales(weight: th.Tensor, bits: int) -> th.Tensor:
    """
    As :func:`sb3_sparse.quantization.integer.weight_scales`.

    :param weight: Weights, float32 ``[out, ...]``.
    :param bits: Bits of a weight.
    :return: Float32 ``[out]``.
    """
    rows = weight.detach().flatten(1)
    # Twice as fast as abs().amax(), fifteen times as fast as aminmax()
    largest = th.maximum(rows.amax(1), -rows.amin(1))
    return _at_least_smallest(_quotient(largest, weight_limit(bits)))


def activation_parameters(low: th.Tensor, high: th.Tensor, bits: int) -> tuple[th.Tensor, th.Tensor]:
    """
    As :func:`sb3_sparse.quantization.integer.activation_parameters`.

    :param low: Lower end of the range, float32 scalar.
    :param high: Upper end.
    :param bits: Bits of an activation.
    :return: Scale and zero point, float32 scalars.
    """
    limit = activation_limit(bits)
    bottom, top = low.clamp_max(0), high.clamp_min(0)
    scale = _at_least_smallest(_quotient(top - bottom, limit))
    return scale, (-bottom / scale).round_().clamp_(0, limit)


def _per_channel(values: th.Tensor, ndim: int) -> th.Tensor:
    return values.view(-1, *(1,) * (ndim - 1))


class _QuantizeWeights(th.autograd.Function):
    """``rint(w / s)``; the gradient passes as if it were ``w / s``. The scale follows max|w|, so nothing saturates."""

    @staticmethod
    def forward(ctx: Any, weight: th.Tensor, scales: th.Tensor) -> th.Tensor:
        scales = _per_channel(scales, weight.ndim)
        ctx.save_for_backward(scales)
        return (weight / scales).round_()

    @staticmethod
    def backward(ctx: Any, gradient: th.Tensor) -> Any:
        (scales,) = ctx.saved_tensors
        return gradient / scales, None


class _QuantizeActivations(th.autograd.Function):
    """
    ``saturate(rint(x / s) + z) - z``; the gradient passes as if it were ``x / s`` where it does not saturate, and is zero
    where it does.
    """

    @staticmethod
    def forward(ctx: Any, values: th.Tensor, scale: th.Tensor, zero_point: th.Tensor, limit: int) -> th.Tensor:
        quantized = (values / scale).round_().add_(zero_point)
        if ctx.needs_input_grad[0]:
            ctx.save_for_backward(scale, (quantized >= 0) & (quantized <= limit))
        return quantized.clamp_(0, limit).sub_(zero_point)

    @staticmethod
    def backward(ctx: Any, gradient: th.Tensor) -> Any:
        scale, inside = ctx.saved_tensors
        return gradient / scale * inside, None, None, None


def quantize_weights(weight: th.Tensor, scales: th.Tensor) -> th.Tensor:
    """
    As :func:`sb3_sparse.quantization.integer.quantize_weights`, with straight-through gradients.

    :param weight: Weights, float32 ``[out, ...]``.
    :param scales: Their :func:`weight_scales`, float32 ``[out]``.
    :return: Integers as float32, shape of ``weight``.
    """
    return _QuantizeWeights.apply(weight, scales)


def quantize_activations(values: th.Tensor, scale: th.Tensor, zero_point: th.Tensor, bits: int) -> th.Tensor:
    """
    As :func:`sb3_sparse.quantization.integer.quantize_activations`, less the zero point, with straight-through gradients.

    :param values: Float32, any shape.
    :param scale: Scale.
    :param zero_point: Zero point.
    :param bits: Bits of an activation.
    :return: ``q - z``, integers as float32, same shape.
    """
    return _QuantizeActivations.apply(values, scale, zero_point, activation_limit(bits))


def _product(layer: nn.Linear | nn.Conv2d, inputs: th.Tensor, weight: th.Tensor) -> th.Tensor:
    if not isinstance(layer, nn.Conv2d):
        return F.linear(inputs, weight)
    if inputs.device.type != "cpu" or th.compiler.is_compiling():
        return layer._conv_forward(inputs, weight, None)
    # Where there is no oneDNN, torch takes NNPACK for 3 x 3 kernels: Winograd's algorithm, whose sums are not exact
    with th.backends.nnpack.flags(enabled=False):
        return layer._conv_forward(inputs, weight, None)


def _exact_product(layer: nn.Linear | nn.Conv2d, inputs: th.Tensor, weight: th.Tensor, limit: int) -> th.Tensor:
    """Sums of products of integers that float32 may not hold exactly, rounded to it once. ``limit``: how large they may be."""
    n_channels = weight.shape[1]
    channels_per_part = FLOAT32_EXACT // (limit // n_channels)
    if channels_per_part * MOST_PARTS < n_channels or getattr(layer, "groups", 1) > 1:
        return _product(layer, inputs.double(), weight.double()).float()
    # Each part is exact in float32, and their sum in float64
    parts = zip(
        inputs.split(channels_per_part, dim=-3 if isinstance(layer, nn.Conv2d) else -1),
        weight.split(channels_per_part, dim=1),
        strict=True,
    )
    return th.stack([_product(layer, *part) for part in parts]).sum(0, dtype=th.float64).float()


class Quantizer(nn.Module):
    """
    How one layer is quantized. It is the layer's submodule ``quantizer``, shared with the layers of target networks that
    follow it, so that they have the same ranges. Everything it knows is in buffers.

    The range of the layer's inputs follows the smallest and largest value of each batch by a moving average, ``low +=
    averaging * (batch's low - low)``, beginning with those of the first batch. Until then the layer computes in float.

    :param weight_bits: Bits of a weight, 2 to 8.
    :param input_bits: Bits of an input, 2 to 8 or 16; None: inputs stay float32.
    :param averaging: Weight of the newest batch in the moving average, in (0, 1], kept to nine decimals.
    :param freeze_after: Number of batches after which the range stays as it is; None for never.
    """

    low: th.Tensor
    high: th.Tensor
    n_observed: th.Tensor
    settings: th.Tensor
    #: Buffers that are whole numbers, which are put beside the keys of the state dict.
    SETTINGS = ("settings", "n_observed")

    def __init__(
        self, weight_bits: int = 8, input_bits: int | None = 8, averaging: float = 0.01, freeze_after: int | None = None
    ) -> None:
        super().__init__()
        self.register_buffer("low", th.tensor(0.0))
        self.register_buffer("high", th.tensor(0.0))
        #: Batches that the range has seen.
        self.register_buffer("n_observed", th.tensor(0))
        # Integers, which no change of dtype touches: an input in float has 0 bits, a range that never freezes does so after
        # -1 batches, the averaging is in billionths
        numbers = [weight_bits, input_bits or 0, -1 if freeze_after is None else freeze_after, max(1, round(averaging * 1e9))]
        self.register_buffer("settings", th.tensor(numbers))
        self._refresh()

    def _refresh(self) -> None:
        """Read the settings once: looking into a tensor at every pass would make a GPU wait."""
        weight_bits, input_bits, freeze_after, averaging = self.settings.tolist()
        self.weight_bits: int = weight_bits
        self.input_bits: int | None = input_bits or None
        self.freeze_after: int | None = None if freeze_after < 0 else freeze_after
        self.averaging: float = averaging / 1e9
        self._n_observed = int(self.n_observed)

    @staticmethod
    def is_possible(settings: Any) -> bool:
        """
        Whether settings can be those of a quantizer.

        :param settings: What a file claims to be the buffer ``settings``.
        :return: Whether a quantizer can have it.
        """
        if not isinstance(settings, th.Tensor) or settings.dtype != th.int64 or settings.shape != (4,):
            return False
        weight_bits, input_bits, freeze_after, averaging = settings.tolist()
        good_input = input_bits in (0, 16) or 2 <= input_bits <= 8
        return 2 <= weight_bits <= 8 and good_input and freeze_after >= -1 and 1 <= averaging <= 1_000_000_000

    @property
    def is_ready(self) -> bool:
        """Whether the range is known, or none is needed."""
        return self.input_bits is None or self._n_observed > 0

    def same_settings(self, other: Quantizer) -> bool:
        """
        Compare with another quantizer.

        :param other: Another quantizer.
        :return: Whether it was made with the same arguments.
        """
        return self.settings.tolist() == other.settings.tolist()

    def set_range(self, low: float, high: float, n_observed: int = 1) -> None:
        """
        Give the inputs' range, which a calibration has found or which is known.

        :param low: Lower end.
        :param high: Upper end.
        :param n_observed: Batches it was found from.
        """
        self.low.fill_(low)
        self.high.fill_(high)
        self.n_observed.fill_(n_observed)
        self._n_observed = n_observed

    def freeze(self) -> None:
        """Keep the range as it is, from now on and after loading."""
        self.settings[2] = 0
        self.freeze_after = 0

    @th.no_grad()
    def observe(self, inputs: th.Tensor) -> None:
        """
        Let the range follow a batch. A batch that holds NaN or infinite values is passed over.

        :param inputs: The layer's inputs.
        """
        frozen = self.freeze_after is not None and self._n_observed >= self.freeze_after and self._n_observed > 0
        if frozen or self.input_bits is None or inputs.numel() == 0:
            return
        low, high = th.aminmax(inputs.detach().float())
        step = self.averaging if self._n_observed else 1.0
        finite = th.isfinite(high - low)
        if self._n_observed == 0 and not bool(finite):
            return
        self.low.add_(th.where(finite, (low - self.low) * step, 0.0))
        self.high.add_(th.where(finite, (high - self.high) * step, 0.0))
        self.n_observed += 1
        self._n_observed += 1

    def input_parameters(self) -> tuple[th.Tensor, th.Tensor]:
        """
        Scale and zero point of the inputs, from their range.

        :return: Scale and zero point of the inputs, float32 scalars.
        """
        assert self.input_bits is not None
        return activation_parameters(self.low.float(), self.high.float(), self.input_bits)

    def dequantized(self, weight: th.Tensor) -> th.Tensor:
        """
        Round weights to the grid of the quantized ones.

        :param weight: A layer's weights.
        :return: What they are once quantized, ``q * s``, float32, same shape.
        """
        scales = weight_scales(weight.float(), self.weight_bits)
        return quantize_weights(weight.float(), scales) * _per_channel(scales, weight.ndim)

    def forward(self, layer: nn.Linear | nn.Conv2d, inputs: th.Tensor) -> th.Tensor:
        """
        What the layer computes, quantized, as :class:`sb3_sparse.quantization.integer.IntegerLayer` defines it.

        :param layer: The layer.
        :param inputs: Its inputs.
        :return: Its outputs, in the inputs' dtype.
        """
        weight, values = layer.weight.float(), inputs.float()
        ndim = 3 if isinstance(layer, nn.Conv2d) else 1
        if self.input_bits is None:
            outputs = _product(layer, values, self.dequantized(weight))
        else:
            scale, zero_point = self.input_parameters()
            scales = weight_scales(weight, self.weight_bits)
            integers = quantize_weights(weight, scales)
            values = quantize_activations(values, scale, zero_point, self.input_bits)
            limit = accumulator_limit(weight[0].numel(), self.weight_bits, self.input_bits)
            if limit > FLOAT32_EXACT and not th.is_grad_enabled():
                sums = _exact_product(layer, values, integers, limit)
            else:
                sums = _product(layer, values, integers)
            outputs = sums * _per_channel(scale * scales, ndim)
        if layer.bias is not None:
            # Not within the product: that could be fused with it
            outputs = outputs + _per_channel(layer.bias.float(), ndim)
        return outputs.to(inputs.dtype)

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        hide(destination, prefix, {name: destination.pop(f"{prefix}{name}") for name in self.SETTINGS})

    def _load_from_state_dict(
        self, state_dict: dict[str, Any], prefix: str, local_metadata: Mapping[str, Any], *args: Any
    ) -> None:
        reveal(state_dict, prefix, local_metadata)
        if f"{prefix}settings" not in state_dict:
            # Somebody computed it: the range stays as it is
            state_dict.update({f"{prefix}{name}": value for name, value in self._buffers.items()})
        super()._load_from_state_dict(state_dict, prefix, local_metadata, *args)
        self._refresh()

    def extra_repr(self) -> str:
        inputs = "float" if self.input_bits is None else f"{self.input_bits} bits in [{float(self.low)}, {float(self.high)}]"
        return f"weights={self.weight_bits} bits, inputs={inputs}"
