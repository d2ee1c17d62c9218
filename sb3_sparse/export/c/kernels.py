"""The functions that generated C calls: sections of ``sb3_sparse_runtime/csrc/kernels.h``, as they are."""

from __future__ import annotations

import re
from functools import cache
from importlib.resources import files

_SECTION = re.compile(r"^/\* \[section\] (\w+):([ \w,]*)\*/\n", re.MULTILINE)
_COMMENT = re.compile(r"\n/\*(?:(?!\*/).)*\*/\n\Z", re.DOTALL)


@cache
def sections() -> dict[str, tuple[tuple[str, ...], str]]:
    """
    Read the sections of the file of kernels.

    :return: What each section needs, and its text, by name.
    """
    text = files("sb3_sparse_runtime").joinpath("csrc/kernels.h").read_text()
    parts = _SECTION.split(text)[1:]
    found = {}
    for name, needs, body in zip(parts[::3], parts[1::3], parts[2::3], strict=True):
        # What introduces the next group of sections stands at the end of the last
        body = _COMMENT.sub("\n", body)
        found[name] = (tuple(re.findall(r"\w+", needs)), body.strip())
    return found


_RELU = "_relu"


def _section_of(name: str) -> str:
    return name if name in sections() else name.removesuffix(_RELU).replace("16_", "8_")


def variant(name: str) -> str:
    """
    Give the text of a kernel.

    :param name: Name of a section; with ``16`` in the place of ``8``, so that lengths take two bytes; with ``_relu`` behind,
        so that results are quantized behind ReLU.
    :return: Its text.
    """
    section = _section_of(name)
    text = sections()[section][1]
    if section != name.removesuffix(_RELU):
        text = text.replace("uint8_t", "uint16_t")
    if name.endswith(_RELU):
        result = "(float)sum * *multipliers++ + *bias++"
        for old, new in (
            ("float *y)", "float scale, float high, sb3s_integer *y)"),
            (f"= {result};", f"= sb3s_positive({result}, scale, high);"),
        ):
            if old not in text:
                raise KeyError(name)
            text = text.replace(old, new)
    return text.replace(f"sb3s_{section}(", f"sb3s_{name}(")


class Kernels:
    """Collects what is called."""

    def __init__(self) -> None:
        self._used: set[str] = set()

    def use(self, name: str) -> str:
        """
        Note that a kernel is called.

        :param name: Name of a section, or of a kernel that is made of one, see :func:`variant`.
        :return: The name of its function.
        """
        self._used.add(name)
        for needed in sections()[_section_of(name)][0]:
            self.use(needed)
        if name.endswith(_RELU):
            self.use("positive")
        return f"sb3s_{name}"

    def uses(self, name: str) -> bool:
        """
        Tell whether a kernel is called.

        :param name: Name of a section.
        :return: Whether it is among them.
        """
        return name in self._used

    def text(self) -> str:
        """All of them, each behind what it needs."""
        order = list(sections())
        used = sorted(self._used, key=lambda name: (order.index(_section_of(name)), name))
        return "\n\n".join(variant(name) for name in used)
