"""
The one place of this package where an answer depends on who asks. Nothing is patched: Parameters are asked, and look at the
calling function's code object (``sys._getframe``).

Two callers are known, everybody else gets torch's own answer:

* Target updates. Stable-Baselines3's ``polyak_update`` writes ``target.data.mul_(1 - tau)`` and then ``th.add(target.data,
  online.data, alpha=tau, out=target.data)``: two passes over dense memory. No hook is called in between, and all it asks a
  Parameter for is its ``data``. It is given an object that recognises these two calls, see :mod:`sb3_sparse.engine.polyak`.
  This makes a gradient step 1.1 to 1.3 times as fast. Called through a wrapper, or from another function, nothing is
  recognised, and the two passes are torch's.
* ``torch.nn.Parameter(weight)``. It accepts a subclass only if ``detach()`` gives that subclass, which nobody else expects.
"""

from __future__ import annotations

import sys
from types import CodeType
from typing import TYPE_CHECKING, Any

import torch as th
from torch import nn

from sb3_sparse.engine.polyak import Averaged

if TYPE_CHECKING:
    from sb3_sparse.engine.parameter import LazyGradParameter, SurvivorParameter

#: Code of the functions that average targets; they use ``data`` for ``mul_`` and ``th.add`` alone.
TARGET_UPDATES: set[CodeType] = set()
_MAKES_PARAMETERS = nn.Parameter.__new__.__code__
# The getset descriptor
_plain_data: Any = th.Tensor.data


def get_data(parameter: SurvivorParameter) -> Any:
    """
    Get ``data`` of a parameter: the property of :class:`~sb3_sparse.engine.parameter.SurvivorParameter`.

    :param parameter: The parameter.
    :return: The plain tensor; for a target update, what recognises its two calls.
    """
    if parameter.survivors is None:
        return _plain_data.__get__(parameter)
    if sys._getframe(1).f_code not in TARGET_UPDATES:
        parameter.aliased = True
        return _plain_data.__get__(parameter)
    if parameter.averaged is None:
        parameter.averaged = Averaged(parameter)
    return parameter.averaged


def set_data(parameter: LazyGradParameter, value: th.Tensor) -> None:
    """
    Set ``data`` of a parameter.

    :param parameter: The parameter.
    :param value: Its new data.
    """
    parameter.show_gradient()
    parameter.aliased = True
    _plain_data.__set__(parameter, value)


def detach(parameter: LazyGradParameter) -> th.Tensor:
    """
    Give a tensor of the same memory that autograd does not follow, as ``torch.Tensor.detach``.

    :param parameter: The parameter.
    :return: A plain tensor; for the constructor of Parameters, a Parameter.
    """
    parameter.aliased = True
    plain = th.Tensor.detach(parameter)
    if sys._getframe(1).f_code is _MAKES_PARAMETERS:
        return th.Tensor._make_subclass(type(parameter), plain)
    return plain
