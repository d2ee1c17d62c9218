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


class Kernels:
    """Collects what is called."""

    def __init__(self) -> None:
        self._used: set[str] = set()
        self._wide: set[str] = set()

    def use(self, name: str) -> str:
        """
        Note that a kernel is called.

        :param name: Name of a section; one with ``16`` is made of that with an ``8``.
        :return: The name of its function.
        """
        narrow = name.replace("16_", "8_") if name not in sections() else name
        if narrow != name:
            self._wide.add(narrow)
        else:
            self._used.add(name)
        for needed in sections()[narrow][0]:
            self.use(needed)
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
        texts = []
        for name, (_, body) in sections().items():
            if name in self._used:
                texts.append(body)
            if name in self._wide:
                texts.append(body.replace("uint8_t", "uint16_t").replace("8_", "16_", 1))
        return "\n\n".join(texts)
