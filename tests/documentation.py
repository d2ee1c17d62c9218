"""
The code in a page of the documentation, run from top to bottom as a reader would.

Blocks marked ``python`` share one namespace; blocks marked ``bash`` are run by bash, in the same folder. A comment right above
a block (MyST leaves out lines that begin with ``%``, Markdown what is in ``<!-- -->``) says what a test does otherwise:

* ``% test: skip, REASON``: it is not run.
* ``% test: expensive``: it is run only when that is asked for, or pages are run in full.
* ``% test: before, CODE``: a line that is run before it, for what a reader has already. There may be several.
* ``% test: OLD -> NEW``: so that a test takes seconds, OLD, which must stand in the block, is replaced, except in full. There
  may be several such lines.
"""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
_FENCE = re.compile(r"^(?P<indent> *)```(?P<language>\w*)\n(?P<code>.*?)^(?P=indent)```$", re.MULTILINE | re.DOTALL)
_MARK = re.compile(r"(?:% test: (?P<myst>.*)|<!-- test: (?P<html>.*) -->)$")


@dataclass(frozen=True)
class Block:
    """
    A block of code.

    :param page: Path of its page, from the repository's root.
    :param line: Line of its first line of code, from 1.
    :param language: ``"python"``, ``"bash"``, or anything else.
    :param code: The code.
    :param marks: What the comments above it say.
    """

    page: str
    line: int
    language: str
    code: str
    marks: tuple[str, ...] = ()

    @property
    def skipped(self) -> str | None:
        """Why it is not run, None if it is."""
        return next((mark.partition(",")[2].strip() for mark in self.marks if mark.startswith("skip")), None)

    @property
    def expensive(self) -> bool:
        """Whether it is run only in full."""
        return "expensive" in self.marks

    @property
    def before(self) -> str:
        """What is run before it."""
        lines = [mark.partition(",")[2].strip() for mark in self.marks if mark.startswith("before, ")]
        return "".join(f"{line}\n" for line in lines)

    def shortened(self) -> Block:
        """
        Make of it what a test runs.

        :return: The block with its replacements.
        :raises ValueError: If what is to be replaced is not there.
        """
        code = self.code
        for mark in self.marks:
            old, arrow, new = mark.partition(" -> ")
            if not arrow or mark.startswith(("skip, ", "before, ")):
                continue
            if old not in code:
                raise ValueError(f"{self.page}:{self.line}: {old!r} is to be replaced, and is not there")
            code = code.replace(old, new)
        return replace(self, code=code)


def blocks_of(page: str | Path, text: str | None = None) -> list[Block]:
    """
    Find the blocks of a page.

    :param page: Path of the page, from the repository's root.
    :param text: Its text, None: what the file holds.
    :return: All blocks, in order.
    :raises ValueError: For a mark that means nothing.
    """
    text = (ROOT / page).read_text() if text is None else text
    found = []
    for match in _FENCE.finditer(text):
        before = text[: match.start()].splitlines()
        marks: list[str] = []
        while before and (mark := _MARK.match(before[-1].strip())):
            marks.insert(0, mark["myst"] or mark["html"])
            before.pop()
        line = text.count("\n", 0, match.start("code")) + 1
        for mark in marks:
            if mark != "expensive" and " -> " not in mark and not mark.startswith(("skip, ", "before, ")):
                raise ValueError(f"{page}:{line}: the mark {mark!r} is unknown")
        code = "".join(part.removeprefix(match["indent"]) for part in match["code"].splitlines(keepends=True))
        found.append(Block(str(page), line, match["language"], code, tuple(marks)))
    return found


def _commands(code: str) -> list[Callable[[], None]] | None:
    """Plain commands of this package as calls, None if there is anything else."""
    from sb3_sparse.benchmark import __main__ as benchmark
    from sb3_sparse.cli import main as command_line

    mains = {("sb3-sparse",): command_line.main, ("python", "-m", "sb3_sparse.benchmark"): benchmark.main}
    found: list[Callable[[], None]] = []
    for line in code.replace("\\\n", " ").splitlines():
        words = shlex.split(line, comments=True)
        if not words:
            continue
        match = next((program for program in mains if tuple(words[: len(program)]) == program), None)
        if match is None or set(line) & set("|&;<>$`*~") or words[1] in ("train", "enjoy"):
            return None
        found.append(partial(mains[match], words[len(match) :]))
    return found


def _bash(block: Block, folder: Path) -> None:
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = dict(os.environ, SB3_SPARSE_ROOT=str(ROOT), PATH=path, OMP_NUM_THREADS="1")
    command = ["bash", "-euo", "pipefail", "-c", block.code]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    if done.returncode != 0:
        said = f"{done.stdout[-4000:]}{done.stderr[-4000:]}"
        raise AssertionError(f"{block.page}:{block.line}: bash ended with {done.returncode}:\n{block.code}\n{said}")


def run_page(
    page: str | Path,
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    *,
    full: bool = False,
    expensive: bool = False,
    edit: Callable[[str], str] = lambda code: code,
) -> list[Block]:
    """
    Run a page from top to bottom.

    :param page: Path of the page, from the repository's root.
    :param folder: Where to run it: an empty folder.
    :param monkeypatch: The test's own, for the working directory.
    :param full: Whether to run it as it is written, every command in a process of its own; otherwise shortened, with the
        commands of this package in this process where nothing forbids it, which spares the imports.
    :param expensive: Whether to run blocks that are expensive too, shortened.
    :param edit: What else to do to code before it is run.
    :return: What was run.
    :raises AssertionError: If a command fails, with its place and what it said.
    """
    monkeypatch.chdir(folder)
    namespace: dict[str, object] = {"__name__": "__main__"}
    ran = []
    for block in blocks_of(page):
        if (
            block.language not in ("python", "bash")
            or block.skipped is not None
            or (block.expensive and not (full or expensive))
        ):
            continue
        block = block if full else block.shortened()
        block = replace(block, code=edit(block.code))
        if block.before:
            exec(block.before, namespace) if block.language == "python" else _bash(replace(block, code=block.before), folder)
        if block.language == "python":
            # Lines as in the page, for tracebacks
            exec(compile("\n" * (block.line - 1) + block.code, str(ROOT / page), "exec"), namespace)
        elif not full and (commands := _commands(block.code)) is not None:
            for command in commands:
                command()
        else:
            _bash(block, folder)
        ran.append(block)
    return ran
