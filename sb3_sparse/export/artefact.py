"""What an export will write, in memory, and how it decides: so that it can be checked before anything is written."""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sb3_sparse.export.c.source import Source
from sb3_sparse.export.onnx_file import OnnxPolicy
from sb3_sparse.export.targets import write_file, write_folder
from sb3_sparse_runtime.compiled import CompiledRunner, available
from sb3_sparse_runtime.file import from_bytes
from sb3_sparse_runtime.graph import Graph

#: Answers actions ``[n, numbers]`` to observations by name and, for MaskablePPO, what is allowed.
Decide = Callable[[Mapping[str, NDArray], NDArray | None], NDArray]


@dataclass(frozen=True, eq=False)
class Artefact:
    """
    A policy in one of the formats.

    :param to: Its format.
    :param graph: The decision that it computes.
    :param data: Content of a file, None for a folder.
    :param texts: Content of a folder, text by path, None for a file.
    :param source: Generated C, None for another format.
    """

    to: str
    graph: Graph
    data: bytes | None = None
    texts: Mapping[str, str] | None = None
    source: Source | None = None

    def write(self, path: Path) -> tuple[Path, ...]:
        """
        Write it as a whole, or after an error not at all.

        :param path: The file or folder.
        :return: All files.
        """
        if self.data is not None:
            return tuple(write_file(path, self.data))
        assert self.texts is not None
        return tuple(write_folder(path, self.texts))

    @contextmanager
    def deciding(self) -> Iterator[Decide]:
        """
        Let it decide: a packed file is loaded, ONNX runs in ONNX Runtime, C is compiled for this machine.

        :return: What decides.
        :raises ImportError: If what it takes is missing, a C compiler or a package.
        """
        if self.to == "packed":
            assert self.data is not None
            yield _runner(from_bytes(self.data).graph)
        elif self.to == "onnx":
            assert self.data is not None
            yield OnnxPolicy(self.data, self.graph)
        else:
            assert self.source is not None
            with tempfile.TemporaryDirectory() as folder:
                yield CompiledPolicy(self.source, self.graph, Path(folder))


def _runner(graph: Graph) -> Decide:
    if available():
        return CompiledRunner(graph)

    def evaluate(observations: Mapping[str, NDArray], masks: NDArray | None = None) -> NDArray:
        return graph.evaluate(observations, masks)[graph.outputs["action"]]

    return evaluate


def c_compiler(wanted: str | None = None) -> str:
    """
    Find a C compiler.

    :param wanted: The command that it shall be, None for any.
    :return: Its command: ``$CC``, or the first of cc, gcc and clang.
    :raises ImportError: If there is none.
    """
    if wanted is not None:
        if not shutil.which(wanted):
            raise ImportError(f"there is no C compiler {wanted!r}: give the command of one that is installed")
        return wanted
    for name in (os.environ.get("CC"), "cc", "gcc", "clang"):
        if name and shutil.which(name):
            return name
    raise ImportError("checking generated C needs a C compiler: install gcc or clang, or name one in the variable CC")


class CompiledPolicy:
    """
    Generated C, compiled for this machine.

    :param source: Generated C.
    :param graph: The decision that it was made of.
    :param folder: Where to compile.
    :param flags: Further arguments of the compiler.
    :raises ImportError: If there is no C compiler.
    :raises RuntimeError: If it refuses.
    """

    def __init__(self, source: Source, graph: Graph, folder: Path, flags: tuple[str, ...] = ("-O2",)) -> None:
        self.graph, self.name = graph, source.name
        (folder / f"{source.name}.h").write_text(source.header)
        (folder / f"{source.name}.c").write_text(source.source)
        library = folder / f"{source.name}.so"
        command = [c_compiler(), "-std=c99", *flags, "-shared", "-fPIC", f"{source.name}.c", "-o", str(library)]
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
        if done.returncode != 0:
            raise RuntimeError(f"{command[0]} refuses the generated C:\n{done.stderr}")
        self._library: Any = ctypes.CDLL(str(library))

    def __call__(self, observations: Mapping[str, NDArray], action_masks: NDArray | None = None) -> NDArray:
        """
        Decide for each observation.

        :param observations: Arrays ``[n, *shape]`` by the names of the graph's inputs.
        :param action_masks: Bool, False where a choice is forbidden; None where all are allowed.
        :return: Actions ``[n, numbers]``, float32.
        :raises ValueError: If an observation is refused.
        """
        rows = flat_observations(self.graph, observations)
        actions = np.empty((len(rows), self.graph.action.size), np.float32)
        masks = None if action_masks is None else np.ascontiguousarray(action_masks, np.uint8).reshape(len(rows), -1)
        function = getattr(self._library, f"{self.name}_predict{'' if masks is None else '_masked'}")
        for index, row in enumerate(rows):
            allowed = [] if masks is None else [masks[index].ctypes.data_as(ctypes.c_void_p)]
            pointers = (row.ctypes.data_as(ctypes.c_void_p), *allowed, actions[index].ctypes.data_as(ctypes.c_void_p))
            if function(*pointers) != 0:
                raise ValueError(f"generated C refuses observation {index}")
        return actions


def flat_observations(graph: Graph, observations: Mapping[str, NDArray]) -> NDArray[np.float32]:
    """
    Arrange observations as generated C takes them.

    :param graph: A decision.
    :param observations: Arrays ``[n, *shape]`` by the names of its inputs.
    :return: Float32 ``[n, numbers]``, one key behind the other.
    """
    parts = [observations[name] for name in graph.inputs]
    return np.concatenate([part.reshape(len(part), -1).astype(np.float32) for part in parts], axis=1)
