"""A load that fails leaves everything as it was, though Stable-Baselines3 loads a policy and its optimizers one by one."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any

import torch as th

from sb3_sparse.nn.optimizer_state import check_loadable

if TYPE_CHECKING:
    from sb3_sparse.nn.sparsifier import Sparsifier


def _copied(value: Any) -> Any:
    if isinstance(value, th.Tensor):
        return value.detach().clone()
    return {key: _copied(item) for key, item in value.items()} if isinstance(value, Mapping) else value


class Undo:
    """
    What a policy was before a load, kept until its optimizers are loaded, too, or make a step.

    :param sparsifier: The sparsifier of the policy that is about to be loaded.
    :param state_dict: The policy's own, with everything among its keys. Copied.
    :param reload: Loads a state dict into the policy, whatever is in it.
    """

    def __init__(self, sparsifier: Sparsifier, state_dict: Mapping[str, Any], reload: Callable[[Any], Any]) -> None:
        self.sparsifier = sparsifier
        self.reload = reload
        self.state_dict = _copied(state_dict)
        self.n_planned = dict(sparsifier.n_planned)
        self.pruned_values = dict(sparsifier.pruned_values)
        #: State of the optimizers, by name, as far as it is touched.
        self.states: dict[str, dict[Any, Any]] = {}
        self.groups: dict[str, list[dict[str, Any]]] = {}
        self.loaded: set[str] = set()

    def keep_moments(self, optimizers: Iterable[str]) -> None:
        """
        Remember what optimizers hold, before it is changed.

        :param optimizers: Their names.
        """
        for name in optimizers:
            if name not in self.states:
                optimizer = self.sparsifier.optimizers[name]
                self.states[name] = {parameter: _copied(state) for parameter, state in optimizer.state.items()}
                self.groups[name] = [{**group, "params": list(group["params"])} for group in optimizer.param_groups]

    def will_change_masks(self, state_dict: Mapping[str, Any]) -> bool:
        """
        Whether moments are about to be lost.

        :param state_dict: What is about to be loaded.
        :return: Whether it brings a layer another mask.
        """
        return any(
            key.endswith("weight_mask") and not th.equal(value.to(self.state_dict[key]), self.state_dict[key])
            for key, value in state_dict.items()
            if key in self.state_dict
        )

    def restore(self) -> None:
        """Put everything back."""
        self.reload(self.state_dict)
        self.sparsifier.n_planned = self.n_planned
        self.sparsifier.pruned_values = self.pruned_values
        for name, state in self.states.items():
            optimizer = self.sparsifier.optimizers[name]
            optimizer.state.clear()
            optimizer.state.update(state)
            for group, old in zip(optimizer.param_groups, self.groups[name], strict=True):
                group.update(old)

    def before_optimizer(self, name: str, state_dict: Mapping[str, Any]) -> None:
        """
        Be told that an optimizer is about to be loaded.

        :param name: Its name.
        :param state_dict: With what.
        :raises RuntimeError: If that cannot be; everything is as it was before the policy was loaded then.
        """
        try:
            check_loadable(self.sparsifier.optimizers[name], name, state_dict)
        except (RuntimeError, ValueError):
            self.restore()
            raise
        self.keep_moments([name])
        self.loaded.add(name)
