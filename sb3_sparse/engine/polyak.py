"""
Target updates over survivors.

Stable-Baselines3's ``polyak_update`` writes ``target.data.mul_(1 - tau)`` and then ``th.add(target.data, online.data,
alpha=tau, out=target.data)``: two passes over dense memory. Both are the identity on zeros, so a Parameter that knows its
survivors can do them on those alone, with the same result. It does so where that function asks for its ``data``; everybody
else gets torch's own.
"""

from __future__ import annotations

import weakref
from typing import TYPE_CHECKING, Any

import torch as th

if TYPE_CHECKING:
    from sb3_sparse.engine.survivors import SurvivorParameter


class _Data(th.Tensor):
    """What ``SurvivorParameter.data`` gives to a target update: the plain tensor, which knows its survivors."""

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
                if (owner := written.owner()) is not None and owner.mirror is not None:
                    owner.mirror.seen[owner.place] = -1
            return func(*args, **kwargs)


_mul_, _add = th.Tensor.mul_, th.add


def _can_wait(target: Any, factor: Any, *others: Any) -> bool:
    if others or type(target) is not _Data or type(factor) is not float:
        return False
    owner = target.owner()
    return owner is not None and owner.is_mirrored()


def _average_survivors(target: Any, online: Any, *others: Any, alpha: Any = 1, out: Any = None) -> bool:
    if others or out is not target or type(target) is not _Data or type(online) is not _Data or target.factor is None:
        return False
    to, source = target.owner(), online.owner()
    if to is None or source is None or not to.is_mirrored() or not source.is_mirrored() or not to.has_mask_of(source):
        return False
    assert to.mirror is not None
    assert source.mirror is not None
    to.mirror.network.average(to.place, target.factor, alpha, source.mirror.network, source.place)
    to.mirror.network.scatter_weight(to.place)
    target.factor = None
    return True
