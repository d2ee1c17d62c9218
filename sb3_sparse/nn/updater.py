"""What lets an updater work on a network: the protocol it follows, and where it keeps what it must remember."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import torch as th
from torch import nn

from sb3_sparse.nn.layers import SparseLayer


class NetworkUpdater(Protocol):
    """
    What changes the masks of a network while it trains; see :meth:`sb3_sparse.nn.sparsifier.Sparsifier.bind`. Steps count
    from 1.
    """

    def wants_dense_gradient(self, network: str, step: int) -> bool:
        """Whether it needs the gradients of pruned weights at this step of the network's optimizer."""

    def before_step(self, network: str, step: int) -> bool:
        """Called before the optimizer's step. Returning False leaves the network out of that step."""

    def after_step(self, network: str, step: int) -> None:
        """Called after the optimizer's step, when the weights have been projected."""


@dataclass(frozen=True)
class Binding:
    """An updater at work on a network, with the optimizer and the layers it is about."""

    updater: NetworkUpdater
    driver: str
    layers: list[SparseLayer]


class UpdaterState(nn.Module):
    """
    What an updater remembers, as buffers made on demand, so that it is saved, loaded, moved and copied with the policy.
    """

    @staticmethod
    def _buffer_name(network: str, key: str) -> str:
        return f"{network}/{key}".replace(".", "~")

    def get(self, network: str, key: str) -> th.Tensor | None:
        """
        :param network: Name of the network.
        :param key: Name of the value, e.g. ``"n_updates"`` or ``"ever_active/actor.mu.0"``.
        :return: The value itself, not a copy, or None.
        """
        return self._buffers.get(self._buffer_name(network, key))

    def set(self, network: str, key: str, value: th.Tensor) -> None:
        """
        :param network: Name of the network.
        :param key: Name of the value.
        :param value: Kept as it is, not copied.
        """
        self.register_buffer(self._buffer_name(network, key), value)

    def keys_of(self, network: str, prefix: str) -> list[str]:
        """
        :param network: Name of the network.
        :param prefix: Beginning of a name.
        :return: The rest of every name that begins so.
        """
        beginning = self._buffer_name(network, prefix)
        return [name[len(beginning) :] for name in self._buffers if name.startswith(beginning)]

    def _load_from_state_dict(self, state_dict: Mapping[str, Any], prefix: str, *args: Any) -> None:
        # What is loaded is the whole state: nothing of the old one stays
        self._buffers.clear()
        for key, value in state_dict.items():
            if key.startswith(prefix):
                self.register_buffer(key[len(prefix) :], value.clone())
        super()._load_from_state_dict(state_dict, prefix, *args)
