"""Random sequences of sparse layers, and what dense torch makes of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest
import torch as th
from hypothesis import strategies as st
from torch import nn

from sb3_sparse.engine import native
from sb3_sparse.engine.choice import Choice
from sb3_sparse.engine.sequence import SparseSequential
from sb3_sparse.masks.patterns import parse_pattern
from sb3_sparse.nn.layers import SparseLinear

needs_kernels = pytest.mark.skipif(not native.available(), reason="the native engine was not built here")
ACTIVATIONS: dict[str, Any] = {"none": None, "relu": nn.ReLU, "tanh": nn.Tanh}


@dataclass(frozen=True)
class Shape:
    """What a sequence is made from."""

    widths: tuple[int, ...]
    densities: tuple[float, ...]
    pattern: str
    activations: tuple[str, ...]
    bias: bool
    n_samples: int
    seed: int


@st.composite
def shapes(draw: Any) -> Shape:
    """Any widths, densities, patterns, activations and batch sizes, small enough to be fast."""
    n_layers = draw(st.integers(1, 4))
    pattern = draw(st.sampled_from(["unstructured", "block:4x1", "block:2x3", "2:4", "1:8"]))
    width = st.integers(1, 40)
    densities = st.sampled_from([0.0, 0.05, 0.3, 0.7, 1.0])
    return Shape(
        tuple(draw(width) for _ in range(n_layers + 1)),
        tuple(draw(densities) for _ in range(n_layers)),
        pattern,
        tuple(draw(st.sampled_from(list(ACTIVATIONS))) for _ in range(n_layers)),
        draw(st.booleans()),
        draw(st.one_of(st.integers(1, 20), st.integers(60, 70), st.integers(120, 300))),
        draw(st.integers(0, 2**31)),
    )


def make_sequence(shape: Shape, *, dtype: th.dtype = th.float32, engine: str = "native") -> SparseSequential:
    """A sequence, adopted by an engine."""
    generator = th.Generator().manual_seed(shape.seed)
    modules: list[nn.Module] = []
    for n_inputs, n_outputs, density, activation in zip(
        shape.widths[:-1], shape.widths[1:], shape.densities, shape.activations, strict=True
    ):
        stock = nn.Linear(n_inputs, n_outputs, bias=shape.bias, dtype=dtype)
        with th.no_grad():
            for parameter in stock.parameters():
                parameter.copy_(th.randn(parameter.shape, generator=generator, dtype=dtype) / n_inputs**0.5)
        layer = SparseLinear.from_dense(stock)
        pattern = parse_pattern(shape.pattern)
        budget = pattern.budget((n_outputs, n_inputs), round(density * n_inputs * n_outputs))
        layer.replace_mask(pattern.select(th.rand(n_outputs, n_inputs, generator=generator), budget))
        modules.append(layer)
        if ACTIVATIONS[activation] is not None:
            modules.append(ACTIVATIONS[activation]())
    sequence = nn.Sequential(*modules)
    assert SparseSequential.adopt(sequence, Choice(engine))
    assert isinstance(sequence, SparseSequential)
    return sequence


def make_input(shape: Shape, *, dtype: th.dtype = th.float32) -> th.Tensor:
    """A batch, every second one transposed in memory."""
    generator = th.Generator().manual_seed(shape.seed + 1)
    x = th.randn(shape.n_samples, shape.widths[0], generator=generator, dtype=dtype)
    return x.t().contiguous().t() if shape.seed % 2 else x


def dense(sequence: nn.Sequential, x: th.Tensor) -> th.Tensor:
    """What torch makes of it."""
    return nn.Sequential.forward(sequence, x)


#: A small one of the usual kind.
MLP = Shape((9, 16, 12, 3), (0.4, 0.3, 1.0), "unstructured", ("relu", "tanh", "none"), True, 33, 6)
