""":class:`QuantizationAware`: train on with quantized layers (quantization-aware training)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from sb3_sparse.callbacks.clock import Clock, check_moment
from sb3_sparse.callbacks.events import QuantizationEvent
from sb3_sparse.callbacks.training import TrainingCallback
from sb3_sparse.nn.sparsifier import Sparsifier
from sb3_sparse.policies.base import sparse_policy
from sb3_sparse.policies.quantized_layers import plan_quantization, warn_of_coarse_features
from sb3_sparse.quantization.config import AFTER_TRAINING, QuantizationConfig
from sb3_sparse.quantization.fake_quantizer import Quantizer
from sb3_sparse.utils.renamed import renamed_arguments


def refuse_other_settings(sparsifier: Sparsifier, quantizers: Mapping[str, Quantizer]) -> None:
    """
    Refuse layers that are quantized in another way than asked for.

    :param sparsifier: Of the policy.
    :param quantizers: Quantizers by layer name.
    :raises ValueError: If one of the layers is quantized with other settings.
    """
    for name, quantizer in quantizers.items():
        present = sparsifier.layers[name].quantizer
        if present is not None and not present.same_settings(quantizer):
            raise ValueError(
                f"layer {name!r} is already quantized, with other settings: it has {present!r}, asked for is {quantizer!r}. "
                f"Go on with its settings, or call policy.sparsifier.set_quantizer({name!r}, None) to make it a float layer"
            )


class QuantizationAware(TrainingCallback[QuantizationEvent]):
    """
    Train on with quantized layers from a moment on: weights symmetric per output channel, inputs of layers affine per tensor
    with ranges that follow a moving average, straight-through gradients. What is computed is what integers would compute,
    see :mod:`sb3_sparse.quantization.integer`.

    The weights that are trained stay float32 Parameters, pruned ones exactly zero. Target networks are quantized with the
    ranges of the online layers and the scales of their own weights. Quantization stays with the model: it is saved, loaded
    and copied, and goes on without the callback.

    As published (Ivanov et al. 2025), quantization gets an additional 20 % of the steps: ``learn(1.2 * N)`` and the default
    ``start``.

    :param bits: Bits of a weight, 2 to 8.
    :param activation_bits: Bits of the inputs of all layers but those that see the observation, 2 to 8.
    :param input_bits: Bits of the inputs of layers that see the observation: 2 to 8, 16, or ``"float"``.
    :param start: When it begins: a float is a fraction of the training, an integer environment steps. The default, 1 / 1.2,
        leaves the last sixth.
    :param networks: A network's name or several; None for those that choose actions (``actor``, ``q_net``,
        ``quantile_net``, and a ``features_extractor`` that is shared).
    :param exempt_layers: ``"first"``, ``"last"``, a layer name, or a list of these: they stay in float. Names may be shell
        patterns.
    :param averaging: Weight of the newest batch in the moving average of ranges, in (0, 1).
    :param freeze_after: Batches after which a layer's range stays as it is; None for never.
    :param verbose: 1 says when it begins.
    :raises ValueError: For arguments out of range; on training start for unknown networks and layers, layers that cannot be
        quantized, sums that could overflow, and layers that are already quantized with other settings.
    :raises TypeError: On training start, if the policy is not sparse.
    """

    @renamed_arguments(begin="start")
    def __init__(
        self,
        bits: int = 8,
        activation_bits: int = 8,
        input_bits: int | str = 8,
        *,
        start: float | int = AFTER_TRAINING,
        networks: str | Sequence[str] | None = None,
        exempt_layers: str | Sequence[str] = (),
        averaging: float = 0.01,
        freeze_after: int | None = None,
        verbose: int = 0,
    ) -> None:
        super().__init__(verbose)
        self.config = QuantizationConfig(bits, activation_bits, input_bits, networks, exempt_layers, averaging, freeze_after)
        check_moment("start", start, optional=False)
        self.clock = Clock(start=start)
        #: Quantizers of layers that are still to be quantized, by name.
        self._waiting: dict[str, Quantizer] = {}
        self._layers: list[str] = []

    def _on_training_start(self) -> None:
        super()._on_training_start()
        policy = sparse_policy(self.model)
        quantizers = plan_quantization(policy, self.config)
        refuse_other_settings(policy.sparsifier, quantizers)
        self._layers = list(quantizers)
        # A training that is resumed has them already, with their ranges
        self._waiting = {
            name: quantizer for name, quantizer in quantizers.items() if policy.sparsifier.layers[name].quantizer is None
        }
        self.clock.set(self.model._total_timesteps)
        self._quantize_if_due()

    def _quantize_if_due(self) -> None:
        timestep = self.model.num_timesteps
        if not self._waiting or not self.clock.has_started(timestep):
            return
        policy = sparse_policy(self.model)
        sparsifier = policy.sparsifier
        warn_of_coarse_features(policy, self._waiting)
        for name, quantizer in self._waiting.items():
            sparsifier.set_quantizer(name, quantizer)
        self._log(QuantizationEvent(timestep, tuple(self._waiting), self._weight_bits()))
        self._waiting = {}

    def _weight_bits(self) -> int:
        layers = sparse_policy(self.model).sparsifier.layers
        return max(layers[name].weight_bits for name in self._layers)

    def _on_step(self) -> bool:
        super()._on_step()
        self._quantize_if_due()
        return True

    def _on_rollout_end(self) -> None:
        if self._layers:
            self.logger.record("quantization/weight_bits", self._weight_bits())
