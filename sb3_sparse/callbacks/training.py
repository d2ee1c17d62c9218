"""
A callback's life: as long as the training it was given to, however that ends.

Stable-Baselines3 calls ``on_training_end`` where ``learn()`` returns, not where an exception or Ctrl-C leaves it, and never
for the child of an ``EventCallback``. What it does at the beginning of every ``learn()`` is to note the time in
``model.start_time``. So a training is over as soon as another time stands there.
"""

from __future__ import annotations

import weakref
from typing import Any, Generic, TypeVar

from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.callbacks import BaseCallback

from sb3_sparse.callbacks.events import Event

EventT = TypeVar("EventT", bound=Event)


class Training:
    """
    One call of ``learn()``, remembered without keeping the model alive.

    :param model: The model, in that call.
    """

    def __init__(self, model: BaseAlgorithm) -> None:
        self._model = weakref.ref(model)
        self._start_time = model.start_time

    @property
    def is_over(self) -> bool:
        """Whether the model is gone or has begun another training."""
        model = self._model()
        return model is None or model.start_time != self._start_time


class TrainingCallback(BaseCallback, Generic[EventT]):
    """
    What all callbacks of this package share: they know whether the training they were given to is still the model's, and
    keep a log of what they did in it.

    Subclasses that extend ``_on_training_start``, ``_on_step`` or ``_on_training_end`` call these here first.

    :param verbose: 1 prints every event.
    """

    def __init__(self, verbose: int = 0) -> None:
        super().__init__(verbose)
        #: What happened in the present training, oldest first.
        self.events: list[EventT] = []
        self._training: Training | None = None

    def has_ended(self) -> bool:
        """Whether the training this callback was given to is over, or none has begun."""
        return self._training is None or self._training.is_over

    def _on_training_start(self) -> None:
        self.events = []
        self._training = Training(self.model)

    def _on_step(self) -> bool:
        if self._training is None:
            # The child of a callback that does not say when training starts, such as EvalCallback's callback_on_new_best
            self._on_training_start()
        elif self._training.is_over:
            # Whoever is called is in training: another learn() of the same model was called from within this one
            self._training = Training(self.model)
            self._on_return()
        return True

    def __getstate__(self) -> dict[str, Any]:
        # A copy is in no training until it is told of one
        return {**self.__dict__, "_training": None}

    def _on_return(self) -> None:
        """Called when the model comes back to this training from another one that was begun inside it."""

    def _on_training_end(self) -> None:
        self._training = None

    def _log(self, event: EventT) -> None:
        """Put an event into the log, and tell Stable-Baselines3's logger."""
        self.events.append(event)
        for key, value in event.logged().items():
            self.logger.record(key, value)
        if self.verbose > 0:
            print(event)
