"""Before a policy's state dict is loaded: what breaks a promise is refused, what a dense one lacks is added."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch as th

if TYPE_CHECKING:
    from sb3_sparse.nn.sparsifier import Sparsifier


def check_loadable(sparsifier: Sparsifier, state_dict: Mapping[str, Any], paths: Mapping[str, str]) -> None:
    """
    Refuse a state dict that cannot be loaded, before anything is overwritten.

    :param sparsifier: The sparsifier of the policy that is to be loaded.
    :param state_dict: Of the whole policy.
    :param paths: Online layer name by every path under which a sparse layer, online or target, is in the state dict.
    :raises RuntimeError: For weights of another shape and for masks that the layer's plan forbids, saying what to do.
    """
    for path, name in paths.items():
        weight, mask = state_dict.get(f"{path}.weight"), state_dict.get(f"{path}.weight_mask")
        expected = tuple(sparsifier.layers[name].weight.shape)
        if weight is not None and tuple(weight.shape) != expected:
            raise RuntimeError(
                f"the file's network has another architecture: {path}.weight has shape {tuple(weight.shape)} there and "
                f"{expected} here. Create the model with the net_arch (and features extractor) the file was made with, "
                "or load the file with the algorithm's load(), which reads them from it"
            )
        if mask is None:
            continue
        if sparsifier.plan[name].exempt and not bool(mask.all()):
            raise RuntimeError(f"the file prunes layer {name!r}, which `dense_layers` keeps dense here")
        if not sparsifier.plan[name].pattern.is_legal(mask):
            raise RuntimeError(
                f"the file's mask of layer {name!r} breaks the pattern {sparsifier.plan[name].pattern.spec!r} of this policy; "
                "create the model with the file's `pattern`, or load the file with the algorithm's load()"
            )


def complete(sparsifier: Sparsifier, state_dict: dict[str, Any], paths: Mapping[str, str]) -> None:
    """
    Add what a dense policy's state dict lacks. A missing mask is the non-zero pattern of the weight if that is exactly
    as planned (a sparse network that went through a dense model), otherwise the largest weights that the plan allows;
    a target gets the mask of its online layer.

    :param sparsifier: The sparsifier of the policy that is to be loaded.
    :param state_dict: Of the whole policy, changed in place.
    :param paths: As in :meth:`check_loadable`; of one layer's paths the online ones come first.
    """
    masks: dict[str, th.Tensor] = {}
    for path, name in paths.items():
        key = f"{path}.weight_mask"
        if name not in masks:
            weight = state_dict.get(f"{path}.weight")
            masks[name] = state_dict[key] if key in state_dict else _derive_mask(sparsifier, name, weight)
        state_dict.setdefault(key, masks[name])
    for name, value in sparsifier.state_dict(prefix="sparsifier.").items():
        # An updater's memory is of the network it trained, which is not the one in the file
        if not name.startswith("sparsifier.updater_state."):
            state_dict.setdefault(name, value)


def _derive_mask(sparsifier: Sparsifier, name: str, weight: th.Tensor | None) -> th.Tensor:
    pattern, n_planned = sparsifier.plan[name].pattern, sparsifier.n_planned[name]
    if weight is None:
        return sparsifier.layers[name].weight_mask
    non_zero = weight != 0
    if int(non_zero.sum()) == n_planned and pattern.is_legal(non_zero):
        return non_zero
    plan = sparsifier.plan[name]
    budget = plan.budget if n_planned == plan.n_active else pattern.budget(weight.shape, n_planned)
    return pattern.select(weight.abs(), budget)
