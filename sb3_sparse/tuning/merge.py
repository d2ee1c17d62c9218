"""
One environment's section of an rl-zoo3 configuration, in the hands of somebody who changes parts of it: what is not changed
stays as it was written, strings that rl-zoo3 evaluates included.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.callbacks import BaseCallback

from sb3_sparse.policies.algorithms import SPARSE_POLICIES
from sb3_sparse.policies.base import SparsePolicyMixin
from sb3_sparse.utils.renamed import with_new_names
from sb3_sparse.zoo.presets import callback_entries, find_class
from sb3_sparse.zoo.sections import plain

#: Entries that rl-zoo3 evaluates if they are strings.
EVALUATED = ("policy_kwargs", "replay_buffer_class", "replay_buffer_kwargs")


def _is_plain(value: Any) -> bool:
    """Whether a YAML file holds it without Python's help."""
    if isinstance(value, dict):
        return all(isinstance(key, str) and _is_plain(item) for key, item in value.items())
    if isinstance(value, list):
        return all(_is_plain(item) for item in value)
    return value is None or isinstance(value, (str, bool, int, float))


def source(value: Any) -> str:
    """
    Write a value as Python.

    :param value: A value.
    :return: An expression that rl-zoo3 evaluates to it.
    """
    if isinstance(value, dict):
        return f"{{{', '.join(f'{key!r}: {source(item)}' for key, item in value.items())}}}"
    if isinstance(value, list):
        return f"[{', '.join(source(item) for item in value)}]"
    if isinstance(value, type):
        if value.__module__.startswith("torch.nn."):
            return f"nn.{value.__name__}"
        return f"__import__({value.__module__!r}, fromlist=['']).{value.__qualname__}"
    return repr(value)


def evaluate(value: Any) -> Any:
    """
    Evaluate an entry as rl-zoo3 does.

    :param value: An entry of :data:`EVALUATED`.
    :return: What it means: strings are evaluated where rl-zoo3 evaluates them.
    :raises ValueError: If the string does not evaluate.
    """
    if not isinstance(value, str):
        return value
    from rl_zoo3 import exp_manager

    try:
        return eval(value, dict(vars(exp_manager)))
    except Exception as error:
        raise ValueError(f"{value!r} is not an expression that rl-zoo3 can evaluate: {error!r}") from error


def write_kwargs(written: Any, old: Mapping[str, Any], new: Mapping[str, Any]) -> Any:
    """
    Write changed keyword arguments as they were written.

    :param written: How the keyword arguments were written: a mapping, a string that is evaluated, or None.
    :param old: What that means.
    :param new: What it shall mean.
    :return: Something that means it: a mapping if YAML can hold one, else a string with what was written inside it.
    """
    if all(_is_plain(value) for value in new.values()):
        return plain(new)
    changes = {key: value for key, value in new.items() if key not in old or old[key] != value}
    kept = [key for key in old if key in new]
    if not isinstance(written, str) or len(kept) < len(old):
        # Nothing of the text is of use, or something must go
        return source(dict(new))
    return f"{{**({written}), **{source(changes)}}}" if changes else written


class Callbacks:
    """
    The ``callback`` entry of a section.

    :param written: See :func:`sb3_sparse.zoo.presets.callback_entries`.
    :raises ValueError: See there.
    """

    def __init__(self, written: Any) -> None:
        # Arguments under their present names, so that what a search says takes their place
        self._entries = [
            (name, with_new_names(self._class(name), plain(kwargs)) if kwargs else {})
            for name, kwargs in callback_entries(written)
        ]

    @staticmethod
    def _class(name: Any) -> type[BaseCallback]:
        return type(name) if isinstance(name, BaseCallback) else find_class(name)

    def of(self, *classes: type[BaseCallback]) -> list[tuple[type[BaseCallback], dict[str, Any]]]:
        """
        Find entries.

        :param classes: Callback classes, exactly.
        :return: The class and the keyword arguments of every entry of these classes; changing these changes the entry.
        """
        return [(self._class(name), kwargs) for name, kwargs in self._entries if self._class(name) in classes]

    def remove(self, *classes: type[BaseCallback]) -> int:
        """
        Remove entries.

        :param classes: Callback classes, exactly.
        :return: Where the first of them was, the front if there was none.
        """
        where = [index for index, (name, _) in enumerate(self._entries) if self._class(name) in classes]
        self._entries = [entry for index, entry in enumerate(self._entries) if index not in where]
        return where[0] if where else 0

    def put(self, index: int, callback: type[BaseCallback], kwargs: dict[str, Any]) -> None:
        """
        Insert an entry.

        :param index: Where.
        :param callback: Class that ``sb3_sparse`` exports.
        :param kwargs: Its keyword arguments.
        """
        self._entries.insert(index, (f"sb3_sparse.{callback.__name__}", kwargs))

    def written(self) -> list[Any]:
        """
        Write the entry down.

        :return: The entry as YAML holds it.
        """
        return [{name: kwargs} if kwargs else name for name, kwargs in self._entries]


def accepted(callback: type[BaseCallback], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """
    Pick the keyword arguments that a callback takes.

    :param callback: A callback class.
    :param kwargs: Keyword arguments of another.
    :return: Those that it takes too.
    """
    known = inspect.signature(callback).parameters
    return {name: value for name, value in kwargs.items() if name in known}


def supported_algorithms() -> dict[str, type[BaseAlgorithm]]:
    """
    List the algorithms.

    :return: Algorithms that have sparse policies, by rl-zoo3's names.
    """
    from rl_zoo3.utils import ALGOS

    return {name: algorithm for name, algorithm in ALGOS.items() if algorithm in SPARSE_POLICIES}


def algorithm_of(algo: str) -> type[BaseAlgorithm]:
    """
    Find an algorithm.

    :param algo: rl-zoo3's name of an algorithm.
    :return: The algorithm.
    :raises ValueError: If it has no sparse policies; the message lists those that have.
    """
    supported = supported_algorithms()
    if algo not in supported:
        raise ValueError(f"`algo`={algo!r} is not supported; supported are: {', '.join(supported)}")
    return supported[algo]


def policy_of(algo: str, written: Any) -> type:
    """
    Find a policy.

    :param algo: rl-zoo3's name of an algorithm.
    :param written: The ``policy`` of a section: an alias, a dotted path, or a class.
    :return: The policy class.
    :raises ValueError: If there is none of that name.
    """
    if isinstance(written, type):
        return written
    aliases = algorithm_of(algo).policy_aliases
    if isinstance(written, str) and "." in written:
        return find_class(written)
    if written not in aliases:
        raise ValueError(f"`policy`={written!r} is unknown to {algo}; it knows: {', '.join(aliases)}, or a dotted path")
    return aliases[written]


def sparse_twin(algo: str, policy: type) -> str:
    """
    Find the sparse policy of a stock one.

    :param algo: rl-zoo3's name of an algorithm.
    :param policy: A policy class of it.
    :return: Dotted path of the sparse policy that extends it, or of itself if it is sparse.
    :raises ValueError: If there is none.
    """
    for sparse in SPARSE_POLICIES[algorithm_of(algo)]:
        if policy in (sparse, sparse.stock_policy()):
            return f"sb3_sparse.{sparse.__name__}"
    if issubclass(policy, SparsePolicyMixin):
        return f"{policy.__module__}.{policy.__qualname__}"
    raise ValueError(
        f"`policy`={policy.__module__}.{policy.__qualname__} has no sparse counterpart: put SparsePolicyMixin in front of it, "
        "class MySparsePolicy(sb3_sparse.SparsePolicyMixin, MyPolicy)"
    )
