"""Whether a model is learning: a training that an exception has left tells nobody that it is over."""

from __future__ import annotations

import sys
import weakref
from collections.abc import Callable
from types import FrameType

from stable_baselines3.common.base_class import BaseAlgorithm


def is_learning(model: BaseAlgorithm) -> bool:
    """
    Whether a model is in training.

    :param model: A model.
    :return: Whether some thread of this process is in its ``learn()``.
    """
    for top in sys._current_frames().values():
        frame: FrameType | None = top
        while frame is not None:
            if frame.f_code.co_name == "learn" and frame.f_locals.get("self") is model:
                return True
            frame = frame.f_back
    return False


def while_learning(model: BaseAlgorithm) -> Callable[[], bool]:
    """
    Make a question that asks whether a model is in training.

    :param model: A model, which is not kept alive.
    :return: Says whether it is there and learning.
    """
    reference = weakref.ref(model)

    def check() -> bool:
        present = reference()
        return present is not None and is_learning(present)

    return check
