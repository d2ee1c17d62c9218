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

    :param locals_: Local variables of the rollout. Looked at are, as far as they are there, its ``new_obs``, ``rewards`` and
        the last observations of episodes in ``infos``.
    :param timestep: Environment step, for the message.
    :raises NonFiniteError: If an observation or a reward is NaN or infinite.
    """
    _check_given("reward", locals_.get("rewards"), timestep)
    _check_given("observation", locals_.get("new_obs"), timestep)
    for index, info in enumerate(locals_.get("infos") or ()):
        # The environment was reset, so the last observation of the episode is not among the new ones
        if isinstance(info, Mapping) and "terminal_observation" in info:
            _check_given("observation", info["terminal_observation"], timestep, index)


def _check_given(what: str, values: Any, timestep: int, index: int | None = None) -> None:
    """Look at values of all environments, or of that of an index."""
    if isinstance(values, Mapping):
        for key, part in values.items():
            _check_given(f"{what} {key!r}", part, timestep, index)
    elif isinstance(values, np.ndarray) and values.dtype.kind == "f" and not np.isfinite(values).all():
        if index is None:
            index = int((~np.isfinite(values)).reshape(len(values), -1).any(axis=1).argmax())
            values = values[index]
        raise NonFiniteError(
            f"the {what} that environment {index} gave at environment step {timestep} is not finite: {values!r}. "
            'Mend the environment, or let the training go on with `on_nonfinite`="ignore"'
        )


def looks_finite(layers: Mapping[str, SparseLayer]) -> bool:
    """
    A look after every step, as cheap as it can be: what is wrong with a network reaches its biases in the same step or the
    next one, because the loss and with it every gradient is NaN then. (What has no part in the loss does not; an update of
    masks looks at every value.)

    :param layers: Layers of a network.
    :return: Whether the sum of all biases (of the weight, where there is none) is finite.
    """
    values = [(layer.weight if layer.bias is None else layer.bias).detach().flatten() for layer in layers.values()]
    return math.isfinite(th.cat(values).sum().item())


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
