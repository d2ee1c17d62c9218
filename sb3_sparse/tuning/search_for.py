""":class:`SearchFor`: a configuration file says itself what rl-zoo3's ``--optimize`` searches in it."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from stable_baselines3.common.callbacks import BaseCallback


class SearchFor(BaseCallback):
    """
    An entry of the ``callback`` list of an rl-zoo3 configuration that says what ``--optimize`` searches. It does nothing while
    training, and is left out of the configurations that are found::

        callback:
          - sb3_sparse.SearchFor: {search: [sparsity, updater, cadence]}

    :param search: Names of searches, or one string with commas between them; see
        :data:`sb3_sparse.tuning.spaces.SEARCHES`.
    :raises ValueError: For unknown names, listing the real ones.
    """

    def __init__(self, search: str | Sequence[str]) -> None:
        super().__init__()
        from sb3_sparse.tuning.spaces import known_searches

        self.search = known_searches(search)
        if "rl_zoo3.hyperparams_opt" in sys.modules:
            from sb3_sparse.tuning.zoo import register_searches

            register_searches()

    def _on_step(self) -> bool:
        return True
