"""
Random programs over the networks of a policy, as data: what users, callbacks and algorithms do to networks, in any order.

:func:`run` runs one under the engine of a policy and tells everything a program could see of it.
"""

from __future__ import annotations

import copy
import os
import pickle
from collections.abc import Callable
from contextlib import nullcontext
from functools import cache
from typing import Any
from unittest.mock import patch

import numpy as np
import torch as th
from gymnasium import spaces
from hypothesis import strategies as st
from stable_baselines3.common.utils import polyak_update

from sb3_sparse.engine import crossover
from sb3_sparse.policies import SparseTD3Policy

#: An operation's name, and numbers that say on what.
Operation = tuple[str, int, int]
Program = list[Operation]
ENGINES = ("native", "auto", "torch")


@cache
def _policy(engine: str) -> Any:
    space = spaces.Box(-1, 1, (5,), np.float32)
    with patch.dict(os.environ, SB3_SPARSE_ENGINE=engine):
        th.manual_seed(0)
        kwargs: Any = dict(sparsity=0.6, mask_seed=3, net_arch=dict(pi=[9, 8], qf=[8, 7]))
        policy: Any = SparseTD3Policy(space, spaces.Box(-1, 1, (2,), np.float32), lambda _: 1e-2, **kwargs)
    # Steps are of the gradient's own size: rounding of small gradients stays small
    for part in (policy.actor, policy.critic):
        part.optimizer.param_groups[0]["eps"] = 1.0
    return policy.double()


class World:
    """A policy and what a program has made of it so far."""

    def __init__(self, engine: str) -> None:
        self.engine = engine
        self.policy = copy.deepcopy(_policy(engine))
        generator = th.Generator().manual_seed(1)
        self.inputs = [th.randn(n, 5, dtype=th.float64, generator=generator) for n in (4, 7, 4, 1)]
        self.actions = [th.randn(n, 2, dtype=th.float64, generator=generator) for n in (4, 7, 4, 1)]
        self.inputs[1].requires_grad_()
        self.actions[2].requires_grad_()
        self.outputs: list[th.Tensor] = []
        self.held: list[Any] = []
        self.kept: list[th.Tensor] = []
        self.seen: list[Any] = []
        self.saved: Any = None

    @property
    def networks(self) -> list[Any]:
        policy = self.policy
        return [policy.actor.mu, *policy.critic.q_networks, policy.actor_target.mu, policy.critic_target.q_networks[0]]

    def network(self, number: int) -> Any:
        return self.networks[number % 5]

    def layer(self, number: int) -> Any:
        layers = [module for module in self.network(number) if hasattr(module, "weight_mask")]
        return layers[number // 5 % len(layers)]

    def input_of(self, network: Any, number: int) -> th.Tensor:
        x = self.inputs[number % 4]
        return x if network[0].in_features == 5 else th.cat([x, self.actions[number % 4]], 1)

    def loss(self, number: int) -> th.Tensor:
        chosen = [self.outputs[number % len(self.outputs)]]
        if number % 3 == 0:
            chosen.append(self.outputs[number // 3 % len(self.outputs)])
        terms: list[Any] = [(output.pow(2) if (number + index) % 2 else output).sum() for index, output in enumerate(chosen)]
        if number % 7 == 0:
            terms.append(self.layer(number).weight.pow(2).sum())
        return sum(terms)


def _forward(world: World, a: int, b: int) -> None:
    network = world.network(a)
    mode = [nullcontext(), nullcontext(), th.no_grad(), th.inference_mode(), th.autocast("cpu", th.bfloat16, enabled=False)]
    with mode[b // 4 % 5]:
        output = network(world.input_of(network, b))
    world.seen.append(output.detach().clone())
    if output.requires_grad:
        world.outputs.append(output)


def _iterate(world: World, a: int, b: int) -> None:
    """As stock critics call their networks, with something in between."""
    x = world.input_of(world.policy.critic.q_networks[0], b)
    for index, network in enumerate(world.policy.critic.q_networks):
        output = network(x)
        world.seen.append(output.detach().clone())
        if output.requires_grad:
            world.outputs.append(output)
        if index == 0 and a % 3:
            with th.no_grad():
                (x if a % 3 == 1 and not x.requires_grad else world.policy.critic.q_networks[1][0].weight).mul_(1.25)


def _twice(world: World, a: int, b: int) -> None:
    """A network is called, something changes, and it is called again with the same input."""
    network = world.network(a)
    x = world.input_of(network, b)
    mode = th.no_grad if b % 5 == 4 else nullcontext
    layer = [module for module in network if hasattr(module, "weight_mask")][b // 4 % 3]
    held = layer.weight.data
    with mode():
        outputs = [network(x)]
    with th.no_grad():
        [
            lambda: layer.weight.mul_(0.5),
            lambda: layer.weight.data.mul_(0.5),
            lambda: layer.bias.add_(0.5),
            lambda: layer.replace_mask(layer.weight_mask.roll(1, 0)),
            lambda: x.detach().mul_(0.5),
            lambda: outputs[0].detach().mul_(0.5),
            lambda: None,
            lambda: held.mul_(0.5),
        ][a // 5 % 8]()
    outputs.append(network(x))
    world.seen += [output.detach().clone() for output in outputs]
    world.outputs += [output for output in outputs if output.requires_grad]


def _backward(world: World, a: int, b: int) -> None:
    if world.outputs:
        world.loss(a).backward(retain_graph=bool(b % 3), create_graph=b % 5 == 1)


def _gradients(world: World, a: int, b: int) -> None:
    if not world.outputs:
        return
    wanted = [[*world.network(b).parameters()], [world.inputs[1], world.actions[2]], [world.layer(b).weight]][a % 3]
    found = th.autograd.grad(world.loss(a), wanted, retain_graph=True, create_graph=bool(b % 2), allow_unused=True)
    world.seen += [None if gradient is None else gradient.detach().clone() for gradient in found]
    terms = [gradient.pow(2).sum() for gradient in found if gradient is not None and gradient.requires_grad]
    if terms:
        (sum(terms) + (world.loss(b) if a % 2 else 0.0)).backward(retain_graph=True)


def _partial_backward(world: World, a: int, b: int) -> None:
    if world.outputs:
        world.loss(a).backward(inputs=[world.layer(b).weight], retain_graph=True)


def _values(world: World, layer: Any, b: int) -> th.Tensor:
    values = layer.weight.detach().clone() * (0.5 + b % 3)
    return values + 0.25 if b % 11 == 0 else values


def _write(world: World, a: int, b: int) -> None:
    layer = world.layer(a)
    values, weight = _values(world, layer, b), layer.weight
    ways: list[Callable[[], Any]] = [
        lambda: weight.copy_(values),
        lambda: weight.data.copy_(values),
        lambda: setattr(weight, "data", values),
        lambda: weight.view(-1).copy_(values.view(-1)),
        lambda: weight.detach().numpy().__setitem__(..., values.numpy()),
        lambda: weight[0].data.copy_(values[0]),
        lambda: layer.bias.data.add_(0.5),
        lambda: layer.bias.add_(0.5),
    ]
    with th.no_grad():
        ways[b // 4 % len(ways)]()


def _hold(world: World, a: int, b: int) -> None:
    weight = world.layer(a).weight
    ways: list[Callable[[], Any]] = [
        lambda: weight.data,
        lambda: weight.detach().view(-1),
        lambda: weight.detach().numpy(),
        lambda: weight.detach().data,
    ]
    world.held.append(ways[b % 4]())


def _write_held(world: World, a: int, b: int) -> None:
    if world.held:
        held = world.held[a % len(world.held)]
        with th.no_grad():
            held *= 0.5 + b % 3


def _drop_held(world: World, a: int, b: int) -> None:
    world.held.clear()


def _write_input(world: World, a: int, b: int) -> None:
    with th.no_grad():
        world.inputs[a % 4].mul_(1.5)


def _write_output(world: World, a: int, b: int) -> None:
    if world.outputs:
        with th.no_grad():
            world.outputs[a % len(world.outputs)].add_(1)


def _mask(world: World, a: int, b: int) -> None:
    layer = world.layer(a)
    layer.replace_mask(layer.weight_mask.roll(1 + b % 3, b % 2))


def _want_dense_gradient(world: World, a: int, b: int) -> None:
    layer = world.layer(a)
    layer.wants_dense_gradient = not layer.wants_dense_gradient
    world.seen.append(None if layer.dense_gradient is None else layer.dense_gradient.clone())


def _project(world: World, a: int, b: int) -> None:
    world.layer(a).project()


def _freeze(world: World, a: int, b: int) -> None:
    layer = world.layer(a)
    parameter = layer.weight if b % 2 else layer.bias
    if parameter.requires_grad and b % 3 == 0:
        parameter.requires_grad_(False)
    elif b % 3:
        parameter.requires_grad_(True)


def _optimizers(world: World) -> list[Any]:
    return [world.policy.actor.optimizer, world.policy.critic.optimizer]


def _step(world: World, a: int, b: int) -> None:
    _optimizers(world)[a % 2].step()


def _clear(world: World, a: int, b: int) -> None:
    [
        lambda: _optimizers(world)[a % 2].zero_grad(),
        lambda: _optimizers(world)[a % 2].zero_grad(set_to_none=False),
        lambda: world.network(a).zero_grad(),
        lambda: setattr(world.layer(a).weight, "grad", None),
    ][b % 4]()


def _train(world: World, a: int, b: int) -> None:
    """A stock gradient step of TD3: both updates and the targets'."""
    policy, observations = world.policy, world.inputs[b % 4].detach()
    q_values = policy.critic(observations, world.actions[b % 4].detach())
    policy.critic.optimizer.zero_grad()
    sum(q.pow(2).mean() for q in q_values).backward()
    policy.critic.optimizer.step()
    policy.actor.optimizer.zero_grad()
    # Not by the actor itself: its preprocessing rounds observations to float32, and the networks are float64
    (-policy.critic.q1_forward(observations, policy.actor.mu(observations)).mean()).backward()
    policy.actor.optimizer.step()
    _average(world, a, b)


def _average(world: World, a: int, b: int) -> None:
    policy = world.policy
    for part in ("actor", "critic"):
        online, target = getattr(policy, part), getattr(policy, f"{part}_target")
        polyak_update(online.parameters(), target.parameters(), 0.3)


def _look(world: World, a: int, b: int) -> None:
    gradient = world.layer(a).weight.grad if b % 2 else world.layer(a).bias.grad
    world.seen.append(None if gradient is None else gradient.detach().clone())


def _keep(world: World, a: int, b: int) -> None:
    gradient = world.layer(a).weight.grad
    if gradient is not None:
        world.kept.append(gradient)


def _clip(world: World, a: int, b: int) -> None:
    th.nn.utils.clip_grad_norm_(world.network(a).parameters(), 0.1)


def _keep_moment(world: World, a: int, b: int) -> None:
    for state in _optimizers(world)[a % 2].state.values():
        if "exp_avg" in state:
            world.kept.append(state["exp_avg"])
            break


def _save(world: World, a: int, b: int) -> None:
    world.saved = copy.deepcopy(world.policy.state_dict())


def _load(world: World, a: int, b: int) -> None:
    if world.saved is not None:
        world.policy.load_state_dict(world.saved)


def _copy(world: World, a: int, b: int) -> None:
    """The copy goes on, or the original."""
    copied = copy.deepcopy(world.policy)
    if b % 2:
        world.policy = copied
        world.outputs.clear()
        world.held.clear()


def _pickle(world: World, a: int, b: int) -> None:
    network = pickle.loads(pickle.dumps(world.network(a)))
    world.seen.append(network(world.input_of(network, b)).detach())


def _cast(world: World, a: int, b: int) -> None:
    network = world.network(a)
    network.float()
    world.seen.append(network(world.input_of(network, b).float()).detach().double())
    network.double()


def _scale_gradient(gradient: th.Tensor) -> th.Tensor:
    return gradient * 1.5


def _scale_output(module: Any, args: Any, output: th.Tensor) -> th.Tensor:
    return output * 1.25


def _hook(world: World, a: int, b: int) -> None:
    parameter = world.layer(a).weight
    if b % 2 and parameter.requires_grad:
        parameter.register_hook(_scale_gradient)
    else:
        world.layer(a).register_forward_hook(_scale_output)


OPERATIONS: dict[str, Callable[[World, int, int], None]] = {
    "forward": _forward,
    "iterate": _iterate,
    "twice": _twice,
    "backward": _backward,
    "gradients": _gradients,
    "partial backward": _partial_backward,
    "write": _write,
    "hold": _hold,
    "write held": _write_held,
    "drop held": _drop_held,
    "write input": _write_input,
    "write output": _write_output,
    "mask": _mask,
    "want dense gradient": _want_dense_gradient,
    "project": _project,
    "freeze": _freeze,
    "step": _step,
    "clear": _clear,
    "train": _train,
    "average": _average,
    "look": _look,
    "keep": _keep,
    "clip": _clip,
    "keep moment": _keep_moment,
    "save": _save,
    "load": _load,
    "copy": _copy,
    "pickle": _pickle,
    "cast": _cast,
    "hook": _hook,
}
#: Those that a program needs more often than others.
_OFTEN = ("forward", "forward", "forward", "backward", "backward", "train", "write", "iterate", "twice")
#: Programs that tell what random ones tell rarely.
WITNESSES: list[Program] = [
    [("forward", 0, 0), ("write", 0, 0), ("forward", 0, 0)],
    [("forward", 1, 0), ("mask", 1, 1), ("forward", 1, 0)],
    [("forward", 1, 0), ("gradients", 3, 1)],
    [("forward", 4, 0), ("train", 0, 0), ("mask", 1, 1), ("train", 0, 0), ("forward", 4, 0)],
    [("iterate", 56, 50), ("gradients", 58, 7)],
    [("iterate", 34, 4), ("step", 21, 17), ("partial backward", 38, 56)],
    [("iterate", 6, 13), ("iterate", 5, 53), ("partial backward", 39, 17)],
    [("forward", 55, 42), ("iterate", 52, 52), ("partial backward", 49, 36)],
    [("twice", 0, 0), ("write output", 1, 0), ("partial backward", 1, 5)],
    [("twice", 35, 0)],
    [("iterate", 0, 0), ("mask", 1, 0), ("train", 0, 0)],
    [("twice", 0, 0), ("backward", 0, 0)],
    [("forward", 0, 0), ("backward", 1, 0), ("forward", 0, 0), ("backward", 1, 0)],
    [("iterate", 0, 0), ("gradients", 0, 6)],
    [("forward", 1, 0), ("backward", 0, 0), ("train", 0, 0)],
    [("iterate", 0, 0), ("backward", 0, 0), ("train", 0, 0)],
    [("forward", 2, 0), ("hook", 2, 0), ("train", 0, 0)],
    [("twice", 3, 0), ("gradients", 0, 8)],
    [("hook", 4, 0), ("twice", 4, 0)],
    [("iterate", 0, 1), ("want dense gradient", 2, 0), ("gradients", 1, 0)],
    [("train", 0, 0), ("keep moment", 0, 0), ("train", 0, 0)],
    [("twice", 1, 0), ("backward", 0, 0), ("step", 1, 0)],
    [("twice", 4, 0), ("average", 0, 0), ("forward", 1, 0), ("average", 0, 0)],
    [("iterate", 0, 0), ("write", 7, 4), ("backward", 1, 0)],
    [("hook", 1, 0), ("train", 0, 0)],
    [("train", 0, 0), ("mask", 1, 1), ("train", 0, 0)],
    [("twice", 35, 31), ("cast", 0, 58), ("train", 49, 24), ("backward", 8, 5)],
]
_numbers = st.integers(0, 59)
programs: Any = st.lists(st.tuples(st.sampled_from([*_OFTEN, *OPERATIONS]), _numbers, _numbers), min_size=2, max_size=14)


def run(program: Program, engine: str) -> tuple[list[Any], str | None]:
    """
    Run a program.

    :param program: The program.
    :param engine: One of :data:`ENGINES`.
    :return: All that it saw, and the error it ended with.
    """
    world = World(engine)
    error = None
    # Half of the batches go one way, half the other: a program changes engines while it runs
    with patch.object(crossover.Crossovers, "ratio", lambda self, sequence, n_samples: 2.0 if n_samples == 4 else 0.5):
        for name, a, b in program:
            try:
                OPERATIONS[name](world, a, b)
            except RuntimeError as caught:
                error = f"{name}: {caught}"
                break
    final: list[Any] = [value.detach().clone() for value in world.policy.parameters()]
    if error is None:  # otherwise a backward pass ended halfway
        final += [parameter.grad for parameter in (*world.policy.parameters(), *world.inputs, *world.actions)]
        final += [value.clone() for value in world.kept]
        final += [value for optimizer in _optimizers(world) for state in optimizer.state.values() for value in state.values()]
    return [*world.seen, *final], error


def difference(program: Program, engine: str) -> str | None:
    """
    Compare an engine with torch.

    :param program: A program.
    :param engine: One of :data:`ENGINES`.
    :return: What a program could see of the difference, None if there is none.
    """
    (own, own_error), (other, other_error) = run(program, engine), run(program, "torch")
    if own_error is not None and "engine='torch'" in own_error:
        return None  # a refusal that names the way out
    if own_error is not None and own_error.startswith("gradients") and "inplace" in own_error:
        return None  # autograd.grad() does not say whether it is the first layer's weight that it wants
    if (own_error is None) != (other_error is None):
        return f"{own_error!r} instead of {other_error!r}"
    if len(own) != len(other):
        return f"{len(own)} values instead of {len(other)}"
    for index, (first, second) in enumerate(zip(own, other, strict=True)):
        if (first is None) != (second is None):
            return f"value {index} is {first} instead of {second}"
        # The networks are float64, but one operation rounds weights to float32
        if first is not None and not th.allclose(first.detach(), second.detach(), rtol=1e-5, atol=1e-6, equal_nan=True):
            return f"value {index} differs by {(first - second).abs().max()}"
    return None
