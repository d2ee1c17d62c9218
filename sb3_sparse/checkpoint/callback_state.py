"""The state of callbacks: their attributes, but for arguments that are as they were given."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from typing import Any

from stable_baselines3.common.callbacks import BaseCallback, CallbackList, ProgressBarCallback
from stable_baselines3.common.vec_env import VecEnv

from sb3_sparse.checkpoint.environments import RESTORE_METHOD, SAVE_METHOD
from sb3_sparse.checkpoint.names import CannotEncode, Names
from sb3_sparse.checkpoint.plain import Decoder, Encoder, attributes_of, fingerprint

#: What SB3 gives every callback, and is given again.
_OF_TRAINING = frozenset({"model", "locals", "globals", "parent"})
#: Packages whose callbacks are known to prepare the rest themselves when a training starts.
_KNOWN = ("rl_zoo3", "sb3_contrib", "sb3_sparse", "stable_baselines3")


def children_of(callback: BaseCallback) -> dict[str, BaseCallback]:
    """
    Find the callbacks that a callback calls.

    :param callback: A callback.
    :return: Callbacks that it calls, by where it holds them.
    """
    found: dict[str, BaseCallback] = {}
    for name, value in attributes_of(callback).items():
        if name in _OF_TRAINING:
            continue
        items = enumerate(value) if isinstance(value, (list, tuple)) else value.items() if isinstance(value, dict) else ()
        for key, item in [(None, value), *items]:
            if isinstance(item, BaseCallback):
                found[name if key is None else f"{name}[{key}]"] = item
    return found


def walk(callback: BaseCallback, path: str = "callback") -> Iterator[tuple[str, BaseCallback]]:
    """
    Find all callbacks of a training.

    :param callback: The callback of a training.
    :param path: How it is called.
    :return: It and all that it calls, each once, with their paths.
    """
    seen: set[int] = set()
    waiting = [(path, callback)]
    while waiting:
        where, one = waiting.pop(0)
        if id(one) not in seen:
            seen.add(id(one))
            yield where, one
            waiting += [(f"{where}.{name}", child) for name, child in children_of(one).items()]


def environments_of(callback: BaseCallback) -> dict[str, VecEnv]:
    """
    Find the environments that a callback holds.

    :param callback: A callback.
    :return: Environments of its own, by attribute.
    """
    return {name: value for name, value in attributes_of(callback).items() if isinstance(value, VecEnv)}


def _values(callback: BaseCallback) -> dict[str, Any]:
    children = {name.partition("[")[0] for name in children_of(callback)}
    skip = _OF_TRAINING | children | environments_of(callback).keys() | set(getattr(callback, "not_in_checkpoints", ()))
    return {name: value for name, value in attributes_of(callback).items() if name not in skip}


def given_arguments(callback: BaseCallback) -> dict[str, Any]:
    """
    Read the arguments of a callback's constructor off the callback.

    :param callback: A callback.
    :return: Arguments of its constructor that it, its clock or its configuration keeps under their names.
    """
    parts = [callback, *(getattr(callback, name) for name in ("clock", "config") if hasattr(callback, name))]
    names = list(inspect.signature(type(callback).__init__).parameters)[1:]
    found: dict[str, Any] = {}
    for part in reversed(parts):
        found |= {name: value for name, value in attributes_of(part).items() if name in names}
    return {name: found[name] for name in names if name in found}


def _matters(argument: str) -> bool:
    """Whether another value would make another training; where files go and what is printed does not."""
    return argument not in ("verbose", "render", "warn") and not argument.endswith(("path", "folder", "dir"))


def speaks_for_itself(callback: BaseCallback) -> bool:
    """
    Whether a callback says itself what its state is.

    :param callback: A callback.
    :return: Whether it has ``checkpoint_state()`` and ``restore_checkpoint_state(state)``.
    """
    return hasattr(type(callback), SAVE_METHOD) and hasattr(type(callback), RESTORE_METHOD)


class CallbackRecorder:
    """
    Knows what the callbacks of a training were like when it began.

    :param root: The callback of the training, when all of them have prepared themselves.
    :param without: A callback that is left out: the one that writes the checkpoint.
    """

    def __init__(self, root: BaseCallback, without: BaseCallback) -> None:
        self.callbacks = {path: callback for path, callback in walk(root) if callback is not without}
        #: Fingerprint of every attribute when the training began.
        self._first = {
            path: {name: fingerprint(value) for name, value in _values(callback).items()}
            for path, callback in self.callbacks.items()
        }
        self._arguments = {
            path: {name: fingerprint(value) for name, value in given_arguments(callback).items() if _matters(name)}
            for path, callback in self.callbacks.items()
        }

    @property
    def classes(self) -> dict[str, str]:
        """Class of every callback, by path."""
        return {path: type(callback).__name__ for path, callback in self.callbacks.items()}

    def arguments(self) -> dict[str, dict[str, str | None]]:
        """Fingerprints of the arguments of each callback's constructor, as far as they are kept under their names."""
        return {path: dict(arguments) for path, arguments in self._arguments.items()}

    def unkept(self) -> list[str]:
        """What of callbacks that are not known cannot be kept, and will be as in a new one."""
        return [
            f"{type(callback).__name__}.{name}"
            for path, callback in self.callbacks.items()
            if type(callback).__module__.partition(".")[0] not in _KNOWN and not speaks_for_itself(callback)
            for name, value in self._first[path].items()
            if value is None and not callable(_values(callback)[name])
        ]

    def save(self, encoder: Encoder) -> dict[str, Any]:
        """
        Save what the callbacks remember.

        :param encoder: Encodes values.
        :return: By path, all attributes that are data.
        """
        saved = {}
        for path, callback in self.callbacks.items():
            if speaks_for_itself(callback):
                saved[path] = {"said": encoder.encode(getattr(callback, SAVE_METHOD)(), f"{path}.{SAVE_METHOD}()")}
                continue
            attributes = {}
            arguments = inspect.signature(type(callback).__init__).parameters
            for name, value in _values(callback).items():
                # Paths may be others on the other side
                if name in arguments and self._first[path].get(name) == fingerprint(value):
                    continue
                try:
                    with encoder.attempt():
                        attributes[name] = encoder.encode(value, f"{path}.{name}")
                except CannotEncode:
                    continue  # made anew when the training starts, or said then
            saved[path] = {"attributes": attributes}
        return saved


def restore_callbacks(root: BaseCallback, saved: Mapping[str, Any], decoder: Decoder) -> None:
    """
    Give the callbacks of a training what others like them remembered.

    :param root: The callback of the training that goes on.
    :param saved: What :meth:`CallbackRecorder.save` gave.
    :param decoder: Decodes it.
    """
    present = dict(walk(root))
    for path, node in saved.items():
        callback = present[path]
        if "said" in node:
            getattr(callback, RESTORE_METHOD)(decoder.decode(node["said"]))
        else:
            decoder.set_attributes(callback, node["attributes"])


# --- Making them anew ---


def constructor_arguments(callback: BaseCallback) -> dict[str, Any] | None:
    """
    Find the arguments that would make another callback like a given one.

    :param callback: A callback, before its first step.
    :return: Arguments that make another like it, as JSON; None if they cannot be read off it.
    """
    if type(callback).__module__.partition(".")[0] not in _KNOWN:
        return None
    given, arguments = given_arguments(callback), {}
    for name in list(inspect.signature(type(callback).__init__).parameters)[1:]:
        if name not in given:
            return None
        encoder = Encoder()
        try:
            arguments[name] = encoder.finish(encoder.encode(given[name], name))
        except CannotEncode:
            return None
        if encoder.arrays:
            return None
    return arguments


def makers_of(root: BaseCallback, without: BaseCallback) -> dict[str, Any]:
    """
    Say how the callbacks of a training can be made anew.

    :param root: The callback of a training.
    :param without: The one that writes the checkpoint.
    :return: What :func:`make_callbacks` makes the others from, as JSON.
    """
    if isinstance(root, CallbackList) and any(isinstance(one, ProgressBarCallback) for one in root.callbacks):
        root = root.callbacks[0]  # learn() added it, and does so again
    if root is without:
        return {"place": None, "callbacks": None}
    others = root.callbacks if isinstance(root, CallbackList) else [root]
    made = [
        {"class": f"{type(one).__module__}:{type(one).__qualname__}", "arguments": constructor_arguments(one)}
        for one in others
        if one is not without
    ]
    return {"place": others.index(without) if without in others else len(others), "callbacks": made}


def make_callbacks(makers: Mapping[str, Any], names: Names) -> list[BaseCallback] | None:
    """
    Make the callbacks of a training anew.

    :param makers: What :func:`makers_of` gave.
    :param names: Finds their classes.
    :return: New callbacks; None if there was no list of them.
    :raises ValueError: If one of them cannot be made.
    """
    if makers["callbacks"] is None:
        return None
    made = []
    for maker in makers["callbacks"]:
        name = maker["class"].rpartition(":")[2]
        if maker["arguments"] is None:
            raise ValueError(
                f"the run had the callback {name}, which cannot be made from the checkpoint: give `callback`, all callbacks "
                "of the run in their order, made as they were"
            )
        arguments = Decoder(maker["arguments"], {}, names).decode(maker["arguments"])
        made.append(names.find(maker["class"], BaseCallback)(**arguments))
    return made
