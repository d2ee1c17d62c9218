"""What lets an updater work on a network: the protocol that it follows. What it remembers is in ``updater_state.py``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from sb3_sparse.nn.layers import SparseLayer


class Updater(Protocol):
    """
    What changes the masks of a network while it trains; see :meth:`sb3_sparse.nn.sparsifier.Sparsifier.start_updater`. Steps
    are those of the network's optimizer and count from 1.
    """

    def has_ended(self) -> bool:
        """Whether the training it belongs to is over; nothing else is asked of it then."""

    def wants_dense_gradient(self, network: str, step: int) -> bool:
        """Whether it needs the gradients of pruned weights at this step."""

    def before_step(self, network: str, step: int) -> bool:
        """Called before the optimizer's step. Returning False leaves the network out of that step."""

    def after_step(self, network: str, step: int) -> None:
        """Called after the optimizer's step, when the weights have been projected."""


@dataclass(frozen=True)
class ActiveUpdater:
    """
    An updater at work on a network.

    :param updater: The updater.
    :param optimizer: Name of the optimizer whose steps are the network's.
    :param layers: The network's layers.
    """

    updater: Updater
    optimizer: str
    layers: list[SparseLayer]
