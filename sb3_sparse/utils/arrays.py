"""Numbers out of torch, without a trace in the tensor they come from."""

from __future__ import annotations

import numpy as np
import torch as th


def array_of(tensor: th.Tensor) -> np.ndarray:
    """
    Copy a tensor into an array of its own memory.

    ``tensor.numpy()`` shares memory, and torch marks such memory for good. Who had an array of a weight may have written to
    it unseen: the kernels would read that weight anew for every pass from then on, and Adam would go over all of it.

    :param tensor: Any shape, on any device, of a dtype that numpy has.
    :return: Same shape and dtype.
    """
    return tensor.detach().cpu().clone(memory_format=th.contiguous_format).numpy()
