"""Random programs around accelerated steps: whatever is done to a model between its steps, the next one is stock's."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from typing import Any

import numpy as np
import pytest
import torch as th
from hypothesis import given, settings
from hypothesis import strategies as st
from stable_baselines3 import DQN, SAC, TD3

from sb3_sparse.engine import native
from tests.accelerated.twins import ROUNDING, assert_alike, close, make_twins, step_both

pytestmark = [
    pytest.mark.skipif(not native.available(), reason="needs the compiled kernels"),
    pytest.mark.filterwarnings("ignore:accelerate"),
]


def layers(model: Any) -> list[Any]:
    return [*model.policy.sparsifier.layers.values()]


def pick(items: list[Any], number: int) -> Any:
    return items[number % len(items)]


def write(model: Any, number: int) -> None:
    with th.no_grad():
        pick(layers(model), number).weight.mul_(0.9)


def write_bias(model: Any, number: int) -> None:
    with th.no_grad():
        pick(layers(model), number).bias.add_(0.01)


def write_data(model: Any, number: int) -> None:
    pick(layers(model), number).weight.data.mul_(1.1)


def write_target(model: Any, number: int) -> None:
    targets = [target for found in model.policy.sparsifier.targets.values() for target in found]
    pick(targets, number).weight.data.mul_(1.05)


def keep_an_array(model: Any, number: int) -> None:
    model.array = pick(layers(model), number).weight.detach().numpy()


def write_the_array(model: Any, number: int) -> None:
    if getattr(model, "array", None) is not None:
        model.array *= 0.95


def other_memory(model: Any, number: int) -> None:
    weight = pick(layers(model), number).weight
    weight.data = weight.data.clone() * 0.9


def other_masks(model: Any, number: int) -> None:
    sparsifier = model.policy.sparsifier
    name = pick([*sparsifier.layers], number)
    mask = sparsifier.layers[name].weight_mask
    order = th.randperm(mask.numel(), generator=th.Generator().manual_seed(number))
    sparsifier.set_masks({name: mask.flatten()[order].reshape(mask.shape)})


def look(model: Any, number: int) -> None:
    model.looked = [None if layer.weight.grad is None else layer.weight.grad.clone() for layer in layers(model)]


def clear(model: Any, number: int) -> None:
    for optimizer in model.policy.sparsifier.optimizers.values():
        optimizer.zero_grad(set_to_none=number % 2 == 0)


def add_to_a_gradient(model: Any, number: int) -> None:
    weight = pick(layers(model), number).weight
    if weight.grad is not None:
        weight.grad.mul_(2)


def step_by_hand(model: Any, number: int) -> None:
    pick([*model.policy.sparsifier.optimizers.values()], number).step()


def moments(model: Any, number: int) -> None:
    optimizer = pick([*model.policy.sparsifier.optimizers.values()], number)
    for state in optimizer.state.values():
        state["exp_avg"].mul_(0.5)


def reload(model: Any, number: int) -> None:
    model.set_parameters(deepcopy(model.get_parameters()))


def freeze(model: Any, number: int) -> None:
    parameter = pick(layers(model), number).weight
    parameter.requires_grad_(not parameter.requires_grad)


def hook(model: Any, number: int) -> None:
    present = model.__dict__.setdefault("hooks", [])
    if present:
        present.pop().remove()
    else:
        present.append(pick(layers(model), number).register_forward_hook(lambda *_: None))


def rates(model: Any, number: int) -> None:
    model.lr_schedule = lambda _: pick([1e-3, 3e-4, 1e-2], number)
    model.gamma, model.tau = pick([0.9, 0.99], number), pick([0.005, 0.1, 1.0], number)


def batch(model: Any, number: int) -> None:
    model.batch_size = pick([1, 16, 37, 64, 130], number)


def act(model: Any, number: int) -> None:
    model.acted = model.predict(np.full((1, 7), number / 10, np.float32), deterministic=True)[0]


def mode(model: Any, number: int) -> None:
    model.policy.set_training_mode(number % 2 == 0)


OPERATIONS: list[Callable[[Any, int], None]] = [
    *(write, write_bias, write_data, write_target, keep_an_array, write_the_array, other_memory, other_masks, look, clear),
    *(add_to_a_gradient, step_by_hand, moments, reload, freeze, hook, rates, batch, act, mode),
]


def run(algorithm: Any, program: list[tuple[int, int]]) -> None:
    # With so large an epsilon Adam makes no step of what is nothing but rounding
    stock, twin = make_twins(algorithm, policy_kwargs=dict(optimizer_kwargs=dict(eps=1e-2)))
    for seed, (index, number) in enumerate(program):
        operation = OPERATIONS[index % len(OPERATIONS)]
        for model in (stock, twin):
            operation(model, number)
        for name in ("looked", "acted"):
            mine, others = (getattr(model, name, None) for model in (stock, twin))
            if name == "acted" and mine is not None:
                assert np.allclose(mine, others, atol=1e-5)
            elif mine is not None:
                for one, other in zip(mine, others, strict=True):
                    assert (one is None) == (other is None), f"a gradient after {operation.__name__}"
                    assert one is None or close(one, other, ROUNDING * 2, 1e-4)
        assert_alike(stock, twin, share=2)
        step_both(stock, twin, seed, gradient_steps=1 + number % 2, share=2)
    assert twin.policy.sparsifier.violations() == []


PROGRAMS = st.lists(st.tuples(st.integers(0, len(OPERATIONS) - 1), st.integers(0, 20)), min_size=1, max_size=8)


@pytest.mark.parametrize("algorithm", [TD3, SAC, DQN])
@settings(max_examples=25)
@given(program=PROGRAMS)
def test_random_programs(algorithm, program):
    run(algorithm, program)


@pytest.mark.expensive
@pytest.mark.parametrize("algorithm", [TD3, SAC, DQN])
@settings(max_examples=1000)
@given(program=PROGRAMS)
def test_many_random_programs(algorithm, program):
    run(algorithm, program)
