"""NaN and infinity: a training that has come to them is stopped at that step, saying where they are."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch as th

from sb3_sparse.nn.layers import SparseLayer

#: What a callback does about values that are not finite.
ON_NONFINITE = ("raise", "ignore")


class NonFiniteError(ValueError):
    """A training has come to NaN or infinite values."""


def check_environment(locals_: Mapping[str, Any], timestep: int) -> None:
    """
    Look at what the environments have just given to the agent.

    :param locals_: Local variables of the rollout; its ``new_obs`` and ``rewards`` are looked at, as far as they are there.
    :param timestep: Environment step, for the message.
    :raises NonFiniteError: If an observation or a reward is NaN or infinite.
    """
    observations = locals_.get("new_obs")
    parts = observations if isinstance(observations, Mapping) else {"": observations}
    given = [("observation" + (f" {key!r}" if key else ""), value) for key, value in parts.items()]
    for what, values in (*given, ("reward", locals_.get("rewards"))):
        if not isinstance(values, np.ndarray) or values.dtype.kind != "f" or np.isfinite(values).all():
            continue
        finite = np.isfinite(values).reshape(len(values), -1)
        index = int((~finite).any(axis=1).argmax())
        raise NonFiniteError(
            f"the {what} that environment {index} gave at environment step {timestep} is not finite: {values[index]!r}. "
            'Mend the environment, or let the training go on with `on_nonfinite`="ignore"'
        )


def looks_finite(layers: Mapping[str, SparseLayer]) -> bool:
    """
    A look after every step, as cheap as it can be: whatever is wrong with a network reaches its biases in the same step or
    the next one, because the loss and with it every gradient is NaN then.

    :param layers: Layers of a network.
    :return: Whether the sum of every bias (of the weight, where there is none) is finite.
    """
    total = 0.0
    for layer in layers.values():
        total += (layer.weight if layer.bias is None else layer.bias).detach().sum().item()
    return math.isfinite(total)


def refuse_nonfinite(network: str, step: int, tensors: Mapping[tuple[str, str], th.Tensor | None]) -> None:
    """
    Look at every value.

    :param network: Name of the network, for the message.
    :param step: Step of the network's optimizer, for the message.
    :param tensors: What to look at, by layer name and what it is.
    :raises NonFiniteError: Naming network, layer and step of the first that holds NaN or infinity.
    """
    for (layer, what), values in tensors.items():
        if values is None:
            continue
        n_bad = values.numel() - int(values.isfinite().sum())
        if n_bad:
            raise NonFiniteError(
                f"network {network!r}, layer {layer!r}, step {step} of its optimizer: {n_bad} of the {values.numel()} values "
                f"of its {what} are NaN or infinite. The training has diverged, or it was given such observations or rewards; "
                'to let it go on, pass `on_nonfinite`="ignore"'
            )
