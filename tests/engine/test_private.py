"""Whatever this package does with a model in training, the kernels can still trust what they know of its weights."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch as th
from stable_baselines3 import DQN, SAC, TD3
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.callbacks import BaseCallback

from sb3_sparse import (
    GradualPruning,
    QuantizationAware,
    RigL,
    RunCheckpoint,
    SparsityLogger,
    accelerate,
    export,
    load_untrusted,
    resume,
    sparse_policy,
    sparsity_report,
    to_stock,
)
from sb3_sparse.analysis.integer_forward import integer_forward
from sb3_sparse.engine.adam import SurvivorAdam
from sb3_sparse.runs.costs import costs, input_use, latency
from tests.engine.networks import needs_kernels
from tests.helpers import make_model, observations

pytestmark = needs_kernels


def shared(model: Any) -> list[str]:
    """Networks that the kernels would read anew for every pass for good, and optimizers that go over all of their weights."""
    policy = sparse_policy(model)
    found = [
        name
        for name, weight in policy.named_parameters()
        if not th.Tensor.untyped_storage(weight).resizable() or getattr(weight, "always_aliased", False)
    ]
    step = model.num_timesteps
    model.learn(2, reset_num_timesteps=False)
    assert model.num_timesteps > step
    for name, optimizer in policy.sparsifier.optimizers.items():
        assert isinstance(optimizer, SurvivorAdam)
        # Torch runs what is quantized, and knows all of its gradients
        quantized = any(layer.quantizer is not None for part in optimizer.parts for layer in part.layers)
        if not quantized and {*vars(optimizer)["_held"]} != {part.survivors() for part in optimizer.parts}:
            found.append(name)
    return found


LOOKS: dict[str, Callable[[Any, Path], Any]] = {
    "a report": lambda model, folder: sparsity_report(model).to_markdown(),
    "what it costs": lambda model, folder: (costs(model), input_use(model, sparsity_report(model)), latency(model)),
    "a save": lambda model, folder: model.save(folder / "model"),
    "its parameters": lambda model, folder: model.get_parameters(),
    "a stock twin": lambda model, folder: to_stock(model),
    "a policy for numpy": lambda model, folder: export(model, folder / "policy.sb3s"),
    "C": lambda model, folder: export(model, folder / "policy", to="c", check=True),
    "ONNX": lambda model, folder: export(model, folder / "policy.onnx"),
}


@pytest.fixture(params=[TD3, SAC, DQN])
def model(request: Any) -> BaseAlgorithm:
    made = make_model(request.param, policy_kwargs=dict(sparsity=0.6, engine="native"), learning_starts=10)
    accelerate(made).learn(20)
    assert shared(made) == []
    return made


@pytest.mark.parametrize("what", LOOKS)
def test_who_only_looks_leaves_no_trace(model, what, tmp_path):
    LOOKS[what](model, tmp_path)
    assert shared(model) == []


def test_an_array_would_be_seen(model):
    name, weight = next(iter(model.policy.named_parameters()))
    weight.detach().numpy()
    assert shared(model) == [name]


def test_integers_leave_no_trace(model, tmp_path):
    model.learn(20, callback=QuantizationAware(8, start=0.0))
    integer_forward(model, observations(model))
    export(model, tmp_path / "policy.onnx")
    assert shared(model) == []


UPDATERS: dict[str, Callable[[], list[BaseCallback]]] = {
    "topology": lambda: [RigL(5, 0.3)],
    "compression": lambda: [GradualPruning(0.9, start=0.2, stop=0.8, updates=4), QuantizationAware(8, start=0.5)],
}


@pytest.mark.parametrize("updaters", UPDATERS)
def test_callbacks_leave_no_trace(model, updaters, tmp_path):
    checkpoint = RunCheckpoint(every=7, folder=tmp_path / "run", signals=False)
    model.learn(40, callback=[*UPDATERS[updaters](), SparsityLogger(), checkpoint])
    assert list((tmp_path / "run").glob("checkpoints/step-*")) != []
    assert shared(model) == []


def load(model: Any, folder: Path) -> Any:
    model.save(folder / "model")
    return type(model).load(folder / "model")


def load_parameters(model: Any, folder: Path) -> Any:
    model.set_parameters(model.get_parameters())
    return model


def load_as_data(model: Any, folder: Path) -> Any:
    model.save(folder / "model")
    loaded = load_untrusted(folder / "model.zip")
    loaded.replay_buffer = model.replay_buffer
    return loaded


def go_on(model: Any, folder: Path) -> Any:
    checkpoint = RunCheckpoint(every=7, folder=folder / "run", keep=100, signals=False)
    model.learn(40, callback=[RigL(5, 0.3), checkpoint])
    shutil.rmtree(max((folder / "run" / "checkpoints").glob("step-*")))
    return resume(folder / "run", model.get_env())


RETURNS: dict[str, Callable[[Any, Path], Any]] = {
    "loaded": load,
    "given parameters": load_parameters,
    "loaded as data": load_as_data,
    "copied": lambda model, folder: deepcopy(model),
    "resumed": go_on,
}


@pytest.mark.parametrize("how", RETURNS)
def test_who_comes_back_has_memory_of_its_own(model, how, tmp_path):
    returned = RETURNS[how](model, tmp_path)
    returned.set_env(model.get_env())
    assert shared(returned) == []
