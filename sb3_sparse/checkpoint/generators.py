"""Random streams that belong to the process: Python's, NumPy's and torch's; and how many threads torch adds up with."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import torch as th


def save_generators() -> dict[str, Any]:
    """
    Save the states of all random streams.

    :return: The states of all random streams of the process.
    """
    state: dict[str, Any] = {
        "python": random.getstate(),
        "numpy": np.random.get_state(legacy=False),
        "torch": th.get_rng_state(),
        "threads": th.get_num_threads(),
    }
    if th.cuda.is_available() and th.cuda.is_initialized():
        state["cuda"] = th.cuda.get_rng_state_all()
    return state


def restore_generators(state: dict[str, Any]) -> None:
    """
    Put all random streams back to where they were.

    :param state: What :func:`save_generators` gave.
    """
    random.setstate(state["python"])
    np.random.set_state(state["numpy"])
    th.set_rng_state(state["torch"])
    if "cuda" in state and th.cuda.is_available():
        th.cuda.set_rng_state_all(state["cuda"])
