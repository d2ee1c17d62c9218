"""Whatever this package does with a model in training, the kernels can still trust what they know of its weights."""

from __future__ import annotations

from collections.abc import Callable
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
    sparse_policy,
    sparsity_report,
    to_stock,
)
from sb3_sparse.runs.costs import costs, input_use, latency
from tests.engine.networks import needs_kernels
from tests.helpers import make_model

pytestmark = needs_kernels


def shared(model: Any) -> list[str]:
    """What of a model's networks and optimizers the kernels would read anew for every pass, for good."""
    policy = sparse_policy(model)
    tensors = dict(policy.named_parameters())
    for name, optimizer in policy.sparsifier.optimizers.items():
        # Not by state_dict(), which would write moments back
        for index, state in enumerate(vars(optimizer)["state"].values()):
            tensors |= {f"{name} {index} {key}": value for key, value in state.items() if key.startswith("exp_avg")}
    return [name for name, tensor in tensors.items() if not th.Tensor.untyped_storage(tensor).resizable()]


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
