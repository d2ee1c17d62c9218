"""Below which density the kernels are faster than dense torch: measured once on each machine, and kept."""

from __future__ import annotations

import hashlib
import json
import os
import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

import torch as th
from torch import nn

from sb3_sparse.engine import native
from sb3_sparse.engine.locks import make_lock
from sb3_sparse.engine.survivors import make_network, n_surviving
from sb3_sparse.utils.files import write_text

fcntl: ModuleType | None
try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

if TYPE_CHECKING:
    from sb3_sparse.engine.sequence import SparseSequential

#: Environment variable with the folder of the measured crossovers.
CACHE_VARIABLE = "SB3_SPARSE_CACHE"
#: Rounds of a measurement, and how many more follow where the result is not clear: the best times of few rounds may all have
#: been disturbed on a busy machine, and what is found is kept.
_ROUNDS, _MORE_ROUNDS, _CLEAR = 7, 23, 1.5
_DENSITY = re.compile(r"@([0-9.]+)")


def _machine() -> str:
    """What a measurement depends on beside shapes."""
    return f"{native.processor()}, {native.instruction_set()}, torch {th.__version__}"


def _read(path: Path) -> dict[str, float]:
    """What a file holds; nothing if it cannot be read."""
    try:
        return {str(key): float(value) for key, value in json.loads(path.read_text()).items()}
    except (OSError, ValueError, TypeError, AttributeError):
        return {}


def _parts(key: str) -> tuple[str, list[float]]:
    """A shape class without its densities, and these."""
    densities = [float(text) for text in _DENSITY.findall(key)]
    return _DENSITY.sub("@", key), densities


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Hold a lock that other processes respect. Where there is none, or nobody gets it, go on without: nothing breaks."""
    with path.open("a") as file:
        if fcntl is not None:
            with suppress(OSError):
                fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _folder() -> Path | None:
    """Where measurements are kept; None without a home."""
    folder = os.environ.get(CACHE_VARIABLE)
    if folder:
        return Path(folder)
    try:
        return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "sb3_sparse"
    except RuntimeError:  # nobody knows the home of this user
        return None


class Crossovers:
    """
    Measured ratios of torch's time to the kernels' time, kept in a file: once measured, a shape class is decided for good, so
    that two runs with the same seed use the same engine. A file that cannot be read is measured anew.

    :param path: The file; None: nothing is kept.
    """

    def __init__(self, path: Path | None) -> None:
        self.path = path
        self.ratios: dict[str, float] = {} if path is None else _read(path)

    @staticmethod
    def shape_class(sequence: SparseSequential, n_samples: int) -> str:
        """
        Describe what the kernels' advantage depends on.

        :param sequence: A sequence.
        :param n_samples: Size of the batch.
        :return: What decides, as text: widths, density of each layer in steps of 0.05 (0.01 below 0.1), batch in powers of
            two, threads.
        """
        layers = []
        for layer in sequence.layers:
            density = n_surviving(layer) / layer.weight.numel()
            step = 0.05 if density > 0.1 else 0.01
            layers.append(f"{layer.in_features}x{layer.out_features}@{round(density / step) * step:.2f}")
        batch = 1 << max(n_samples - 1, 0).bit_length()
        return f"{' '.join(layers)} batch {batch} threads {th.get_num_threads()}"

    def ratio(self, sequence: SparseSequential, n_samples: int) -> float:
        """
        Look up how much faster the kernels are; measured once and kept.

        :param sequence: A sequence.
        :param n_samples: Size of the batch.
        :return: How much faster the kernels are, forwards and backwards (forwards alone for batches of up to 8, which are
            those of acting).
        """
        key = self.shape_class(sequence, n_samples)
        if key not in self.ratios:
            # Two threads that measure at once disturb each other
            with _measuring:
                if key not in self.ratios:
                    known = self._known_from_others(key)
                    self.ratios[key] = _measure(sequence, n_samples) if known is None else known
                    self._save()
        return self.ratios[key]

    def _known_from_others(self, key: str) -> float | None:
        """
        Spare a measurement, where masks become sparser and sparser: what is clearly faster stays so with fewer weights, and
        what is clearly slower with more. The ratio found there is kept, so that a rerun decides the same.
        """
        widths, densities = _parts(key)
        for other, ratio in list(self.ratios.items()):
            others_widths, others = _parts(other)
            if others_widths != widths or 1 / _CLEAR < ratio < _CLEAR:
                continue
            pairs = list(zip(others, densities, strict=True))
            if all(more >= own for more, own in pairs) if ratio >= _CLEAR else all(fewer <= own for fewer, own in pairs):
                return ratio
        return None

    def _save(self) -> None:
        if self.path is None:
            return
        # Whole or not at all; where nothing can be written every process measures for itself
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with _locked(self.path.with_suffix(".lock")):
                # Others have measured too. Whoever was first decides, so that a rerun chooses the same
                self.ratios.update(_read(self.path))
                write_text(self.path, json.dumps(self.ratios, indent=1, sort_keys=True))
        except OSError:
            pass


_known: dict[Path | None, Crossovers] = {}
_measuring = make_lock()


def crossovers() -> Crossovers:
    """The measurements of this machine."""
    folder = _folder()
    path = None if folder is None else folder / f"crossover-{hashlib.sha256(_machine().encode()).hexdigest()[:16]}.json"
    if path not in _known:
        _known[path] = Crossovers(path)
    return _known[path]


def _measure(sequence: SparseSequential, n_samples: int) -> float:
    n_samples = 1 << max(n_samples - 1, 0).bit_length()
    # Data of its own, and nothing is left behind: neither torch's nor the masks' random stream is touched, nor any gradient
    generator = th.Generator().manual_seed(0)
    network = make_network(sequence.layers, sequence.activations)
    for index in range(len(sequence.layers)):
        network.gather_weight(index)
    x = th.randn(n_samples, sequence.layers[0].in_features, generator=generator, dtype=sequence.layers[0].weight.dtype)
    y = x.new_empty(n_samples, sequence.layers[-1].out_features)
    dy = th.ones_like(y)
    parameters = [parameter for parameter in sequence.parameters() if parameter.requires_grad]
    trains = n_samples > 8 and bool(parameters)

    def dense() -> None:
        output = nn.Sequential.forward(sequence, x)
        if trains:
            th.autograd.grad(output, parameters, dy)

    def kernels() -> None:
        n_threads = th.get_num_threads()
        tape, _ = native.module.forward(network, x.data_ptr(), n_samples, *x.stride(), y.data_ptr(), n_threads, trains)
        if trains:
            native.module.backward(tape, dy.data_ptr(), *dy.stride(), 0, n_threads).weight_gradient(False, n_threads)

    def best(variant: Callable[[], None], so_far: float) -> float:
        start = time.perf_counter()
        variant()
        return min(so_far, time.perf_counter() - start)

    with th.set_grad_enabled(trains):
        for variant in (dense, kernels):
            variant()  # not timed: the first time is special
        of_dense = of_kernels = float("inf")
        for round_index in range(_ROUNDS + _MORE_ROUNDS):
            if round_index == _ROUNDS and not 1 / _CLEAR < of_dense / of_kernels < _CLEAR:
                break
            of_dense, of_kernels = best(dense, of_dense), best(kernels, of_kernels)
    return of_dense / of_kernels
