"""What a user may ask of quantization."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch as th
from torch import nn

from sb3_sparse.quantization.fake_quantizer import Quantizer
from sb3_sparse.quantization.integer import INT32_LIMIT, accumulator_limit, activation_limit, weight_limit
from sb3_sparse.utils.checks import is_integer, require_integer, require_positive

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
        bits = self.input_bits
        if bits != FLOAT and not (is_integer(bits) and (bits == 16 or 2 <= int(bits) <= 8)):
            raise ValueError(f"`input_bits` must be an integer in [2, 8], 16 or 'float', got {self.input_bits!r}")
        if self.networks is not None:
            _check_names("networks", self.networks)
        _check_names("exempt_layers", self.exempt_layers)
        require_positive("averaging", self.averaging, below=1)
        if self.freeze_after is not None:
            require_integer("freeze_after", self.freeze_after, low=1)

    def make_quantizer(self, layer: nn.Module, name: str, *, sees_observation: bool) -> Quantizer:
        """
        Make the quantizer of a layer.

        :param layer: A sparse layer.
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
        assert isinstance(layer.weight, th.Tensor)
        fan_in = layer.weight[0].numel()
        if input_bits is not None and accumulator_limit(fan_in, self.bits, input_bits) > INT32_LIMIT:
            possible = INT32_LIMIT // (weight_limit(self.bits) * activation_limit(input_bits))
            raise ValueError(
                f"layer {name!r} could overflow its int32 sums: with `bits`={self.bits} and `{argument}`={input_bits} at most "
                f"{possible} products may be added up, it adds {fan_in}. Use fewer bits, `input_bits`='float' (if it sees the "
                "observation), or name the layer in `exempt_layers`"
            )
        return Quantizer(self.bits, input_bits, self.averaging, self.freeze_after).to(layer.weight.device)
