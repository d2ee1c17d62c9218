"""Policies to export, and what the exports answer."""

from __future__ import annotations

import ctypes
import shutil
import subprocess
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from sb3_contrib import QRDQN, TQC, MaskablePPO
from stable_baselines3 import A2C, DDPG, DQN, PPO, SAC, TD3

from sb3_sparse import quantize
from sb3_sparse.export.c.source import Source, generate, project
from sb3_sparse.export.decision import decision_of
from sb3_sparse_runtime.graph import Graph
from sb3_sparse_runtime.spaces import batch_of
from tests.helpers import make_model, observations

ALGORITHMS = [TD3, DDPG, SAC, TQC, DQN, QRDQN, PPO, A2C, MaskablePPO]
SUPPORTED = [(algorithm, kind) for algorithm in ALGORITHMS for kind in ("Mlp", "Cnn", "MultiInput")]
IDS = [f"{algorithm.__name__}-{kind}" for algorithm, kind in SUPPORTED]
#: What must compile without a word.
STRICT = ("-std=c99", "-Wall", "-Wextra", "-Werror", "-pedantic")
COMPILERS = [name for name in ("gcc", "clang") if shutil.which(name)]
needs_compiler = pytest.mark.skipif(not COMPILERS, reason="there is no C compiler")


class SpacesEnv(gym.Env):
    """Random observations of any space."""

    def __init__(self, observation_space: spaces.Space, action_space: spaces.Space) -> None:
        self.observation_space, self.action_space = observation_space, action_space

    def reset(self, *, seed: int | None = None, options: dict | None = None) -> tuple[Any, dict]:
        super().reset(seed=seed)
        if seed is not None:
            self.observation_space.seed(seed)
        self.n_steps = 0
        return self.observation_space.sample(), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict]:
        self.n_steps += 1
        return self.observation_space.sample(), 0.0, self.n_steps >= 10, False, {}

    def action_masks(self) -> np.ndarray:
        return np.ones(self.action_space.n, dtype=bool)


def model_of(algorithm: Any, kind: str = "Mlp", bits: int = 0, **kwargs: Any) -> Any:
    """A small sparse model, quantized after training (that is, not trained at all) if ``bits`` says so."""
    policy_kwargs = {"sparsity": 0.7, **kwargs.pop("policy_kwargs", {})}
    model = make_model(algorithm, kind, policy_kwargs=policy_kwargs, **kwargs)
    # Larger weights: actions that differ, and hidden units beyond where tanh is a straight line
    with th.no_grad():
        for layer in model.policy.sparsifier.layers.values():
            layer.weight.mul_(3)
    return quantize(model, data=observations(model, 64), bits=bits) if bits else model


@cache
def known(algorithm: Any, kind: str = "Mlp", bits: int = 0) -> Any:
    """The same, made once; not to be changed."""
    return model_of(algorithm, kind, bits)


def arrays(graph: Graph, given: Any) -> dict[str, np.ndarray]:
    """Observations as graphs take them."""
    return batch_of(graph.observation, given)[0]


def graph_actions(graph: Graph, given: Any) -> np.ndarray:
    """What a graph answers, one row per observation."""
    return graph.evaluate(arrays(graph, given))[graph.outputs["action"]]


def flat(graph: Graph, given: Any) -> np.ndarray:
    """Observations as generated C takes them."""
    found = arrays(graph, given)
    return np.concatenate([part.reshape(len(part), -1).astype(np.float32) for part in found.values()], axis=1)


def build(source: Source, folder: Path, compiler: str, *flags: str) -> Any:
    """Generated C as a library; strict, but for what the flags say."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in project(source).items():
        (folder / name).write_text(text)
    library = folder / f"lib{source.name}.so"
    command = [compiler, *STRICT, *flags, "-shared", "-fPIC", str(folder / f"{source.name}.c"), "-o", str(library)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return ctypes.CDLL(str(library))


def _pointer(array: np.ndarray) -> ctypes.c_void_p:
    return array.ctypes.data_as(ctypes.c_void_p)


def c_actions(library: Any, graph: Graph, given: Any, name: str = "policy", masks: np.ndarray | None = None) -> np.ndarray:
    """What generated C answers, one row per observation."""
    raw = flat(graph, given)
    actions = np.full((len(raw), graph.action.size), np.nan, np.float32)
    for index, row in enumerate(raw):
        if masks is None:
            code = getattr(library, f"{name}_predict")(_pointer(row), _pointer(actions[index]))
        else:
            allowed = np.ascontiguousarray(masks[index], np.uint8)
            code = getattr(library, f"{name}_predict_masked")(_pointer(row), _pointer(allowed), _pointer(actions[index]))
        assert code == 0
    return actions


def run_example(executable: Path, rows: np.ndarray) -> np.ndarray:
    """What the example program answers to observations on its standard input."""
    text = "\n".join(" ".join(f"{value:.9g}" for value in row) for row in rows)
    done = subprocess.run([executable], input=text, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return np.array([line.split() for line in done.stdout.splitlines()], np.float32)


def graph_and_source(model: Any, layout: str, **kwargs: Any) -> tuple[Graph, Source]:
    """A model's graph, and the C that is made of it."""
    graph = decision_of(model, **kwargs)
    return graph, generate(graph, layout=layout)


def bits_of(values: np.ndarray) -> np.ndarray:
    """Float32 numbers as bits, so that equal means equal."""
    return np.ascontiguousarray(values, np.float32).view(np.int32)


def single(given: Any, index: int = 0) -> Any:
    """One observation of a batch."""
    return {key: part[index] for key, part in given.items()} if isinstance(given, Mapping) else given[index]
