"""
Which parameters of a policy do what, found by watching it decide and judge: which layers run, in which order, and whose
weights are used by something else than their layer's forward.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch as th
from torch import nn
from torch.overrides import TorchFunctionMode

from sb3_sparse.policies.passes import copied, decide, forward_all, judge, sample, to_tensor
from sb3_sparse.utils.randomness import devices_of, undisturbed_randomness

#: Samples that a policy is watched with: normalisation over a batch needs more than one.
N_SAMPLES = 2
#: Reading these uses no value of a tensor.
_HARMLESS = {"grad", "_grad", "requires_grad", "names", "_base"}


@dataclass
class Usage:
    """
    What was seen of a policy. Everything by path in the policy, the first that a module or parameter has.

    :param decides: Parameters that are used in deciding on actions.
    :param judges: Parameters that are used in judging states or actions.
    :param collects: Parameters that are used while experience is collected. Stock actor-critic policies go another way then.
    :param order: Layers, in the order in which they ran first.
    :param bypassed: Layers whose weight is used outside of their forward.
    """

    decides: set[str]
    judges: set[str]
    collects: set[str]
    order: list[str]
    bypassed: set[str]


class _Watch(TorchFunctionMode):
    """Sees every call of a torch function, and which parameters are among its arguments."""

    def __init__(self, policy: nn.Module, layers: Mapping[nn.Module, str]) -> None:
        super().__init__()
        self.names = {parameter: name for name, parameter in policy.named_parameters()}
        self.layers = layers
        self.layer_of = {getattr(layer, "weight", None): layer for layer in layers}
        self.running: list[nn.Module] = []
        self.used: set[str] = set()
        self.order: list[str] = []
        self.bypassed: set[str] = set()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        # What gives no tensor, such as a shape, uses no value. A descriptor's name is its owner's attribute
        owner = getattr(func, "__self__", None)
        if getattr(owner, "__name__", "") not in _HARMLESS and any(True for _ in _tensors(result)):
            for tensor in _tensors([args, kwargs]):
                if isinstance(tensor, nn.Parameter) and tensor in self.names:
                    self._meet(tensor)
        return result

    def _meet(self, parameter: nn.Parameter) -> None:
        self.used.add(self.names[parameter])
        layer = self.layer_of.get(parameter)
        if layer is not None and layer not in self.running:
            self.bypassed.add(self.layers[layer])

    def before(self, layer: nn.Module, inputs: Any) -> None:
        self.running.append(layer)
        if self.layers[layer] not in self.order:
            self.order.append(self.layers[layer])

    def after(self, layer: nn.Module, inputs: Any, output: Any) -> None:
        self.running.remove(layer)

    @contextmanager
    def watching(self) -> Iterator[None]:
        handles = []
        for layer in self.layers:
            handles += [
                layer.register_forward_pre_hook(self.before),
                layer.register_forward_hook(self.after, always_call=True),
            ]
        try:
            with self:
                yield
        finally:
            for handle in handles:
                handle.remove()


def _tensors(value: Any) -> Iterator[th.Tensor]:
    if isinstance(value, th.Tensor):
        yield value
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from _tensors(item)
    elif isinstance(value, Mapping):
        yield from _tensors(list(value.values()))


def watch(policy: Any, layers: Iterable[str]) -> Usage | None:
    """
    Watch a copy of a policy decide and judge on samples of its observation space.

    :param policy: A policy; neither it nor a random stream is changed.
    :param layers: Paths of the layers whose running is of interest.
    :return: What was seen; None if the policy cannot be copied, or refuses the samples.
    """
    try:
        with undisturbed_randomness(devices_of(policy)), th.no_grad():
            own = copied(policy)
            own.set_training_mode(False)
            obs = to_tensor(own, sample(own.observation_space, N_SAMPLES))
            by_module = {own.get_submodule(name): name for name in layers}
            deciding, judging, collecting = (_Watch(own, by_module) for _ in range(3))
            with deciding.watching():
                actions = decide(own, obs)
            with judging.watching():
                judge(own, obs, actions)
            with collecting.watching():
                forward_all(own, obs)
    except Exception:
        # It is somebody else's code, on data that it may not have been made for
        return None
    watches = (collecting, deciding, judging)
    order = list(dict.fromkeys(name for one in watches for name in one.order))
    return Usage(deciding.used, judging.used, collecting.used, order, set().union(*(one.bypassed for one in watches)))
