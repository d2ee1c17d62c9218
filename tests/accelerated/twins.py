"""A model that torch trains and its twin that is accelerated, step by step side by side."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from copy import deepcopy
from typing import Any

import numpy as np
import pytest
import torch as th
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm

from sb3_sparse import accelerate
from tests.helpers import make_model

#: Largest difference of a moment or a loss that rounding may make, as a share of the largest value.
ROUNDING = 2e-5


@contextmanager
def engine(name: str) -> Iterator[None]:
    """Make models with an engine, whatever the tests run with."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SB3_SPARSE_ENGINE", name)
        yield


def make_twins(
    algorithm: type[OffPolicyAlgorithm], *, accelerated: bool = True, n_steps: int = 120, **kwargs: Any
) -> tuple[Any, Any]:
    """A model that torch multiplies for, its replay buffer filled, and an accelerated one in the same state."""
    arguments: dict[str, Any] = dict(learning_starts=10**6, batch_size=37, seed=3, device="cpu")
    arguments |= kwargs
    policy_kwargs = dict(net_arch=[24, 16], sparsity=0.7, mask_seed=1) | arguments.pop("policy_kwargs", {})
    with engine("torch"):
        stock = make_model(algorithm, policy_kwargs=policy_kwargs, **deepcopy(arguments))
        stock.learn(n_steps)
    with engine("native"):
        twin = make_model(algorithm, policy_kwargs=policy_kwargs, **deepcopy(arguments))
        twin.learn(1)
    copy_state(stock, twin)
    twin.replay_buffer = deepcopy(stock.replay_buffer)
    return stock, accelerate(twin) if accelerated else twin


def copy_state(source: Any, target: Any) -> None:
    """Networks, optimizers, counters, and what was logged."""
    target.set_parameters(deepcopy(source.get_parameters()))
    if getattr(source, "log_ent_coef", None) is not None:
        with th.no_grad():
            target.log_ent_coef.copy_(source.log_ent_coef)
    for name in ("_n_updates", "num_timesteps", "_total_timesteps", "_current_progress_remaining"):
        setattr(target, name, getattr(source, name))
    target.logger.name_to_value.clear()
    target.logger.name_to_value.update(source.logger.name_to_value)


def step_both(stock: Any, twin: Any, seed: int, gradient_steps: int = 1, share: float = 1) -> None:
    """One ``train()`` of each, from the same random numbers; nothing but rounding may differ afterwards."""
    left = []
    for model in (stock, twin):
        th.manual_seed(seed)
        np.random.seed(seed)
        model.train(gradient_steps=gradient_steps, batch_size=model.batch_size)
        left.append((float(th.rand(1)), float(np.random.rand())))
    assert left[0] == left[1], "other random numbers were drawn"
    assert_alike(stock, twin, share)


def close(one: Any, other: Any, share: float, floor: float = 0.0) -> bool:
    """Whether two arrays differ by no more than a share of the largest value."""
    one, other = np.asarray(one, dtype=np.float64), np.asarray(other, dtype=np.float64)
    same_gaps = np.array_equal(np.isfinite(one), np.isfinite(other))
    one, other = np.nan_to_num(one), np.nan_to_num(other)
    return same_gaps and bool((np.abs(one - other) <= share * max(np.abs(one).max(initial=0.0), floor)).all())


def assert_moments_alike(mine: Any, others: Any, share: float, name: str) -> None:
    """Compare two optimizers' states, each moment by its own largest value."""
    assert mine["param_groups"] == others["param_groups"]
    for moment in sorted({moment for state in mine["state"].values() for moment, value in state.items() if value is not None}):
        largest = max(float(state[moment].abs().max()) for state in mine["state"].values())
        for key, state in mine["state"].items():
            # The gradient of a single bias is a sum of errors that may cancel; its rounding is that of the errors
            floor = largest if state[moment].numel() == 1 else 1e-7
            assert close(state[moment], others["state"][key][moment], share * ROUNDING, floor), f"{name} {key} {moment}"


def assert_alike(stock: Any, twin: Any, share: float = 1) -> None:
    """Whether two models are in the same state but for rounding, or for several times as much."""
    mine, others = stock.get_parameters(), twin.get_parameters()
    assert mine.keys() == others.keys()
    for name, state in mine.items():
        if "optimizer" in name:
            assert_moments_alike(state, others[name], share, name)
        else:
            for key, value in state.items():
                # Where a gradient is nothing but rounding, Adam makes a step of it
                assert close(value, others[name][key], share * ROUNDING, 1.0), f"{name} {key}"
    assert stock._n_updates == twin._n_updates
    logged, also = stock.logger.name_to_value, twin.logger.name_to_value
    assert logged.keys() == also.keys()
    for key, value in logged.items():
        assert close(value, also[key], share * 1e-4, 0.1), f"{key}: {value} and {also[key]}"
    assert twin.policy.sparsifier.violations() == []
