"""The compiled module, where there is one."""

from __future__ import annotations

import importlib
import platform
import warnings
from typing import Any

#: The compiled module ``sb3_sparse.engine._native``, None where it was not built. It takes addresses and checks nothing.
module: Any = None
_REASON = ""
#: As in ``src/bindings.cpp``.
_INTERFACE = 4
try:
    module = importlib.import_module("sb3_sparse.engine._native")
    if getattr(module, "INTERFACE", 1) != _INTERFACE:
        module = None
        raise ImportError("the compiled module was built from other sources than these")
except ImportError as error:
    _REASON = str(error)

_noticed: set[str] = set()


def available() -> bool:
    """Whether the compiled kernels are there."""
    return module is not None


def why_not() -> str:
    """
    Explain why there are no compiled kernels.

    :return: Why the compiled kernels are not there, and what to do.
    """
    return (
        f"the native engine is not there ({_REASON}); install a C++17 compiler (GCC 12 or later, or clang) and reinstall "
        "sb3-sparse with pip, or keep engine='torch'"
    )


def notice(what: str) -> None:
    """
    Say something once per process.

    :param what: What to say.
    """
    if what not in _noticed:
        _noticed.add(what)
        warnings.warn(what, stacklevel=3)


def instruction_set() -> str | None:
    """
    Name the instruction set that the kernels use.

    :return: Name of the instruction set the kernels use (``"baseline"``, ``"avx2"``, ``"avx512"``), None without kernels.
    """
    return module.active_set() if available() else None


def processor() -> str:
    """
    Name this machine's processor.

    :return: The processor's name, as measurements are told apart by it.
    """
    try:
        with open("/proc/cpuinfo") as file:
            for line in file:
                if line.startswith("model name"):
                    return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()
