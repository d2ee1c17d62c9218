"""
Target updates over surviving weights.

Both passes of Stable-Baselines3's ``polyak_update`` over a target, ``mul_`` and ``th.add``, leave zeros zero, so they can be
done on the surviving weights alone, with the same bits. :mod:`sb3_sparse.engine.callers` says how that function comes by what
is here.
"""

from __future__ import annotations

import weakref
from typing import TYPE_CHECKING, Any

import torch as th

if TYPE_CHECKING:
    from sb3_sparse.engine.parameter import SurvivorParameter

# The getset descriptor
_plain_data: Any = th.Tensor.data


class Averaged:
    """
    What a target update gets for the ``data`` of a parameter.

    :param parameter: The parameter; it is held weakly.
    """

    __slots__ = ("factor", "owner")

    def __init__(self, parameter: SurvivorParameter) -> None:
        self.owner = weakref.ref(parameter)
        #: Factor of a ``mul_`` that waits for its ``th.add``, which comes next: both are done at once.
        self.factor: float | None = None

    def tensor(self) -> th.Tensor:
        """The plain tensor, with what waited done."""
        parameter = self.owner()
        assert parameter is not None
        data, factor = _plain_data.__get__(parameter), self.factor
        parameter.aliased, self.factor = True, None
        return data if factor is None else data.mul_(factor)

    def mul_(self, factor: Any) -> Any:
        if type(factor) is not float or self.factor is not None:
            return self.tensor().mul_(factor)
        self.factor = factor
        return self

    def __getattr__(self, name: str) -> Any:
        return getattr(self.tensor(), name)

    @classmethod
    def __torch_function__(cls, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if function is th.add and _average_survivors(*args, **kwargs):
            return args[0]
        plain = [value.tensor() if type(value) is cls else value for value in args]
        return function(*plain, **{key: value.tensor() if type(value) is cls else value for key, value in kwargs.items()})


def _average_survivors(target: Any, online: Any, *others: Any, alpha: Any = 1, out: Any = None) -> bool:
    if others or out is not target or type(target) is not Averaged or type(online) is not Averaged or target.factor is None:
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
