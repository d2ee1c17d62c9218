"""A callback that accelerates a model, for rl-zoo3's configurations, which name callbacks and call no functions."""

from __future__ import annotations

from stable_baselines3.common.callbacks import BaseCallback

from sb3_sparse.accelerated import accelerate
from sb3_sparse.engine import native


class Accelerate(BaseCallback):
    """
    Accelerates the model that it is given to, see :func:`~sb3_sparse.accelerated.accelerate`; in rl-zoo3's YAML
    ``callback: [sb3_sparse.Accelerate]``. Without the compiled engine it says so once, and stock ``train()`` runs: a
    configuration that names it works everywhere.

    :param verbose: As for every callback.
    :raises TypeError: On training start, for a model that :func:`~sb3_sparse.accelerated.accelerate` refuses.
    """

    def _init_callback(self) -> None:
        if native.available():
            accelerate(self.model)
        else:
            native.notice(f"Accelerate leaves training to stock train(): {native.why_not()}")

    def _on_step(self) -> bool:
        return True
