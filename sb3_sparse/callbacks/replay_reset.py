""":class:`ReplayReset`: empty the replay buffer now and then (PlaD)."""

from __future__ import annotations

from stable_baselines3.her.her_replay_buffer import HerReplayBuffer

from sb3_sparse.callbacks.clock import Clock
from sb3_sparse.callbacks.events import ResetEvent
from sb3_sparse.callbacks.replay import OffPolicyCallback


class ReplayReset(OffPolicyCallback[ResetEvent]):
    """
    Empty the replay buffer every so many steps, so that a network that was pruned learns from what it does itself and not from
    what a larger network did (PlaD; the interval is its "0.2M").

    At a tick of the clock the buffer is emptied before the transition of that step is stored; so it is never empty while the
    algorithm trains, but the first gradient steps after it see few transitions. Nothing else changes: exploration, warm-up and
    optimizers go on. When buffers are emptied follows from the count of environment steps alone, so a resumed training empties
    its own where it would have anyway.

    Logs ``replay/n_dropped``: transitions that were forgotten.

    :param every: Environment steps (of all environments together) between two times, at least 1.
    :param start: Not before: a float is a fraction of the training, an integer environment steps. None: when gradient steps
        begin (``learning_starts``).
    :param stop: Not from then on, as ``start``. None: until the training ends.
    :param verbose: 1 to print when it happens.
    :raises ValueError: If an argument is out of its range; when training starts, if the model has no replay buffer, or one for
        hindsight, which knows where episodes begin and cannot forget the half of one.
    """

    def __init__(
        self, every: int, *, start: float | int | None = None, stop: float | int | None = None, verbose: int = 0
    ) -> None:
        super().__init__(verbose)
        self.clock = Clock(every, unit="timesteps", start=start, stop=stop)

    def _on_training_start(self) -> None:
        super()._on_training_start()
        model = self._algorithm
        if isinstance(model.replay_buffer, HerReplayBuffer):
            raise ValueError(
                "ReplayReset cannot empty a HerReplayBuffer: it keeps account of whole episodes, of which one is in progress"
            )
        self.clock.set(model._total_timesteps, model.learning_starts)

    def _on_step(self) -> bool:
        super()._on_step()
        # Looked up each time: `load_replay_buffer` replaces it
        buffer, timestep = self._algorithm.replay_buffer, self.num_timesteps
        assert buffer is not None
        if self.clock.is_due(timestep, 0, self.clock.ticks(timestep - buffer.n_envs)):
            n_dropped = buffer.size() * buffer.n_envs
            buffer.reset()
            self._log(ResetEvent(timestep, n_dropped))
        return True
