"""What of a module's state travels beside the keys of its state dict, in the metadata that torch keeps there by module."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from typing import Any

#: Name of our part of a module's metadata.
ENTRY = "sb3_sparse"
#: How many positions a mask has, so that a damaged one is noticed. It has no key of its own.
N_ACTIVE = "n_active"


def hide(state_dict: Any, prefix: str, values: Mapping[str, Any]) -> None:
    """
    Put values beside the keys; as keys into a dict that has no metadata.

    :param state_dict: The state dict that a module's values are put into, changed in place.
    :param prefix: Path of the module with a dot behind it, or nothing.
    :param values: By name, as they are within the module.
    """
    metadata = getattr(state_dict, "_metadata", None)
    if metadata is None:
        state_dict.update({f"{prefix}{name}": value for name, value in values.items() if name != N_ACTIVE})
    else:
        metadata.setdefault(prefix[:-1], {})[ENTRY] = dict(values)


def reveal(state_dict: dict[str, Any], prefix: str, local_metadata: Mapping[str, Any]) -> None:
    """
    Put the values of one module that were beside the keys among them, unless they are there.

    :param state_dict: What is loaded into the module, changed in place.
    :param prefix: Path of the module with a dot behind it, or nothing.
    :param local_metadata: Its part of the metadata.
    """
    for name, value in local_metadata.get(ENTRY, {}).items():
        if name != N_ACTIVE:
            state_dict.setdefault(f"{prefix}{name}", value)


def revealed(state_dict: Mapping[str, Any]) -> OrderedDict[str, Any]:
    """
    A copy of a state dict with all that is beside its keys among them.

    :param state_dict: A state dict; any other dict is only copied.
    :return: The copy; it has the metadata, too.
    """
    result = OrderedDict(state_dict)
    metadata = getattr(state_dict, "_metadata", None)
    if metadata is not None:
        result._metadata = metadata  # type: ignore[attr-defined]
        for path, local_metadata in metadata.items():
            reveal(result, f"{path}." if path else "", local_metadata)
    return result


def emptied(state_dict: Mapping[str, Any]) -> OrderedDict[str, Any]:
    """
    As :func:`revealed`, with nothing left beside the keys: for whoever rewrites a state dict.

    :param state_dict: A state dict.
    :return: A copy.
    """
    result = revealed(state_dict)
    metadata = OrderedDict(
        (path, {name: value for name, value in own.items() if name != ENTRY})
        for path, own in getattr(state_dict, "_metadata", {}).items()
    )
    result._metadata = metadata  # type: ignore[attr-defined]
    return result
