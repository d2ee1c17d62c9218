"""Deterministic, single-threaded tests."""

import os

import torch as th
from hypothesis import settings

th.set_num_threads(1)
# Reproducible examples; shared machines are too noisy for deadlines
settings.register_profile("default", derandomize=True, deadline=None, max_examples=60)
settings.load_profile("default")
os.environ.setdefault("SDL_VIDEODRIVER", "dummy")
