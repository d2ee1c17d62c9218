""":func:`quantize`: a trained model as a quantized one, with ranges from observations that it is shown."""

from __future__ import annotations

from collections.abc import Sequence

from sb3_sparse.conversion.calibration import Model, Observations, _calibrate, _given, _replayed, _rolled_out
from sb3_sparse.conversion.saved import Saved
from sb3_sparse.policies.base import SparsePolicyMixin, policy_of, sparse_policy
from sb3_sparse.policies.quantized_layers import plan_quantization, warn_of_coarse_features
from sb3_sparse.quantization.config import QuantizationConfig
from sb3_sparse.utils.checks import is_number, require_integer
from sb3_sparse.utils.randomness import undisturbed_randomness


def quantize(
    model: Model,
    bits: int = 8,
    activation_bits: int = 8,
    input_bits: int | str = 8,
    *,
    networks: str | Sequence[str] | None = None,
    exempt_layers: str | Sequence[str] = (),
    data: Observations | None = None,
    n_samples: int = 4096,
    percentile: float | None = None,
    averaging: float = 0.01,
    freeze_after: int | None = None,
) -> Model:
    """
    Quantize a trained model (post-training quantization). Observations say which ranges the layers' inputs have: ``data``,
    or the model's replay buffer, or fresh rollouts in the model's environment with the model's own actions, in this order.

    The result can be used, saved, and trained on, which is quantization-aware training.

    :param model: A model with a sparse policy. Not changed, except that after rollouts its environment, which they share,
        is reset when training goes on.
    :param bits: Bits of a weight, 2 to 8.
    :param activation_bits: Bits of the inputs of all layers but those that see the observation, 2 to 8.
    :param input_bits: Bits of the inputs of layers that see the observation: 2 to 8, 16, or ``"float"``.
    :param networks: A network's name or several; None for those that choose actions.
    :param exempt_layers: ``"first"``, ``"last"``, a layer name, or a list of these: they stay in float.
    :param data: Observations as the policy sees them (normalised, if it is trained with ``VecNormalize``), one per row, or
        a dict of such arrays.
    :param n_samples: How many observations to take from the replay buffer or from rollouts.
    :param percentile: None: ranges reach from the smallest to the largest value met. Otherwise, in (50, 100), from its
        complement to this percentile, averaged over batches of 256: outliers saturate.
    :param averaging: For training on: weight of the newest batch in the moving average of ranges.
    :param freeze_after: For training on: batches after which ranges stay as they are; None for never.
    :return: A new model on the same environment; its replay or rollout buffer is empty, as after ``load``.
    :raises TypeError: If the model's policy is not sparse.
    :raises ValueError: For arguments out of range, unknown networks or layers, layers that cannot be quantized, sums that
        could overflow, layers that are quantized already, and calibration without data.
    """
    config = QuantizationConfig(bits, activation_bits, input_bits, networks, exempt_layers, averaging, freeze_after)
    require_integer("n_samples", n_samples, low=1)
    if percentile is not None and not (is_number(percentile) and 50 < percentile < 100):
        raise ValueError(f"`percentile` must be None or a number in (50, 100), got {percentile!r}")
    if not isinstance(policy_of(model), SparsePolicyMixin):
        raise TypeError(
            f"the model's policy is {type(model.policy).__name__}, whose layers cannot be quantized: make it a sparse policy "
            "first, with nothing pruned, by sb3_sparse.sparsify(model, sparsity=0)"
        )
    source = sparse_policy(model)
    quantizers = plan_quantization(source, config)
    for name in quantizers:
        if source.sparsifier.layers[name].quantizer is not None:
            raise ValueError(
                f"layer {name!r} is quantized already; give other `networks` or `exempt_layers`, or call "
                f"policy.sparsifier.set_quantizer({name!r}, None) to make it a float layer first"
            )
    with undisturbed_randomness([source.device]):
        if data is not None:
            observations: Observations | None = _given(data, source)
        else:
            observations = _replayed(model, n_samples)
            if observations is None:
                observations = _rolled_out(model, n_samples)
        if observations is None:
            raise ValueError(
                "calibration without data: the model has neither a filled replay buffer nor an environment. Give "
                "observations as `data`, or an environment by model.set_env(env)"
            )
        copy = Saved.of(model).load_beside(model)
        policy = sparse_policy(copy)
        warn_of_coarse_features(policy, quantizers)
        ranges = _calibrate(policy, {name: policy.sparsifier.layers[name] for name in quantizers}, observations, percentile)
    for name, quantizer in quantizers.items():
        if not quantizer.is_ready:  # the range of an image is known, not found
            quantizer.set_range(*ranges[name].ends, n_observed=len(ranges[name].lows))
        policy.sparsifier.set_quantizer(name, quantizer)
    return copy
