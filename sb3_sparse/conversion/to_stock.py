"""From a sparse model to an ordinary one that loads without this package."""

from __future__ import annotations

import torch as th

from sb3_sparse.conversion.saved import QUANTIZER_PART, SPARSIFIER_PREFIX, Model, Saved
from sb3_sparse.nn.layers import SparseLayer
from sb3_sparse.policies.base import sparse_policy


def to_stock(model: Model, *, bake_quantization: bool = False) -> Model:
    """
    An ordinary model of the same algorithm with the stock policy: same weights (zeros are real zeros), same actions, same
    optimizer state. Its zip loads anywhere without this package. Nothing keeps the zeros if it trains on.

    :param model: A model with a sparse policy. Not changed.
    :param bake_quantization: A stock policy cannot quantize. True: its weights are what the quantized ones stand for,
        ``q * s``, and what comes between the layers is float, so that its actions are close to the model's but not the same.
        False: refuse a quantized model.
    :return: A new model on the same environment; its replay or rollout buffer is empty, as after ``load``.
    :raises TypeError: If the model's policy is not sparse.
    :raises ValueError: If it is quantized, without ``bake_quantization``.
    """
    policy = sparse_policy(model)
    quantized = {
        f"{path}.weight": layer
        for path, layer in policy.named_modules(remove_duplicate=False)
        if isinstance(layer, SparseLayer) and layer.quantizer is not None
    }
    if quantized and not bake_quantization:
        raise ValueError(
            "a stock policy cannot quantize, so its actions would differ from this quantized model's: pass "
            "bake_quantization=True to take the quantized weights into a float network all the same, or "
            "keep the model as it is; its zip loads where this package is installed"
        )
    saved = Saved.of(model)
    saved.use_policy(policy.stock_policy(), {})
    saved.drop(masks=True, prefix=SPARSIFIER_PREFIX)
    weights = saved.params["policy"]
    for name in [name for name in weights if QUANTIZER_PART in name]:
        del weights[name]
    with th.no_grad():
        for name, layer in quantized.items():
            assert layer.quantizer is not None
            weights[name] = layer.quantizer.dequantized(layer.weight)
    return saved.load_beside(model)
