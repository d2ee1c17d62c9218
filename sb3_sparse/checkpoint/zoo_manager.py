"""The ``ExperimentManager`` with which rl-zoo3's train writes checkpoints and goes on from them. Needs rl-zoo3."""

from __future__ import annotations

from typing import Any

from rl_zoo3.exp_manager import ExperimentManager
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.vec_env import VecEnv

from sb3_sparse.checkpoint.resuming import go_on, open_checkpoint
from sb3_sparse.checkpoint.run_checkpoint import RunCheckpoint
from sb3_sparse.checkpoint.snapshot import Resumption
from sb3_sparse.checkpoint.store import Found, Store
from sb3_sparse.checkpoint.zoo import Plan

#: Exit code of a training that a second Ctrl-C stopped, without a checkpoint: 128 + SIGINT, as shells have it.
_INTERRUPTED = 130


class Learning:
    """Stands for the model where rl-zoo3 calls its ``learn()``."""

    def __init__(self, model: BaseAlgorithm, resumption: Resumption | None) -> None:
        self.model = model
        self.env = model.env
        self.resumption = resumption

    def learn(self, n_timesteps: int, callback: Any, **arguments: Any) -> None:
        try:
            if self.resumption is None:
                self.model.learn(n_timesteps, callback=callback, **arguments)
            else:
                go_on(self.model, self.resumption, callback, **arguments)
        except KeyboardInterrupt:
            # rl-zoo3 would save the model and end as if the training had been completed
            raise SystemExit(_INTERRUPTED) from None


class CheckpointingManager(ExperimentManager):
    """
    rl-zoo3's manager of one training, with checkpoints: it adds the callback, works in the folder that is there, and takes the
    model from the checkpoint.
    """

    #: What to do; a subclass for each training has it.
    plan: Plan
    #: What brings the model back, once it is made.
    _resumption: Resumption | None = None

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if self.plan.run is not None:
            self.save_path = str(self.plan.run.folder)
            self.params_path = f"{self.save_path}/{self.env_name}"
            self.continue_training = bool(self.plan.run.store.steps())

    def read_hyperparameters(self) -> tuple[dict[str, Any], dict[str, Any]]:
        if self.plan.run is None:
            return super().read_hyperparameters()
        print(f"Going on in {self.plan.run.folder}")
        return dict(self.plan.run.hyperparameters), dict(self.plan.run.hyperparameters)

    def create_callbacks(self) -> None:
        super().create_callbacks()
        options = self.plan.options
        if self.plan.run is not None and options is None:
            options = _options_of(self.plan.run.store)
        written = [callback for callback in self.callbacks if isinstance(callback, RunCheckpoint)]
        if not written and options is not None and not self.optimize_hyperparameters:
            written.append(RunCheckpoint(**options))
            self.callbacks += written
        for callback in written:
            if callback.folder is None:
                callback.folder = self.save_path

    def _load_pretrained_agent(self, hyperparams: dict[str, Any], env: VecEnv) -> BaseAlgorithm:
        if self.plan.run is None:
            return super()._load_pretrained_agent(hyperparams, env)
        run = self.plan.run
        model, self._resumption = open_checkpoint(run.store, env, device=None, allow_pickle=run.allow_pickle)
        print(f"Going on from step {self._resumption.step} of {self._resumption.total_timesteps}")
        return model

    def _save_config(self, saved_hyperparams: dict[str, Any]) -> None:
        if self.plan.run is None:
            super()._save_config(saved_hyperparams)

    def learn(self, model: BaseAlgorithm) -> None:
        if self.plan.run is not None and self._resumption is None:
            # It begins again; the callback itself keeps others from the folder
            self.plan.run.store.close()
        if any(isinstance(callback, RunCheckpoint) for callback in self.callbacks):
            stand_in: Any = Learning(model, self._resumption)
            super().learn(stand_in)
        else:
            super().learn(model)


def _options_of(store: Store) -> dict[str, Any]:
    """Arguments of the run's callback, as the newest readable checkpoint has them, or the run's beginning."""
    for _, found in store.candidates():
        if isinstance(found, Found):
            return dict(found.content.tree["own"])
    return store.options()
