"""From a sparse policy to an ordinary one."""

from __future__ import annotations

import io
from typing import Any, TypeVar

import torch as th
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.save_util import load_from_zip_file, save_to_zip_file

from sb3_sparse.layers import SparseLayer
from sb3_sparse.plan import SparsityConfig
from sb3_sparse.policies import sparse_policy

Model = TypeVar("Model", bound=BaseAlgorithm)

MASK_SUFFIX = ".weight_mask"
QUANTIZER_PART = ".quantizer."
SPARSIFIER_PREFIX = "sparsifier."


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
    file = io.BytesIO()
    model.save(file)
    file.seek(0)
    data, loaded_params, variables = load_from_zip_file(file, device=model.device)
    assert data is not None
    params: dict[str, Any] = dict(loaded_params)
    data["policy_class"] = policy.stock_policy()
    data["policy_kwargs"] = {
        name: value for name, value in data["policy_kwargs"].items() if name not in SparsityConfig.argument_names()
    }
    params["policy"] = {
        name: value
        for name, value in params["policy"].items()
        if not name.endswith(MASK_SUFFIX) and QUANTIZER_PART not in name and not name.startswith(SPARSIFIER_PREFIX)
    }
    with th.no_grad():
        for name, layer in quantized.items():
            assert layer.quantizer is not None
            params["policy"][name] = layer.quantizer.dequantized(layer.weight)
    stock_file = io.BytesIO()
    save_to_zip_file(stock_file, data=data, params=params, pytorch_variables=variables)
    stock_file.seek(0)
    return type(model).load(stock_file, env=model.get_env(), device=model.device)
