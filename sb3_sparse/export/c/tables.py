"""Constant tables in C."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

_TYPES = {
    np.dtype(np.float32): "float",
    np.dtype(np.float64): "double",
    np.dtype(np.int8): "int8_t",
    np.dtype(np.uint8): "uint8_t",
    np.dtype(np.int16): "int16_t",
    np.dtype(np.uint16): "uint16_t",
    np.dtype(np.int32): "int32_t",
    np.dtype(np.uint32): "uint32_t",
}
_WIDTH = 120
_LARGEST_FLOAT = np.finfo(np.float32).max


def literal(value: Any) -> str:
    """
    Write a float32 number as a C constant.

    :param value: A float32 number, infinite ones included.
    :return: A C constant of exactly this value, the largest number for infinity.
    """
    text = f"{np.clip(np.float32(value), -_LARGEST_FLOAT, _LARGEST_FLOAT):.9g}"
    return f"{text}f" if "." in text or "e" in text else f"{text}.0f"


def _double(value: Any) -> str:
    text = f"{float(value):.17g}"
    return text if "." in text or "e" in text else f"{text}.0"


class Tables:
    """
    Collects them.

    :param aligned: Whether they begin at a cache line, for vectors.
    """

    def __init__(self, *, aligned: bool) -> None:
        self._aligned = aligned
        self._texts: list[str] = []
        #: Bytes of all of them, those for AVX-512 alone not counted.
        self.n_bytes = 0

    def add(self, name: str, values: NDArray, *, kind: str | None = None, guard: str | None = None) -> str:
        """
        Add a table.

        :param name: Its name.
        :param values: Numbers, flat or not.
        :param kind: Type of an item, None: what goes with the array's dtype.
        :param guard: A macro that must be defined for the table to be there.
        :return: Its name.
        """
        values = np.ascontiguousarray(values).ravel()
        if len(values) == 0:
            values = np.zeros(1, values.dtype)  # C knows no empty arrays
        write: Callable[[Any], str] = {np.dtype(np.float32): literal, np.dtype(np.float64): _double}.get(values.dtype, str)
        lines, line = [], "   "
        for value in values:
            item = f" {write(value)},"
            if len(line) + len(item) > _WIDTH:
                lines.append(line)
                line = "   "
            line += item
        lines.append(line.rstrip(","))
        align = "SB3S_ALIGNED " if self._aligned else ""
        text = f"static const {kind or _TYPES[values.dtype]} {name}[{len(values)}] {align}= {{\n" + "\n".join(lines) + "\n};"
        if guard is not None:
            text = f"#ifdef {guard}\n{text}\n#endif"
        else:
            self.n_bytes += values.nbytes
        self._texts.append(text)
        return name

    def text(self) -> str:
        """All of them."""
        return "\n".join(self._texts)
