"""Deterministic, single-threaded tests."""

import os
from pathlib import Path

import pytest
import torch as th
from hypothesis import settings

from sb3_sparse.engine import native

th.set_num_threads(1)
# Reproducible examples; shared machines are too noisy for deadlines
settings.register_profile("default", derandomize=True, deadline=None, max_examples=60)
settings.load_profile("default")
os.environ.setdefault("SDL_VIDEODRIVER", "dummy")
# Which engine is faster is measured, and would differ from run to run. SB3_SPARSE_ENGINE=torch tests the other one
os.environ.setdefault("SB3_SPARSE_ENGINE", "native" if native.available() else "torch")


@pytest.fixture
def torch_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is bit-identical to stock Stable-Baselines3 is what torch multiplies."""
    monkeypatch.setenv("SB3_SPARSE_ENGINE", "torch")


@pytest.fixture
def auto_engine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """The engine as users have it, with measurements of its own; the folder they are in."""
    monkeypatch.setenv("SB3_SPARSE_ENGINE", "auto")
    monkeypatch.setenv("SB3_SPARSE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"
