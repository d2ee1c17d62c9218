"""
The state dict of a sparse policy: what is in it, what is refused, and what is added to one that lacks something.

Its keys are those of the stock policy, so that whatever works on a stock policy's state dict works on this one: averaging,
noise, a stock network that loads a part of it. Masks, settings of quantizers and the sparsifier's counters are no numbers that
one could add up; they travel in the metadata that ``torch`` keeps beside the keys (``state_dict._metadata``, by module), which
``torch.save`` writes and ``copy.deepcopy`` copies. A dict that was computed from a state dict has no metadata: it says
what the weights are, and the masks stay as they are.

Files of older versions have the masks among the keys; both are read.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

import torch as th

from sb3_sparse.nn.layers import SparseLayer
from sb3_sparse.quantization.fake_quantizer import Quantizer
from sb3_sparse.utils.metadata import ENTRY, N_ACTIVE, revealed

if TYPE_CHECKING:
    from sb3_sparse.nn.sparsifier import Sparsifier

__all__ = ["check_loadable", "complete", "is_computed", "is_sparse", "revealed"]

MASK = "weight_mask"
_SPARSIFIER = "sparsifier."
_UPDATER_STATE = f"{_SPARSIFIER}updater_state."
_QUANTIZER_KEYS = tuple(f"quantizer.{name}" for name in ("low", "high", *Quantizer.SETTINGS))


def is_computed(state_dict: Mapping[str, Any]) -> bool:
    """
    Whether somebody computed a state dict instead of taking it from a network as it is.

    :param state_dict: A state dict.
    :return: Whether it lacks the metadata that every network's own state dict has.
    """
    return not getattr(state_dict, "_metadata", None)


def is_sparse(state_dict: Mapping[str, Any]) -> bool:
    """
    Whether a state dict is that of a sparse network.

    :param state_dict: A state dict, :func:`revealed`.
    :return: Whether it has a mask or anything else of a sparsifier's.
    """
    return any(key.startswith(_SPARSIFIER) or key.rpartition(".")[2] == MASK for key in state_dict)


# --- What is refused ---


def check_loadable(
    sparsifier: Sparsifier, state_dict: Mapping[str, Any], paths: Mapping[str, str], parameters: Iterable[str]
) -> None:
    """
    Refuse a state dict that cannot be loaded, before anything is overwritten.

    :param sparsifier: The sparsifier of the policy that is to be loaded.
    :param state_dict: Of the whole policy, :func:`revealed`.
    :param paths: Online layer name by every path under which a sparse layer, online or target, is in the state dict.
    :param parameters: Keys of the policy's parameters.
    :raises RuntimeError: For weights of another shape, values that are not finite, masks that the layer's plan forbids, and
        entries that cannot be what they claim to be, naming the entry.
    """
    for path, name in paths.items():
        weight, mask = state_dict.get(f"{path}.weight"), state_dict.get(f"{path}.{MASK}")
        expected = tuple(sparsifier.layers[name].weight.shape)
        if isinstance(weight, th.Tensor) and tuple(weight.shape) != expected:
            raise RuntimeError(
                f"the file's network has another architecture: {path}.weight has shape {tuple(weight.shape)} there and "
                f"{expected} here. Create the model with the net_arch (and features extractor) the file was made with, "
                "or load the file with the algorithm's load(), which reads them from it"
            )
        if mask is not None:
            _check_mask(sparsifier, f"{path}.{MASK}", name, mask, _counted(state_dict, path))
        _check_quantizer(state_dict, f"{path}.quantizer.", sparsifier.layers[name].quantizer is not None)
    for key in parameters:
        value = state_dict.get(key)
        if isinstance(value, th.Tensor) and value.is_floating_point() and not bool(th.isfinite(value).all()):
            raise RuntimeError(f"{key} has values that are not finite: the file is damaged, or its training had diverged")
    for key, value in state_dict.items():
        if key.startswith(_SPARSIFIER) and not key.startswith(_UPDATER_STATE):
            whole = isinstance(value, th.Tensor) and value.dtype == th.int64 and value.ndim == 0
            if not whole or int(value) < 0:
                raise RuntimeError(f"{key} must be a counter, an int64 scalar >= 0, got {_described(value)}: damaged")


def _described(value: Any) -> str:
    if not isinstance(value, th.Tensor):
        return repr(value)
    return f"{value.dtype} of shape {tuple(value.shape)}" if value.numel() > 1 else f"{value.dtype} {value.tolist()}"


def _counted(state_dict: Mapping[str, Any], path: str) -> int | None:
    """How many positions a mask had when it was saved."""
    entry = getattr(state_dict, "_metadata", {}).get(path, {}).get(ENTRY, {})
    return entry.get(N_ACTIVE)


def _check_mask(sparsifier: Sparsifier, key: str, name: str, mask: Any, counted: int | None) -> None:
    expected, plan = tuple(sparsifier.layers[name].weight.shape), sparsifier.plan[name]
    if not isinstance(mask, th.Tensor) or mask.dtype != th.bool or tuple(mask.shape) != expected:
        raise RuntimeError(f"{key} must be bool of shape {expected}, got {_described(mask)}: the file is damaged")
    if counted is not None and int(mask.sum()) != counted:
        raise RuntimeError(f"{key} has {int(mask.sum())} positions, {counted} when it was saved: the file is damaged")
    if plan.exempt and not bool(mask.all()):
        raise RuntimeError(f"the file prunes layer {name!r}, which `dense_layers` keeps dense here")
    if not plan.pattern.is_legal(mask):
        raise RuntimeError(
            f"the file's mask of layer {name!r} breaks the pattern {plan.pattern.spec!r} of this policy; "
            "create the model with the file's `pattern`, or load the file with the algorithm's load()"
        )


def _check_quantizer(state_dict: Mapping[str, Any], prefix: str, is_quantized: bool) -> None:
    """A layer's quantizer: settings that exist, and a range that is one."""
    if f"{prefix}settings" not in state_dict:
        if f"{prefix}low" in state_dict and not is_quantized:
            raise RuntimeError(
                f"{prefix}low is the range of a quantized layer, whose settings are missing: they are in the metadata of a "
                "state dict, which a dict that was made of it lacks. Load the state dict itself, or quantize this policy first"
            )
        return
    settings, n_observed = state_dict[f"{prefix}settings"], state_dict.get(f"{prefix}n_observed")
    if not Quantizer.is_possible(settings):
        raise RuntimeError(f"{prefix}settings are no settings of a quantizer, got {_described(settings)}: damaged")
    if not isinstance(n_observed, th.Tensor) or n_observed.ndim or int(n_observed) < 0:
        raise RuntimeError(f"{prefix}n_observed must be a count, got {_described(n_observed)}: the file is damaged")
    low, high = state_dict.get(f"{prefix}low"), state_dict.get(f"{prefix}high")
    ends = isinstance(low, th.Tensor) and isinstance(high, th.Tensor) and low.ndim == high.ndim == 0
    if not ends or not bool(th.isfinite(high - low)) or bool(low > high):  # type: ignore[operator]
        raise RuntimeError(
            f"{prefix}low and {prefix}high must be the ends of a range, low <= high and finite, got {_described(low)} and "
            f"{_described(high)}: the scale would be negative or no number"
        )


# --- What is added ---


def complete(sparsifier: Sparsifier, state_dict: OrderedDict[str, Any], paths: Mapping[str, str]) -> None:
    """
    Add what a state dict lacks.

    * One of a sparse network that knows nothing of a layer's mask (the layer was not found then): the layer is dense.
    * One of a dense network: a layer's mask is the non-zero pattern of its weight if that is exactly as planned (a sparse
      network that went through a dense model), otherwise the largest weights that the plan allows.
    * One that was computed: the non-zero pattern, again if it is as planned, otherwise the mask stays as it is.

    A target gets the mask of its online layer. Ranges of quantizers stay as they are in a computed one.

    :param sparsifier: The sparsifier of the policy that is to be loaded.
    :param state_dict: Of the whole policy, :func:`revealed`; changed in place.
    :param paths: As in :func:`check_loadable`; of one layer's paths the online ones come first.
    """
    sparse, computed = is_sparse(state_dict), is_computed(state_dict)
    masks: dict[str, th.Tensor] = {}
    for path, name in paths.items():
        key, weight, layer = f"{path}.{MASK}", state_dict.get(f"{path}.weight"), sparsifier.layers[name]
        if name not in masks:
            if key in state_dict:
                masks[name] = state_dict[key]
            elif weight is None:
                masks[name] = layer.weight_mask
            elif sparse:
                masks[name] = th.ones_like(layer.weight_mask)
            else:
                masks[name] = _derive_mask(sparsifier, name, weight, keep=computed)
        state_dict.setdefault(key, masks[name])
        if computed and layer.quantizer is not None:
            state_dict.update(_quantizer_entries(layer, path))
    for name, value in revealed(sparsifier.state_dict(prefix=_SPARSIFIER)).items():
        # An updater's memory is of the network it trained, which is not the one in the file
        if computed or not name.startswith(_UPDATER_STATE):
            state_dict.setdefault(name, value)


def _quantizer_entries(layer: SparseLayer, path: str) -> dict[str, th.Tensor]:
    assert layer.quantizer is not None
    return {f"{path}.{key}": getattr(layer.quantizer, key.partition(".")[2]).clone() for key in _QUANTIZER_KEYS}


def _derive_mask(sparsifier: Sparsifier, name: str, weight: th.Tensor, *, keep: bool) -> th.Tensor:
    plan, n_planned = sparsifier.plan[name], sparsifier.n_planned[name]
    non_zero = weight != 0
    if int(non_zero.sum()) == n_planned and plan.pattern.is_legal(non_zero):
        return non_zero
    if keep:
        return sparsifier.layers[name].weight_mask
    budget = plan.budget if n_planned == plan.n_active else plan.pattern.budget(weight.shape, n_planned)
    return plan.pattern.select(weight.abs(), budget)
