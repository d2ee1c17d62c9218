"""
Cortex-M: generated C with the smallest tables, a test bench for QEMU, and what it measures.

QEMU counts no cycles, and instructions are not cycles: a multiplication, a division and a load from slow flash each count as
one. What is counted here are instructions, exactly: with ``-icount shift=0`` QEMU's clock advances by a nanosecond for each,
and the firmware reads it through SysTick.
"""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from sb3_sparse.export.c.source import Source
from sb3_sparse.utils.checks import require_choice

#: Boards: a Cortex-M4 with its FPU, a Cortex-M7, a Cortex-M33.
BOARDS = ("m4f", "m7", "m33")
_FILES = ("firmware.c", "sections.ld", "mps2.ld", "an505.ld", "Makefile")
_TOOLS = {
    "make": "make",
    "arm-none-eabi-gcc": "gcc-arm-none-eabi libnewlib-arm-none-eabi",
    "qemu-system-arm": "qemu-system-arm",
}


def missing_tools() -> str | None:
    """
    Say what of the tools is not there.

    :return: What is missing and how Debian calls it, None if nothing is.
    """
    missing = [name for name in _TOOLS if shutil.which(name) is None]
    if not missing:
        return None
    packages = " ".join(_TOOLS[name] for name in missing)
    return f"{', '.join(missing)} not found (Debian: apt-get install {packages})"


def test_bench(source: Source) -> dict[str, str]:
    """
    Make a test bench of generated C.

    :param source: Generated C.
    :return: Files, text by path.
    """
    folder = files("sb3_sparse.export").joinpath("firmware")
    texts = {f"{source.name}.h": source.header, f"{source.name}.c": source.source}
    for name in _FILES:
        text = folder.joinpath(name).read_text()
        texts[name] = text.replace("@name@", source.name).replace("@big@", source.name.upper())
    return texts


@dataclass(frozen=True)
class Memory:
    """
    What a policy takes in a firmware, from the linker's map; the firmware's own code is not counted.

    :param tables: Bytes of constant tables, in flash.
    :param code: Bytes of code, in flash, with what it needs of the compiler's library.
    :param ram: Bytes of static memory.
    """

    tables: int
    code: int
    ram: int


@dataclass(frozen=True)
class Measurement:
    """
    What the test bench has found.

    :param actions: Actions ``[n, numbers]``.
    :param instructions: Instructions of a decision on average, its call included.
    :param most_instructions: Of the longest one.
    :param stack: Bytes of stack that it needed.
    :param memory: What it takes in flash and static memory.
    """

    actions: NDArray[np.float32]
    instructions: float
    most_instructions: int
    stack: int
    memory: Memory


_SECTION = re.compile(r"^ (\.[\w.]+)\s+0x([0-9a-f]+)\s+0x([0-9a-f]+)\s+(\S+)$", re.MULTILINE)


def memory_of(text: str, own: str) -> Memory:
    """
    Read a linker's map.

    :param text: The map.
    :param own: Name of the policy's object file.
    :return: What the policy takes: its own sections, and those of libraries, which the firmware itself does without.
    """
    # A long name stands in a line of its own; what was left out comes first and has the address 0
    text = re.sub(r"\n (\.\S+)\n +(0x)", r"\n \1 \2", text[text.index("Linker script and memory map") :])
    sizes = {"tables": 0, "code": 0, "ram": 0}
    for section, _, size, file in _SECTION.findall(text):
        if Path(file).name != own and ".a(" not in file:
            continue
        kind = {".rodata": "tables", ".text": "code", ".data": "ram", ".bss": "ram"}.get("." + section.split(".")[1])
        if kind is not None:
            sizes[kind] += int(size, 16)
    return Memory(**sizes)


def build(folder: Path, name: str, board: str, options: Sequence[str] = ()) -> Memory:
    """
    Build a test bench.

    :param folder: Its files.
    :param name: The policy's name.
    :param board: One of :data:`BOARDS`.
    :param options: Further arguments of make, e.g. ``"OPTIMIZE=-Os"``.
    :return: What the policy takes in flash and memory.
    :raises ImportError: If a tool is missing.
    :raises RuntimeError: If the compiler refuses.
    """
    require_choice("board", board, BOARDS)
    if (missing := missing_tools()) is not None:
        raise ImportError(f"a Cortex-M test bench needs tools: {missing}")
    done = subprocess.run(["make", "-B", f"BOARD={board}", *options], cwd=folder, capture_output=True, text=True)
    if done.returncode != 0:
        raise RuntimeError(f"the test bench was not built:\n{done.stderr}")
    return memory_of((folder / f"{name}-{board}.map").read_text(), f"{name}-{board}.o")


def run(folder: Path, n_actions: int, board: str, observations: NDArray[np.float32], memory: Memory) -> Measurement:
    """
    Run a test bench that was built under QEMU.

    :param folder: Its files.
    :param n_actions: Numbers in an action.
    :param board: The board that it was built for.
    :param observations: Observations ``[n, numbers]``.
    :param memory: What :func:`build` said.
    :return: Actions, and what they took.
    :raises RuntimeError: If the firmware fails, or an observation is refused.
    """
    (folder / "observations.f32").write_bytes(np.ascontiguousarray(observations, np.float32).tobytes())
    done = subprocess.run(["make", "-s", "run", f"BOARD={board}"], cwd=folder, capture_output=True, text=True, timeout=600)
    # Semihosting prints on standard error
    found = {key: int(value) for key, value in re.findall(r"^(\w+) (\d+)$", done.stdout + done.stderr, re.MULTILINE)}
    if done.returncode != 0 or "stack" not in found:
        raise RuntimeError(f"the test bench failed:\n{done.stdout}{done.stderr}")
    if found["refused"]:
        raise RuntimeError("the policy refused an observation")
    actions = np.frombuffer((folder / "actions.f32").read_bytes(), np.float32).reshape(-1, n_actions)
    if len(actions) != len(observations):
        raise RuntimeError(f"the test bench answered {len(actions)} of {len(observations)} observations")
    instructions = found["instructions_x1000"] / 1000
    return Measurement(actions, instructions, found["most_instructions"], found["stack"], memory)
