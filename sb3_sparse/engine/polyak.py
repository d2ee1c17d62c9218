"""
Target updates over surviving weights: the one place of this package where the answer depends on who asks.

What it is: Stable-Baselines3's ``polyak_update`` writes ``target.data.mul_(1 - tau)`` and then ``th.add(target.data,
online.data, alpha=tau, out=target.data)``: two passes over dense memory. Both leave zeros zero, so they can be done on the
surviving weights alone, with the same bits. No hook is called in between; the only thing that function asks a Parameter for is
its ``data``. So :func:`get_data` looks at the calling function's code object (``sys._getframe``). To a function registered
in :data:`TARGET_UPDATES` it gives the plain tensor as an object that recognises the two calls. Everybody else gets the plain
tensor.

Why it is kept: a gradient step is 1.1 to 1.3 times as fast with it. Without it everything works as well, and it stops
working, silently and harmlessly, where the function is another one or is called through a wrapper: the two calls are torch's
then.
"""

from __future__ import annotations

import sys
import weakref
from types import CodeType
from typing import TYPE_CHECKING, Any

import torch as th

if TYPE_CHECKING:
    from sb3_sparse.engine.parameter import SurvivorParameter

#: Code of the functions that get the recognising object; they use it for ``mul_`` and ``th.add`` alone.
TARGET_UPDATES: set[CodeType] = set()

# The getset descriptor
_plain_data: Any = th.Tensor.data


def plain_data(parameter: th.Tensor) -> th.Tensor:
    """
    Get ``data`` as torch has it.

    :param parameter: A tensor.
    :return: Its ``data``.
    """
    return _plain_data.__get__(parameter)


def get_data(parameter: SurvivorParameter) -> th.Tensor:
    """
    Get ``data`` of a parameter: what :class:`~sb3_sparse.engine.parameter.SurvivorParameter` has as its property.

    :param parameter: The parameter.
    :return: The plain tensor; to a target update, one that recognises what is done with it.
    """
    if parameter.survivors is None:
        return plain_data(parameter)
    if sys._getframe(1).f_code not in TARGET_UPDATES:
        parameter.aliased = True
        return plain_data(parameter)
    view = parameter.held_data
    if view is None or parameter.held_address != th.Tensor.data_ptr(parameter):
        # By `as_subclass` it would hold the plain tensor as well, see Survivors.knows
        view = parameter.held_data = th.Tensor._make_subclass(_Data, plain_data(parameter))
        view.owner, parameter.held_address = weakref.ref(parameter), th.Tensor.data_ptr(parameter)
    return view


def set_data(parameter: SurvivorParameter, value: th.Tensor) -> None:
    """
    Set ``data`` of a parameter.

    :param parameter: The parameter.
    :param value: Its new data.
    """
    parameter.show_gradient()
    parameter.aliased, parameter.held_data = True, None
    _plain_data.__set__(parameter, value)


class _Data(th.Tensor):
    """What a target update gets: the plain tensor, which knows its parameter."""

    owner: weakref.ref[SurvivorParameter]
    #: Factor of a ``mul_`` that waits for its ``th.add``, which comes next: both are done at once.
    factor: float | None = None

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is _mul_ and _can_wait(*args):
            args[0].factor = args[1]
            return args[0]
        kwargs = kwargs or {}
        if func is _add and _average_survivors(*args, **kwargs):
            return args[0]
        with th._C.DisableTorchFunctionSubclass():
            written = kwargs.get("out", args[0])
            if isinstance(written, _Data):
                if written.factor is not None:
                    written.mul_(written.factor)
                    written.factor = None
                if (owner := written.owner()) is not None and owner.survivors is not None:
                    owner.survivors.seen[owner.place] = -1
            return func(*args, **kwargs)


_mul_, _add = th.Tensor.mul_, th.add


def _can_wait(target: Any, factor: Any, *others: Any) -> bool:
    if others or type(target) is not _Data or type(factor) is not float:
        return False
    owner = target.owner()
    return owner is not None and owner.is_current()


def _average_survivors(target: Any, online: Any, *others: Any, alpha: Any = 1, out: Any = None) -> bool:
    if others or out is not target or type(target) is not _Data or type(online) is not _Data or target.factor is None:
        return False
    to, source = target.owner(), online.owner()
    if to is None or source is None or not to.is_current() or not source.is_current() or not to.has_mask_of(source):
        return False
    own, other = to.survivors, source.survivors
    assert own is not None
    assert other is not None
    with own.lock, other.lock:
        own.network.average(to.place, target.factor, alpha, other.network, source.place)
        own.network.scatter_weight(to.place)
    target.factor = None
    return True
