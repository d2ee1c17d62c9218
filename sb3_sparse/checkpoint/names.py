"""Classes and functions by name: what a file may ask for, and how it is found again."""

from __future__ import annotations

import enum
import importlib
import types
from collections.abc import Callable
from typing import Any, Generic

#: Packages whose classes a file may name without anybody's leave: libraries that this one stands on.
KNOWN_PACKAGES = (
    "ale_py",
    "builtins",
    "collections",
    "gymnasium",
    "numpy",
    "rl_zoo3",
    "sb3_contrib",
    "sb3_sparse",
    "stable_baselines3",
    "torch",
)


class CannotEncode(ValueError):
    """
    A value that JSON and arrays cannot hold.

    :param path: Where it is.
    :param what: What it is.
    """

    def __init__(self, path: str, what: str) -> None:
        super().__init__(f"{path} is {what}")
        self.path = path
        self.what = what


def name_of(value: type | Callable[..., Any]) -> str:
    """
    Name a class or a function so that another process finds it.

    :param value: A class or a function of a module.
    :return: ``"module:qualified.name"``.
    :raises LookupError: If it cannot be found again under that name in another process.
    """
    name = f"{value.__module__}:{value.__qualname__}"
    if value.__module__ == "__main__" or "<" in value.__qualname__ or _lookup(name) is not value:
        raise LookupError(f"{name} cannot be imported in another process")
    return name


def _package(name: str) -> str:
    return name.partition(":")[0].partition(".")[0]


def _lookup(name: str) -> Any:
    module, _, path = name.partition(":")
    try:
        found: Any = importlib.import_module(module)
        for part in path.split("."):
            found = getattr(found, part)
    except (ImportError, AttributeError) as error:
        raise LookupError(f"{name} cannot be found: {error}") from error
    return found


class Names:
    """
    Finds classes and functions that a file names.

    :param trusted: Whether the file may name whatever can be imported. Otherwise it may name classes of
        :data:`KNOWN_PACKAGES` and of ``packages``.
    :param packages: Further packages, by their top-level names.
    """

    def __init__(self, *, trusted: bool, packages: frozenset[str] = frozenset()) -> None:
        self.trusted = trusted
        self._own = packages
        self.packages = packages | frozenset(KNOWN_PACKAGES)

    def may_make(self, name: str) -> bool:
        """
        Whether a file may ask for an instance of a class.

        :param name: What :func:`name_of` gave.
        :return: Whether a file may ask for an instance of that class, whatever it is.
        """
        return self.trusted or _package(name) in self._own

    def find(self, name: str, kind: type = object) -> Any:
        """
        Find the class or function of a name.

        :param name: What :func:`name_of` gave.
        :param kind: What a class must be a subclass of.
        :return: The class or function.
        :raises ValueError: If it is not found, not allowed, or of another kind.
        """
        if not self.trusted and _package(name) not in self.packages:
            raise ValueError(f"{name!r} is of no package that a file may name without being trusted")
        try:
            found = _lookup(name)
        except LookupError as error:
            raise ValueError(str(error)) from error
        if not isinstance(found, type):
            if self.trusted and callable(found) and kind is object:
                return found
            raise ValueError(f"{name!r} is no class")
        if not issubclass(found, kind):
            raise ValueError(f"{name!r} is no {kind.__name__}")
        return found


#: What only classes of compiled modules have among their attributes.
_COMPILED = (
    types.BuiltinFunctionType,
    types.ClassMethodDescriptorType,
    types.MethodDescriptorType,
    types.WrapperDescriptorType,
)


def is_python_class(cls: type) -> bool:
    """
    Whether the instances of a class are made of nothing but attributes.

    :param cls: A class.
    :return: Whether an instance is made of nothing but its attributes: it was written in Python, and so was all it extends.
    """
    if issubclass(cls, (enum.Enum, BaseException)):
        return False
    written = [base for base in cls.__mro__ if base not in (object, Generic)]
    heap_type = 1 << 9
    slots = [base.__dict__.get("__slots__", ()) for base in written]
    n_slots = sum(1 if isinstance(names, str) else len(tuple(names)) for names in slots)
    # An instance has room for a dictionary, weak references and slots, and for nothing else
    room = object.__basicsize__ + 8 * (2 + n_slots)
    return cls.__basicsize__ <= room and all(
        base.__flags__ & heap_type and not any(isinstance(value, _COMPILED) for value in vars(base).values())
        for base in written
    )
