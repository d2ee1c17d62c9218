"""Arguments that have a new name: the old one goes on working, with a warning."""

from __future__ import annotations

import functools
import inspect
import warnings
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

Constructor = TypeVar("Constructor", bound=Callable[..., None])


def renamed_arguments(**new_names: str) -> Callable[[Constructor], Constructor]:
    """
    Let a constructor take arguments under their old names too. Its signature shows the new names alone.

    :param new_names: New name by old name.
    :return: Decorator of ``__init__``. An old name gives a ``DeprecationWarning`` that says the new one; both names together
        are a ``TypeError``.
    """

    def decorate(constructor: Constructor) -> Constructor:
        names = list(inspect.signature(constructor).parameters)

        @functools.wraps(constructor)
        def with_old_names(*args: Any, **kwargs: Any) -> None:
            owner = type(args[0]).__name__
            for old, new in new_names.items():
                if old not in kwargs:
                    continue
                if new in kwargs or names.index(new) < len(args):
                    raise TypeError(f"{owner} got both `{new}` and `{old}`, its old name: leave `{old}` out")
                warnings.warn(
                    f"the argument `{old}` of {owner} is now called `{new}`; the old name will go",
                    DeprecationWarning,
                    stacklevel=2,
                )
                kwargs[new] = kwargs.pop(old)
            constructor(*args, **kwargs)

        with_old_names.new_names = new_names  # type: ignore[attr-defined]
        return with_old_names  # type: ignore[return-value]

    return decorate


def with_new_names(cls: type, kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """
    Write keyword arguments of a class under their present names, without a warning.

    :param cls: A class, some of whose arguments may have been renamed by :func:`renamed_arguments`.
    :param kwargs: Keyword arguments.
    :return: The same, in the same order. Where both names are there, both stay: the class refuses them.
    """
    new_names: Mapping[str, str] = getattr(getattr(cls, "__init__", None), "new_names", {})
    return {name if new_names.get(name) in (None, *kwargs) else new_names[name]: value for name, value in kwargs.items()}
